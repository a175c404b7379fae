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

from .compiled import address_of, called_at, compiled, inner
from .memory import behaved, zeros
from .packed import LOG2_E, Packed, Points, pack
from .threads import Task, run_tasks
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


class Sums(NamedTuple):
    """What one sweep returns, in float64 and the caller's units; None where it was not wanted."""

    value: np.ndarray | None  # (B, N, E) sum_j total_ij v_j
    column_value: np.ndarray | None  # (B, M, E) sum_i total_ij g_i
    dx: np.ndarray | None  # (B, N, D)
    dy: np.ndarray | None  # (B, M, D)
    dsigma: np.ndarray | None  # (B, S)
    dweights: np.ndarray | None  # (B, S)


@inner
def _scratch(size, like):
    room = np.empty(size + 64, like.dtype)
    return room[-room.ctypes.data % 64 // like.itemsize :][:size]


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
    minus_one, want_value, want_pull, want_parameters, row_shift, column_shift, i0, j0, moments, sums, parameters,
    times,
):  # fmt: skip
    """The mixing of a block with shifts, or with the moments of the bandwidths."""
    real = d2.dtype.type
    count = scale.shape[1]
    lanes = BYTES // d2.itemsize
    least, most = splat(real(-127 if d2.itemsize == 4 else -1023)), splat(real(127 if d2.itemsize == 4 else 1023))
    zero = splat(real(0))
    by_row, by_column = row_shift.shape[1] > 0, column_shift.shape[1] > 0
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
                if by_row or by_column:
                    t = scaled
                    if by_row:
                        t = t - splat(row_shift[b, i0 + r, s])
                    if by_column:
                        t = t - load(column_shift, (b * count + s) * column_shift.shape[2] + j0 + j)
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
    chunks, bounds, first, last, finite,
    x, nx, x_pull, n, y, yt, ny, y_pull, m, dims, slopes, offsets, pull_nears,
    scale, squarings, weights, pull_weights, g, v, vt, columns, pairs, row_shift, column_shift,
    skip_diagonal, minus_one, symmetric, block_rows, block_columns,
    want_value, want_column_value, want_dx, want_dy, want_parameters,
    value, column_value, dx, dy, parameters,
):  # fmt: skip
    """Chunks of rows, first to last, numbered through the batch, against all columns; see Sums and the module.

    symmetric: y is x, and only tiles that reach above the diagonal are visited. The pairs above it count for rows and
    columns, without per-row results (want_value only to be summed up) twice; the diagonal's kernels are known.
    """
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
    shifted = row_shift.shape[1] > 0 or column_shift.shape[1] > 0
    keep_total = (want_value and columns > 1) or want_column_value
    d2 = _scratch(block_rows * line, x)
    weight = _scratch(block_rows * line if want_c else 1, x)
    totals = _scratch(block_rows * line if keep_total else 1, x)
    tile = _scratch(ROWS * width, x)
    row_sums = np.empty(block_rows, x.dtype)
    # sums over a chunk of what pulls each row, and each column
    row_weights = np.empty(n if want_dx else 0)
    column_weights = np.empty(panels * width if want_dy else 0)
    moments = _scratch(2 * count * lanes, x)
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
                        column_shift, i0, j0, moments, row_sums, parameters[b, chunk], 2.0 if symmetric else 1.0,
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


class Sweep(NamedTuple):
    """What is asked: x (B, N, D) against y (B, M, D).

    symmetric: y is x, and c_ij = c_ji. Half the pairs are visited, and the results are those of all: dx + dy, which
    needs both, and value + column_value; value without want_column_value is only good for g . value.
    """

    x: Points
    y: Points
    v: Points | None = None  # (B, M, E), copied
    g: Points | None = None  # (B, N, E), copied
    pairs: np.ndarray | None = None  # (B, N, M)
    row_shift: np.ndarray | None = None  # (B, N, S)
    column_shift: np.ndarray | None = None  # (B, M, S)
    skip_diagonal: bool = False
    minus_one: bool = False
    symmetric: bool = False
    want_value: bool = False
    want_column_value: bool = False
    want_dx: bool = False
    want_dy: bool = False
    want_parameters: bool = False


class Parts(NamedTuple):
    """What a sweep fills in, float64, in packed units; columns receive something from every chunk of rows."""

    value: np.ndarray  # (B, N, E)
    column_value: np.ndarray  # (B, chunks, M, E)
    dx: np.ndarray  # (B, N, D)
    dy: np.ndarray  # (B, chunks, M, D)
    parameters: np.ndarray  # (B, chunks, 2 S)


def sweep(packed: Packed, **asked) -> Sums:
    """One sweep that is not symmetric."""
    asked = Sweep(**asked)
    (parts,) = sweeps(packed, asked)
    return sums_of(packed, asked, parts)


def sweeps(packed: Packed, *asked: Sweep) -> list[Parts]:
    """Several sweeps side by side."""
    prepared = [_prepared(packed, one) for one in asked]
    run_tasks([task for task, _ in prepared])
    return [parts for _, parts in prepared]


def _prepared(packed: Packed, asked: Sweep) -> tuple[Task, Parts]:
    chunks, bounds, work, *rest, parts = _arguments(packed, asked)
    batch, n, m = len(asked.x.rows), asked.x.count, asked.y.count

    def run(start, stop):
        _sum_rows(chunks, bounds, start, stop, *rest)

    return Task(run, batch * chunks if n and m else 0, work // chunks), parts


def _arguments(packed: Packed, asked: Sweep) -> tuple:
    """The chunks, their bounds, their work, what `_sum_rows` takes after first and last, and the parts among it."""
    x, y, v, g, pairs, row_shift, column_shift, skip_diagonal, minus_one, symmetric, *wants = asked
    want_value, want_column_value, want_dx, want_dy, want_parameters = wants
    dtype, dims = x.rows.dtype, packed.dims
    batch, n, m, count = len(x.rows), x.count, y.count, packed.scale.shape[1]
    none = np.empty((batch, 0, 1), dtype)
    given = v or g
    columns = given.columns.shape[2] if given else 1
    products = want_dx or want_dy or columns > _FEW_VALUES
    width = y.columns.shape[3]
    block_rows, block_columns = _block.py_func(n, m, width, products)
    to_columns = want_dy or want_column_value
    # at least so many rows a chunk: what columns receive is added up from all chunks
    least = 256 if to_columns else 2 * block_rows
    most = max(2, _CHUNK_BYTES // (8 * batch * m * (dims * want_dy + columns * want_column_value) + 1))
    work = n * m * (dims * (1 + want_dx + want_dy) + 10 * count + columns) // (1 + symmetric)
    chunks = max(1, min(n // least, most, work // CHUNK_WORK, _MOST_CHUNKS))
    bounds = np.array(_bounds(n, chunks, block_rows, symmetric))
    parts = Parts(
        zeros((batch, n, columns if want_value else 0)),
        zeros((batch, chunks, m if want_column_value else 0, columns)),
        zeros((batch, n, dims if want_dx else 0)),
        zeros((batch, chunks, m if want_dy else 0, dims)),
        zeros((batch, chunks, 2 * count if want_parameters else 0)),
    )
    x_pull, y_pull = x.rows, y.rows
    if not packed.finite:
        x_pull, y_pull = _finite(x_pull), _finite(y_pull)
    pairs = none if pairs is None else behaved(pairs.astype(dtype, copy=False))
    row_shift = none if row_shift is None else _in_order(packed, row_shift).astype(dtype)
    if column_shift is None:
        column_shift = none
    else:
        wide = np.zeros((batch, count, y.columns.shape[1] * width), dtype)
        wide[:, :, :m] = _in_order(packed, column_shift).transpose(0, 2, 1)
        column_shift = wide
    g_rows = g.rows if g else none
    v_rows, v_columns = (v.rows, v.columns) if v else (none, none[..., None])

    return (
        chunks, bounds, work,
        packed.finite, x.rows, x.norms, x_pull, n, y.rows, y.columns, y.norms, y_pull, m, dims,
        packed.slope, packed.offset, packed.pull_near,
        packed.scale, packed.squarings, packed.weights, packed.pull_weights,
        g_rows, v_rows, v_columns, columns, pairs, row_shift, column_shift, skip_diagonal, minus_one,
        symmetric, block_rows, block_columns, *wants, *parts, parts,
    )  # fmt: skip


@cache
def sum_rows_address(dtype: np.dtype) -> int:
    """Where the code of `_sum_rows` for this dtype begins: for `sweep_here`."""
    point, one = np.zeros((1, 1, 1), dtype), np.ones((1, 1))
    packed = pack(point, None, one, one, "gradient")
    chunks, bounds, _, *rest, _ = _arguments(packed, Sweep(packed.x, packed.y))
    return address_of(_sum_rows, chunks, bounds, 0, 1, *rest)


_call_sum_rows = called_at(_sum_rows)


@inner
def sweep_here(sum_rows, plan, x, n, y, m, v, g, pairs, modes, wants):
    """A sweep of so few pairs that they are one chunk, within compiled code: the arrays of Parts. See Sweep.

    sum_rows is `sum_rows_address`; plan is what `pack_here` returns first; x and y are (rows, columns, norms), v and
    g (rows, columns), or without a row where pairs (B, N, M) are given; modes are (skip_diagonal, minus_one,
    symmetric), wants those of Sweep.
    """
    finite, of_batch, of_bandwidth, places = plan
    skip_diagonal, minus_one, symmetric = modes
    want_value, want_column_value, want_dx, want_dy, want_parameters = wants
    batch, dims, width = len(x[0]), y[1].shape[2], y[1].shape[3]
    columns, count = v[1].shape[2], of_bandwidth.shape[2]
    block_rows, block_columns = _block(n, m, width, want_dx or want_dy or columns > _FEW_VALUES)
    if symmetric and block_rows >= n:
        # in the only block all pairs are the rows' own
        want_dy = False
    value = np.zeros((batch, n, columns if want_value else 0))
    column_value = np.zeros((batch, 1, m if want_column_value else 0, columns))
    dx = np.zeros((batch, n, dims if want_dx else 0))
    dy = np.zeros((batch, 1, m if want_dy else 0, dims))
    parameters = np.zeros((batch, 1, 2 * count if want_parameters else 0))
    x_pull, y_pull = x[0], y[0]
    if not finite:
        x_pull, y_pull = _finite(x[0]), _finite(y[0])
    none = np.empty((batch, 0, 1), x[0].dtype)
    if n and m:
        arguments = (
            1, np.array([0, n]), 0, batch, finite,
            x[0], x[2], x_pull, n, y[0], y[1], y[2], y_pull, m, dims, of_batch[0], of_batch[1], of_batch[2],
            of_bandwidth[0], places[0], of_bandwidth[1], of_bandwidth[2],
            g[0], v[0], v[1], columns, pairs, none, none, skip_diagonal, minus_one, symmetric, block_rows,
            block_columns, want_value, want_column_value, want_dx, want_dy, want_parameters,
            value, column_value, dx, dy, parameters,
        )  # fmt: skip
        _call_sum_rows(sum_rows, arguments)
    return value, column_value, dx, dy, parameters


def sums_of(packed: Packed, asked: Sweep, parts: Parts) -> Sums:
    """The parts added up, in the caller's units; None for what was not wanted."""
    value, column_value, dx, dy, _ = parts
    dx, dy = dx if asked.want_dx else None, _sum_of_chunks(dy) if asked.want_dy else None
    value = value if asked.want_value else None
    column_value = _sum_of_chunks(column_value) if asked.want_column_value else None
    if (packed.unit != 1).any():
        lengths = packed.unit[:, None, None]
        dx, dy = None if dx is None else dx / lengths, None if dy is None else dy / lengths
    dsigma = dweights = None
    if asked.want_parameters:
        dsigma, dweights = parameters_of(packed.order, packed.given_sigma, packed.given_weights, parts.parameters)
    return Sums(value, column_value, dx, dy, dsigma, dweights)


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


def _sum_of_chunks(parts: np.ndarray) -> np.ndarray:
    return parts[:, 0] if parts.shape[1] == 1 else parts.sum(1)


def _in_order(packed: Packed, shift: np.ndarray) -> np.ndarray:
    """Shifts (B, N, S) in base 2, in the order of the bandwidths."""
    return np.take_along_axis(shift, packed.order[:, None, :], 2) * LOG2_E


def _bounds(n: int, chunks: int, block_rows: int, symmetric: bool) -> list[int]:
    """Chunks of about equal work; above the diagonal the first rows have the most columns."""
    if chunks == 1:
        return [0, n]
    shares = [k / chunks for k in range(chunks + 1)]
    if symmetric:
        shares = [1 - math.sqrt(1 - share) for share in shares]
    bounds = [round(share * n / block_rows) * block_rows for share in shares]
    return [*bounds[:-1], n]
