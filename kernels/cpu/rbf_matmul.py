"""K @ v and its gradients, with K never stored."""

from .packed import pack
from .sums import sweep


def rbf_matmul(x, y, v, sigma, weights, shift=None, skip_diagonal=False, minus_one=False):
    """sum_j K_ij v_j, (B, N, E). See gkfast.rbf_matmul.

    With shift (B, N, S) the kernels are exp(-|x_i - y_j|^2 / (2 sigma_s^2) - shift_is): what a log-density's
    derivatives are made of. skip_diagonal leaves j = i out. minus_one multiplies with K - sum_s weights_s.
    """
    packed = pack(x, y, sigma)
    sums = sweep(
        packed,
        packed.x,
        packed.y,
        weights,
        v=v,
        row_shift=shift,
        skip_diagonal=skip_diagonal,
        minus_one=minus_one,
        want_value=True,
    )
    return sums.value.astype(x.dtype)


def rbf_matmul_backward(g, x, y, v, sigma, weights, wants, shift=None, skip_diagonal=False, minus_one=False):
    """Gradients of sum_ie g_ie (K v)_ie to (x, y, v, sigma, weights); those not wanted are None.

    Rows against columns give x, sigma and weights; columns against rows give y and v.
    """
    want_x, want_y, want_v, want_sigma, want_weights = wants
    want_parameters = want_sigma or want_weights
    packed = pack(x, y, sigma)
    dx = dy = dv = dsigma = dweights = None
    if want_x or want_parameters:
        sums = sweep(
            packed,
            packed.x,
            packed.y,
            weights,
            g=g,
            v=v,
            row_shift=shift,
            skip_diagonal=skip_diagonal,
            minus_one=minus_one,
            want_dx=want_x,
            want_parameters=want_parameters,
        )
        dx = sums.dx.astype(x.dtype) if want_x else None
        dsigma = sums.dsigma if want_sigma else None
        dweights = sums.dweights if want_weights else None
    if want_y or want_v:
        sums = sweep(
            packed,
            packed.y,
            packed.x,
            weights,
            g=v,
            v=g,
            col_shift=shift,
            skip_diagonal=skip_diagonal,
            minus_one=minus_one,
            want_dx=want_y,
            want_value=want_v,
        )
        dy = sums.dx.astype(y.dtype) if want_y else None
        dv = sums.value.astype(v.dtype) if want_v else None
    return dx, dy, dv, dsigma, dweights
