"""The sums behind kernel means and MMD^2, and gradients of their combinations from the same sweeps."""

from functools import cache

import numpy as np

from .arrays import copy, empty, fill, part, release, reshaped, zeros
from .bandwidths import NO_BASELINE, PACKING, limits, pack
from .baselines import find_baselines
from .blocks import Modes, Operands, Parts, Wants
from .calls import EXAMPLE_RUN, by_pointer, operation, parallel_for
from .compiled import inner
from .memory import as_contiguous, new_result
from .points import as_points
from .small_sets import are_small, small_kernel_sums
from .sweep import add_chunks, make_task, parameters_of, parts_of, steps_of, sum_rows

# for gradients to points or not, to bandwidths or not
_TOLERANCES = {
    (False, False): ("sum",),
    (True, False): ("sum", "gradient"),
    (False, True): ("sum", "gradient", "parameter"),
    (True, True): ("sum", "gradient", "parameter"),
}
# numbers of a gradient that are combined at a time, and stay in the cache meanwhile
_AT_A_TIME = 1024
# so many problems of fewer multiply-adds are taken group by group, each by one thread, in so many bytes
_LEAST_PROBLEMS, _LARGE_PROBLEM, _GROUP_BYTES = 8, 1 << 27, 1 << 19


def kernel_sums(x, y, a, b, sigma, weights, *, drop):
    """sum a_i a_j K, sum b_i b_j K, sum a_i b_j K, (B, 3) float64. See gkfast.kernel_means."""
    no_scale, wants = np.empty((len(x), 0, 3)), (False,) * 6
    return kernel_sums_with_gradients(no_scale, x, y, a, b, sigma, weights, drop=drop, wants=wants)[1]


def mmd2(scale, x, y, a, b, sigma, weights, baseline=None, *, drop):
    """scale . kernel_sums of K - sum_s weights_s baseline_s, (B,). See gkfast.mmd2."""
    options = {"drop": drop, "less_baselines": baseline is None, "wants": (False,) * 6}
    return kernel_sums_with_gradients(scale[:, None], x, y, a, b, sigma, weights, baseline, **options)[0][:, 0]


def mmd2_by_bandwidth(scale, x, y, a, b, sigma, *, drop):
    """scale . kernel_sums of k_s - baseline_s, (B, S) float64. See gkfast.mmd2."""
    options = {"drop": drop, "less_baselines": True, "wants": (False,) * 6, "by_bandwidth": True}
    arrays = (np.empty((len(x), 0, 3)), x, y, a, b, sigma, np.ones(sigma.shape))
    return np.einsum("bk,bks->bs", scale, kernel_sums_with_gradients(*arrays, **options)[1])


def kernel_sums_with_gradients(
    scale,
    x,
    y,
    a,
    b,
    sigma,
    weights,
    baseline=None,
    *,
    drop,
    wants,
    less_baselines=False,
    want_sums=True,
    by_bandwidth=False,
):
    """R combinations of the three sums, the sums, and each combination's gradients to (x, y, a, b, sigma, weights).

    With scale (B, R, 3): scale_r . sums (B, R), sums (B, 3) float64, gradients (B, R, ...), None where not wanted.
    a or b None: all ones. Where baseline (B, S) is given, or found (less_baselines), sum_s weights_s baseline_s is
    taken from K. A pair within a set is visited once for both its ends, one between the sets once for all gradients.
    Without want_sums values and sums have no meaning. by_bandwidth gives the sums of each bandwidth, (B, 3, S), and
    nothing else. The sum yy is 0, and its pairs are not visited, where scale has no share of it and no gradient to y
    is wanted.
    """
    (batch, n, dims), m, count, combinations = x.shape, y.shape[1], sigma.shape[1], scale.shape[1]
    want_x, want_y, want_a, want_b, want_sigma, want_weights = wants
    want_points, want_parameters = want_x or want_y, want_sigma or want_weights
    if a is None or b is None:
        # without a column: the compiled function makes ones
        none = np.empty((batch, 0), x.dtype)
        a, b = none if a is None else a, none if b is None else b
    # to Numba a read-only array is another type
    samples = tuple([u if u.flags.carray else as_contiguous(u) for u in (x, y, a, b)])
    if less_baselines:
        # filled by the compiled function
        baseline = np.empty(sigma.shape)
    numbers = (sigma, weights, NO_BASELINE if baseline is None else baseline, scale)
    *bandwidths, scale = [u if u.flags.carray else as_contiguous(u) for u in numbers]
    gradients = [np.empty((batch, combinations, 0), x.dtype)] * 4
    for k, like in enumerate(samples):
        if wants[k]:
            gradients[k] = new_result((batch, combinations, like[0].size if batch else 0), x.dtype)
    # a bandwidth's own sum is the gradient to its weight
    limit = limits(x.dtype, n * m, dims, *_TOLERANCES[bool(want_points), bool(want_parameters or by_bandwidth)])
    values, sums = np.empty((batch, combinations), x.dtype), np.empty((batch, 3, count if by_bandwidth else 1))
    order, parameters = np.zeros(sigma.shape, np.int64), np.zeros((batch, 3, 2 * count if want_parameters else 0))
    given, less_baseline = (samples, tuple(bandwidths), scale), bandwidths[2].shape[1] > 0
    small = are_small(x, y) and sums.shape[2] == 1 and not (want_a or want_b or want_parameters)
    finds = bool(less_baselines)
    if not (
        small and small_kernel_sums(*given, drop, finds, (want_x, want_y), (values, sums[..., 0], *gradients[:2]))
    ):
        results = (values, sums, order, parameters, tuple(gradients))
        wanted = (want_sums, want_x, want_y, want_a, want_b, want_parameters)
        sweeps = _of_sweeps(x.dtype, tuple(map(bool, wanted)), less_baseline, sums.shape[2] > 1)
        options = (drop, want_sums, finds, *sweeps)
        of_one = (n + m) ** 2 * (dims * (1 + want_x + want_y) + 10 * count)
        if batch >= _LEAST_PROBLEMS and of_one < _LARGE_PROBLEM:
            # its points, twice, and gradients in float64
            room = (n + m) * (dims + 64) * (3 * x.itemsize + 20)
            size = max(1, _GROUP_BYTES // room)
            _kernel_sums_of_groups(x.dtype, batch * of_one, (size, size * room), given, options, limit, results)
        else:
            _kernel_sums(x.dtype, batch * of_one, *given, options, limit, results)
    sums = sums if by_bandwidth else sums[..., 0]
    for k, like in enumerate(samples):
        gradients[k] = gradients[k].reshape(batch, combinations, *like.shape[1:]) if wants[k] else None
    dsigma = dweights = None
    if want_parameters:
        of_each = zip(*(parameters_of(order, sigma, weights, parameters[:, k]) for k in range(3)), strict=True)
        dsigma, dweights = (np.einsum("brk,kbs->brs", scale, np.stack(d)) for d in of_each)
    return values, sums, *gradients, dsigma if want_sigma else None, dweights if want_weights else None


@cache
def _of_sweeps(dtype, wanted, less_baseline, by_bandwidth):
    """What is wanted of the sweeps xx, yy and xy, and their Parts."""
    want_sums, want_x, want_y, want_a, want_b, want_parameters = wanted
    sweeps = (
        Wants(want_sums or want_a, want_a, want_x, want_x, want_parameters),
        Wants(want_sums or want_b, want_b, want_y, want_y, want_parameters),
        Wants(want_sums or want_a, want_b, want_x, want_y, want_parameters),
    )
    steps = (steps_of(wants, less_baseline, by_bandwidth=by_bandwidth) for wants in sweeps)
    return sweeps, parts_of(dtype, *steps)


@inner
def _values(memory, scale, row_weights, accumulators, places, values, sums):
    """scale_r . sums (B, R) and the sums (B, 3, 1), or (B, 3, S) by bandwidth, of the sweeps xx, yy and xy.

    places (B, 1) or (B, S) are those of the sweep's bandwidths in the caller's sigma.
    """
    (a, b), (xx, yy, xy) = row_weights, accumulators
    batch, combinations = values.shape
    # the value of a pair within a set is added to its row; where column_value is wanted, half of it to either end
    _dot(a, xx.value, xx.column_value, places, sums, 0)
    _dot(b, yy.value, yy.column_value, places, sums, 1)
    _dot(a, xy.value, empty(memory, (batch, 0, 0, 1), np.float64), places, sums, 2)
    for q in range(batch):
        for r in range(combinations):
            value = 0.0
            for k in range(3):
                # a sum that is not scaled may be NaN
                if scale[q, r, k] != 0:
                    value += scale[q, r, k] * sums[q, k, 0]
            values[q, r] = value


@inner
def _or_ones(memory, u, points):
    """u (B, N), or ones for as many points where u has no column."""
    if u.shape[1]:
        return u
    ones = empty(memory, points.shape[:2], u.dtype)
    fill(ones, 1)
    return ones


@inner
def _one_wide(u):
    """(B, N) as (B, N, 1)"""
    return reshaped(u, (u.shape[0], u.shape[1], 1))


@inner
def _one_chunk(rows):
    """(B, N, D) as (B, 1, N, D)"""
    return reshaped(rows, (rows.shape[0], 1, rows.shape[1], rows.shape[2]))


@inner
def _dot(u, rows, columns, places, out, part):
    """out[:, part] = u . value (B, E), for u (B, N) and the value in rows (B, N, E) and in columns (B, C, N, E).

    There may be no columns.
    """
    for q in range(len(u)):
        for e in range(out.shape[2]):
            total = 0.0
            for i in range(u.shape[1]):
                value = rows[q, i, e]
                for chunk in range(columns.shape[1] if columns.shape[2] else 0):
                    value += columns[q, chunk, i, e]
                total += u[q, i] * value
            out[q, part, places[q, e]] = total


@inner
def _pieces(gradient):
    return gradient.shape[0] * ((gradient.shape[2] + _AT_A_TIME - 1) // _AT_A_TIME)


def _combine_example(dtype):
    part = np.zeros((1, 1, 1, 1))
    return np.zeros((1, 1, 3)), 0, np.ones(1), (part, part, part), np.zeros((1, 1, 1), dtype)


@parallel_for(_combine_example)
def _combine(memory, first, last, scale, k, unit, sums, out):
    """Pieces of out (B, R, N D), numbered through the batch: scale_r . (2 (rows + columns), between) / unit.

    sums are rows, columns and between, (B, chunks, N, D), float64; the result is rounded once. Both ends of a pair
    within a set are its points: hence the 2.
    """
    rows, columns, between = sums
    size = out.shape[2]
    pieces = (size + _AT_A_TIME - 1) // _AT_A_TIME
    within, others = (
        empty(memory, min(_AT_A_TIME, size), np.float64),
        empty(memory, min(_AT_A_TIME, size), np.float64),
    )
    for number in range(first, last):
        b, start = number // pieces, number % pieces * _AT_A_TIME
        count = min(_AT_A_TIME, size - start)
        fill(within, 0)
        fill(others, 0)
        for total, parts in ((within, rows), (within, columns), (others, between)):
            for chunk in range(parts.shape[1] if parts.size else 0):
                part = parts[b, chunk]
                part = reshaped(part, (part.size,))
                for i in range(count):
                    total[i] += part[start + i]
        for r in range(out.shape[1]):
            c_within, c_between = 2 * scale[b, r, k] / unit[b], scale[b, r, 2] / unit[b]
            row = out[b, r]
            for i in range(count):
                row[start + i] = c_within * within[i] + c_between * others[i]


@inner
def _leaves_out(scale, part):
    """Whether there are combinations, and none has a share of this sum."""
    for b in range(scale.shape[0]):
        for r in range(scale.shape[1]):
            if scale[b, r, part] != 0:
                return False
    return scale.size > 0


def _example(dtype):
    x, wide, numbers = np.zeros((1, 1, 1), dtype), np.zeros((1, 1)), np.zeros((1, 1, 1))
    options = 0, True, True, (Wants(*[False] * 5),) * 3, (Parts(*[0] * 5),) * 3
    results = x[0], numbers, np.zeros((1, 1), np.int64), numbers, (x,) * 4
    return EXAMPLE_RUN, (x, x, x[0], x[0]), (wide,) * 3, numbers, options, limits(dtype, 1, 1, "sum"), results


@by_pointer(_example)
def _sums(run, samples, bandwidths, scale, options, limit, results):
    (x, y, a, b), (drop, want_sums, finds_baselines, wanted, parts) = samples, options
    values, sums, order, parameters, gradients = results
    pointers, team, memory = run
    if finds_baselines:
        find_baselines(memory, x, y, bandwidths[0], bandwidths[2])
    a, b = _or_ones(memory, a, x), _or_ones(memory, b, y)
    plan, (px, py) = pack(run, (x, y), bandwidths, limit, (False, True, True))
    pa, pb = as_points(memory, _one_wide(a)), as_points(memory, _one_wide(b))
    none = empty(memory, (len(x), 0, 1), x.dtype)
    less_baseline = bandwidths[2].shape[1] > 0
    by_bandwidth = sums.shape[2] > 1
    within = Modes(drop >= 1, less_baseline, True, by_bandwidth)
    of_x, of_y = Operands(px, px, pa, pa, none, none, none), Operands(py, py, pb, pb, none, none, none)
    xx, xx_rows = make_task(memory, plan, of_x, within, wanted[0], parts[0])
    yy, yy_rows = make_task(memory, plan, of_y, within, wanted[1], parts[1])
    if _leaves_out(scale, 1) and not (wanted[1].column_value or wanted[1].dx or wanted[1].parameters):
        # nobody asks for pairs within y
        yy_rows = 0
        fill(yy[-1].value, 0)
    of_both = Operands(px, py, pb, pa, none, none, none)
    between = Modes(drop >= 2, less_baseline, False, by_bandwidth)
    xy, xy_rows = make_task(memory, plan, of_both, between, wanted[2], parts[2])
    # the longest first, if both sets are equally large: threads that end early then wait less for the last
    sum_rows(pointers[2], team, (xy_rows, xx_rows, yy_rows), (xy, xx, yy))
    if want_sums:
        places = plan.order if by_bandwidth else zeros(memory, (len(x), 1), np.int64)
        _values(memory, scale, (a, b), (xx[-1], yy[-1], xy[-1]), places, values, sums)
    ones = empty(memory, len(x), np.float64)
    fill(ones, 1)
    tasks = (
        (scale, 0, plan.unit, (_one_chunk(xx[-1].dx), xx[-1].dy, _one_chunk(xy[-1].dx)), gradients[0]),
        (scale, 1, plan.unit, (_one_chunk(yy[-1].dx), yy[-1].dy, xy[-1].dy), gradients[1]),
        (scale, 0, ones, (_one_chunk(xx[-1].value), xx[-1].column_value, _one_chunk(xy[-1].value)), gradients[2]),
        (scale, 1, ones, (_one_chunk(yy[-1].value), yy[-1].column_value, xy[-1].column_value), gradients[3]),
    )
    rows = (_pieces(gradients[0]), _pieces(gradients[1]), _pieces(gradients[2]), _pieces(gradients[3]))
    _combine(pointers[3], team, rows, tasks)
    copy(plan.order, order)
    add_chunks(xx[-1].parameters, 0, parameters)
    add_chunks(yy[-1].parameters, 1, parameters)
    add_chunks(xy[-1].parameters, 2, parameters)


# the pointers of `_sums`, and its own
_LOOPS = (*PACKING, sum_rows, _combine, _sums)


@operation(*_LOOPS)
def _kernel_sums(run, samples, bandwidths, scale, options, limit, results):
    _sums(run[0][4], (run, samples, bandwidths, scale, options, limit, results))


def _groups_example(dtype):
    run, samples, bandwidths, scale, options, limit, results = _example(dtype)
    return run[0], (1, 1), (samples, bandwidths, scale), options, limit, results


@parallel_for(_groups_example)
def _group_rows(memory, first, last, pointers, sizes, given, options, limit, results):
    """Groups of problems, first to last; sizes are problems and bytes of a group."""
    (samples, bandwidths, scale), (size, room) = given, sizes
    (x, y, a, b), (sigma, weights, baseline) = samples, bandwidths
    values, sums, order, parameters, (dx, dy, da, db) = results
    arena = empty(memory, room, np.uint8), zeros(memory, 2, np.int64)
    for group in range(first, last):
        i, j = group * size, min(len(x), group * size + size)
        points = part(x, i, j), part(y, i, j), part(a, i, j), part(b, i, j)
        numbers = part(sigma, i, j), part(weights, i, j), part(baseline, i, j)
        gradients = part(dx, i, j), part(dy, i, j), part(da, i, j), part(db, i, j)
        of_group = part(values, i, j), part(sums, i, j), part(order, i, j), part(parameters, i, j), gradients
        run = pointers, (0, 1), arena
        _sums(pointers[4], (run, points, numbers, part(scale, i, j), options, limit, of_group))
        arena[1][0] = 0
        release(arena)


@operation(*_LOOPS, _group_rows)
def _kernel_sums_of_groups(run, sizes, given, options, limit, results):
    groups = (len(results[0]) + sizes[0] - 1) // sizes[0]
    _group_rows(run[0][5], run[1], (groups,), ((run[0], sizes, given, options, limit, results),))
