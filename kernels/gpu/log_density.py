"""Log-sum-exp over kernels, and its gradient at x.

Exponents of a density reach thousands where those of a kernel matter only to about 100: rounding them in float32
(1e-7 of each) would already be the whole error that is allowed of the density (2e-7), before anything is summed. So
"highest" works in float64 whatever the input. With "high" and "medium" exponents have the error that float32, or
products of bfloat16 pieces where there are many pairs (bf16_pieces.py), give them: log p is off by at most 2**-20,
2**-14 and 2**-6 of the greatest |x|^2 / (2 sigma^2) about the common centre, and a score by so much of itself.
"""

import math

import torch
import triton
import triton.language as tl

from .bandwidths import LOG2_E, NUMBERS, Table, row_of_table, triton_dtype
from .bf16_pieces import Split, forms, other_form, worth_splitting
from .distances import distances_by_products, squared_distances
from .tiles import FUSION, splits, tile

_SIZES = ["N", "M", "D", "S", "B", "table_stride", "SPLITS", "sigma_stride", "weights_stride", *NUMBERS]


@triton.jit(do_not_specialize=_SIZES)
def _log_sum_exp_kernel(
    x_ptr, y_ptr, a_ptr, table_ptr, out_ptr, x_pieces_ptr, y_pieces_ptr, x_norms_ptr, y_norms_ptr, limit_ptr,
    sigma_ptr, weights_ptr, N, M, D, S, B, table_stride, SPLITS, sigma_stride, weights_stride,
    s0: tl.int64, s1: tl.int64, s2: tl.int64, s3: tl.int64, s4: tl.int64, s5: tl.int64, s6: tl.int64, s7: tl.int64,
    w0: tl.int64, w1: tl.int64, w2: tl.int64, w3: tl.int64, w4: tl.int64, w5: tl.int64, w6: tl.int64, w7: tl.int64,
    OWN_TABLE: tl.constexpr, HOST: tl.constexpr, SP: tl.constexpr, MODERATE: tl.constexpr, SQUARES: tl.constexpr,
    SKIP_DIAGONAL: tl.constexpr, DOT: tl.constexpr, LIMIT: tl.constexpr, SCALED: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr, DP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    if other_form(limit_ptr, DOT, LIMIT):
        return
    split = tl.program_id(1)
    tiles = tl.cdiv(N, BN)
    pid = tl.program_id(0).to(tl.int64)
    b, i0 = pid // tiles, (pid % tiles).to(tl.int32) * BN
    rows, cols = tl.arange(0, BN), tl.arange(0, BM)
    row_in = rows < N - i0
    x_ptr += (b * N + i0) * D
    width = tl.cdiv(tl.cdiv(M, BM), SPLITS) * BM
    start = split * width
    table_ptr = row_of_table(
        table_ptr, b, pid + tl.num_programs(0) * split, table_stride, sigma_ptr, weights_ptr, S,
        sigma_stride, weights_stride, s0, s1, s2, s3, s4, s5, s6, s7, w0, w1, w2, w3, w4, w5, w6, w7,
        OWN_TABLE, HOST, SP, MODERATE, SQUARES,
    )  # fmt: skip
    unit = tl.load(table_ptr)
    # the greatest weight is taken out, so that large normalisers do not round the exponents
    bandwidths = tl.arange(0, SP)
    outside = tl.full([SP], float("-inf"), ACC)
    weights = tl.load(table_ptr + 1 + S + bandwidths, mask=bandwidths < S, other=float("-inf"))
    greatest = tl.max(tl.where(bandwidths < S, weights, outside), 0)
    if DOT > 0:
        ROW: tl.constexpr = (DOT + 3) // 3 * DP
        x_pieces_ptr += (b * N + i0) * ROW
        x_squares = tl.load(x_norms_ptr + b * N + i0 + rows, mask=row_in, other=0.0)

    top = tl.full([BN], float("-inf"), ACC)
    total = tl.zeros([BN], tl.float64)
    for j0 in range(start, tl.minimum(start + width, M), BM):
        col_in = cols < M - j0
        if DOT > 0:
            y_squares = tl.load(y_norms_ptr + (b * M + j0) + cols, mask=col_in, other=0.0)
            d2 = distances_by_products(
                x_pieces_ptr, y_pieces_ptr + (b * M + j0) * ROW, x_squares, y_squares, rows, cols, row_in, col_in,
                DP, BN, BM, BK, DOT, False,
            )  # fmt: skip
        else:
            y_tile = y_ptr + (b * M + j0) * D
            d2 = squared_distances(x_ptr, y_tile, rows, cols, row_in, col_in, unit, D, BN, BM, BD, SCALED, ACC)
        a = tl.load(a_ptr + (b * M + j0) + cols, mask=col_in, other=0.0).to(ACC)
        log_a = tl.where(a == 0.0, float("-inf"), tl.log2(tl.where(a == 0.0, 1.0, a)))
        for s in range(S):
            log_w = (tl.load(table_ptr + 1 + S + s) - greatest) * LOG2_E
            t = d2 * tl.load(table_ptr + 1 + s) + (log_a + log_w)[None, :]
            if SKIP_DIAGONAL:
                t = tl.where(rows[:, None] - cols[None, :] != j0 - i0, t, float("-inf"))
            higher = tl.maximum(top, tl.max(t, 1))
            # nothing yet: no exponent to refer to
            base = tl.where(higher == float("-inf"), 0.0, higher)
            total = total * tl.exp2(top - base).to(tl.float64) + tl.sum(tl.exp2(t - base[:, None]), 1).to(tl.float64)
            top = higher
    log_p = _log_of(top.to(tl.float64), total) + greatest.to(tl.float64)
    tl.store(out_ptr + (split.to(tl.int64) * B + b) * N + i0 + rows, log_p, mask=row_in)


@triton.jit
def _log_of(top, total):
    """log(2**top total); the total is at least 1, or nothing was there."""
    return (top + tl.log2(tl.where(total == 0.0, 1.0, total))) / LOG2_E


@triton.jit(do_not_specialize=["count", "SPLITS"])
def _add_logs_kernel(partial_ptr, out_ptr, count, SPLITS, BLOCK: tl.constexpr):
    """log sum_c exp(partial_c), of (SPLITS, count)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    top = tl.full([BLOCK], float("-inf"), tl.float64)
    total = tl.zeros([BLOCK], tl.float64)
    for _ in range(SPLITS):
        t = tl.load(partial_ptr + at, mask=inside, other=0.0) * LOG2_E
        partial_ptr += count
        higher = tl.maximum(top, t)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp2(top - base) + tl.exp2(t - base)
        top = higher
    tl.store(out_ptr + at, _log_of(top, total), mask=inside)


def log_density(x, y, sigma, log_weights, data_weights, *, leave_one_out, precision="highest"):
    """log sum_sj data_weights_j exp(log_weights_s + log k_sij), (B, N) float64. See gkfast.log_density."""
    (batch, n, dims), m = x.shape, y.shape[1]
    wide = torch.float64 if precision == "highest" or x.dtype == torch.float64 else torch.float32
    table = Table(sigma, log_weights, x, wide)
    products = precision != "highest" and batch * n * m and worth_splitting(x, y)
    split = Split(table, x, y, precision) if products else None
    parted = splits(batch * triton.cdiv(n, 32), m, x.device)
    partial = x.new_empty(parted, batch, n, dtype=torch.float64)
    own = table.own(triton.cdiv(n, tile("log", dims, wide, x.device).bn), parted, math.inf)
    for form, limit, operands in forms(split, table.rows) if batch * n else ():
        found = tile("log", dims, wide, x.device, form)
        with torch.cuda.device_of(x):
            _log_sum_exp_kernel[(batch * triton.cdiv(n, found.bn), parted)](
                x, y, data_weights, table.rows, partial, *operands, *table.pointers,
                n, m, dims, table.count, batch, table.stride, parted, *table.numbers,
                OWN_TABLE=own, **table.constants,
                SKIP_DIAGONAL=leave_one_out, DOT=form, LIMIT=limit, SCALED=table.scaled,
                BN=found.bn, BM=found.bm, BD=found.bd, BK=math.gcd(split.dims, found.bk) if form else 0,
                DP=split.dims if form else 0, ACC=triton_dtype(wide),
                **found.options,
            )  # fmt: skip
    if parted == 1 or not batch * n:
        return partial[0]
    out, block = x.new_empty(batch, n, dtype=torch.float64), 256
    with torch.cuda.device_of(x):
        _add_logs_kernel[(triton.cdiv(batch * n, block),)](partial, out, batch * n, parted, BLOCK=block, **FUSION)
    return out
