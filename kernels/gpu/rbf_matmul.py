"""K @ v and its gradients, with K never stored."""

from .packed import Table
from .split import Split, exchanged, worth_splitting
from .sweep import sweep


def rbf_matmul(x, y, v, sigma, weights, shift=None, skip_diagonal=False, minus_one=False, precision="highest"):
    """sum_j K_ij v_j, (B, N, E). See gkfast.rbf_matmul.

    With shift (B, N, S) the kernels are exp(-|x_i - y_j|^2 / (2 sigma_s^2) - shift_is): what a log-density's
    derivatives are made of. skip_diagonal leaves j = i out. minus_one multiplies with K - sum_s weights_s.
    """
    table = Table(sigma, weights, x)
    split = Split(table, x, y, precision) if worth_splitting(x, y) else None
    return sweep(
        table,
        x,
        y,
        v,
        v,
        row_shift=shift,
        drop=2 if skip_diagonal else 0,
        minus_one=minus_one,
        value=True,
        dtype=x.dtype,
        split=split,
    ).value[0]


def rbf_matmul_backward(
    g, x, y, v, sigma, weights, wants, shift=None, skip_diagonal=False, minus_one=False, precision="highest"
):
    """Gradients of sum_ie g_ie (K v)_ie to (x, y, v, sigma, weights); those not wanted are None.

    Rows against columns give x, sigma and weights; columns against rows give y and v.
    """
    want_x, want_y, want_v, want_sigma, want_weights = wants
    want_parameters = want_sigma or want_weights
    table = Table(sigma, weights, x)
    split = Split(table, x, y, precision) if worth_splitting(x, y) else None
    options = {"drop": 2 if skip_diagonal else 0, "minus_one": minus_one, "dtype": x.dtype}
    dx = dy = dv = dsigma = dweights = None
    if want_x or want_parameters:
        sums = sweep(
            table, x, y, g, v, row_shift=shift, pull=int(want_x), moments=want_parameters, split=split, **options
        )
        dx = sums.pull[0] if want_x else None
        dsigma = table.dsigma(sums.spread[0], sigma, weights) if want_sigma else None
        dweights = sums.mass[0] if want_weights else None
    if want_y or want_v:
        sums = sweep(
            table, y, x, v, g, col_shift=shift, pull=int(want_y), value=want_v, split=exchanged(split), **options
        )
        dy = sums.pull[0] if want_y else None
        dv = sums.value[0] if want_v else None
    return dx, dy, dv, dsigma, dweights
