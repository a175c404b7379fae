"""The kernel matrix and its gradients.

Distances are sums of squared differences, as on the CPU, right for every input; also products on tensor cores, where
these are accurate (bf16_pieces.py). Differences are scaled by a power of two taken from sigma, which is exact, so
that squares stay in range where the kernel is neither 0 nor 1.

The gradients take two launches: the tile that makes K makes W_ij = g_ij sum_s w_s / sigma_s^2 k_sij, as large as g,
and the partial sums for sigma and weights; then x and y are pulled by the rows and the columns of W, beside a program
that adds the sums. A sweep that does not store W would compute each distance again for every block of coordinates.
Every output has one owner, so nothing is added by atomics and results repeat bit for bit.
"""

from functools import partial

import torch
import triton
import triton.language as tl

from .bandwidths import Table, accumulator, row_at, row_of_table
from .bf16_pieces import Pieces, is_other_variant, less_own_points, use_tensor_cores, variants, weighted_points, zeros
from .distances import cast, next_kernel, norms_of, point_length, pulled_by_differences, side_of, squared_distances
from .launch import launch
from .reduce import Reduced, reduce_moments
from .tiles import SIZES, tile

# tiles of columns whose pull is summed in the tile's dtype before it goes into float64
_CHUNK = tl.constexpr(16)


@triton.jit
def _tile(N, M, BN: tl.constexpr, BM: tl.constexpr):
    """This program's batch, first row and first column, int64, since N times M may pass 2^31."""
    tiles_n, tiles_m = tl.cdiv(N, BN), tl.cdiv(M, BM)
    pid = tl.program_id(0).to(tl.int64)
    tile = pid % (tiles_n * tiles_m)
    return pid // (tiles_n * tiles_m), (tile // tiles_m) * BN, (tile % tiles_m) * BM


@triton.jit
def _entries(b, i0, j0, rows, cols, N, M):
    """Where a tile's entries are in (B, N, M)."""
    return (b * N + i0 + rows.at)[:, None] * M + (j0 + cols.at)[None, :]


@triton.jit(do_not_specialize=SIZES)
def _rbf_kernel(
    g_ptr, out_ptr, moments_ptr, points, bandwidths, N, M, D, S, table_stride, moments_stride,
    SAME: tl.constexpr, TABLE: tl.constexpr, VARIANT: tl.constexpr,
):  # fmt: skip
    """K, or if there is g, W; and if there are moments, the sums of g_ij k_sij and g_ij k_sij |x_i - y_j|^2."""
    if is_other_variant(points.greatest, VARIANT):
        return
    BN: tl.constexpr = VARIANT.BN
    BM: tl.constexpr = VARIANT.BM
    b, i0, j0 = _tile(N, M, BN, BM)
    row = row_of_table(bandwidths, b, tl.program_id(0), S, table_stride, TABLE)
    length = point_length(D, VARIANT)
    rows = side_of(points.x, points.x_norms, points.x, b * N + i0, N - i0, length, 0, BN)
    cols = side_of(points.y, points.y_norms, points.y, b * M + j0, M - j0, length, 0, BM)
    d2 = squared_distances(rows, cols, norms_of(rows, VARIANT), tl.load(row.unit), D, VARIANT, True)
    if SAME and VARIANT.DOT > 0:
        d2 = tl.where(rows.at[:, None] - cols.at[None, :] == j0 - i0, 0.0, d2)
    inside = rows.inside[:, None] & cols.inside[None, :]
    total = zeros(BN, BM, VARIANT.ACC)
    if g_ptr is not None:
        g = tl.load(g_ptr + _entries(b, i0, j0, rows, cols, N, M), mask=inside, other=0.0).to(VARIANT.ACC)
    k = total
    for s in range(1 if TABLE.SP == 1 else S):
        k, _ = next_kernel(k, k, d2, row, s, TABLE.SP > 1, False, VARIANT.ACC)
        if g_ptr is not None:
            total = tl.fma(k, tl.load(row.weights_over_sigma2 + s), total)
        else:
            total = tl.fma(k, tl.load(row.weights + s), total)
        if moments_ptr is not None:
            own_tile = tl.program_id(0) % (tl.cdiv(N, BN) * tl.cdiv(M, BM))
            own = moments_ptr + (b * moments_stride + own_tile) * 2 * S + tl.load(row.places + s).to(tl.int32)
            gk = g * k
            # an infinite distance has a kernel of 0 and no say in the moments
            gkd2 = tl.where(gk == 0.0, 0.0, gk * d2)
            # one number, as a tensor: a scalar cannot be stored behind Blackwell's products
            one = tl.arange(0, 1)
            tl.store(own + one, tl.sum(tl.sum(gk, 1).to(tl.float64)[:, None], 0))
            tl.store(own + S + one, tl.sum(tl.sum(gkd2, 1).to(tl.float64)[:, None], 0))
    if g_ptr is not None:
        total *= g
    # computed late: int64 places of a tile take more registers than its numbers
    tl.store(out_ptr + _entries(b, i0, j0, rows, cols, N, M), cast(total, out_ptr), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def _pull_kernel(
    w_ptr, points, moments_ptr, gradients, table_ptr, BLOCKS, N, M, D, S, B, table_stride, TILES, moments_stride,
    BOTH: tl.constexpr, SP: tl.constexpr, VARIANT: tl.constexpr,
):  # fmt: skip
    """The gradients one after another, each in as many blocks as it has."""
    if is_other_variant(points.greatest, VARIANT):
        return
    pid = tl.program_id(0).to(tl.int64)
    b, block = pid // BLOCKS, pid % BLOCKS
    row = row_at(table_ptr + b * table_stride, S)
    if moments_ptr is not None:
        # a single block, and first, since it takes long where there are many tiles
        if block == 0:
            reduce_moments(moments_ptr, moments_ptr, row, gradients, b, 1, B, S, TILES, moments_stride, 1, SP)
        block -= 1
    unit = tl.load(row.unit)
    w_ptr += b * N * M
    if gradients.dx is not None:
        blocks = tl.cdiv(N, VARIANT.BN) * tl.cdiv(D, VARIANT.BD)
        if (block >= 0) & (block < blocks):
            _pull(w_ptr, points.x, points.y, gradients.dx, block, b, unit, N, M, D, M, True, BOTH, VARIANT)
        block -= blocks
    if gradients.dy is not None and block >= 0:
        _pull(w_ptr, points.y, points.x, gradients.dy, block, b, unit, M, N, D, M, False, True, VARIANT)


@triton.jit
def _pull(
    w_ptr, x_ptr, y_ptr, dx_ptr, block, b, unit, N, M, D, length,
    BY_ROWS: tl.constexpr, BY_COLUMNS: tl.constexpr, VARIANT: tl.constexpr,
):  # fmt: skip
    """dx_i = sum_j W_ij (y_j - x_i), BN rows and BD coordinates.

    By rows of W, of that length, which belong to x; by its columns, if these do; x with itself is pulled by both.
    """
    BN: tl.constexpr = VARIANT.BN
    BM: tl.constexpr = VARIANT.BM
    BD: tl.constexpr = VARIANT.BD
    blocks_d = tl.cdiv(D, BD)
    i0, d0 = block // blocks_d * BN, block % blocks_d * BD
    point = point_length(D, VARIANT)
    rows = side_of(x_ptr, x_ptr, x_ptr, b * N + i0, N - i0, point, 0, BN)
    i, coordinates = (i0 + rows.at)[:, None], d0 + tl.arange(0, BD)
    total, w_sum = tl.zeros([BN, BD], tl.float64), tl.zeros([BN], tl.float64)
    for j0 in range(0, M, _CHUNK * BM):
        chunk, w_chunk = tl.zeros([BN, BD], VARIANT.ACC), tl.zeros([BN], VARIANT.ACC)
        for j1 in range(j0, tl.minimum(j0 + _CHUNK * BM, M), BM):
            cols = side_of(y_ptr, y_ptr, y_ptr, b * M + j1, M - j1, point, 0, BM)
            inside = rows.inside[:, None] & cols.inside[None, :]
            w = zeros(BN, BM, VARIANT.ACC)
            if BY_ROWS:
                w += tl.load(w_ptr + i * length + j1 + cols.at[None, :], mask=inside, other=0.0)
            if BY_COLUMNS:
                j = tl.cast(j1, tl.int64) + cols.at
                w += tl.load(w_ptr + i + j[None, :] * length, mask=inside, other=0.0)
            if VARIANT.DOT > 0:
                chunk = weighted_points(w, cols.points, cols, coordinates, chunk, VARIANT.DP, VARIANT.DOT)
                w_chunk += tl.sum(w, 1)
            else:
                chunk = pulled_by_differences(chunk, w, rows, cols, d0, unit, D, VARIANT)
        total += chunk
        w_sum += w_chunk
    inside = rows.inside[:, None] & (coordinates < D)[None, :]
    if VARIANT.DOT > 0:
        total = less_own_points(total, rows.points, rows, coordinates, inside, w_sum, VARIANT.DP, VARIANT.DOT)
    out = dx_ptr + (b * N + i0 + rows.at)[:, None] * D + coordinates[None, :]
    tl.store(out, cast(total * unit.to(tl.float64), dx_ptr), mask=inside)


def _matrix(name, table, pieces, x, y, out, *, g=None, moments=None, same=False):
    """K, or from g W with its moments, into out."""
    (batch, n, dims), m = x.shape, y.shape[1]
    tile_of = partial(tile, name, dims, table.dtype, x.device)
    own = table.own(_tiles(tile_of(), n, m))
    for found, points, variant in variants(pieces, table, x, y, tile_of):
        launch(_rbf_kernel, (batch * _tiles(found, n, m),),
            g, out, moments, points, table.arguments(),
            n, m, dims, table.count, table.stride, 0 if moments is None else moments.shape[1],
            SAME=same, TABLE=table.constants(own), VARIANT=variant, **found.options,
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
        table = Table(sigma, weights, x, squares=2)
        pieces = Pieces(table, x, other, precision) if use_tensor_cores(x, other) else None
        _matrix("matrix", table, pieces, x, other, out, same=y is None)
    return out


def rbf_backward(g, x, y, sigma, weights, *, wants, precision="highest"):
    """Gradients of sum_ij g_ij K_ij to (x, y, sigma, weights); those not wanted are None. y None: x is both."""
    want_x, want_y, want_sigma, want_weights = wants
    want_moments = want_sigma or want_weights
    other = x if y is None else y
    (batch, n, dims), m = x.shape, other.shape[1]
    table = Table(sigma, weights, x)
    pieces = Pieces(table, x, other, precision) if batch * n * m and use_tensor_cores(x, other) else None
    w = x.new_empty(batch, n, m, dtype=accumulator(x))
    # tiles of W, by the products of the variant that makes them
    products = (0,) if pieces is None else (0, pieces.products)
    tiles = {p: _tiles(tile("weight", dims, table.dtype, x.device, p), n, m) for p in products}
    moments = dsigma = dweights = None
    if want_moments:
        moments = x.new_empty(batch, max(tiles.values()), 2, table.count, dtype=torch.float64)
        dsigma, dweights = (x.new_empty(batch, table.count, dtype=torch.float64) for _ in range(2))
    if w.numel():
        _matrix("weight", table, pieces, x, other, w, g=g, moments=moments, same=y is None)
    else:
        table.fill()
    dx = torch.empty_like(x) if want_x else None
    dy = torch.empty_like(other) if want_y else None
    gradients = Reduced(dx=dx, dy=dy, dsigma=dsigma, dweights=dweights)

    def tile_of(products):
        # x with itself is pulled by rows and columns of W at once
        name = "pull of both" if products and y is None else "pull"
        return tile(name, dims, table.dtype, x.device, products)

    for found, points, variant in variants(pieces, table, x, other, tile_of):
        of_rows = sum(triton.cdiv(d.shape[1], found.bn) for d in (dx, dy) if d is not None)
        blocks = want_moments + of_rows * triton.cdiv(dims, found.bd)
        if not batch * blocks:
            continue
        launch(_pull_kernel, (batch * blocks,),
            w, points, moments, gradients, table.rows,
            blocks, n, m, dims, table.count, batch, table.stride, tiles[variant.DOT],
            moments.shape[1] if want_moments else 0,
            BOTH=y is None, SP=table.sp, VARIANT=variant, **found.options,
        )  # fmt: skip
    return dx, dy, dsigma if want_sigma else None, dweights if want_weights else None
