"""The data as the sweeps read it: columns transposed, everything scaled by one power of two.

A power of two scales exactly, so differences keep every bit; any other scaling, or centring, would round the
coordinates before they are subtracted. It is 1 unless sigma or the data are so large or small that a square could
leave the range of the dtype.
"""

import math
from typing import NamedTuple

import numpy as np

from .cache import jit

LOG2_E = 1.4426950408889634

# (a bandwidth this moderate, data this moderate) need no scaling; the largest exponent that data may be scaled to
_MODERATE = {np.dtype(np.float32): (30, 50, 125), np.dtype(np.float64): (200, 400, 1000)}


@jit()
def _greatest(x):
    greatest = 0.0
    for v in x:
        a = abs(v)
        if greatest < a < np.inf:
            greatest = a
    return greatest


def _exponent(arrays: list[np.ndarray], sigma: np.ndarray) -> int:
    """e such that data and sigma times 2**-e keep their squares in range, where they matter."""
    bandwidth, moderate, most = _MODERATE[arrays[0].dtype]
    if not sigma.size:
        return 0
    low, high = math.frexp(sigma.min())[1], math.frexp(sigma.max())[1]
    data = math.frexp(max(_greatest(a.reshape(-1)) for a in arrays))[1]
    if -bandwidth < low and high < bandwidth and data < moderate:
        return 0
    # differences beyond the range are infinite, and their kernel 0 as it should be; but the data must stay finite,
    # or equal points would differ by inf - inf
    return max((low + high) // 2, data - most)


class Points(NamedTuple):
    rows: np.ndarray  # (B, N, D)
    columns: np.ndarray  # (B, D, N)


class Packed(NamedTuple):
    """One or two point sets in common units, and the bandwidths in the same units."""

    x: Points
    y: Points
    scale: np.ndarray  # (B, S) log2(e) / (2 sigma^2)
    sigma: np.ndarray  # (B, S) float64
    unit: float  # 2**e: lengths times unit are lengths in the caller's units


def _points(x: np.ndarray) -> Points:
    rows = np.ascontiguousarray(x)
    return Points(rows, np.ascontiguousarray(rows.transpose(0, 2, 1)))


def _scaled(x: np.ndarray, e: int) -> np.ndarray:
    # two steps, since 2**-e alone can leave the dtype's range
    half = x.dtype.type(2.0 ** (-e // 2))
    return x * half * x.dtype.type(2.0 ** (-e - (-e // 2)))


def pack(x: np.ndarray, y: np.ndarray | None, sigma: np.ndarray) -> Packed:
    """x (B, N, D), y (B, M, D) or None for y = x, sigma (B, S) float64."""
    e = _exponent([x] if y is None else [x, y], sigma)
    if e:
        x, y = _scaled(x, e), None if y is None else _scaled(y, e)
    packed_x = _points(x)
    units = np.ldexp(sigma, -e)
    limits = np.finfo(x.dtype)
    with np.errstate(over="ignore", divide="ignore"):
        # clipped, because 0 times infinity would be NaN where equal points must give 1
        scale = np.clip(LOG2_E / 2 / units / units, limits.tiny, limits.max).astype(x.dtype)
    return Packed(packed_x, packed_x if y is None else _points(y), scale, units, 2.0**e)
