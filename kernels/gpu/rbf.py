"""The kernel matrix and its gradients.

Distances are sums of squared differences, as on the CPU, right for every input; also products on tensor cores, where
these are accurate (bf16_pieces.py). Differences are scaled by a power of two taken from sigma, which is exact, so
that squares stay in range where the kernel is neither 0 nor 1.

The gradients take two launches: the tile that makes K makes W_ij = g_ij sum_s w_s / sigma_s^2 k_sij, as large as g,
and the partial sums for sigma and weights; then x and y are pulled by the rows and the columns of W, beside a program
that adds the sums. A sweep that does not store W would compute each distance again for every block of coordinates.
Every output has one owner, so nothing is added by atomics and results repeat bit for bit.
"""

import math

import torch
import triton
import triton.language as tl

from .bandwidths import NUMBERS, Table, accumulator, row_of_table, triton_dtype
from .bf16_pieces import Split, forms, other_form, weighted_points, worth_splitting
from .distances import cast, distances_by_products, next_kernel, squared_distances
from .reduce import finish_moments
from .tiles import tile

_SIZES = ["N", "M", "D", "S", "table_stride", "moments_stride", "sigma_stride", "weights_stride", *NUMBERS]
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
def _places(b, i0, j0, rows, cols, N, M):
    """Of a tile's entries in (B, N, M)."""
    return (b * N + i0 + rows)[:, None] * M + (j0 + cols)[None, :]


@triton.jit(do_not_specialize=_SIZES)
def _rbf_kernel(
    g_ptr, x_ptr, y_ptr, out_ptr, moments_ptr, table_ptr, x_pieces_ptr, y_pieces_ptr, x_norms_ptr, y_norms_ptr,
    limit_ptr, sigma_ptr, weights_ptr, N, M, D, S, table_stride, moments_stride, sigma_stride, weights_stride,
    s0: tl.int64, s1: tl.int64, s2: tl.int64, s3: tl.int64, s4: tl.int64, s5: tl.int64, s6: tl.int64, s7: tl.int64,
    w0: tl.int64, w1: tl.int64, w2: tl.int64, w3: tl.int64, w4: tl.int64, w5: tl.int64, w6: tl.int64, w7: tl.int64,
    OWN_TABLE: tl.constexpr, HOST: tl.constexpr, SP: tl.constexpr, MODERATE: tl.constexpr, SQUARES: tl.constexpr,
    WEIGHT: tl.constexpr, MOMENTS: tl.constexpr, ONE_BANDWIDTH: tl.constexpr, SAME: tl.constexpr,
    DOT: tl.constexpr, LIMIT: tl.constexpr, SCALED: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr, DP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """K, or with WEIGHT W, and with MOMENTS the sums of g_ij k_sij and of g_ij k_sij |x_i - y_j|^2 over the tile."""
    if other_form(limit_ptr, DOT, LIMIT):
        return
    b, i0, j0 = _tile(N, M, BN, BM)
    table_ptr = row_of_table(
        table_ptr, b, tl.program_id(0), table_stride, sigma_ptr, weights_ptr, S, sigma_stride, weights_stride,
        s0, s1, s2, s3, s4, s5, s6, s7, w0, w1, w2, w3, w4, w5, w6, w7, OWN_TABLE, HOST, SP, MODERATE, SQUARES,
    )  # fmt: skip
    rows, cols = tl.arange(0, BN), tl.arange(0, BM)
    row_in, col_in = rows < N - i0, cols < M - j0
    if DOT > 0:
        ROW: tl.constexpr = (DOT + 3) // 3 * DP
        x_squares = tl.load(x_norms_ptr + b * N + i0 + rows, mask=row_in, other=0.0)
        y_squares = tl.load(y_norms_ptr + b * M + j0 + cols, mask=col_in, other=0.0)
        first, second = x_pieces_ptr + (b * N + i0) * ROW, y_pieces_ptr + (b * M + j0) * ROW
        d2 = distances_by_products(
            first, second, x_squares, y_squares, rows, cols, row_in, col_in, DP, BN, BM, BK, DOT, True
        )
        if SAME:
            d2 = tl.where(rows[:, None] - cols[None, :] == j0 - i0, 0.0, d2)
    else:
        first, second = x_ptr + (b * N + i0) * D, y_ptr + (b * M + j0) * D
        unit = tl.load(table_ptr)
        d2 = squared_distances(first, second, rows, cols, row_in, col_in, unit, D, BN, BM, BD, SCALED, ACC)
    inside = row_in[:, None] & col_in[None, :]
    total = tl.zeros([BN, BM], ACC)
    if WEIGHT:
        g = tl.load(g_ptr + _places(b, i0, j0, rows, cols, N, M), mask=inside, other=0.0).to(ACC)
        own_tile = tl.program_id(0) % (tl.cdiv(N, BN) * tl.cdiv(M, BM))
        moments_ptr += (b * moments_stride + own_tile) * 2 * S
    k = total
    for s in range(1 if ONE_BANDWIDTH else S):
        k, _ = next_kernel(k, k, d2, table_ptr, s, S, not ONE_BANDWIDTH, False, ACC)
        if WEIGHT:
            total = tl.fma(k, tl.load(table_ptr + 1 + 2 * S + s), total)
        else:
            total = tl.fma(k, tl.load(table_ptr + 1 + S + s), total)
        if MOMENTS:
            own = tl.load(table_ptr + 1 + 4 * S + s).to(tl.int32)
            gk = g * k
            # an infinite distance has a kernel of 0 and no say in the moments
            spread = tl.where(gk == 0.0, 0.0, gk * d2)
            # one number, as a tensor: a scalar cannot be stored behind Blackwell's products
            one = tl.arange(0, 1)
            tl.store(moments_ptr + own + one, tl.sum(tl.sum(gk, 1).to(tl.float64)[:, None], 0))
            tl.store(moments_ptr + S + own + one, tl.sum(tl.sum(spread, 1).to(tl.float64)[:, None], 0))
    if WEIGHT:
        total *= g
    # not before they are wanted: int64 places of a tile take more registers than its numbers
    tl.store(out_ptr + _places(b, i0, j0, rows, cols, N, M), cast(total, out_ptr), mask=inside)


@triton.jit(do_not_specialize=["blocks", "N", "M", "D", "S", "B", "table_stride", "tiles", "moments_stride"])
def _pull_kernel(
    w_ptr, x_ptr, y_ptr, dx_ptr, dy_ptr, moments_ptr, dsigma_ptr, dweights_ptr, table_ptr, x_pieces_ptr, y_pieces_ptr,
    limit_ptr, blocks, N, M, D, S, B, table_stride, tiles, moments_stride,
    DX: tl.constexpr, DY: tl.constexpr, BOTH: tl.constexpr, MOMENTS: tl.constexpr,
    DOT: tl.constexpr, LIMIT: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, DP: tl.constexpr, SP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradients one after another, each in as many blocks as it has."""
    if other_form(limit_ptr, DOT, LIMIT):
        return
    pid = tl.program_id(0).to(tl.int64)
    b, block = pid // blocks, pid % blocks
    table_ptr += b * table_stride
    if MOMENTS:
        # a single block, and first, since it takes long where there are many tiles
        if block == 0:
            finish_moments(
                moments_ptr, moments_ptr, table_ptr, dsigma_ptr, dweights_ptr,
                b, 1, B, S, tiles, moments_stride, 1, SP,
            )  # fmt: skip
        block -= 1
    unit = tl.load(table_ptr)
    w_ptr += b * N * M
    if DX:
        x_blocks = tl.cdiv(N, BN) * tl.cdiv(D, BD)
        if (block >= 0) & (block < x_blocks):
            _pull(
                w_ptr, x_ptr, y_ptr, dx_ptr, x_pieces_ptr, y_pieces_ptr, block, b, unit, N, M, D, M,
                True, BOTH, DOT, BN, BM, BD, DP, ACC,
            )  # fmt: skip
        block -= x_blocks
    if DY and block >= 0:
        _pull(
            w_ptr, y_ptr, x_ptr, dy_ptr, y_pieces_ptr, x_pieces_ptr, block, b, unit, M, N, D, M,
            False, True, DOT, BN, BM, BD, DP, ACC,
        )  # fmt: skip


@triton.jit
def _pull(
    w_ptr, x_ptr, y_ptr, dx_ptr, x_pieces_ptr, y_pieces_ptr, block, b, unit, N, M, D, length,
    BY_ROWS: tl.constexpr, BY_COLUMNS: tl.constexpr, DOT: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, DP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dx_i = sum_j W_ij (y_j - x_i), BN rows and BD coordinates.

    By rows of W, of that length, which belong to x; by its columns, if these do; x with itself is pulled by both.
    """
    blocks_d = tl.cdiv(D, BD)
    i0, d0 = block // blocks_d * BN, block % blocks_d * BD
    rows, coordinates = tl.arange(0, BN), d0 + tl.arange(0, BD)
    row_in, i = rows < N - i0, (i0 + rows)[:, None]
    ROW: tl.constexpr = (DOT + 3) // 3 * DP
    total, weight = tl.zeros([BN, BD], tl.float64), tl.zeros([BN], tl.float64)
    for j0 in range(0, M, _CHUNK * BM):
        chunk, weight_chunk = tl.zeros([BN, BD], ACC), tl.zeros([BN], ACC)
        for j1 in range(j0, tl.minimum(j0 + _CHUNK * BM, M), BM):
            cols = tl.arange(0, BM)
            col_in = cols < M - j1
            inside = row_in[:, None] & col_in[None, :]
            w = tl.zeros([BN, BM], ACC)
            if BY_ROWS:
                w += tl.load(w_ptr + i * length + j1 + cols[None, :], mask=inside, other=0.0)
            if BY_COLUMNS:
                j = tl.cast(j1, tl.int64) + cols
                w += tl.load(w_ptr + i + j[None, :] * length, mask=inside, other=0.0)
            if DOT > 0:
                y_tile = y_pieces_ptr + (b * M + j1) * ROW
                chunk = weighted_points(w, y_tile, cols, col_in, coordinates, chunk, DP, DOT)
                weight_chunk += tl.sum(w, 1)
            else:
                x_tile, y_tile = x_ptr + (b * N + i0) * D + d0, y_ptr + (b * M + j1) * D + d0
                chunk = _pulled(chunk, w, x_tile, y_tile, rows, cols, row_in, col_in, unit, D - d0, D, BD, ACC)
        total += chunk
        weight += weight_chunk
    inside = row_in[:, None] & (coordinates < D)[None, :]
    if DOT > 0:
        # sum_j W_ij y_j less x_i sum_j W_ij
        there = x_pieces_ptr + (b * N + i0 + rows)[:, None] * ROW + coordinates[None, :]
        for k in tl.static_range((DOT + 3) // 3):
            total -= tl.load(there + k * DP, mask=inside, other=0.0).to(tl.float64) * weight[:, None]
    out = dx_ptr + (b * N + i0 + rows)[:, None] * D + coordinates[None, :]
    tl.store(out, cast(total * unit.to(tl.float64), dx_ptr), mask=inside)


@triton.jit
def _pulled(
    total, w, x_ptr, y_ptr, rows, cols, row_in, col_in, unit, left, D, BD: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """total + sum_j W_ij (y_j - x_i) in units, for the first BD of the coordinates that are left."""
    # a loop, not unrolled: each turn holds a reduction, and unrolled ones take long to compile
    for k in range(BD):
        x = tl.load(x_ptr + rows * D + k, mask=row_in & (k < left), other=0.0).to(ACC)
        y = tl.load(y_ptr + cols * D + k, mask=col_in & (k < left), other=0.0).to(ACC)
        e = (y[None, :] - x[:, None]) * unit
        # a kernel of 0 pulls nothing, from infinitely far either
        pull = tl.sum(tl.where(w == 0.0, 0.0, w * e), 1)
        total += tl.where(tl.arange(0, BD)[None, :] == k, pull[:, None], 0.0)
    return total


def _matrix(name, table, split, x, y, out, g=None, moments=None, same=False):
    """K, or from g W with its moments, into out."""
    (batch, n, dims), m = x.shape, y.shape[1]
    own = table.own(_tiles(tile(name, dims, table.dtype, x.device), n, m))
    for products, limit, operands in forms(split, table.rows):
        found = tile(name, dims, table.dtype, x.device, products)
        with torch.cuda.device_of(x):
            _rbf_kernel[(batch * _tiles(found, n, m),)](
                *(table.rows if t is None else t for t in (g, x, y, out, moments)), table.rows, *operands,
                *table.pointers,
                n, m, dims, table.count, table.stride, 0 if moments is None else moments.shape[1], *table.numbers,
                OWN_TABLE=own, **table.constants,
                WEIGHT=g is not None, MOMENTS=moments is not None, ONE_BANDWIDTH=table.count == 1, SAME=same,
                DOT=products, LIMIT=limit, SCALED=table.scaled, BN=found.bn, BM=found.bm, BD=found.bd,
                BK=math.gcd(split.dims, found.bk) if products else 0, DP=split.dims if products else 0,
                ACC=triton_dtype(table.dtype), **found.options,
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
        split = Split(table, x, other, precision) if worth_splitting(x, other) else None
        _matrix("matrix", table, split, x, other, out, same=y is None)
    return out


def rbf_backward(g, x, y, sigma, weights, *, wants, precision="highest"):
    """Gradients of sum_ij g_ij K_ij to (x, y, sigma, weights); those not wanted are None. y None: x is both."""
    want_x, want_y, want_sigma, want_weights = wants
    want_moments = want_sigma or want_weights
    other = x if y is None else y
    (batch, n, dims), m = x.shape, other.shape[1]
    table = Table(sigma, weights, x)
    split = Split(table, x, other, precision) if batch * n * m and worth_splitting(x, other) else None
    w = x.new_empty(batch, n, m, dtype=accumulator(x))
    # of the form that runs
    weigh = {products: tile("weight", dims, table.dtype, x.device, products) for products, *_ in forms(split, None)}
    moments = dsigma = dweights = None
    if want_moments:
        most = max(_tiles(found, n, m) for found in weigh.values())
        moments = x.new_empty(batch, most, 2, table.count, dtype=torch.float64)
        dsigma, dweights = (x.new_empty(batch, table.count, dtype=torch.float64) for _ in range(2))
    if w.numel():
        _matrix("weight", table, split, x, other, w, g, moments, same=y is None)
    else:
        table.fill()
    dx = torch.empty_like(x) if want_x else None
    dy = torch.empty_like(other) if want_y else None
    for products, limit, operands in forms(split, table.rows):
        # x with itself is pulled by rows and columns of W at once
        name = "pull of both" if products and y is None else "pull"
        found = tile(name, dims, table.dtype, x.device, products)
        of_rows = sum(triton.cdiv(d.shape[1], found.bn) for d in (dx, dy) if d is not None)
        blocks = want_moments + of_rows * triton.cdiv(dims, found.bd)
        if not batch * blocks:
            continue
        outputs = (table.rows if t is None else t for t in (dx, dy, moments, dsigma, dweights))
        with torch.cuda.device_of(x):
            _pull_kernel[(batch * blocks,)](
                w, x, other, *outputs, table.rows, operands[0], operands[1], operands[4],
                blocks, n, m, dims, table.count, batch, table.stride, _tiles(weigh[products], n, m),
                moments.shape[1] if want_moments else 0,
                DX=want_x, DY=want_y, BOTH=y is None, MOMENTS=want_moments, DOT=products, LIMIT=limit,
                BN=found.bn, BM=found.bm, BD=found.bd, DP=split.dims if products else 0, SP=table.constants["SP"],
                ACC=triton_dtype(table.dtype), **found.options,
            )  # fmt: skip
    return dx, dy, dsigma if want_sigma else None, dweights if want_weights else None
