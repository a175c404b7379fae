"""The bandwidths as the kernels read them, made on the device without waiting for it.

Lengths are measured in a power of two near sigma, which is exact, so that squares stay in range wherever the kernel
is neither 0 nor 1. For bandwidths of moderate size that unit is 1, and the sweeps leave the multiplication out.

Bandwidths stand widest first. Where 1/sigma^2 is two or four times that of the one before, the table says so (steps
of 1 or 2), and its kernel is the square, or the square's square, of that one's: a multiplication, not an exponential.
Squaring doubles a relative error, so runs are cut: at two squarings for a kernel that is stored, at four for sums.
"""

import struct

import torch
import triton
import triton.language as tl

from .tiles import FUSION

LOG2_E = tl.constexpr(1.4426950408889634)
# bandwidths given as numbers travel as arguments of a kernel: a copy from the host could not be captured in a graph
_NUMBERS = 8
# of so many the order is found by comparing all pairs; more are taken as they come, without squaring
_SORTED = tl.constexpr(32)
# so many programs make a row of the table each, instead of waiting for the launch that fills one: beyond, they would
# take longer for it
_FEW = 1024
# among so many greatest norms is the greatest of all: each of a few programs that split points has its own
SLOTS = 128
_SLOTS = tl.constexpr(SLOTS)
# exponents of moderate bandwidths: squares of differences between points overflow, or vanish, only where the kernel
# is 0, or 1, to within rounding
_MODERATE = {torch.float32: 30, torch.float64: 200}
NUMBERS = [f"{name}{k}" for name in "sw" for k in range(_NUMBERS)]


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


@triton.jit
def _ladder(sigma, inside, k, SP: tl.constexpr, SQUARES: tl.constexpr, EPS: tl.constexpr):
    """Each bandwidth's place, widest first, and how often the one before is squared for it: 0 is not at all."""
    # the bits of positive numbers are in their order
    keys = tl.where(inside, sigma.to(tl.int64, bitcast=True), -1)
    equal = (keys[None, :] == keys[:, None]) & (k[None, :] < k[:, None])
    place = tl.sum(((keys[None, :] > keys[:, None]) | equal).to(tl.int32), 1)
    last = tl.sum(tl.where(place[None, :] == place[:, None] - 1, sigma[None, :], 0.0), 1)
    ratio = last / sigma
    ratio *= ratio
    steps = tl.where(tl.abs(ratio - 2) <= 8 * EPS, 1, tl.where(tl.abs(ratio - 4) <= 16 * EPS, 2, 0))
    # steps since the last place that has none, in stretches of at most SQUARES
    before = place[None, :] <= place[:, None]
    head = tl.max(tl.where(before & (steps == 0)[None, :], place[None, :], 0), 1)
    walked = tl.sum(tl.where(before & (place[None, :] > head[:, None]), steps[None, :], 0), 1)
    fresh = walked // (SQUARES + 1) != (walked - steps) // (SQUARES + 1)
    return place, tl.where(fresh, 0, steps)


@triton.jit
def fill_table(
    row, sigma_ptr, weights_ptr, S, s0, s1, s2, s3, s4, s5, s6, s7, w0, w1, w2, w3, w4, w5, w6, w7,
    HOST: tl.constexpr, SP: tl.constexpr, MODERATE: tl.constexpr, SQUARES: tl.constexpr,
):  # fmt: skip
    """Writes a row of the table, see Table; bits of HOST: the bandwidths are numbers s0 ..., the weights w0 ..."""
    k = tl.arange(0, SP)
    inside = k < S
    if HOST & 1:
        sigma = _number(k, s0, s1, s2, s3, s4, s5, s6, s7)
    else:
        sigma = tl.load(sigma_ptr + k, mask=inside, other=1.0).to(tl.float64)
    if HOST & 2:
        weights = _number(k, w0, w1, w2, w3, w4, w5, w6, w7)
    else:
        weights = tl.load(weights_ptr + k, mask=inside, other=0.0).to(tl.float64)
    # the exponent that the bits of a positive float64 hold
    exponent = (sigma.to(tl.int64, bitcast=True) >> 52) - 1023
    low = tl.min(tl.where(inside, exponent, 2000), 0)
    high = tl.max(tl.where(inside, exponent, -2000), 0)
    middle = tl.where((low > -MODERATE) & (high < MODERATE), 0, (low + high) >> 1)
    middle = tl.minimum(tl.maximum(middle, -1000), 1000)
    inverse = ((1023 - middle) << 52).to(tl.float64, bitcast=True)
    units = sigma * inverse
    squares = units * units
    if row.dtype.element_ty == tl.float64:
        EPS: tl.constexpr = 2.0**-52
        tiny = tl.full([SP], 2.2250738585072014e-308, tl.float64)
        most = tl.full([SP], 1.7976931348623157e308, tl.float64)
    else:
        EPS: tl.constexpr = 2.0**-23
        tiny = tl.full([SP], 1.1754943508222875e-38, tl.float64)
        most = tl.full([SP], 3.4028234663852886e38, tl.float64)
    place, steps = k, tl.zeros([SP], tl.int32)
    if SP > 1 and SP <= _SORTED:
        place, steps = _ladder(sigma, inside, k, SP, SQUARES, EPS)
    # clamped, because 0 times infinity would be NaN where equal points must give 1
    scale = _clamp(tl.full([SP], LOG2_E / 2, tl.float64) / squares, tiny, most)
    spread = _clamp(weights / squares / sigma, -most, most)
    most *= 2.0**-20
    kind = row.dtype.element_ty
    tl.store(row, inverse.to(kind))
    there = row + 1 + place
    tl.store(there, (-scale).to(kind), mask=inside)
    tl.store(there + S, weights.to(kind), mask=inside)
    tl.store(there + 2 * S, _clamp(weights / squares, -most, most).to(kind), mask=inside)
    tl.store(there + 3 * S, steps.to(kind), mask=inside)
    tl.store(there + 4 * S, k.to(kind), mask=inside)
    tl.store(row + 1 + 5 * S + k, spread.to(kind), mask=inside)


@triton.jit(do_not_specialize=["S", "sigma_stride", "weights_stride", *NUMBERS])
def _table_kernel(
    table_ptr, sigma_ptr, weights_ptr, limit_ptr, S, sigma_stride, weights_stride,
    s0: tl.int64, s1: tl.int64, s2: tl.int64, s3: tl.int64, s4: tl.int64, s5: tl.int64, s6: tl.int64, s7: tl.int64,
    w0: tl.int64, w1: tl.int64, w2: tl.int64, w3: tl.int64, w4: tl.int64, w5: tl.int64, w6: tl.int64, w7: tl.int64,
    HOST: tl.constexpr, SP: tl.constexpr, MODERATE: tl.constexpr, SQUARES: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    # where the greatest of the norms will be gathered
    tl.store(limit_ptr + tl.arange(0, _SLOTS), tl.zeros([_SLOTS], tl.int32))
    fill_table(
        table_ptr + b * (1 + 6 * S), sigma_ptr + b * sigma_stride, weights_ptr + b * weights_stride, S,
        s0, s1, s2, s3, s4, s5, s6, s7, w0, w1, w2, w3, w4, w5, w6, w7, HOST, SP, MODERATE, SQUARES,
    )  # fmt: skip


@triton.jit
def row_of_table(
    table_ptr, b, place, table_stride, sigma_ptr, weights_ptr, S, sigma_stride, weights_stride,
    s0, s1, s2, s3, s4, s5, s6, s7, w0, w1, w2, w3, w4, w5, w6, w7,
    OWN: tl.constexpr, HOST: tl.constexpr, SP: tl.constexpr, MODERATE: tl.constexpr, SQUARES: tl.constexpr,
):  # fmt: skip
    """Where the row for b of the batch is, filled before; or (OWN) where this program, the place-th, has made it."""
    if OWN:
        table_ptr += place.to(tl.int64) * (1 + 6 * S)
        fill_table(
            table_ptr, sigma_ptr + b * sigma_stride, weights_ptr + b * weights_stride, S,
            s0, s1, s2, s3, s4, s5, s6, s7, w0, w1, w2, w3, w4, w5, w6, w7, HOST, SP, MODERATE, SQUARES,
        )  # fmt: skip
        # what one thread stored another will load
        tl.debug_barrier()
    else:
        table_ptr += b * table_stride
    return table_ptr


class Table:
    """Rows of 1 + 6 S numbers, one for each of the batch, or one for all; lengths in units.

    1 / unit; then S each, widest bandwidth first: -log2(e) / (2 sigma^2), weights, weights / sigma^2, the squarings
    that lead from the one before, places in the caller's sigma; and in the caller's order weights / sigma^3, what
    the gradient to sigma is multiplied with. scaled says whether the unit may differ from 1, as far as the host
    knows. rows is None until fill() or own(): programs that make their own row save a launch.
    """

    def __init__(self, sigma, weights, x, dtype=None, squares=4):
        sigma, weights = sigma.detach(), weights.detach()
        self.batch, self.count, self.device = x.shape[0], sigma.shape[1], x.device
        self.dtype = dtype or accumulator(x)
        self.width = 1 + 6 * self.count
        shared = all(t.shape[0] == 1 or t.stride(0) == 0 for t in (sigma, weights))
        self.different = 1 if shared else self.batch
        self.stride = 0 if shared else self.width
        self.rows = self.limit = None
        moderate = _MODERATE[self.dtype]
        self.scaled = True
        if sigma.device.type == "cpu" and self.batch:
            values = [v for row in (sigma[:1] if shared else sigma).tolist() for v in row]
            self.scaled = not all(2.0 ** (1 - moderate) < v < 2.0 ** (moderate - 1) for v in values)
        few = shared and self.count <= _NUMBERS and self.batch > 0
        host, strides, numbers, self.pointers = 0, [], [], []
        for bit, given in ((1, sigma), (2, weights)):
            # a bandwidth found on the device may have weights that are numbers
            if few and given.device.type == "cpu":
                host |= bit
                numbers += _bits(given[0].tolist())
                # of the kind that the table has, since a kernel is compiled for each
                there = x.new_empty(0, dtype=self.dtype)
            else:
                # numbers for each of a batch, or more than fit into arguments, are copied: no graph can capture that
                numbers += [0] * _NUMBERS
                there = given.to(x.device)
                there = there if there.stride(-1) == 1 else there.contiguous()
            strides.append(0 if shared else there.stride(0))
            self.pointers.append(there)
        # as the kernels take them
        self.numbers = (*strides, *numbers)
        self.constants = {
            "HOST": host,
            "SP": triton.next_power_of_2(max(1, self.count)),
            "MODERATE": moderate,
            "SQUARES": squares,
        }

    def own(self, programs, copies=1, few=_FEW):
        """Whether so many programs of each of the batch, so many times, make a row each; else it is filled now.

        Kernels that come later read what the first programs made.
        """
        if self.rows is not None:
            return False
        if self.count > _NUMBERS or not 0 < copies * self.batch * programs <= few:
            self.fill()
            return False
        self.stride = programs * self.width
        self.rows = torch.empty(copies, self.batch, self.stride, dtype=self.dtype, device=self.device)
        return True

    def fill(self):
        self.rows = torch.empty(self.different, self.width, dtype=self.dtype, device=self.device)
        self.limit = torch.empty(SLOTS, dtype=torch.int32, device=self.device)
        if self.batch:
            with torch.cuda.device_of(self.rows):
                _table_kernel[(self.different,)](
                    self.rows, *self.pointers, self.limit, self.count, *self.numbers, **self.constants, num_warps=1,
                    **FUSION,
                )  # fmt: skip
        return self


def _bits(values):
    # signed, as integers of kernels are
    padded = values + [1.0] * (_NUMBERS - len(values))
    return list(struct.unpack(f"<{_NUMBERS}q", struct.pack(f"<{_NUMBERS}d", *padded)))


def accumulator(x):
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def triton_dtype(dtype):
    return tl.float64 if dtype == torch.float64 else tl.float32
