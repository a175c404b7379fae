"""The kernel matrix and its gradients.

Distances are sums of squared differences, as on the CPU, right for every input; for the matrix also products on
tensor cores, where these are accurate (split.py). Differences are scaled by a power of two taken from sigma, which is
exact, so that squares stay in range where the kernel is neither 0 nor 1.

The gradients take three kernels: one writes W_ij = g_ij sum_s w_s / sigma_s^2 k_sij, as large as g, and the partial
sums for sigma and weights; the others pull on x and on y with the rows and the columns of W. Every output has one
owner, so nothing is added by atomics and results repeat bit for bit.
"""

import math

import torch
import triton
import triton.language as tl

from .distances import squared_distances
from .packed import Table, accumulator, triton_dtype
from .split import Split, inner_products, worth_splitting
from .tiles import tile

_RUNTIME_SIZES = ["N", "M", "D", "S", "table_stride"]


@triton.jit
def _tile(N, M, BN: tl.constexpr, BM: tl.constexpr):
    """This program's batch, first row and first column, int64, since N times M may pass 2^31."""
    tiles_n, tiles_m = tl.cdiv(N, BN), tl.cdiv(M, BM)
    pid = tl.program_id(0).to(tl.int64)
    tile = pid % (tiles_n * tiles_m)
    return pid // (tiles_n * tiles_m), (tile // tiles_m) * BN, (tile % tiles_m) * BM


@triton.jit
def _squared_distances(
    x_ptr, y_ptr, b, i0, j0, unit, N, M, D,
    BN: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, SCALED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    rows, cols = tl.arange(0, BN), tl.arange(0, BM)
    return squared_distances(
        x_ptr + (b * N + i0) * D, y_ptr + (b * M + j0) * D, rows, cols, rows < N - i0, cols < M - j0, unit, D,
        BN, BM, BD, SCALED, ACC,
    )  # fmt: skip


@triton.jit(do_not_specialize=_RUNTIME_SIZES)
def _rbf_kernel(
    x_ptr, y_ptr, out_ptr, table_ptr, x_pieces_ptr, y_pieces_ptr, x_norms_ptr, y_norms_ptr, limit_ptr,
    N, M, D, S, table_stride,
    BN: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, SCALED: tl.constexpr, ACC: tl.constexpr,
    SAME: tl.constexpr, DOT: tl.constexpr, LIMIT: tl.constexpr, BK: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    if LIMIT > 0:
        # launched in both forms: products where they are accurate, else differences
        products = tl.load(limit_ptr).to(tl.float32, bitcast=True) <= LIMIT
        if products != (DOT > 0):
            return
    b, i0, j0 = _tile(N, M, BN, BM)
    table_ptr += b * table_stride
    unit = tl.load(table_ptr)
    if DOT > 0:
        ROW: tl.constexpr = (DOT + 3) // 3 * DP
        rows, cols = tl.arange(0, BN), tl.arange(0, BM)
        row_in, col_in = rows < N - i0, cols < M - j0
        first, second = x_pieces_ptr + (b * N + i0) * ROW, y_pieces_ptr + (b * M + j0) * ROW
        xy = inner_products(first, second, rows, cols, row_in, col_in, DP, BN, BM, BK, DOT, True)
        x_squares = tl.load(x_norms_ptr + b * N + i0 + rows, mask=row_in, other=0.0)
        y_squares = tl.load(y_norms_ptr + b * M + j0 + cols, mask=col_in, other=0.0)
        d2 = tl.maximum(tl.fma(xy, -2.0, x_squares[:, None] + y_squares[None, :]), 0.0)
        if SAME:
            d2 = tl.where(rows[:, None] - cols[None, :] == j0 - i0, 0.0, d2)
    else:
        d2 = _squared_distances(x_ptr, y_ptr, b, i0, j0, unit, N, M, D, BN, BM, BD, SCALED, ACC)
    total = tl.zeros([BN, BM], ACC)
    for s in range(S):
        scale, weight = tl.load(table_ptr + 1 + s), tl.load(table_ptr + 1 + S + s)
        total += weight * tl.exp2(d2 * scale)
    i, j = i0 + tl.arange(0, BN), j0 + tl.arange(0, BM)
    out = out_ptr + (b * N + i)[:, None] * M + j[None, :]
    tl.store(out, total.to(out_ptr.dtype.element_ty), mask=(i < N)[:, None] & (j < M)[None, :])


def rbf(x, y, sigma, weights, out=None, precision="highest"):
    """K, (B, N, M). See gkfast.rbf."""
    other = x if y is None else y
    batch, n, dims = x.shape
    m = other.shape[1]
    if out is None:
        out = x.new_empty(batch, n, m)
    table = Table(sigma, weights, x)
    if out.numel() == 0:
        return out
    split = Split(table, x, other, precision) if worth_splitting(x, other) else None
    operands = (split.x, split.y, split.x_norms, split.y_norms, split.greatest) if split else (table.rows,) * 5

    def launch(products):
        found = tile("matrix", dims, table.dtype, x.device, products)
        _rbf_kernel[(batch * triton.cdiv(n, found.bn) * triton.cdiv(m, found.bm),)](
            x, other, out, table.rows, *operands, n, m, dims, table.count, table.stride,
            BN=found.bn, BM=found.bm, BD=found.bd, SCALED=table.scaled, ACC=triton_dtype(table.dtype), SAME=y is None,
            DOT=products, LIMIT=split.limit if split else 0.0,
            BK=math.gcd(split.dims, found.bk) if products else 0, DP=split.dims if products else 0,
            num_warps=found.warps, num_stages=found.stages, maxnreg=found.registers,
        )  # fmt: skip

    with torch.cuda.device_of(x):
        launch(0)
        if split:
            launch(split.products)
    return out


@triton.jit(do_not_specialize=_RUNTIME_SIZES)
def _rbf_weight_kernel(
    g_ptr, x_ptr, y_ptr, w_ptr, moments_ptr, table_ptr, N, M, D, S, table_stride,
    WANT_MOMENTS: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, SCALED: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    b, i0, j0 = _tile(N, M, BN, BM)
    table_ptr += b * table_stride
    unit = tl.load(table_ptr)
    d2 = _squared_distances(x_ptr, y_ptr, b, i0, j0, unit, N, M, D, BN, BM, BD, SCALED, ACC)
    i, j = i0 + tl.arange(0, BN), j0 + tl.arange(0, BM)
    inside = (i < N)[:, None] & (j < M)[None, :]
    place = (b * N + i)[:, None] * M + j[None, :]
    g = tl.load(g_ptr + place, mask=inside, other=0.0).to(ACC)
    w = tl.zeros([BN, BM], ACC)
    for s in range(S):
        gk = g * tl.exp2(d2 * tl.load(table_ptr + 1 + s))
        w += tl.load(table_ptr + 1 + 2 * S + s) * gk
        if WANT_MOMENTS:
            # an infinite distance has a kernel of 0 and no say in the moments
            spread = tl.where(gk == 0.0, 0.0, gk * d2)
            tl.store(moments_ptr + tl.program_id(0).to(tl.int64) * 2 * S + s, tl.sum(tl.sum(gk, 1), 0))
            tl.store(moments_ptr + tl.program_id(0).to(tl.int64) * 2 * S + S + s, tl.sum(tl.sum(spread, 1), 0))
    tl.store(w_ptr + place, w, mask=inside)


@triton.jit(do_not_specialize=_RUNTIME_SIZES)
def _rbf_pull_kernel(
    w_ptr, x_ptr, y_ptr, dx_ptr, table_ptr, N, M, D, S, table_stride, row_stride, col_stride,
    BOTH: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    # dx_i = sum_j W_ij (y_j - x_i), for BN rows and BD coordinates; W is read by strides, so that y pulls as x does
    b, i0, d0 = _tile(N, D, BN, BD)
    i, coordinates = i0 + tl.arange(0, BN), d0 + tl.arange(0, BD)
    row_in = i < N
    unit = tl.load(table_ptr + b * table_stride)
    total = tl.zeros([BN, BD], ACC)
    for j0 in range(0, M, BM):
        j = tl.arange(0, BM).to(tl.int64) + j0
        col_in = j < M
        inside = row_in[:, None] & col_in[None, :]
        base = w_ptr + b * N * M
        w = tl.load(base + i[:, None] * row_stride + j[None, :] * col_stride, mask=inside, other=0.0)
        if BOTH:
            w += tl.load(base + i[:, None] * col_stride + j[None, :] * row_stride, mask=inside, other=0.0)
        # a loop, not unrolled: each turn holds a reduction, and unrolled ones take long to compile
        for k in range(BD):
            d = d0 + k
            xi = tl.load(x_ptr + (b * N + i) * D + d, mask=row_in & (d < D), other=0.0).to(ACC)
            yj = tl.load(y_ptr + (b * M + j) * D + d, mask=col_in & (d < D), other=0.0).to(ACC)
            e = (yj[None, :] - xi[:, None]) * unit
            # a kernel of 0 pulls nothing, from infinitely far either
            pull = tl.sum(tl.where(w == 0.0, 0.0, w * e), 1)
            total += tl.where(coordinates[None, :] == d, pull[:, None], 0.0)
    out = dx_ptr + (b * N + i)[:, None] * D + coordinates[None, :]
    tl.store(out, (total * unit).to(dx_ptr.dtype.element_ty), mask=row_in[:, None] & (coordinates < D)[None, :])


def rbf_backward(g, x, y, sigma, weights, wants, precision="highest"):
    """Gradients of sum_ij g_ij K_ij to (x, y, sigma, weights); those not wanted are None. y None: x is both."""
    want_x, want_y, want_sigma, want_weights = wants
    want_moments = want_sigma or want_weights
    other = x if y is None else y
    batch, n, dims = x.shape
    m, count, acc = other.shape[1], sigma.shape[1], accumulator(x)
    table = Table(sigma, weights, x)

    bn, bm, bd, warps, registers, *_ = tile("weight", dims, table.dtype, x.device)
    programs = batch * triton.cdiv(n, bn) * triton.cdiv(m, bm)
    w = x.new_empty(batch, n, m, dtype=acc)
    moments = x.new_empty(programs if want_moments else 0, 2, count, dtype=acc)
    if programs:
        with torch.cuda.device_of(x):
            _rbf_weight_kernel[(programs,)](
                g, x, other, w, moments, table.rows, n, m, dims, count, table.stride,
                WANT_MOMENTS=want_moments, BN=bn, BM=bm, BD=bd, SCALED=table.scaled, ACC=triton_dtype(acc),
                num_warps=warps, maxnreg=registers,
            )  # fmt: skip

    def pull(rows, cols, row_stride, col_stride):
        bn, bm, bd, warps, registers, *_ = tile("pull", dims, table.dtype, x.device)
        dx = torch.empty_like(rows)
        programs = batch * triton.cdiv(rows.shape[1], bn) * triton.cdiv(dims, bd)
        if programs:
            with torch.cuda.device_of(x):
                _rbf_pull_kernel[(programs,)](
                    w, rows, cols, dx, table.rows, rows.shape[1], cols.shape[1], dims, count, table.stride,
                    row_stride, col_stride, BOTH=y is None, BN=bn, BM=bm, BD=bd, ACC=triton_dtype(acc),
                    num_warps=warps, maxnreg=registers,
                )  # fmt: skip
        return dx

    dx = pull(x, other, m, 1) if want_x else None
    dy = pull(other, x, 1, m) if want_y else None
    dsigma = dweights = None
    if want_moments:
        total = moments.double().reshape(batch, programs // max(1, batch), 2, count).sum(1)
        dweights = total[:, 0] if want_weights else None
        dsigma = table.dsigma(total[:, 1], sigma, weights) if want_sigma else None
    return dx, dy, dsigma, dweights
