"""Log-sum-exp over kernels, and its gradient at x.

Exponents of a density reach thousands where those of a kernel matter only to about 100: rounding them in float32
(1e-7 of each) would already be the whole error that is allowed of the density (2e-7), before anything is summed. So
"highest" works in float64 whatever the input. With "high" and "medium" exponents have the error that float32, or
products of bfloat16 pieces where there are many pairs (bf16_pieces.py), give them: log p is off by at most 2**-20,
2**-14 and 2**-6 of the greatest |x|^2 / (2 sigma^2) about the common centre, and a score by so much of itself.
"""

import math
from functools import partial

import torch
import triton
import triton.language as tl

from .bandwidths import LOG2_E, Table, row_of_table
from .bf16_pieces import Pieces, is_other_variant, use_tensor_cores, variants
from .distances import norms_of, point_length, side_of, squared_distances
from .launch import launch
from .tiles import FUSION, SIZES, column_ranges, tile


@triton.jit(do_not_specialize=SIZES)
def _log_sum_exp_kernel(
    points, a_ptr, out_ptr, bandwidths, N, M, D, S, B, table_stride, RANGES,
    SKIP_DIAGONAL: tl.constexpr, TABLE: tl.constexpr, VARIANT: tl.constexpr,
):  # fmt: skip
    if is_other_variant(points.greatest, VARIANT):
        return
    SP: tl.constexpr = TABLE.SP
    BN: tl.constexpr = VARIANT.BN
    BM: tl.constexpr = VARIANT.BM
    ACC: tl.constexpr = VARIANT.ACC
    column_range = tl.program_id(1)
    tiles = tl.cdiv(N, BN)
    pid = tl.program_id(0).to(tl.int64)
    b, i0 = pid // tiles, (pid % tiles).to(tl.int32) * BN
    length = point_length(D, VARIANT)
    rows = side_of(points.x, points.x_norms, a_ptr, b * N + i0, N - i0, length, 0, BN)
    width = tl.cdiv(tl.cdiv(M, BM), RANGES) * BM
    start = column_range * width
    row = row_of_table(bandwidths, b, pid + tl.num_programs(0) * column_range, S, table_stride, TABLE)
    unit = tl.load(row.unit)
    # the greatest weight is taken out, so that large normalisers do not round the exponents
    bandwidth = tl.arange(0, SP)
    outside = tl.full([SP], float("-inf"), ACC)
    weights = tl.load(row.weights + bandwidth, mask=bandwidth < S, other=float("-inf"))
    greatest = tl.max(tl.where(bandwidth < S, weights, outside), 0)
    row_norms = norms_of(rows, VARIANT)

    top = tl.full([BN], float("-inf"), ACC)
    total = tl.zeros([BN], tl.float64)
    for j0 in range(start, tl.minimum(start + width, M), BM):
        cols = side_of(points.y, points.y_norms, a_ptr, b * M + j0, M - j0, length, 1, BM)
        d2 = squared_distances(rows, cols, row_norms, unit, D, VARIANT, False)
        a = tl.load(cols.coefficients + cols.at, mask=cols.inside, other=0.0).to(ACC)
        log_a = tl.where(a == 0.0, float("-inf"), tl.log2(tl.where(a == 0.0, 1.0, a)))
        for s in range(S):
            log_w = (tl.load(row.weights + s) - greatest) * LOG2_E
            t = d2 * tl.load(row.scales + s) + (log_a + log_w)[None, :]
            if SKIP_DIAGONAL:
                t = tl.where(rows.at[:, None] - cols.at[None, :] != j0 - i0, t, float("-inf"))
            higher = tl.maximum(top, tl.max(t, 1))
            # nothing yet: no exponent to refer to
            base = tl.where(higher == float("-inf"), 0.0, higher)
            total = total * tl.exp2(top - base).to(tl.float64) + tl.sum(tl.exp2(t - base[:, None]), 1).to(tl.float64)
            top = higher
    log_p = _log_of(top.to(tl.float64), total) + greatest.to(tl.float64)
    tl.store(out_ptr + (column_range.to(tl.int64) * B + b) * N + i0 + rows.at, log_p, mask=rows.inside)


@triton.jit
def _log_of(top, total):
    """log(2**top total); the total is at least 1, or nothing was there."""
    return (top + tl.log2(tl.where(total == 0.0, 1.0, total))) / LOG2_E


@triton.jit(do_not_specialize=SIZES)
def _add_logs_kernel(partial_ptr, out_ptr, COUNT, RANGES, BLOCK: tl.constexpr):
    """log sum_c exp(partial_c), of (RANGES, COUNT)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < COUNT
    top = tl.full([BLOCK], float("-inf"), tl.float64)
    total = tl.zeros([BLOCK], tl.float64)
    for _ in range(RANGES):
        t = tl.load(partial_ptr + at, mask=inside, other=0.0) * LOG2_E
        partial_ptr += COUNT
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
    products = precision != "highest" and batch * n * m and use_tensor_cores(x, y)
    pieces = Pieces(table, x, y, precision) if products else None
    ranges = column_ranges(batch * triton.cdiv(n, 32), m, x.device)
    logs = x.new_empty(ranges, batch, n, dtype=torch.float64)
    tile_of = partial(tile, "log", dims, wide, x.device)
    own = table.own(triton.cdiv(n, tile_of().bn), ranges, math.inf)
    for found, points, variant in variants(pieces, table, x, y, tile_of) if batch * n else ():
        launch(_log_sum_exp_kernel, (batch * triton.cdiv(n, found.bn), ranges),
            points, data_weights, logs, table.arguments(),
            n, m, dims, table.count, batch, table.stride, ranges,
            SKIP_DIAGONAL=leave_one_out, TABLE=table.constants(own), VARIANT=variant, **found.options,
        )  # fmt: skip
    if ranges == 1 or not batch * n:
        return logs[0]
    out, block = x.new_empty(batch, n, dtype=torch.float64), 256
    launch(_add_logs_kernel, (triton.cdiv(batch * n, block),), logs, out, batch * n, ranges, BLOCK=block, **FUSION)
    return out
