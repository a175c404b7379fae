"""The kernel matrix and its gradients.

Distances are sums of squared differences, as on the CPU, right for every input; also products on tensor cores, where
these are accurate (points.py). Differences are scaled by a power of two taken from sigma, which is exact, so that
squares stay in range where the kernel is neither 0 nor 1. Of x with itself half of the tiles are made, and each is
stored twice.

The gradients take two launches: the tile that makes K makes W_ij = g_ij sum_s w_s / sigma_s^2 k_sij, as large as g,
and the partial sums for sigma and weights; then x and y are pulled by the rows and the columns of W, beside a program
that adds the sums. A sweep that does not store W would compute each distance again for every block of coordinates.
Every output has one owner, so nothing is added by atomics and results repeat bit for bit.
"""

import torch
import triton
import triton.language as tl

from .bandwidths import Table, accumulator, row_at, row_of_table
from .distances import (
    cast,
    columns_of_turn,
    coordinates_of,
    differences,
    is_far,
    less_own_points,
    next_kernel,
    pieces_of,
    pull_by_differences,
    pull_of_tile,
    side_of,
    squared_distances,
    squared_length,
    steps_of,
)
from .launch import launch
from .pairings import Set
from .points import Split, frame_of, pieces_at, zeros
from .reduce import Reduced, reduce_moments
from .tiles import SIZES

# tiles of columns whose pull is summed in the tile's dtype before it goes into float64
_CHUNK = tl.constexpr(16)


@triton.jit
def _tile(N, M, HALF: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr):
    """This program's batch, first row and first column, int64, since N times M may pass 2^31; and its tile's number.

    HALF: BN is BM, and columns are from rows on. The k-th row of tiles and the k-th last one have one tile more
    than a row between them; the middle one has half of it to itself, and the rest of it twice.
    """
    tiles_n, tiles_m = tl.cdiv(N, BN), tl.cdiv(M, BM)
    across = tiles_m
    if HALF:
        tiles_n, across = tl.cdiv(tiles_n, 2), tiles_m + 1
    pid = tl.program_id(0).to(tl.int64)
    tile = pid % (tiles_n * across)
    i, j = tile // across, tile % across
    if HALF:
        last = j >= tiles_m - i
        j = tl.where(last, j - 1, j + i)
        i = tl.where(last, tiles_m - 1 - i, i)
    return pid // (tiles_n * across), i * BN, j * BM, tile


@triton.jit
def _entries(b, i0, j0, rows, cols, N, M):
    """Where a tile's entries are in (B, N, M)."""
    return (b * N + i0 + rows.at)[:, None] * M + (j0 + cols.at)[None, :]


@triton.jit
def _sets(points, N, M):
    return (
        Set(points.x, points.x_columns, points.x_pieces, points.x_norms, points.x, N),
        Set(points.y, points.y_columns, points.y_pieces, points.y_norms, points.y, M),
    )


@triton.jit(do_not_specialize=SIZES)
def _rbf_kernel(
    g_ptr, out_ptr, moments_ptr, points, bandwidths, N, M, D, S, table_stride, moments_stride,
    SAME: tl.constexpr, HALF: tl.constexpr, DIMS: tl.constexpr, TABLE: tl.constexpr, VARIANT: tl.constexpr,
):  # fmt: skip
    """K, or if there is g, W; and if there are moments, the sums of g_ij k_sij and g_ij k_sij |x_i - y_j|^2."""
    BN: tl.constexpr = VARIANT.BN
    BM: tl.constexpr = VARIANT.BM
    b, i0, j0, place = _tile(N, M, HALF, BN, BM)
    row = row_of_table(bandwidths, b, tl.program_id(0), S, table_stride, TABLE)
    p, q = _sets(points, N, M)
    frame = frame_of(points, row, b, S, TABLE, VARIANT)
    rows, cols = side_of(p, b, i0, D, 0, BN, VARIANT), side_of(q, b, j0, D, 0, BM, VARIANT)
    of_rows, of_cols = pieces_of(rows, VARIANT), pieces_of(cols, VARIANT)
    far = is_far(of_rows, of_cols.lead, frame, VARIANT)
    if DIMS > 0:
        p, q = coordinates_of(rows, DIMS, VARIANT.ACC), coordinates_of(cols, DIMS, VARIANT.ACC)
        d2 = squared_length(differences(p, q, frame.per_unit, DIMS, VARIANT.SCALED), DIMS)
    else:
        d2 = squared_distances(rows, cols, of_rows, of_cols, far, frame, D, 1, VARIANT)
    if SAME and VARIANT.DOT > 0:
        d2 = tl.where(rows.at[:, None] - cols.at[None, :] == j0 - i0, 0.0, d2)
        if HALF and i0 == j0:
            # the products of unlike pieces are added in another order below the diagonal
            d2 = tl.where(rows.at[:, None] <= cols.at[None, :], d2, tl.trans(d2))
    inside = rows.inside[:, None] & cols.inside[None, :]
    total = zeros(BN, BM, VARIANT.ACC)
    if g_ptr is not None:
        g = tl.load(g_ptr + _entries(b, i0, j0, rows, cols, N, M), mask=inside, other=0.0).to(VARIANT.ACC)
    k = total
    for s in range(1 if TABLE.SP == 1 else S):
        k, _ = next_kernel(k, k, d2, row, s, steps_of(row, s), frame.square, TABLE.SP > 1, False, VARIANT.ACC)
        if g_ptr is not None:
            total = tl.fma(k, tl.load(row.weights_over_sigma2 + s), total)
        else:
            total = tl.fma(k, tl.load(row.weights + s), total)
        if moments_ptr is not None:
            own = moments_ptr + (b * moments_stride + place) * 2 * S + tl.load(row.places + s).to(tl.int32)
            gk = g * k
            # an infinite distance has a kernel of 0 and no say in the moments
            gkd2 = tl.where(gk == 0.0, 0.0, gk * d2)
            # one number, as a tensor: a scalar cannot be stored behind Blackwell's products
            one = tl.arange(0, 1)
            tl.store(own + one, tl.sum(tl.sum(gk, 1).to(tl.float64)[:, None], 0))
            tl.store(own + S + one, tl.sum(tl.sum(gkd2, 1).to(tl.float64)[:, None], 0) * frame.square)
    if g_ptr is not None:
        total *= g
    # computed late: int64 places of a tile take more registers than its numbers
    tl.store(out_ptr + _entries(b, i0, j0, rows, cols, N, M), cast(total, out_ptr), mask=inside)
    if HALF and i0 != j0:
        tl.store(
            out_ptr + _entries(b, j0, i0, cols, rows, M, N), cast(tl.trans(total), out_ptr), mask=tl.trans(inside)
        )


@triton.jit(do_not_specialize=SIZES)
def _pull_kernel(
    w_ptr, points, moments_ptr, gradients, table_ptr, BLOCKS, N, M, D, S, B, table_stride, TILES,
    BOTH: tl.constexpr, TABLE: tl.constexpr, VARIANT: tl.constexpr,
):  # fmt: skip
    """The gradients one after another, each in as many blocks as it has."""
    pid = tl.program_id(0).to(tl.int64)
    b, block = pid // BLOCKS, pid % BLOCKS
    row = row_at(table_ptr + b * table_stride, S)
    if moments_ptr is not None:
        # a single block, and first, since it takes long where there are many tiles
        if block == 0:
            reduce_moments(moments_ptr, moments_ptr, row, gradients, b, 1, B, S, TILES, TILES, 1, TABLE.SP)
        block -= 1
    p, q = _sets(points, N, M)
    frame = frame_of(points, row, b, S, TABLE, VARIANT)
    unit = tl.load(row.unit)
    factor = unit * (unit / frame.per_unit)
    w_ptr += b * N * M
    if gradients.dx is not None:
        blocks = tl.cdiv(N, VARIANT.BN) * tl.cdiv(D, VARIANT.BD)
        if (block >= 0) & (block < blocks):
            _pull(w_ptr, p, q, gradients.dx, block, b, frame, factor, D, M, True, BOTH, VARIANT)
        block -= blocks
    if gradients.dy is not None and block >= 0:
        _pull(w_ptr, q, p, gradients.dy, block, b, frame, factor, D, M, False, True, VARIANT)


@triton.jit
def _pull(
    w_ptr, p, q, out_ptr, block, b, frame, factor, D, length,
    BY_ROWS: tl.constexpr, BY_COLUMNS: tl.constexpr, VARIANT: tl.constexpr,
):  # fmt: skip
    """sum_j W_ij (q_j - p_i), BN rows and BD coordinates, times the factor.

    By rows of W, of that length, which belong to x; by its columns, if these do; x with itself is pulled by both.
    """
    BN: tl.constexpr = VARIANT.BN
    BM: tl.constexpr = VARIANT.BM
    BD: tl.constexpr = VARIANT.BD
    PRODUCTS: tl.constexpr = VARIANT.DOT > 0
    # some coordinates of a point at a time
    STREAMED: tl.constexpr = PRODUCTS and VARIANT.DP > BD
    blocks_d = tl.cdiv(D, BD)
    i0, d0 = block // blocks_d * BN, block % blocks_d * BD
    rows = side_of(p, b, i0, D, 0, BN, VARIANT)
    of_rows = pieces_of(rows, VARIANT)
    i, coordinates = (i0 + rows.at)[:, None], d0 + tl.arange(0, BD)
    # products are summed in float32, differences in the tile's dtype within a chunk and in float64 beyond
    total, w_sum = tl.zeros([BN, BD], tl.float32 if PRODUCTS else tl.float64), tl.zeros([BN], tl.float64)
    first_far, after_far, start, stop = q.size, 0, 0, q.size
    for TURN in tl.static_range(2 if PRODUCTS else 1):
        if TURN == 1:
            start, stop = first_far, after_far
        for j0 in range(start, stop, _CHUNK * BM):
            chunk = zeros(VARIANT.BN, VARIANT.BD, VARIANT.ACC)
            for j1 in range(j0, tl.minimum(j0 + _CHUNK * BM, stop), BM):
                cols, of_cols, far, first_far, after_far = columns_of_turn(
                    q, b, j1, j1, start, first_far, after_far, of_rows, frame, D, 0, TURN, BM, VARIANT
                )
                inside = rows.inside[:, None] & cols.inside[None, :]
                w = zeros(BN, BM, VARIANT.ACC)
                if BY_ROWS:
                    w += tl.load(w_ptr + i * length + j1 + cols.at[None, :], mask=inside, other=0.0)
                if BY_COLUMNS:
                    j = tl.cast(j1, tl.int64) + cols.at
                    w += tl.load(w_ptr + i + j[None, :] * length, mask=inside, other=0.0)
                if PRODUCTS:
                    high, middle = of_cols.high, of_cols.middle
                    if STREAMED:
                        high, middle, _ = pieces_at(cols, coordinates, VARIANT)
                    total, w_sum = pull_of_tile(
                        total, w_sum, w, high, middle, far, rows, cols, d0, frame, D, TURN, VARIANT
                    )  # fmt: skip
                else:
                    chunk = pull_by_differences(chunk, w, rows, cols, d0, frame.per_unit, D, VARIANT)
            if not PRODUCTS:
                total += chunk
    if PRODUCTS:
        total = less_own_points(total, w_sum, rows, coordinates, VARIANT)
    inside = rows.inside[:, None] & (coordinates < D)[None, :]
    out = out_ptr + (b * p.size + i0 + rows.at)[:, None] * D + coordinates[None, :]
    tl.store(out, cast(total * factor.to(total.dtype), out_ptr), mask=inside)


def _matrix(name, split, out, *, g=None, moments=None, same=False):
    """K, or from g W with its moments, into out."""
    table, (batch, n, dims), m = split.table, split.points.x.shape, split.points.y.shape[1]
    found, half = split.tile(name), same and g is None
    tiles = _tiles(found, n, m)
    if half:
        across = triton.cdiv(n, found.bn)
        tiles = triton.cdiv(across, 2) * (across + 1)
    own = table.own(tiles)
    launch(_rbf_kernel, (batch * tiles,),
        g, out, moments, split.points, table.arguments(),
        n, m, dims, table.count, table.stride, 0 if moments is None else moments.shape[1],
        SAME=same, HALF=half, DIMS=dims if dims <= 4 else 0, TABLE=table.constants(own),
        VARIANT=split.variant(found), **found.options,
    )  # fmt: skip


def _tiles(of, n, m):
    return triton.cdiv(n, of.bn) * triton.cdiv(m, of.bm)


def rbf(x, y, sigma, weights, *, out=None, precision="highest"):
    """K, (B, N, M). See gkfast.rbf."""
    other = x if y is None else y
    if out is None:
        out = x.new_empty(*x.shape[:2], other.shape[1])
    if out.numel():
        # two squarings at most: stored values are bound one by one
        split = Split(Table(sigma, weights, x, squares=2), x, other, precision)
        # half of a symmetric matrix is made of square tiles; several bandwidths leave no registers for larger ones
        square = y is None or (split.dot > 0 and split.table.count > 1)
        _matrix("square matrix" if square else "matrix", split, out, same=y is None)
    return out


def rbf_backward(g, x, y, sigma, weights, *, wants, precision="highest"):
    """Gradients of sum_ij g_ij K_ij to (x, y, sigma, weights); those not wanted are None. y None: x is both."""
    want_x, want_y, want_sigma, want_weights = wants
    want_moments = want_sigma or want_weights
    other = x if y is None else y
    (batch, n, dims), m = x.shape, other.shape[1]
    table = Table(sigma, weights, x)
    split = Split(table, x, other, precision)
    w = x.new_empty(batch, n, m, dtype=accumulator(x))
    tiles = _tiles(split.tile("weight"), n, m)
    moments = dsigma = dweights = None
    if want_moments:
        moments = x.new_empty(batch, tiles, 2, table.count, dtype=torch.float64)
        dsigma, dweights = (x.new_empty(batch, table.count, dtype=torch.float64) for _ in range(2))
    if w.numel():
        _matrix("weight", split, w, g=g, moments=moments, same=y is None)
    else:
        table.fill()
    dx = torch.empty_like(x) if want_x else None
    dy = torch.empty_like(other) if want_y else None
    # x with itself is pulled by rows and columns of W at once
    found = split.tile("pull of both" if split.dot and y is None else "pull")
    if split.dot:
        found = found._replace(bd=min(found.bd, split.dp))
    of_rows = sum(triton.cdiv(d.shape[1], found.bn) for d in (dx, dy) if d is not None)
    blocks = want_moments + of_rows * triton.cdiv(dims, found.bd)
    if batch * blocks:
        launch(_pull_kernel, (batch * blocks,),
            w, split.points, moments, Reduced(dx=dx, dy=dy, dsigma=dsigma, dweights=dweights), table.rows,
            blocks, n, m, dims, table.count, batch, table.stride, tiles,
            BOTH=y is None, TABLE=table.constants(), VARIANT=split.variant(found), **found.options,
        )  # fmt: skip
    return dx, dy, dsigma if want_sigma else None, dweights if want_weights else None
