"""The compiled sweeps over all pairs: for each row i, over blocks of columns j.

A sweep keeps one block of squared distances in the first-level cache, turns it into kernel values, and folds it into
what the operation wants: stored entries, sums with v, gradient moments, or a log-sum-exp. No row needs another row,
so memory is O(N D) and any number of threads gives the same bits.

Distances are sums of squared differences, which need no luck: they are right far from the origin, for clusters far
apart and for duplicates. Products over the coordinates are blocked (`_K_BLOCK`), sums over columns are float32 within
a block of `_J_BLOCK` and float64 from block to block, so that rounding does not grow with D or M.

The data come from `packed.py`: rows (B, N, D), columns transposed (B, D, M), both scaled by one power of two.
`scale[s]` is log2(e) / (2 sigma_s^2) in those units, so that the kernel is 2**(-scale d2).
"""

import numpy as np
from numba import njit

from .exp2 import exp2, exp2m1

_J_BLOCK = 256
_K_BLOCK = 64

_exact = njit(nogil=True, cache=True, error_model="numpy")
# plain sums may be reordered into vector lanes; the order is fixed when compiled, so results repeat bit for bit
_sum = njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"})
# a square and its sum may share one rounding
_fused = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})


@_fused
def _squared_distances(x, b, i, yt, j0, n, part, d2):
    """d2[j] = |x_i - y_(j0 + j)|^2 for n columns."""
    dims = x.shape[2]
    for j in range(n):
        d2[j] = 0
    for k0 in range(0, dims, _K_BLOCK):
        k1 = min(k0 + _K_BLOCK, dims)
        for j in range(n):
            part[j] = 0
        k = k0
        # four coordinates at a time: one load and one store of the partial sum for four products
        while k + 4 <= k1:
            x0, x1, x2, x3 = x[b, i, k], x[b, i, k + 1], x[b, i, k + 2], x[b, i, k + 3]
            y0, y1 = yt[b, k, j0 : j0 + n], yt[b, k + 1, j0 : j0 + n]
            y2, y3 = yt[b, k + 2, j0 : j0 + n], yt[b, k + 3, j0 : j0 + n]
            for j in range(n):
                e0, e1, e2, e3 = y0[j] - x0, y1[j] - x1, y2[j] - x2, y3[j] - x3
                part[j] += (e0 * e0 + e1 * e1) + (e2 * e2 + e3 * e3)
            k += 4
        while k < k1:
            x0, y0 = x[b, i, k], yt[b, k, j0 : j0 + n]
            for j in range(n):
                e0 = y0[j] - x0
                part[j] += e0 * e0
            k += 1
        for j in range(n):
            d2[j] += part[j]


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
    d2 = np.empty(_J_BLOCK, x.dtype)
    part = np.empty(_J_BLOCK, x.dtype)
    for r in range(start, stop):
        b, i = r // rows, r % rows
        for j0 in range(0, cols, _J_BLOCK):
            n = min(_J_BLOCK, cols - j0)
            _squared_distances(x, b, i, yt, j0, n, part, d2)
            row = out[b, i, j0 : j0 + n]
            for s in range(scale.shape[0]):
                c, w = scale[s], weights[s]
                if s == 0:
                    for j in range(n):
                        row[j] = w * exp2(-d2[j] * c)
                else:
                    for j in range(n):
                        row[j] += w * exp2(-d2[j] * c)


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
    count = scale.shape[0]
    columns = v.shape[1]
    from_pairs = pairs.shape[1] > 0
    want_c = want_dx or want_parameters
    d2 = np.empty(_J_BLOCK, x.dtype)
    part = np.empty(_J_BLOCK, x.dtype)
    k = np.empty(_J_BLOCK, x.dtype)
    less = np.empty(_J_BLOCK, x.dtype)
    c = np.empty(_J_BLOCK, x.dtype)
    total = np.empty(_J_BLOCK, x.dtype)
    pull = np.empty(_J_BLOCK, x.dtype)
    for r in range(start, stop):
        b, i = r // rows, r % rows
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
            skip = skip_diagonal and j0 <= i < j0 + n
            _squared_distances(x, b, i, yt, j0, n, part, d2)
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
                a, w, p, shift = scale[s], weights[s], pull_weights[s], row_shift[b, i, s]
                shifts = col_shift[b, s, j0 : j0 + n]
                if minus_one:
                    for j in range(n):
                        t = -d2[j] * a - shift - shifts[j]
                        k[j] = exp2(t)
                        less[j] = exp2m1(t)
                        total[j] += w * less[j]
                        pull[j] += p * k[j]
                else:
                    for j in range(n):
                        k[j] = exp2(-d2[j] * a - shift - shifts[j])
                        total[j] += w * k[j]
                        pull[j] += p * k[j]
                if want_parameters:
                    parameters[b, i, s] += _dot2(c, less if minus_one else k, n)
                    parameters[b, i, count + s] += _dot3(c, k, d2, n)
            if skip:
                total[i - j0] = 0
            if want_value:
                for e in range(columns):
                    value[b, i, e] += _dot2(total, v[b, e, j0 : j0 + n], n)
            if want_dx:
                for j in range(n):
                    pull[j] *= c[j]
                for d in range(dims):
                    dx[b, i, d] += _pull(pull, yt[b, d, j0 : j0 + n], x[b, i, d], n)


@_exact
def log_sum_exp_rows(x, yt, scale, log_weights, col_log, skip_diagonal, start, stop, out):
    """out[b, i] = log2 sum_s sum_j 2**(log_weights_s + col_log_j - scale_s d2_ij), j != i with skip_diagonal."""
    rows, cols = x.shape[1], yt.shape[2]
    d2 = np.empty(_J_BLOCK, x.dtype)
    part = np.empty(_J_BLOCK, x.dtype)
    t = np.empty(_J_BLOCK, x.dtype)
    for r in range(start, stop):
        b, i = r // rows, r % rows
        greatest, total = -np.inf, 0.0
        for j0 in range(0, cols, _J_BLOCK):
            n = min(_J_BLOCK, cols - j0)
            _squared_distances(x, b, i, yt, j0, n, part, d2)
            for s in range(scale.shape[0]):
                a, w, logs = scale[s], log_weights[s], col_log[b, j0 : j0 + n]
                top = -np.inf
                for j in range(n):
                    t[j] = w + logs[j] - d2[j] * a
                if skip_diagonal and j0 <= i < j0 + n:
                    t[i - j0] = -np.inf
                for j in range(n):
                    # a NaN stays, so that it reaches the sum
                    if not (t[j] <= top):
                        top = t[j]
                if top > greatest:
                    # the sum so far is brought to the new greatest exponent
                    total *= exp2(greatest - top) if greatest > -np.inf else 0.0
                    greatest = top
                if greatest == -np.inf:
                    # nothing yet, or a NaN that compares with nothing
                    total += 0.0 if top == -np.inf else top
                    continue
                for j in range(n):
                    t[j] = exp2(t[j] - greatest)
                total += _total(t, n)
        out[b, i] = greatest + np.log2(total) if greatest > -np.inf else (total if total != 0 else -np.inf)
