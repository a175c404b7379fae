"""The sums behind kernel means and MMD^2, with their gradients in the same sweep."""

import torch

from .packed import Table
from .split import Split, worth_splitting
from .sweep import sweep


def kernel_sums(x, y, a, b, sigma, weights, drop, precision="highest"):
    """sum a_i a_j K, sum b_i b_j K, sum a_i b_j K, (B, 3) float64. See gkfast.kernel_means."""
    return kernel_sums_with_gradients(None, x, y, a, b, sigma, weights, drop, False, (False,) * 6, precision)[0]


def mmd2(x, y, a, b, scale, sigma, weights, drop, precision="highest"):
    """scale . kernel_sums of K - sum_s weights_s, (B,) float64. See gkfast.mmd2."""
    sums = kernel_sums_with_gradients(None, x, y, a, b, sigma, weights, drop, True, (False,) * 6, precision)[0]
    return (scale * sums).sum(-1)


def kernel_sums_with_gradients(
    scale, x, y, a, b, sigma, weights, drop, minus_one, wants, precision="highest"
):  # fmt: skip
    """The three sums, and the gradients of combinations of them to (x, y, a, b, sigma, weights), in one launch.

    scale (B, R, 3) holds R combinations, scale_r . sums; it is not read where no gradient is wanted. Returns the
    sums (B, 3) float64 and gradients (B, R, ...), None where not wanted. The sweeps are x against x, y against y,
    x against y, and y against x only where a gradient to y or b asks for it.
    """
    want_x, want_y, want_a, want_b, want_sigma, want_weights = wants
    n, m = x.shape[1], y.shape[1]
    table = Table(sigma, weights, x)
    split = Split(table, x, y, precision) if worth_splitting(x, y) else None
    sums = sweep(
        table,
        x,
        y,
        a[..., None],
        b[..., None],
        parts=4 if want_y or want_b else 3,
        drop=drop,
        minus_one=minus_one,
        value=True,
        pull=int(want_x) + 2 * int(want_y),
        moments=want_sigma or want_weights,
        dtype=torch.float64,
        split=split,
    )
    value = sums.value[..., 0]
    a, b = a.double(), b.double()
    xx, yy, xy = value[0, :, :n], value[1, :, :m], value[2, :, :n]
    totals = torch.stack([(a * xx).sum(1), (b * yy).sum(1), (a * xy).sum(1)], -1)
    if not any(wants):
        return totals, *(None,) * 6

    scale = scale.double()

    def combined(first, k, second=None, like=None):
        """2 scale_rk first + scale_r2 second, (B, R, ...)."""
        factors = scale.reshape(*scale.shape, *(1,) * (first.ndim - 1))
        total = 2 * factors[:, :, k] * first[:, None] + factors[:, :, 2] * second[:, None]
        return total.to(like.dtype)

    dx = dy = da = db = dsigma = dweights = None
    if want_x:
        dx = combined(sums.pull[0, :, :n], 0, sums.pull[2, :, :n], x)
    if want_a:
        da = combined(xx, 0, xy, a)
    if want_y:
        dy = combined(sums.pull[1, :, :m], 1, sums.pull[3, :, :m], y)
    if want_b:
        db = combined(yy, 1, value[3, :, :m], b)
    if want_sigma:
        spread = torch.einsum("brk,kbs->brs", scale, sums.spread[:3])
        dsigma = torch.stack([table.dsigma(of, sigma, weights) for of in spread.unbind(1)], 1)
    if want_weights:
        dweights = torch.einsum("brk,kbs->brs", scale, sums.mass[:3])
    return totals, dx, dy, da, db, dsigma, dweights
