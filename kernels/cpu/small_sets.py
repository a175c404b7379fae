"""The sums of kernel_sums.py for batches of small problems, whose two sets together fill one panel of columns.

The steps of a sweep take longer than such a problem. Here x and y stand side by side as one set z, of which all pairs
are met: distances by differences, kernels by mixing.py, and then totals and pulls in lanes, for each z_j summed over
the rows of x and over those of y:

    z_j of x    within x     between
    z_j of y    between      within y
"""

import numpy as np

from .arrays import copy, empty, fill, part, reshaped, zeros
from .bandwidths import example_plan, limits, plan_of_differences
from .baselines import find_baselines
from .blocks import Block, Modes, Steps, Values
from .calls import operation, parallel_for
from .compiled import inner
from .mixing import MIXING, kernel_values
from .points import Points, panel_width
from .tile import MOST_DIFFERENCES, NO_DIAGONAL, ROWS, distances
from .vector import BYTES, fma, load, splat, store

# with fewer problems a call costs more than they do
_LEAST_PROBLEMS = 8


def are_small(x, y):
    """Whether `small_kernel_sums` may be tried for x (B, N, D), y (B, M, D)."""
    (batch, n, dims), m = x.shape, y.shape[1]
    return batch >= _LEAST_PROBLEMS and n + m <= 2 * BYTES // x.itemsize and 0 < dims <= MOST_DIFFERENCES


def small_kernel_sums(samples, bandwidths, scale, drop, finds_baselines, wants, results):
    """Fills results, values (B, R), sums (B, 3), dx (B, R, N D) and dy; False if a number is extreme.

    samples are x, y, a, b as in `kernel_sums_with_gradients`; wants say which of dx and dy are wanted.
    """
    x, y = samples[:2]
    (batch, n, dims), m, count = x.shape, y.shape[1], bandwidths[0].shape[1]
    work, limit = batch * (n + m) ** 2 * (2 * dims + 20 * count), limits(x.dtype, n * m, dims, "sum")
    wants, less_baseline = tuple(map(bool, wants)), bandwidths[2].shape[1] > 0
    mix = MIXING[False, less_baseline, any(wants)].pointer(x.dtype)
    options = drop, wants, less_baseline, mix
    return _small_kernel_sums(x.dtype, work, samples, bandwidths, finds_baselines, scale, options, limit, results)


def _example(dtype):
    x, wide = np.zeros((1, 1, 1), dtype), np.zeros((1, 1))
    options = 0, (False, False), False, 0
    return example_plan(dtype), (x, x, x[0], x[0]), wide[None], options, (x[0], wide, x, x)


@parallel_for(_example, flush_subnormals=True)
def _sum_problems(memory, first, last, plan, samples, scale, options, results):
    """Problems first to last of a batch; options are drop, wants, whether baselines are subtracted, and of MIXING."""
    (x, y, a, b), (drop, wants, less_baseline, mix), (values, sums, dx, dy) = samples, options, results
    n, m, dims, width = x.shape[1], y.shape[1], x.shape[2], panel_width(x)
    count, lanes, real, size = n + m, width // 2, x.dtype.type, width * width
    rows, columns = zeros(memory, (1, width + ROWS, dims), x.dtype), zeros(memory, (1, 1, dims, width), x.dtype)
    points = Points(rows, columns, rows[0], 0)
    d2, weight, totals = empty(memory, size, x.dtype), empty(memory, size, x.dtype), empty(memory, size, x.dtype)
    pairs, pulls = empty(memory, size, x.dtype), empty(memory, 2 * dims * width, x.dtype)
    of_pairs = Values(d2, weight, totals, empty(memory, width, x.dtype), rows[0, 0])
    no_parameters = empty(memory, 0, np.float64)
    pull = wants[0] or wants[1]
    steps, modes = Steps(False, pull, False, True, True, pull, False), Modes(False, less_baseline, False, False)
    given = x, columns, x
    near = real(0), real(np.inf)
    for q in range(first, last):
        _side_by_side(x[q], 0, points)
        _side_by_side(y[q], n, points)
        if q == first or a.shape[1] or b.shape[1]:
            _weigh_pairs(q, (a, b), (n, m), drop, pairs)
        for r in range(0, count, ROWS):
            distances((points, points), (0, r, 0), near, NO_DIAGONAL, d2, r * width, width)
        if pull:
            copy(part(pairs, 0, count * width), weight)
        block = Block(q, 0, 0, count, 0, count, width, width, -1)
        kernel_values(mix, (block, plan, modes, steps, given, of_pairs, no_parameters))
        for of_y in range(2):
            start, stop = (n, count) if of_y else (0, n)
            for j in range(0, count, lanes):
                total = splat(real(0))
                for at in range(start * width + j, stop * width + j, width):
                    total = fma(load(totals, at), load(pairs, at), total)
                store(d2, j, total)
                for k in range(dims if pull else 0):
                    zk, pulled = load(points.columns, k * width + j), splat(real(0))
                    for r in range(start, stop):
                        away = splat(points.rows[0, r, k]) - zk
                        pulled = fma(load(weight, r * width + j), away, pulled)
                    store(pulls, (of_y * dims + k) * width + j, pulled)
            sums[q, of_y] = 0
            for j in range(start, stop):
                sums[q, of_y] += np.float64(d2[j])
            if not of_y:
                sums[q, 2] = 0
                for j in range(n, count):
                    sums[q, 2] += np.float64(d2[j])
        for r in range(scale.shape[1]):
            value = 0.0
            for k in range(3):
                # a sum that is not scaled may be infinite
                if scale[q, r, k] != 0:
                    value += scale[q, r, k] * sums[q, k]
            values[q, r] = value
            between = scale[q, r, 2]
            if wants[0]:
                _give(pulls, 2 * scale[q, r, 0], 0, between, dims * width, (0, n, width), dx[q, r])
            if wants[1]:
                _give(pulls, 2 * scale[q, r, 1], dims * width, between, 0, (n, m, width), dy[q, r])


@inner
def _side_by_side(set_, first, points):
    """A set (N, D) from place `first` on, as rows and as columns."""
    for i in range(set_.shape[0]):
        for k in range(set_.shape[1]):
            value = set_[i, k]
            points.rows[0, first + i, k] = points.columns[0, 0, k, first + i] = value


@inner
def _weigh_pairs(q, weights, counts, drop, pairs):
    """pairs[r, j] = the weight of z_r times that of z_j; 0 for a pair that is left out, and in padding."""
    (a, b), (n, m), width = weights, counts, panel_width(pairs)
    fill(pairs, 0)
    for r in range(n + m):
        of_r = (a[q, r] if a.shape[1] else 1) if r < n else (b[q, r - n] if b.shape[1] else 1)
        for j in range(n + m):
            of_j = (a[q, j] if a.shape[1] else 1) if j < n else (b[q, j - n] if b.shape[1] else 1)
            left_out = (drop >= 1 and r == j) or (drop >= 2 and (r - j == n or j - r == n))
            if not left_out:
                pairs[r * width + j] = of_r * of_j


@inner
def _give(pulls, within, within_at, between, between_at, place, out):
    """out (N D,) = within times some of the pulls and between times others."""
    first, count, width = place
    dims = out.shape[0] // max(1, count)
    for i in range(count):
        for k in range(dims):
            at = k * width + first + i
            out[i * dims + k] = within * pulls[within_at + at] + between * pulls[between_at + at]


@inner
def _moderate(points, most):
    """Whether all coordinates are finite and at most so large."""
    flat = reshaped(points, (points.size,))
    large = 0
    for k in range(flat.size):
        large += np.int32(not (abs(flat[k]) <= most))
    return large == 0


@operation(_sum_problems)
def _small_kernel_sums(run, samples, bandwidths, finds_baselines, scale, options, limit, results):
    (x, y, _, _), sigma, ((narrow, usual, _), bounds) = samples, bandwidths[0], limit
    for q in range(sigma.shape[0]):
        for s in range(sigma.shape[1]):
            if not 2.0**-narrow < sigma[q, s] < 2.0**narrow:
                return False
    most = x.dtype.type(2.0**usual)
    if not (_moderate(x, most) and _moderate(y, most)):
        return False
    if finds_baselines:
        find_baselines(run[2], x, y, sigma, bandwidths[2])
    plan = plan_of_differences(run[2], bandwidths, bounds, x.dtype)
    _sum_problems(run[0][0], run[1], (len(x),), ((plan, samples, scale, options, results),))
    return True
