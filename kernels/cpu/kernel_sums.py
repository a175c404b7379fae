"""The sums behind kernel means and MMD^2, and gradients of their combinations from the same sweeps."""

import numpy as np

from .compiled import compiled
from .memory import fresh
from .packed import copied, pack
from .sums import Sweep, parameters_of, sweeps


def kernel_sums(x, y, a, b, sigma, weights, drop):
    """sum a_i a_j K, sum b_i b_j K, sum a_i b_j K, (B, 3) float64. See gkfast.kernel_means."""
    return kernel_sums_with_gradients(None, x, y, a, b, sigma, weights, drop, False, (False,) * 6)[0]


def mmd2(x, y, a, b, scale, sigma, weights, drop):
    """scale . kernel_sums of K - sum_s weights_s, (B,) float64. See gkfast.mmd2."""
    sums = kernel_sums_with_gradients(None, x, y, a, b, sigma, weights, drop, True, (False,) * 6)[0]
    return (scale * sums).sum(-1)


def kernel_sums_with_gradients(scale, x, y, a, b, sigma, weights, drop, minus_one, wants):
    """The three sums, and the gradients of R combinations scale_r . sums to (x, y, a, b, sigma, weights).

    sums (B, 3) float64, scale (B, R, 3), gradients (B, R, ...); those not wanted are None, and without any scale is
    not read. A pair within a set is visited once for both its ends, a pair between the sets once for all gradients.
    """
    want_x, want_y, want_a, want_b, want_sigma, want_weights = wants
    want_parameters = want_sigma or want_weights
    tolerances = ("sum", *(("gradient",) if want_x or want_y or want_parameters else ()))
    packed = pack(x, y, sigma, weights, *tolerances, within=True)

    a_points, b_points = copied(a[..., None]), copied(b[..., None])
    common = {"minus_one": minus_one, "want_value": True, "want_parameters": want_parameters}

    def within(points, u, want_points, want_u):
        wants = {"want_column_value": want_u, "want_dx": want_points, "want_dy": want_points}
        return Sweep(points, points, u, u, skip_diagonal=drop >= 1, symmetric=True, **wants, **common)

    wants_xy = {"want_column_value": want_b, "want_dx": want_x, "want_dy": want_y}
    xx, yy, xy = sweeps(
        packed,
        within(packed.x, a_points, want_x, want_a),
        within(packed.y, b_points, want_y, want_b),
        Sweep(packed.x, packed.y, b_points, a_points, skip_diagonal=drop >= 2, **wants_xy, **common),
    )
    # the value of a pair within a set is with its row; where those to columns were wanted, with either end
    sums = np.empty((len(x), 3))
    sums[:, 0] = _dot(a, xx.value, xx.column_value)
    sums[:, 1] = _dot(b, yy.value, yy.column_value)
    sums[:, 2] = _dot(a, xy.value, np.empty((len(x), 0, 0, 1)))
    if not any(wants):
        return sums, None, None, None, None, None, None

    def combined(like, k, rows, columns, between, units=1.0):
        """scale_r . (2 within, between), in the dtype of `like`: both ends of a pair within set k are its points"""
        factors = np.stack([2 * scale[:, :, k], scale[:, :, 2]], -1) / units
        out = fresh((*scale.shape[:2], *like.shape[1:]), like.dtype)
        size = like[0].size
        parts = (p.reshape(len(p), p.shape[1] if p.ndim == 4 else 1, size) for p in (rows, columns, between))
        _combine(factors, *parts, out.reshape(*scale.shape[:2], size))
        return out

    lengths = packed.unit[:, None, None]
    dx = combined(x, 0, xx.dx, xx.dy, xy.dx, lengths) if want_x else None
    dy = combined(y, 1, yy.dx, yy.dy, xy.dy, lengths) if want_y else None
    da = combined(a, 0, xx.value, xx.column_value, xy.value) if want_a else None
    db = combined(b, 1, yy.value, yy.column_value, xy.column_value) if want_b else None
    dsigma = dweights = None
    if want_parameters:
        of_each = zip(*(parameters_of(packed, parts) for parts in (xx, yy, xy)), strict=True)
        dsigma, dweights = (np.einsum("brk,kbs->brs", scale, np.stack(d)) for d in of_each)
    return sums, dx, dy, da, db, dsigma if want_sigma else None, dweights if want_weights else None


@compiled
def _dot(u, rows, columns):
    """u . value, (B,), for u (B, N) and the value in rows (B, N, 1) and, if any, in columns (B, C, N, 1)."""
    sums = np.zeros(len(u))
    for b in range(len(u)):
        for i in range(u.shape[1]):
            value = rows[b, i, 0]
            for chunk in range(columns.shape[1] if columns.shape[2] else 0):
                value += columns[b, chunk, i, 0]
            sums[b] += u[b, i] * value
    return sums


@compiled
def _combine(factors, rows, columns, between, out):
    """out[b, r] = factors[b, r] . (rows + columns, between) over their chunks (B, C, K), rounded once, (B, R, K)."""
    size = out.shape[2]
    # a few at a time, which stay in the cache
    within, others = np.empty(1024), np.empty(1024)
    for b in range(len(out)):
        for start in range(0, size, len(within)):
            count = min(len(within), size - start)
            within[:] = 0
            others[:] = 0
            for total, parts in ((within, rows), (within, columns), (others, between)):
                for chunk in range(parts.shape[1]):
                    part = parts[b, chunk, start:]
                    for k in range(count):
                        total[k] += part[k]
            for r in range(out.shape[1]):
                one, two = factors[b, r, 0], factors[b, r, 1]
                row = out[b, r, start:]
                for k in range(count):
                    row[k] = one * within[k] + two * others[k]
