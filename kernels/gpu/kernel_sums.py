"""The sums behind kernel means and MMD^2, with their gradients in the same sweep."""

import torch

from .bandwidths import Table
from .bf16_pieces import Split, worth_splitting
from .reduce import finish
from .sweep import sweep


def kernel_sums_with_gradients(scale, x, y, a, b, sigma, weights, baseline=None, *, drop, wants, precision="highest"):
    """Combinations of the three sums, and their gradients to (x, y, a, b, sigma, weights): a sweep, a finish.

    a or b None: all ones, without a gradient. Where baseline (B, S) is given, sum_s w_s baseline_s is taken from K.
    scale (B, R, 3) holds R combinations, scale_r . sums, or is None where no value and no gradient is wanted. Returns
    values (B, R) as x, the sums (B, 3) float64, and gradients (B, R, ...), None where not wanted. The sweeps are x
    against x, y against y, x against y, and y against x only where a gradient to y or b asks for it. A set whose rows
    have no gradient of their own meets itself by halves.
    """
    want_x, want_y, want_a, want_b, want_sigma, want_weights = wants
    (_, n, dims), m = x.shape, y.shape[1]
    a, b = (p.new_ones(p.shape[:2]) if f is None else f for p, f in ((x, a), (y, b)))
    table = Table(sigma, weights, x)
    split = Split(table, x, y, precision) if worth_splitting(x, y) else None
    swept = sweep(
        table,
        x,
        y,
        a[..., None],
        b[..., None],
        parts=4 if want_y or want_b else 3,
        half=(not (want_x or want_a)) + 2 * (not (want_y or want_b)),
        drop=drop,
        baseline=baseline,
        value=want_a or want_b,
        total=True,
        pull=int(want_x) + 2 * int(want_y),
        moments=want_sigma or want_weights,
        dtype=torch.float64,
        split=split,
    )
    wanted = (scale is not None, *wants[:4])
    dtypes = [t.dtype if want else None for t, want in zip((x, x, y, a, b), wanted, strict=True)]
    scale = None if scale is None else scale.contiguous()
    found = finish(swept, n, m, dims, 1, dtypes, scale)
    da, db = (None if t is None else t[..., 0] for t in (found.da, found.db))
    dsigma, dweights = found.dsigma if want_sigma else None, found.dweights if want_weights else None
    return found.values, found.sums, found.dx, found.dy, da, db, dsigma, dweights
