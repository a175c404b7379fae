"""Log-sum-exp over kernels, and its gradient at x.

Exponents of a density reach thousands where those of a kernel matter only to about 100. In float32 a density is
right to a share of its greatest exponent, as float32 can be. Its gradients are made of differences of exponents,
which that would spoil: they, and a density that they start from, are computed in float64 whatever the input.
"""

import numpy as np

from .arrays import empty, fill
from .bandwidths import LOG2_E, NO_BASELINE, PACKING, example_plan, limits, pack
from .calls import operation, parallel_for
from .memory import as_contiguous
from .points import example_points
from .rbf_matmul import rbf_matmul_backward
from .tile import NO_DIAGONAL, ROWS, distances
from .vector import at_least, exp2, fma, lane_of, load, splat, store, total

_COLUMNS = 256


def _example(dtype):
    points, wide = example_points(dtype), np.zeros((1, 1))
    return (points, points), example_plan(dtype), points.norms, points.norms, False, wide


@parallel_for(_example, flush_subnormals=True)
def _log_sum_exp(memory, start, stop, points, plan, log_weights, column_log, skip_diagonal, out):
    """out[b, i] = log2 sum_s sum_j 2**(log_weights_s + column_log_j - scale_s d2_ij), j != i with skip_diagonal.

    For panels of ROWS rows, numbered through the batch. The sum so far is relative to the greatest exponent so far.
    """
    n, m, width, scale = points[0].count, points[1].count, points[1].columns.shape[3], plan.scale
    lanes = width // 2
    panels = (n + ROWS - 1) // ROWS
    d2, t = empty(memory, ROWS * _COLUMNS, column_log.dtype), empty(memory, _COLUMNS, column_log.dtype)
    greatest, sums = empty(memory, ROWS, np.float64), empty(memory, ROWS, np.float64)
    real = column_log.dtype.type
    lowest = splat(real(-np.inf))
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
            padded = (p1 - p0) * width
            for r in range(min(ROWS, n - i0)):
                if skip_diagonal and j0 <= i0 + r < j0 + wide:
                    d2[r * _COLUMNS + i0 + r - j0] = np.inf
                for s in range(scale.shape[1]):
                    c, w = splat(-scale[b, s]), splat(log_weights[b, s])
                    top_lanes = lowest
                    for j in range(0, padded, lanes):
                        logs = load(column_log, b * column_log.shape[1] + j0 + j) + w
                        exponent = fma(load(d2, r * _COLUMNS + j), c, logs)
                        store(t, j, exponent)
                        top_lanes = at_least(top_lanes, exponent)
                    top = -np.inf
                    for lane in range(lanes):
                        top = max(top, np.float64(lane_of(top_lanes, lane)))
                    if top > greatest[r]:
                        # the sum so far is brought to the new greatest exponent
                        sums[r] *= 2.0 ** (greatest[r] - top) if greatest[r] > -np.inf else 1.0
                        greatest[r] = top
                    if greatest[r] == -np.inf:
                        # nothing yet, or a NaN that compares with nothing
                        for j in range(wide):
                            if t[j] != t[j]:
                                sums[r] = np.nan
                        continue
                    reference = splat(real(greatest[r]))
                    part = splat(real(0))
                    for j in range(0, padded, lanes):
                        part = part + exp2(load(t, j) - reference)
                    sums[r] += np.float64(total(part))
        for r in range(min(ROWS, n - i0)):
            out[b, i0 + r] = greatest[r] + np.log2(sums[r])


@operation(*PACKING, _log_sum_exp)
def _log_density(run, points, bandwidths, logs, skip_diagonal, limit, out):
    """out = log2 sum_sj 2**(log_weights_s + data_log_j) k_sij, (B, N); logs are log_weights and data_log."""
    log_weights, data_log = logs
    plan, packed = pack(run, points, bandwidths, limit, (False, False, False))
    (batch, n, _), m, columns = points[0].shape, points[1].shape[1], packed[1].columns
    ordered = empty(run[2], log_weights.shape, columns.dtype)
    # padding has no share
    column_log = empty(run[2], (batch, columns.shape[1] * columns.shape[3]), columns.dtype)
    for b in range(batch):
        for j in range(column_log.shape[1]):
            column_log[b, j] = data_log[b, j] if j < m else -np.inf
        for s in range(log_weights.shape[1]):
            ordered[b, s] = log_weights[b, plan.order[b, s]]
    task = packed, plan, ordered, column_log, skip_diagonal, out
    _log_sum_exp(run[0][2], run[1], (batch * ((n + ROWS - 1) // ROWS),), (task,))


def log_density(x, y, sigma, log_weights, data_weights, *, leave_one_out, in_float64=True):
    """log sum_sj data_weights_j exp(log_weights_s + log k_sij), (B, N) float64. See gkfast.log_density.

    The exponents are computed in float64, or in the dtype of x.
    """
    # the greatest weight is taken out, so that large normalisers do not round the exponents
    greatest = log_weights.max(1, keepdims=True)
    weights = np.exp(log_weights - greatest)
    accuracy = "exponent"
    if x.dtype == np.float64 or in_float64:
        accuracy = "density32" if x.dtype == np.float32 else "density64"
        x, y = x.astype(np.float64, copy=False), y.astype(np.float64, copy=False)
    (batch, n, dims), m = x.shape, y.shape[1]
    with np.errstate(divide="ignore"):
        # a row without weight has no share
        data_log = np.log2(data_weights).astype(x.dtype)
    points = as_contiguous(x), as_contiguous(y)
    bandwidths = as_contiguous(sigma), weights, NO_BASELINE
    logs = as_contiguous((log_weights - greatest) * LOG2_E), as_contiguous(data_log)
    work, limit, out = (
        batch * n * m * (dims + 20 * sigma.shape[1]),
        limits(x.dtype, n * m, dims, accuracy),
        np.empty((batch, n)),
    )
    _log_density(x.dtype, work, points, bandwidths, logs, leave_one_out, limit, out)
    return out / LOG2_E + greatest


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
