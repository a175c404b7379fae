"""The bandwidths as the kernels read them, made on the device without waiting for it.

Lengths are measured in a power of two near sigma, which is exact, so that squares stay in range wherever the kernel
is neither 0 nor 1. For bandwidths of moderate size that unit is 1, and the sweeps leave the multiplication out.
"""

import struct

import torch
import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
# bandwidths given as numbers travel as arguments of a kernel: a copy from the host could not be captured in a graph
_NUMBERS = 8
# exponents of moderate bandwidths: squares of differences between points overflow, or vanish, only where the kernel
# is 0, or 1, to within rounding
_MODERATE = {torch.float32: 30, torch.float64: 200}
_FLOATS = [f"{name}{k}" for name in "sw" for k in range(_NUMBERS)]


@triton.jit
def _number(k, b0, b1, b2, b3, b4, b5, b6, b7):
    """The k-th of eight numbers, given by the bits of a float64, since floats are passed as float32."""
    bits = tl.where(k == 0, b0, tl.where(k == 1, b1, tl.where(k == 2, b2, b3)))
    bits = tl.where(k < 4, bits, tl.where(k == 4, b4, tl.where(k == 5, b5, tl.where(k == 6, b6, b7))))
    return bits.to(tl.float64, bitcast=True)


@triton.jit
def _clamp(x, low, high):
    # a NaN stays
    return tl.where(x < low, low, tl.where(x > high, high, x))


@triton.jit(do_not_specialize=["S", "sigma_stride", "weights_stride", *_FLOATS])
def _table_kernel(
    table_ptr, sigma_ptr, weights_ptr, limit_ptr, S, sigma_stride, weights_stride,
    s0: tl.int64, s1: tl.int64, s2: tl.int64, s3: tl.int64, s4: tl.int64, s5: tl.int64, s6: tl.int64, s7: tl.int64,
    w0: tl.int64, w1: tl.int64, w2: tl.int64, w3: tl.int64, w4: tl.int64, w5: tl.int64, w6: tl.int64, w7: tl.int64,
    NUMBERS: tl.constexpr, SP: tl.constexpr, MODERATE: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, SP)
    inside = k < S
    if NUMBERS:
        sigma = _number(k, s0, s1, s2, s3, s4, s5, s6, s7)
        weights = _number(k, w0, w1, w2, w3, w4, w5, w6, w7)
    else:
        sigma = tl.load(sigma_ptr + b * sigma_stride + k, mask=inside, other=1.0).to(tl.float64)
        weights = tl.load(weights_ptr + b * weights_stride + k, mask=inside, other=0.0).to(tl.float64)
    # the exponent that the bits of a positive float64 hold
    exponent = (sigma.to(tl.int64, bitcast=True) >> 52) - 1023
    low = tl.min(tl.where(inside, exponent, 2000), 0)
    high = tl.max(tl.where(inside, exponent, -2000), 0)
    middle = tl.where((low > -MODERATE) & (high < MODERATE), 0, (low + high) >> 1)
    middle = tl.minimum(tl.maximum(middle, -1000), 1000)
    inverse = ((1023 - middle) << 52).to(tl.float64, bitcast=True)
    units = sigma * inverse
    squares = units * units
    if table_ptr.dtype.element_ty == tl.float64:
        tiny = tl.full([SP], 2.2250738585072014e-308, tl.float64)
        most = tl.full([SP], 1.7976931348623157e308, tl.float64)
    else:
        tiny = tl.full([SP], 1.1754943508222875e-38, tl.float64)
        most = tl.full([SP], 3.4028234663852886e38, tl.float64)
    # clamped, because 0 times infinity would be NaN where equal points must give 1
    scale = _clamp(tl.full([SP], LOG2_E / 2, tl.float64) / squares, tiny, most)
    most *= 2.0**-20
    # where the greatest of the norms will be gathered
    tl.store(limit_ptr, 0)
    row = table_ptr + b * (1 + 3 * S)
    kind = table_ptr.dtype.element_ty
    tl.store(row, inverse.to(kind))
    tl.store(row + 1 + k, (-scale).to(kind), mask=inside)
    tl.store(row + 1 + S + k, weights.to(kind), mask=inside)
    tl.store(row + 1 + 2 * S + k, _clamp(weights / squares, -most, most).to(kind), mask=inside)


class Table:
    """Rows of 1 / unit, -log2(e) / (2 sigma^2), weights, weights / sigma^2; lengths in units. One row may serve all.

    scaled says whether the unit may differ from 1, as far as the host knows.
    """

    def __init__(self, sigma, weights, x, dtype=None):
        sigma, weights = sigma.detach(), weights.detach()
        batch, count = x.shape[0], sigma.shape[1]
        self.count, self.dtype = count, dtype or accumulator(x)
        shared = all(t.shape[0] == 1 or t.stride(0) == 0 for t in (sigma, weights))
        rows = 1 if shared else batch
        self.stride = 0 if shared else 1 + 3 * count
        self.rows = torch.empty(rows, 1 + 3 * count, dtype=self.dtype, device=x.device)
        self.limit = torch.empty(1, dtype=torch.int32, device=x.device)
        moderate = _MODERATE[self.dtype]
        self.scaled = True
        numbers = [0] * (2 * _NUMBERS)
        on_host = sigma.device.type == weights.device.type == "cpu" and count <= _NUMBERS and shared
        if sigma.device.type == "cpu" and batch:
            values = [v for row in (sigma[:1] if shared else sigma).tolist() for v in row]
            self.scaled = not all(2.0 ** (1 - moderate) < v < 2.0 ** (moderate - 1) for v in values)
        if on_host and batch:
            numbers = _bits(sigma[0].tolist()) + _bits(weights[0].tolist())
            pointers = self.rows, self.rows
            strides = 0, 0
        else:
            # numbers for each of a batch, or more than fit into arguments, are copied; a graph cannot capture that
            pointers = [t.to(x.device, torch.float64) for t in (sigma, weights)]
            pointers = [t if t.stride(-1) == 1 else t.contiguous() for t in pointers]
            strides = [0 if shared else t.stride(0) for t in pointers]
        if batch:
            with torch.cuda.device_of(x):
                _table_kernel[(rows,)](
                    self.rows, *pointers, self.limit, count, *strides, *numbers,
                    NUMBERS=on_host, SP=triton.next_power_of_2(max(1, count)), MODERATE=moderate, num_warps=1,
                )  # fmt: skip

    def dsigma(self, spread, sigma, weights):
        """The gradient to sigma from sum_ij c_ij k_sij d2_ij (B, S) in the table's units."""
        sigma, weights = (t.to(spread) for t in (sigma, weights))
        return weights * spread / (sigma * self.rows[:, :1].double()) ** 2 / sigma


def _bits(values):
    # signed, as integers of kernels are
    padded = values + [1.0] * (_NUMBERS - len(values))
    return list(struct.unpack(f"<{_NUMBERS}q", struct.pack(f"<{_NUMBERS}d", *padded)))


def accumulator(x):
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def triton_dtype(dtype):
    return tl.float64 if dtype == torch.float64 else tl.float32
