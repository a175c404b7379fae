"""Pulls of more coordinates than a program can hold: first the weights of some rows and columns, then a product.

    W_ij = c_ij sum_s w_s / sigma_s^2 k_sij        the sweep leaves them in memory, a panel of them at a time
    sum_j W_ij q_j - p_i sum_j W_ij                _panel_kernel, a block of coordinates in each program

A sweep that pulls by products holds one block of coordinates, and would compute its distances again for every other;
a panel's are computed once, in larger tiles. README.md has the arithmetic.

A panel is of some tiles of rows, those of all pairings that pull, and of a window of their columns: at most 2^24
weights, 64 MiB, whatever N and M are. What several windows add to the same rows is added in the order of their
launches, which follows from sizes alone.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .bandwidths import row_at
from .distances import columns_of_turn, less_own_points, pieces_of, pull_of_tile, side_of, some_of
from .launch import launch
from .pairings import height_of, pulling, sets_of
from .points import Split, frame_of, pieces_at
from .tiles import SIZES

# weights of a panel
CELLS = 2**24
# rows of a panel are a multiple of this: of whole tiles of any kernel
ROWS = 128
_ROWS = tl.constexpr(ROWS)
# columns of a window are a multiple of this: of whole tiles of any kernel
WINDOW = 1024


class Panels(NamedTuple):
    """Launches, one after another: (first block of rows, number of blocks, first column) of each."""

    places: list[tuple[int, int, int]]
    # columns of each, some of which may be beyond the last
    window: int
    # of the largest: (pairings that pull, rows, window) float32
    weights: torch.Tensor | None


def panels(x: torch.Tensor, height: int, columns: int, pulling: int) -> Panels:
    """Of the batch of x, in which that many pairings pull and have so many rows."""
    blocks = x.shape[0] * triton.cdiv(height, ROWS)
    whole = max(1, triton.cdiv(columns, WINDOW)) * WINDOW
    window = min(whole, max(1, CELLS // (pulling * blocks * ROWS * WINDOW)) * WINDOW)
    some = min(blocks, max(1, CELLS // (pulling * ROWS * window)))
    places = [(i, min(some, blocks - i), j) for i in range(0, blocks, some) for j in range(0, whole, window)]
    return Panels(places, window, x.new_empty(pulling, some * ROWS, window, dtype=torch.float32))


@triton.jit
def tile_of_panel(height, FIRST, BN: tl.constexpr):
    """Which tile of rows a program has, counted through the batch, and how many there are of one of the batch."""
    PER_BLOCK: tl.constexpr = _ROWS // BN
    return tl.program_id(0).to(tl.int64) + FIRST * PER_BLOCK, tl.cdiv(height, _ROWS) * PER_BLOCK


@triton.jit
def weights_of(panel_ptr, place, WINDOW, BN: tl.constexpr):
    """The weights of a program's rows, of the place-th pairing that pulls."""
    return panel_ptr + (place.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)) * BN * WINDOW


@triton.jit(do_not_specialize=SIZES)
def _panel_kernel(
    panel_ptr, pull_ptr, points, coefficients, table_ptr, N, M, D, B, S, table_stride, RANGES, FIRST, START, WINDOW,
    PAIRINGS: tl.constexpr, PULL: tl.constexpr, FACTORS: tl.constexpr, TABLE: tl.constexpr, VARIANT: tl.constexpr,
):  # fmt: skip
    """Adds the pull by a panel's weights to that of its rows, which the first window begins.

    FACTORS: the pull of a row is multiplied with its only coefficient.
    """
    BN: tl.constexpr = VARIANT.BN
    BM: tl.constexpr = VARIANT.BM
    BD: tl.constexpr = VARIANT.BD
    place, column_range, block = tl.program_id(1), tl.program_id(2) % RANGES, tl.program_id(2) // RANGES
    pairing = pulling(place, PAIRINGS, PULL)
    p, q = sets_of(pairing, points, coefficients, N, M, PAIRINGS)
    height = height_of(N, M, PAIRINGS)
    pid, tiles = tile_of_panel(height, FIRST, BN)
    b, i0 = pid // tiles, (pid % tiles).to(tl.int32) * BN
    row = row_at(table_ptr + b * table_stride, S)
    frame = frame_of(points, row, b, S, TABLE, VARIANT)
    rows = side_of(p, b, i0, D, 1, BN, VARIANT)
    of_rows = pieces_of(rows, VARIANT)
    coordinates = block * BD + tl.arange(0, BD)
    weights = weights_of(panel_ptr, place, WINDOW, BN) + rows.at[:, None] * WINDOW + tl.arange(0, BM)[None, :]

    # whole tiles of columns for each range, and none for rows that this pairing does not have
    columns = tl.minimum(WINDOW, q.size - START)
    share = tl.cdiv(tl.cdiv(columns, BM), RANGES) * BM
    start = column_range * share
    stop = tl.where(i0 < p.size, tl.minimum(start + share, columns), start)
    pull, w_sum = tl.zeros([BN, BD], tl.float32), tl.zeros([BN], tl.float64)
    # tiles whose pairs products serve, then the others, as in the sweep
    first_far, after_far = stop, start
    for TURN in tl.static_range(2):
        if TURN == 1:
            start, stop = first_far, after_far
        for j in range(start, stop, BM):
            cols, _, far, first_far, after_far = columns_of_turn(
                q, b, START + j, j, start, first_far, after_far, of_rows, frame, D, 1, TURN, BM, VARIANT
            )
            # columns beyond the window are others'
            cols = some_of(cols, cols.at < columns - j)
            w = tl.load(weights + j, mask=rows.inside[:, None] & cols.inside[None, :], other=0.0)
            high, middle, _ = pieces_at(cols, coordinates, VARIANT)
            pull, w_sum = pull_of_tile(
                pull, w_sum, w, high, middle, far, rows, cols, block * BD, frame, D, TURN, VARIANT
            )  # fmt: skip
    unit = tl.load(row.unit)
    pull = less_own_points(pull, w_sum, rows, coordinates, VARIANT) * (unit * (unit / frame.per_unit))
    if FACTORS:
        pull *= tl.load(rows.coefficients + rows.at, mask=rows.inside, other=0.0).to(tl.float32)[:, None]
    pull_ptr += (((column_range.to(tl.int64) * PAIRINGS + pairing) * B + b) * height + i0) * D
    own = pull_ptr + rows.at[:, None] * D + coordinates[None, :]
    inside = rows.inside[:, None] & (coordinates < D)[None, :]
    tl.store(own, tl.load(own, mask=inside & (START > 0), other=0.0) + pull, mask=inside)


def pull_by_panel(of: Panels, place, split: Split, coefficients, pulls, asked):
    """Of one panel, whose weights a sweep has left, into pulls (ranges, pairings, B, rows, coordinates)."""
    first, blocks, start = place
    ranges, pairings, batch, _, dims = pulls.shape
    points, table = split.points, split.table
    found = split.tile("panel pull")
    launch(_panel_kernel, (blocks * (ROWS // found.bn), of.weights.shape[0], ranges * triton.cdiv(dims, found.bd)),
        of.weights, pulls, points, coefficients, table.rows,
        points.x.shape[1], points.y.shape[1], dims, batch, table.count, table.stride, ranges, first, start,
        of.window, PAIRINGS=pairings, PULL=asked.PULL, FACTORS=asked.ONE_COLUMN and not asked.ONES,
        TABLE=table.constants(), VARIANT=split.variant(found), **found.options,
    )  # fmt: skip
