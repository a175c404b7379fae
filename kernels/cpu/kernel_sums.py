"""The sums behind kernel means and MMD^2, and gradients of their combinations from the same sweeps."""

import numpy as np

from .packed import copied, pack
from .sums import sweep


def kernel_sums(x, y, a, b, sigma, weights, drop):
    """sum a_i a_j K, sum b_i b_j K, sum a_i b_j K, (B, 3) float64. See gkfast.kernel_means."""
    return kernel_sums_with_gradients(None, x, y, a, b, sigma, weights, drop, False, (False,) * 6)[0]


def mmd2(x, y, a, b, scale, sigma, weights, drop):
    """scale . kernel_sums of K - sum_s weights_s, (B,) float64. See gkfast.mmd2."""
    sums = kernel_sums_with_gradients(None, x, y, a, b, sigma, weights, drop, True, (False,) * 6)[0]
    return (scale * sums).sum(-1)


def kernel_sums_with_gradients(scale, x, y, a, b, sigma, weights, drop, minus_one, wants):
    """The three sums, and the gradients of R combinations scale_r . sums to (x, y, a, b, sigma, weights).

    sums (B, 3) float64, scale (B, R, 3), gradients (B, R, ...); those not wanted are None, and without any scale is
    not read. A pair within a set is visited once for both its ends, a pair between the sets once for all gradients.
    """
    want_x, want_y, want_a, want_b, want_sigma, want_weights = wants
    want_parameters = want_sigma or want_weights
    tolerances = ("sum", *(("gradient",) if want_x or want_y or want_parameters else ()))
    packed = pack(x, y, sigma, weights, *tolerances, within=True)

    def within(points, u, want_points, want_u):
        return sweep(
            packed,
            points,
            points,
            g=u,
            v=u,
            skip_diagonal=drop >= 1,
            minus_one=minus_one,
            symmetric=True,
            want_value=True,
            want_column_value=want_u,
            want_dx=want_points,
            want_dy=want_points,
            want_parameters=want_parameters,
        )

    packed_a, packed_b = copied(a[..., None]), copied(b[..., None])
    xx = within(packed.x, packed_a, want_x, want_a)
    yy = within(packed.y, packed_b, want_y, want_b)
    xy = sweep(
        packed,
        packed.x,
        packed.y,
        g=packed_a,
        v=packed_b,
        skip_diagonal=drop >= 2,
        minus_one=minus_one,
        want_value=True,
        want_column_value=want_b,
        want_dx=want_x,
        want_dy=want_y,
        want_parameters=want_parameters,
    )
    sums = np.stack([(a * xx.value[..., 0]).sum(1), (b * yy.value[..., 0]).sum(1), (a * xy.value[..., 0]).sum(1)], -1)
    if not any(wants):
        return sums, None, None, None, None, None, None

    def combined(want, of_xx, of_yy, of_xy, like):
        """sum_k scale_rk of_k, rounded once to the dtype of `like`"""
        if not want:
            return None
        total = 0
        for k, factor, part in ((0, ends, of_xx), (1, ends, of_yy), (2, 1, of_xy)):
            if part is not None:
                total += (factor * scale[:, :, k]).reshape(*scale.shape[:2], *[1] * (part.ndim - 1)) * part[:, None]
        return total.astype(like.dtype)

    # both ends of a pair within a set are its points
    ends = 2
    dx = combined(want_x, xx.dx, None, xy.dx, x)
    dy = combined(want_y, None, yy.dx, xy.dy, y)
    da = combined(want_a, xx.value[..., 0], None, xy.value[..., 0], a)
    db = combined(want_b, None, yy.value[..., 0], xy.column_value[..., 0] if want_b else None, b)
    ends = 1
    dsigma = combined(want_sigma, xx.dsigma, yy.dsigma, xy.dsigma, sigma)
    dweights = combined(want_weights, xx.dweights, yy.dweights, xy.dweights, weights)
    return sums, dx, dy, da, db, dsigma, dweights
