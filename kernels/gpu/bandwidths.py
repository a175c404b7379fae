"""The table of bandwidths that the kernels read, made on the device without waiting for it.

Lengths are measured in a power of two near sigma, which is exact, so that squares stay in range wherever the kernel
is neither 0 nor 1. For bandwidths of moderate size that unit is 1, and the sweeps leave the multiplication out.

Bandwidths stand widest first. Where 1/sigma^2 is two or four times that of the one before, the table says so (steps
of 1 or 2), and its kernel is the square, or the square's square, of that one's: a multiplication, not an exponential.
Squaring doubles a relative error, so runs are cut: at two squarings for a kernel that is stored, at four for sums.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .launch import launch, refuse_plan
from .numbers import MODERATE, MOST, Encoded, Numbers, number, numbers
from .tiles import FUSION, SIZES

LOG2_E = tl.constexpr(1.4426950408889634)
# up to this many are sorted, by comparing all pairs; more stay in the caller's order, without squaring
_SORTED = tl.constexpr(32)
# up to this many programs each make a row of the table, which saves a launch; more would take longer than the launch
_FEW = 1024
# and only if these are so few
_FEW_BANDWIDTHS = 8


class Bandwidths(NamedTuple):
    """The argument of a kernel: its table, and what a row of it is made from."""

    table: torch.Tensor
    # of the device; where they are numbers of the host any pointer
    sigma: torch.Tensor
    weights: torch.Tensor
    sigma_numbers: Encoded
    weights_numbers: Encoded


class TableConstants(NamedTuple):
    # programs make their own rows
    OWN: bool
    # bit 0: sigma are numbers, bit 1: weights are
    HOST: int
    # bit 0: sigma has a row for each of the batch, bit 1: weights have
    EACH: int
    # S, rounded up to a power of two
    SP: int
    # S, where it is small: loops over bandwidths are unrolled, since a loop inside another keeps the other's loads
    # from being scheduled
    COUNT: int
    MODERATE: int
    # most squarings in a run
    SQUARES: int
    # of few bandwidths that are numbers the steps that the table has, two bits each; else -1
    STEPS: int


class Row(NamedTuple):
    """Pointers to a row of the table: 1 / unit, then S numbers each, in units.

    The first five are ordered widest bandwidth first, the last as the caller's sigma: the gradient to sigma is
    multiplied with it.
    """

    unit: object
    # -log2(e) / (2 sigma^2)
    scales: object
    weights: object
    weights_over_sigma2: object
    # squarings that lead from the bandwidth before
    steps: object
    # in the caller's sigma
    places: object
    weights_over_sigma3: object


@triton.jit
def row_at(ptr, S):
    return Row(
        ptr, ptr + 1, ptr + (1 + S), ptr + (1 + 2 * S), ptr + (1 + 3 * S), ptr + (1 + 4 * S), ptr + (1 + 5 * S)
    )


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
    # steps since the last place that has none, in runs of at most SQUARES
    before = place[None, :] <= place[:, None]
    head = tl.max(tl.where(before & (steps == 0)[None, :], place[None, :], 0), 1)
    walked = tl.sum(tl.where(before & (place[None, :] > head[:, None]), steps[None, :], 0), 1)
    fresh = walked // (SQUARES + 1) != (walked - steps) // (SQUARES + 1)
    return place, tl.where(fresh, 0, steps)


@triton.jit
def sigma_of(bandwidths, b, k, S, TABLE: tl.constexpr):
    """The caller's k-th sigma for b of the batch, float64."""
    if TABLE.HOST & 1:
        return number(k, bandwidths.sigma_numbers)
    else:
        sigma_ptr = bandwidths.sigma + (b * S if TABLE.EACH & 1 else 0)
        return tl.load(sigma_ptr + k, mask=k < S, other=1.0).to(tl.float64)


@triton.jit
def _fill(row, bandwidths, b, S, TABLE: tl.constexpr):
    """Writes a row of the table for b of the batch."""
    SP: tl.constexpr = TABLE.SP
    k = tl.arange(0, SP)
    inside = k < S
    sigma = sigma_of(bandwidths, b, k, S, TABLE)
    if TABLE.HOST & 2:
        weights = number(k, bandwidths.weights_numbers)
    else:
        weights_ptr = bandwidths.weights + (b * S if TABLE.EACH & 2 else 0)
        weights = tl.load(weights_ptr + k, mask=inside, other=0.0).to(tl.float64)
    # the exponent that the bits of a positive float64 hold
    exponent = (sigma.to(tl.int64, bitcast=True) >> 52) - 1023
    low = tl.min(tl.where(inside, exponent, 2000), 0)
    high = tl.max(tl.where(inside, exponent, -2000), 0)
    middle = tl.where((low > -TABLE.MODERATE) & (high < TABLE.MODERATE), 0, (low + high) >> 1)
    middle = tl.minimum(tl.maximum(middle, -1000), 1000)
    inverse = ((1023 - middle) << 52).to(tl.float64, bitcast=True)
    units = sigma * inverse
    squares = units * units
    kind = row.unit.dtype.element_ty
    if row.unit.dtype.element_ty == tl.float64:
        EPS: tl.constexpr = 2.0**-52
        tiny = tl.full([SP], 2.2250738585072014e-308, tl.float64)
        most = tl.full([SP], 1.7976931348623157e308, tl.float64)
    else:
        EPS: tl.constexpr = 2.0**-23
        tiny = tl.full([SP], 1.1754943508222875e-38, tl.float64)
        most = tl.full([SP], 3.4028234663852886e38, tl.float64)
    place, steps = k, tl.zeros([SP], tl.int32)
    if SP > 1 and SP <= _SORTED:
        place, steps = _ladder(sigma, inside, k, SP, TABLE.SQUARES, EPS)
    # clamped, because 0 times infinity would be NaN where equal points must give 1
    scale = _clamp(tl.full([SP], LOG2_E / 2, tl.float64) / squares, tiny, most)
    over_sigma3 = _clamp(weights / squares / sigma, -most, most)
    most *= 2.0**-20
    tl.store(row.unit, inverse.to(kind))
    tl.store(row.scales + place, (-scale).to(kind), mask=inside)
    tl.store(row.weights + place, weights.to(kind), mask=inside)
    tl.store(row.weights_over_sigma2 + place, _clamp(weights / squares, -most, most).to(kind), mask=inside)
    tl.store(row.steps + place, steps.to(kind), mask=inside)
    tl.store(row.places + place, k.to(kind), mask=inside)
    tl.store(row.weights_over_sigma3 + k, over_sigma3.to(kind), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def _table_kernel(bandwidths, S, TABLE: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    _fill(row_at(bandwidths.table + b * (1 + 6 * S), S), bandwidths, b, S, TABLE)


@triton.jit
def row_of_table(bandwidths, b, program, S, stride, TABLE: tl.constexpr):
    """The row for b of the batch: filled before, or (OWN) made by this program in the place of its number."""
    if TABLE.OWN:
        row = row_at(bandwidths.table + program.to(tl.int64) * (1 + 6 * S), S)
        _fill(row, bandwidths, b, S, TABLE)
        # other threads load what one thread stored
        tl.debug_barrier()
    else:
        row = row_at(bandwidths.table + b * stride, S)
    return row


class Table:
    """Rows of 1 + 6 S numbers, one for each of the batch, or one for all; see Row.

    sigma and weights are Numbers, or tensors (B, S). scaled says whether the unit may differ from 1, as far as the
    host knows. rows is None until fill() or own(): programs that make their own row save a launch.
    """

    def __init__(self, sigma, weights, x, dtype=None, squares=4):
        self.batch, self.device = x.shape[0], x.device
        self.dtype = dtype or accumulator(x)
        self.rows = None
        sigma, weights = host_numbers(sigma), host_numbers(weights)
        self.sigma, self.count = sigma, len(sigma.floats) if type(sigma) is Numbers else sigma.shape[1]
        self.width = 1 + 6 * self.count
        self.scaled = not _moderate(sigma, self.dtype)
        host = each = 0
        self._tensors, self._numbers = [None, None], [_NONE, _NONE]
        for k, given in enumerate((sigma, weights)):
            # bandwidths that were found on the device may have weights that are numbers
            if type(given) is Numbers:
                host |= 1 << k
                self._numbers[k] = given.encoded
                continue
            self._tensors[k] = self._on_device(given)
            each |= (given.shape[0] > 1 and given.stride(0) != 0) << k
        self.different = self.batch if each else 1
        self.stride = self.width if each else 0
        self.sp = _power_of_2(self.count)
        few = self.count if self.count <= MOST else 0
        steps = sigma.steps[squares > 2][self.dtype == torch.float64] if type(sigma) is Numbers else -1
        self._constants = TableConstants(False, host, each, self.sp, few, MODERATE[self.dtype], squares, steps)

    def _on_device(self, given):
        tensor = given.detach()
        if tensor.device != self.device:
            # a copy, which no graph can capture, of numbers that differ in the batch or are too many
            tensor = tensor.to(self.device)
        if tensor.stride(-1) != 1 or (tensor.shape[0] > 1 and tensor.stride(0) not in (0, tensor.shape[1])):
            tensor = tensor.contiguous()
        return tensor

    def arguments(self):
        """Of a kernel: the bandwidths, and the step from one of the batch to the next."""
        # in the dtype of the table: Triton compiles a kernel for each dtype
        return Bandwidths(self.rows, *(self.rows if t is None else t for t in self._tensors), *self._numbers)

    def constants(self, own=False):
        return self._constants._replace(OWN=own)

    def own(self, programs, copies=1, few=_FEW):
        """Whether so many programs of each of the batch, so many times, make a row each; else it is filled now.

        Later kernels read what the first programs made.
        """
        if self.rows is not None:
            return False
        if self.count > _FEW_BANDWIDTHS or not 0 < copies * self.batch * programs <= few:
            self.fill()
            return False
        self.stride = programs * self.width
        self.rows = torch.empty(copies, self.batch, self.stride, dtype=self.dtype, device=self.device)
        return True

    def fill(self):
        self.rows = torch.empty(self.different, self.width, dtype=self.dtype, device=self.device)
        if self.batch:
            launch(
                _table_kernel, (self.different,), self.arguments(), self.count,
                TABLE=self.constants(), num_warps=1, **FUSION,
            )  # fmt: skip
        return self


# in the place of numbers that are tensors
_NONE = numbers(()).encoded


def host_numbers(given):
    """Numbers, from a tensor on the CPU too if they are few and the same for all of the batch; a tensor as it is."""
    if type(given) is tuple:
        refuse_plan()
        given = torch.tensor([given], dtype=torch.float64, device="cpu")
    if type(given) is Numbers or given.device.type != "cpu" or given.numel() == 0 or given.shape[1] > MOST:
        return given
    if given.shape[0] != 1 and given.stride(0) != 0:
        return given
    refuse_plan()
    return numbers(tuple(given.detach()[0].double().tolist()))


def one_for_each(value, sigma, x):
    """The same number for each bandwidth."""
    count = sigma.shape[1] if isinstance(sigma, torch.Tensor) else len(getattr(sigma, "floats", sigma))
    return numbers((value,) * count) if count <= MOST else x.new_full((1, count), value, dtype=torch.float64)


def _moderate(sigma, dtype):
    """Whether all bandwidths are known to be far within the range of the dtype."""
    if type(sigma) is Numbers:
        return sigma.moderate[dtype == torch.float64]
    if sigma.device.type != "cpu":
        return False
    refuse_plan()
    found, power = sigma.detach(), MODERATE[dtype] - 1
    return bool(((found > 2.0**-power) & (found < 2.0**power)).all())


def _power_of_2(count):
    return 1 << max(0, count - 1).bit_length()


def accumulator(x):
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def triton_dtype(dtype):
    return tl.float64 if dtype == torch.float64 else tl.float32
