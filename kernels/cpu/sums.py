"""Sums over pairs: values K @ v, and the gradients of sum_ij c_ij K_ij, in one sweep that never stores K.

A block of pairs, some rows by _COLUMNS columns, stays in the cache nearest to the core and goes through the same
steps whatever is wanted; `_sum_rows` reads from top to bottom:

    d2      the squared distances                                     a product of tiles, or differences
    c       g_i . v_j, or the given pairs                             a product of tiles
    mix     k_s = 2**(-scale_s d2); total = sum_s w_s k_s; weight = c sum_s w_s k_s / sigma_s^2
    value   total @ v to the rows, total.T @ g to the columns
    pull    sum_j weight_ij (y_j - x_i) to row i, and its opposite to column j: products of tiles again

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
from .packed import LOG2_E, Plan, Points, limits, pack, pack_addresses, packed_columns
from .threads import team
from .tile import NOWHERE, ROWS, add_product, add_pull, distances, product, pull
from .vector import BYTES, add_to, at_least, exp2, exp2m1, fma, load, splat, store, total

_COLUMNS = 256
# rows of a block: few, so that a block stays in the first-level cache, unless products with it follow
_FEW_ROWS, _MANY_ROWS = 2 * ROWS, 16 * ROWS
# up to here columns of v are taken one by one; more are a product
_FEW_VALUES = 4
# for the gradients to columns, which every chunk of rows keeps for itself
_CHUNK_BYTES = 1 << 25
# multiply-adds of a chunk at least
CHUNK_WORK, _MOST_CHUNKS = 1 << 23, 32


class Modes(NamedTuple):
    skip_diagonal: bool  # no pair (i, i)
    minus_one: bool  # K - sum_s weights_s
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


def _mixer(minus_one, pulls):
    """The mixing of a block for the usual wants, compiled for each pair of flags: it is the inmost loop."""

    @inner
    def mix(
        d2,
        weight,
        totals,
        line,
        rows,
        padded,
        b,
        scale,
        squarings,
        weights,
        pull_weights,
        keep,
        add,
        diagonal,
        g,
        v,
        v_at,
        outer,
        sums,
    ):
        """sums[r] = sum_j total_rj v_j, or totals are kept; weight = c pulling, where c = g_r v_j or in weight."""
        real = d2.dtype.type
        count = scale.shape[1]
        lanes = BYTES // d2.itemsize
        zero = splat(real(0))
        c0, w0, p0 = splat(-scale[b, 0]), splat(weights[b, 0]), splat(pull_weights[b, 0])
        for r in range(rows):
            row_total = zero
            own = splat(g[r]) if outer else zero
            for j in range(_begin(diagonal, r, 2 * lanes), padded, lanes):
                at = r * line + j
                q = load(d2, at)
                t = q * c0
                k = exp2(t)
                less = k
                if minus_one:
                    less = exp2m1(t)
                mixed = less * w0
                pulling = k * p0
                for s in range(1, count):
                    if squarings[b, s] == 0:
                        t = zero - q * splat(scale[b, s])
                        k = exp2(t)
                        if minus_one:
                            less = exp2m1(t)
                    else:
                        # k^2 - 1 = (k - 1) k + (k - 1)
                        if minus_one:
                            less = fma(less, k, less)
                        k = k * k
                        if squarings[b, s] == 2:
                            if minus_one:
                                less = fma(less, k, less)
                            k = k * k
                    if minus_one:
                        mixed = fma(splat(weights[b, s]), less, mixed)
                    else:
                        mixed = fma(splat(weights[b, s]), k, mixed)
                    if pulls:
                        pulling = fma(splat(pull_weights[b, s]), k, pulling)
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
    _mixer(minus_one, pulls) for pulls in (False, True) for minus_one in (False, True)
)


@inner
def _mix_all(
    d2, weight, totals, line, rows, padded, b, scale, squarings, weights, pull_weights, keep, diagonal, v, v_at,
    minus_one, want_value, want_pull, want_parameters, row_shift, i0, moments, sums, parameters, times,
):  # fmt: skip
    """The mixing of a block with shifts, or with the moments of the bandwidths."""
    real = d2.dtype.type
    count = scale.shape[1]
    lanes = BYTES // d2.itemsize
    least, most = splat(real(-127 if d2.itemsize == 4 else -1023)), splat(real(127 if d2.itemsize == 4 else 1023))
    zero = splat(real(0))
    shifted = row_shift.shape[1] > 0
    for r in range(rows):
        if r % ROWS == 0:
            moments[:] = 0
        row_total = zero
        for j in range(_begin(diagonal, r, 2 * lanes), padded, lanes):
            at = r * line + j
            q = load(d2, at)
            c = zero
            if want_pull or want_parameters:
                c = load(weight, at)
            mixed = pulling = k = less = zero
            for s in range(count):
                scaled = zero - q * splat(scale[b, s])
                if shifted:
                    t = scaled - splat(row_shift[b, i0 + r, s])
                    k = exp2(zero - at_least(zero - t, zero - most))
                    less = k
                elif squarings[b, s] == 0:
                    k = exp2(scaled)
                    less = exp2m1(scaled) if minus_one else k
                else:
                    old = k
                    k = k * k
                    less = fma(less, old, less) if minus_one else k
                    if squarings[b, s] == 2:
                        old = k
                        k = k * k
                        less = fma(less, old, less) if minus_one else k
                mixed = fma(splat(weights[b, s]), less, mixed)
                pulling = fma(splat(pull_weights[b, s]), k, pulling)
                if want_parameters:
                    one = 2 * s * lanes
                    store(moments, one, fma(c, less, load(moments, one)))
                    # clamped, so that an infinite distance times its kernel is 0
                    store(moments, one + lanes, fma(c * k, at_least(scaled, least), load(moments, one + lanes)))
            if keep:
                store(totals, at, mixed)
            elif want_value:
                row_total = fma(mixed, load(v, v_at + j), row_total)
            if want_pull:
                store(weight, at, pulling * c)
        sums[r] = total(row_total)
        if want_parameters and (r % ROWS == ROWS - 1 or r == rows - 1):
            for s in range(2 * count):
                parameters[s] += times * np.float64(total(load(moments, s * lanes)))


@compiled
def _finite(rows):
    """With 0 for what is not finite."""
    found = rows.copy()
    flat = found.reshape(-1)
    for k in range(flat.size):
        if not np.isfinite(flat[k]):
            flat[k] = 0
    return found


@compiled
def _sum_rows(
    first, last, chunks, bounds, plan, x_points, x_pull, y_points, y_pull, v_points, g_points, pairs, row_shift,
    modes, wants, block, parts,
):  # fmt: skip
    """Chunks of rows, first to last, numbered through the batch, against all columns; fills in parts.

    c_ij is g_i . v_j, or in pairs if that has rows. x_pull and y_pull are rows, finite.

    With modes.symmetric only tiles that reach above the diagonal are visited. The pairs above it count for rows and
    columns, without per-row results (the value only to be summed up) twice; the diagonal's kernels are known.
    """
    x, nx, y, yt, ny = x_points.rows, x_points.norms, y_points.rows, y_points.columns, y_points.norms
    n, m, dims, columns = x_points.count, y_points.count, yt.shape[2], v_points.columns.shape[2]
    g, v, vt = g_points.rows, v_points.rows, v_points.columns
    finite, slopes, offsets, pull_nears = plan.finite, plan.slope, plan.offset, plan.pull_near
    scale, squarings, weights, pull_weights = plan.scale, plan.squarings, plan.weights, plan.pull_weights
    skip_diagonal, minus_one, symmetric = modes
    want_value, want_column_value, want_dx, want_dy, want_parameters = wants
    block_rows, block_columns = block
    value, column_value, dx, dy, parameters = parts
    width = yt.shape[3]
    lanes = width // 2
    row, panels = x.shape[2], yt.shape[1]
    count = scale.shape[1]
    real = x.dtype.type
    line = block_columns + 64 // x.itemsize
    want_pull = want_dx or want_dy
    want_c = want_pull or want_parameters
    from_pairs = pairs.shape[1] > 0
    known_diagonal = symmetric or skip_diagonal
    twice = real(2 if symmetric and not want_column_value else 1)
    shifted = row_shift.shape[1] > 0
    keep_total = (want_value and columns > 1) or want_column_value
    d2 = room(block_rows * line, x)
    weight = room(block_rows * line if want_c else 1, x)
    totals = room(block_rows * line if keep_total else 1, x)
    tile = room(ROWS * width, x)
    row_sums = np.empty(block_rows, x.dtype)
    # sums over a chunk of what pulls each row, and each column
    row_weights = np.empty(n if want_dx else 0)
    column_weights = np.empty(panels * width if want_dy else 0)
    moments = room(2 * count * lanes, x)
    general = shifted or want_parameters
    # one column: c is made where it is used
    outer = want_c and columns == 1 and not from_pairs and not general
    g_column = g[:, :, 0]
    some_near = np.zeros((block_rows // ROWS, block_columns // width), np.bool_)
    zero = splat(real(0))
    for number in range(first, last):
        b, chunk = number // chunks, number % chunks
        start, stop = bounds[chunk], bounds[chunk + 1]
        slope, offset, pull_near = slopes[b], offsets[b], pull_nears[b]
        differences = offset == np.inf
        row_weights[:] = 0
        column_weights[:] = 0
        near_slope, near_offset = real(slope), real(offset)
        if symmetric and not skip_diagonal:
            for i in range(start, stop):
                # the distance of a point to itself is 0, or NaN
                nothing = real(0)
                if not finite:
                    for k in range(dims):
                        nothing += real(0) * x[b, i, k]
                for s in range(count):
                    kernel = nothing if minus_one else nothing + weights[b, s]
                    if want_value:
                        value[b, i, 0] += np.float64(kernel * v[b, i, 0])
                    if want_parameters:
                        kernel = nothing if minus_one else nothing + real(1)
                        parameters[b, chunk, 2 * s] += np.float64(kernel * g[b, i, 0] * v[b, i, 0])
        first_block = start // block_columns * block_columns if symmetric else 0
        for j0 in range(first_block, m, block_columns):
            wide = min(block_columns, m - j0)
            p0, p1 = j0 // width, (j0 + wide + width - 1) // width
            padded = (p1 - p0) * width
            for i0 in range(start, stop, block_rows):
                high = min(block_rows, stop - i0)
                if symmetric and j0 < i0 // block_columns * block_columns:
                    continue
                diagonal = i0 - j0 if symmetric and j0 <= i0 else -1

                for p in range(p0, p1):
                    for r in range(0, high, ROWS):
                        i = i0 + r
                        if (p - p0) * width < _begin(diagonal, r, width):
                            continue
                        some_near[r // ROWS, p - p0] = distances(
                            x, (b * x.shape[1] + i) * row, row, yt, (b * panels + p) * dims * width, dims,
                            nx, b * nx.shape[1] + i, ny, b * ny.shape[1] + p * width, near_slope, near_offset,
                            i - p * width if known_diagonal else NOWHERE, d2, r * line + (p - p0) * width, line,
                        )  # fmt: skip
                # a kernel of 0, or one less 1
                none = real(0 if minus_one else np.inf)
                if diagonal >= 0:
                    _clear_below(d2, line, high, padded, diagonal, width, none)
                elif skip_diagonal:
                    for i in range(max(i0, j0), min(i0 + high, j0 + wide)):
                        d2[(i - i0) * line + i - j0] = none

                if want_c and not outer:
                    if from_pairs:
                        for r in range(high):
                            whole = wide // lanes * lanes
                            for j in range(0, whole, lanes):
                                store(weight, r * line + j, load(pairs, (b * n + i0 + r) * m + j0 + j))
                            for j in range(whole, padded):
                                weight[r * line + j] = pairs[b, i0 + r, j0 + j] if j < wide else 0
                    else:
                        for p in range(p0, p1):
                            for r in range(0, high, ROWS):
                                product(
                                    g, (b * g.shape[1] + i0 + r) * g.shape[2], g.shape[2], 1,
                                    vt, (b * panels + p) * columns * width, width, columns,
                                    weight, r * line + (p - p0) * width, line,
                                )  # fmt: skip
                    if diagonal >= 0:
                        _clear_below(weight, line, high, padded, diagonal, width, real(0))
                    elif skip_diagonal:
                        for i in range(max(i0, j0), min(i0 + high, j0 + wide)):
                            weight[(i - i0) * line + i - j0] = 0

                v_at = b * panels * width + j0
                if general:
                    _mix_all(
                        d2, weight, totals, line, high, padded, b, scale, squarings, weights, pull_weights,
                        keep_total, diagonal, vt, v_at, minus_one, want_value, want_pull, want_parameters, row_shift,
                        i0, moments, row_sums, parameters[b, chunk], 2.0 if symmetric else 1.0,
                    )  # fmt: skip
                else:
                    g_block = g_column[b, i0 : i0 + high]
                    if want_pull and minus_one:
                        _mix_less_pulls(
                            d2, weight, totals, line, high, padded, b, scale, squarings, weights, pull_weights,
                            keep_total, want_value, diagonal, g_block, vt, v_at, outer, row_sums,
                        )  # fmt: skip
                    elif want_pull:
                        _mix_pulls(
                            d2, weight, totals, line, high, padded, b, scale, squarings, weights, pull_weights,
                            keep_total, want_value, diagonal, g_block, vt, v_at, outer, row_sums,
                        )  # fmt: skip
                    elif minus_one:
                        _mix_less(
                            d2, weight, totals, line, high, padded, b, scale, squarings, weights, pull_weights,
                            keep_total, want_value, diagonal, g_block, vt, v_at, outer, row_sums,
                        )  # fmt: skip
                    else:
                        _mix_values(
                            d2, weight, totals, line, high, padded, b, scale, squarings, weights, pull_weights,
                            keep_total, want_value, diagonal, g_block, vt, v_at, outer, row_sums,
                        )  # fmt: skip
                if want_value and not keep_total:
                    for r in range(high):
                        value[b, i0 + r, 0] += np.float64(twice * row_sums[r])
                if want_pull and diagonal >= 0:
                    _clear_below(weight, line, high, padded, diagonal, width, real(0))
                elif want_pull and skip_diagonal:
                    for i in range(max(i0, j0), min(i0 + high, j0 + wide)):
                        weight[(i - i0) * line + i - j0] = 0

                if want_value and keep_total:
                    if columns <= _FEW_VALUES:
                        for r in range(high):
                            for e in range(columns):
                                sum_e = zero
                                for j in range(_begin(diagonal, r, width), padded, lanes):
                                    p = p0 + j // width
                                    ve = load(vt, ((b * panels + p) * columns + e) * width + j % width)
                                    sum_e = fma(load(totals, r * line + j), ve, sum_e)
                                value[b, i0 + r, e] += np.float64(twice * total(sum_e))
                    else:
                        for e0 in range(0, columns, width):
                            for r in range(0, high, ROWS):
                                _add_product(
                                    totals, r * line, line, 1, v, (b * v.shape[1] + j0) * v.shape[2] + e0, v.shape[2],
                                    wide, tile, width, i0 + r, high - r, e0, columns, value[b],
                                )  # fmt: skip
                if want_column_value:
                    if columns <= _FEW_VALUES:
                        for e in range(columns):
                            for j in range(0, padded, lanes):
                                sum_e = zero
                                for r in range(_end(diagonal, j, width, high)):
                                    ge = splat(g[b, i0 + r, e])
                                    sum_e = fma(load(totals, r * line + j), ge, sum_e)
                                store(tile, 0, sum_e)
                                for q in range(min(lanes, wide - j)):
                                    column_value[b, chunk, j0 + j + q, e] += np.float64(tile[q])
                    else:
                        for e0 in range(0, columns, width):
                            for j in range(0, wide, ROWS):
                                _add_product(
                                    totals, j, 1, line, g, (b * g.shape[1] + i0) * g.shape[2] + e0, g.shape[2], high,
                                    tile, width, j0 + j, wide - j, e0, columns, column_value[b, chunk],
                                )  # fmt: skip

                # the columns that pull rows, and those that rows pull: pairs of the block's own rows do so once
                pulling, pulled = 0, 0
                if diagonal >= 0:
                    pulling, pulled = diagonal, diagonal + high
                if want_pull and not differences:
                    # near pairs one by one, by their difference: in a product it would cancel
                    for p in range(p0, p1):
                        for r0 in range(0, high, ROWS):
                            if (p - p0) * width >= _begin(diagonal, r0, width) and some_near[r0 // ROWS, p - p0]:
                                for r in range(r0, min(r0 + ROWS, high)):
                                    for j in range((p - p0) * width, min((p - p0 + 1) * width, wide)):
                                        at = r * line + j
                                        if d2[at] <= pull_near and weight[at] != 0:
                                            if d2[at] > 0:
                                                _pull_one(
                                                    weight[at], x_pull, y_pull, b, i0 + r, j0 + j, dx, dy, chunk,
                                                    want_dx, want_dy, j < pulled, dims,
                                                )  # fmt: skip
                                            weight[at] = 0
                if want_pull and diagonal >= 0:
                    _mirror(weight, line, diagonal, high)
                if want_dx:
                    y_at = (b * y.shape[1] + j0 + pulling) * row
                    for k0 in range(0, dims, width):
                        if differences:
                            for r in range(0, high, ROWS // 2):
                                _add_pull(
                                    weight, r * line + pulling, line, 1, y_pull, y_at + k0, row, wide - pulling,
                                    x_pull, (b * x.shape[1] + i0 + r) * row + k0,
                                    tile, width, i0 + r, high - r, k0, dims, dx[b],
                                )  # fmt: skip
                        else:
                            for r in range(0, high, ROWS):
                                _add_product(
                                    weight, r * line + pulling, line, 1, y, y_at + k0, row, wide - pulling,
                                    tile, width, i0 + r, high - r, k0, dims, dx[b],
                                )  # fmt: skip
                    if not differences:
                        for r in range(high):
                            sum_r = zero
                            for j in range(wide, padded):
                                weight[r * line + j] = 0
                            for j in range(pulling, padded, lanes):
                                sum_r = sum_r + load(weight, r * line + j)
                            row_weights[i0 + r] += np.float64(total(sum_r))
                if want_dy:
                    x_at = (b * x.shape[1] + i0) * row
                    for k0 in range(0, dims, width):
                        if differences:
                            for j in range(pulled, wide, ROWS // 2):
                                _add_pull(
                                    weight, j, 1, line, x_pull, x_at + k0, row, high,
                                    y_pull, (b * y.shape[1] + j0 + j) * row + k0,
                                    tile, width, j0 + j, wide - j, k0, dims, dy[b, chunk],
                                )  # fmt: skip
                        else:
                            for j in range(pulled, wide, ROWS):
                                _add_product(
                                    weight, j, 1, line, x, x_at + k0, row, high,
                                    tile, width, j0 + j, wide - j, k0, dims, dy[b, chunk],
                                )  # fmt: skip
                    # rows that are not a full block are the last, and pull no more columns
                    if not differences and pulled < wide:
                        for j in range(pulled, padded, lanes):
                            sum_j = zero
                            for r in range(high):
                                sum_j = sum_j + load(weight, r * line + j)
                            add_to(column_weights, j0 + j, sum_j)
        if not differences:
            if want_dx:
                _subtract_own(x, b, start, stop, row_weights, dx[b])
            if want_dy:
                _subtract_own(y, b, 0, m, column_weights, dy[b, chunk])


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
def _zeros(arena, shape):
    size = 1
    for length in shape:
        size *= length
    zeros = take(arena, size, np.empty(0))
    zeros[:] = 0
    return zeros.reshape(shape)


@inner
def prepared(
    arena, plan, x, y, v, g, pairs, row_shift, skip_diagonal, minus_one, symmetric,
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
    # at least so many rows a chunk: what columns receive is added up from all chunks
    least = 256 if want_dy or want_column_value else 2 * block_rows
    most = max(2, _CHUNK_BYTES // (8 * batch * m * (dims * want_dy + columns * want_column_value) + 1))
    work = n * m * (dims * (1 + want_dx + want_dy) + 10 * count + columns) // (1 + symmetric)
    chunks = max(1, min(n // least, most, work // CHUNK_WORK, _MOST_CHUNKS))
    parts = Parts(
        _zeros(arena, (batch, n, columns if want_value else 0)),
        _zeros(arena, (batch, chunks, m if want_column_value else 0, columns)),
        _zeros(arena, (batch, n, dims if want_dx else 0)),
        _zeros(arena, (batch, chunks, m if want_dy else 0, dims)),
        np.zeros((batch, chunks, 2 * count if want_parameters else 0)),
    )
    x_pull, y_pull = x.rows, y.rows
    if not plan.finite:
        x_pull, y_pull = _finite(x.rows), _finite(y.rows)
    modes = Modes(skip_diagonal, minus_one, symmetric)
    wants = Wants(want_value, want_column_value, want_dx, want_dy, want_parameters)
    task = (
        chunks, _bounds(n, chunks, block_rows, symmetric), plan, x, x_pull, y, y_pull, v, g, pairs, row_shift, modes,
        wants, (block_rows, block_columns), parts,
    )  # fmt: skip
    return task, batch * chunks if n and m else 0


@cache
def sum_rows_address(dtype: np.dtype) -> int:
    """Where the code of `_sum_rows` begins: for `share_sum_rows`."""
    pairs, wide, places = np.zeros((1, 1, 1), dtype), np.zeros((1, 1)), np.zeros((1, 1), np.int64)
    points = Points(pairs, pairs[None], pairs[0], 1)
    plan = Plan(True, *[wide[0]] * 4, *[pairs[0]] * 3, places, places)
    parts = Parts(*[np.zeros((1,) * dims) for dims in (3, 4, 3, 4, 3)])
    modes, wants = Modes(False, False, False), Wants(False, False, False, False, False)
    of_points = (points, pairs, points, pairs, points, points, pairs, pairs)
    return address_of(_sum_rows, 0, 1, 1, places[0], plan, *of_points, modes, wants, (1, 1), parts)


share_sum_rows = shared_at(_sum_rows)


@inner
def _rounded(parts, unit, like):
    """The sum over chunks of parts (B, chunks, M, E), over unit (B,): (B, M, E) in the dtype of like."""
    batch, chunks, m, count = parts.shape
    sums = np.empty((batch, m, count), like.dtype)
    for b in range(batch):
        for j in range(m):
            for e in range(count):
                total = parts[b, 0, j, e]
                for chunk in range(1, chunks):
                    total += parts[b, chunk, j, e]
                sums[b, j, e] = total / unit[b]
    return sums


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
    addresses, workers, arena, x, y, same, sigma, weights, limit, v, g, pairs, shift, skip_diagonal, minus_one, wants
):  # fmt: skip
    plan, px, py = pack(addresses[0], workers, arena, x, y, same, sigma, weights, same, True, limit)
    pv, pg = packed_columns(v), packed_columns(g)
    task, rows = prepared(
        arena, plan, px, py, pv, pg, pairs, _shifts(plan, shift, x), skip_diagonal, minus_one, False, *wants
    )
    share_sum_rows(addresses[1], workers, (rows,), (task,))
    parts, one = task[-1], np.ones(len(x))
    batch, n, dims = x.shape
    if same and wants[2]:
        # x is at both ends of a pair
        for b in range(batch):
            for i in range(n):
                for k in range(dims):
                    parts.dy[b, 0, i, k] += parts.dx[b, i, k]
    dx = parts.dy if same else parts.dx.reshape((batch, 1, n, dims if wants[2] else 0))
    value = parts.value.reshape((batch, 1, n, v.shape[2] if wants[0] else 0))
    return (
        _rounded(value, one, x), _rounded(parts.column_value, one, x), _rounded(dx, plan.unit, x),
        _rounded(parts.dy, plan.unit, x), plan.order, parts.parameters,
    )  # fmt: skip


class Sums(NamedTuple):
    """What one sweep returns, in the dtype of x but float64 to the bandwidths; None where it was not wanted."""

    value: np.ndarray | None  # (B, N, E) sum_j total_ij v_j
    column_value: np.ndarray | None  # (B, M, E) sum_i total_ij g_i
    dx: np.ndarray | None  # (B, N, D)
    dy: np.ndarray | None  # (B, M, D)
    dsigma: np.ndarray | None  # (B, S)
    dweights: np.ndarray | None  # (B, S)


def sweep(
    x, y, sigma, weights, tolerances, wants, *, v=None, g=None, pairs=None, shift=None, skip_diagonal=False,
    minus_one=False,
):  # fmt: skip
    """Sums over all pairs of x (B, N, D) and y (B, M, D), or None for x, whose gradient is then that of both ends.

    v (B, M, E), g (B, N, E), c_ij = g_i . v_j or pairs (B, N, M); shift (B, N, S) is taken from the exponents.
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
    v, g, pairs, shift = (
        missing if array is None else array.astype(x.dtype, copy=False)
        for array, missing in ((v, unknown), (g, unknown), (pairs, none), (shift, none))
    )
    pulls = (want_x, want_x if same else want_y)
    work = batch * n * m * (dims * (1 + sum(pulls)) + 10 * count + columns)
    x, y, sigma, weights, v, g, pairs, shift = map(behaved, (x, y, sigma, weights, v, g, pairs, shift))
    addresses = pack_addresses(x.dtype), sum_rows_address(x.dtype)
    limit = limits(x.dtype, n * m, dims, *tolerances)
    arena = borrow()
    value, column_value, dx, dy, order, parameters = _sweep(
        addresses, team(work), arena, x, y, same, sigma, weights, limit, v, g, pairs, shift, skip_diagonal, minus_one,
        (want_value, want_column_value, *pulls, want_sigma or want_weights),
    )  # fmt: skip
    give_back(arena)
    dsigma = dweights = None
    if want_sigma or want_weights:
        dsigma, dweights = parameters_of(order, sigma, weights, parameters)
    found = (value, column_value, dx, dy, dsigma, dweights)
    return Sums(*(array if want else None for array, want in zip(found, wants, strict=True)))


def parameters_of(
    order: np.ndarray, sigma: np.ndarray, weights: np.ndarray, parameters: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """dsigma and dweights, (B, S), of what Parts hold."""
    sums = parameters.sum(1).reshape(*order.shape, 2)
    dweights, dsigma = np.empty(order.shape), np.empty(order.shape)
    np.put_along_axis(dweights, order, sums[..., 0], 1)
    np.put_along_axis(dsigma, order, sums[..., 1], 1)
    # sum c k d2 / sigma^3, with d2 = -t sigma^2 2 / log2(e)
    dsigma *= -2 / LOG2_E * weights / sigma
    return dsigma, dweights
