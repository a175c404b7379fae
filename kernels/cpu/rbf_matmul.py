"""K @ v and its gradients, with K never stored."""

from .packed import copied, pack
from .sums import sweep


def rbf_matmul(x, y, v, sigma, weights, shift=None, skip_diagonal=False, minus_one=False):
    """sum_j K_ij v_j, (B, N, E). See gkfast.rbf_matmul.

    With shift (B, N, S) the kernels are exp(-|x_i - y_j|^2 / (2 sigma_s^2) - shift_is): what a log-density's
    derivatives are made of. skip_diagonal leaves j = i out; minus_one takes K - sum_s weights_s.
    """
    packed = pack(x, y, sigma, weights, "sum")
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
