"""Log-sum-exp over kernels, and its gradient at x.

Exponents of a density reach thousands where those of a kernel matter only to about 100: rounding them in float32
(1e-7 of each) would already be the whole error that is allowed of the density (2e-7), before anything is summed. So
these two work in float64 whatever the input.
"""

import torch
import triton
import triton.language as tl

from .distances import squared_distances
from .packed import LOG2_E, Table
from .rbf_matmul import rbf_matmul_backward
from .tiles import splits, tile


@triton.jit(do_not_specialize=["N", "M", "D", "S", "B", "table_stride", "SPLITS"])
def _log_sum_exp_kernel(
    x_ptr, y_ptr, log_ptr, table_ptr, out_ptr,
    N, M, D, S, B, table_stride, SPLITS,
    SKIP_DIAGONAL: tl.constexpr, SCALED: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, SP: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(1)
    tiles = tl.cdiv(N, BN)
    pid = tl.program_id(0).to(tl.int64)
    b, i0 = pid // tiles, (pid % tiles).to(tl.int32) * BN
    rows, cols = tl.arange(0, BN), tl.arange(0, BM)
    row_in = rows < N - i0
    x_ptr += (b * N + i0) * D
    width = tl.cdiv(tl.cdiv(M, BM), SPLITS) * BM
    start = split * width
    table_ptr += b * table_stride
    unit = tl.load(table_ptr)
    # the greatest weight is taken out, so that large normalisers do not round the exponents
    bandwidths = tl.arange(0, SP)
    outside = tl.full([SP], float("-inf"), tl.float64)
    weights = tl.load(table_ptr + 1 + S + bandwidths, mask=bandwidths < S, other=float("-inf"))
    greatest = tl.max(tl.where(bandwidths < S, weights, outside), 0)

    top = tl.full([BN], float("-inf"), tl.float64)
    total = tl.zeros([BN], tl.float64)
    for j0 in range(start, tl.minimum(start + width, M), BM):
        col_in = cols < M - j0
        y_tile = y_ptr + (b * M + j0) * D
        d2 = squared_distances(x_ptr, y_tile, rows, cols, row_in, col_in, unit, D, BN, BM, BD, SCALED, tl.float64)
        log_a = tl.load(log_ptr + (b * M + j0) + cols, mask=col_in, other=float("-inf")).to(tl.float64) * LOG2_E
        for s in range(S):
            log_w = (tl.load(table_ptr + 1 + S + s) - greatest) * LOG2_E
            t = d2 * tl.load(table_ptr + 1 + s) + (log_a + log_w)[None, :]
            if SKIP_DIAGONAL:
                t = tl.where(rows[:, None] - cols[None, :] != j0 - i0, t, float("-inf"))
            higher = tl.maximum(top, tl.max(t, 1))
            # nothing yet: no exponent to refer to
            base = tl.where(higher == float("-inf"), 0.0, higher)
            total = total * tl.exp2(top - base) + tl.sum(tl.exp2(t - base[:, None]), 1)
            top = higher
    # the total is at least 1, or nothing was there
    log_p = (top + tl.log2(tl.where(total == 0.0, 1.0, total))) / LOG2_E + greatest
    tl.store(out_ptr + (split.to(tl.int64) * B + b) * N + i0 + rows, log_p, mask=row_in)


def log_density(x, y, sigma, log_weights, data_weights, leave_one_out, precision="highest"):
    """log sum_sj data_weights_j exp(log_weights_s + log k_sij), (B, N) float64. See gkfast.log_density."""
    (batch, n, dims), m = x.shape, y.shape[1]
    table = Table(sigma, log_weights, x, torch.float64).fill()
    bn, bm, bd, warps, registers, *_ = tile("log", x.shape[2], torch.float64, x.device)
    tiles = triton.cdiv(n, bn)
    pieces = splits(batch * tiles, m, x.device)
    partial = x.new_empty(pieces, batch, n, dtype=torch.float64)
    if batch * tiles:
        with torch.cuda.device_of(x):
            _log_sum_exp_kernel[(batch * tiles, pieces)](
                x, y, data_weights.double().log(), table.rows, partial,
                n, m, dims, table.count, batch, table.stride, pieces,
                SKIP_DIAGONAL=leave_one_out, SCALED=table.scaled,
                BN=bn, BM=bm, BD=bd, SP=triton.next_power_of_2(max(1, table.count)),
                num_warps=warps, num_stages=1, maxnreg=registers,
            )  # fmt: skip
    return partial[0] if pieces == 1 else partial.logsumexp(0)


def score(x, y, sigma, log_weights, data_weights, leave_one_out, precision="highest"):
    """The gradient of log_density at x, (B, N, D). See gkfast.score."""
    log_p = log_density(x, y, sigma, log_weights, data_weights, leave_one_out, precision)
    return rbf_matmul_backward(
        torch.ones_like(log_p)[..., None],
        x.double(),
        y.double(),
        data_weights.double()[..., None],
        sigma,
        torch.ones_like(sigma),
        (True, False, False, False, False),
        shift=log_p[..., None] - log_weights.to(log_p)[:, None, :],
        skip_diagonal=leave_one_out,
        precision=precision,
    )[0].to(x.dtype)
