"""Numbers of the host as arguments of kernels: a CUDA graph cannot capture a copy of them to the device."""

import math
import struct
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

# up to this many travel as kernel arguments
MOST = 9


class Encoded(NamedTuple):
    """Float64 numbers as integers, since floats are passed as float32.

    Triton compiles a kernel anew for an integer in a tuple that is 1, a multiple of 16, or below 2^31. So all of
    these are odd and large: the lowest bits of the numbers are set, and their true values are in `lowest`.
    """

    bits: tuple[int, ...]
    lowest: int


class Numbers(NamedTuple):
    """Numbers, the same for all of the batch."""

    floats: tuple[float, ...]
    # what a kernel gets, always as a whole
    encoded: Encoded
    # whether all are far within the range of float32, of float64
    moderate: tuple[bool, bool]
    # the integers are large: only the least of float64's numbers make small ones
    usual: bool
    # of runs of at most 2, and of 4, squarings: steps (see the table of bandwidths) in float32, and in float64, two
    # bits each, widest first
    steps: tuple[tuple[int, int], tuple[int, int]]


# exponents of moderate bandwidths, by dtype: squares of differences between points overflow, or vanish, only where
# the kernel is 0, or 1, to within rounding
MODERATE = {torch.float32: 30, torch.float64: 200}


@lru_cache(maxsize=256)
def numbers(floats: tuple[float, ...]) -> Numbers:
    """At most MOST of them."""
    filled = floats + (1.0,) * (MOST - len(floats))
    # the bits of 0.0 are a small integer, those of -0.0 are not
    bits = struct.unpack(f"<{MOST}q", struct.pack(f"<{MOST}d", *(v or -0.0 for v in filled)))
    lowest = sum((bit & 1) << k for k, bit in enumerate(bits))
    narrow, wide = (all(2.0 ** (1 - m) < v < 2.0 ** (m - 1) for v in floats) for m in MODERATE.values())
    encoded = Encoded(tuple(bit | 1 for bit in bits), 1 << 40 | lowest << 1 | 1)
    steps = tuple(tuple(_steps(floats, most, torch.finfo(dtype).eps) for dtype in MODERATE) for most in (2, 4))
    return Numbers(floats, encoded, (narrow, wide), all(abs(bit) >= 2**31 for bit in bits), steps)


def _steps(floats, most, eps):
    """As kernels find the steps of bandwidths that are on the device."""
    found, last, walked = 0, math.inf, 0
    for place, width in enumerate(sorted(floats, reverse=True)):
        ratio = last / width if width else math.inf
        ratio *= ratio
        step = 1 if abs(ratio - 2) <= 8 * eps else 2 if abs(ratio - 4) <= 16 * eps else 0
        before, walked = walked, walked + step if step else 0
        # a run of squarings begins anew where it passes a multiple of so many
        step *= walked // (most + 1) == before // (most + 1)
        found, last = found | step << 2 * place, width
    return found


@triton.jit
def number(k, encoded):
    """The k-th of Encoded numbers, float64."""
    chosen = encoded.bits[8]
    for i in tl.static_range(8):
        chosen = tl.where(k == i, encoded.bits[i], chosen)
    return ((chosen & -2) | ((encoded.lowest >> (k + 1)) & 1)).to(tl.float64, bitcast=True)
