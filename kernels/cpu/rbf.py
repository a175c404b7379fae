"""The kernel matrix and its gradients."""

from functools import cache

import numpy as np

from .compiled import address_of, called_at, compiled
from .memory import behaved, fresh
from .packed import Packed, column_here, limits, pack, pack_address, pack_here, panel_width
from .sums import CHUNK_WORK, parameters_of, sum_rows_address, sweep, sweep_here
from .threads import SERIAL_WORK, run_rows
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
    (batch, n, dims), m = x.shape, (x if y is None else y).shape[1]
    if out is None:
        out = fresh((batch, n, m), x.dtype)
    result = out if out.flags.carray else np.empty(out.shape, out.dtype)
    panels, work = -(-n // ROWS), m * (dims + 10 * sigma.shape[1])
    slab = max(1, _SLAB // max(1, x.itemsize * dims * panel_width.py_func(x)))
    if batch * n * work < SERIAL_WORK:
        arrays = map(behaved, (x, x if y is None else y, sigma, weights))
        limit = limits(x.dtype, n * m, dims, "kernel")
        addresses = pack_address(x.dtype), _matrix_rows_address(x.dtype)
        _matrix_here(addresses, *arrays, y is None, *limit, slab, panels, result)
    else:
        packed = pack(x, y, sigma, weights, "kernel")
        rest = _matrix_arguments(packed)

        def task(start, stop):
            _matrix_rows(*rest, slab, panels, start, stop, result)

        run_rows(task, batch * panels, ROWS * work)
    if result is not out:
        out[...] = result
    return out


def _matrix_arguments(packed: Packed) -> tuple:
    """What `_matrix_rows` takes first."""
    x, y = packed.x, packed.y
    return (
        x.rows, y.columns, x.norms, y.norms, x.count, y.count, packed.slope, packed.offset, packed.scale,
        packed.squarings, packed.weights,
    )  # fmt: skip


@cache
def _matrix_rows_address(dtype: np.dtype) -> int:
    point, one = np.zeros((1, 1, 1), dtype), np.ones((1, 1))
    return address_of(_matrix_rows, *_matrix_arguments(pack(point, None, one, one, "kernel")), 1, 1, 0, 1, point)


_call_matrix_rows = called_at(_matrix_rows)


@compiled
def _matrix_here(addresses, x, y, sigma, weights, same, moderate, bounds, slab, panels, out):
    """All in one call of compiled code: of a few pairs, calls cost more than what they do."""
    pack_at, matrix_rows_at = addresses
    plan, px, py = pack_here(pack_at, x, y, same, sigma, weights, same, same, moderate, bounds)
    _, of_batch, of_bandwidth, places = plan
    if out.size:
        arguments = (
            px[0], py[1], px[2], py[2], x.shape[1], y.shape[1], of_batch[0], of_batch[1], of_bandwidth[0], places[0],
            of_bandwidth[1], slab, panels, 0, len(x) * panels, out,
        )  # fmt: skip
        _call_matrix_rows(matrix_rows_at, arguments)


def rbf_backward(g, x, y, sigma, weights, wants):
    """Gradients of sum_ij g_ij K_ij to (x, y, sigma, weights); those not wanted are None. y None: x is both."""
    want_x, want_y, want_sigma, want_weights = wants
    want_parameters, same = want_sigma or want_weights, y is None
    # without y, x moves both ends of every pair
    pulls = (want_x, want_x if same else want_y)
    y = x if same else y
    (batch, n, dims), m = x.shape, y.shape[1]
    if batch * n * m * (dims * (1 + sum(pulls)) + 10 * sigma.shape[1]) < 2 * CHUNK_WORK:
        # one chunk at any rate, and in one call it takes least time
        arrays = map(behaved, (g.astype(x.dtype, copy=False), x, y, sigma, weights))
        dx = np.empty((batch, n if want_x else 0, dims), x.dtype)
        dy = np.empty((batch, m if want_y and not same else 0, dims), x.dtype)
        limit = limits(x.dtype, n * m, dims, "gradient")
        modes = (same, *pulls, want_parameters)
        addresses = pack_address(x.dtype), sum_rows_address(x.dtype)
        order, parameters = _backward_here(addresses, *arrays, modes, *limit, dx, dy)
        dsigma = dweights = None
        if want_parameters:
            dsigma, dweights = parameters_of(order, sigma, weights, parameters)
    else:
        packed = pack(x, None if same else y, sigma, weights, "gradient")
        points = {"x": packed.x, "y": packed.y, "pairs": g}
        _, _, dx, dy, dsigma, dweights = sweep(
            packed, **points, want_dx=pulls[0], want_dy=pulls[1], want_parameters=want_parameters
        )
        dx = (dx + dy if same else dx).astype(x.dtype) if want_x else None
        dy = dy.astype(x.dtype) if want_y and not same else None
    gradients = (dx, None if same else dy, dsigma, dweights)
    return tuple(d if want else None for d, want in zip(gradients, wants, strict=True))


@compiled
def _backward_here(addresses, g, x, y, sigma, weights, modes, moderate, bounds, dx, dy):
    """rbf_backward of one chunk: fills in dx and dy, as far as they have rows; the moments of the bandwidths."""
    same, want_x, want_y, want_parameters = modes
    batch, n, dims = x.shape
    pack_at, sum_rows_at = addresses
    plan, px, py = pack_here(pack_at, x, y, same, sigma, weights, True, True, moderate, bounds)
    none = column_here(np.empty((batch, 0), x.dtype))
    wants = (False, False, want_x, want_y, want_parameters)
    parts = sweep_here(sum_rows_at, plan, px, n, py, y.shape[1], none, none, g, (False, False, False), wants)
    _, of_batch, _, places = plan
    for b in range(batch):
        unit = of_batch[3, b]
        for i in range(dx.shape[1]):
            for k in range(dims):
                pull = parts[2][b, i, k]
                if same:
                    pull += parts[3][b, 0, i, k]
                dx[b, i, k] = pull / unit
        for j in range(dy.shape[1]):
            for k in range(dims):
                dy[b, j, k] = parts[3][b, 0, j, k] / unit
    return places[1], parts[4]
