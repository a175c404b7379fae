"""The data as the tiles read it, the bandwidths in the same units, and which form of the distance is allowed.

Points are kept twice: as rows, and as columns, WIDTH points side by side, so that a tile loads coordinate k of WIDTH
points as VECTORS registers. Both are the caller's numbers less a centre, times a power of two, and both changes are
exact, so that a difference of two points is what it was:

- a coordinate is centred only if all its values lie within a factor of 3 of each other, since x - c is exact for
  c / 2 <= x <= 2 c (Sterbenz); where they do not, the centre is not far from the data anyway;
- the power of two is 1 unless sigma or the data are so large or small that a square could leave the dtype's range.

|x|^2 + |y|^2 - 2 x.y has an error of up to e = e_x + e_y, whatever the distance, for any data. A sum is wrong by
eps / 2 times the sum of its partial sums, in the order in which it is taken: A_x for |x|^2, and for x.y at most
(A_x + A_y) / 2, because partial sums of x.y are at most the means of those of |x|^2 and |y|^2. What rounding did to
|x|^2 itself is known, from a sum in two numbers. So e_x = |what it did| + eps / 2 (A_x + |x|^2), the last for the sum
of the norms: 5 to 12 eps |x|^2 of usual data, up to 45 where one coordinate is the greatest by far.

Pairs for which that would be felt in the result are near, and get the sum of squared differences instead:

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

from .calls import address_of, called_at, shared_at
from .compiled import inner
from .memory import take
from .tile import ROWS, SPANS
from .vector import BYTES, at_least, fma, load, splat, store, transpose

LOG2_E = 1.4426950408889634

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
# the exponent of a near pair, at least, where a stored kernel tells which pairs are near
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


class Points(NamedTuple):
    rows: np.ndarray  # (B, at least N, at least D); without a row where not asked for
    columns: np.ndarray  # (B, at least N / WIDTH, D, WIDTH); without a panel where not asked for
    # (2 B, at least N), of points whose distances are wanted: |x|^2, and then e_x, see the module
    norms: np.ndarray
    count: int  # N


class Plan(NamedTuple):
    """How distances are taken, and the bandwidths in the units of the points, widest first."""

    finite: bool  # no NaN, no infinity
    slope: np.ndarray  # (B,) see the module
    offset: np.ndarray  # (B,)
    pull_near: np.ndarray  # (B,) squared distances that are pulled one by one
    reads_kernels: np.ndarray  # (B,) whether gradients of a stored K are as right as with its kernels made anew
    unit: np.ndarray  # (B,) lengths times unit are lengths in the caller's units
    scale: np.ndarray  # (B, S) log2(e) / (2 sigma^2)
    weights: np.ndarray  # (B, S)
    pull_weights: np.ndarray  # (B, S) weights / sigma^2
    squarings: np.ndarray  # (B, S)
    baseline: np.ndarray  # (B, S) what sums less a baseline subtract from each kernel: 1 or 0
    order: np.ndarray  # (B, S) places in the caller's sigma


@inner
def _survey(x, low, high, largest):
    """Extends low (D,) and high (D,) by the finite values of x (N, D); whether all are finite."""
    n, dims = x.shape
    odd = 0
    for i in range(n):
        own = x[i]
        # without branches, so that it becomes vector code
        for k in range(dims):
            v, least, most = own[k], low[k], high[k]
            finite = abs(v) <= largest
            low[k] = v if finite & (v < least) else least
            high[k] = v if finite & (v > most) else most
        for k in range(dims):
            odd += np.int32(not (abs(own[k]) <= largest))
    return odd == 0


@inner
def _pack_points(start, stop, x, centre, factors, rows, columns, norms, panels, half_eps):
    """Panels start to stop, numbered through the batch, of x (B, N, D); rows or columns may be empty: not wanted."""
    n, dims = x.shape[1], x.shape[2]
    width, row = columns.shape[3], rows.shape[2]
    lanes = width // 2
    square = np.empty(lanes * lanes, x.dtype)
    # of e_x; more by the little that its own rounding may be
    share = splat(x.dtype.type(half_eps * 1.01))
    bounds = norms.shape[0] // 2
    # rows that nobody wants are needed for their columns
    spare = np.zeros((1, width, row), x.dtype)
    for number in range(start, stop):
        b, p = number // panels, number % panels
        first, last = p * width, min(p * width + width, n)
        one, two = factors[b, 0], factors[b, 1]
        kept, kept_b, kept_first = spare, 0, 0
        if rows.size:
            kept, kept_b, kept_first = rows, b, first
        for i in range(first, last):
            own = kept[kept_b, kept_first + i - first]
            for k in range(dims):
                own[k] = (x[b, i, k] - centre[b, k]) * one * two
            # what a tile over coordinates reads beyond them
            for k in range(dims, row):
                own[k] = 0
        end = kept.shape[1] if p == panels - 1 else kept_first + width
        for i in range(kept_first + last - first, end):
            kept[kept_b, i] = 0
        for v in range(0, width, lanes):
            # in the order of the tile's sums
            zero = splat(x.dtype.type(0))
            total = wider = part = zero
            # the sum of all partial sums; the norm in two numbers
            partial = high = low = zero
            for k0 in range(0, dims, lanes):
                transpose(kept, (kept_b * kept.shape[1] + kept_first + v) * row + k0, row, square, 0, lanes)
                for k in range(k0, min(k0 + lanes, dims)):
                    value = load(square, (k - k0) * lanes)
                    part = fma(value, value, part)
                    partial = partial + part
                    term = value * value
                    new = high + term
                    added = new - high
                    low = low + ((high - (new - added)) + (term - added)) + fma(value, value, zero - term)
                    high = new
                    if columns.size:
                        store(columns, ((b * panels + p) * dims + k) * width + v, value)
                # what is added to nothing is not rounded
                if (k0 + lanes) % SPANS[0] == 0:
                    wider = wider + part
                    if (k0 + lanes) % SPANS[1] != SPANS[0]:
                        partial = partial + wider
                    part = zero
                if (k0 + lanes) % SPANS[1] == 0:
                    total = total + wider
                    if k0 + lanes > SPANS[1]:
                        partial = partial + total
                    wider = zero
            norm = total + (wider + part)
            store(norms, b * norms.shape[1] + first + v, norm)
            off = (norm - high) - low
            # the last sums, and that of two norms
            partial = partial + norm
            if dims > SPANS[0]:
                partial = partial + wider + part
            if dims > SPANS[1]:
                partial = partial + norm
            store(norms, (bounds + b) * norms.shape[1] + first + v, fma(partial, share, at_least(off, zero - off)))


@inner
def _surveyed(x, y, sigma, moderate, largest):
    """Whether all is finite, the centre, the power of two as two factors (one can leave the range), its exponent."""
    batch, dims = x.shape[0], x.shape[2]
    centre = np.empty((batch, dims), x.dtype)
    factors = np.empty((batch, 2), x.dtype)
    exponents = np.empty(batch, np.int64)
    low, high = np.empty((batch, dims), x.dtype), np.empty((batch, dims), x.dtype)
    low[:], high[:] = np.inf, -np.inf
    bandwidth, usual, most = moderate
    finite = True
    for b in range(batch):
        finite &= _survey(x[b], low[b], high[b], x.dtype.type(largest))
        finite &= _survey(y[b], low[b], high[b], x.dtype.type(largest))
        greatest = 0.0
        for k in range(low.shape[1]):
            lo, hi = low[b, k], high[b, k]
            # without a finite value lo is above hi
            if 0 < lo <= hi <= 3 * lo or 3 * hi <= lo <= hi < 0:
                centre[b, k] = lo / 2 + hi / 2
            else:
                centre[b, k] = 0
            if lo <= hi:
                greatest = max(greatest, abs(lo - centre[b, k]), abs(hi - centre[b, k]))
        least, most_sigma = sigma[b, 0], sigma[b, 0]
        for value in sigma[b]:
            least, most_sigma = min(least, value), max(most_sigma, value)
        narrow, wide = math.frexp(least)[1], math.frexp(most_sigma)[1]
        data = math.frexp(greatest)[1]
        e = 0
        if not (-bandwidth < narrow and wide < bandwidth and data < usual):
            # differences beyond the range are infinite, and their kernel 0 as it should be; but the data must stay
            # finite, or equal points would differ by inf - inf
            e = max((narrow + wide) // 2, data - most)
        exponents[b] = e
        half = e // 2
        factors[b, 0] = 2.0**-half
        factors[b, 1] = 2.0 ** (half - e)
    return finite, centre, factors, exponents


@inner
def _near(c, a, error, bound):
    """The least distance from which on an `error` of d2 is at most `bound`, relative to sum_s a_s exp(-c_s d2).

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
        distance = max(1.25 * distance, 0.25 / c[-1])


@inner
def _greatest_and_mean(x, y, row, x_count, y_count):
    """Of a row of x the greatest number and the mean, plus those of y."""
    both_greatest = both_mean = 0.0
    for values, count in ((x, x_count), (y, y_count)):
        greatest = mean = 0.0
        for i in range(count):
            v = values[row, i]
            # a NaN is neither
            if v == v:
                greatest = max(greatest, v)
                mean += v
        both_greatest += greatest
        both_mean += mean / max(count, 1)
    return both_greatest, both_mean


@inner
def _many_near(x, y, b, dims, limit):
    """Whether so many pairs are nearer than `limit` that differences alone take less time; by a sample of pairs."""
    if limit < 0:
        return False
    if not limit < np.inf:
        return True
    n, m, width = x.count, y.count, y.columns.shape[3]
    columns = np.empty((dims, _SAMPLE))
    for q in range(_SAMPLE):
        j = (2 * q + 1) * m // (2 * _SAMPLE)
        for k in range(dims):
            columns[k, q] = y.columns[b, j // width, k, j % width]
    found = near = total = squares = 0.0
    d2 = np.empty(_SAMPLE)
    for p in range(_SAMPLE):
        row = x.rows[b, (2 * p + 1) * n // (2 * _SAMPLE)]
        d2[:] = 0
        for k in range(dims):
            own = np.float64(row[k])
            for q in range(_SAMPLE):
                d2[q] += (columns[k, q] - own) ** 2
        for q in range(_SAMPLE):
            # a point and itself, or its like; a NaN
            if q == p or not d2[q] < np.inf:
                continue
            found += 1
            near += d2[q] <= limit
            total += d2[q]
            squares += d2[q] * d2[q]
    if found == 0:
        return True
    mean = total / found
    deviation = math.sqrt(max(squares / found - mean * mean, 0.0))
    return near > 1 or not limit <= max(0.02 * mean, mean - 3 * deviation)


@inner
def _plan(finite, x, y, dims, sigma, weights, baseline, exponents, bounds):
    """The Plan for the tolerances in `bounds` that are not 0."""
    few, eps, kernel, exponent, total, gradient, parameter, smallest, largest, squares = bounds
    batch, count = sigma.shape
    slope, offset, pull_near, unit = np.empty(batch), np.empty(batch), np.empty(batch), np.empty(batch)
    reads_kernels = np.empty(batch, np.bool_)
    of_bandwidth, places = np.empty((3, batch, count), x.norms.dtype), np.zeros((3, batch, count), np.int64)
    scale, sorted_weights, pull_weights = of_bandwidth[0], of_bandwidth[1], of_bandwidth[2]
    squarings, order, ordered_baseline = places[0], places[1], places[2]
    c, a = np.empty(count), np.empty(count)
    for b in range(len(exponents)):
        unit[b] = 2.0 ** exponents[b]
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
            own = math.ldexp(sigma[b, order[b, s]], -exponents[b])
            w = weights[b, order[b, s]]
            c[s] = 0.5 / own / own
            a[s] = abs(w)
            # clipped, because 0 times infinity would be NaN where equal points must give 1
            scale[b, s] = min(max(c[s] * LOG2_E, smallest), largest)
            sorted_weights[b, s] = w
            # clipped well inside the range, because infinity times a difference of 0 would be NaN
            pull_weights[b, s] = min(max(w / own / own, -largest / 2.0**20), largest / 2.0**20)
            ratio = c[s] / c[s - 1] if s > 0 else 0.0
            steps = 1 if abs(ratio - 2) <= 8 * eps else 2 if abs(ratio - 4) <= 16 * eps else _FRESH
            run = run + steps if steps > 0 and run + steps <= squares else 0
            squarings[b, s] = steps if run > 0 else _FRESH
            if baseline.shape[1] > 0:
                ordered_baseline[b, s] = np.int64(baseline[b, order[b, s]])
        slope[b], offset[b], pull_near[b] = 0.0, np.inf, -1.0
        # a weight is taken out of K again
        reads_kernels[b] = count == 1 and 2.0**-60 <= a[0] <= 2.0**60
        if not few:
            greatest, _ = _greatest_and_mean(x.norms, y.norms, b, x.count, y.count)
            greatest_error, mean_error = _greatest_and_mean(x.norms, y.norms, batch + b, x.count, y.count)
            limit = -1.0
            if kernel > 0:
                # kernels that are squares of others round more
                allowed = kernel if count == 1 else 0.85 * kernel
                r = max(c[-1] * mean_error / allowed, 1.0)
                if not (count == 1 and r < largest):
                    r = min(r, math.e)
                slope[b], offset[b] = 1 / (allowed * r), (math.log(r) - 1) / c[-1]
                limit = slope[b] * mean_error + offset[b]
            if total > 0:
                limit = max(limit, _near(c, a, greatest_error, total))
            if gradient > 0:
                pull_near[b] = _PULL_NEAR * greatest
                least = _near(c, a * c, greatest_error, gradient)
                reads_kernels[b] &= least < 0 and c[0] * pull_near[b] >= _TELLING
                limit = max(limit, pull_near[b], least)
            if parameter > 0:
                limit = max(limit, greatest_error / parameter)
            if exponent > 0:
                slope[b], offset[b] = 1 / exponent, 0.0
                limit = slope[b] * mean_error
            elif not kernel > 0:
                offset[b] = limit
            if not greatest < np.inf or _many_near(x, y, b, dims, limit):
                slope[b], offset[b] = 0.0, np.inf
    of_pairs = (slope, offset, pull_near, reads_kernels)
    return Plan(finite, *of_pairs, unit, scale, sorted_weights, pull_weights, squarings, ordered_baseline, order)


@inner
def _row(dims, width):
    """The length of a row, in which a tile over coordinates may end beyond the last."""
    # an odd number of registers apart, rows fall on all lines of the cache in turn
    return (dims + width - 1) // width * width + width // 2


@inner
def panel_width(like):
    """WIDTH for an array, or its dtype."""
    return 2 * BYTES // like.itemsize


@cache
def _pack_points_address(dtype: np.dtype) -> int:
    row, point = np.zeros((1, 1), dtype), np.zeros((1, 1, 1), dtype)
    return address_of(_pack_points, 0, 0, point, row, row, point, point[None], row, 1, 0.5)


_share_pack_points = shared_at(_pack_points)


@inner
def _packed(pack_points, workers, arena, x, centre, factors, half_eps, as_rows, as_columns):
    """x less the centre, times the factors."""
    batch, n, dims = x.shape
    width = panel_width(x)
    row = _row(dims, width)
    panels = (n + width - 1) // width
    # a tile of rows may begin at the last one
    count, wide = panels * width + ROWS if as_rows else 0, panels if as_columns else 0
    rows = take(arena, batch * count * row, x).reshape((batch, count, row))
    columns = take(arena, batch * wide * dims * width, x).reshape((batch, wide, dims, width))
    norms = np.empty((2 * batch, panels * width + width), x.dtype)
    task = (x, centre, factors, rows, columns, norms, panels, half_eps)
    _share_pack_points(pack_points, workers, (batch * panels,), (task,))
    return Points(rows, columns, norms, n)


@inner
def _pack(pack_points, workers, arena, x, y, same, sigma, weights, baseline, x_columns, y_rows, moderate, bounds):
    finite, centre, factors, exponents = _surveyed(x, y, sigma, moderate, bounds[8])
    half_eps = bounds[1] / 2
    packed_x = _packed(pack_points, workers, arena, x, centre, factors, half_eps, True, x_columns)
    packed_y = packed_x if same else _packed(pack_points, workers, arena, y, centre, factors, half_eps, y_rows, True)
    plan = _plan(finite, packed_x, packed_y, x.shape[2], sigma, weights, baseline, exponents, bounds)
    return plan, packed_x, packed_y


@cache
def pack_addresses(dtype: np.dtype) -> tuple[int, int]:
    """Where the code of `_pack_points` and `_pack` begins: for `pack`."""
    point, one, pack_points = np.zeros((1, 1, 1), dtype), np.ones((1, 1)), _pack_points_address(dtype)
    limit, arena = limits(dtype, 1, 1, "kernel"), (np.zeros(1, np.uint8), np.zeros(1, np.int64))
    return pack_points, address_of(
        _pack, pack_points, (0, 1), arena, point, point, True, one, one, one, True, True, *limit
    )


_call_pack = called_at(_pack)


@inner
def pack(addresses, workers, arena, x, y, same, sigma, weights, baseline, x_columns, y_rows, limit):
    """The Plan and the Points of x (B, N, D) and y (B, M, D), for `limits`; sigma and weights (B, S) float64.

    baseline is (B, S) float64 too, or (B, 0) for none. Ready for sweeps of x as rows against y as columns; x_columns
    and y_rows are the others. same: y is x.
    """
    arguments = (
        addresses[0], workers, arena, x, y, same, sigma, weights, baseline, x_columns, y_rows, limit[0], limit[1],
    )  # fmt: skip
    return _call_pack(addresses[1], arguments)


@inner
def packed_columns(u):
    """u (B, N, E) as it is."""
    batch, n, count = u.shape
    width = panel_width(u)
    panels = (n + width - 1) // width
    # of a single column no tile is made
    rows = np.zeros((batch, panels * width + ROWS, _row(count, width) if count > 1 else 1), u.dtype)
    columns = np.zeros((batch, panels, count, width), u.dtype)
    for b in range(batch):
        for i in range(n):
            for e in range(count):
                rows[b, i, e] = columns[b, i // width, e, i % width] = u[b, i, e]
    return Points(rows, columns, np.empty((batch, 0), u.dtype), n)


def limits(dtype: np.dtype, pairs: int, dims: int, *wanted: str) -> tuple[tuple, tuple]:
    """What `pack` goes by: for `wanted`, keys of _TOLERANCE, of so many pairs."""
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
