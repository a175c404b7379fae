"""The bandwidths in the units of the points, and for which pairs the product's rounding would be felt.

Those pairs are near, and get the sum of squared differences in place of |x|^2 + |y|^2 - 2 x.y. For the error
e = e_x + e_y of that (points.py):

- A stored kernel may be wrong by `tol`: exp(-c d2) c e <= tol, c = 1 / (2 sigma^2), holds from log(c e / tol) / c on.
  The logarithm is at most its tangent at any r, so near is d2 <= e / (r tol) + (log r - 1) / c, with r the mean of
  c e / tol, or 1 where that is less. Of several bandwidths c is the narrowest one's; with r <= exp(1) that suffices
  for the wider ones.
- The exponent of a term may be wrong by a share of itself, where a density is wanted no better: d2 <= e / share.
- A term of a sum may be wrong by a share `rel` of itself, see _near. The bound is then one for all pairs: slope is 0.
- Gradients to bandwidths are sums of exponents times kernels, those to weights are sums of kernels of one bandwidth,
  even of one without weight: there, too, an exponent may be wrong by a share of itself.

Near is d2 <= slope e + offset.
Whether a pair is near does not depend on where in a tile it lies. Where many pairs would be, all are: offset = inf. A
tile with a near pair costs the product and the differences, so that few near pairs are many: a sample tells.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np

from .arrays import empty, fill, part, reshaped, zeros
from .calls import EXAMPLE_RUN, by_pointer
from .compiled import inner
from .points import centre_and_scale, fill_points, make_points
from .vector import BYTES, fma, load, splat, store

LOG2_E = 1.4426950408889634

# for a call without baselines, whatever its batch
NO_BASELINE = np.empty((1, 0))

# of the error that the contract allows, what the distance may use: absolute for a stored kernel, else relative
_TOLERANCE = {
    # parameter: the exponents of kernels, for the gradients to bandwidths and weights; exponent: those of a density
    np.dtype(np.float32): {"kernel": 8e-7, "sum": 6e-6, "gradient": 1.2e-5, "parameter": 8e-6, "exponent": 2.5e-6},
    # exponents of a density; that of float32 data is rounded to float32
    np.dtype(np.float64): {
        "kernel": 6e-15,
        "sum": 4e-14,
        "gradient": 1e-13,
        "parameter": 2e-14,
        "density32": 1e-8,
        "density64": 4e-14,
    },
}
# pairs nearer than this share of the norms are pulled by their difference: (y - c) - (x - c) cancels; of others y - c
# is at most 16 times as long as y - x, and so is what rounding does to a sum
_PULL_NEAR = 4e-3
# least exponent of a near pair that a stored float32 K still shows
_TELLING = 1e-4
# up to here the product saves less than its preparation costs, or nothing at all
_FEW_COORDINATES = 4
_FEW_PRODUCTS = 1 << 18

# points of either side that a sample of pairs takes
_SAMPLE = 8

# (a bandwidth this moderate, data this moderate) need no scaling; the largest exponent that data may be scaled to
_MODERATE = {np.dtype(np.float32): (30, 50, 125), np.dtype(np.float64): (200, 400, 1000)}

_LIMITS = {np.dtype(t): tuple(float(v) for v in (np.finfo(t).eps, np.finfo(t).tiny, np.finfo(t).max)) for t in "fd"}

# a ladder: kernel s is kernel s - 1 squared this many times; 0 is a new exponential
_FRESH = 0


class Plan(NamedTuple):
    """How distances are taken, and the bandwidths in the units of the points, widest first."""

    finite: bool  # no NaN, no infinity
    slope: np.ndarray  # (B,) see the module
    offset: np.ndarray  # (B,)
    pull_near: np.ndarray  # (B,) up to which squared distance pairs are pulled one by one
    reads_kernels: np.ndarray  # (B,) whether gradients made from a stored K are as right as from new kernels
    unit: np.ndarray  # (B,) lengths times unit are lengths in the caller's units
    scale: np.ndarray  # (B, S) log2(e) / (2 sigma^2)
    weights: np.ndarray  # (B, S)
    weights_over_sigma2: np.ndarray  # (B, S)
    squarings: np.ndarray  # (B, S)
    baseline: np.ndarray  # (B, S) 1 or 0, subtracted from each kernel
    order: np.ndarray  # (B, S) places in the caller's sigma


def example_plan(dtype):
    """A Plan of one type for each dtype."""
    per_batch, per_bandwidth, places = np.zeros(1), np.zeros((1, 1), dtype), np.zeros((1, 1), np.int64)
    reads = np.zeros(1, np.bool_)
    return Plan(True, *[per_batch] * 3, reads, per_batch, *[per_bandwidth] * 3, *[places] * 3)


@inner
def _near(c, a, error, bound):
    """The least d2 from which on an `error` of it changes sum_s a_s exp(-c_s d2) by at most `bound` of its value.

    To first order that is error times the mean of c under these terms; it falls as d2 grows. inf where it stays.
    """
    least = np.inf
    for s in range(len(c)):
        if a[s] > 0:
            least = min(least, c[s])
    if least == np.inf:
        return -1.0
    if not least * error < bound:
        return np.inf
    distance = -1.0
    while True:
        top = bottom = 0.0
        for s in range(len(c)):
            # the widest taken out, so that something is left
            term = a[s] * math.exp(-(c[s] - least) * max(distance, 0.0))
            top += c[s] * term
            bottom += term
        if top * error <= bound * bottom:
            return distance
        distance = max(1.25 * distance, 0.25 / c[len(c) - 1])


@inner
def _greatest_and_mean(x, y, row, x_count, y_count):
    """Greatest number of a row of x plus that of y; mean plus mean."""
    both_greatest = both_mean = 0.0
    for values, count in ((x, x_count), (y, y_count)):
        greatest = mean = 0.0
        for i in range(count):
            v = values[row, i]
            # a NaN does not count
            if v == v:
                greatest = max(greatest, v)
                mean += v
        both_greatest += greatest
        both_mean += mean / max(count, 1)
    return both_greatest, both_mean


@inner
def _many_near(x, y, b, limit, sample):
    """Whether so many pairs are nearer than `limit` that differences alone take less time; by a sample of pairs.

    sample is memory for its columns and distances, (D + 1) _SAMPLE numbers.
    """
    if limit < 0:
        return False
    if not limit < np.inf:
        return True
    n, m, dims, width = x.count, y.count, y.columns.shape[2], y.columns.shape[3]
    pairs = near = total = squares = 0.0
    lanes = BYTES // 8
    columns, d2 = part(sample, 0, dims * _SAMPLE), part(sample, dims * _SAMPLE, sample.size)
    numbers = reshaped(y.columns, (y.columns.size,))
    for q in range(_SAMPLE):
        j = (2 * q + 1) * m // (2 * _SAMPLE)
        at = (b * y.columns.shape[1] + j // width) * dims * width + j % width
        for k in range(dims):
            columns[k * _SAMPLE + q] = numbers[at + k * width]
    for p in range(_SAMPLE):
        row = x.rows[b, (2 * p + 1) * n // (2 * _SAMPLE)]
        for q in range(0, _SAMPLE, lanes):
            sums = splat(0.0)
            for k in range(dims):
                away = load(columns, k * _SAMPLE + q) - splat(np.float64(row[k]))
                sums = fma(away, away, sums)
            store(d2, q, sums)
        for q in range(_SAMPLE):
            # a point and maybe itself; a NaN
            if q == p or not d2[q] < np.inf:
                continue
            pairs += 1
            near += d2[q] <= limit
            total += d2[q]
            squares += d2[q] * d2[q]
    if pairs == 0:
        return True
    mean = total / pairs
    deviation = math.sqrt(max(squares / pairs - mean * mean, 0.0))
    return near > 1 or not limit <= max(0.02 * mean, mean - 3 * deviation)


@inner
def _ladders(memory, bandwidths, exponents, bounds, dtype):
    """The last six fields of a Plan, in units of 2**exponents, and the terms of each bandwidth (3, B, S).

    The terms are 1 / (2 sigma^2), |weight|, and their product, for a sum of kernels and for pulls.
    """
    (sigma, weights, baseline), eps, squares = bandwidths, bounds[1], bounds[9]
    smallest, largest = bounds[7], bounds[8]
    batch, count = sigma.shape
    of_bandwidth, places = empty(memory, (3, batch, count), dtype), zeros(memory, (3, batch, count), np.int64)
    scale, sorted_weights, weights_over_sigma2 = of_bandwidth[0], of_bandwidth[1], of_bandwidth[2]
    squarings, order, ordered_baseline = places[0], places[1], places[2]
    terms = empty(memory, (3, batch, count), np.float64)
    for b in range(batch):
        c, a, pulled = terms[0, b], terms[1, b], terms[2, b]
        for s in range(count):
            order[b, s] = s
            # insertion, widest first
            t = s
            while t > 0 and sigma[b, order[b, t - 1]] < sigma[b, s]:
                order[b, t] = order[b, t - 1]
                t -= 1
            order[b, t] = s
        run = 0
        for s in range(count):
            scaled = math.ldexp(sigma[b, order[b, s]], -exponents[b])
            w = weights[b, order[b, s]]
            c[s] = 0.5 / scaled / scaled
            a[s] = abs(w)
            pulled[s] = a[s] * c[s]
            # clipped, because 0 times infinity would be NaN where equal points must give 1
            scale[b, s] = min(max(c[s] * LOG2_E, smallest), largest)
            sorted_weights[b, s] = w
            # clipped well inside the range, because infinity times a difference of 0 would be NaN
            weights_over_sigma2[b, s] = min(max(w / scaled / scaled, -largest / 2.0**20), largest / 2.0**20)
            ratio = c[s] / c[s - 1] if s > 0 else 0.0
            steps = 1 if abs(ratio - 2) <= 8 * eps else 2 if abs(ratio - 4) <= 16 * eps else _FRESH
            run = run + steps if steps > 0 and run + steps <= squares else 0
            squarings[b, s] = steps if run > 0 else _FRESH
            if baseline.shape[1] > 0:
                ordered_baseline[b, s] = np.int64(baseline[b, order[b, s]])
    return (scale, sorted_weights, weights_over_sigma2, squarings, ordered_baseline, order), terms


@inner
def _plan(memory, finite, points, bandwidths, exponents, bounds):
    """The Plan for the tolerances in `bounds` that are not 0."""
    x, y = points
    few, _, kernel, exponent, total, gradient, parameter, _, largest, _ = bounds
    batch, count = bandwidths[0].shape
    of_batch, reads_kernels = empty(memory, (4, batch), np.float64), empty(memory, batch, np.bool_)
    slope, offset, pull_near, unit = of_batch[0], of_batch[1], of_batch[2], of_batch[3]
    ladders, terms = _ladders(memory, bandwidths, exponents, bounds, x.norms.dtype)
    sample = empty(memory, 0 if few else (y.columns.shape[2] + 1) * _SAMPLE, np.float64)
    for b in range(batch):
        unit[b] = 2.0 ** exponents[b]
        c, a, pulled = terms[0, b], terms[1, b], terms[2, b]
        slope[b], offset[b], pull_near[b] = 0.0, np.inf, -1.0
        # kernels are K over the weight
        reads_kernels[b] = count == 1 and 2.0**-60 <= a[0] <= 2.0**60
        if not few:
            greatest, _ = _greatest_and_mean(x.norms, y.norms, b, x.count, y.count)
            greatest_error, mean_error = _greatest_and_mean(x.norms, y.norms, batch + b, x.count, y.count)
            limit = -1.0
            if kernel > 0:
                # kernels that are squares of others round more
                allowed = kernel if count == 1 else 0.85 * kernel
                r = max(c[len(c) - 1] * mean_error / allowed, 1.0)
                if not (count == 1 and r < largest):
                    r = min(r, math.e)
                slope[b], offset[b] = 1 / (allowed * r), (math.log(r) - 1) / c[len(c) - 1]
                limit = slope[b] * mean_error + offset[b]
            if total > 0:
                limit = max(limit, _near(c, a, greatest_error, total))
            if gradient > 0:
                pull_near[b] = _PULL_NEAR * greatest
                least = _near(c, pulled, greatest_error, gradient)
                reads_kernels[b] &= least < 0 and c[0] * pull_near[b] >= _TELLING
                limit = max(limit, pull_near[b], least)
            if parameter > 0:
                limit = max(limit, greatest_error / parameter)
            if exponent > 0:
                slope[b], offset[b] = 1 / exponent, 0.0
                limit = slope[b] * mean_error
            elif not kernel > 0:
                offset[b] = limit
            if not greatest < np.inf or _many_near(x, y, b, limit, sample):
                slope[b], offset[b] = 0.0, np.inf
    of_pairs = (slope, offset, pull_near, reads_kernels)
    return Plan(finite, *of_pairs, unit, *ladders)


@inner
def plan_of_differences(memory, bandwidths, bounds, dtype):
    """The Plan for finite points in the caller's units, whose distances are all differences."""
    batch = len(bandwidths[0])
    ladders, _ = _ladders(memory, bandwidths, zeros(memory, batch, np.int64), bounds, dtype)
    near, ones = empty(memory, batch, np.float64), empty(memory, batch, np.float64)
    fill(near, np.inf)
    fill(ones, 1)
    return Plan(True, near, near, near, zeros(memory, batch, np.bool_), ones, *ladders)


def _pack_example(dtype):
    x, one = np.zeros((1, 1, 1), dtype), np.ones((1, 1))
    return EXAMPLE_RUN, (x, x), (one, one, one), limits(dtype, 1, 1, "kernel"), (True, True, True)


@by_pointer(_pack_example)
def make_plan(run, points, bandwidths, limit, copies):
    (x, y), (moderate, bounds), (same, x_columns, y_rows) = points, limit, copies
    finite, change, exponents = centre_and_scale(run[2], points, bandwidths[0], moderate, bounds[8])
    half_eps = bounds[1] / 2
    packed_x = make_points(run, x, change, half_eps, True, x_columns)
    packed_y = packed_x if same else make_points(run, y, change, half_eps, y_rows, True)
    packed = packed_x, packed_y
    return _plan(run[2], finite, packed, bandwidths, exponents, bounds), packed


# the loops that `pack` calls: an operation's pointers begin with theirs
PACKING = fill_points, make_plan


@inner
def pack(run, points, bandwidths, limit, copies):
    """The Plan and the Points (x, y) of points x (B, N, D), y (B, M, D), for `limits`.

    bandwidths are sigma, weights and baseline, (B, S) float64, or NO_BASELINE. Points are ready for sweeps of
    x as rows against y as columns. copies says whether y is x, whether x is wanted as columns too, and y as rows.
    """
    return make_plan(run[0][1], (run, points, bandwidths, limit, copies))


def limits(dtype: np.dtype, pairs: int, dims: int, *wanted: str) -> tuple[tuple, tuple]:
    """For `pack`: the range of moderate numbers, and the tolerances `wanted`, keys of _TOLERANCE."""
    return _limits(dtype, dims <= _FEW_COORDINATES or pairs * dims <= _FEW_PRODUCTS, *wanted)


@cache
def _limits(dtype: np.dtype, few: bool, *wanted: str) -> tuple[tuple, tuple]:
    tolerance = {what: _TOLERANCE[dtype][what] for what in wanted}
    kernel, gradient = tolerance.pop("kernel", 0.0), tolerance.pop("gradient", 0.0)
    exponent, parameter = tolerance.pop("exponent", 0.0), tolerance.pop("parameter", 0.0)
    total = min(tolerance.values(), default=0.0)
    eps, smallest, largest = _LIMITS[dtype]
    bounds = (few, eps, kernel, exponent, total, gradient, parameter, smallest, largest, 2 if kernel else 4)
    return _MODERATE[dtype], bounds
