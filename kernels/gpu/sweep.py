"""The row sweep: one program holds a tile of rows, meets all columns, and keeps the sums that the flags ask for.

    K_ij = sum_s w_s k_sij,  k_sij = 2**(-scale_s |p_i - q_j|^2 - shift_s),  c_ij = sum_e f_ie h_je

    VALUE    sum_j K_ij h_je                      (K - sum_s w_s baseline_s with LESS)    (B, rows, E)
    TOTAL    sum_ij f_i K_ij h_j, likewise                                                 (B, strips of rows)
    PULL     sum_j c_ij sum_s w_s / sigma_s^2 k_sij (q_j - p_i)                            (B, rows, D)
    MOMENTS  sum_ij c_ij k_sij (k - baseline with LESS), sum_ij c_ij k_sij |p_i - q_j|^2     (B, strips of rows, 2, S)

p, f are the points and coefficients of the rows, q, h those of the columns. Every row has one program, or one for
each range of columns, whose sums are then added in order (combine.py), so that results repeat bit for bit.
Sums are in the dtype of the tile within a few tiles and in float64 beyond, so that rounding does not grow with M.

One launch can hold four sweeps over two point sets: x with x, y with y, x with y, y with x. That is MMD^2. Or the
last two: a product's gradients, of which the first has the moments, and the second the value. Where only
sums over all pairs of a set with itself are wanted, its rows meet half of its columns (HALF): the groups of rows
stand in a circle, each meets those from itself to the opposite one, and a pair that is met once counts twice. So all
programs have the same work, and which pairs they meet depends on the sizes alone.

Of more coordinates than a program holds, a sweep by products (points.py) leaves the weights of a panel of pairs in
memory instead of a pull (PANEL): see panel.py. It is then launched for one panel after another, and adds its sums to
those before.

To add an epilogue: a flag, what is kept before the loop, and an add_... and a store_... in tile_sums.py.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import tile_sums
from .bandwidths import Table, row_of_table
from .combine import BLOCK, Finish, finish_sweep
from .distances import cast, columns_of_turn, coordinates_of, pieces_of, side_of
from .launch import launch
from .pairings import height_of, modes_of, place_among_pulling, sets_of
from .panel import ROWS, Panels, panels, pull_by_panel, tile_of_panel, weights_of
from .points import Split, frame_of
from .tiles import SIZES, column_ranges

# tiles whose sums are kept in the tile's dtype before they go into float64
_CHUNK = tl.constexpr(16)
_STRIP = tl.constexpr(tile_sums.STRIP)


class Coefficients(NamedTuple):
    """The argument of a kernel: of x and of y."""

    a: torch.Tensor
    b: torch.Tensor


class Asked(NamedTuple):
    """Constants of a sweep: what is swept, and which sums are kept."""

    PAIRINGS: int
    # bits: whether x with x, y with y, meet half of their pairs
    HALF: int
    # coordinates, where registers hold them and distances are differences; else 0
    DIMS: int
    # shifts are those of the rows (1), of the columns (2), of the first pairing's rows and second's columns (3)
    SHIFT: int
    DROP: int
    LESS: bool
    ONE_COLUMN: bool
    # all coefficients are 1
    ONES: bool
    VALUE: bool
    TOTAL: bool
    # bits: whether x, y, are pulled
    PULL: int
    MOMENTS: bool
    PANEL: bool
    # columns of the value that a program holds
    BE: int
    # of D, 4 or 1: so many neighbours are stored, and combined, together
    DIVISOR: int
    # whether the sweep combines its sums: pulls so many at a time, and of so many ranges
    FINISH: bool
    COMBINED: int
    TOGETHER: int


class Sums(NamedTuple):
    """What a sweep leaves, of P pairings and C ranges of columns; None where it is not wanted."""

    value: torch.Tensor | None  # (C, P, B, rows, E)
    total: torch.Tensor | None  # (P, B, C * strips) float64
    pull: torch.Tensor | None  # (C, P, B, rows, D)
    moments: torch.Tensor | None  # (P, B, C * strips, 2, S) float64, in the table's units


class Met(NamedTuple):
    """Whose rows a program has, from i0 of b and from first_row of all; and what its pairing asks for (modes_of)."""

    pairing: object
    b: object
    i0: object
    first_row: object
    groups: object
    half: object
    skip: object
    pulls: object
    measured: object


class Memory(NamedTuple):
    """Pointers, and the window of a panel."""

    shift: object
    baseline: object
    panel: object
    pull: object
    START: object
    WINDOW: object


class Kept(NamedTuple):
    """Sums of a program's rows."""

    value: object
    pull: object
    w_sum: object
    sum_k: object
    sum_kd2: object


class Swept(NamedTuple):
    sums: Sums
    table: Table
    pairings: int
    like: torch.Tensor


@triton.jit(do_not_specialize=SIZES)
def _sweep_kernel(
    points, coefficients, shift_ptr, baseline_ptr, sums, panel_ptr, bandwidths, finish,
    N, M, D, E, B, S, R, table_stride, RANGES, FIRST, START, WINDOW,
    TABLE: tl.constexpr, ASKED: tl.constexpr, VARIANT: tl.constexpr, FAR: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    PAIRINGS: tl.constexpr = ASKED.PAIRINGS
    ONE_COLUMN: tl.constexpr = ASKED.ONE_COLUMN
    PULL: tl.constexpr = ASKED.PULL
    PANEL: tl.constexpr = ASKED.PANEL
    DOT: tl.constexpr = VARIANT.DOT
    BN: tl.constexpr = VARIANT.BN
    BM: tl.constexpr = VARIANT.BM
    BD: tl.constexpr = VARIANT.BD
    BE: tl.constexpr = ASKED.BE
    SP: tl.constexpr = TABLE.SP
    ACC: tl.constexpr = VARIANT.ACC
    # whose rows meet whose columns, which range of these, and which block of the columns of the value
    pairing, column_range, block = tl.program_id(1), tl.program_id(2) % RANGES, tl.program_id(2) // RANGES
    p, q = sets_of(pairing, points, coefficients, N, M, PAIRINGS)
    n, m = p.size, q.size
    skip, pulls, valued, measured, half = modes_of(pairing, PAIRINGS, ASKED.DROP, PULL, ASKED.HALF)

    height = height_of(N, M, PAIRINGS)
    pid, tiles = tl.program_id(0).to(tl.int64), tl.cdiv(height, BN)
    if PANEL:
        pid, tiles = tile_of_panel(height, FIRST, BN)
    b, i0 = pid // tiles, (pid % tiles).to(tl.int32) * BN
    # rows count from i0 and columns from j0, in int32; where they begin is int64
    rows = side_of(p, b, i0, D, E, BN, VARIANT)
    place = ((column_range.to(tl.int64) * PAIRINGS + pairing) * B + b) * height + i0
    # a group is of whole tiles both ways
    GROUP: tl.constexpr = BN if BN > BM else BM
    start, stop, groups = _columns_to_meet(i0, n, m, column_range, RANGES, START, WINDOW, half, GROUP, ASKED, VARIANT)

    program = pid + tl.num_programs(0) * (pairing + tl.num_programs(1) * tl.program_id(2)).to(tl.int64)
    row = row_of_table(bandwidths, b, program, S, table_stride, TABLE)
    # one of two pairings may have nothing to do
    if PAIRINGS == 2 and not (pulls | (ASKED.MOMENTS & measured) | (ASKED.VALUE & valued)):
        return

    # what is kept of the rows: sums of a few tiles (..._chunk) are in the tile's dtype, those of all in float64
    # columns of the value
    e = block * BE + tl.arange(0, BE)
    coordinates = tl.arange(0, BD)
    f = tile_sums.row_coefficients(rows, ASKED, VARIANT)
    frame = frame_of(points, row, b, S, TABLE, VARIANT)
    marks = tile_sums.marks_of(row, baseline_ptr, b, S, TABLE, ASKED)
    of_rows, row_points = pieces_of(rows, VARIANT), coordinates_of(rows, ASKED.DIMS, ACC)
    value = tl.zeros([BN] if ONE_COLUMN else [BN, BE], tl.float64)
    pull, w_sum = tl.zeros([BN, BD], tl.float32 if DOT > 0 else tl.float64), tl.zeros([BN], tl.float64)
    sum_k, sum_kd2 = tl.zeros([BN, SP], tl.float64), tl.zeros([BN, SP], tl.float64)
    pull_ptr = points.x
    if PANEL:
        panel_ptr = weights_of(panel_ptr, place_among_pulling(pairing, PULL), WINDOW, BN)
    elif PULL > 0:
        pull_ptr = sums.pull + place * (D // ASKED.DIVISOR * ASKED.DIVISOR)
        if DOT == 0 and ASKED.DIMS == 0:
            tile_sums.clear_pull(pull_ptr, rows, coordinates, D, BN, BD)

    met = Met(pairing, b, i0, b * n + i0, groups, half, skip, pulls, measured)
    memory = Memory(shift_ptr, baseline_ptr, panel_ptr, pull_ptr, START, WINDOW)
    kept = Kept(value, pull, w_sum, sum_k, sum_kd2)
    # all tiles whose pairs products serve
    kept, first_far, after_far = _meet_columns(
        rows, of_rows, row_points, q, met, memory, frame, row, marks, kept, start, stop, e, coordinates, D, E, S,
        0, BM, GROUP, STAGES, TABLE, ASKED, VARIANT,
    )  # fmt: skip
    if DOT > 0:
        # from the first to the last that is far by differences, a few columns at a time, since registers are short
        kept, _, _ = _meet_columns(
            rows, of_rows, row_points, q, met, memory, frame, row, marks, kept, first_far, after_far, e, coordinates,
            D, E, S, 1, BM, GROUP, 1, TABLE, ASKED, FAR,
        )  # fmt: skip
    value, pull, w_sum = kept.value, kept.pull, kept.w_sum
    if TABLE.COUNT == 1:
        value *= tl.load(row.weights).to(tl.float64)

    strips = tl.cdiv(height, _STRIP)
    # the windows before have left sums
    more = PANEL and START > 0
    if ASKED.VALUE and ONE_COLUMN:
        tile_sums.store_sum(sums.value + place + rows.at, value, rows.inside & valued, more, PANEL)
    if ASKED.VALUE and not ONE_COLUMN:
        own = sums.value + place * E + rows.at[:, None] * E + e[None, :]
        tl.store(own, cast(value, sums.value), mask=rows.inside[:, None] & (e < E)[None, :])
    if PULL > 0 and not PANEL:
        # weights are in units of the table, and the pull in those of the frame
        unit = tl.load(row.unit)
        factor = f.to(tl.float64)[:, None] * (unit * (unit / frame.per_unit)).to(tl.float64)
        if TABLE.COUNT == 1:
            factor *= tl.load(row.weights_over_sigma2).to(tl.float64)
        tile_sums.store_pull(pull_ptr, pull, w_sum, rows, coordinates, factor, D, ASKED, VARIANT)
    if (ASKED.TOTAL or ASKED.MOMENTS) and measured:
        # pairings by batch by ranges by strips
        first = ((pairing * B + b) * RANGES + column_range) * strips
        tile_sums.store_sums(
            sums, row, f, value, kept.sum_k, kept.sum_kd2, frame.square, i0, first, strips, more, S, SP, ASKED, BN
        )
    if ASKED.FINISH:
        finish_sweep(finish, sums, pairing, b, i0, N, M, D, R, B, RANGES, strips, ASKED, BN)


@triton.jit
def _meet_columns(
    rows, of_rows, row_points, q, met, memory, frame, row, marks, kept, start, stop, e, coordinates, D, E, S,
    TURN: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr, STAGES: tl.constexpr,
    TABLE: tl.constexpr, ASKED: tl.constexpr, VARIANT: tl.constexpr,
):  # fmt: skip
    """Adds what columns from start to stop give in this turn to what is kept; and says which are left for the next.

    TILE is the columns that are far, or not, together.
    """
    BM: tl.constexpr = VARIANT.BM
    PANEL: tl.constexpr = ASKED.PANEL
    DOT: tl.constexpr = VARIANT.DOT
    BY_TILE: tl.constexpr = DOT > 0 and (ASKED.PULL > 0 or TABLE.SP > 1)
    value, pull, w_sum, sum_k, sum_kd2 = kept
    first_far, after_far = stop, start
    for j0 in range(start, stop, _CHUNK * TILE):
        value_chunk = tile_sums.no_value(BY_TILE, ASKED, VARIANT)
        pull_chunk = tile_sums.no_pull(ASKED, VARIANT)
        for j in tl.range(j0, tl.minimum(j0 + _CHUNK * TILE, stop), BM, num_stages=STAGES):
            j1 = _met_column(j, met.i0, met.groups, met.half, GROUP, ASKED)
            cols, of_cols, far, first_far, after_far = columns_of_turn(
                q, met.b, j1, j, start, first_far, after_far, of_rows, frame, D, E, TURN, TILE, VARIANT
            )
            d2, exact, rest, away = tile_sums.distances(
                rows, cols, of_rows, of_cols, far, row_points, frame, D, TURN, ASKED, VARIANT
            )  # fmt: skip
            twice = met.half & (j >= GROUP) & (j // GROUP * 2 != met.groups)
            c, h = tile_sums.pair_coefficients(rows, cols, twice, E, ASKED, VARIANT)
            counted = cols.inside[None, :]
            if ASKED.DROP > 0:
                # a difference of places would not change between turns of the loop, and stay in registers
                counted = (rows.at[:, None] != (cols.at + (j1 - met.i0))[None, :]) | (not met.skip)
                if ASKED.PULL > 0 or ASKED.MOMENTS:
                    c = tl.where(counted, c, 0.0)

            total, k_over_sigma2, sum_k, sum_kd2 = tile_sums.mix(
                d2, exact, rest, c, sum_k, sum_kd2, row, marks, rows, cols, counted, j1, q.size, met, memory, frame,
                S, TABLE, ASKED, VARIANT,
            )  # fmt: skip

            if ASKED.VALUE or ASKED.TOTAL:
                if ASKED.DROP > 0:
                    total = tl.where(counted, total, 0.0)
                value_chunk = tile_sums.add_value(value_chunk, total, h, cols, e, E, BY_TILE, ASKED, VARIANT)
            if PANEL:
                place = rows.at[:, None] * memory.WINDOW + (j - memory.START + cols.at)[None, :]
                inside = (rows.inside & met.pulls)[:, None] & cols.inside[None, :]
                tl.store(memory.panel + place, k_over_sigma2 * c, mask=inside)
            elif ASKED.PULL > 0 and met.pulls:
                pull, pull_chunk, w_sum = tile_sums.add_pull(
                    pull, pull_chunk, w_sum, k_over_sigma2 * c, away, of_cols, far, memory.pull, rows, cols,
                    coordinates, frame, D, TURN, ASKED, VARIANT,
                )  # fmt: skip
        if ASKED.VALUE or ASKED.TOTAL:
            value += value_chunk if BY_TILE or not ASKED.ONE_COLUMN else tl.sum(value_chunk, 1)
        if ASKED.PULL > 0 and not PANEL:
            pull = tile_sums.keep_pull(pull, pull_chunk, coordinates, ASKED.DIMS)
    return Kept(value, pull, w_sum, sum_k, sum_kd2), first_far, after_far


@triton.jit
def _columns_to_meet(
    i0, n, m, column_range, RANGES, START, WINDOW, half,
    GROUP: tl.constexpr, ASKED: tl.constexpr, VARIANT: tl.constexpr,
):  # fmt: skip
    """The columns of one range, in the order they are met, and how many groups there are where half is met.

    Half is the row's own group and the next ones, round to the opposite one: see _met_column. The columns of a panel
    are in its window.
    """
    length, groups, first = m, tl.cdiv(m, GROUP), 0
    if ASKED.HALF > 0:
        length = tl.where(half, (groups // 2 + 1) * GROUP, m)
    if ASKED.PANEL:
        first, length = START, tl.maximum(tl.minimum(START + WINDOW, length), START)
    # whole tiles of columns for each range, and none for rows that this pairing does not have
    share = tl.cdiv(tl.cdiv(length - first, VARIANT.BM), RANGES) * VARIANT.BM
    start = first + column_range * share
    return start, tl.where(i0 < n, tl.minimum(start + share, length), start), groups


@triton.jit
def _met_column(j, i0, groups, half, GROUP: tl.constexpr, ASKED: tl.constexpr):
    """Which column is met as the j-th."""
    if ASKED.HALF > 0:
        j += tl.where(half, i0 // GROUP * GROUP, 0)
        j -= tl.where(half & (j >= groups * GROUP), groups * GROUP, 0)
    return j


def sweep(
    split: Split,
    a: torch.Tensor | None,
    b: torch.Tensor | None,
    *,
    pairings: int = 1,
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
    finish: Finish | None = None,
    combinations: int = 1,
) -> Swept:
    """a (B, N, E), b (B, M, E), shift (B, N or M, S), contiguous. Value and pull in dtype.

    a and b None: one column of ones. With one pairing the rows are x, a, the columns y, b; with more see pairings.py;
    the rows of a pairing stand first where others have more. Of two the shift is that of x, the first one's rows. The
    bits of half say which of x with x and y with y may meet half of the pairs, the bits of pull for which of x and y
    it is wanted. With finish the sweep makes so many combinations of the totals, and the pulls' alone. Other
    pairings' values, pulls and moments are unwritten, as are of two the first one's value and the second one's
    moments.
    """
    table, x, y = split.table, split.points.x, split.points.y
    (batch, n, dims), m, columns = x.shape, y.shape[1], 1 if b is None else b.shape[2]
    options = {"pairings": pairings, "row_shift": row_shift, "col_shift": col_shift, "drop": drop, "dtype": dtype}
    baseline = None if baseline is None else baseline.contiguous()
    options |= {"baseline": baseline, "half": half}
    # of more coordinates than registers hold the weights are left in memory, and multiplied with the points
    products, panel = split.dot > 0, bool(pull) and split.panels
    # registers hold the sums of one or of the other
    if products and pull and moments and not panel:
        of_pairs = sweep(split, a, b, value=value, total=total, moments=True, **options)
        pulled = sweep(split, a, b, pull=pull, **options).sums.pull
        return of_pairs._replace(sums=of_pairs.sums._replace(pull=pulled))
    if value and (pull or moments) and columns != 1:
        of_rows = sweep(split, a, b, pull=pull, moments=moments, **options)
        values = sweep(split, a, b, value=True, **options).sums.value
        return of_rows._replace(sums=of_rows.sums._replace(value=values))
    if panel:
        kind = "panel with moments" if moments else "panel"
    elif products and pull:
        kind = "sums and pull"
    elif pull or moments:
        kind = "moments of columns" if products and columns > 1 else "moments"
    else:
        kind = "value" if columns == 1 else "columns"
    found = split.tile(kind)
    height, longest = (n, m) if pairings == 1 else (max(n, m), max(n, m))
    be = min(64, max(16, triton.next_power_of_2(columns)))
    e_blocks = max(1, triton.cdiv(columns, be)) if value else 1
    few = dims if 1 <= dims <= 4 else 0
    strips, tiles = triton.cdiv(height, tile_sums.STRIP), triton.cdiv(height, found.bn)
    ranges = column_ranges(found, batch * tiles * pairings * e_blocks, longest, x.device)
    stored = dtype if ranges == 1 and not panel else torch.float64
    # in memory a pull is summed in float64, and products leave it in float32
    pull_dtype = stored if few else torch.float32 if products and not panel else torch.float64
    sums = Sums(
        x.new_empty(ranges, pairings, batch, height, columns, dtype=stored) if value else None,
        x.new_empty(pairings, batch, ranges * strips, dtype=torch.float64) if total else None,
        x.new_empty(ranges, pairings, batch, height, dims, dtype=pull_dtype) if pull else None,
        x.new_empty(pairings, batch, ranges * strips, 2, table.count, dtype=torch.float64) if moments else None,
    )
    # each program meets many columns, beside which a row of the table is little work
    own = table.own(tiles, pairings * ranges * e_blocks, math.inf)
    if not batch * height or (value and not columns):
        return Swept(sums, table, pairings, x)
    shift = col_shift if row_shift is None else row_shift
    # of ones no kernel reads the coefficients
    coefficients = Coefficients(x, y) if a is None else Coefficients(a, b)
    variant = split.variant(found)
    if few or (products and split.whole):
        variant = variant._replace(BD=triton.next_power_of_2(few) if few else split.dp)
    asked = Asked(
        PAIRINGS=pairings, HALF=half, DIMS=few, DROP=drop, LESS=baseline is not None,
        SHIFT=0 if shift is None else 3 if pairings == 2 else 1 if col_shift is None else 2,
        ONE_COLUMN=columns == 1, ONES=a is None, VALUE=value, TOTAL=total, PULL=pull, MOMENTS=moments,
        PANEL=panel, BE=be, DIVISOR=4 if pull and dims % 4 == 0 else 1,
        FINISH=finish is not None, TOGETHER=min(2, ranges),
        COMBINED=min(BLOCK, found.bn * variant.BD) if products or few else 1024,
    )  # fmt: skip
    # the places of launches, and the programs for a block of rows of each
    of, each = Panels([(0, batch * tiles, 0)], 0, None), 1
    if panel:
        of, each = panels(x, height, longest, pairings if pull == 3 else (pairings + 1) // 2), ROWS // found.bn
    for place in of.places:
        first, blocks, start = place
        launch(_sweep_kernel, (blocks * each, pairings, ranges * e_blocks),
            split.points, coefficients, shift, baseline, sums, of.weights, table.arguments(), finish,
            n, m, dims, columns, batch, table.count, combinations, table.stride, ranges, first, start, of.window,
            TABLE=table.constants(own), ASKED=asked, VARIANT=variant, FAR=variant._replace(BM=min(16, found.bm)),
            STAGES=found.stages, **found.options,
        )  # fmt: skip
        if panel:
            pull_by_panel(of, place, split, coefficients, sums.pull, asked)
    return Swept(sums, table, pairings, x)
