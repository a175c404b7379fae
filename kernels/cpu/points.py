"""Points as the tiles read them: centred and scaled exactly, kept twice, with norms and the norms' errors.

Points are kept as rows, and as columns, WIDTH points side by side, so that a tile loads coordinate k of WIDTH points
as VECTORS registers. Both are the caller's numbers less a centre, times a power of two. Both changes are exact, so
that differences of points stay exact:

- a coordinate is centred only if all its values lie within a factor of 3 of each other, since x - c is exact for
  c / 2 <= x <= 2 c (Sterbenz); where they do not, the centre is not far from the data anyway;
- the power of two is 1 unless sigma or the data are so large or small that a square could leave the dtype's range.

|x|^2 + |y|^2 - 2 x.y has an error of up to e = e_x + e_y, whatever the distance, for any data. A sum is wrong by
eps / 2 times the sum of its partial sums, in the order in which it is taken: A_x for |x|^2, and for x.y at most
(A_x + A_y) / 2, because partial sums of x.y are at most the means of those of |x|^2 and |y|^2. The error of
|x|^2 itself is known, from a sum in two numbers. So e_x = |that error| + eps / 2 (A_x + |x|^2), the last for the sum
of the norms: 5 to 12 eps |x|^2 of usual data, up to 45 where one coordinate is the greatest by far.
"""

import math
from typing import NamedTuple

import numpy as np

from .arrays import empty, fill, zeros
from .calls import parallel_for
from .compiled import inner
from .tile import RESTART_EVERY, RESTART_TOTAL_EVERY, ROWS
from .vector import BYTES, at_least, fma, lane_of, load, splat, store, total, transpose


class Points(NamedTuple):
    rows: np.ndarray  # (B, at least N, at least D); without a row where not asked for
    columns: np.ndarray  # (B, at least N / WIDTH, D, WIDTH); without a panel where not asked for
    # (2 B, at least N), of points whose distances are wanted: |x|^2, and then e_x, see the module
    norms: np.ndarray
    count: int  # N


class Change(NamedTuple):
    """x becomes (x - centre) times both factors, exactly."""

    centre: np.ndarray  # (B, D)
    factors: np.ndarray  # (B, 2) a power of two, which itself may leave the range


def example_points(dtype):
    """Points of one type for each dtype."""
    rows = np.zeros((1, 1, 1), dtype)
    return Points(rows, rows[None], rows[0], 1)


def _example(dtype):
    x = np.zeros((1, 1, 1), dtype)
    return x, Change(x[0], x[0]), 0.5, example_points(dtype)


@inner
def _extend_range(x, low, high, largest):
    """Extends low (D,) and high (D,) by the finite values of x (N, D); whether all are finite."""
    (n, dims), lanes = x.shape, panel_width(x) // 2
    zero, infinite = splat(x.dtype.type(0)), splat(x.dtype.type(np.inf))
    finite, whole = True, dims // lanes * lanes
    for k in range(0, whole, lanes):
        # without a test of each value, as long as all are finite; of the lower end the opposite
        opposite, top, odd = zero - infinite, zero - infinite, zero
        for i in range(n):
            v = load(x, i * dims + k)
            opposite, top, odd = at_least(opposite, zero - v), at_least(top, v), fma(v, zero, odd)
        if total(odd) == 0:
            for lane in range(lanes):
                low[k + lane] = min(low[k + lane], -lane_of(opposite, lane))
                high[k + lane] = max(high[k + lane], lane_of(top, lane))
        else:
            finite &= _extend_one_by_one(x, k, k + lanes, low, high, largest)
    return finite & _extend_one_by_one(x, whole, dims, low, high, largest)


@inner
def _extend_one_by_one(x, first, stop, low, high, largest):
    """`_extend_range` for coordinates from first to before stop."""
    odd = 0
    for i in range(x.shape[0]):
        row = x[i]
        # without branches, so that it becomes vector code
        for k in range(first, stop):
            v, least, most = row[k], low[k], high[k]
            finite = abs(v) <= largest
            low[k] = v if finite & (v < least) else least
            high[k] = v if finite & (v > most) else most
        for k in range(first, stop):
            odd += np.int32(not (abs(row[k]) <= largest))
    return odd == 0


@inner
def centre_and_scale(memory, points, sigma, moderate, largest):
    """Whether all coordinates of points (x, y) are finite, their Change, and the power's exponents (B,)."""
    x, y = points
    batch, dims = x.shape[0], x.shape[2]
    centre = empty(memory, (batch, dims), x.dtype)
    factors = empty(memory, (batch, 2), x.dtype)
    exponents = empty(memory, batch, np.int64)
    low, high = empty(memory, (batch, dims), x.dtype), empty(memory, (batch, dims), x.dtype)
    fill(low, np.inf)
    fill(high, -np.inf)
    bandwidth, usual, most = moderate
    finite = True
    for b in range(batch):
        finite &= _extend_range(x[b], low[b], high[b], x.dtype.type(largest))
        finite &= _extend_range(y[b], low[b], high[b], x.dtype.type(largest))
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
        for s in range(sigma.shape[1]):
            least, most_sigma = min(least, sigma[b, s]), max(most_sigma, sigma[b, s])
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
    return finite, Change(centre, factors), exponents


@parallel_for(_example)
def fill_points(memory, start, stop, x, change, half_eps, points):
    """Panels start to stop, numbered through the batch, of x (B, N, D); rows or columns of no size are not wanted."""
    (centre, factors), (rows, columns, norms, _) = change, points
    n, dims = x.shape[1], x.shape[2]
    width, row = columns.shape[3], rows.shape[2]
    panels = (n + width - 1) // width
    lanes = width // 2
    square = empty(memory, lanes * lanes, x.dtype)
    # eps / 2, and a little more for the rounding of e_x itself
    share = splat(x.dtype.type(half_eps * 1.01))
    bounds = norms.shape[0] // 2
    # the columns are made from rows, even if no rows are wanted
    spare = zeros(memory, (1, width, row), x.dtype)
    for number in range(start, stop):
        b, p = number // panels, number % panels
        first, last = p * width, min(p * width + width, n)
        factor, other = factors[b, 0], factors[b, 1]
        kept, kept_b, kept_first = spare, 0, 0
        if rows.size:
            kept, kept_b, kept_first = rows, b, first
        for i in range(first, last):
            point = kept[kept_b, kept_first + i - first]
            for k in range(dims):
                point[k] = (x[b, i, k] - centre[b, k]) * factor * other
            # a tile over coordinates reads beyond the last one
            for k in range(dims, row):
                point[k] = 0
        end = kept.shape[1] if p == panels - 1 else kept_first + width
        for i in range(kept_first + last - first, end):
            fill(kept[kept_b, i], 0)
        for v in range(0, width, lanes):
            zero = splat(x.dtype.type(0))
            if first + v >= n:
                # nothing but padding
                for k in range(dims if columns.size else 0):
                    store(columns, ((b * panels + p) * dims + k) * width + v, zero)
                store(norms, b * norms.shape[1] + first + v, zero)
                store(norms, (bounds + b) * norms.shape[1] + first + v, zero)
                continue
            # in the order of the tile's sums
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
                # a term added to 0 is not rounded
                if (k0 + lanes) % RESTART_EVERY == 0:
                    wider = wider + part
                    if (k0 + lanes) % RESTART_TOTAL_EVERY != RESTART_EVERY:
                        partial = partial + wider
                    part = zero
                if (k0 + lanes) % RESTART_TOTAL_EVERY == 0:
                    total = total + wider
                    if k0 + lanes > RESTART_TOTAL_EVERY:
                        partial = partial + total
                    wider = zero
            norm = total + (wider + part)
            store(norms, b * norms.shape[1] + first + v, norm)
            off = (norm - high) - low
            # the last sums, and that of two norms
            partial = partial + norm
            if dims > RESTART_EVERY:
                partial = partial + wider + part
            if dims > RESTART_TOTAL_EVERY:
                partial = partial + norm
            store(norms, (bounds + b) * norms.shape[1] + first + v, fma(partial, share, at_least(off, zero - off)))


@inner
def _row(dims, width):
    """The length of a row, in which a tile over coordinates may end beyond the last."""
    # an odd number of registers apart, rows fall on all lines of the cache in turn
    return (dims + width - 1) // width * width + width // 2


@inner
def panel_width(like):
    """WIDTH for an array, or its dtype."""
    return 2 * BYTES // like.itemsize


@inner
def make_points(run, x, change, half_eps, as_rows, as_columns):
    """Points of x (B, N, D); run is that of calls.py, with the pointer of `fill_points` first."""
    pointers, team, memory = run
    batch, n, dims = x.shape
    width = panel_width(x)
    row = _row(dims, width)
    panels = (n + width - 1) // width
    # a tile of rows may begin at the last row
    count, wide = panels * width + ROWS if as_rows else 0, panels if as_columns else 0
    rows = empty(memory, (batch, count, row), x.dtype)
    columns = empty(memory, (batch, wide, dims, width), x.dtype)
    points = Points(rows, columns, empty(memory, (2 * batch, panels * width + width), x.dtype), n)
    fill_points(pointers[0], team, (batch * panels,), ((x, change, half_eps, points),))
    return points


@inner
def as_points(memory, u):
    """Points of u (B, N, E), neither centred nor scaled, without norms."""
    batch, n, count = u.shape
    width = panel_width(u)
    panels = (n + width - 1) // width
    # of a single column no tile is made
    rows = zeros(memory, (batch, panels * width + ROWS, _row(count, width) if count > 1 else 1), u.dtype)
    columns = zeros(memory, (batch, panels, count, width), u.dtype)
    for b in range(batch):
        for i in range(n):
            for e in range(count):
                rows[b, i, e] = columns[b, i // width, e, i % width] = u[b, i, e]
    return Points(rows, columns, empty(memory, (batch, 0), u.dtype), n)
