"""The kernel matrix and its gradients.

Distances are sums of squared differences, as on the CPU, right for every input; also products on tensor cores, where
these are accurate (split.py). Differences are scaled by a power of two taken from sigma, which is exact, so that
squares stay in range where the kernel is neither 0 nor 1.

The gradients take three launches: the tile that makes K makes W_ij = g_ij sum_s w_s / sigma_s^2 k_sij, as large as g,
and the partial sums for sigma and weights; then x and y are pulled by the rows and the columns of W. A sweep that
does not store W would compute each distance again for every block of coordinates. Every output has one owner, so
nothing is added by atomics and results repeat bit for bit.
"""

import math

import torch
import triton
import triton.language as tl

from .distances import cast, distances_by_products, next_kernel, squared_distances
from .finish import finish
from .packed import Table, accumulator, triton_dtype
from .split import Split, exchanged, forms, other_form, weighted_points, worth_splitting
from .sweep import Swept
from .tiles import tile

_RUNTIME_SIZES = ["N", "M", "D", "S", "table_stride", "moments_stride"]
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


@triton.jit(do_not_specialize=_RUNTIME_SIZES)
def _rbf_kernel(
    g_ptr, x_ptr, y_ptr, out_ptr, moments_ptr, table_ptr, x_pieces_ptr, y_pieces_ptr, x_norms_ptr, y_norms_ptr,
    limit_ptr, N, M, D, S, table_stride, moments_stride,
    WEIGHT: tl.constexpr, MOMENTS: tl.constexpr, ONE_BANDWIDTH: tl.constexpr, SAME: tl.constexpr,
    DOT: tl.constexpr, LIMIT: tl.constexpr, SCALED: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr, DP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """K, or with WEIGHT W, and with MOMENTS the sums of g_ij k_sij and of g_ij k_sij |x_i - y_j|^2 over the tile."""
    if other_form(limit_ptr, DOT, LIMIT):
        return
    b, i0, j0 = _tile(N, M, BN, BM)
    table_ptr += b * table_stride
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


@triton.jit(do_not_specialize=_RUNTIME_SIZES)
def _pull_kernel(
    w_ptr, x_ptr, y_ptr, dx_ptr, table_ptr, x_pieces_ptr, y_pieces_ptr, limit_ptr,
    N, M, D, table_stride, row_stride, col_stride,
    BOTH: tl.constexpr, DOT: tl.constexpr, LIMIT: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, DP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dx_i = sum_j W_ij (y_j - x_i), BN rows and BD coordinates; W is read by strides, so that y pulls as x does."""
    if other_form(limit_ptr, DOT, LIMIT):
        return
    b, i0, d0 = _tile(N, D, BN, BD)
    rows, coordinates = tl.arange(0, BN), d0 + tl.arange(0, BD)
    row_in = rows < N - i0
    unit = tl.load(table_ptr + b * table_stride)
    first = w_ptr + b * N * M + (i0 + rows)[:, None] * row_stride
    second = w_ptr + b * N * M + (i0 + rows)[:, None] * col_stride
    ROW: tl.constexpr = (DOT + 3) // 3 * DP
    total, weight = tl.zeros([BN, BD], tl.float64), tl.zeros([BN], tl.float64)
    for j0 in range(0, M, _CHUNK * BM):
        chunk, weight_chunk = tl.zeros([BN, BD], ACC), tl.zeros([BN], ACC)
        for j1 in range(j0, tl.minimum(j0 + _CHUNK * BM, M), BM):
            cols = tl.arange(0, BM)
            col_in = cols < M - j1
            j = tl.cast(j1, tl.int64) + cols
            inside = row_in[:, None] & col_in[None, :]
            w = tl.load(first + j[None, :] * col_stride, mask=inside, other=0.0)
            if BOTH:
                w += tl.load(second + j[None, :] * row_stride, mask=inside, other=0.0)
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
    for products, limit, operands in forms(split, table.rows):
        found = tile(name, dims, table.dtype, x.device, products)
        with torch.cuda.device_of(x):
            _rbf_kernel[(batch * triton.cdiv(n, found.bn) * triton.cdiv(m, found.bm),)](
                *(table.rows if t is None else t for t in (g, x, y, out, moments)), table.rows, *operands,
                n, m, dims, table.count, table.stride, 0 if moments is None else moments.shape[2],
                WEIGHT=g is not None, MOMENTS=moments is not None, ONE_BANDWIDTH=table.count == 1, SAME=same,
                DOT=products, LIMIT=limit, SCALED=table.scaled, BN=found.bn, BM=found.bm, BD=found.bd,
                BK=math.gcd(split.dims, found.bk) if products else 0, DP=split.dims if products else 0,
                ACC=triton_dtype(table.dtype), **found.options,
            )  # fmt: skip


def rbf(x, y, sigma, weights, out=None, precision="highest"):
    """K, (B, N, M). See gkfast.rbf."""
    other = x if y is None else y
    if out is None:
        out = x.new_empty(*x.shape[:2], other.shape[1])
    if out.numel():
        # two squarings at most: stored values are bound one by one
        table = Table(sigma, weights, x, squares=2).fill()
        split = Split(table, x, other, precision) if worth_splitting(x, other) else None
        _matrix("matrix", table, split, x, other, out, same=y is None)
    return out


def rbf_backward(g, x, y, sigma, weights, wants, precision="highest"):
    """Gradients of sum_ij g_ij K_ij to (x, y, sigma, weights); those not wanted are None. y None: x is both."""
    want_x, want_y, want_sigma, want_weights = wants
    want_moments = want_sigma or want_weights
    other = x if y is None else y
    batch, n, dims = x.shape
    m = other.shape[1]
    table = Table(sigma, weights, x).fill()
    split = Split(table, x, other, precision) if batch * n * m and worth_splitting(x, other) else None
    w = x.new_empty(batch, n, m, dtype=accumulator(x))
    moments = None
    if want_moments:
        smallest = [tile("weight", dims, table.dtype, x.device, products) for products, *_ in forms(split, None)]
        tiles = max(triton.cdiv(n, of.bn) * triton.cdiv(m, of.bm) for of in smallest)
        # zero, where the other form has more tiles than the one that runs
        moments = x.new_zeros(1, batch, tiles, 2, table.count, dtype=torch.float64)
    if w.numel():
        _matrix("weight", table, split, x, other, w, g, moments, same=y is None)
    dx = _pull(table, split, w, x, other, m, 1, y is None) if want_x else None
    dy = _pull(table, exchanged(split), w, other, x, 1, m, y is None) if want_y else None
    dsigma = dweights = None
    if want_moments:
        swept = Swept(None, None, None, moments, table.rows, table.stride, 1, batch)
        found = finish(swept, n, m, dims, 0, (None,) * 4)
        dsigma = found.dsigma[:, 0] if want_sigma else None
        dweights = found.dweights[:, 0] if want_weights else None
    return dx, dy, dsigma, dweights


def _pull(table, split, w, x, y, row_stride, col_stride, both):
    """sum_j W_ij (y_j - x_i), for W with these strides."""
    (batch, n, dims), m = x.shape, y.shape[1]
    dx = torch.empty_like(x)
    for products, limit, operands in forms(split, table.rows) if dx.numel() else ():
        found = tile("pull", dims, table.dtype, x.device, products)
        with torch.cuda.device_of(x):
            _pull_kernel[(batch * triton.cdiv(n, found.bn) * triton.cdiv(dims, found.bd),)](
                w, x, y, dx, table.rows, operands[0], operands[1], operands[4],
                n, m, dims, table.stride, row_stride, col_stride,
                BOTH=both, DOT=products, LIMIT=limit, BN=found.bn, BM=found.bm, BD=found.bd,
                DP=split.dims if products else 0, ACC=triton_dtype(table.dtype),
                **found.options,
            )  # fmt: skip
    return dx
