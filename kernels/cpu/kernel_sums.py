"""The sums behind kernel means and MMD^2, and MMD^2 with its gradients in one sweep."""

import numpy as np

from .packed import pack
from .sums import sweep


def kernel_sums(x, y, a, b, sigma, weights, drop):
    """sum a_i a_j K, sum b_i b_j K, sum a_i b_j K, (B, 3) float64. See gkfast.kernel_means."""
    none = (False,) * 6
    return kernel_sums_with_gradients(None, x, y, a, b, sigma, weights, drop, False, none)[0]


def mmd2(x, y, a, b, scale, sigma, weights, drop):
    """scale . kernel_sums of K - sum_s weights_s, (B,) float64. See gkfast.mmd2."""
    sums = kernel_sums_with_gradients(None, x, y, a, b, sigma, weights, drop, True, (False,) * 6)[0]
    return (scale * sums).sum(-1)


def kernel_sums_with_gradients(scale, x, y, a, b, sigma, weights, drop, minus_one, wants):
    """The three sums, and the gradients of scale . sums to (x, y, a, b, sigma, weights), in one sweep.

    sums (B, 3) float64; gradients that are not wanted are None, and scale (B, 3) is then not read; those to sigma
    and weights are (B, S), one row for each of the batch. The sweeps are x against x, y against y, x against y, and
    y against x only where a gradient to y or b asks for it.
    """
    want_x, want_y, want_a, want_b, want_sigma, want_weights = wants
    want_parameters = want_sigma or want_weights
    packed = pack(x, y, sigma)

    def pairs(rows, columns, row_weights, col_weights, skip_diagonal, dx, parameters):
        return sweep(
            packed,
            rows,
            columns,
            weights,
            g=row_weights[..., None],
            v=col_weights[..., None],
            skip_diagonal=skip_diagonal,
            minus_one=minus_one,
            want_value=True,
            want_dx=dx,
            want_parameters=parameters,
        )

    xx = pairs(packed.x, packed.x, a, a, drop >= 1, want_x, want_parameters)
    yy = pairs(packed.y, packed.y, b, b, drop >= 1, want_y, want_parameters)
    xy = pairs(packed.x, packed.y, a, b, drop >= 2, want_x, want_parameters)
    sums = np.stack([(a * xx.value[..., 0]).sum(1), (b * yy.value[..., 0]).sum(1), (a * xy.value[..., 0]).sum(1)], -1)

    dx = dy = da = db = dsigma = dweights = None
    if any(wants):
        s_xx, s_yy, s_xy = (scale[:, k, None].astype(np.float64) for k in range(3))
    if want_x:
        dx = (2 * s_xx[..., None] * xx.dx + s_xy[..., None] * xy.dx).astype(x.dtype)
    if want_a:
        da = (2 * s_xx * xx.value[..., 0] + s_xy * xy.value[..., 0]).astype(a.dtype)
    if want_y or want_b:
        yx = pairs(packed.y, packed.x, b, a, drop >= 2, want_y, False)
        if want_y:
            dy = (2 * s_yy[..., None] * yy.dx + s_xy[..., None] * yx.dx).astype(y.dtype)
        if want_b:
            db = (2 * s_yy * yy.value[..., 0] + s_xy * yx.value[..., 0]).astype(b.dtype)
    if want_sigma:
        dsigma = s_xx * xx.dsigma + s_yy * yy.dsigma + s_xy * xy.dsigma
    if want_weights:
        dweights = s_xx * xx.dweights + s_yy * yy.dweights + s_xy * xy.dweights
    return sums, dx, dy, da, db, dsigma, dweights
