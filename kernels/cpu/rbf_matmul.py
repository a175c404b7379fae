"""K @ v and its gradients, with K never stored."""

import numpy as np

from .compiled import compiled, inner
from .packed import Packed, copied, pack
from .sums import sweep
from .threads import run_rows
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


@compiled
def _one_column_rows(
    x, nx, n, y, ny, slope, offset, scale, weights, v, slab, row_panels, start, stop, out
):  # fmt: skip
    """out[b, i] = sum_j K_ij v_j of one bandwidth, for panels of ROWS rows, numbered through the batch."""
    dims, width = y.shape[2], y.shape[3]
    lanes = width // 2
    row, panels = x.shape[2], y.shape[1]
    real = x.dtype.type
    room = np.empty(ROWS * (width + lanes) + 128, x.dtype)
    room = room[(-room.ctypes.data % 64) // x.itemsize :]
    tile, sums = room[: ROWS * width], room[ROWS * width :]
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


def _one_column(packed: Packed, v: np.ndarray) -> np.ndarray:
    """K @ v for one bandwidth and v (B, M, 1)."""
    columns = packed.y.columns
    n, (batch, panels, dims, width) = packed.x.count, columns.shape
    values = np.zeros((batch, panels * width), v.dtype)
    values[:, : v.shape[1]] = v[..., 0]
    out = np.zeros((batch, n))
    row_panels = -(-n // ROWS)
    slab = max(_PANELS, _SLAB // max(1, columns.itemsize * dims * width) // _PANELS * _PANELS)

    def run(start, stop):
        _one_column_rows(
            packed.x.rows, packed.x.norms, n, columns, packed.y.norms, packed.slope, packed.offset, packed.scale,
            packed.weights, values, slab, row_panels, start, stop, out,
        )  # fmt: skip

    run_rows(run, batch * row_panels, ROWS * panels * width * (dims + 10))
    return out[..., None]


def rbf_matmul(x, y, v, sigma, weights, shift=None, skip_diagonal=False, minus_one=False):
    """sum_j K_ij v_j, (B, N, E). See gkfast.rbf_matmul.

    With shift (B, N, S) the kernels are exp(-|x_i - y_j|^2 / (2 sigma_s^2) - shift_is): what a log-density's
    derivatives are made of. skip_diagonal leaves j = i out; minus_one takes K - sum_s weights_s.
    """
    packed = pack(x, y, sigma, weights, "sum")
    plain = shift is None and not skip_diagonal and not minus_one
    by_differences = packed.dims > DEPTH and (packed.offset == np.inf).any()
    if plain and packed.finite and v.shape[2] == sigma.shape[1] == 1 and not by_differences:
        return _one_column(packed, v).astype(x.dtype)
    sums = sweep(
        packed,
        x=packed.x,
        y=packed.y,
        v=copied(v),
        row_shift=shift,
        skip_diagonal=skip_diagonal,
        minus_one=minus_one,
        want_value=True,
    )
    return sums.value.astype(x.dtype)


def rbf_matmul_backward(g, x, y, v, sigma, weights, wants, shift=None, skip_diagonal=False, minus_one=False):
    """Gradients of sum_ie g_ie (K v)_ie to (x, y, v, sigma, weights); those not wanted are None."""
    want_x, want_y, want_v, want_sigma, want_weights = wants
    packed = pack(x, y, sigma, weights, "sum", "gradient")
    sums = sweep(
        packed,
        x=packed.x,
        y=packed.y,
        v=copied(v),
        g=copied(g),
        row_shift=shift,
        skip_diagonal=skip_diagonal,
        minus_one=minus_one,
        want_column_value=want_v,
        want_dx=want_x,
        want_dy=want_y,
        want_parameters=want_sigma or want_weights,
    )
    return (
        sums.dx.astype(x.dtype) if want_x else None,
        sums.dy.astype(x.dtype) if want_y else None,
        sums.column_value.astype(x.dtype) if want_v else None,
        sums.dsigma if want_sigma else None,
        sums.dweights if want_weights else None,
    )
