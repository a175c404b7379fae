"""Pulls of more coordinates than a program can hold: first the weights of some rows and columns, then a product.

    W_ij = c_ij sum_s w_s / sigma_s^2 k_sij        the sweep leaves them in memory, a panel of them at a time
    sum_j W_ij q_j - p_i sum_j W_ij                _panel_kernel, a block of coordinates in each program

A sweep that pulls by products holds one block of coordinates, and would compute its distances again for every other;
a panel's are computed once, in larger tiles. README.md has the arithmetic.

A panel is of some tiles of rows, those of all parts that pull, and of a window of their columns: at most 2^24
weights, 64 MiB, whatever N and M are. What several windows add to the same rows is added in the order of their
launches, which follows from sizes alone.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .bf16_pieces import other_form, weighted_points
from .pairings import columns_of, rows_of
from .tiles import tile

# weights of a panel
_CELLS = 2**24
# rows of a panel are a multiple of this: of whole tiles of any kernel
ROWS = 128
_ROWS = tl.constexpr(ROWS)
# columns of a window are a multiple of this: of whole tiles of any kernel
_WINDOW = 1024
# tiles of columns whose pull is summed in the tile's dtype before it goes into float64
_CHUNK = tl.constexpr(16)


class Panels(NamedTuple):
    """What is launched one after another: (first block of rows, how many, first column) of each."""

    places: list[tuple[int, int, int]]
    # columns of each, but for those that are not there
    window: int
    # of the largest: (parts that pull, rows, window) float32
    weights: torch.Tensor | None


def panels(x: torch.Tensor, height: int, columns: int, pulling: int) -> Panels:
    """Of the batch of x, in which that many parts pull and have so many rows."""
    blocks = x.shape[0] * triton.cdiv(height, ROWS)
    whole = max(1, triton.cdiv(columns, _WINDOW)) * _WINDOW
    window = min(whole, max(1, _CELLS // (pulling * blocks * ROWS * _WINDOW)) * _WINDOW)
    some = min(blocks, max(1, _CELLS // (pulling * ROWS * window)))
    places = [(i, min(some, blocks - i), j) for i in range(0, blocks, some) for j in range(0, whole, window)]
    return Panels(places, window, x.new_empty(pulling, some * ROWS, window, dtype=torch.float32))


@triton.jit
def tile_of_panel(height, FIRST, BN: tl.constexpr):
    """Which tile of rows a program has, counted through the batch, and how many there are of one of the batch."""
    PER_BLOCK: tl.constexpr = _ROWS // BN
    return tl.program_id(0).to(tl.int64) + FIRST * PER_BLOCK, tl.cdiv(height, _ROWS) * PER_BLOCK


@triton.jit
def weights_of(panel_ptr, slot, WINDOW, BN: tl.constexpr):
    """Where the weights of a program's rows are, of the slot-th part that pulls."""
    return panel_ptr + (slot.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)) * BN * WINDOW


_SIZES = ["N", "M", "B", "table_stride", "SPLITS", "FIRST", "START", "WINDOW"]


@triton.jit(do_not_specialize=_SIZES)
def _panel_kernel(
    panel_ptr, pull_ptr, table_ptr, x_ptr, y_ptr, x_norms_ptr, y_norms_ptr, limit_ptr, a_ptr, b_ptr,
    N, M, B, table_stride, SPLITS, FIRST, START, WINDOW,
    PARTS: tl.constexpr, PULL: tl.constexpr, ONE_COLUMN: tl.constexpr, DOT: tl.constexpr, LIMIT: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """Adds the pull by a panel's weights to that of its rows, of which there is none yet before the first window."""
    if other_form(limit_ptr, DOT, LIMIT):
        return
    slot, split, block = tl.program_id(1), tl.program_id(2) % SPLITS, tl.program_id(2) // SPLITS
    # a single part is x with y; where one set alone is pulled, every other part is
    part = slot
    if PARTS > 1 and PULL < 3:
        part = 2 * slot + PULL - 1
    pair = part if PARTS > 2 else part + 2 if PARTS > 1 else 2
    p_ptr, f_ptr, _, n = rows_of(pair, x_ptr, y_ptr, a_ptr, b_ptr, x_norms_ptr, y_norms_ptr, N, M)
    q_ptr, _, _, m = columns_of(pair, x_ptr, y_ptr, a_ptr, b_ptr, x_norms_ptr, y_norms_ptr, N, M)
    height = tl.maximum(N, M) if PARTS > 1 else N
    pid, tiles = tile_of_panel(height, FIRST, BN)
    b, i0 = pid // tiles, (pid % tiles).to(tl.int32) * BN
    rows, cols, coordinates = tl.arange(0, BN), tl.arange(0, BM), block * BD + tl.arange(0, BK)
    row_in = rows < n - i0
    ROW: tl.constexpr = (DOT + 3) // 3 * DP
    p_ptr += (b * n + i0) * ROW
    weights = weights_of(panel_ptr, slot, WINDOW, BN) + rows[:, None] * WINDOW + cols[None, :]
    factor = tl.load(table_ptr + b * table_stride).to(tl.float64)
    if ONE_COLUMN:
        factor *= tl.load(f_ptr + b * n + i0 + rows, mask=row_in, other=0.0).to(tl.float64)[:, None]

    # whole tiles of columns for each split, and none for rows that this part does not have
    columns = tl.minimum(WINDOW, m - START)
    share = tl.cdiv(tl.cdiv(columns, BM), SPLITS) * BM
    start = split * share
    stop = tl.where(i0 < n, tl.minimum(start + share, columns), start)
    place = ((split.to(tl.int64) * PARTS + part) * B + b) * height + i0
    pull_ptr += place * DP
    # at least once, since rows without columns have a pull too
    for j0 in range(start, tl.maximum(stop, start + 1), _CHUNK * BM):
        pull, tug_sum = _nothing(BN, BD, BK), tl.zeros([BN], tl.float32)
        for j in range(j0, tl.minimum(j0 + _CHUNK * BM, stop), BM):
            col_in = cols < columns - j
            tug = tl.load(weights + j, mask=row_in[:, None] & col_in[None, :], other=0.0)
            q_tile = q_ptr + (b * m + START + j) * ROW
            pull = _pulled(pull, tug, q_tile, cols, col_in, coordinates, BD, BK, DP, DOT)
            tug_sum += tl.sum(tug, 1)
        for k in tl.static_range(BD // BK):
            _add(
                pull_ptr, p_ptr, pull[k], tug_sum, factor, rows, row_in, coordinates + k * BK,
                (START > 0) | (j0 > start), BN, DP, DOT,
            )  # fmt: skip
        tl.debug_barrier()


@triton.jit
def _nothing(BN: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr):
    found = ()
    for _ in tl.static_range(BD // BK):
        found += (tl.zeros([BN, BK], tl.float32),)
    return found


@triton.jit
def _pulled(
    pull, tug, q_ptr, cols, col_in, coordinates,
    BD: tl.constexpr, BK: tl.constexpr, DP: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """pull + sum_j tug_ij q_j, a tuple of as many coordinates as go into float64 at a time."""
    found = ()
    for k in tl.static_range(BD // BK):
        found += (weighted_points(tug, q_ptr, cols, col_in, coordinates + k * BK, pull[k], DP, DOT),)
    return found


@triton.jit
def _add(
    pull_ptr, p_ptr, pull, tug_sum, factor, rows, row_in, coordinates, more,
    BN: tl.constexpr, DP: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Makes of sum_j tug_ij q_j a pull, less p_i sum_j tug_ij, and adds it to what there is if there is more."""
    inside = row_in[:, None] & (coordinates < DP)[None, :]
    PIECES: tl.constexpr = (DOT + 3) // 3
    there = p_ptr + rows[:, None] * (PIECES * DP) + coordinates[None, :]
    # the pieces of p_i sum up to what float32 holds
    p = tl.load(there, mask=inside, other=0.0).to(tl.float32)
    for k in tl.static_range(1, PIECES):
        p += tl.load(there + k * DP, mask=inside, other=0.0).to(tl.float32)
    pull = tl.fma(p, -tug_sum[:, None], pull)
    own = pull_ptr + rows[:, None] * DP + coordinates[None, :]
    tl.store(own, tl.load(own, mask=inside & more, other=0.0) + pull * factor, mask=inside)


def pull_by_panel(of: Panels, place, table, a, b, n, m, pulls, operands, products, limit, pull):
    """Of one panel, whose weights a sweep has left, into pulls (splits, parts, B, rows, coordinates)."""
    first, blocks, start = place
    parted, parts, batch, _, width = pulls.shape
    found = tile("panel pull", width, torch.float32, a.device, products)
    with torch.cuda.device_of(a):
        _panel_kernel[(blocks * (ROWS // found.bn), of.weights.shape[0], parted * triton.cdiv(width, found.bd))](
            of.weights, pulls, table.rows, *operands, a, b,
            n, m, batch, table.stride, parted, first, start, of.window,
            PARTS=parts, PULL=pull, ONE_COLUMN=b.shape[2] == 1, DOT=products, LIMIT=limit,
            BN=found.bn, BM=found.bm, BD=found.bd, BK=found.bk, DP=width,
            **found.options,
        )  # fmt: skip
