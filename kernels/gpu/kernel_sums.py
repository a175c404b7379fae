"""The sums behind kernel means and MMD^2, with their gradients in the same sweep."""

import torch

from .bandwidths import Table, one_for_each
from .combine import Finish, as_scale, counters_of, outputs
from .points import Split
from .reduce import reduce
from .sweep import sweep


def mmd2_by_bandwidth(scale, x, y, a, b, sigma, *, drop, precision="highest"):
    """scale . kernel_sums of k_s - baseline_s, (B, S) float64: gradients to the weights. See gkfast.mmd2."""
    scale = scale.to(x.device)[:, None] if isinstance(scale, torch.Tensor) else scale
    options = {"drop": drop, "less_baselines": True, "want_sums": False, "precision": precision}
    wants, weights = (*[False] * 5, True), one_for_each(1.0, sigma, x)
    return kernel_sums_with_gradients(scale, x, y, a, b, sigma, weights, wants=wants, **options)[7][:, 0]


def kernel_sums_with_gradients(
    scale,
    x,
    y,
    a,
    b,
    sigma,
    weights,
    baseline=None,
    *,
    drop,
    wants,
    less_baselines=False,
    want_sums=True,
    precision="highest",
):
    """Combinations of the three sums, and their gradients to (x, y, a, b, sigma, weights).

    a or b None: all ones, and no gradient to it may be wanted. With baseline (B, S) given, or found (less_baselines),
    the sums are those of K - sum_s w_s baseline_s. scale (B, R, 3) holds R combinations, scale_r . sums, or is None
    where no value and no gradient is wanted. Returns values (B, R) as x, the sums (B, 3) float64, and gradients
    (B, R, ...), None where not wanted; without want_sums neither values nor sums. The sweeps are x against x, y
    against y, x against y, and y against x only where a gradient to y or b asks for it. A set whose rows have no
    gradient of their own meets itself by halves.

    Two launches, the split and a sweep that finishes its own sums, where only points have gradients, of up to 128
    coordinates. Else a reduction follows.
    """
    want_x, want_y, want_a, want_b, want_sigma, want_weights = wants
    (_, n, dims), m = x.shape, y.shape[1]
    if (a is None) != (b is None):
        a, b = (p.new_ones(p.shape[:2]) if f is None else f for p, f in ((x, a), (y, b)))
    of_points = want_x or want_y
    more = want_a or want_b or want_sigma or want_weights
    counters = 0 if more or not n + m else counters_of(n, m)
    split = Split(Table(sigma, weights, x), x, y, precision, less_baselines, counters)
    # gradients to a and b are only wanted where there are a and b
    wanted = (want_sums and scale is not None, *wants[:4])
    dtypes = tuple(t.dtype if want else None for t, want in zip((x, x, y, a, b), wanted, strict=True))
    scale = scale.contiguous() if isinstance(scale, torch.Tensor) else scale
    finish, combinations = None, 1
    if split.counters is not None and not (split.panels and of_points):
        encoded, combinations = as_scale(scale)
        results = outputs(x, (n, m, dims, 1), combinations, dtypes, totals=want_sums)
        finish = Finish(split.counters, encoded, results)
    swept = sweep(
        split,
        None if a is None else a[..., None],
        None if b is None else b[..., None],
        pairings=4 if want_y or want_b else 3,
        half=(not (want_x or want_a)) + 2 * (not (want_y or want_b)),
        drop=drop,
        baseline=split.baseline if less_baselines else baseline,
        value=want_a or want_b,
        total=want_sums,
        pull=int(want_x) + 2 * int(want_y),
        moments=want_sigma or want_weights,
        dtype=torch.float64,
        finish=finish,
        combinations=combinations,
    )
    if finish is None:
        results = reduce(swept, (n, m, dims, 1), dtypes, scale)
    values, sums, dx, dy, da, db, dsigma, dweights = results
    da, db = (None if t is None else t[..., 0] for t in (da, db))
    return values, sums, dx, dy, da, db, dsigma if want_sigma else None, dweights if want_weights else None
