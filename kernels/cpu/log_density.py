"""Log-sum-exp over kernels, and its gradient at x.

Exponents of a density reach thousands where those of a kernel matter only to about 100. In float32 a density is
right to a share of its greatest exponent, as float32 can be. Its gradients are made of differences of exponents,
which that would spoil: they, and a density that they start from, are computed in float64 whatever the input.
"""

from functools import cache

import numpy as np

from .calls import address_of, shared_at
from .compiled import compiled, inner
from .memory import behaved, borrow, give_back, room
from .points import LOG2_E, limits, pack, pack_addresses
from .rbf_matmul import rbf_matmul_backward
from .threads import team
from .tile import NOWHERE, ROWS, distances
from .vector import at_least, exp2, fma, lane_of, load, splat, store, total

_COLUMNS = 256


@inner
def _log_sum_exp(
    start, stop, x, nx, n, y, ny, m, slope, offset, scale, log_weights, column_log, skip_diagonal, out
):  # fmt: skip
    """out[b, i] = log2 sum_s sum_j 2**(log_weights_s + column_log_j - scale_s d2_ij), j != i with skip_diagonal.

    For panels of ROWS rows, numbered through the batch. The sum so far is relative to the greatest exponent so far.
    """
    dims, width = y.shape[2], y.shape[3]
    lanes = width // 2
    row, panels = x.shape[2], (n + ROWS - 1) // ROWS
    d2 = room(ROWS * _COLUMNS, x)
    t = room(_COLUMNS, x)
    greatest, sums = np.empty(ROWS), np.empty(ROWS)
    real = x.dtype.type
    lowest = splat(real(-np.inf))
    for number in range(start, stop):
        b, i0 = number // panels, number % panels * ROWS
        near_slope, near_offset = real(slope[b]), real(offset[b])
        greatest[:] = -np.inf
        sums[:] = 0
        for j0 in range(0, m, _COLUMNS):
            wide = min(_COLUMNS, m - j0)
            p0, p1 = j0 // width, (j0 + wide + width - 1) // width
            for p in range(p0, p1):
                distances(
                    x, (b * x.shape[1] + i0) * row, row, y, (b * y.shape[1] + p) * dims * width, dims,
                    nx, b * nx.shape[1] + i0, ny, b * ny.shape[1] + p * width, near_slope, near_offset,
                    i0 - p * width if skip_diagonal else NOWHERE, d2, (p - p0) * width, _COLUMNS,
                )  # fmt: skip
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


@cache
def _log_sum_exp_address(dtype: np.dtype) -> int:
    points, wide = np.zeros((1, 1, 1), dtype), np.zeros(1)
    rows = points[0]
    plan = (wide, wide, rows, rows, rows, False, wide[None])
    return address_of(_log_sum_exp, 0, 0, points, rows, 1, points[None], rows, 1, *plan)


_share_log_sum_exp = shared_at(_log_sum_exp, flush_subnormals=True)


@compiled
def _log_density(addresses, workers, arena, x, y, sigma, weights, log_weights, data_log, skip_diagonal, limit, out):
    """out = log2 sum_sj 2**(log_weights_s + data_log_j) k_sij, (B, N), for log_weights (B, S), data_log (B, M)."""
    (batch, n, _), m, count = x.shape, y.shape[1], sigma.shape[1]
    plan, px, py = pack(
        addresses[0], workers, arena, x, y, False, sigma, weights, np.empty((len(x), 0)), False, False, limit
    )
    ordered = np.empty((batch, count), x.dtype)
    # a column that is none has no share
    column_log = np.empty((batch, py.columns.shape[1] * py.columns.shape[3]), x.dtype)
    for b in range(batch):
        for j in range(column_log.shape[1]):
            column_log[b, j] = data_log[b, j] if j < m else -np.inf
        for s in range(count):
            ordered[b, s] = log_weights[b, plan.order[b, s]]
    task = (
        px.rows, px.norms, n, py.columns, py.norms, m, plan.slope, plan.offset, plan.scale, ordered, column_log,
        skip_diagonal, out,
    )  # fmt: skip
    rows = batch * ((n + ROWS - 1) // ROWS)
    _share_log_sum_exp(addresses[1], workers, (rows,), (task,))


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
    arrays = map(behaved, (x, y, sigma, weights, (log_weights - greatest) * LOG2_E, data_log))
    addresses = pack_addresses(x.dtype), _log_sum_exp_address(x.dtype)
    workers = team(batch * n * m * (dims + 20 * sigma.shape[1]))
    out = np.empty((batch, n))
    arena = borrow()
    _log_density(addresses, workers, arena, *arrays, leave_one_out, limits(x.dtype, n * m, dims, accuracy), out)
    give_back(arena)
    return out / LOG2_E + greatest


def score(x, y, sigma, log_weights, data_weights, *, leave_one_out):
    """The gradient of log_density at x, (B, N, D). See gkfast.score."""
    log_p = log_density(x, y, sigma, log_weights, data_weights, leave_one_out=leave_one_out)
    found = rbf_matmul_backward(
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
    # distance / sigma^2 may leave the range of float32, and is infinite there
    with np.errstate(over="ignore"):
        return found.astype(x.dtype)
