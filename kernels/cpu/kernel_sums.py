"""The sums behind kernel means and MMD^2, with their gradients in the same sweep."""

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
    """The three sums, and the gradients of combinations of them to (x, y, a, b, sigma, weights), in one sweep.

    scale (B, R, 3) holds R combinations, scale_r . sums; it is not read where no gradient is wanted. Returns the
    sums (B, 3) float64 and gradients (B, R, ...), None where not wanted. The sweeps are x against x, y against y,
    x against y, and y against x only where a gradient to y or b asks for it.
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

    def combined(xx_share, yy_share, xy_share, like=None):
        """sum_k scale_rk share_k in float64, (B, R, ...); a share is None where its sum does not depend on it."""
        shares = [(k, s) for k, s in enumerate((xx_share, yy_share, xy_share)) if s is not None]
        wide = scale.astype(np.float64).reshape(*scale.shape, *[1] * (shares[0][1].ndim - 1))
        total = sum(wide[:, :, k] * share[:, None] for k, share in shares)
        return total if like is None else total.astype(like.dtype)

    dx = dy = da = db = dsigma = dweights = None
    if want_x:
        dx = combined(2 * xx.dx, None, xy.dx, x)
    if want_a:
        da = combined(2 * xx.value[..., 0], None, xy.value[..., 0], a)
    if want_y or want_b:
        yx = pairs(packed.y, packed.x, b, a, drop >= 2, want_y, False)
        if want_y:
            dy = combined(None, 2 * yy.dx, yx.dx, y)
        if want_b:
            db = combined(None, 2 * yy.value[..., 0], yx.value[..., 0], b)
    if want_sigma:
        dsigma = combined(xx.dsigma, yy.dsigma, xy.dsigma)
    if want_weights:
        dweights = combined(xx.dweights, yy.dweights, xy.dweights)
    return sums, dx, dy, da, db, dsigma, dweights
