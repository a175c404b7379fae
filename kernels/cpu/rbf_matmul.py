"""K @ v and its gradients, with K never stored."""

from functools import cache

import numpy as np

from .calls import address_of, shared_at
from .compiled import compiled, inner
from .memory import behaved, borrow, give_back, room
from .points import limits, pack, pack_addresses, packed_columns
from .sweep import sweep
from .threads import team
from .tile import DEPTH, NOWHERE, ROWS, distances, gaussian_sums
from .vector import exp2, fma, load, splat, store, total

# columns that stay in the second-level cache while the rows pass, in bytes
_SLAB = 1 << 19
# panels of columns whose sums are float32
_PANELS = 8


@inner
def _clear(sums, lanes):
    for at in range(0, ROWS * lanes, lanes):
        store(sums, at, splat(sums.dtype.type(0)))


@inner
def _one_column_rows(start, stop, x, nx, n, y, ny, slope, offset, scale, weights, v, out):
    """out[b, i] = sum_j K_ij v_j of one bandwidth, for panels of ROWS rows, numbered through the batch."""
    dims, width = y.shape[2], y.shape[3]
    lanes = width // 2
    row, panels = x.shape[2], y.shape[1]
    real = x.dtype.type
    tile, sums = room(ROWS * width, x), room(ROWS * lanes, x)
    row_panels = (n + ROWS - 1) // ROWS
    slab = max(_PANELS, _SLAB // max(1, x.itemsize * dims * width) // _PANELS * _PANELS)
    for slab_start in range(0, panels, slab):
        slab_stop = min(slab_start + slab, panels)
        for number in range(start, stop):
            b, i = number // row_panels, number % row_panels * ROWS
            height = min(ROWS, n - i)
            c = splat(-scale[b, 0])
            for first in range(slab_start, slab_stop, _PANELS):
                _clear(sums, lanes)
                for p in range(first, min(first + _PANELS, slab_stop)):
                    near = gaussian_sums(
                        x, (b * x.shape[1] + i) * row, row, y, (b * panels + p) * dims * width, dims,
                        nx, b * nx.shape[1] + i, ny, b * ny.shape[1] + p * width, real(slope[b]), real(offset[b]),
                        scale[b, 0], v, (b * panels + p) * width, sums,
                    )  # fmt: skip
                    if near:
                        distances(
                            x, (b * x.shape[1] + i) * row, row, y, (b * panels + p) * dims * width, dims,
                            nx, b * nx.shape[1] + i, ny, b * ny.shape[1] + p * width, real(slope[b]), real(offset[b]),
                            NOWHERE, tile, 0, width,
                        )  # fmt: skip
                        for r in range(ROWS):
                            part = load(sums, r * lanes)
                            for j in range(0, width, lanes):
                                k = exp2(load(tile, r * width + j) * c)
                                part = fma(k, load(v, (b * panels + p) * width + j), part)
                            store(sums, r * lanes, part)
                for r in range(height):
                    out[b, i + r] += np.float64(weights[b, 0]) * np.float64(total(load(sums, r * lanes)))


@cache
def _one_column_address(dtype: np.dtype) -> int:
    rows, wide = np.zeros((1, 1), dtype), np.zeros(1)
    points, columns = rows[None], rows[None, None]
    plan = (wide, wide, rows, rows)
    return address_of(_one_column_rows, 0, 0, points, rows, 1, columns, rows, *plan, columns, wide[None])


_share_one_column = shared_at(_one_column_rows, flush_subnormals=True)


@compiled
def _one_column(addresses, workers, arena, x, y, v, sigma, weights, limit, out):
    """Whether that is how to do it, and out += K @ v, (B, N), for one bandwidth and v (B, M, 1); or else nothing."""
    (batch, n, dims), m = x.shape, y.shape[1]
    none = np.empty((batch, 0))
    plan, px, py = pack(addresses[0], workers, arena, x, y, False, sigma, weights, none, False, False, limit)
    for b in range(batch):
        if not plan.finite or (dims > DEPTH and plan.offset[b] == np.inf):
            return False
    task = (
        px.rows, px.norms, n, py.columns, py.norms, plan.slope, plan.offset, plan.scale, plan.weights,
        packed_columns(v).columns, out,
    )  # fmt: skip
    rows = batch * ((n + ROWS - 1) // ROWS) if m else 0
    _share_one_column(addresses[1], workers, (rows,), (task,))
    return True


def rbf_matmul(x, y, v, sigma, weights, shift=None, baseline=None, *, skip_diagonal=False):
    """sum_j K_ij v_j, (B, N, E). See gkfast.rbf_matmul.

    With shift (B, N, S) the kernels are exp(-|x_i - y_j|^2 / (2 sigma_s^2) - shift_is): what a log-density's
    derivatives are made of. skip_diagonal leaves j = i out; baseline (B, S)
    takes K - sum_s weights_s baseline_s.
    """
    (batch, n, dims), m = x.shape, y.shape[1]
    if v.shape[2] == sigma.shape[1] == 1 and shift is None and not skip_diagonal and baseline is None:
        addresses = pack_addresses(x.dtype), _one_column_address(x.dtype)
        arrays = map(behaved, (x, y, v.astype(x.dtype, copy=False), sigma, weights))
        workers = team(batch * n * m * (dims + 10))
        out = np.zeros((batch, n))
        arena = borrow()
        done = _one_column(addresses, workers, arena, *arrays, limits(x.dtype, n * m, dims, "sum"), out)
        give_back(arena)
        if done:
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
