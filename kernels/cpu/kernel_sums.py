"""The sums behind kernel means and MMD^2, and gradients of their combinations from the same sweeps."""

import numpy as np

from .compiled import compiled, inner
from .memory import behaved, borrow, fresh, give_back
from .packed import limits, pack, pack_addresses, packed_column
from .sums import parameters_of, prepared, share_sum_rows, sum_rows_address
from .threads import team


def kernel_sums(x, y, a, b, sigma, weights, drop):
    """sum a_i a_j K, sum b_i b_j K, sum a_i b_j K, (B, 3) float64. See gkfast.kernel_means."""
    none = np.empty((len(x), 0, 3))
    return kernel_sums_with_gradients(none, x, y, a, b, sigma, weights, drop, False, (False,) * 6)[1]


def mmd2(x, y, a, b, scale, sigma, weights, drop):
    """scale . kernel_sums of K - sum_s weights_s, (B,). See gkfast.mmd2."""
    scale = scale[:, None]
    return kernel_sums_with_gradients(scale, x, y, a, b, sigma, weights, drop, True, (False,) * 6)[0][:, 0]


def kernel_sums_with_gradients(scale, x, y, a, b, sigma, weights, drop, minus_one, wants):
    """R combinations of the three sums, the sums, and each combination's gradients to (x, y, a, b, sigma, weights).

    With scale (B, R, 3): scale_r . sums (B, R), sums (B, 3) float64, gradients (B, R, ...), None where not wanted.
    A pair within a set is visited once for both its ends, a pair between the sets once for all gradients.
    """
    x, y, a, b, scale, sigma, weights = map(behaved, (x, y, a, b, scale, sigma, weights))
    want_x, want_y, want_a, want_b, want_sigma, want_weights = wants
    want_parameters = want_sigma or want_weights
    (batch, n, dims), m, count = x.shape, y.shape[1], sigma.shape[1]
    combinations = scale.shape[1]
    sizes = (n * dims * want_x, m * dims * want_y, n * want_a, m * want_b)
    gradients = [fresh((batch, combinations, size), x.dtype) for size in sizes]
    wanted = (want_x, want_y, want_a, want_b, want_parameters)
    work = batch * (n + m) ** 2 * (dims * (1 + want_x + want_y) + 10 * count)
    tolerances = ("sum", "gradient") if want_x or want_y or want_parameters else ("sum",)
    limit = limits(x.dtype, n * m, dims, *tolerances)
    addresses = pack_addresses(x.dtype), sum_rows_address(x.dtype)
    arguments = (scale, x, y, a, b, sigma, weights, drop, minus_one, wanted, limit, tuple(gradients))
    arena = borrow()
    values, sums, order, parameters = _kernel_sums(addresses, team(work), arena, *arguments)
    give_back(arena)
    dx, dy, da, db = (
        d.reshape(batch, combinations, *like.shape[1:]) if want else None
        for d, like, want in zip(gradients, (x, y, a, b), wants, strict=False)
    )
    dsigma = dweights = None
    if want_parameters:
        of_each = zip(*(parameters_of(order, sigma, weights, one) for one in parameters), strict=True)
        dsigma, dweights = (np.einsum("brk,kbs->brs", scale, np.stack(d)) for d in of_each)
    return values, sums, dx, dy, da, db, dsigma if want_sigma else None, dweights if want_weights else None


@compiled
def _kernel_sums(
    addresses, workers, arena, scale, x, y, a, b, sigma, weights, drop, minus_one, wanted, limit, gradients
):
    """All in one call of compiled code: of a few pairs, calls cost more than what they do."""
    want_x, want_y, want_a, want_b, want_parameters = wanted
    plan, px, py = pack(addresses[0], workers, arena, x, y, False, sigma, weights, True, True, limit)
    pa, pb = packed_column(a), packed_column(b)
    none = np.empty((len(x), 0, 1), x.dtype)
    xx, xx_rows = prepared(
        arena,
        plan,
        px,
        px,
        pa,
        pa,
        none,
        none,
        drop >= 1,
        minus_one,
        True,
        True,
        want_a,
        want_x,
        want_x,
        want_parameters,
    )
    yy, yy_rows = prepared(
        arena,
        plan,
        py,
        py,
        pb,
        pb,
        none,
        none,
        drop >= 1,
        minus_one,
        True,
        True,
        want_b,
        want_y,
        want_y,
        want_parameters,
    )
    xy, xy_rows = prepared(
        arena,
        plan,
        px,
        py,
        pb,
        pa,
        none,
        none,
        drop >= 2,
        minus_one,
        False,
        True,
        want_b,
        want_x,
        want_y,
        want_parameters,
    )
    # the longest first, if both sets are of one size: what is left at the end is short
    share_sum_rows(addresses[1], workers, (xy_rows, xx_rows, yy_rows), (xy, xx, yy))
    values, sums = _combined(scale, a, b, plan.unit, xx[-1], yy[-1], xy[-1], gradients)
    return values, sums, plan.order, (xx[-1].parameters, yy[-1].parameters, xy[-1].parameters)


@inner
def _combined(scale, a, b, unit, xx, yy, xy, gradients):
    """scale_r . sums (B, R) and the sums (B, 3) of three sweeps' Parts; fills in gradients (B, R, ...) to x, y, a, b.

    Gradients of scale_r . sums are scale_r . (2 within, between): both ends of a pair within a set are its points.
    """
    batch, combinations = scale.shape[0], scale.shape[1]
    sums, values = np.empty((batch, 3)), np.empty((batch, combinations), a.dtype)
    # the value of a pair within a set is with its row; where those to columns were wanted, with either end
    _dot(a, xx.value, xx.column_value, sums[:, 0])
    _dot(b, yy.value, yy.column_value, sums[:, 1])
    _dot(a, xy.value, np.empty((batch, 0, 0, 1)), sums[:, 2])
    for q in range(batch):
        for r in range(combinations):
            values[q, r] = scale[q, r, 0] * sums[q, 0] + scale[q, r, 1] * sums[q, 1] + scale[q, r, 2] * sums[q, 2]
    dx, dy, da, db = gradients
    for q in range(batch):
        one = unit[q]
        _combine(scale[q], 0, one, xx.dx[q : q + 1], xx.dy[q], xy.dx[q : q + 1], dx[q])
        _combine(scale[q], 1, one, yy.dx[q : q + 1], yy.dy[q], xy.dy[q], dy[q])
        _combine(scale[q], 0, 1.0, xx.value[q : q + 1], xx.column_value[q], xy.value[q : q + 1], da[q])
        _combine(scale[q], 1, 1.0, yy.value[q : q + 1], yy.column_value[q], xy.column_value[q], db[q])
    return values, sums


@inner
def _dot(u, rows, columns, out):
    """out = u . value, (B,), for u (B, N) and the value in rows (B, N, 1) and, if any, in columns (B, C, N, 1)."""
    for q in range(len(u)):
        out[q] = 0
        for i in range(u.shape[1]):
            value = rows[q, i, 0]
            for chunk in range(columns.shape[1] if columns.shape[2] else 0):
                value += columns[q, chunk, i, 0]
            out[q] += u[q, i] * value


@inner
def _combine(scale, k, unit, rows, columns, between, out):
    """out[r] = scale_r . (2 (rows + columns), between) / unit over their chunks (C, N, D), rounded once, (R, N D)."""
    size = out.shape[1]
    # a few at a time, which stay in the cache
    within, others = np.empty(min(1024, size)), np.empty(min(1024, size))
    for start in range(0, size, 1024):
        count = min(1024, size - start)
        within[:] = 0
        others[:] = 0
        for total, parts in ((within, rows), (within, columns), (others, between)):
            for chunk in range(len(parts) if parts.size else 0):
                part = parts[chunk].reshape(-1)[start:]
                for i in range(count):
                    total[i] += part[i]
        for r in range(len(out)):
            one, two = 2 * scale[r, k] / unit, scale[r, 2] / unit
            row = out[r, start:]
            for i in range(count):
                row[i] = one * within[i] + two * others[i]
