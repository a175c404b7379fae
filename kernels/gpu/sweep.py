"""The row sweep: one program holds a tile of rows, meets all columns, and keeps the sums that the flags ask for.

    K_ij = sum_s w_s k_sij,  k_sij = 2**(-scale_s |p_i - q_j|^2 - shift_s),  c_ij = sum_e f_ie h_je

    VALUE    sum_j K_ij h_je                      (K - sum_s w_s baseline_s with LESS)    (B, rows, E)
    TOTAL    sum_ij f_i K_ij h_j, likewise                                                 (B, strips of rows)
    PULL     sum_j c_ij sum_s w_s / sigma_s^2 k_sij (q_j - p_i)                            (B, rows, D)
    MOMENTS  sum_ij c_ij k_sij (k - baseline with LESS), sum_ij c_ij k_sij |p_i - q_j|^2     (B, strips of rows, 2, S)

p, f are the points and coefficients of the rows, q, h those of the columns. Every row has one program, or one for
each range of columns, whose sums are then added in order (reduce.py): no atomics, so results repeat bit for bit.
Sums are in the dtype of the tile within a few tiles and in float64 beyond, so that rounding does not grow with M.

One launch can hold four sweeps over two point sets: x with x, y with y, x with y, y with x. That is MMD^2. Or the
last two: a product's gradients, of which the first has the moments, and the second the value. Where only
sums over all pairs of a set with itself are wanted, its rows meet half of its columns (HALF): the groups of rows
stand in a circle, each meets those from itself to the opposite one, and a pair that is met once counts twice. So all
programs have the same work, and which pairs they meet depends on the sizes alone.

Of more coordinates than a program holds, a sweep by products leaves the weights of a panel of pairs in memory instead
of a pull (PANEL): see panel.py. It is then launched for one panel after another, and adds its sums to those before.

To add an epilogue: a flag, what is kept before the loop, and an add_... and a store_... in tile_sums.py.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import tile_sums
from .bandwidths import Table, row_of_table
from .bf16_pieces import Pieces, block_of, is_other_variant, variants
from .distances import cast, coordinates_of, norms_of, point_length, side_of
from .launch import launch
from .pairings import height_of, modes_of, place_among_pulling, sets_of
from .panel import ROWS, Panels, panels, pull_by_panel, tile_of_panel, weights_of
from .tiles import SIZES, column_ranges, tile

# tiles whose sums are kept in the tile's dtype before they go into float64
_CHUNK = tl.constexpr(16)
_STRIP = tl.constexpr(tile_sums.STRIP)


class Coefficients(NamedTuple):
    """The argument of a kernel: of x and of y, as they are, or in pieces."""

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
    # numbers in a piece of coefficients
    EP: int
    # numbers of a pull in memory, 0: D
    WIDTH: int


class Sums(NamedTuple):
    """What a sweep leaves, of P pairings and C ranges of columns; None where it is not wanted."""

    value: torch.Tensor | None  # (C, P, B, rows, E)
    total: torch.Tensor | None  # (P, B, C * strips) float64
    pull: torch.Tensor | None  # (C, P, B, rows, D or more)
    moments: torch.Tensor | None  # (P, B, C * strips, 2, S) float64, in the table's units


class Swept(NamedTuple):
    sums: Sums
    table: Table
    pairings: int
    batch: int


@triton.jit(do_not_specialize=SIZES)
def _sweep_kernel(
    points, coefficients, shift_ptr, baseline_ptr, sums, panel_ptr, bandwidths,
    N, M, D, E, B, S, table_stride, RANGES, FIRST, START, WINDOW,
    TABLE: tl.constexpr, ASKED: tl.constexpr, VARIANT: tl.constexpr,
):  # fmt: skip
    if is_other_variant(points.greatest, VARIANT):
        return
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
    # numbers that a point and its coefficients have in memory
    point, coefficient = point_length(D, VARIANT), E
    if DOT > 0 and not ONE_COLUMN:
        coefficient = (DOT + 3) // 3 * ASKED.EP

    height = height_of(N, M, PAIRINGS)
    pid, tiles = tl.program_id(0).to(tl.int64), tl.cdiv(height, BN)
    if PANEL:
        pid, tiles = tile_of_panel(height, FIRST, BN)
    b, i0 = pid // tiles, (pid % tiles).to(tl.int32) * BN
    # rows count from i0 and columns from j0, in int32; where they begin is int64
    rows = side_of(p.points, p.norms, p.coefficients, b * n + i0, n - i0, point, coefficient, BN)
    place = ((column_range.to(tl.int64) * PAIRINGS + pairing) * B + b) * height + i0
    # a group is of whole tiles both ways
    GROUP: tl.constexpr = BN if BN > BM else BM
    start, stop, groups = _columns_to_meet(i0, n, m, column_range, RANGES, START, WINDOW, half, GROUP, ASKED, VARIANT)

    program = pid + tl.num_programs(0) * (pairing + tl.num_programs(1) * tl.program_id(2)).to(tl.int64)
    row = row_of_table(bandwidths, b, program, S, table_stride, TABLE)
    unit = tl.load(row.unit)
    # one of two pairings may have nothing to do
    if PAIRINGS == 2 and not (pulls | (ASKED.MOMENTS & measured) | (ASKED.VALUE & valued)):
        return

    # what is kept of the rows: sums of a few tiles (..._chunk) are in the tile's dtype, those of all in float64
    # columns of the value
    e = block * BE + tl.arange(0, BE)
    e_in = e < E
    coordinates = tl.arange(0, BD)
    width = ASKED.WIDTH if ASKED.WIDTH > 0 else D
    f = tile_sums.row_coefficients(rows, ASKED, VARIANT)
    row_norms, row_points = norms_of(rows, VARIANT), coordinates_of(rows, ASKED.DIMS, ACC)
    BY_TILE: tl.constexpr = DOT > 0 and (PULL > 0 or SP > 1)
    value = tl.zeros([BN] if ONE_COLUMN else [BN, BE], tl.float64)
    pull, w_sum = tl.zeros([BN, BD], tl.float64), tl.zeros([BN], tl.float64)
    sum_k, sum_kd2 = tl.zeros([BN, SP], tl.float64), tl.zeros([BN, SP], tl.float64)
    pull_ptr = points.x
    if PANEL:
        panel_ptr = weights_of(panel_ptr, place_among_pulling(pairing, PULL), WINDOW, BN)
    elif PULL > 0:
        pull_ptr = sums.pull + place * width
        if ASKED.DIMS == 0:
            tile_sums.clear_pull(pull_ptr, rows, coordinates, BD if DOT > 0 else D, width, BN, BD)

    for j0 in range(start, stop, _CHUNK * BM):
        value_chunk = tile_sums.no_value(BY_TILE, ASKED, VARIANT)
        pull_chunk = tile_sums.no_pull(ASKED, VARIANT)
        for j in range(j0, tl.minimum(j0 + _CHUNK * BM, stop), BM):
            j1 = _met_column(j, i0, groups, half, GROUP, ASKED)
            cols = side_of(q.points, q.norms, q.coefficients, b * m + j1, m - j1, point, coefficient, BM)
            d2, away = tile_sums.distances(rows, cols, row_norms, row_points, unit, D, ASKED, VARIANT)
            twice = half & (j >= GROUP) & (j // GROUP * 2 != groups)
            c, h = tile_sums.pair_coefficients(rows, cols, twice, E, ASKED, VARIANT)
            kept = cols.inside[None, :]
            if ASKED.DROP > 0:
                kept = (rows.at[:, None] - cols.at[None, :] != j1 - i0) | (not skip)
                if PULL > 0 or ASKED.MOMENTS:
                    c = tl.where(kept, c, 0.0)

            total, k_over_sigma2, sum_k, sum_kd2 = tile_sums.mix(
                d2, c, sum_k, sum_kd2, measured, row, rows, cols, kept,
                shift_ptr, b * n + i0, b * m + j1, pairing, baseline_ptr, b, S, TABLE, ASKED, VARIANT,
            )  # fmt: skip

            if ASKED.VALUE or ASKED.TOTAL:
                if ASKED.DROP > 0:
                    total = tl.where(kept, total, 0.0)
                value_chunk = tile_sums.add_value(value_chunk, total, h, cols, e, e_in, E, BY_TILE, ASKED, VARIANT)
            if PANEL and pulls:
                w_ptr = panel_ptr + rows.at[:, None] * WINDOW + (j - START + cols.at)[None, :]
                tl.store(w_ptr, k_over_sigma2 * c, mask=rows.inside[:, None] & cols.inside[None, :])
            elif PULL > 0 and pulls:
                pull_chunk, w_sum = tile_sums.add_pull(
                    pull_chunk, w_sum, k_over_sigma2 * c, away, pull_ptr, rows, cols, coordinates, unit, D, width,
                    ASKED, VARIANT,
                )  # fmt: skip
        if ASKED.VALUE or ASKED.TOTAL:
            value += value_chunk if BY_TILE or not ONE_COLUMN else tl.sum(value_chunk, 1)
        if PULL > 0 and not PANEL:
            pull = tile_sums.keep_pull(pull, pull_chunk, pull_ptr, rows, coordinates, width, ASKED.DIMS, VARIANT)

    # the windows before have left sums
    more = PANEL and START > 0
    if ASKED.VALUE and ONE_COLUMN:
        tile_sums.store_sum(sums.value + place + rows.at, value, rows.inside & valued, more, PANEL)
    if ASKED.VALUE and not ONE_COLUMN:
        own = sums.value + place * E + rows.at[:, None] * E + e[None, :]
        tl.store(own, cast(value, sums.value), mask=rows.inside[:, None] & e_in[None, :])
    if PULL > 0 and not PANEL:
        factor = f.to(tl.float64)[:, None] * unit.to(tl.float64)
        if DOT > 0:
            tile_sums.store_pull_by_products(pull_ptr, rows, coordinates, w_sum, factor, VARIANT)
        else:
            tile_sums.store_pull(pull_ptr, pull, rows, coordinates, factor, D, width, BD, ASKED.DIMS)
    if (ASKED.TOTAL or ASKED.MOMENTS) and measured:
        # pairings by batch by ranges by strips
        strips = tl.cdiv(height, _STRIP)
        first = ((pairing * B + b) * RANGES + column_range) * strips
        tile_sums.store_sums(sums, row, f, value, sum_k, sum_kd2, i0, first, strips, more, S, SP, ASKED, BN)


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
    table: Table,
    x: torch.Tensor,
    y: torch.Tensor,
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
    pieces: Pieces | None = None,
) -> Swept:
    """x (B, N, D), y (B, M, D), a (B, N, E), b (B, M, E), shift (B, N or M, S), contiguous. Value and pull in dtype.

    a and b None: one column of ones. With one pairing the rows are x, a, the columns y, b; with more see pairings.py;
    the rows of a pairing stand first where others have more. Of two the shift is that of x, the first one's rows. The
    bits of half say which of x with x and y with y may meet half of the pairs, the bits of pull for which of x and y
    it is wanted. Other pairings' values, pulls and moments are unwritten, as are of two the first one's value and the
    second one's moments.
    """
    (batch, n, dims), m, columns = x.shape, y.shape[1], 1 if b is None else b.shape[2]
    options = {"pairings": pairings, "row_shift": row_shift, "col_shift": col_shift, "drop": drop, "dtype": dtype}
    baseline = None if baseline is None else baseline.contiguous()
    options |= {"baseline": baseline, "pieces": pieces, "half": half}
    kind = "moments" if pull or moments else "value" if columns == 1 else "columns"
    # of more coordinates than registers hold the weights are left in memory, and multiplied with the points
    panel = bool(pieces and pull) and dims > _by_products(kind, columns, pairings, table, x, pieces.products).bd
    # registers hold the sums of one or of the other
    if pieces and pull and moments and not panel:
        of_pairs = sweep(table, x, y, a, b, value=value, total=total, moments=True, **options)
        pulled = sweep(table, x, y, a, b, pull=pull, **options).sums.pull
        return of_pairs._replace(sums=of_pairs.sums._replace(pull=pulled))
    if value and (pull or moments) and columns != 1:
        of_rows = sweep(table, x, y, a, b, pull=pull, moments=moments, **options)
        values = sweep(table, x, y, a, b, value=True, **options).sums.value
        return of_rows._replace(sums=of_rows.sums._replace(value=values))
    height = n if pairings == 1 else max(n, m)
    be = block_of(columns)
    e_blocks = max(1, triton.cdiv(columns, be)) if value else 1
    few = dims if 1 <= dims <= 4 else 0
    strips, longest = triton.cdiv(height, tile_sums.STRIP), m if pairings == 1 else max(n, m)
    ranges = column_ranges(batch * strips * pairings * e_blocks, longest, x.device)
    stored = dtype if ranges == 1 and not panel else torch.float64
    # a pull that is summed in memory is in float64, in rows as long as those of the pieces
    pull_dtype = stored if few and not pieces else torch.float64
    width = pieces.dims if pieces else 0
    sums = Sums(
        x.new_empty(ranges, pairings, batch, height, columns, dtype=stored) if value else None,
        x.new_empty(pairings, batch, ranges * strips, dtype=torch.float64) if total else None,
        x.new_empty(ranges, pairings, batch, height, width or dims, dtype=pull_dtype) if pull else None,
        x.new_empty(pairings, batch, ranges * strips, 2, table.count, dtype=torch.float64) if moments else None,
    )
    shift = col_shift if row_shift is None else row_shift
    tiles = triton.cdiv(height, tile(kind, dims, table.dtype, x.device).bn)
    # each meets many columns, beside which a row of the table is little work
    own = table.own(tiles, pairings * ranges * e_blocks, math.inf)
    # of ones no kernel reads the coefficients
    raw = Coefficients(x, y) if a is None else Coefficients(a, b)

    def tile_of(products):
        if not products:
            return tile(kind, dims, table.dtype, x.device)
        of_panel = "panel with moments" if moments else "panel"
        return _by_products(of_panel if panel else kind, columns, pairings, table, x, products)

    some = batch * height and (columns or not value)
    for found, points, variant in variants(pieces, table, x, y, tile_of) if some else ():
        products = variant.DOT > 0
        if few and not products:
            variant = variant._replace(BD=triton.next_power_of_2(few))
        # the places of launches, and the programs for a block of rows of each
        of, tiles = Panels([(0, batch * triton.cdiv(height, found.bn), 0)], 0, None), 1
        if panel and products:
            of, tiles = panels(x, height, longest, pairings if pull == 3 else (pairings + 1) // 2), ROWS // found.bn
        coefficients = Coefficients(pieces.a, pieces.b) if products and pieces.columns else raw
        asked = Asked(
            PAIRINGS=pairings, HALF=half, DIMS=0 if products else few, DROP=drop, LESS=baseline is not None,
            SHIFT=0 if shift is None else 3 if pairings == 2 else 1 if col_shift is None else 2,
            ONE_COLUMN=columns == 1, ONES=a is None, VALUE=value, TOTAL=total, PULL=pull, MOMENTS=moments,
            PANEL=panel and products, BE=be, EP=pieces.columns if products else 0, WIDTH=width,
        )  # fmt: skip
        for place in of.places:
            first, blocks, start = place
            launch(_sweep_kernel, (blocks * tiles, pairings, ranges * e_blocks),
                points, coefficients, shift, baseline, sums, of.weights, table.arguments(),
                n, m, dims, columns, batch, table.count, table.stride, ranges, first, start, of.window,
                TABLE=table.constants(own), ASKED=asked, VARIANT=variant, **found.options,
            )  # fmt: skip
            if asked.PANEL:
                pull_by_panel(of, place, table, points, raw, sums.pull, asked, variant)

    return Swept(sums, table, pairings, batch)


def _by_products(kind, columns, pairings, table, x, products):
    """The tile of a variant by products: several columns, pairings of MMD^2, and bandwidths have their own."""
    if kind == "moments" and (columns > 1 or pairings > 2):
        kind += " of columns" if columns > 1 else " of sets"
    if kind == "value" and table.count > 1:
        kind += " of bandwidths"
    return tile(kind, x.shape[2], table.dtype, x.device, products)
