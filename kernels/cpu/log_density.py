"""Log-sum-exp over kernels, and its gradient at x.

Exponents of a density reach thousands where those of a kernel matter only to about 100. In float32 a density is
right to a share of its greatest exponent, as float32 can be. Its gradients are made of differences of exponents,
which that would spoil: they, and a density that they start from, are computed in float64 whatever the input.
"""

from typing import NamedTuple

import numpy as np

from .arrays import empty, fill, zeros
from .bandwidths import LOG2_E, NO_BASELINE, PACKING, example_plan, limits, pack
from .calls import operation, parallel_for
from .compiled import inner
from .memory import as_contiguous
from .points import example_points
from .rbf_matmul import rbf_matmul_backward
from .tile import NO_DIAGONAL, ROWS, distances
from .vector import at_least, exp2, fma, lane_of, load, splat, store, total

_COLUMNS = 256
# weights of the data within so many powers of two may stand beside kernels relative to the nearest point's
_LEVEL = 40.0
# and what then adds less than 2**-80 to a sum is left out
_NOTHING = 120.0


class Logs(NamedTuple):
    """Logarithms of weights, in base 2, and what follows from the weights of the data."""

    bandwidths: np.ndarray  # (B, S) in the plan's order, with that of the greatest weight of the data
    data: np.ndarray  # (B, columns) over the greatest; padding has no share
    level: np.ndarray  # (B,) whether all of the data are within _LEVEL: then no logarithms, but weights
    squarings: np.ndarray  # (B, S) of kernel s - 1, relative to its greatest, to have kernel s; 0: not to be had so


def _example(dtype):
    points, wide, places = example_points(dtype), np.zeros((1, 1)), np.zeros((1, 1), np.int64)
    logs = Logs(wide, points.norms, np.zeros(1, np.bool_), places)
    return (points, points), example_plan(dtype), logs, False, np.zeros((1, 1, 1))


@parallel_for(_example, flush_subnormals=True)
def _log_sum_exp(memory, start, stop, points, plan, logs, skip_diagonal, out):
    """out[b, i, s] = log2 sum_j 2**(bandwidths_s + log2 data_j - scale_s d2_ij), j != i with skip_diagonal.

    For panels of ROWS rows, numbered through the batch. out (B, N, S) is in the caller's order; (B, N, 1) has the
    sums over s. The sum so far is relative to the greatest exponent so far, of each bandwidth.
    """
    n, m, width, scale = points[0].count, points[1].count, points[1].columns.shape[3], plan.scale
    lanes, count = width // 2, scale.shape[1]
    panels = (n + ROWS - 1) // ROWS
    real = logs.data.dtype.type
    d2, kernels = empty(memory, ROWS * _COLUMNS, logs.data.dtype), empty(memory, _COLUMNS, logs.data.dtype)
    greatest, sums = empty(memory, (ROWS, count), np.float64), empty(memory, (ROWS, count), np.float64)
    found = empty(memory, count, np.float64)
    for number in range(start, stop):
        b, i0 = number // panels, number % panels * ROWS
        near = real(plan.slope[b]), real(plan.offset[b])
        fill(greatest, -np.inf)
        fill(sums, 0)
        for j0 in range(0, m, _COLUMNS):
            wide = min(_COLUMNS, m - j0)
            p0, p1 = j0 // width, (j0 + wide + width - 1) // width
            for p in range(p0, p1):
                diagonal = i0 - p * width if skip_diagonal else NO_DIAGONAL
                distances(points, (b, i0, p), near, diagonal, d2, (p - p0) * width, _COLUMNS)
            padded, data_at = (p1 - p0) * width, b * logs.data.shape[1] + j0
            for r in range(min(ROWS, n - i0)):
                at = r * _COLUMNS
                if skip_diagonal and j0 <= i0 + r < j0 + wide:
                    d2[at + i0 + r - j0] = np.inf
                for j in range(wide, padded):
                    d2[at + j] = np.inf
                least = _least(d2, at, padded, lanes)
                for s in range(count):
                    # no exponent is greater; rounded as they are
                    bound = np.float64(real(-np.float64(scale[b, s]) * least))
                    if bound > greatest[r, s]:
                        top = bound
                        if not logs.level[b]:
                            top = _greatest(d2, at, padded, lanes, scale[b, s], logs.data, data_at)
                        if top > greatest[r, s]:
                            # the sum so far is brought to the new greatest exponent
                            sums[r, s] *= 2.0 ** (greatest[r, s] - top) if greatest[r, s] > -np.inf else 1.0
                            greatest[r, s] = top
                    if greatest[r, s] == -np.inf:
                        # nothing yet, or a NaN that compares with nothing
                        for j in range(wide):
                            if d2[at + j] != d2[at + j]:
                                sums[r, s] = np.nan
                        continue
                    if plan.finite and bound < greatest[r, s] - _NOTHING:
                        continue
                    c, less = splat(-scale[b, s]), splat(-real(greatest[r, s]))
                    part = splat(real(0))
                    if logs.squarings[b, s]:
                        for j in range(0, padded, lanes):
                            k = load(kernels, j)
                            k = k * k
                            if logs.squarings[b, s] == 2:
                                k = k * k
                            store(kernels, j, k)
                            part = fma(k, load(logs.data, data_at + j), part)
                    elif logs.level[b]:
                        for j in range(0, padded, lanes):
                            # rounded as the greatest was: of one that is very large the rest would be too
                            k = exp2(load(d2, at + j) * c + less)
                            store(kernels, j, k)
                            part = fma(k, load(logs.data, data_at + j), part)
                    else:
                        for j in range(0, padded, lanes):
                            exponent = fma(load(d2, at + j), c, load(logs.data, data_at + j))
                            part = part + exp2(exponent + less)
                    sums[r, s] += np.float64(total(part))
        for r in range(min(ROWS, n - i0)):
            top = -np.inf
            for s in range(count):
                found[s] = logs.bandwidths[b, s] + greatest[r, s] + np.log2(sums[r, s])
                top = max(top, found[s])
            if out.shape[2] == count:
                for s in range(count):
                    out[b, i0 + r, plan.order[b, s]] = found[s]
            else:
                base, share = top if top > -np.inf else 0.0, 0.0
                for s in range(count):
                    share += 2.0 ** (found[s] - base)
                out[b, i0 + r, 0] = base + np.log2(share)


@inner
def _least(d2, at, padded, lanes):
    """The least of a row of distances; a NaN does not count."""
    zero = splat(d2.dtype.type(0))
    nearest = splat(d2.dtype.type(-np.inf))
    for j in range(0, padded, lanes):
        nearest = at_least(nearest, zero - load(d2, at + j))
    return -_greatest_lane(nearest, lanes)


@inner
def _greatest(d2, at, padded, lanes, scale, data, data_at):
    """The greatest exponent of a row."""
    c, top = splat(-scale), splat(d2.dtype.type(-np.inf))
    for j in range(0, padded, lanes):
        top = at_least(top, fma(load(d2, at + j), c, load(data, data_at + j)))
    return _greatest_lane(top, lanes)


@inner
def _greatest_lane(vector, lanes):
    top = -np.inf
    for lane in range(lanes):
        top = max(top, np.float64(lane_of(vector, lane)))
    return top


@operation(*PACKING, _log_sum_exp)
def _log_density(run, points, bandwidths, logs, skip_diagonal, limit, out):
    """out = log2 sum_sj 2**(log_weights_s + data_log_j) k_sij, (B, N, 1), or without the sum over s (B, N, S).

    logs are log_weights and data_log.
    """
    log_weights, data_log = logs
    plan, packed = pack(run, points, bandwidths, limit, (False, False, False))
    (batch, n, _), m, columns = points[0].shape, points[1].shape[1], packed[1].columns
    memory = run[2]
    of_bandwidths = empty(memory, log_weights.shape, np.float64)
    squarings = zeros(memory, log_weights.shape, np.int64)
    of_data = empty(memory, (batch, columns.shape[1] * columns.shape[3]), columns.dtype)
    level = empty(memory, batch, np.bool_)
    for b in range(batch):
        greatest, least, known = -np.inf, np.inf, m > 0
        for j in range(m):
            log = data_log[b, j]
            greatest, least, known = max(greatest, log), min(least, log), known and log == log
        # without a share nothing is greatest
        greatest = greatest if known and greatest > -np.inf else 0.0
        level[b] = known and least >= greatest - _LEVEL
        for j in range(of_data.shape[1]):
            log = data_log[b, j] - greatest if j < m else -np.inf
            of_data[b, j] = 2.0**log if level[b] else log
        for s in range(log_weights.shape[1]):
            of_bandwidths[b, s] = log_weights[b, plan.order[b, s]] + greatest
            steps = plan.squarings[b, s]
            exact = steps > 0 and plan.scale[b, s] == plan.scale[b, s - 1] * columns.dtype.type(2**steps)
            # exponents are large: in float32 what the ratio of a ladder may be off by would be felt
            if level[b] and (exact or columns.itemsize == 8):
                squarings[b, s] = steps
    task = packed, plan, Logs(of_bandwidths, of_data, level, squarings), skip_diagonal, out
    _log_sum_exp(run[0][2], run[1], (batch * ((n + ROWS - 1) // ROWS),), (task,))


def log_density(x, y, sigma, log_weights, data_weights, *, leave_one_out, in_float64=True):
    """log sum_sj data_weights_j exp(log_weights_s + log k_sij), (B, N) float64. See gkfast.log_density.

    The exponents are computed in float64, or in the dtype of x.
    """
    greatest = log_weights.max(1, keepdims=True)
    log_weights = (log_weights - greatest) * LOG2_E
    out = np.empty((*x.shape[:2], 1))
    weights = np.exp2(log_weights), log_weights, data_weights
    _log_sums(x, y, sigma, weights, leave_one_out, in_float64, out)
    return out[..., 0] / LOG2_E + greatest


def log_density_by_bandwidth(x, y, sigma, data_weights, *, leave_one_out, in_float64=True):
    """log sum_j data_weights_j k_sij, (B, N, S) float64. See gkfast.log_density."""
    out = np.empty((*x.shape[:2], sigma.shape[1]))
    # which pairs are near is for the narrowest to say
    narrowest = np.float64(sigma == np.fmin.reduce(sigma, 1, keepdims=True))
    weights = narrowest, np.zeros(sigma.shape), data_weights
    _log_sums(x, y, sigma, weights, leave_one_out, in_float64, out)
    return out / LOG2_E


def _log_sums(x, y, sigma, weights, leave_one_out, in_float64, out):
    """`_log_density` in the dtype that is wanted.

    weights are those of the bandwidths as to the rounding of exponents, their logarithms, and those of the data.
    """
    of_rounding, log_weights, data_weights = weights
    accuracy = "exponent"
    if x.dtype == np.float64 or in_float64:
        accuracy = "density32" if x.dtype == np.float32 else "density64"
        x, y = x.astype(np.float64, copy=False), y.astype(np.float64, copy=False)
    (batch, n, dims), m = x.shape, y.shape[1]
    with np.errstate(divide="ignore"):
        # a row without weight has no share
        data_log = np.log2(data_weights, dtype=np.float64)
    points, logs = (tuple(map(as_contiguous, arrays)) for arrays in ((x, y), (log_weights, data_log)))
    work = batch * n * m * (dims + 20 * sigma.shape[1])
    limit = limits(x.dtype, n * m, dims, accuracy)
    bandwidths = as_contiguous(sigma), of_rounding, NO_BASELINE
    _log_density(x.dtype, work, points, bandwidths, logs, leave_one_out, limit, out)


def score(x, y, sigma, log_weights, data_weights, *, leave_one_out):
    """The gradient of log_density at x, (B, N, D). See gkfast.score."""
    log_p = log_density(x, y, sigma, log_weights, data_weights, leave_one_out=leave_one_out)
    gradient = rbf_matmul_backward(
        np.ones((*log_p.shape, 1)),
        x.astype(np.float64),
        y.astype(np.float64),
        data_weights[..., None],
        sigma,
        np.ones_like(sigma),
        log_p[..., None] - log_weights[:, None, :],
        skip_diagonal=leave_one_out,
        wants=(True, False, False, False, False),
    )[0]
    # distance / sigma^2 is infinite where it leaves the range of float32
    with np.errstate(over="ignore"):
        return gradient.astype(x.dtype)
