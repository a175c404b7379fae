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

from .bf16_pieces import is_other_variant, weighted_points
from .distances import point_length, side_of
from .launch import launch
from .pairings import height_of, pulling, sets_of
from .tiles import SIZES, tile

# weights of a panel
CELLS = 2**24
# rows of a panel are a multiple of this: of whole tiles of any kernel
ROWS = 128
_ROWS = tl.constexpr(ROWS)
# columns of a window are a multiple of this: of whole tiles of any kernel
WINDOW = 1024
# tiles of columns whose pull is summed in the tile's dtype before it goes into float64
_CHUNK = tl.constexpr(16)


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
    panel_ptr, pull_ptr, points, coefficients, table_ptr, N, M, B, table_stride, RANGES, FIRST, START, WINDOW,
    PAIRINGS: tl.constexpr, PULL: tl.constexpr, FACTORS: tl.constexpr, VARIANT: tl.constexpr,
):  # fmt: skip
    """Adds the pull by a panel's weights to that of its rows, which the first window begins.

    FACTORS: the pull of a row is multiplied with its only coefficient.
    """
    if is_other_variant(points.greatest, VARIANT):
        return
    BN: tl.constexpr = VARIANT.BN
    BM: tl.constexpr = VARIANT.BM
    BK: tl.constexpr = VARIANT.BK
    DP: tl.constexpr = VARIANT.DP
    BLOCKS: tl.constexpr = VARIANT.BD // BK
    place, column_range, block = tl.program_id(1), tl.program_id(2) % RANGES, tl.program_id(2) // RANGES
    pairing = pulling(place, PAIRINGS, PULL)
    p, q = sets_of(pairing, points, coefficients, N, M, PAIRINGS)
    n, m = p.size, q.size
    height = height_of(N, M, PAIRINGS)
    pid, tiles = tile_of_panel(height, FIRST, BN)
    b, i0 = pid // tiles, (pid % tiles).to(tl.int32) * BN
    length = point_length(0, VARIANT)
    rows = side_of(p.points, p.norms, p.coefficients, b * n + i0, n - i0, length, 1, BN)
    coordinates, at = block * VARIANT.BD + tl.arange(0, BK), tl.arange(0, BM)
    weights = weights_of(panel_ptr, place, WINDOW, BN) + rows.at[:, None] * WINDOW + at[None, :]
    factor = tl.load(table_ptr + b * table_stride).to(tl.float64)
    if FACTORS:
        factor *= tl.load(rows.coefficients + rows.at, mask=rows.inside, other=0.0).to(tl.float64)[:, None]

    # whole tiles of columns for each range, and none for rows that this pairing does not have
    columns = tl.minimum(WINDOW, m - START)
    share = tl.cdiv(tl.cdiv(columns, BM), RANGES) * BM
    start = column_range * share
    stop = tl.where(i0 < n, tl.minimum(start + share, columns), start)
    pull_ptr += (((column_range.to(tl.int64) * PAIRINGS + pairing) * B + b) * height + i0) * DP
    # at least once, since rows without columns have a pull too
    for j0 in range(start, tl.maximum(stop, start + 1), _CHUNK * BM):
        pull, w_sum = _zeros(BN, BK, BLOCKS), tl.zeros([BN], tl.float32)
        for j in range(j0, tl.minimum(j0 + _CHUNK * BM, stop), BM):
            cols = side_of(q.points, q.norms, q.coefficients, b * m + START + j, columns - j, length, 1, BM)
            w = tl.load(weights + j, mask=rows.inside[:, None] & cols.inside[None, :], other=0.0)
            pull = _pulled(pull, w, cols, coordinates, BLOCKS, VARIANT)
            w_sum += tl.sum(w, 1)
        for k in tl.static_range(BLOCKS):
            _add(pull_ptr, rows, pull[k], w_sum, factor, coordinates + k * BK, (START > 0) | (j0 > start), VARIANT)
        tl.debug_barrier()


@triton.jit
def _zeros(BN: tl.constexpr, BK: tl.constexpr, BLOCKS: tl.constexpr):
    found = ()
    for _ in tl.static_range(BLOCKS):
        found += (tl.zeros([BN, BK], tl.float32),)
    return found


@triton.jit
def _pulled(pull, w, cols, coordinates, BLOCKS: tl.constexpr, VARIANT: tl.constexpr):
    """pull + sum_j w_ij q_j, a tuple of as many coordinates as go into float64 at a time."""
    found = ()
    for k in tl.static_range(BLOCKS):
        d = coordinates + k * VARIANT.BK
        found += (weighted_points(w, cols.points, cols, d, pull[k], VARIANT.DP, VARIANT.DOT),)
    return found


@triton.jit
def _add(pull_ptr, rows, pull, w_sum, factor, coordinates, more, VARIANT: tl.constexpr):
    """Makes of sum_j w_ij q_j a pull, less p_i sum_j w_ij, and adds it to the pull in memory if there is one."""
    DP: tl.constexpr = VARIANT.DP
    PIECES: tl.constexpr = (VARIANT.DOT + 3) // 3
    inside = rows.inside[:, None] & (coordinates < DP)[None, :]
    piece = rows.points + rows.at[:, None] * (PIECES * DP) + coordinates[None, :]
    # the pieces of p_i sum up to what float32 holds
    p = tl.load(piece, mask=inside, other=0.0).to(tl.float32)
    for k in tl.static_range(1, PIECES):
        p += tl.load(piece + k * DP, mask=inside, other=0.0).to(tl.float32)
    pull = tl.fma(p, -w_sum[:, None], pull)
    own = pull_ptr + rows.at[:, None] * DP + coordinates[None, :]
    tl.store(own, tl.load(own, mask=inside & more, other=0.0) + pull * factor, mask=inside)


def pull_by_panel(of: Panels, place, table, points, coefficients, pulls, asked, variant):
    """Of one panel, whose weights a sweep has left, into pulls (ranges, pairings, B, rows, coordinates)."""
    first, blocks, start = place
    ranges, pairings, batch, _, width = pulls.shape
    device = points.x.device
    found = tile("panel pull", width, torch.float32, device, variant.DOT)
    launch(_panel_kernel, (blocks * (ROWS // found.bn), of.weights.shape[0], ranges * triton.cdiv(width, found.bd)),
        of.weights, pulls, points, coefficients, table.rows,
        points.x.shape[1], points.y.shape[1], batch, table.stride, ranges, first, start, of.window,
        PAIRINGS=pairings, PULL=asked.PULL, FACTORS=asked.ONE_COLUMN and not asked.ONES,
        VARIANT=variant._replace(BN=found.bn, BM=found.bm, BD=found.bd, BK=found.bk), **found.options,
    )  # fmt: skip
