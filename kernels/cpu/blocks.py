"""Blocks of pairs: some rows by some columns, which stay in the cache nearest to the core through all steps."""

import math
from typing import NamedTuple

import numpy as np

from .arrays import empty
from .compiled import inner
from .points import Points
from .tile import ROWS

_COLUMNS = 256
# rows of a block: few, so that a block stays in the first-level cache, unless products with it follow
_FEW_ROWS, _MANY_ROWS = 2 * ROWS, 16 * ROWS


class Modes(NamedTuple):
    skip_diagonal: bool  # no pair (i, i)
    less_baseline: bool  # K - sum_s weights_s baseline_s
    # y is x, and c_ij = c_ji: only pairs i < j are visited. Full results: dx + dy and value + column_value. `value`
    # alone is valid only inside g . value
    symmetric: bool
    # the value is (B, N, S), of each bandwidth; v has one column
    by_bandwidth: bool


class Wants(NamedTuple):
    value: bool
    column_value: bool
    dx: bool
    dy: bool
    parameters: bool


class Operands(NamedTuple):
    """A sweep's input; arrays that are not given have no rows."""

    x: Points
    y: Points
    v: Points  # (B, M, E)
    g: Points  # (B, N, E)
    pairs: np.ndarray  # (B, N, M) c_ij, in place of g_i . v_j
    kernels: np.ndarray  # (B, N, M) K, if the caller has kept it
    shift: np.ndarray  # (B, N, S) taken from the exponents in base 2


class Accumulators(NamedTuple):
    """A sweep's results, float64, in packed units; columns receive something from every chunk of rows."""

    value: np.ndarray  # (B, N, E) sum_j total_ij v_j, or (B, N, S) by bandwidth
    column_value: np.ndarray  # (B, chunks, M, E) sum_i total_ij g_i
    dx: np.ndarray  # (B, N, D)
    dy: np.ndarray  # (B, chunks, M, D)
    parameters: np.ndarray  # (B, chunks, 2 S) for each bandwidth sum_ij c_ij k_ij, and that times its exponent


class Chunks(NamedTuple):
    """Rows bounds[k] to bounds[k + 1] are chunk k; it meets the columns in blocks."""

    count: int
    bounds: np.ndarray
    block_rows: int
    block_columns: int


class Steps(NamedTuple):
    """What is done with each block, from Wants and Modes."""

    general: bool  # with shifts, or with the moments of the bandwidths
    coefficients: bool  # c_ij are needed
    outer: bool  # c_ij = g_i v_j: made where it is used
    keep_totals: bool  # total_ij are multiplied with v or g later
    value: bool
    pull: bool
    parameters: bool


class Parts(NamedTuple):
    """Addresses of steps that not every sweep takes, or 0."""

    mix: int
    coefficients: int
    read: int
    values: int
    pulls: int


class Values(NamedTuple):
    """The numbers of a block, from step to step; see Block for their places."""

    d2: np.ndarray  # squared distances; where K is read, -k
    weight: np.ndarray  # c_ij, and then c_ij sum_s w_s k_s / sigma_s^2
    totals: np.ndarray  # sum_s w_s k_s, if kept
    row_sums: np.ndarray  # sum_j total_ij v_j, if totals are not kept; those by bandwidth side by side
    moments: np.ndarray  # in lanes, two for each bandwidth


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
def block_size(n, m, width, products):
    """Rows and columns of a block."""
    block_rows = _MANY_ROWS if products else _FEW_ROWS
    # a block of rows lies within one block of columns
    unit = block_rows
    while unit % width:
        unit += block_rows
    block_columns = max(1, _COLUMNS // unit) * unit
    if n <= block_rows and m <= block_columns:
        # one block: no more memory than it takes
        block_rows, block_columns = max(1, -(-n // ROWS)) * ROWS, max(1, -(-m // width)) * width
    return block_rows, block_columns


@inner
def chunk_bounds(memory, n, chunks, block_rows, symmetric):
    """Chunks of about equal work; above the diagonal the first rows have the most columns."""
    bounds = empty(memory, chunks + 1, np.int64)
    for k in range(chunks):
        share = 1 - math.sqrt(1 - k / chunks) if symmetric else k / chunks
        bounds[k] = round(share * n / block_rows) * block_rows
    bounds[chunks] = n
    return bounds


@inner
def make_values(memory, chunks, line, steps, count, width, dtype):
    """Values of undefined content, for so many bandwidths."""
    size = chunks.block_rows * line
    return Values(
        empty(memory, size, dtype),
        empty(memory, size if steps.coefficients else 1, dtype),
        empty(memory, size if steps.keep_totals else 1, dtype),
        empty(memory, chunks.block_rows * count, dtype),
        empty(memory, count * width, dtype),
    )


@inner
def first_column(diagonal, r, width):
    """From which column on a block has tiles in row r: all, or where they reach above the diagonal.

    diagonal is the row of the block's first column less that of its first row, or -1 for a block above it.
    """
    return (diagonal + r // ROWS * ROWS) // width * width if diagonal >= 0 else 0


@inner
def last_row(diagonal, j, width, high):
    """Up to which row a block has tiles in column j."""
    return min(high, (j // width * width + width - diagonal + ROWS - 1) // ROWS * ROWS) if diagonal >= 0 else high


@inner
def leave_out(block, skip_diagonal, width, tiles, value):
    """Sets the pairs that are not visited, of a block of tiles: the diagonal's, or if symmetric also those below."""
    if block.diagonal >= 0:
        for r in range(block.high):
            for j in range(first_column(block.diagonal, r, width), min(block.diagonal + r + 1, block.padded)):
                tiles[r * block.line + j] = value
    elif skip_diagonal:
        for i in range(max(block.i0, block.j0), min(block.i0 + block.high, block.j0 + block.wide)):
            tiles[(i - block.i0) * block.line + i - block.j0] = value


@inner
def left_out(block, skip_diagonal, r):
    """Which columns of row r of a block are not visited: from the first to before the second."""
    if block.diagonal >= 0:
        return 0, block.diagonal + r + 1
    if skip_diagonal:
        column = block.i0 + r - block.j0
        return column, column + 1
    return 0, 0


@inner
def mirror(block, tiles):
    """The square where a block's rows are its columns gets below its diagonal what is above."""
    for r in range(block.high):
        for c in range(r):
            tiles[r * block.line + block.diagonal + c] = tiles[c * block.line + block.diagonal + r]
