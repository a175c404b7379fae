"""The compiled sweeps over all pairs: for each row i, over blocks of columns j.

A sweep keeps a block of squared distances, four rows by 256 columns, in the first-level cache, turns it into kernel
values, and folds it into what the operation wants: stored entries, sums with v, gradient moments, or a log-sum-exp.
No row needs another row, so memory is O(N D) and any number of threads gives the same bits.

Distances are sums of squared differences, which need no luck: they are right far from the origin, for clusters far
apart and for duplicates. Products over the coordinates are blocked (`_K_BLOCK`), sums over columns are float32 within
a block of `_J_BLOCK` and float64 from block to block, so that rounding does not grow with D or M.

The data come from `packed.py`: rows (B, N, D), columns transposed (B, D, M), both scaled by one power of two.
`scale[b, s]` is log2(e) / (2 sigma_s^2) in those units, so that the kernel is 2**(-scale d2).
"""

import numpy as np

from .cache import jit
from .exp2 import exp2, exp2m1

_ROWS = 4
_J_BLOCK = 256
_K_BLOCK = 64

_exact = jit()
# plain sums may be reordered into vector lanes; the order is fixed when compiled, so results repeat bit for bit
_sum = jit(fastmath={"reassoc", "contract"})
# a square and its sum may share one rounding
_fused = jit(fastmath={"contract"})


@_fused
def _squared_distances(x, b, i, yt, j0, n, part, d2):
    """d2[q, j] = |x_(i + q) - y_(j0 + j)|^2 for four rows and n columns; rows past the last repeat it.

    Four rows share each load of y, and two coordinates each load and store of the partial sums.
    """
    rows, dims = x.shape[1], x.shape[2]
    x0, x1, x2, x3 = x[b, i], x[b, min(i + 1, rows - 1)], x[b, min(i + 2, rows - 1)], x[b, min(i + 3, rows - 1)]
    p0, p1, p2, p3 = part[0], part[1], part[2], part[3]
    for q in range(_ROWS):
        for j in range(n):
            d2[q, j] = 0
    for k0 in range(0, dims, _K_BLOCK):
        k1 = min(k0 + _K_BLOCK, dims)
        for q in range(_ROWS):
            for j in range(n):
                part[q, j] = 0
        k = k0
        while k + 2 <= k1:
            y0, y1 = yt[b, k, j0 : j0 + n], yt[b, k + 1, j0 : j0 + n]
            a0, a1, a2, a3 = x0[k], x1[k], x2[k], x3[k]
            c0, c1, c2, c3 = x0[k + 1], x1[k + 1], x2[k + 1], x3[k + 1]
            for j in range(n):
                e0, e1, e2, e3 = y0[j] - a0, y0[j] - a1, y0[j] - a2, y0[j] - a3
                f0, f1, f2, f3 = y1[j] - c0, y1[j] - c1, y1[j] - c2, y1[j] - c3
                p0[j] = p0[j] + e0 * e0 + f0 * f0
                p1[j] = p1[j] + e1 * e1 + f1 * f1
                p2[j] = p2[j] + e2 * e2 + f2 * f2
                p3[j] = p3[j] + e3 * e3 + f3 * f3
            k += 2
        if k < k1:
            y0 = yt[b, k, j0 : j0 + n]
            a0, a1, a2, a3 = x0[k], x1[k], x2[k], x3[k]
            for j in range(n):
                e0, e1, e2, e3 = y0[j] - a0, y0[j] - a1, y0[j] - a2, y0[j] - a3
                p0[j] += e0 * e0
                p1[j] += e1 * e1
                p2[j] += e2 * e2
                p3[j] += e3 * e3
        for q in range(_ROWS):
            for j in range(n):
                d2[q, j] += part[q, j]


@_sum
def _total(u, n):
    total = u.dtype.type(0)
    for j in range(n):
        total += u[j]
    return total


@_sum
def _dot3(u, v, w, n):
    """sum_j u[j] v[j] w[j]; a kernel v of 0 counts for nothing, at an infinite distance w either"""
    zero = u.dtype.type(0)
    total = zero
    for j in range(n):
        total += u[j] * v[j] * w[j] if v[j] != zero else zero
    return total


@_sum
def _dot2(u, v, n):
    total = u.dtype.type(0)
    for j in range(n):
        total += u[j] * v[j]
    return total


@_sum
def _pull(u, y, xk, n):
    """sum_j u[j] (y_jk - x_ik); a kernel of 0 pulls nothing, from infinitely far either"""
    zero = u.dtype.type(0)
    total = zero
    for j in range(n):
        total += u[j] * (y[j] - xk) if u[j] != zero else zero
    return total


@_exact
def rbf_rows(x, yt, scale, weights, out, start, stop):
    """out[b, i, j] = sum_s weights_s 2**(-scale_s d2_ij) for the flattened rows b N + i in [start, stop)."""
    rows, cols = x.shape[1], yt.shape[2]
    d2 = np.empty((_ROWS, _J_BLOCK), x.dtype)
    part = np.empty((_ROWS, _J_BLOCK), x.dtype)
    r = start
    while r < stop:
        b, i = r // rows, r % rows
        group = min(_ROWS, rows - i, stop - r)
        for j0 in range(0, cols, _J_BLOCK):
            n = min(_J_BLOCK, cols - j0)
            _squared_distances(x, b, i, yt, j0, n, part, d2)
            for q in range(group):
                squares, row = d2[q], out[b, i + q, j0 : j0 + n]
                for s in range(scale.shape[1]):
                    c, w = scale[b, s], weights[b, s]
                    if s == 0:
                        for j in range(n):
                            row[j] = w * exp2(-squares[j] * c)
                    else:
                        for j in range(n):
                            row[j] += w * exp2(-squares[j] * c)
        r += group


@_exact
def sum_rows(
    x, yt, scale, weights, pull_weights,
    g, v, pairs, row_shift, col_shift, skip_diagonal, minus_one, want_value, want_dx, want_parameters,
    start, stop, value, dx, parameters,
):  # fmt: skip
    """Sums over columns, and the gradient moments of  sum_ij c_ij K_ij,  in one sweep.

    K_ij = sum_s weights_s k_sij,  k_sij = 2**(-scale_s d2_ij - row_shift_is - col_shift_sj)
    c_ij = pairs_ij where pairs is not empty, else sum_e g_ie v_ej

        value[i, e]       = sum_j K_ij v_ej                 (K - sum_s weights_s with minus_one)
        dx[i, :]          = sum_j c_ij sum_s pull_weights_s k_sij (y_j - x_i)
        parameters[i, s]  = sum_j c_ij k_sij                (k - 1 with minus_one)
        parameters[i, S+s]= sum_j c_ij k_sij d2_ij

    Only what is wanted is touched. skip_diagonal leaves j = i out.
    """
    rows, cols, dims = x.shape[1], yt.shape[2], x.shape[2]
    count = scale.shape[1]
    columns = v.shape[1]
    from_pairs = pairs.shape[1] > 0
    want_c = want_dx or want_parameters
    d2 = np.empty((_ROWS, _J_BLOCK), x.dtype)
    part = np.empty((_ROWS, _J_BLOCK), x.dtype)
    k = np.empty(_J_BLOCK, x.dtype)
    less = np.empty(_J_BLOCK, x.dtype)
    c = np.empty(_J_BLOCK, x.dtype)
    total = np.empty(_J_BLOCK, x.dtype)
    pulls = np.empty((_ROWS, _J_BLOCK), x.dtype)
    r = start
    while r < stop:
        b, first = r // rows, r % rows
        group = min(_ROWS, rows - first, stop - r)
        for i in range(first, first + group):
            if want_value:
                for e in range(columns):
                    value[b, i, e] = 0
            if want_dx:
                for d in range(dims):
                    dx[b, i, d] = 0
            if want_parameters:
                for s in range(2 * count):
                    parameters[b, i, s] = 0
        for j0 in range(0, cols, _J_BLOCK):
            n = min(_J_BLOCK, cols - j0)
            _squared_distances(x, b, first, yt, j0, n, part, d2)
            for i in range(first, first + group):
                squares, pull = d2[i - first], pulls[i - first]
                skip = skip_diagonal and j0 <= i < j0 + n
                if want_c:
                    if from_pairs:
                        row = pairs[b, i, j0 : j0 + n]
                        for j in range(n):
                            c[j] = row[j]
                    else:
                        for j in range(n):
                            c[j] = 0
                        for e in range(columns):
                            ge, row = g[b, i, e], v[b, e, j0 : j0 + n]
                            for j in range(n):
                                c[j] += ge * row[j]
                    if skip:
                        c[i - j0] = 0
                for j in range(n):
                    total[j] = 0
                    pull[j] = 0
                for s in range(count):
                    a, w, p, shift = scale[b, s], weights[b, s], pull_weights[b, s], row_shift[b, i, s]
                    shifts = col_shift[b, s, j0 : j0 + n]
                    if minus_one:
                        for j in range(n):
                            t = -squares[j] * a - shift - shifts[j]
                            k[j] = exp2(t)
                            less[j] = exp2m1(t)
                            total[j] += w * less[j]
                            pull[j] += p * k[j]
                    else:
                        for j in range(n):
                            k[j] = exp2(-squares[j] * a - shift - shifts[j])
                            total[j] += w * k[j]
                            pull[j] += p * k[j]
                    if want_parameters:
                        parameters[b, i, s] += _dot2(c, less if minus_one else k, n)
                        parameters[b, i, count + s] += _dot3(c, k, squares, n)
                if skip:
                    total[i - j0] = 0
                if want_value:
                    for e in range(columns):
                        value[b, i, e] += _dot2(total, v[b, e, j0 : j0 + n], n)
                if want_dx:
                    for j in range(n):
                        pull[j] *= c[j]
            if want_dx:
                # the rows take turns at each coordinate, so that its columns are read from the nearest cache
                for d in range(dims):
                    column = yt[b, d, j0 : j0 + n]
                    for i in range(first, first + group):
                        dx[b, i, d] += _pull(pulls[i - first], column, x[b, i, d], n)
        r += group


@_exact
def log_sum_exp_rows(x, yt, scale, log_weights, col_log, skip_diagonal, start, stop, out):
    """out[b, i] = log2 sum_s sum_j 2**(log_weights_s + col_log_j - scale_s d2_ij), j != i with skip_diagonal."""
    rows, cols = x.shape[1], yt.shape[2]
    d2 = np.empty((_ROWS, _J_BLOCK), x.dtype)
    part = np.empty((_ROWS, _J_BLOCK), x.dtype)
    t = np.empty(_J_BLOCK, x.dtype)
    greatest = np.empty(_ROWS)
    total = np.empty(_ROWS)
    r = start
    while r < stop:
        b, first = r // rows, r % rows
        group = min(_ROWS, rows - first, stop - r)
        greatest[:] = -np.inf
        total[:] = 0
        for j0 in range(0, cols, _J_BLOCK):
            n = min(_J_BLOCK, cols - j0)
            _squared_distances(x, b, first, yt, j0, n, part, d2)
            for q in range(group):
                squares = d2[q]
                for s in range(scale.shape[1]):
                    a, w, logs = scale[b, s], log_weights[b, s], col_log[b, j0 : j0 + n]
                    for j in range(n):
                        t[j] = w + logs[j] - squares[j] * a
                    if skip_diagonal and j0 <= first + q < j0 + n:
                        t[first + q - j0] = -np.inf
                    top = -np.inf
                    for j in range(n):
                        # a NaN stays, so that it reaches the sum
                        if not (t[j] <= top):
                            top = t[j]
                    if top > greatest[q]:
                        # the sum so far is brought to the new greatest exponent
                        total[q] *= exp2(greatest[q] - top) if greatest[q] > -np.inf else 0.0
                        greatest[q] = top
                    if greatest[q] == -np.inf:
                        # nothing yet, or a NaN that compares with nothing
                        total[q] += 0.0 if top == -np.inf else top
                        continue
                    for j in range(n):
                        t[j] = exp2(t[j] - greatest[q])
                    total[q] += _total(t, n)
        for q in range(group):
            if greatest[q] > -np.inf:
                out[b, first + q] = greatest[q] + np.log2(total[q])
            else:
                out[b, first + q] = total[q] if total[q] != 0 else -np.inf
        r += group
