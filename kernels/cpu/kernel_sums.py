"""The sums behind kernel means and MMD^2, and gradients of their combinations from the same sweeps."""

import numpy as np

from .bandwidths import NO_BASELINE, PACKING, limits, pack
from .baselines import baselines
from .blocks import Modes, Operands, Wants
from .calls import EXAMPLE_RUN, operation, operation_by_pointer, parallel_for
from .compiled import borrows, inner
from .memory import allocate, as_contiguous, lent, new_result
from .points import as_points
from .small_sets import are_small, small_kernel_sums
from .sweep import add_chunks, make_task, parameters_of, sum_rows

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
    baseline = baselines(x, y, sigma) if baseline is None else baseline
    arrays = (scale[:, None], x, y, a, b, sigma, weights, baseline)
    return kernel_sums_with_gradients(*arrays, drop=drop, wants=(False,) * 6)[0][:, 0]


def kernel_sums_with_gradients(scale, x, y, a, b, sigma, weights, baseline=None, *, drop, wants):
    """R combinations of the three sums, the sums, and each combination's gradients to (x, y, a, b, sigma, weights).

    With scale (B, R, 3): scale_r . sums (B, R), sums (B, 3) float64, gradients (B, R, ...), None where not wanted.
    a or b None: all ones. Where baseline (B, S) is given, sum_s weights_s baseline_s is taken from K. A pair within a
    set is visited once for both its ends, a pair between the sets once for all gradients.
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
    numbers = (sigma, weights, NO_BASELINE if baseline is None else baseline, scale)
    *bandwidths, scale = [u if u.flags.carray else as_contiguous(u) for u in numbers]
    gradients = [np.empty((batch, combinations, 0), x.dtype)] * 4
    for k, like in enumerate(samples):
        if wants[k]:
            gradients[k] = new_result((batch, combinations, like[0].size if batch else 0), x.dtype)
    limit = limits(x.dtype, n * m, dims, *_TOLERANCES[bool(want_points), bool(want_parameters)])
    values, sums = np.empty((batch, combinations), x.dtype), np.empty((batch, 3))
    order, parameters = np.zeros(sigma.shape, np.int64), np.zeros((batch, 3, 2 * count if want_parameters else 0))
    bandwidths, small = tuple(bandwidths), False
    if are_small(x, y) and not (want_a or want_b or want_parameters):
        results = values, sums, *gradients[:2]
        options = drop, (want_x, want_y)
        small = small_kernel_sums(samples, bandwidths, scale, options, results)
    results = (values, sums, order, parameters, tuple(gradients))
    wanted = (drop, (want_x, want_y, want_a, want_b, want_parameters))
    work = batch * (n + m) ** 2 * (dims * (1 + want_x + want_y) + 10 * count)
    of_one = work // max(1, batch)
    if not small and batch >= _LEAST_PROBLEMS and of_one < _LARGE_PROBLEM:
        # its points, twice, and gradients in float64
        room = (n + m) * (dims + 64) * (3 * x.itemsize + 20)
        size = max(1, _GROUP_BYTES // room)
        given = samples, bandwidths, scale
        pointers, sizes = _kernel_sums.pointers(x.dtype), (size, size * room)
        _kernel_sums_of_groups(x.dtype, work, pointers, sizes, given, wanted, limit, results)
    elif not small:
        _kernel_sums(x.dtype, work, samples, bandwidths, scale, wanted, limit, results)
    for k, like in enumerate(samples):
        gradients[k] = gradients[k].reshape(batch, combinations, *like.shape[1:]) if wants[k] else None
    dsigma = dweights = None
    if want_parameters:
        of_each = zip(*(parameters_of(order, sigma, weights, parameters[:, k]) for k in range(3)), strict=True)
        dsigma, dweights = (np.einsum("brk,kbs->brs", scale, np.stack(d)) for d in of_each)
    return values, sums, *gradients, dsigma if want_sigma else None, dweights if want_weights else None


@inner
def _values(scale, row_weights, accumulators, values, sums):
    """scale_r . sums (B, R) and the sums (B, 3) of the sweeps xx, yy and xy."""
    (a, b), (xx, yy, xy) = row_weights, accumulators
    batch, combinations = values.shape
    # the value of a pair within a set is added to its row; where column_value is wanted, half of it to either end
    _dot(a, xx.value, xx.column_value, sums[:, 0])
    _dot(b, yy.value, yy.column_value, sums[:, 1])
    _dot(a, xy.value, np.empty((batch, 0, 0, 1)), sums[:, 2])
    for q in range(batch):
        for r in range(combinations):
            value = 0.0
            for part in range(3):
                # a sum that is not scaled may be NaN
                if scale[q, r, part] != 0:
                    value += scale[q, r, part] * sums[q, part]
            values[q, r] = value


@inner
def _or_ones(arena, u, points):
    """u (B, N), or ones for as many points where u has no column."""
    if u.shape[1]:
        return u
    ones = allocate(arena, points.shape[:2], u)
    ones[:] = 1
    return ones


@inner
def _one_wide(u):
    """(B, N) as (B, N, 1)"""
    return u.reshape((u.shape[0], u.shape[1], 1))


@inner
def _one_chunk(rows):
    """(B, N, D) as (B, 1, N, D)"""
    return rows.reshape((rows.shape[0], 1, rows.shape[1], rows.shape[2]))


@borrows
def _dot(u, rows, columns, out):
    """out = u . value, (B,), for u (B, N) and the value in rows (B, N, 1) and, if any, in columns (B, C, N, 1)."""
    for q in range(len(u)):
        out[q] = 0
        for i in range(u.shape[1]):
            value = rows[q, i, 0]
            for chunk in range(columns.shape[1] if columns.shape[2] else 0):
                value += columns[q, chunk, i, 0]
            out[q] += u[q, i] * value


@borrows
def _pieces(gradient):
    return gradient.shape[0] * ((gradient.shape[2] + _AT_A_TIME - 1) // _AT_A_TIME)


def _combine_example(dtype):
    part = np.zeros((1, 1, 1, 1))
    return np.zeros((1, 1, 3)), 0, np.ones(1), (part, part, part), np.zeros((1, 1, 1), dtype)


@parallel_for(_combine_example)
def _combine(first, last, scale, k, unit, sums, out):
    """Pieces of out (B, R, N D), numbered through the batch: scale_r . (2 (rows + columns), between) / unit.

    sums are rows, columns and between, (B, chunks, N, D), float64; the result is rounded once. Both ends of a pair
    within a set are its points: hence the 2.
    """
    rows, columns, between = sums
    size = out.shape[2]
    pieces = (size + _AT_A_TIME - 1) // _AT_A_TIME
    within, others = np.empty(min(_AT_A_TIME, size)), np.empty(min(_AT_A_TIME, size))
    for number in range(first, last):
        b, start = number // pieces, number % pieces * _AT_A_TIME
        count = min(_AT_A_TIME, size - start)
        within[:] = 0
        others[:] = 0
        for total, parts in ((within, rows), (within, columns), (others, between)):
            for chunk in range(parts.shape[1] if parts.size else 0):
                part = parts[b, chunk].reshape(-1)[start:]
                for i in range(count):
                    total[i] += part[i]
        for r in range(out.shape[1]):
            c_within, c_between = 2 * scale[b, r, k] / unit[b], scale[b, r, 2] / unit[b]
            row = out[b, r, start:]
            for i in range(count):
                row[i] = c_within * within[i] + c_between * others[i]


@operation(*PACKING, sum_rows, _combine)
def _kernel_sums(run, samples, bandwidths, scale, options, limit, results):
    run, samples, bandwidths, scale, results = lent((run, samples, bandwidths, scale, results))
    (x, y, a, b), (drop, wanted), (values, sums, order, parameters, gradients) = samples, options, results
    want_x, want_y, want_a, want_b, want_parameters = wanted
    pointers, team, arena = run
    a, b = _or_ones(arena, a, x), _or_ones(arena, b, y)
    plan, (px, py) = pack(run, (x, y), bandwidths, limit, (False, True, True))
    pa, pb = as_points(arena, _one_wide(a)), as_points(arena, _one_wide(b))
    none = allocate(arena, (len(x), 0, 1), x)
    less_baseline = bandwidths[2].shape[1] > 0
    within = Modes(drop >= 1, less_baseline, True)
    of_x, of_y = Operands(px, px, pa, pa, none, none, none), Operands(py, py, pb, pb, none, none, none)
    xx, xx_rows = make_task(arena, plan, of_x, within, Wants(True, want_a, want_x, want_x, want_parameters))
    yy, yy_rows = make_task(arena, plan, of_y, within, Wants(True, want_b, want_y, want_y, want_parameters))
    of_both, between = Operands(px, py, pb, pa, none, none, none), Modes(drop >= 2, less_baseline, False)
    xy, xy_rows = make_task(arena, plan, of_both, between, Wants(True, want_b, want_x, want_y, want_parameters))
    # the longest first, if both sets are equally large: threads that end early then wait less for the last
    sum_rows(pointers[2], team, (xy_rows, xx_rows, yy_rows), (xy, xx, yy))
    _values(scale, (a, b), (xx[-1], yy[-1], xy[-1]), values, sums)
    ones = allocate(arena, (len(x),), plan.unit)
    ones[:] = 1
    tasks = (
        (scale, 0, plan.unit, (_one_chunk(xx[-1].dx), xx[-1].dy, _one_chunk(xy[-1].dx)), gradients[0]),
        (scale, 1, plan.unit, (_one_chunk(yy[-1].dx), yy[-1].dy, xy[-1].dy), gradients[1]),
        (scale, 0, ones, (_one_chunk(xx[-1].value), xx[-1].column_value, _one_chunk(xy[-1].value)), gradients[2]),
        (scale, 1, ones, (_one_chunk(yy[-1].value), yy[-1].column_value, xy[-1].column_value), gradients[3]),
    )
    rows = (_pieces(gradients[0]), _pieces(gradients[1]), _pieces(gradients[2]), _pieces(gradients[3]))
    _combine(pointers[3], team, rows, tasks)
    order[:] = plan.order
    add_chunks(xx[-1].parameters, 0, parameters)
    add_chunks(yy[-1].parameters, 1, parameters)
    add_chunks(xy[-1].parameters, 2, parameters)


def _example(dtype):
    x, wide = np.zeros((1, 1, 1), dtype), np.zeros((1, 1))
    u, options = x[0], (0, (False,) * 5)
    results = u, wide, np.zeros((1, 1), np.int64), wide[None], (x,) * 4
    return EXAMPLE_RUN, (x, x, u, u), (wide,) * 3, wide[None], options, limits(dtype, 1, 1, "sum"), results


_sums_of_group = operation_by_pointer(_kernel_sums, _example)


def _groups_example(dtype):
    _, samples, bandwidths, scale, options, limit, results = _example(dtype)
    return EXAMPLE_RUN[0], (0, 1, 1), (samples, bandwidths, scale), options, limit, results


@parallel_for(_groups_example)
def _group_rows(first, last, pointers, sizes, given, options, limit, results):
    """Groups of problems, first to last; sizes are the address of _sums_of_group, problems and bytes of a group."""
    (address, size, room), (samples, bandwidths, scale) = sizes, given
    (x, y, a, b), (sigma, weights, baseline) = samples, bandwidths
    values, sums, order, parameters, (dx, dy, da, db) = results
    arena = np.empty(room, np.uint8), np.zeros(1, np.int64)
    for group in range(first, last):
        arena[1][0] = 0
        i, j = group * size, min(len(x), group * size + size)
        gradients = dx[i:j], dy[i:j], da[i:j], db[i:j]
        of_group = values[i:j], sums[i:j], order[i:j], parameters[i:j], gradients
        points, numbers = (x[i:j], y[i:j], a[i:j], b[i:j]), (sigma[i:j], weights[i:j], baseline[i:j])
        run = pointers, (0, 1), arena
        _sums_of_group(address, (run, points, numbers, scale[i:j], options, limit, of_group))


@operation(_sums_of_group, _group_rows)
def _kernel_sums_of_groups(run, pointers, sizes, given, options, limit, results):
    given, results = lent((given, results))
    groups = (len(results[0]) + sizes[0] - 1) // sizes[0]
    task = pointers, (run[0][0], sizes[0], sizes[1]), given, options, limit, results
    _group_rows(run[0][1], run[1], (groups,), (task,))
