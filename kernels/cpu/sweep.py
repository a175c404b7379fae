"""Sums over pairs: values K @ v, and the gradients of sum_ij c_ij K_ij, in one sweep that never stores K.

A block of pairs, some rows by _COLUMNS columns, stays in the cache nearest to the core and goes through the same
steps whatever is wanted; `_sum_rows` reads from top to bottom:

    d2      the squared distances                                     a product of tiles, or differences
    c       g_i . v_j, or the given pairs                             a product of tiles
    mix     k_s = 2**(-scale_s d2); total = sum_s w_s k_s; weight = c sum_s w_s k_s / sigma_s^2
    value   total @ v to the rows, total.T @ g to the columns
    pull    sum_j weight_ij (y_j - x_i) to row i, and its opposite to column j: products of tiles again

Where a stored K is at hand, and good enough, its kernels are read: the first three steps are then one.

Sums are float32 within a block and float64 from block to block. Rows belong to one task each; what columns receive
is kept apart for every chunk of rows, and the chunks, whose number depends on the shapes alone, are added in their
order: any number of threads gives the same bits.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np

from .calls import address_of, shared_at
from .compiled import compiled, inner
from .memory import behaved, borrow, give_back, room, take
from .points import LOG2_E, Plan, Points, limits, pack, pack_addresses, packed_columns
from .threads import team
from .tile import NOWHERE, ROWS, SPANS, add_product, add_pull, distances, product, pull
from .vector import BYTES, add_to, at_least, cleared, exp2, exp2m1, fma, lane_of, load, splat, store, total

_COLUMNS = 256
# rows of a block: few, so that a block stays in the first-level cache, unless products with it follow
_FEW_ROWS, _MANY_ROWS = 2 * ROWS, 16 * ROWS
# up to here columns of v are taken one by one; more are a product
_FEW_VALUES = 4
# for the gradients to columns, which every chunk of rows keeps for itself
_CHUNK_BYTES = 1 << 25
# multiply-adds and rows of a chunk at least; what columns receive is added up from all chunks
_CHUNK_WORK, _CHUNK_ROWS, _MOST_CHUNKS = 1 << 21, 512, 32


class Modes(NamedTuple):
    skip_diagonal: bool  # no pair (i, i)
    less_baseline: bool  # K - sum_s weights_s baseline_s
    # y is x, and c_ij = c_ji: half the pairs are visited. The results are those of all: dx + dy, which needs both,
    # and value + column_value; value without column_value is only good for g . value
    symmetric: bool


class Wants(NamedTuple):
    value: bool
    column_value: bool
    dx: bool
    dy: bool
    parameters: bool


class Parts(NamedTuple):
    """What a sweep fills in, float64, in packed units; columns receive something from every chunk of rows."""

    value: np.ndarray  # (B, N, E) sum_j total_ij v_j
    column_value: np.ndarray  # (B, chunks, M, E) sum_i total_ij g_i
    dx: np.ndarray  # (B, N, D)
    dy: np.ndarray  # (B, chunks, M, D)
    parameters: np.ndarray  # (B, chunks, 2 S) for each bandwidth sum_ij c_ij k_ij, and that times its exponent


class Block(NamedTuple):
    """Rows i0 to i0 + high of a chunk against columns j0 to j0 + wide, in tiles; rows are `line` numbers apart."""

    b: int
    chunk: int
    i0: int
    high: int
    j0: int
    wide: int
    padded: int  # wide in whole tiles
    line: int
    # where y is x: the column that is the first row, if they meet in this block, or -1 for a block above the diagonal
    diagonal: int


@inner
def _pull_one(weight, x, y, b, i, j, dx, dy, chunk, want_dx, want_dy, own, dims):
    """The pull of column j on row i, and its opposite; own: column j is a row of the same block."""
    for k in range(dims):
        part = np.float64(weight) * (np.float64(y[b, j, k]) - np.float64(x[b, i, k]))
        if want_dx:
            dx[b, i, k] += part
        if own:
            dx[b, j, k] -= part
        elif want_dy:
            dy[b, chunk, j, k] -= part


@inner
def _add_tile(tile, width, first, count, k0, dims, out):
    """out[first + r, k0:] += tile[r], as far as out has coordinates."""
    lanes = width // 2
    whole = min(width, dims - k0) // lanes * lanes
    for r in range(count):
        at = (first + r) * dims + k0
        for k in range(0, whole, lanes):
            add_to(out, at + k, load(tile, r * width + k))
        for k in range(whole, min(width, dims - k0)):
            out[first + r, k0 + k] += np.float64(tile[r * width + k])


@inner
def _clear_below(block, line, rows, padded, diagonal, width, value):
    """The entries below and on the diagonal, of tiles that reach above it."""
    for r in range(rows):
        for j in range(_begin(diagonal, r, width), min(diagonal + r + 1, padded)):
            block[r * line + j] = value


@inner
def _add_product(a, a_at, a_row, a_step, b, b_at, b_row, depth, tile, width, first, count, k0, dims, out):
    """out[first + r, k0 + k] += sum_j a[r, j] b[j, k] for a tile, as far as out has rows and coordinates."""
    if count >= ROWS and k0 + width <= dims:
        add_product(a, a_at, a_row, a_step, b, b_at, b_row, depth, out, first * dims + k0, dims)
    else:
        product(a, a_at, a_row, a_step, b, b_at, b_row, depth, tile, 0, width)
        _add_tile(tile, width, first, min(ROWS, count), k0, dims, out)


@inner
def _add_pull(a, a_at, a_row, a_step, b, b_at, b_row, depth, x, x_at, tile, width, first, count, k0, dims, out):
    """out[first + r, k0 + k] += sum_j a[r, j] (b[j, k] - x[r, k]) for half a tile, as `_add_product`."""
    if count >= ROWS // 2 and k0 + width <= dims:
        add_pull(a, a_at, a_row, a_step, b, b_at, b_row, depth, x, x_at, b_row, out, first * dims + k0, dims)
    else:
        pull(a, a_at, a_row, a_step, b, b_at, b_row, depth, x, x_at, b_row, tile, 0, width)
        _add_tile(tile, width, first, min(ROWS // 2, count), k0, dims, out)


@inner
def _mirror(block, line, first, count):
    """The square of count rows, and as many columns from `first` on, gets below its diagonal what is above."""
    for r in range(count):
        for c in range(r):
            block[r * line + first + c] = block[c * line + first + r]


@inner
def _subtract_own(points, b, first, stop, weights, out):
    """out_i -= weights_i points_i: of pulls, what the product with the other points lacks."""
    dims = out.shape[1]
    for i in range(first, stop):
        own, row, times = points[b, i], out[i], weights[i]
        for k in range(dims):
            row[k] -= times * np.float64(own[k])


@inner
def _begin(diagonal, r, width):
    """From which column on a block has tiles in row r: all, or where they reach above the diagonal.

    diagonal is the row of the block's first column less that of its first row, or -1 for a block above it.
    """
    return (diagonal + r // ROWS * ROWS) // width * width if diagonal >= 0 else 0


@inner
def _end(diagonal, j, width, high):
    """Up to which row a block has tiles in column j."""
    return min(high, (j // width * width + width - diagonal + ROWS - 1) // ROWS * ROWS) if diagonal >= 0 else high


def _mixer(less_baseline, pulls):
    """The mixing of a block for the usual wants, compiled for each pair of flags: it is the inmost loop."""

    @inner
    def mix(block, plan, skip_diagonal, d2, weight, totals, keep, add, g, v, outer, sums):
        """sums[r] = sum_j total_rj v_j, or totals are kept; weight = c pulling, where c = g_r v_j or in weight."""
        b, line, scale, squarings, baseline = block.b, block.line, plan.scale, plan.squarings, plan.baseline
        weights, pull_weights = plan.weights, plan.pull_weights
        count = scale.shape[1]
        lanes = BYTES // d2.itemsize
        zero = splat(d2.dtype.type(0))
        v_at = b * v.shape[1] * v.shape[3] + block.j0
        c0, w0, p0 = splat(-scale[b, 0]), splat(weights[b, 0]), splat(pull_weights[b, 0])
        for r in range(block.high):
            row_total = zero
            own = splat(g[b, block.i0 + r, 0]) if outer else zero
            first, stop = _left_out(block, skip_diagonal, r)
            for j in range(_begin(block.diagonal, r, 2 * lanes), block.padded, lanes):
                at = r * line + j
                q = load(d2, at)
                t = q * c0
                k = exp2(t)
                less = k
                if less_baseline:
                    less = exp2m1(t)
                mixed = k * w0
                if less_baseline and baseline[b, 0]:
                    mixed = less * w0
                pulling = k * p0
                for s in range(1, count):
                    if squarings[b, s] == 0:
                        t = zero - q * splat(scale[b, s])
                        k = exp2(t)
                        if less_baseline:
                            less = exp2m1(t)
                    else:
                        # k^2 - 1 = (k - 1) k + (k - 1)
                        if less_baseline:
                            less = fma(less, k, less)
                        k = k * k
                        if squarings[b, s] == 2:
                            if less_baseline:
                                less = fma(less, k, less)
                            k = k * k
                    if less_baseline and baseline[b, s]:
                        mixed = fma(splat(weights[b, s]), less, mixed)
                    else:
                        mixed = fma(splat(weights[b, s]), k, mixed)
                    if pulls:
                        pulling = fma(splat(pull_weights[b, s]), k, pulling)
                if less_baseline and first < j + lanes and j < stop:
                    mixed = cleared(mixed, first - j, stop - j)
                if keep:
                    store(totals, at, mixed)
                elif add:
                    row_total = fma(mixed, load(v, v_at + j), row_total)
                if pulls:
                    c = own * load(v, v_at + j) if outer else load(weight, at)
                    store(weight, at, pulling * c)
            sums[r] = total(row_total)

    return mix


_mix_values, _mix_less, _mix_pulls, _mix_less_pulls = (
    _mixer(less_baseline, pulls) for pulls in (False, True) for less_baseline in (False, True)
)


@inner
def _headroom(weights, pull_weights):
    """log2 of the greatest sum of weights, rounded up, or 0."""
    total = pull_total = 0.0
    for s in range(len(weights)):
        total += abs(np.float64(weights[s]))
        pull_total += abs(np.float64(pull_weights[s]))
    return np.ceil(np.log2(max(1.0, total, pull_total)))


@inner
def _mix_all(
    block, plan, modes, d2, weight, totals, keep, v, want_value, want_pull, want_parameters, row_shift, moments,
    sums, parameters, times,
):  # fmt: skip
    """The mixing of a block with shifts, or with the moments of the bandwidths."""
    b, line, scale, squarings, baseline = block.b, block.line, plan.scale, plan.squarings, plan.baseline
    less_baseline = modes.less_baseline
    weights, pull_weights = plan.weights, plan.pull_weights
    real = d2.dtype.type
    count = scale.shape[1]
    lanes = BYTES // d2.itemsize
    limit = 127 if d2.itemsize == 4 else 1023
    # so that no weighted sum leaves the range: where no row is, or one of weight 0, it is multiplied by 0
    most = splat(real(max(0.0, limit - _headroom(weights[b], pull_weights[b]))))
    least = splat(real(-limit))
    zero = splat(real(0))
    v_at = b * v.shape[1] * v.shape[3] + block.j0
    shifted = row_shift.shape[1] > 0
    for r in range(block.high):
        if r % ROWS == 0:
            moments[:] = 0
        row_total = zero
        first, stop = _left_out(block, modes.skip_diagonal, r)
        for j in range(_begin(block.diagonal, r, 2 * lanes), block.padded, lanes):
            at = r * line + j
            q = load(d2, at)
            c = zero
            if want_pull or want_parameters:
                c = load(weight, at)
            mixed = pulling = k = less = zero
            for s in range(count):
                scaled = zero - q * splat(scale[b, s])
                if shifted:
                    t = scaled - splat(row_shift[b, block.i0 + r, s])
                    t = zero - at_least(zero - t, zero - most)
                    k = exp2(t)
                    less = exp2m1(t) if less_baseline else k
                elif squarings[b, s] == 0:
                    k = exp2(scaled)
                    less = exp2m1(scaled) if less_baseline else k
                else:
                    old = k
                    k = k * k
                    less = fma(less, old, less) if less_baseline else k
                    if squarings[b, s] == 2:
                        old = k
                        k = k * k
                        less = fma(less, old, less) if less_baseline else k
                summed = less if baseline[b, s] else k
                mixed = fma(splat(weights[b, s]), summed, mixed)
                pulling = fma(splat(pull_weights[b, s]), k, pulling)
                if want_parameters:
                    one = 2 * s * lanes
                    store(moments, one, fma(c, summed, load(moments, one)))
                    # clamped, so that an infinite distance times its kernel is 0
                    store(moments, one + lanes, fma(c * k, at_least(scaled, least), load(moments, one + lanes)))
            if less_baseline and first < j + lanes and j < stop:
                mixed = cleared(mixed, first - j, stop - j)
            if keep:
                store(totals, at, mixed)
            elif want_value:
                row_total = fma(mixed, load(v, v_at + j), row_total)
            if want_pull:
                store(weight, at, pulling * c)
        sums[r] = total(row_total)
        if want_parameters and (r % ROWS == ROWS - 1 or r == block.high - 1):
            for s in range(2 * count):
                parameters[s] += times * np.float64(total(load(moments, s * lanes)))


@inner
def _mix(
    block, plan, modes, d2, weight, totals, keep, g, v, outer, general, row_shift, want_value, want_pull,
    want_parameters, moments, sums, parameters, times,
):  # fmt: skip
    skip_diagonal = modes.skip_diagonal
    if general:
        _mix_all(
            block, plan, modes, d2, weight, totals, keep, v, want_value, want_pull, want_parameters, row_shift,
            moments, sums, parameters, times,
        )  # fmt: skip
    elif want_pull and modes.less_baseline:
        _mix_less_pulls(block, plan, skip_diagonal, d2, weight, totals, keep, want_value, g, v, outer, sums)
    elif want_pull:
        _mix_pulls(block, plan, skip_diagonal, d2, weight, totals, keep, want_value, g, v, outer, sums)
    elif modes.less_baseline:
        _mix_less(block, plan, skip_diagonal, d2, weight, totals, keep, want_value, g, v, outer, sums)
    else:
        _mix_values(block, plan, skip_diagonal, d2, weight, totals, keep, want_value, g, v, outer, sums)


@inner
def _finite(rows):
    """With 0 for what is not finite."""
    found = rows.copy()
    flat = found.reshape(-1)
    for k in range(flat.size):
        if not np.isfinite(flat[k]):
            flat[k] = 0
    return found


@inner
def _diagonal(plan, x, g, v, b, chunk, start, stop, less_baseline, want_value, want_parameters, value, parameters):
    """The pairs (i, i) of a symmetric sweep: the distance of a point to itself is 0, or NaN."""
    real = x.dtype.type
    for i in range(start, stop):
        nothing = real(0)
        if not plan.finite:
            for k in range(x.shape[2]):
                nothing += real(0) * x[b, i, k]
        for s in range(plan.scale.shape[1]):
            kernel = nothing if less_baseline and plan.baseline[b, s] else nothing + real(1)
            if want_value:
                value[b, i, 0] += np.float64(kernel * plan.weights[b, s] * v[b, i, 0])
            if want_parameters:
                parameters[b, chunk, 2 * s] += np.float64(kernel * g[b, i, 0] * v[b, i, 0])


@inner
def _distances(block, x, y, slope, offset, known_diagonal, d2, some_near):
    """d2 of a block, and which of its tiles have near pairs."""
    b, row, panels, dims, width = block.b, x.rows.shape[2], *y.columns.shape[1:]
    for p in range(0, block.padded // width):
        for r in range(0, block.high, ROWS):
            if p * width < _begin(block.diagonal, r, width):
                continue
            i, j = block.i0 + r, block.j0 + p * width
            some_near[r // ROWS, p] = distances(
                x.rows, (b * x.rows.shape[1] + i) * row, row,
                y.columns, (b * panels + j // width) * dims * width, dims,
                x.norms, b * x.norms.shape[1] + i, y.norms, b * y.norms.shape[1] + j, slope, offset,
                i - j if known_diagonal else NOWHERE, d2, r * block.line + p * width, block.line,
            )  # fmt: skip


@inner
def _weights(block, g, v, pairs, weight):
    """c of a block: pairs, if there are any, or g_i . v_j."""
    b, panels, columns, width = block.b, *v.columns.shape[1:]
    lanes = width // 2
    if pairs.shape[1]:
        whole = block.wide // lanes * lanes
        for r in range(block.high):
            at, i = r * block.line, block.i0 + r
            for j in range(0, whole, lanes):
                store(weight, at + j, load(pairs, (b * pairs.shape[1] + i) * pairs.shape[2] + block.j0 + j))
            for j in range(whole, block.padded):
                weight[at + j] = pairs[b, i, block.j0 + j] if j < block.wide else 0
    else:
        row = g.rows.shape[2]
        for j in range(0, block.padded, width):
            for r in range(0, block.high, ROWS):
                product(
                    g.rows, (b * g.rows.shape[1] + block.i0 + r) * row, row, 1,
                    v.columns, (b * panels + (block.j0 + j) // width) * columns * width, width, columns,
                    weight, r * block.line + j, block.line,
                )  # fmt: skip


@inner
def _read_kernels(block, plan, pairs, kernels, weight, less_kernels, near, some_near):
    """Of a block weight = c w k / sigma^2, for c in pairs and w k in kernels; -k; and whether any is `near`."""
    b, n, m, lanes = block.b, kernels.shape[1], kernels.shape[2], BYTES // weight.itemsize
    real = weight.dtype.type
    inverse = real(1) / plan.weights[b, 0]
    pull = plan.pull_weights[b, 0]
    zero, inverses, pulls = splat(real(0)), splat(inverse), splat(pull)
    top, greatest = zero, real(0)
    whole = block.wide // lanes * lanes
    for r in range(block.high):
        at, place = r * block.line, (b * n + block.i0 + r) * m + block.j0
        for j in range(0, whole, lanes):
            k = load(kernels, place + j) * inverses
            top = at_least(top, k)
            store(weight, at + j, k * pulls * load(pairs, place + j))
            store(less_kernels, at + j, zero - k)
        for j in range(whole, block.padded):
            k = c = real(0)
            if j < block.wide:
                k, c = kernels[b, block.i0 + r, block.j0 + j] * inverse, pairs[b, block.i0 + r, block.j0 + j]
            greatest = max(greatest, k)
            weight[at + j], less_kernels[at + j] = k * pull * c, -k
    for lane in range(lanes):
        greatest = max(greatest, lane_of(top, lane))
    some_near[:] = -greatest <= near


@inner
def _leave_out(block, skip_diagonal, width, tiles, value):
    """The pairs that are not visited, of a block of tiles: those on the diagonal, or with symmetric also below."""
    if block.diagonal >= 0:
        _clear_below(tiles, block.line, block.high, block.padded, block.diagonal, width, value)
    elif skip_diagonal:
        for i in range(max(block.i0, block.j0), min(block.i0 + block.high, block.j0 + block.wide)):
            tiles[(i - block.i0) * block.line + i - block.j0] = value


@inner
def _left_out(block, skip_diagonal, r):
    """Which columns of row r of a block are not visited: from the first to before the second."""
    if block.diagonal >= 0:
        return 0, block.diagonal + r + 1
    if skip_diagonal:
        own = block.i0 + r - block.j0
        return own, own + 1
    return 0, 0


@inner
def _add_values(block, totals, v, twice, tile, value):
    """value += total @ v"""
    b, panels, columns, width = block.b, *v.columns.shape[1:]
    lanes = width // 2
    if columns <= _FEW_VALUES:
        for r in range(block.high):
            for e in range(columns):
                sum_e = splat(totals.dtype.type(0))
                for j in range(_begin(block.diagonal, r, width), block.padded, lanes):
                    p = (block.j0 + j) // width
                    ve = load(v.columns, ((b * panels + p) * columns + e) * width + j % width)
                    sum_e = fma(load(totals, r * block.line + j), ve, sum_e)
                value[b, block.i0 + r, e] += np.float64(twice * total(sum_e))
        return
    row = v.rows.shape[2]
    for e0 in range(0, columns, width):
        for r in range(0, block.high, ROWS):
            _add_product(
                totals, r * block.line, block.line, 1, v.rows, (b * v.rows.shape[1] + block.j0) * row + e0, row,
                block.wide, tile, width, block.i0 + r, block.high - r, e0, columns, value[b],
            )  # fmt: skip


@inner
def _add_column_values(block, totals, g, columns, width, tile, column_value):
    """column_value += total.T @ g"""
    b, lanes = block.b, width // 2
    out = column_value[b, block.chunk]
    if columns <= _FEW_VALUES:
        for e in range(columns):
            for j in range(0, block.padded, lanes):
                sum_e = splat(totals.dtype.type(0))
                stop = _end(block.diagonal, j, width, block.high)
                for r0 in range(0, stop, SPANS[0]):
                    part = splat(totals.dtype.type(0))
                    for r in range(r0, min(r0 + SPANS[0], stop)):
                        part = fma(load(totals, r * block.line + j), splat(g.rows[b, block.i0 + r, e]), part)
                    sum_e = sum_e + part
                store(tile, 0, sum_e)
                for q in range(min(lanes, block.wide - j)):
                    out[block.j0 + j + q, e] += np.float64(tile[q])
        return
    row = g.rows.shape[2]
    for e0 in range(0, columns, width):
        for j in range(0, block.wide, ROWS):
            _add_product(
                totals, j, 1, block.line, g.rows, (b * g.rows.shape[1] + block.i0) * row + e0, row, block.high,
                tile, width, block.j0 + j, block.wide - j, e0, columns, out,
            )  # fmt: skip


@inner
def _pull_near(block, d2, some_near, near, weight, x, y, width, dims, want_dx, want_dy, dx, dy):
    """Near pairs pull one by one, by their difference: in a product it would cancel. Their weight is then 0."""
    own = block.diagonal + block.high if block.diagonal >= 0 else 0
    for p in range(block.padded // width):
        for r0 in range(0, block.high, ROWS):
            if p * width < _begin(block.diagonal, r0, width) or not some_near[r0 // ROWS, p]:
                continue
            for r in range(r0, min(r0 + ROWS, block.high)):
                for j in range(p * width, min((p + 1) * width, block.wide)):
                    at = r * block.line + j
                    if d2[at] <= near and weight[at] != 0:
                        _pull_one(
                            weight[at], x, y, block.b, block.i0 + r, block.j0 + j, dx, dy, block.chunk,
                            want_dx, want_dy, j < own, dims,
                        )  # fmt: skip
                        weight[at] = 0


@inner
def _pull_rows(block, weight, x, y, differences, dims, width, tile, dx, row_weights):
    """dx_i += sum_j weight_ij (y_j - x_i); or without x_i, for which the sums of weights are kept."""
    b, row, line, lanes = block.b, x.shape[2], block.line, width // 2
    first = max(block.diagonal, 0)
    y_at = (b * y.shape[1] + block.j0 + first) * row
    for k0 in range(0, dims, width):
        if differences:
            for r in range(0, block.high, ROWS // 2):
                _add_pull(
                    weight, r * line + first, line, 1, y, y_at + k0, row, block.wide - first,
                    x, (b * x.shape[1] + block.i0 + r) * row + k0,
                    tile, width, block.i0 + r, block.high - r, k0, dims, dx[b],
                )  # fmt: skip
        else:
            for r in range(0, block.high, ROWS):
                _add_product(
                    weight, r * line + first, line, 1, y, y_at + k0, row, block.wide - first,
                    tile, width, block.i0 + r, block.high - r, k0, dims, dx[b],
                )  # fmt: skip
    if not differences:
        for r in range(block.high):
            for j in range(block.wide, block.padded):
                weight[r * line + j] = 0
            sum_r = splat(weight.dtype.type(0))
            for j in range(first, block.padded, lanes):
                sum_r = sum_r + load(weight, r * line + j)
            row_weights[block.i0 + r] += np.float64(total(sum_r))


@inner
def _pull_columns(block, weight, x, y, differences, dims, width, tile, dy, column_weights):
    """dy_j -= sum_i weight_ij (y_j - x_i), as `_pull_rows`; the block's own rows have been pulled there."""
    b, row, line, lanes = block.b, x.shape[2], block.line, width // 2
    first = block.diagonal + block.high if block.diagonal >= 0 else 0
    x_at = (b * x.shape[1] + block.i0) * row
    for k0 in range(0, dims, width):
        if differences:
            for j in range(first, block.wide, ROWS // 2):
                _add_pull(
                    weight, j, 1, line, x, x_at + k0, row, block.high,
                    y, (b * y.shape[1] + block.j0 + j) * row + k0,
                    tile, width, block.j0 + j, block.wide - j, k0, dims, dy,
                )  # fmt: skip
        else:
            for j in range(first, block.wide, ROWS):
                _add_product(
                    weight, j, 1, line, x, x_at + k0, row, block.high,
                    tile, width, block.j0 + j, block.wide - j, k0, dims, dy,
                )  # fmt: skip
    # rows that are not a full block are the last, and pull no more columns
    if not differences and first < block.wide:
        for j in range(first, block.padded, lanes):
            sum_j = splat(weight.dtype.type(0))
            for r0 in range(0, block.high, SPANS[0]):
                part = splat(weight.dtype.type(0))
                for r in range(r0, min(r0 + SPANS[0], block.high)):
                    part = part + load(weight, r * line + j)
                sum_j = sum_j + part
            add_to(column_weights, block.j0 + j, sum_j)


@inner
def _sum_rows(
    first, last, chunks, bounds, plan, x, x_pull, y, y_pull, v, g, pairs, kernels, row_shift, modes, wants, size,
    parts,
):  # fmt: skip
    """Chunks of rows, first to last, numbered through the batch, against all columns; fills in parts.

    c_ij is g_i . v_j, or in pairs if that has rows. If kernels has rows it is K, and nothing but pulls is wanted.
    x_pull and y_pull are rows, finite; size is that of a block.

    With modes.symmetric only tiles that reach above the diagonal are visited. The pairs above it count for rows and
    columns, without per-row results (the value only to be summed up) twice; the diagonal's kernels are known.
    """
    skip_diagonal, less_baseline, symmetric = modes
    want_value, want_column_value, want_dx, want_dy, want_parameters = wants
    value, column_value, dx, dy, parameters = parts
    block_rows, block_columns = size
    n, m, dims, width, columns = x.count, y.count, y.columns.shape[2], y.columns.shape[3], v.columns.shape[2]
    real, lanes = x.rows.dtype.type, width // 2
    line = block_columns + 64 // x.rows.itemsize
    want_pull = want_dx or want_dy
    want_c = want_pull or want_parameters
    twice = real(2 if symmetric and not want_column_value else 1)
    keep_total = (want_value and columns > 1) or want_column_value
    d2 = room(block_rows * line, x.rows)
    weight = room(block_rows * line if want_c else 1, x.rows)
    totals = room(block_rows * line if keep_total else 1, x.rows)
    tile = room(ROWS * width, x.rows)
    row_sums = np.empty(block_rows, x.rows.dtype)
    # sums over a chunk of what pulls each row, and each column
    row_weights = np.empty(n if want_dx else 0)
    column_weights = np.empty(y.columns.shape[1] * width if want_dy else 0)
    moments = room(2 * plan.scale.shape[1] * lanes, x.rows)
    general = row_shift.shape[1] > 0 or want_parameters
    # one column: c is made where it is used
    outer = want_c and columns == 1 and pairs.shape[1] == 0 and not general
    some_near = np.zeros((block_rows // ROWS, block_columns // width), np.bool_)
    for number in range(first, last):
        b, chunk = number // chunks, number % chunks
        start, stop = bounds[chunk], bounds[chunk + 1]
        near_slope, near_offset, pull_near = real(plan.slope[b]), real(plan.offset[b]), plan.pull_near[b]
        differences = plan.offset[b] == np.inf
        reading = kernels.shape[1] > 0 and plan.reads_kernels[b]
        if reading:
            # -k in place of a squared distance
            pull_near = -(2.0 ** -(plan.scale[b, 0] * pull_near))
        value[b, start:stop] = 0
        column_value[b, chunk] = 0
        dx[b, start:stop] = 0
        dy[b, chunk] = 0
        parameters[b, chunk] = 0
        row_weights[:] = 0
        column_weights[:] = 0
        if symmetric and not skip_diagonal:
            _diagonal(
                plan, x.rows, g.rows, v.rows, b, chunk, start, stop, less_baseline, want_value, want_parameters,
                value, parameters,
            )  # fmt: skip
        first_block = start // block_columns * block_columns if symmetric else 0
        for j0 in range(first_block, m, block_columns):
            wide = min(block_columns, m - j0)
            padded = (wide + width - 1) // width * width
            for i0 in range(start, stop, block_rows):
                if symmetric and j0 < i0 // block_columns * block_columns:
                    continue
                high = min(block_rows, stop - i0)
                diagonal = i0 - j0 if symmetric and j0 <= i0 else -1
                block = Block(b, chunk, i0, high, j0, wide, padded, line, diagonal)
                if reading:
                    _read_kernels(block, plan, pairs, kernels, weight, d2, pull_near, some_near)
                else:
                    _distances(block, x, y, near_slope, near_offset, symmetric or skip_diagonal, d2, some_near)
                    # a kernel of 0
                    _leave_out(block, skip_diagonal, width, d2, real(np.inf))
                    if want_c and not outer:
                        _weights(block, g, v, pairs, weight)
                        _leave_out(block, skip_diagonal, width, weight, real(0))
                    _mix(
                        block, plan, modes, d2, weight, totals, keep_total, g.rows, v.columns, outer, general,
                        row_shift, want_value, want_pull, want_parameters, moments, row_sums, parameters[b, chunk],
                        2.0 if symmetric else 1.0,
                    )  # fmt: skip
                if want_value and keep_total:
                    _add_values(block, totals, v, twice, tile, value)
                elif want_value:
                    for r in range(high):
                        value[b, i0 + r, 0] += np.float64(twice * row_sums[r])
                if want_column_value:
                    _add_column_values(block, totals, g, columns, width, tile, column_value)
                if want_pull:
                    _leave_out(block, skip_diagonal, width, weight, real(0))
                    if not differences:
                        _pull_near(
                            block, d2, some_near, pull_near, weight, x_pull, y_pull, width, dims, want_dx, want_dy,
                            dx, dy,
                        )  # fmt: skip
                    if diagonal >= 0:
                        _mirror(weight, line, diagonal, high)
                if want_dx:
                    _pull_rows(block, weight, x_pull, y_pull, differences, dims, width, tile, dx, row_weights)
                if want_dy:
                    _pull_columns(
                        block, weight, x_pull, y_pull, differences, dims, width, tile, dy[b, chunk], column_weights
                    )
        if not differences:
            if want_dx:
                _subtract_own(x_pull, b, start, stop, row_weights, dx[b])
            if want_dy:
                _subtract_own(y_pull, b, 0, m, column_weights, dy[b, chunk])


@inner
def _block(n, m, width, products):
    """Rows and columns of a block."""
    block_rows = _MANY_ROWS if products else _FEW_ROWS
    # a block of rows lies within one block of columns
    unit = block_rows * width // math.gcd(block_rows, width)
    block_columns = max(1, _COLUMNS // unit) * unit
    if n <= block_rows and m <= block_columns:
        # one block: no more memory than it takes
        block_rows, block_columns = max(1, -(-n // ROWS)) * ROWS, max(1, -(-m // width)) * width
    return block_rows, block_columns


@inner
def _bounds(n, chunks, block_rows, symmetric):
    """Chunks of about equal work; above the diagonal the first rows have the most columns."""
    bounds = np.empty(chunks + 1, np.int64)
    for k in range(chunks):
        share = 1 - math.sqrt(1 - k / chunks) if symmetric else k / chunks
        bounds[k] = round(share * n / block_rows) * block_rows
    bounds[chunks] = n
    return bounds


@inner
def _part(arena, shape, some):
    """To be filled in for some pairs; or zeros."""
    size = 1
    for length in shape:
        size *= length
    part = take(arena, size, np.empty(0))
    if not some:
        part[:] = 0
    return part.reshape(shape)


@inner
def prepared(
    arena, plan, x, y, v, g, pairs, kernels, row_shift, skip_diagonal, less_baseline, symmetric,
    want_value, want_column_value, want_dx, want_dy, want_parameters,
):  # fmt: skip
    """What `share` takes for a sweep of Points x against Points y: its task, and the task's rows.

    See `_sum_rows`; the Parts are last in the task.
    """
    batch, n, m, dims, width = len(x.rows), x.count, y.count, y.columns.shape[2], y.columns.shape[3]
    columns, count = v.columns.shape[2], plan.scale.shape[1]
    block_rows, block_columns = _block(n, m, width, want_dx or want_dy or columns > _FEW_VALUES)
    if symmetric and block_rows >= n:
        # in the only block all pairs are the rows' own
        want_dy = False
    least = max(_CHUNK_ROWS if want_dy or want_column_value else 0, 2 * block_rows)
    # two where there are rows for it, lest a second thread have nothing to do
    by_rows = max(n // least, 2 if n >= 2 * block_rows else 1)
    most = max(2, _CHUNK_BYTES // (8 * batch * m * (dims * want_dy + columns * want_column_value) + 1))
    work = n * m * (dims * (1 + want_dx + want_dy) + 10 * count + columns) // (1 + symmetric)
    chunks = max(1, min(by_rows, most, work // _CHUNK_WORK, _MOST_CHUNKS))
    some = n > 0 and m > 0
    parts = Parts(
        _part(arena, (batch, n, columns if want_value else 0), some),
        _part(arena, (batch, chunks, m if want_column_value else 0, columns), some),
        _part(arena, (batch, n, dims if want_dx else 0), some),
        _part(arena, (batch, chunks, m if want_dy else 0, dims), some),
        np.zeros((batch, chunks, 2 * count if want_parameters else 0)),
    )
    x_pull, y_pull = x.rows, y.rows
    if not plan.finite:
        x_pull, y_pull = _finite(x.rows), _finite(y.rows)
    modes = Modes(skip_diagonal, less_baseline, symmetric)
    wants = Wants(want_value, want_column_value, want_dx, want_dy, want_parameters)
    task = (
        chunks, _bounds(n, chunks, block_rows, symmetric), plan, x, x_pull, y, y_pull, v, g, pairs, kernels,
        row_shift, modes, wants, (block_rows, block_columns), parts,
    )  # fmt: skip
    return task, batch * chunks if some else 0


@cache
def sum_rows_address(dtype: np.dtype) -> int:
    """Where the code of `_sum_rows` begins: for `share_sum_rows`."""
    pairs, wide, places = np.zeros((1, 1, 1), dtype), np.zeros((1, 1)), np.zeros((1, 1), np.int64)
    points = Points(pairs, pairs[None], pairs[0], 1)
    plan = Plan(True, *[wide[0]] * 3, np.zeros(1, np.bool_), wide[0], *[pairs[0]] * 3, *[places] * 3)
    parts = Parts(*[np.zeros((1,) * dims) for dims in (3, 4, 3, 4, 3)])
    modes, wants = Modes(False, False, False), Wants(False, False, False, False, False)
    of_points = (points, pairs, points, pairs, points, points, pairs, pairs, pairs)
    return address_of(_sum_rows, 0, 1, 1, places[0], plan, *of_points, modes, wants, (1, 1), parts)


share_sum_rows = shared_at(_sum_rows, flush_subnormals=True)


@inner
def _round_rows(start, stop, parts, unit, out):
    """Rows, numbered through the batch, of out (B, M, E): the sum of parts (B, chunks, M, E) over unit (B,)."""
    chunks, m, count = parts.shape[1:]
    total = np.empty(count)
    for number in range(start, stop):
        b, j = number // m, number % m
        # a power of two
        inverse = 1 / unit[b]
        total[:] = 0
        for chunk in range(chunks):
            # no view of the part: counting who refers to it would take longer than a short row
            for e in range(count):
                total[e] += parts[b, chunk, j, e]
        for e in range(count):
            out[b, j, e] = total[e] * inverse


@cache
def _sweep_addresses(dtype: np.dtype) -> tuple[tuple[int, int], int, int]:
    part, one = np.zeros((1, 1, 1, 1)), np.ones(1)
    round_rows = address_of(_round_rows, 0, 0, part, one, np.zeros((1, 1, 1), dtype))
    return pack_addresses(dtype), sum_rows_address(dtype), round_rows


_share_round_rows = shared_at(_round_rows)


@inner
def _round(round_rows, workers, parts, unit, out):
    batch, m, count = out.shape
    rows = batch * m if count else 0
    _share_round_rows(round_rows, workers, (rows,), ((parts, unit, out),))


@inner
def add_chunks(parameters, out):
    """out (B, 2 S) += the sums over chunks of parameters (B, chunks, 2 S)."""
    for b in range(parameters.shape[0]):
        for chunk in range(parameters.shape[1]):
            for s in range(parameters.shape[2]):
                out[b, s] += parameters[b, chunk, s]


@inner
def _shifts(plan, shift, like):
    """Shifts (B, N, S) in base 2, in the order of the bandwidths; without a row where there are none."""
    batch, n, count = shift.shape
    ordered = np.empty((batch, n, count), like.dtype)
    for b in range(batch):
        for i in range(n):
            for s in range(count):
                ordered[b, i, s] = shift[b, i, plan.order[b, s]] * LOG2_E
    return ordered


@compiled
def _sweep(
    addresses, workers, arena, x, y, same, sigma, weights, baseline, limit, v, g, pairs, kernels, shift,
    skip_diagonal, wants, results,
):  # fmt: skip
    value, column_value, dx, dy, order, parameters = results
    plan, px, py = pack(addresses[0], workers, arena, x, y, same, sigma, weights, baseline, same, True, limit)
    pv, pg = packed_columns(v), packed_columns(g)
    task, rows = prepared(
        arena, plan, px, py, pv, pg, pairs, kernels, _shifts(plan, shift, x), skip_diagonal, baseline.shape[1] > 0,
        False, *wants,
    )  # fmt: skip
    share_sum_rows(addresses[1], workers, (rows,), (task,))
    parts, one = task[-1], np.ones(len(x))
    batch, n, dims = x.shape
    if same and wants[2]:
        # x is at both ends of a pair
        for b in range(batch):
            for i in range(n):
                for k in range(dims):
                    parts.dy[b, 0, i, k] += parts.dx[b, i, k]
    of_rows = parts.dy if same else parts.dx.reshape((batch, 1, n, dims if wants[2] else 0))
    _round(addresses[2], workers, parts.value.reshape((batch, 1, n, v.shape[2] if wants[0] else 0)), one, value)
    _round(addresses[2], workers, parts.column_value, one, column_value)
    _round(addresses[2], workers, of_rows, plan.unit, dx)
    if not same:
        _round(addresses[2], workers, parts.dy, plan.unit, dy)
    order[:] = plan.order
    add_chunks(parts.parameters, parameters)


class Sums(NamedTuple):
    """What one sweep returns, in the dtype of x but float64 to the bandwidths; None where it was not wanted."""

    value: np.ndarray | None  # (B, N, E) sum_j total_ij v_j
    column_value: np.ndarray | None  # (B, M, E) sum_i total_ij g_i
    dx: np.ndarray | None  # (B, N, D)
    dy: np.ndarray | None  # (B, M, D)
    dsigma: np.ndarray | None  # (B, S)
    dweights: np.ndarray | None  # (B, S)


def sweep(
    x, y, sigma, weights, tolerances, wants, *, v=None, g=None, pairs=None, kernels=None, shift=None,
    skip_diagonal=False, baseline=None,
):  # fmt: skip
    """Sums over all pairs of x (B, N, D) and y (B, M, D), or None for x, whose gradient is then that of both ends.

    v (B, M, E), g (B, N, E), c_ij = g_i . v_j or pairs (B, N, M); kernels is K, if it is at hand; shift (B, N, S) is
    taken from the exponents, sum_s weights_s baseline_s from K where there is a baseline (B, S).
    tolerances are those of `limits`, wants for the fields of Sums.
    """
    want_value, want_column_value, want_x, want_y, want_sigma, want_weights = wants
    same = y is None
    y = x if same else y
    (batch, n, dims), m, count = x.shape, y.shape[1], sigma.shape[1]
    none = np.empty((batch, 0, 1), x.dtype)
    given = v if v is not None else g
    columns = 1 if given is None else given.shape[2]
    unknown = np.empty((batch, 0, columns), x.dtype)
    if want_value or want_column_value or want_sigma or want_weights:
        kernels = None
    v, g, pairs, kernels, shift = (
        missing if array is None else array.astype(x.dtype, copy=False)
        for array, missing in ((v, unknown), (g, unknown), (pairs, none), (kernels, none), (shift, none))
    )
    pulls = (want_x, want_x if same else want_y)
    work = batch * n * m * (dims * (1 + sum(pulls)) + 10 * count + columns)
    baseline = np.empty((batch, 0)) if baseline is None else baseline
    arrays = (x, y, sigma, weights, baseline, v, g, pairs, kernels, shift)
    x, y, sigma, weights, baseline, v, g, pairs, kernels, shift = map(behaved, arrays)
    addresses = _sweep_addresses(x.dtype)
    if want_sigma or want_weights:
        tolerances = (*tolerances, "parameter")
    limit = limits(x.dtype, n * m, dims, *tolerances)
    shapes = ((n, columns * want_value), (m * want_column_value, columns), (n, dims * pulls[0]), (m, dims * pulls[1]))
    value, column_value, dx, dy = (np.empty((batch, *shape), x.dtype) for shape in shapes)
    want_parameters = want_sigma or want_weights
    order, parameters = np.zeros(sigma.shape, np.int64), np.zeros((batch, 2 * count * want_parameters))
    arena = borrow()
    _sweep(
        addresses, team(work), arena, x, y, same, sigma, weights, baseline, limit, v, g, pairs, kernels, shift,
        skip_diagonal, (want_value, want_column_value, *pulls, want_parameters),
        (value, column_value, dx, dy, order, parameters),
    )  # fmt: skip
    give_back(arena)
    if same:
        dy = dx
    dsigma = dweights = None
    if want_sigma or want_weights:
        dsigma, dweights = parameters_of(order, sigma, weights, parameters)
    found = (value, column_value, dx, dy, dsigma, dweights)
    return Sums(*(array if want else None for array, want in zip(found, wants, strict=True)))


def parameters_of(
    order: np.ndarray, sigma: np.ndarray, weights: np.ndarray, parameters: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """dsigma and dweights, (B, S), of what Parts hold, summed over chunks: (B, 2 S)."""
    sums = parameters.reshape(*order.shape, 2)
    dweights, dsigma = np.empty(order.shape), np.empty(order.shape)
    np.put_along_axis(dweights, order, sums[..., 0], 1)
    np.put_along_axis(dsigma, order, sums[..., 1], 1)
    # sum c k d2 / sigma^3, with d2 = -t sigma^2 2 / log2(e); 0 by a tiny sigma is 0
    dsigma *= -2 / LOG2_E * weights
    dsigma /= sigma
    return dsigma, dweights
