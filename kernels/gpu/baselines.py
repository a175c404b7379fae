"""What is subtracted from each bandwidth's kernel before it is summed, in one launch."""

import torch
import triton
import triton.language as tl

from .bandwidths import host_numbers
from .launch import launch
from .numbers import Numbers, number
from .tiles import FUSION, SIZES

# rows of each sample that are looked at, and coordinates at a time
ROWS = 64
COORDINATES = 32


@triton.jit
def _some_rows(ptr, count, d, D, BN: tl.constexpr):
    """Coordinates d of at most BN rows, an equal number apart, float64, and which there are."""
    rows = tl.arange(0, BN)
    apart = tl.maximum(count // BN, 1)
    inside = (rows < count)[:, None] & (d < D)[None, :]
    place = (rows.to(tl.int64) * apart)[:, None] * D + d[None, :]
    return tl.load(ptr + place, mask=inside, other=0.0).to(tl.float64), inside


@triton.jit
def baselines_of(x_ptr, y_ptr, sigma, N, M, D, BN: tl.constexpr, BD: tl.constexpr):
    """1 or 0 for each of sigma, float64, for the points of one of the batch."""
    count = (tl.minimum(N, BN) + tl.minimum(M, BN)).to(tl.float64)
    squares = tl.zeros([BD], tl.float64)
    for d0 in range(0, D, BD):
        d = d0 + tl.arange(0, BD)
        x, in_x = _some_rows(x_ptr, N, d, D, BN)
        y, in_y = _some_rows(y_ptr, M, d, D, BN)
        mean = (tl.sum(x, 0) + tl.sum(y, 0)) / count
        x = tl.where(in_x, x - mean[None, :], 0.0)
        y = tl.where(in_y, y - mean[None, :], 0.0)
        squares += tl.sum(x * x, 0) + tl.sum(y * y, 0)
    mean_square = 2 * tl.sum(squares, 0) / count
    # false for a NaN
    return tl.where(mean_square <= sigma * sigma, 1.0, 0.0).to(tl.float64)


@triton.jit
def clear(counters, COUNT, BLOCK: tl.constexpr):
    for start in range(0, COUNT, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(counters + at, tl.zeros([BLOCK], tl.int32), mask=at < COUNT)


@triton.jit(do_not_specialize=SIZES)
def _baselines_kernel(
    x_ptr, y_ptr, sigma, out_ptr, counters, N, M, D, S, table_stride, COUNT,
    HOST: tl.constexpr, SP: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, SP)
    own = number(k, sigma) if HOST else tl.load(sigma + b * table_stride + k, mask=k < S, other=1.0).to(tl.float64)
    found = baselines_of(x_ptr + b * N * D, y_ptr + b * M * D, own, N, M, D, BN, BD)
    tl.store(out_ptr + b * S + k, found, mask=k < S)
    if counters is not None:
        clear(counters + b * COUNT, COUNT, 128)


def baselines(x, y, sigma, counters=None):
    """1 or 0 for each bandwidth, (B, S) float64. See gkfast.kernels.reference.baselines.

    Both are right for every choice, so it may rest on some of the rows. counters (B, any) int32 are set to 0.
    """
    (batch, n, dims), m = x.shape, y.shape[1]
    sigma, stride = host_numbers(sigma), 0
    if type(sigma) is Numbers:
        count, given = len(sigma.floats), sigma.encoded
    else:
        given = sigma.detach().to(x.device).contiguous()
        count = given.shape[1]
        stride = count if given.shape[0] > 1 else 0
    out = x.new_empty(batch, count, dtype=torch.float64)
    if out.numel():
        launch(
            _baselines_kernel, (batch,), x, y, given, out, counters,
            n, m, dims, count, stride, 0 if counters is None else counters.shape[1],
            HOST=type(sigma) is Numbers, SP=triton.next_power_of_2(count), BN=ROWS, BD=COORDINATES,
            num_warps=4, **FUSION,
        )  # fmt: skip
    return out
