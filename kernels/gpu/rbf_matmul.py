"""K @ v and its gradients, with K never stored."""

import torch

from .bandwidths import Table
from .points import Split
from .reduce import reduce
from .sweep import sweep


def rbf_matmul(x, y, v, sigma, weights, shift=None, baseline=None, *, skip_diagonal=False, precision="highest"):
    """sum_j K_ij v_j, (B, N, E). See gkfast.rbf_matmul.

    With shift (B, N, S) the kernels are exp(-|x_i - y_j|^2 / (2 sigma_s^2) - shift_is): what a log-density's
    derivatives are made of. baseline (B, S) multiplies with K - sum_s weights_s baseline_s. skip_diagonal leaves
    j = i out.
    """
    (_, n, dims), (_, m, columns) = x.shape, v.shape
    options = {"drop": 2 if skip_diagonal else 0, "baseline": baseline, "dtype": x.dtype}
    swept = sweep(_split(x, y, sigma, weights, shift, precision), v, v, row_shift=shift, value=True, **options)
    return reduce(swept, (n, m, dims, columns), (None, None, None, x.dtype, None)).da[:, 0]


def rbf_matmul_backward(
    g, x, y, v, sigma, weights, shift=None, baseline=None, *, skip_diagonal=False, wants, precision="highest"
):
    """Gradients of sum_ie g_ie (K v)_ie to (x, y, v, sigma, weights); those not wanted are None.

    Rows against columns give x, sigma and weights; columns against rows give y and v: two pairings of one launch,
    unless one set is so much larger that its sweep would leave too few programs to the other.
    """
    want_x, want_y, want_v, want_sigma, want_weights = wants
    moments = want_sigma or want_weights
    (_, n, dims), (_, m, columns) = x.shape, v.shape
    split = _split(x, y, sigma, weights, shift, precision)
    options = {"drop": 2 if skip_diagonal else 0, "baseline": baseline, "dtype": x.dtype}
    of_x, of_y, of_v = (x.dtype if want else None for want in (want_x, want_y, want_v))
    of_rows, of_columns = want_x or moments, want_y or want_v
    dx = dy = dv = dsigma = dweights = None
    if of_rows and of_columns and max(n, m) <= 2 * min(n, m):
        options |= {"pull": int(want_x) + 2 * int(want_y), "moments": moments, "value": want_v}
        swept = sweep(split, g, v, pairings=2, row_shift=shift, **options)
        _, _, dx, dy, _, dv, dsigma, dweights = reduce(swept, (n, m, dims, columns), (None, of_x, of_y, None, of_v))
    else:
        if of_rows:
            swept = sweep(split, g, v, row_shift=shift, pull=int(want_x), moments=moments, **options)
            _, _, dx, *_, dsigma, dweights = reduce(swept, (n, m, dims, columns), (None, of_x, None, None, None))
        if of_columns:
            swept = sweep(split.swapped(), v, g, col_shift=shift, pull=int(want_y), value=want_v, **options)
            _, _, dy, _, dv, *_ = reduce(swept, (m, n, dims, columns), (None, of_y, None, of_v, None))
    gradients = (dx, dy, dv, dsigma if want_sigma else None, dweights if want_weights else None)
    return tuple(None if t is None else t[:, 0] for t in gradients)


def _split(x, y, sigma, weights, shift, precision):
    """Shifts in float64 are those of log-densities."""
    wide = shift is not None and shift.dtype == torch.float64
    table = Table(sigma, weights, x, torch.float64 if wide else None)
    return Split(table, x, y, "log-density" if wide else precision)
