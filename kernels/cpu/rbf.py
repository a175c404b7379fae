"""The kernel matrix and its gradients."""

from functools import cache

import numpy as np

from .calls import address_of, shared_at
from .compiled import compiled, inner
from .memory import behaved, borrow, fresh, give_back, room
from .points import limits, pack, pack_addresses
from .sweep import sweep
from .threads import team
from .tile import DEPTH, NOWHERE, ROWS, distances, gaussians
from .vector import exp2, fma, load, splat, store

# columns that stay in the second-level cache while the rows pass, in bytes
_SLAB = 1 << 19


@inner
def _matrix_rows(start, stop, x, y, nx, ny, n, m, slope, offset, scale, squarings, weights, out):
    """Panels of ROWS rows, start to stop, numbered through the batch, of K (B, N, M)."""
    dims, width = y.shape[2], y.shape[3]
    lanes = width // 2
    count = scale.shape[1]
    row = x.shape[2]
    tile = room(ROWS * width, x)
    zero = splat(x.dtype.type(0))
    panels = (n + ROWS - 1) // ROWS
    slab = max(1, _SLAB // max(1, x.itemsize * dims * width))
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


def rbf(x, y, sigma, weights, *, out=None):
    """K, (B, N, M). See gkfast.rbf."""
    (batch, n, dims), m = x.shape, (x if y is None else y).shape[1]
    if out is None:
        out = fresh((batch, n, m), x.dtype)
    result = out if out.flags.carray else np.empty(out.shape, out.dtype)
    arrays = map(behaved, (x, x if y is None else y, sigma, weights))
    limit = limits(x.dtype, n * m, dims, "kernel")
    addresses = pack_addresses(x.dtype), _matrix_rows_address(x.dtype)
    work = batch * n * m * (dims + 10 * sigma.shape[1])
    arena = borrow()
    _matrix(addresses, team(work), arena, *arrays, y is None, limit, result)
    give_back(arena)
    if result is not out:
        out[...] = result
    return out


@cache
def _matrix_rows_address(dtype: np.dtype) -> int:
    pairs, wide, places = np.zeros((1, 1, 1), dtype), np.zeros(1), np.zeros((1, 1), np.int64)
    rows = pairs[0]
    return address_of(_matrix_rows, 0, 0, pairs, pairs[None], rows, rows, 1, 1, wide, wide, rows, places, rows, pairs)


_share_matrix_rows = shared_at(_matrix_rows, flush_subnormals=True)


@compiled
def _matrix(addresses, workers, arena, x, y, sigma, weights, same, limit, out):
    """All in one call of compiled code: of a few pairs, calls cost more than what they do."""
    batch, n, m = out.shape
    plan, px, py = pack(
        addresses[0], workers, arena, x, y, same, sigma, weights, np.empty((len(x), 0)), same, same, limit
    )
    task = (
        px.rows, py.columns, px.norms, py.norms, n, m, plan.slope, plan.offset, plan.scale, plan.squarings,
        plan.weights, out,
    )  # fmt: skip
    rows = batch * ((n + ROWS - 1) // ROWS) if m else 0
    _share_matrix_rows(addresses[1], workers, (rows,), (task,))


def rbf_backward(g, x, y, sigma, weights, *, wants, k=None):
    """Gradients of sum_ij g_ij K_ij to (x, y, sigma, weights); those not wanted are None. y None: x is both.

    k is K, if the caller has kept it: its kernels are then read where their digits suffice.
    """
    want_x, want_y, *want_parameters = wants
    wants = (False, False, want_x, want_y and y is not None, *want_parameters)
    return sweep(x, y, sigma, weights, ("gradient",), wants, pairs=g, kernels=k)[2:]
