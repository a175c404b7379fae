"""The kernel matrix and its gradients."""

import numpy as np

from .compiled import compiled
from .memory import fresh
from .packed import pack
from .sums import sweep
from .threads import run_rows
from .tile import DEPTH, NOWHERE, ROWS, distances, gaussians
from .vector import exp2, fma, load, splat, store

# columns that stay in the second-level cache while the rows pass, in bytes
_SLAB = 1 << 19


@compiled
def _matrix_rows(x, y, nx, ny, n, m, slope, offset, scale, squarings, weights, slab, panels, start, stop, out):
    """Panels of ROWS rows, start to stop, numbered through the batch, of K (B, N, M)."""
    dims, width = y.shape[2], y.shape[3]
    lanes = width // 2
    count = scale.shape[1]
    row = x.shape[2]
    room = np.empty(ROWS * width + 64, x.dtype)
    tile = room[(-room.ctypes.data % 64) // x.itemsize :]
    zero = splat(x.dtype.type(0))
    number = start
    while number < stop:
        b, first = number // panels, number % panels
        last = min(panels, first + stop - number)
        first_scale, first_weight = splat(-scale[b, 0]), splat(weights[b, 0])
        near_slope, near_offset = x.dtype.type(slope[b]), x.dtype.type(offset[b])
        one = count == 1 and (offset[b] < np.inf or dims <= DEPTH)
        for slab_start in range(0, y.shape[1], slab):
            for panel in range(first, last):
                i = panel * ROWS
                height = min(ROWS, n - i)
                for p in range(slab_start, min(slab_start + slab, y.shape[1])):
                    j = p * width
                    whole = j + width <= m
                    if one and whole and height == ROWS:
                        at = (b * n + i) * m + j
                        some_near = gaussians(
                            x, (b * x.shape[1] + i) * row, row, y, (b * y.shape[1] + p) * dims * width, dims,
                            nx, b * nx.shape[1] + i, ny, b * ny.shape[1] + j, near_slope, near_offset,
                            scale[b, 0], weights[b, 0], out, at, m,
                        )  # fmt: skip
                        if not some_near:
                            continue
                    distances(
                        x, (b * x.shape[1] + i) * row, row, y, (b * y.shape[1] + p) * dims * width, dims,
                        nx, b * nx.shape[1] + i, ny, b * ny.shape[1] + j,
                        near_slope, near_offset, NOWHERE, tile, 0, width,
                    )  # fmt: skip
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


def rbf(x, y, sigma, weights, out=None):
    """K, (B, N, M). See gkfast.rbf."""
    packed = pack(x, y, sigma, weights, "kernel")
    batch, n, m = len(x), packed.x.count, packed.y.count
    if out is None:
        out = fresh((batch, n, m), x.dtype)
    result = out if out.flags.c_contiguous else np.empty(out.shape, out.dtype)
    panels = -(-n // ROWS)
    columns = packed.y.columns
    slab = max(1, _SLAB // max(1, columns.itemsize * columns.shape[2] * columns.shape[3]))

    def task(start, stop):
        _matrix_rows(
            packed.x.rows, columns, packed.x.norms, packed.y.norms, n, m, packed.slope, packed.offset, packed.scale,
            packed.squarings, packed.weights, slab, panels, start, stop, result,
        )  # fmt: skip

    run_rows(task, batch * panels, ROWS * m * (packed.dims + 10 * sigma.shape[1]))
    if result is not out:
        out[...] = result
    return out


def rbf_backward(g, x, y, sigma, weights, wants):
    """Gradients of sum_ij g_ij K_ij to (x, y, sigma, weights); those not wanted are None. y None: x is both."""
    want_x, want_y, want_sigma, want_weights = wants
    packed = pack(x, y, sigma, weights, "gradient")
    sums = sweep(
        packed,
        x=packed.x,
        y=packed.y,
        pairs=g,
        want_dx=want_x,
        # without y, x moves both ends of every pair
        want_dy=want_x if y is None else want_y,
        want_parameters=want_sigma or want_weights,
    )
    dx = dy = None
    if want_x:
        dx = (sums.dx + sums.dy if y is None else sums.dx).astype(x.dtype)
    if want_y and y is not None:
        dy = sums.dy.astype(x.dtype)
    return dx, dy, sums.dsigma if want_sigma else None, sums.dweights if want_weights else None
