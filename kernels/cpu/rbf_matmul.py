"""K @ v and its gradients, with K never stored."""

import numpy as np

from .bandwidths import PACKING, example_plan, limits, pack
from .calls import operation, parallel_for
from .memory import as_contiguous, lent, scratch
from .points import as_points, example_points
from .sweep import sweep
from .tile import MOST_DIFFERENCES, NO_DIAGONAL, ROWS, distances, gaussian_sums
from .vector import exp2, fma, load, splat, store, total

# columns that stay in the second-level cache while the rows pass, in bytes
_SLAB = 1 << 19
# panels of columns whose sums are float32
_PANELS = 8


def _example(dtype):
    points = example_points(dtype)
    return (points, points), example_plan(dtype), points.columns, np.zeros((1, 1))


@parallel_for(_example, flush_subnormals=True)
def _one_column_rows(start, stop, points, plan, v, out):
    """out[b, i] = sum_j K_ij v_j of one bandwidth, for panels of ROWS rows, numbered through the batch."""
    scale, weights = plan.scale, plan.weights
    _, panels, dims, width = points[1].columns.shape
    lanes, n = width // 2, points[0].count
    real = v.dtype.type
    tile, sums = scratch(ROWS * width, v), scratch(ROWS * lanes, v)
    row_panels = (n + ROWS - 1) // ROWS
    slab = max(_PANELS, _SLAB // max(1, v.itemsize * dims * width) // _PANELS * _PANELS)
    for slab_start in range(0, panels, slab):
        slab_stop = min(slab_start + slab, panels)
        for number in range(start, stop):
            b, i = number // row_panels, number % row_panels * ROWS
            height = min(ROWS, n - i)
            c, near = splat(-scale[b, 0]), (real(plan.slope[b]), real(plan.offset[b]))
            for first in range(slab_start, slab_stop, _PANELS):
                for at in range(0, ROWS * lanes, lanes):
                    store(sums, at, splat(real(0)))
                for p in range(first, min(first + _PANELS, slab_stop)):
                    v_at = (b * panels + p) * width
                    if gaussian_sums(points, (b, i, p), near, scale[b, 0], v, v_at, sums):
                        distances(points, (b, i, p), near, NO_DIAGONAL, tile, 0, width)
                        for r in range(ROWS):
                            part = load(sums, r * lanes)
                            for j in range(0, width, lanes):
                                k = exp2(load(tile, r * width + j) * c)
                                part = fma(k, load(v, v_at + j), part)
                            store(sums, r * lanes, part)
                for r in range(height):
                    out[b, i + r] += np.float64(weights[b, 0]) * np.float64(total(load(sums, r * lanes)))


@operation(*PACKING, _one_column_rows)
def _one_column(run, x, y, v, sigma, weights, limit, out):
    """out += K @ v, (B, N), for one bandwidth and v (B, M, 1); False if a sweep must do it."""
    run, x, y, v, sigma, weights, out = lent((run, x, y, v, sigma, weights, out))
    (batch, n, dims), m = x.shape, y.shape[1]
    plan, points = pack(run, (x, y), (sigma, weights, np.empty((batch, 0))), limit, (False, False, False))
    for b in range(batch):
        if not plan.finite or (dims > MOST_DIFFERENCES and plan.offset[b] == np.inf):
            return False
    rows = batch * ((n + ROWS - 1) // ROWS) if m else 0
    _one_column_rows(run[0][2], run[1], (rows,), ((points, plan, as_points(run[2], v).columns, out),))
    return True


def rbf_matmul(x, y, v, sigma, weights, shift=None, baseline=None, *, skip_diagonal=False):
    """sum_j K_ij v_j, (B, N, E). See gkfast.rbf_matmul.

    With shift (B, N, S) the kernels are exp(-|x_i - y_j|^2 / (2 sigma_s^2) - shift_is): derivatives of a
    log-density are made of them. skip_diagonal leaves j = i out; baseline (B, S) makes it
    K - sum_s weights_s baseline_s.
    """
    (batch, n, dims), m = x.shape, y.shape[1]
    if v.shape[2] == sigma.shape[1] == 1 and shift is None and not skip_diagonal and baseline is None:
        arrays = map(as_contiguous, (x, y, v.astype(x.dtype, copy=False), sigma, weights))
        work, limit, out = batch * n * m * (dims + 10), limits(x.dtype, n * m, dims, "sum"), np.zeros((batch, n))
        if _one_column(x.dtype, work, *arrays, limit, out):
            return out[..., None].astype(x.dtype)
    modes = {"skip_diagonal": skip_diagonal, "baseline": baseline}
    return sweep(x, y, sigma, weights, ("sum",), (True,) + (False,) * 5, v=v, shift=shift, **modes).value


def rbf_matmul_backward(g, x, y, v, sigma, weights, shift=None, baseline=None, *, skip_diagonal=False, wants):
    """Gradients of sum_ie g_ie (K v)_ie to (x, y, v, sigma, weights); those not wanted are None."""
    want_x, want_y, want_v, *want_parameters = wants
    wants = (False, want_v, want_x, want_y, *want_parameters)
    modes = {"shift": shift, "skip_diagonal": skip_diagonal, "baseline": baseline}
    _, dv, dx, dy, dsigma, dweights = sweep(x, y, sigma, weights, ("sum", "gradient"), wants, v=v, g=g, **modes)
    return dx, dy, dv, dsigma, dweights
