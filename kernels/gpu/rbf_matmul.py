"""K @ v and its gradients, with K never stored."""

from .finish import rows_only
from .packed import Table
from .split import Split, exchanged, worth_splitting
from .sweep import sweep


def rbf_matmul(x, y, v, sigma, weights, shift=None, skip_diagonal=False, minus_one=False, precision="highest"):
    """sum_j K_ij v_j, (B, N, E). See gkfast.rbf_matmul.

    With shift (B, N, S) the kernels are exp(-|x_i - y_j|^2 / (2 sigma_s^2) - shift_is): what a log-density's
    derivatives are made of. skip_diagonal leaves j = i out. minus_one multiplies with K - sum_s weights_s.
    """
    columns = v.shape[2]
    table = Table(sigma, weights, x)
    split = Split(table.fill(), x, y, precision, b=v) if worth_splitting(x, y, columns) else None
    swept = sweep(
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
    )
    return rows_only(swept, x, y, columns, True, False).da[:, 0]


def rbf_matmul_backward(
    g, x, y, v, sigma, weights, wants, shift=None, skip_diagonal=False, minus_one=False, precision="highest"
):
    """Gradients of sum_ie g_ie (K v)_ie to (x, y, v, sigma, weights); those not wanted are None.

    Rows against columns give x, sigma and weights; columns against rows give y and v.
    """
    want_x, want_y, want_v, want_sigma, want_weights = wants
    want_parameters = want_sigma or want_weights
    columns = v.shape[2]
    table = Table(sigma, weights, x)
    split = Split(table.fill(), x, y, precision, g, v) if worth_splitting(x, y, columns) else None
    options = {"drop": 2 if skip_diagonal else 0, "minus_one": minus_one, "dtype": x.dtype}
    dx = dy = dv = dsigma = dweights = None
    if want_x or want_parameters:
        swept = sweep(
            table, x, y, g, v, row_shift=shift, pull=int(want_x), moments=want_parameters, split=split, **options
        )
        found = rows_only(swept, x, y, columns, False, want_x)
        dx = found.dx[:, 0] if want_x else None
        dsigma = found.dsigma[:, 0] if want_sigma else None
        dweights = found.dweights[:, 0] if want_weights else None
    if want_y or want_v:
        swept = sweep(
            table, y, x, v, g, col_shift=shift, pull=int(want_y), value=want_v, split=exchanged(split), **options
        )
        found = rows_only(swept, y, x, columns, want_v, want_y)
        dy = found.dx[:, 0] if want_y else None
        dv = found.da[:, 0] if want_v else None
    return dx, dy, dv, dsigma, dweights
