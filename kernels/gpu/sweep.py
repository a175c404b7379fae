"""The row sweep: one program holds a tile of rows, meets all columns, and keeps the sums that the flags ask for.

    K_ij = sum_s w_s k_sij,  k_sij = 2**(-scale_s |p_i - q_j|^2 - shift_s),  c_ij = sum_e f_ie h_je

    VALUE    sum_j K_ij h_je                      (K - sum_s w_s baseline_s with LESS)    (B, rows, E)
    TOTAL    sum_ij f_i K_ij h_j, likewise                                                 (B, strips of rows)
    PULL     sum_j c_ij sum_s w_s / sigma_s^2 k_sij (q_j - p_i)                            (B, rows, D)
    MOMENTS  sum_ij c_ij k_sij (k - baseline with LESS), sum_ij c_ij k_sij |p_i - q_j|^2     (B, strips of rows, 2, S)

p, f are the points and coefficients of the rows, q, h those of the columns. Every row has one program, or one for
each part of the columns, whose sums are then added in order (reduce.py): no atomics, so results repeat bit for bit.
Sums are in the dtype of the tile within a few tiles and in float64 beyond, so that rounding does not grow with M.

One launch can hold four sweeps over two point sets: x with x, y with y, x with y, y with x. That is MMD^2. Or the
last two: a product's gradients, of which the first has the moments, and the second the value. Where only
sums over all pairs of a set with itself are wanted, its rows meet half of its columns (HALF): the groups of rows
stand in a circle, each meets those from itself to the opposite one, and a pair that is met once counts twice. So all
programs have the same work, and which pairs they meet depends on the sizes alone.

Of more coordinates than a program holds, a sweep by products leaves the weights of a panel of pairs in memory instead
of a pull (PANEL): see panel.py. It is then launched for one panel after another, and adds its sums to those before.

To add an epilogue: a flag, what is kept before the loop, an _add_... of a tile, a _store_... at the end.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .bandwidths import LOG2_E, NUMBERS, Table, row_of_table, triton_dtype
from .bf16_pieces import Split, block_of, forms, inner_products, other_form, weighted_points
from .distances import (
    cast,
    coordinates_of,
    differences,
    distances_by_products,
    exp2m1,
    next_kernel,
    squared_distances,
)
from .pairings import columns_of, modes_of, rows_of
from .panel import ROWS, Panels, panels, pull_by_panel, tile_of_panel, weights_of
from .tiles import splits, tile

# tiles whose sums are kept in the tile's dtype before they go into float64
_CHUNK = tl.constexpr(16)
# sums over a tile of rows are stored by strips of so many, whatever the tile
STRIP = 32
_STRIP = tl.constexpr(STRIP)
_SIZES = ["N", "M", "D", "E", "B", "S", "table_stride", "SPLITS", "FIRST", "START", "WINDOW"]
_SIZES += ["sigma_stride", "weights_stride", *NUMBERS]


@triton.jit(do_not_specialize=_SIZES)
def _sweep_kernel(
    x_ptr, y_ptr, a_ptr, b_ptr, shift_ptr, table_ptr, value_ptr, total_ptr, pull_ptr, moments_ptr,
    x_pieces_ptr, y_pieces_ptr, x_norms_ptr, y_norms_ptr, a_pieces_ptr, b_pieces_ptr, limit_ptr,
    panel_ptr, baseline_ptr, sigma_ptr, weights_ptr,
    N, M, D, E, B, S, table_stride, SPLITS, FIRST, START, WINDOW, sigma_stride, weights_stride,
    s0: tl.int64, s1: tl.int64, s2: tl.int64, s3: tl.int64, s4: tl.int64, s5: tl.int64, s6: tl.int64, s7: tl.int64,
    w0: tl.int64, w1: tl.int64, w2: tl.int64, w3: tl.int64, w4: tl.int64, w5: tl.int64, w6: tl.int64, w7: tl.int64,
    OWN_TABLE: tl.constexpr, HOST: tl.constexpr, SP: tl.constexpr, MODERATE: tl.constexpr, SQUARES: tl.constexpr,
    ONE_BANDWIDTH: tl.constexpr, PARTS: tl.constexpr, DIMS: tl.constexpr, SCALED: tl.constexpr, SHIFT: tl.constexpr,
    DROP: tl.constexpr, LESS: tl.constexpr, ONE_COLUMN: tl.constexpr, HALF: tl.constexpr,
    VALUE: tl.constexpr, TOTAL: tl.constexpr, PULL: tl.constexpr, MOMENTS: tl.constexpr,
    DOT: tl.constexpr, LIMIT: tl.constexpr, PANEL: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, BK: tl.constexpr, DP: tl.constexpr,
    EP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    if other_form(limit_ptr, DOT, LIMIT):
        return
    # whose rows meet whose columns, a single part is x with y; which part of these columns; and which block of the
    # columns of the value
    part, split, block = tl.program_id(1), tl.program_id(2) % SPLITS, tl.program_id(2) // SPLITS
    pair = part if PARTS > 2 else part + 2 if PARTS > 1 else 2
    # numbers that a point and its coefficients have in memory, as they are or in pieces
    point, coefficients = D, E
    if DOT > 0:
        point, x_ptr, y_ptr = (DOT + 3) // 3 * DP, x_pieces_ptr, y_pieces_ptr
    if DOT > 0 and not ONE_COLUMN:
        coefficients, a_ptr, b_ptr = (DOT + 3) // 3 * EP, a_pieces_ptr, b_pieces_ptr
    p_ptr, f_ptr, p_norms, n = rows_of(pair, x_ptr, y_ptr, a_ptr, b_ptr, x_norms_ptr, y_norms_ptr, N, M)
    q_ptr, h_ptr, q_norms, m = columns_of(pair, x_ptr, y_ptr, a_ptr, b_ptr, x_norms_ptr, y_norms_ptr, N, M)
    skip, pulls, valued, measured, half = modes_of(part, PARTS, DROP, PULL, HALF)

    # a tile of rows; those of the outputs are of one height for all parts
    height = tl.maximum(N, M) if PARTS > 1 else N
    pid, tiles = tl.program_id(0).to(tl.int64), tl.cdiv(height, BN)
    if PANEL:
        pid, tiles = tile_of_panel(height, FIRST, BN)
    b, i0 = pid // tiles, (pid % tiles).to(tl.int32) * BN
    # rows count from i0 and columns from j0, in int32; where they begin is int64
    rows, cols = tl.arange(0, BN), tl.arange(0, BM)
    row_in = rows < n - i0
    p_ptr += (b * n + i0) * point
    f_ptr += (b * n + i0) * coefficients
    place = ((split.to(tl.int64) * PARTS + part) * B + b) * height + i0
    # a group is of whole tiles both ways
    GROUP: tl.constexpr = BN if BN > BM else BM
    start, stop, groups = _columns_to_meet(i0, n, m, split, SPLITS, START, WINDOW, half, HALF, PANEL, GROUP, BM)

    table_ptr = row_of_table(
        table_ptr, b, pid + tl.num_programs(0) * (part + tl.num_programs(1) * tl.program_id(2)).to(tl.int64),
        table_stride, sigma_ptr, weights_ptr, S, sigma_stride, weights_stride,
        s0, s1, s2, s3, s4, s5, s6, s7, w0, w1, w2, w3, w4, w5, w6, w7, OWN_TABLE, HOST, SP, MODERATE, SQUARES,
    )  # fmt: skip
    unit = tl.load(table_ptr)
    # one of two parts may have nothing to do
    if PARTS == 2 and not (pulls | (MOMENTS & measured) | (VALUE & valued)):
        return

    # what is kept of the rows: sums of a few tiles (..._chunk) are in the tile's dtype, those of all in float64
    e0, columns = block * BE, tl.arange(0, BE)
    column_in = e0 + columns < E
    coordinates = tl.arange(0, BD)
    width = DP if DP > 0 else D
    pull_ptr += place * width
    f = _row_coefficients(f_ptr, rows, row_in, ONE_COLUMN and (PULL > 0 or MOMENTS or TOTAL), BN, ACC)
    p = _row_points(p_ptr, p_norms + b * n + i0, rows, row_in, DOT, DIMS, ACC)
    BY_TILE: tl.constexpr = DOT > 0 and (PULL > 0 or not ONE_BANDWIDTH)
    value = tl.zeros([BN] if ONE_COLUMN else [BN, BE], tl.float64)
    pull, tug_sum = tl.zeros([BN, BD], tl.float64), tl.zeros([BN], tl.float64)
    mass, spread = tl.zeros([BN, SP], tl.float64), tl.zeros([BN, SP], tl.float64)
    if PANEL:
        panel_ptr = weights_of(panel_ptr, part // (1 if PULL == 3 else 2), WINDOW, BN)
    elif PULL > 0 and DIMS == 0:
        _clear_pull(pull_ptr, rows, row_in, coordinates, BD if DOT > 0 else D, width, BN, BD)

    for j0 in range(start, stop, _CHUNK * BM):
        value_chunk = _no_value(ONE_COLUMN, BY_TILE, BN, BM, BE, ACC)
        pull_chunk = _no_pull(DOT, DIMS, BN, BM, BD, ACC)
        for j in range(j0, tl.minimum(j0 + _CHUNK * BM, stop), BM):
            j1 = _met_column(j, i0, groups, half, HALF, GROUP)
            col_in = cols < m - j1
            q_tile = q_ptr + (b * m + j1) * point
            h_tile = h_ptr + (b * m + j1) * coefficients
            d2, away = _distances(
                p_ptr, p, q_tile, q_norms + (b * m + j1), rows, cols, row_in, col_in, unit, D,
                DOT, DIMS, SCALED, BN, BM, BD, BK, DP, ACC,
            )  # fmt: skip

            twice = half & (j >= GROUP) & (j // GROUP * 2 != groups)
            c, h = _pair_coefficients(
                f_ptr, h_tile, rows, cols, row_in, col_in, twice, E,
                ONE_COLUMN, PULL > 0 or MOMENTS, HALF, DOT, BN, BM, EP, ACC,
            )  # fmt: skip
            kept = col_in[None, :]
            if DROP > 0:
                kept = (rows[:, None] - cols[None, :] != j1 - i0) | (not skip)
                if PULL > 0 or MOMENTS:
                    c = tl.where(kept, c, 0.0)

            total, tug, mass, spread = _mix(
                d2, c, mass, spread, measured, part, shift_ptr + (b * n + i0) * S, shift_ptr + (b * m + j1) * S,
                table_ptr, baseline_ptr + b * S, rows, cols, row_in, col_in, kept, S,
                ONE_BANDWIDTH, SHIFT, DROP, LESS, VALUE or TOTAL, PULL > 0, MOMENTS, BN, BM, SP, ACC,
            )  # fmt: skip

            if VALUE or TOTAL:
                if DROP > 0:
                    total = tl.where(kept, total, 0.0)
                value_chunk = _add_value(
                    value_chunk,
                    total,
                    h,
                    h_tile,
                    cols,
                    col_in,
                    e0,
                    columns,
                    column_in,
                    E,
                    ONE_COLUMN,
                    BY_TILE,
                    DOT,
                    EP,
                    ACC,
                )
            if PANEL and pulls:
                there = panel_ptr + rows[:, None] * WINDOW + (j - START + cols)[None, :]
                tl.store(there, tug * c, mask=row_in[:, None] & col_in[None, :])
            elif PULL > 0 and pulls:
                pull_chunk, tug_sum = _add_pull(
                    pull_chunk, tug_sum, tug * c, away, pull_ptr, p_ptr, q_tile, rows, cols, row_in, col_in,
                    coordinates, unit, D, width, DOT, DIMS, SCALED, BN, BM, BD, DP, ACC,
                )  # fmt: skip
        if VALUE or TOTAL:
            value += value_chunk if BY_TILE or not ONE_COLUMN else tl.sum(value_chunk, 1)
        if PULL > 0 and not PANEL:
            pull = _keep_pull(pull, pull_chunk, pull_ptr, rows, row_in, coordinates, width, DOT, DIMS, DP)

    # what the windows before have left
    more = PANEL and START > 0
    if VALUE and ONE_COLUMN:
        _store_sum(value_ptr + place + rows, value, row_in & valued, more, PANEL)
    if VALUE and not ONE_COLUMN:
        there = value_ptr + place * E + rows[:, None] * E + e0 + columns[None, :]
        tl.store(there, cast(value, value_ptr), mask=row_in[:, None] & column_in[None, :])
    if PULL > 0 and not PANEL:
        factor = f.to(tl.float64)[:, None] * unit.to(tl.float64)
        if DOT > 0:
            _store_pull_by_products(pull_ptr, p_ptr, rows, row_in, coordinates, tug_sum, factor, DP, DOT)
        else:
            _store_pull(pull_ptr, pull, rows, row_in, coordinates, factor, D, width, BD, DIMS)
    if (TOTAL or MOMENTS) and measured:
        # parts by batch by splits by strips
        strips = tl.cdiv(height, _STRIP)
        first = ((part * B + b) * SPLITS + split) * strips
        _store_sums(
            total_ptr, moments_ptr, table_ptr, f, value, mass, spread, i0, first, strips, more, S,
            TOTAL, MOMENTS, PANEL, BN, SP,
        )  # fmt: skip


@triton.jit
def _columns_to_meet(
    i0, n, m, split, SPLITS, START, WINDOW, half,
    HALF: tl.constexpr, PANEL: tl.constexpr, GROUP: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """The columns of one split, in the order they are met, and how many groups there are where half is met.

    Those are the row's own group and the next ones, round to the opposite one: see _met_column. Of a panel they are
    in its window.
    """
    length, groups, first = m, tl.cdiv(m, GROUP), 0
    if HALF > 0:
        length = tl.where(half, (groups // 2 + 1) * GROUP, m)
    if PANEL:
        first, length = START, tl.maximum(tl.minimum(START + WINDOW, length), START)
    # whole tiles of columns for each split, and none for rows that this part does not have
    share = tl.cdiv(tl.cdiv(length - first, BM), SPLITS) * BM
    start = first + split * share
    return start, tl.where(i0 < n, tl.minimum(start + share, length), start), groups


@triton.jit
def _met_column(j, i0, groups, half, HALF: tl.constexpr, GROUP: tl.constexpr):
    """Which column is met as the j-th."""
    if HALF > 0:
        j += tl.where(half, i0 // GROUP * GROUP, 0)
        j -= tl.where(half & (j >= groups * GROUP), groups * GROUP, 0)
    return j


@triton.jit
def _row_coefficients(f_ptr, rows, row_in, WANTED: tl.constexpr, BN: tl.constexpr, ACC: tl.constexpr):
    """f_i where there is one column of them and it is wanted, else 1."""
    if WANTED:
        return tl.load(f_ptr + rows, mask=row_in, other=0.0).to(ACC)
    else:
        return tl.full([BN], 1.0, ACC)


@triton.jit
def _row_points(
    p_ptr, norms_ptr, rows, row_in, DOT: tl.constexpr, DIMS: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """What registers hold of the rows' points: their squared norms, or their coordinates if these are few."""
    if DOT > 0:
        return (tl.load(norms_ptr + rows, mask=row_in, other=0.0),)
    else:
        return coordinates_of(p_ptr, rows, row_in, DIMS, ACC)


@triton.jit
def _distances(
    p_ptr, p, q_ptr, q_norms, rows, cols, row_in, col_in, unit, D,
    DOT: tl.constexpr, DIMS: tl.constexpr, SCALED: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr, DP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """|p_i - q_j|^2 of a tile; and q_j - p_i, if the coordinates are few and not multiplied."""
    away = ()
    if DOT > 0:
        squares = tl.load(q_norms + cols, mask=col_in, other=0.0)
        d2 = distances_by_products(
            p_ptr, q_ptr, p[0], squares, rows, cols, row_in, col_in, DP, BN, BM, BK, DOT, False
        )
    elif DIMS > 0:
        away = differences(p, coordinates_of(q_ptr, cols, col_in, DIMS, ACC), unit, DIMS, SCALED)
        d2 = away[0] * away[0]
        for d in tl.static_range(1, DIMS):
            d2 = tl.fma(away[d], away[d], d2)
    else:
        d2 = squared_distances(p_ptr, q_ptr, rows, cols, row_in, col_in, unit, D, BN, BM, BD, SCALED, ACC)
    return d2, away


@triton.jit
def _pair_coefficients(
    f_ptr, h_ptr, rows, cols, row_in, col_in, twice, E,
    ONE_COLUMN: tl.constexpr, WANTED: tl.constexpr, HALF: tl.constexpr, DOT: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, EP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """c_ij and h_j, both twice where a pair counts so; where there is one column c_ij is without f_i, and where there
    are several there is no h_j. Zero for columns that are not there."""
    c, h = tl.zeros([BN, BM], ACC), tl.zeros([BM], ACC)
    if ONE_COLUMN:
        h = tl.load(h_ptr + cols, mask=col_in, other=0.0).to(ACC)
        if HALF > 0:
            h *= tl.where(twice, 2.0, 1.0).to(ACC)
        c = tl.broadcast_to(h[None, :], [BN, BM])
    elif WANTED and DOT > 0:
        c = inner_products(f_ptr, h_ptr, rows, cols, row_in, col_in, EP, BN, BM, 16, DOT, False)
    elif WANTED:
        c = _coefficients(f_ptr, h_ptr, rows, cols, row_in, col_in, E, BN, BM, ACC)
    return c, h


@triton.jit
def _no_value(
    ONE_COLUMN: tl.constexpr, BY_TILE: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, BE: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Of one column a value is summed by pair and at the end, or BY_TILE, where registers are short, by tile."""
    if not ONE_COLUMN:
        return tl.zeros([BN, BE], ACC)
    elif BY_TILE:
        return tl.zeros([BN], ACC)
    else:
        return tl.zeros([BN, BM], ACC)


@triton.jit
def _add_value(
    value, total, h, h_ptr, cols, col_in, e0, columns, column_in, E,
    ONE_COLUMN: tl.constexpr, BY_TILE: tl.constexpr, DOT: tl.constexpr, EP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """value + sum_j total_ij h_je, or its addends."""
    if ONE_COLUMN and BY_TILE:
        value += tl.sum(total * h[None, :], 1)
    elif ONE_COLUMN:
        value = tl.fma(total, h[None, :], value)
    elif DOT > 0:
        value = weighted_points(total, h_ptr, cols, col_in, e0 + columns, value, EP, DOT)
    else:
        inside = col_in[:, None] & column_in[None, :]
        right = tl.load(h_ptr + cols[:, None] * E + e0 + columns[None, :], mask=inside, other=0.0)
        value = tl.dot(total, right.to(ACC), value, input_precision="ieee", out_dtype=ACC)
    return value


@triton.jit
def _clear_pull(pull_ptr, rows, row_in, coordinates, D, width, BN: tl.constexpr, BD: tl.constexpr):
    """More coordinates than registers hold: the pull on these rows is summed in its place in memory."""
    for d0 in range(0, D, BD):
        inside = row_in[:, None] & (d0 + coordinates < width)[None, :]
        there = pull_ptr + rows[:, None] * width + d0 + coordinates[None, :]
        tl.store(there, tl.zeros([BN, BD], tl.float64), mask=inside)
    tl.debug_barrier()


@triton.jit
def _no_pull(
    DOT: tl.constexpr, DIMS: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """By products the sum of a block of coordinates; of few coordinates the addends of each; else nothing."""
    if DOT > 0:
        return tl.zeros([BN, BD], ACC)
    else:
        return _zeros(BN, BM, DIMS, ACC)


@triton.jit
def _add_pull(
    pull, tug_sum, tug, away, pull_ptr, p_ptr, q_ptr, rows, cols, row_in, col_in, coordinates, unit, D, width,
    DOT: tl.constexpr, DIMS: tl.constexpr, SCALED: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, DP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Adds sum_j tug_ij (q_j - p_i); by products sum_j tug_ij q_j, and sum_j tug_ij apart."""
    if DOT > 0:
        pull = weighted_points(tug, q_ptr, cols, col_in, coordinates, pull, DP, DOT)
        tug_sum += tl.sum(tug, 1)
    elif DIMS > 0:
        pull = _pulled(pull, tug, away, DIMS)
    else:
        _pull_in_memory(
            pull_ptr, p_ptr, q_ptr, rows, cols, row_in, col_in, coordinates, tug, unit, D, width,
            BN, BM, BD, SCALED, ACC,
        )  # fmt: skip
    return pull, tug_sum


@triton.jit
def _keep_pull(
    pull, chunk, pull_ptr, rows, row_in, coordinates, width, DOT: tl.constexpr, DIMS: tl.constexpr, DP: tl.constexpr
):  # fmt: skip
    """Adds the pull of a chunk to that of all, in registers or, by products, in its place."""
    if DOT > 0:
        there = pull_ptr + rows[:, None] * width + coordinates[None, :]
        inside = row_in[:, None] & (coordinates < DP)[None, :]
        tl.store(there, tl.load(there, mask=inside, other=0.0) + chunk, mask=inside)
        tl.debug_barrier()
    else:
        for d in tl.static_range(DIMS):
            pull += tl.where(coordinates[None, :] == d, tl.sum(chunk[d], 1)[:, None], 0.0)
    return pull


@triton.jit
def _store_sums(
    total_ptr, moments_ptr, table_ptr, f, value, mass, spread, i0, first, strips, more, S,
    TOTAL: tl.constexpr, MOMENTS: tl.constexpr, PANEL: tl.constexpr, BN: tl.constexpr, SP: tl.constexpr,
):  # fmt: skip
    """Sums over the rows of a tile, to the strip that it begins with."""
    strip = i0 // _STRIP + tl.arange(0, BN // _STRIP)
    inside = strip < strips
    lead = strip * _STRIP == i0
    if TOTAL:
        _store_in_first(total_ptr + first + strip, tl.sum(f.to(tl.float64) * value, 0), lead, inside, more, PANEL)
    if MOMENTS:
        mass *= f[:, None]
        spread *= f[:, None]
        # in the caller's order of bandwidths
        bandwidths = tl.arange(0, SP)
        own = tl.load(table_ptr + 1 + 4 * S + bandwidths, mask=bandwidths < S, other=0.0).to(tl.int32)
        there = moments_ptr + (first + strip)[:, None] * 2 * S + own[None, :]
        inside = inside[:, None] & (bandwidths < S)[None, :]
        _store_in_first(there, tl.sum(mass, 0)[None, :], lead[:, None], inside, more, PANEL)
        _store_in_first(there + S, tl.sum(spread, 0)[None, :], lead[:, None], inside, more, PANEL)


@triton.jit
def _store_sum(there, sum, inside, more, PANEL: tl.constexpr):
    """Stores it, or where there is more of it adds it to that."""
    if PANEL:
        sum += tl.load(there, mask=inside & more, other=0.0)
    tl.store(there, cast(sum, there), mask=inside)


@triton.jit
def _store_in_first(there, sums, lead, inside, more, PANEL: tl.constexpr):
    """A tile of several strips puts its sums into the first of them, and nothing into the others."""
    _store_sum(there, tl.where(lead, sums, 0.0), inside, more, PANEL)


@triton.jit
def _store_pull(
    pull_ptr, pull, rows, row_in, coordinates, factor, D, width, BD: tl.constexpr, DIMS: tl.constexpr
):  # fmt: skip
    """Scales the pull, which is in registers or (DIMS = 0) in its place."""
    for d0 in range(0, D, BD):
        own = pull_ptr + rows[:, None] * width + d0 + coordinates[None, :]
        inside = row_in[:, None] & (coordinates < D - d0)[None, :]
        if DIMS == 0:
            pull = tl.load(own, mask=inside, other=0.0).to(tl.float64)
        tl.store(own, cast(pull * factor, pull_ptr), mask=inside)


@triton.jit
def _store_pull_by_products(
    pull_ptr, p_pieces, rows, row_in, coordinates, tug_sum, factor, DP: tl.constexpr, DOT: tl.constexpr
):  # fmt: skip
    """Makes of sum_j tug_ij q_j, which is in its place, the pull: less p_i sum_j tug_ij, and scaled."""
    inside = row_in[:, None] & (coordinates < DP)[None, :]
    own = pull_ptr + rows[:, None] * DP + coordinates[None, :]
    pull = tl.load(own, mask=inside, other=0.0)
    there = p_pieces + rows[:, None] * ((DOT + 3) // 3 * DP) + coordinates[None, :]
    for piece in tl.static_range((DOT + 3) // 3):
        p = tl.load(there + piece * DP, mask=inside, other=0.0).to(tl.float64)
        pull -= p * tug_sum[:, None]
    tl.store(own, pull * factor, mask=inside)


@triton.jit
def _mix(
    d2, c, mass, spread, measured, part, row_shift, col_shift, table_ptr, baseline_ptr, rows, cols, row_in, col_in,
    kept, S,
    ONE_BANDWIDTH: tl.constexpr, SHIFT: tl.constexpr, DROP: tl.constexpr, LESS: tl.constexpr,
    SUMS: tl.constexpr, TUGS: tl.constexpr, MOMENTS: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, SP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Of a tile: sum_s w_s k_s, or of k_s - baseline_s; sum_s w_s / sigma_s^2 k_s; mass and spread with its share."""
    total, tug = tl.zeros([BN, BM], ACC), tl.zeros([BN, BM], ACC)
    k, less = total, total
    for s in range(1 if ONE_BANDWIDTH else S):
        if SHIFT > 0:
            k, less = _shifted(
                d2, part, row_shift, col_shift, table_ptr, s, rows, cols, row_in, col_in, kept, S,
                SHIFT, DROP, LESS, ACC,
            )  # fmt: skip
        else:
            k, less = next_kernel(k, less, d2, table_ptr, s, S, not ONE_BANDWIDTH, LESS, ACC)
        summed = less
        if LESS:
            own = tl.load(table_ptr + 1 + 4 * S + s).to(tl.int32)
            summed = tl.where(tl.load(baseline_ptr + own) > 0, less, k)
        if SUMS:
            total = tl.fma(summed, tl.load(table_ptr + 1 + S + s), total)
        if TUGS:
            tug = tl.fma(k, tl.load(table_ptr + 1 + 2 * S + s), tug)
        if MOMENTS and measured:
            here = tl.arange(0, SP)[None, :] == s
            mass += tl.where(here, tl.sum(c * summed, 1)[:, None], 0.0)
            # an infinite distance has a kernel of 0 and no say
            far = tl.where(k == 0.0, 0.0, c * k * d2)
            spread += tl.where(here, tl.sum(far, 1)[:, None], 0.0)
    return total, tug, mass, spread


@triton.jit
def _coefficients(
    f_ptr, h_ptr, rows, cols, row_in, col_in, E, BN: tl.constexpr, BM: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """sum_e f_ie h_je, [BN, BM]."""
    c = tl.zeros([BN, BM], ACC)
    for e0 in range(0, E, 16):
        e = tl.arange(0, 16)
        some = e < E - e0
        left = tl.load(f_ptr + rows[:, None] * E + e0 + e[None, :], mask=row_in[:, None] & some[None, :], other=0.0)
        right = tl.load(h_ptr + cols[None, :] * E + e0 + e[:, None], mask=col_in[None, :] & some[:, None], other=0.0)
        c = tl.dot(left.to(ACC), right.to(ACC), c, input_precision="ieee", out_dtype=ACC)
    return c


@triton.jit
def _shifted(
    d2, part, row_shift, col_shift, table_ptr, s, rows, cols, row_in, col_in, kept, S,
    SHIFT: tl.constexpr, DROP: tl.constexpr, LESS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The kernel of bandwidth s times exp(-shift), and itself or itself less 1.

    Shifts are those of the rows (SHIFT 1), of the columns (2), or of the first part's rows and second's columns (3).
    """
    t = d2 * tl.load(table_ptr + 1 + s)
    own = tl.load(table_ptr + 1 + 4 * S + s).to(tl.int32)
    if SHIFT != 2:
        shift = tl.load(row_shift + rows * S + own, mask=row_in & (part == 0), other=0.0).to(ACC)
        t -= (shift * LOG2_E)[:, None]
    if SHIFT != 1:
        shift = tl.load(col_shift + cols * S + own, mask=col_in & (part == SHIFT - 2), other=0.0).to(ACC)
        t -= (shift * LOG2_E)[None, :]
    # a shift can make the kernel of a pair that does not count infinite, which times 0 would be NaN
    t = tl.where(col_in[None, :], t, float("-inf"))
    if DROP > 0:
        t = tl.where(kept, t, float("-inf"))
    # so can it that of a row without weight, which counts for nothing and has a derivative
    most: tl.constexpr = 1000.0 if tl.float64 == ACC else 120.0
    t = tl.where(t > most, most, t)
    k = tl.exp2(t)
    less = k
    if LESS:
        less = exp2m1(t, k, ACC)
    return k, less


@triton.jit
def _zeros(BN: tl.constexpr, BM: tl.constexpr, D: tl.constexpr, ACC: tl.constexpr):
    found = ()
    for _ in tl.static_range(D):
        found += (tl.zeros([BN, BM], ACC),)
    return found


@triton.jit
def _pulled(pull, tug, away, D: tl.constexpr):
    """pull + tug away by coordinate; a kernel of 0 pulls nothing, from infinitely far either."""
    found = ()
    for d in tl.static_range(D):
        found += (pull[d] + tl.where(tug == 0.0, 0.0, tug * away[d]),)
    return found


@triton.jit
def _pull_in_memory(
    pull_ptr, p_ptr, q_ptr, rows, cols, row_in, col_in, coordinates, tug, unit, D, width,
    BN: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, SCALED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Adds sum_j tug_ij (q_j - p_i), BD coordinates at a time; only this program touches these rows."""
    for d0 in range(0, D, BD):
        block = tl.zeros([BN, BD], ACC)
        # as many turns as there are coordinates: unrolled, their reductions would take all registers
        for k in range(tl.minimum(BD, D - d0)):
            p = tl.load(p_ptr + rows * D + d0 + k, mask=row_in, other=0.0).to(ACC)
            q = tl.load(q_ptr + cols * D + d0 + k, mask=col_in, other=0.0).to(ACC)
            e = q[None, :] - p[:, None]
            if SCALED:
                e *= unit
            moment = tl.sum(tl.where(tug == 0.0, 0.0, tug * e), 1)
            block += tl.where(coordinates[None, :] == k, moment[:, None], 0.0)
        there = pull_ptr + rows[:, None] * width + d0 + coordinates[None, :]
        inside = row_in[:, None] & (coordinates < D - d0)[None, :]
        tl.store(there, tl.load(there, mask=inside, other=0.0) + block, mask=inside)
    # what one thread stored another may load for the next tile
    tl.debug_barrier()


class Swept(NamedTuple):
    """What a sweep leaves for reduce.py, of P parts and C splits of the columns; None where it was not wanted."""

    value: torch.Tensor | None  # (C, P, B, rows, E)
    total: torch.Tensor | None  # (P, B, C * strips) float64
    pull: torch.Tensor | None  # (C, P, B, rows, D or more)
    moments: torch.Tensor | None  # (P, B, C * strips, 2, S) float64, in the table's units
    table: torch.Tensor
    # of the table, between one of the batch and the next
    stride: int
    parts: int
    batch: int


def sweep(
    table: Table,
    x: torch.Tensor,
    y: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    parts: int = 1,
    half: int = 0,
    row_shift: torch.Tensor | None = None,
    col_shift: torch.Tensor | None = None,
    drop: int = 0,
    baseline: torch.Tensor | None = None,
    value: bool = False,
    total: bool = False,
    pull: int = 0,
    moments: bool = False,
    dtype: torch.dtype | None = None,
    split: Split | None = None,
) -> Swept:
    """x (B, N, D), y (B, M, D), a (B, N, E), b (B, M, E), shift (B, N or M, S), contiguous. Value and pull in dtype.

    With one part the rows are x, a, the columns y, b; with more see pairings.py; the rows of a part stand first where
    others have more. Of two the shift is that of x, the first one's rows. The bits of half say which of x with x and
    y with y may meet half of the pairs, the bits of pull for which of x and y it is wanted; other parts' are
    unwritten, as are of two the first one's value and the second one's moments.
    """
    (batch, n, dims), m, columns = x.shape, y.shape[1], b.shape[2]
    options = {"parts": parts, "row_shift": row_shift, "col_shift": col_shift, "drop": drop, "dtype": dtype}
    baseline = None if baseline is None else baseline.contiguous()
    options |= {"baseline": baseline, "split": split, "half": half}
    kind = "moments" if pull or moments else "value" if columns == 1 else "columns"
    # of more coordinates than registers hold the weights are left in memory, and multiplied with the points
    panel = bool(split and pull) and dims > _by_products(kind, columns, parts, dims, table, x, split.products).bd
    # registers hold the sums of one or of the other
    if split and pull and moments and not panel:
        of_pairs = sweep(table, x, y, a, b, value=value, total=total, moments=True, **options)
        return of_pairs._replace(pull=sweep(table, x, y, a, b, pull=pull, **options).pull)
    if value and (pull or moments) and columns != 1:
        of_rows = sweep(table, x, y, a, b, pull=pull, moments=moments, **options)
        return of_rows._replace(value=sweep(table, x, y, a, b, value=True, **options).value)
    height = n if parts == 1 else max(n, m)
    be = block_of(columns)
    e_blocks = max(1, triton.cdiv(columns, be)) if value else 1
    few = dims if 1 <= dims <= 4 else 0
    strips, longest = triton.cdiv(height, STRIP), m if parts == 1 else max(n, m)
    parted = splits(batch * strips * parts * e_blocks, longest, x.device)
    kept = dtype if parted == 1 and not panel else torch.float64
    values = x.new_empty(parted, parts, batch, height, columns, dtype=kept) if value else None
    totals = x.new_empty(parts, batch, parted * strips, dtype=torch.float64) if total else None
    # where it is summed in memory it is summed in float64, in rows as long as those of the pieces
    width = split.dims if split else dims
    pulls = None
    if pull:
        pulls = x.new_empty(parted, parts, batch, height, width, dtype=kept if few and not split else torch.float64)
    sums = x.new_empty(parts, batch, parted * strips, 2, table.count, dtype=torch.float64) if moments else None
    shift = col_shift if row_shift is None else row_shift
    tiles = triton.cdiv(height, tile(kind, dims, table.dtype, x.device).bn)
    # each meets many columns, beside which a row of the table is little work
    own = table.own(tiles, parts * parted * e_blocks, math.inf)

    for products, limit, operands in forms(split, table.rows) if batch * height and (columns or not value) else ():
        found = tile(kind, dims, table.dtype, x.device)
        if products:
            of_panel = "panel with moments" if moments else "panel"
            found = _by_products(of_panel if panel else kind, columns, parts, dims, table, x, products)
        bd = triton.next_power_of_2(few) if few and not products else found.bd
        # the places of launches, and the programs for a block of rows of each
        of, tiles = Panels([(0, batch * triton.cdiv(height, found.bn), 0)], 0, None), 1
        if panel and products:
            of, tiles = panels(x, height, longest, parts if pull == 3 else (parts + 1) // 2), ROWS // found.bn
        of_columns = (split.a, split.b) if split else (None, None)
        arguments = (shift, table.rows, values, totals, pulls, sums, *operands[:4], *of_columns, operands[4])
        arguments = [table.rows if t is None else t for t in (*arguments, of.weights, baseline)]
        for place in of.places:
            first, blocks, start = place
            with torch.cuda.device_of(x):
                _sweep_kernel[(blocks * tiles, parts, parted * e_blocks)](
                    x, y, a, b, *arguments, *table.pointers,
                    n, m, dims, columns, batch, table.count, table.stride, parted, first, start, of.window,
                    *table.numbers, OWN_TABLE=own, **table.constants,
                    ONE_BANDWIDTH=table.count == 1, PARTS=parts, DIMS=0 if products else few, SCALED=table.scaled,
                    SHIFT=0 if shift is None else 3 if parts == 2 else 1 if col_shift is None else 2,
                    DROP=drop, LESS=baseline is not None, ONE_COLUMN=columns == 1, HALF=half,
                    VALUE=value, TOTAL=total, PULL=pull, MOMENTS=moments, DOT=products, LIMIT=limit,
                    PANEL=panel and products > 0,
                    BN=found.bn, BM=found.bm, BD=bd, BE=be,
                    BK=math.gcd(split.dims, found.bk) if products else 0, DP=split.dims if split else 0,
                    EP=split.columns if products else 0, ACC=triton_dtype(table.dtype),
                    **found.options,
                )  # fmt: skip
            if panel and products:
                pull_by_panel(of, place, table, a, b, n, m, pulls, operands, products, limit, pull)

    return Swept(values, totals, pulls, sums, table.rows, table.stride, parts, batch)


def _by_products(kind, columns, parts, dims, table, x, products):
    """The tile of a form by products: there are others for several columns, parts of MMD^2, and bandwidths."""
    if kind == "moments" and (columns > 1 or parts > 2):
        kind += " of columns" if columns > 1 else " of sets"
    if kind == "value" and table.count > 1:
        kind += " of bandwidths"
    return tile(kind, dims, table.dtype, x.device, products)
