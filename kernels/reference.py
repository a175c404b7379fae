"""What every operation means, in plain torch: meant to be believed, never to be fast.

    K[i, j] = sum_s w_s exp(-|x_i - y_j|^2 / (2 sigma_s^2))

Every fast kernel is a second spelling of a function in this file, with the same name and arguments; what only a
kernel can do is a keyword of its own. Nothing is rearranged for speed: distances are sums of squared differences, and
derivatives are torch's own. Give it float64 to have an oracle; it computes in the dtype that it is given. Time and
memory are O(B N M D).

Shapes: x (B, N, D), y (B, M, D), v (B, M, E), sigma and weights (B, S), a (B, N), b (B, M).
"""

import torch
from torch import Tensor


def squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2, (B, N, M), one half of the coordinates and the other, lest roundings add up."""
    dims = x.shape[2]
    if dims < 2:
        return (x[:, :, None] - y[:, None]).square().sum(-1)
    half = dims // 2
    return squared_distance(x[..., :half], y[..., :half]) + squared_distance(x[..., half:], y[..., half:])


def log_kernels(x: Tensor, y: Tensor, sigma: Tensor) -> Tensor:
    """-|x_i - y_j|^2 / (2 sigma_s^2), the logarithm of each bandwidth's kernel, (B, S, N, M)."""
    return -squared_distance(x, y)[:, None] / (2 * sigma.to(x).square()[:, :, None, None])


def off_diagonal(n: int, m: int, device: torch.device) -> Tensor:
    """True where i != j, (N, M)."""
    return ~torch.eye(n, m, dtype=torch.bool, device=device)


def rbf(x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor) -> Tensor:
    """K, (B, N, M). See gkfast.rbf."""
    y = x if y is None else y
    return torch.einsum("bs,bsnm->bnm", weights.to(x), log_kernels(x, y, sigma).exp())


def baselines(x: Tensor, y: Tensor, sigma: Tensor) -> Tensor:
    """What to subtract from each bandwidth's kernel before it is summed, (B, S) float64: 1 or 0.

    Where the weights of all pairs sum to zero, as they do in MMD^2, a constant less in every kernel changes no sum.
    k - 1 has the digits of a kernel near 1, and k those of a kernel near 0. The kernel of the root mean squared
    distance decides: it is exp(-1/2) for sigma equal to that distance, and greater for a wider sigma.
    """
    mean_square = mean_square_distance(x, y)
    return (mean_square[:, None] <= sigma.detach().to(mean_square).square()).double()


def mean_square_distance(x: Tensor, y: Tensor) -> Tensor:
    """The mean of |z_i - z_j|^2 over all i and j, (B,) float64, z being x and y together."""
    z = torch.cat([x, y], 1).detach().double()
    return 2 * (z - z.mean(1, keepdim=True)).square().mean(1).sum(-1)


def rbf_less(x: Tensor, y: Tensor, sigma: Tensor, weights: Tensor, baseline: Tensor) -> Tensor:
    """K - sum_s w_s baseline_s, (B, N, M), for baselines of 0 and 1: with the digits that k - 1 would lose."""
    logs = log_kernels(x, y, sigma)
    return torch.einsum(
        "bs,bsnm->bnm", weights.to(x), logs.expm1().where(baseline.to(x.device)[..., None, None] > 0, logs.exp())
    )


def rbf_matmul(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    sigma: Tensor,
    weights: Tensor,
    shift: None = None,
    baseline: Tensor | None = None,
    *,
    skip_diagonal: bool = False,
) -> Tensor:
    """K @ v, (B, N, E), or (K - sum_s w_s baseline_s) @ v; with skip_diagonal over j != i. See gkfast.rbf_matmul."""
    k = rbf(x, y, sigma, weights) if baseline is None else rbf_less(x, y, sigma, weights, baseline)
    if skip_diagonal:
        k = k * off_diagonal(x.shape[1], y.shape[1], x.device)
    return k @ v


def _terms(
    x: Tensor, y: Tensor, sigma: Tensor, log_weights: Tensor, data_weights: Tensor, leave_one_out: bool
) -> tuple[Tensor, Tensor]:
    """The terms of a density relative to the greatest exponent, (B, S, N, M), and that exponent, (B, 1, N, 1)."""
    exponents = log_kernels(x, y, sigma) + log_weights.to(x)[:, :, None, None]
    a = data_weights[:, None, None, :].expand_as(exponents)
    if leave_one_out:
        a = a * off_diagonal(x.shape[1], y.shape[1], x.device)
    top = exponents.detach().where(a > 0, -torch.inf).amax((1, 3), keepdim=True)
    top = top.where(top > -torch.inf, 0.0)
    # a row without weight may lie far above the others: it has a derivative, and 0 times infinity would be NaN
    return a * (exponents - top).clamp(max=700).exp(), top


def log_density(
    x: Tensor, y: Tensor, sigma: Tensor, log_weights: Tensor, data_weights: Tensor, *, leave_one_out: bool
) -> Tensor:
    """log sum_s sum_j data_weights_j exp(log_weights_s - |x_i - y_j|^2 / (2 sigma_s^2)), (B, N).

    With leave_one_out the sum runs over j != i. See gkfast.log_density for what the weights are.
    """
    terms, top = _terms(x, y, sigma, log_weights, data_weights, leave_one_out)
    return terms.sum((1, 3)).log() + top[:, 0, :, 0]


def log_density_by_bandwidth(
    x: Tensor, y: Tensor, sigma: Tensor, data_weights: Tensor, *, leave_one_out: bool
) -> Tensor:
    """log_density of each bandwidth by itself, without its weight, (B, N, S). See gkfast.log_density."""
    each = sigma.split(1, -1)
    options = {"leave_one_out": leave_one_out}
    return torch.stack([log_density(x, y, s, torch.zeros_like(s), data_weights, **options) for s in each], -1)


def score(
    x: Tensor, y: Tensor, sigma: Tensor, log_weights: Tensor, data_weights: Tensor, *, leave_one_out: bool
) -> Tensor:
    """The gradient of log_density at x, (B, N, D): sum_s sum_j p_sij (y_j - x_i) / sigma_s^2, p the terms' shares.

    See gkfast.score.
    """
    terms, _ = _terms(x, y, sigma, log_weights, data_weights, leave_one_out)
    p = terms / terms.sum((1, 3), keepdim=True)
    pull = torch.einsum("bs,bsnm->bnm", 1 / sigma.to(x).square(), p)
    return torch.einsum("bnm,bnmd->bnd", pull, y[:, None, :, :] - x[:, :, None, :])


def drift(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    sigma: Tensor,
    y_weights: Tensor,
    z_weights: Tensor,
    *,
    powers: tuple[float, float],
    skip_diagonal: bool,
) -> Tensor:
    """The drifting field of one bandwidth, (B, N, D): x is drawn to y and pushed off z. See gkfast.drift.

    y_weights are (B, M), z_weights (B, Q); with skip_diagonal z_i does not push x_i.
    """
    real = y.shape[1]
    points, weights = torch.cat([y, z], 1), torch.cat([y_weights, z_weights], 1).to(x)
    logs = log_kernels(x, points, sigma)[:, 0]
    if skip_diagonal:
        others = off_diagonal(x.shape[1], z.shape[1], x.device)
        logs = torch.cat([logs[..., :real], logs[..., real:].where(others, -torch.inf)], 2)
    logs = logs.where(weights[:, None] > 0, -torch.inf)
    rows = (logs + weights.log()[:, None]).logsumexp(2, keepdim=True)
    columns = logs.logsumexp(1, keepdim=True)
    # a column that meets no row has no share
    columns = columns.where(columns > -torch.inf, 0.0)
    shares = weights[:, None] * (logs - powers[0] * rows - powers[1] * columns).exp()
    pulls = shares[..., None] * (points[:, None] - x[:, :, None])
    to_y, to_z = shares[..., :real].sum(2, keepdim=True), shares[..., real:].sum(2, keepdim=True)
    return to_z * pulls[:, :, :real].sum(2) - to_y * pulls[:, :, real:].sum(2)


def _three_sums(kernel, x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, drop: int) -> Tensor:
    n, m = x.shape[1], y.shape[1]
    a, b = (p.new_ones(p.shape[:2]) if u is None else u for p, u in ((x, a), (y, b)))

    def total(p: Tensor, q: Tensor, u: Tensor, v: Tensor, drop_diagonal: bool) -> Tensor:
        pairs = u[:, :, None] * v[:, None, :] * kernel(p, q)
        if drop_diagonal:
            pairs = pairs * off_diagonal(p.shape[1], q.shape[1], p.device)
        return pairs.sum(dim=(1, 2))

    assert drop < 2 or n == m
    return torch.stack(
        [total(x, x, a, a, drop >= 1), total(y, y, b, b, drop >= 1), total(x, y, a, b, drop >= 2)], dim=-1
    )


def kernel_sums(
    x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, sigma: Tensor, weights: Tensor, *, drop: int
) -> Tensor:
    """The three sums behind kernel means and MMD^2: xx, yy, xy, (B, 3).

        xx = sum_ij a_i a_j K(x_i, x_j),  yy = sum_ij b_i b_j K(y_i, y_j),  xy = sum_ij a_i b_j K(x_i, y_j)

    Without a or b all weights are one. drop = 0 keeps all pairs, 1 drops i = j from xx and yy, 2 from xy as well. See
    gkfast.kernel_means.
    """
    return _three_sums(lambda p, q: rbf(p, q, sigma, weights), x, y, a, b, drop)


def mmd2(
    scale: Tensor,
    x: Tensor,
    y: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    sigma: Tensor,
    weights: Tensor,
    baseline: Tensor | None = None,
    *,
    drop: int,
) -> Tensor:
    """scale_xx xx + scale_yy yy + scale_xy xy of the sums of K - sum_s w_s baseline_s, (B,). See gkfast.mmd2."""
    baseline = baselines(x, y, sigma) if baseline is None else baseline
    sums = _three_sums(lambda p, q: rbf_less(p, q, sigma, weights, baseline), x, y, a, b, drop)
    return (scale.to(sums.device) * sums).sum(-1)


def mmd2_by_bandwidth(
    scale: Tensor,
    x: Tensor,
    y: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    sigma: Tensor,
    *,
    drop: int,
) -> Tensor:
    """mmd2 of each bandwidth by itself, (B, S). See gkfast.mmd2."""
    each = sigma.split(1, -1)
    return torch.stack([mmd2(scale, x, y, a, b, s, torch.ones_like(s), drop=drop) for s in each], -1)


def hsic(kx: Tensor, ky: Tensor, unbiased: bool) -> Tensor:
    """The dependence of paired rows by their kernel matrices (B, N, N), (B,). See gkfast.hsic."""
    n = kx.shape[1]
    if not unbiased:
        h = torch.eye(n).to(kx) - 1 / n
        return (kx @ h @ ky @ h).diagonal(dim1=1, dim2=2).sum(-1) / n**2
    kx, ky = (k * off_diagonal(n, n, k.device) for k in (kx, ky))
    apart = kx.sum((1, 2)) * ky.sum((1, 2)) / ((n - 1) * (n - 2))
    across = 2 * (kx @ ky).sum((1, 2)) / (n - 2)
    return ((kx @ ky).diagonal(dim1=1, dim2=2).sum(-1) + apart - across) / (n * (n - 3))
