"""The sums behind kernel means and MMD^2, and gradients of their combinations from the same sweeps."""

import numpy as np

from .bandwidths import NO_BASELINE, PACKING, limits, pack
from .baselines import baselines
from .blocks import Modes, Operands, Wants
from .calls import operation, parallel_for
from .compiled import inner
from .memory import as_contiguous, new_result
from .points import as_points
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


def kernel_sums(x, y, a, b, sigma, weights, *, drop):
    """sum a_i a_j K, sum b_i b_j K, sum a_i b_j K, (B, 3) float64. See gkfast.kernel_means."""
    no_scale, wants = np.empty((len(x), 0, 3)), (False,) * 6
    return kernel_sums_with_gradients(no_scale, x, y, a, b, sigma, weights, drop=drop, wants=wants)[1]


def mmd2(scale, x, y, a, b, sigma, weights, *, drop):
    """scale . kernel_sums of K - sum_s weights_s baseline_s, (B,). See gkfast.mmd2."""
    options = {"drop": drop, "less_baselines": True, "wants": (False,) * 6}
    return kernel_sums_with_gradients(scale[:, None], x, y, a, b, sigma, weights, **options)[0][:, 0]


def kernel_sums_with_gradients(
    scale, x, y, a, b, sigma, weights, baseline=None, *, drop, wants, less_baselines=False
):
    """R combinations of the three sums, the sums, and each combination's gradients to (x, y, a, b, sigma, weights).

    With scale (B, R, 3): scale_r . sums (B, R), sums (B, 3) float64, gradients (B, R, ...), None where not wanted.
    a or b None: all ones. Where baseline (B, S) is given, or found (less_baselines), sum_s weights_s baseline_s is
    taken from K. A pair within a set is visited once for both its ends, one between the sets once for all gradients.
    The sum yy is 0, and its pairs are not visited, where scale has no share of it and no gradient to y is wanted.
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
        baseline = baselines(x, y, sigma)
    numbers = (sigma, weights, NO_BASELINE if baseline is None else baseline, scale)
    *bandwidths, scale = [u if u.flags.carray else as_contiguous(u) for u in numbers]
    gradients = [np.empty((batch, combinations, 0), x.dtype)] * 4
    for k, like in enumerate(samples):
        if wants[k]:
            gradients[k] = new_result((batch, combinations, like[0].size if batch else 0), x.dtype)
    limit = limits(x.dtype, n * m, dims, *_TOLERANCES[bool(want_points), bool(want_parameters)])
    values, sums = np.empty((batch, combinations), x.dtype), np.empty((batch, 3))
    order, parameters = np.zeros(sigma.shape, np.int64), np.zeros((3, batch, 2 * count if want_parameters else 0))
    results = (values, sums, order, parameters, tuple(gradients))
    wanted = (drop, (want_x, want_y, want_a, want_b, want_parameters))
    work = batch * (n + m) ** 2 * (dims * (1 + want_x + want_y) + 10 * count)
    _kernel_sums(x.dtype, work, samples, tuple(bandwidths), scale, wanted, limit, results)
    for k, like in enumerate(samples):
        gradients[k] = gradients[k].reshape(batch, combinations, *like.shape[1:]) if wants[k] else None
    dsigma = dweights = None
    if want_parameters:
        of_each = zip(*(parameters_of(order, sigma, weights, sums) for sums in parameters), strict=True)
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
def _or_ones(u, points):
    """u (B, N), or ones for as many points where u has no column."""
    return u if u.shape[1] else np.ones(points.shape[:2], u.dtype)


@inner
def _one_wide(u):
    """(B, N) as (B, N, 1)"""
    return u.reshape((u.shape[0], u.shape[1], 1))


@inner
def _one_chunk(rows):
    """(B, N, D) as (B, 1, N, D)"""
    return rows.reshape((rows.shape[0], 1, rows.shape[1], rows.shape[2]))


@inner
def _dot(u, rows, columns, out):
    """out = u . value, (B,), for u (B, N) and the value in rows (B, N, 1) and, if any, in columns (B, C, N, 1)."""
    for q in range(len(u)):
        out[q] = 0
        for i in range(u.shape[1]):
            value = rows[q, i, 0]
            for chunk in range(columns.shape[1] if columns.shape[2] else 0):
                value += columns[q, chunk, i, 0]
            out[q] += u[q, i] * value


@inner
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
    (x, y, a, b), (drop, wanted), (values, sums, order, parameters, gradients) = samples, options, results
    want_x, want_y, want_a, want_b, want_parameters = wanted
    pointers, team, arena = run
    a, b = _or_ones(a, x), _or_ones(b, y)
    plan, (px, py) = pack(run, (x, y), bandwidths, limit, (False, True, True))
    pa, pb = as_points(_one_wide(a)), as_points(_one_wide(b))
    none = np.empty((len(x), 0, 1), x.dtype)
    less_baseline = bandwidths[2].shape[1] > 0
    within = Modes(drop >= 1, less_baseline, True)
    of_x, of_y = Operands(px, px, pa, pa, none, none, none), Operands(py, py, pb, pb, none, none, none)
    xx, xx_rows = make_task(arena, plan, of_x, within, Wants(True, want_a, want_x, want_x, want_parameters))
    yy, yy_rows = make_task(arena, plan, of_y, within, Wants(True, want_b, want_y, want_y, want_parameters))
    if scale.shape[1] and not (want_b or want_y or want_parameters) and (scale[:, :, 1] == 0).all():
        # nobody asks for pairs within y
        yy_rows = 0
        yy[-1].value[:] = 0
    of_both, between = Operands(px, py, pb, pa, none, none, none), Modes(drop >= 2, less_baseline, False)
    xy, xy_rows = make_task(arena, plan, of_both, between, Wants(True, want_b, want_x, want_y, want_parameters))
    # the longest first, if both sets are equally large: threads that end early then wait less for the last
    sum_rows(pointers[2], team, (xy_rows, xx_rows, yy_rows), (xy, xx, yy))
    _values(scale, (a, b), (xx[-1], yy[-1], xy[-1]), values, sums)
    ones = np.ones(len(x))
    tasks = (
        (scale, 0, plan.unit, (_one_chunk(xx[-1].dx), xx[-1].dy, _one_chunk(xy[-1].dx)), gradients[0]),
        (scale, 1, plan.unit, (_one_chunk(yy[-1].dx), yy[-1].dy, xy[-1].dy), gradients[1]),
        (scale, 0, ones, (_one_chunk(xx[-1].value), xx[-1].column_value, _one_chunk(xy[-1].value)), gradients[2]),
        (scale, 1, ones, (_one_chunk(yy[-1].value), yy[-1].column_value, xy[-1].column_value), gradients[3]),
    )
    rows = (_pieces(gradients[0]), _pieces(gradients[1]), _pieces(gradients[2]), _pieces(gradients[3]))
    _combine(pointers[3], team, rows, tasks)
    order[:] = plan.order
    add_chunks(xx[-1].parameters, parameters[0])
    add_chunks(yy[-1].parameters, parameters[1])
    add_chunks(xy[-1].parameters, parameters[2])
