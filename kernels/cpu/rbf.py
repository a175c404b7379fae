"""The kernel matrix and its gradients."""

import numpy as np

from .bandwidths import PACKING, example_plan, limits, pack
from .calls import operation, parallel_for
from .memory import as_contiguous, lent, new_result, scratch
from .points import example_points
from .sweep import sweep
from .tile import MOST_DIFFERENCES, NO_DIAGONAL, ROWS, distances, gaussians
from .vector import exp2, fma, load, splat, store

# columns that stay in the second-level cache while the rows pass, in bytes
_SLAB = 1 << 19


def _example(dtype):
    return (example_points(dtype),) * 2, example_plan(dtype), np.zeros((1, 1, 1), dtype)


@parallel_for(_example, flush_subnormals=True)
def _matrix_rows(start, stop, points, plan, out):
    """Panels of ROWS rows, start to stop, numbered through the batch, of K (B, N, M)."""
    scale, squarings, weights = plan.scale, plan.squarings, plan.weights
    _, panels_of_columns, dims, width = points[1].columns.shape
    lanes = width // 2
    count = scale.shape[1]
    _, n, m = out.shape
    real = out.dtype.type
    tile = scratch(ROWS * width, out)
    zero = splat(real(0))
    panels = (n + ROWS - 1) // ROWS
    slab = max(1, _SLAB // max(1, out.itemsize * dims * width))
    number = start
    while number < stop:
        b, first = number // panels, number % panels
        last = min(panels, first + stop - number)
        first_scale, first_weight = splat(-scale[b, 0]), splat(weights[b, 0])
        kernel, near = (scale[b, 0], weights[b, 0]), (real(plan.slope[b]), real(plan.offset[b]))
        in_registers = count == 1 and (plan.offset[b] < np.inf or dims <= MOST_DIFFERENCES)
        for slab_start in range(0, panels_of_columns, slab):
            for panel in range(first, last):
                i = panel * ROWS
                height = min(ROWS, n - i)
                for p in range(slab_start, min(slab_start + slab, panels_of_columns)):
                    j = p * width
                    whole = j + width <= m
                    if in_registers and whole and height == ROWS:
                        some_near = gaussians(points, (b, i, p), near, kernel, out, (b * n + i) * m + j, m)
                        if not some_near:
                            continue
                    distances(points, (b, i, p), near, NO_DIAGONAL, tile, 0, width)
                    if count == 1 and whole:
                        for r in range(height):
                            at = (b * n + i + r) * m + j
                            for v in range(0, width, lanes):
                                d2 = load(tile, r * width + v)
                                store(out, at + v, exp2(d2 * first_scale) * first_weight)
                        continue
                    for at in range(0, ROWS * width, lanes):
                        d2 = load(tile, at)
                        k = mixed = zero
                        for s in range(count):
                            if squarings[b, s] == 0:
                                k = exp2(zero - d2 * splat(scale[b, s]))
                            else:
                                k = k * k
                                if squarings[b, s] == 2:
                                    k = k * k
                            mixed = fma(splat(weights[b, s]), k, mixed)
                        store(tile, at, mixed)
                    for r in range(height):
                        at = (b * n + i + r) * m + j
                        if whole:
                            for v in range(0, width, lanes):
                                store(out, at + v, load(tile, r * width + v))
                        else:
                            for c in range(m - j):
                                out[b, i + r, j + c] = tile[r * width + c]
        number += last - first


@operation(*PACKING, _matrix_rows)
def _matrix(run, x, y, sigma, weights, same, limit, out):
    run, x, y, sigma, weights, out = lent((run, x, y, sigma, weights, out))
    batch, n, m = out.shape
    plan, points = pack(run, (x, y), (sigma, weights, np.empty((batch, 0))), limit, (same, same, same))
    rows = batch * ((n + ROWS - 1) // ROWS) if m else 0
    _matrix_rows(run[0][2], run[1], (rows,), ((points, plan, out),))


def rbf(x, y, sigma, weights, *, out=None):
    """K, (B, N, M). See gkfast.rbf."""
    (batch, n, dims), m = x.shape, (x if y is None else y).shape[1]
    if out is None:
        out = new_result((batch, n, m), x.dtype)
    result = out if out.flags.carray else np.empty(out.shape, out.dtype)
    arrays = map(as_contiguous, (x, x if y is None else y, sigma, weights))
    work, limit = batch * n * m * (dims + 10 * sigma.shape[1]), limits(x.dtype, n * m, dims, "kernel")
    _matrix(x.dtype, work, *arrays, y is None, limit, result)
    if result is not out:
        out[...] = result
    return out


def rbf_backward(g, x, y, sigma, weights, *, wants, k=None):
    """Gradients of sum_ij g_ij K_ij to (x, y, sigma, weights); those not wanted are None. y None: x is both.

    k is K, if the caller has kept it: its kernels are then read where their digits suffice.
    """
    want_x, want_y, *want_parameters = wants
    wants = (False, False, want_x, want_y and y is not None, *want_parameters)
    return sweep(x, y, sigma, weights, ("gradient",), wants, pairs=g, kernels=k)[2:]
