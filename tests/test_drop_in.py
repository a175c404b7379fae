"""Kernel code of other projects, each written from its formula, against its line of docs/migration.md.

Values and gradients at x and y, in float64. The projects' own distance forms are kept: what they lose in float32 to
cancellation is below the tolerance here.
"""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.neighbors import KernelDensity

import gkfast

# relative to the norm: the matrix-product distances of most projects round at 1e-15 of the squared norms
AGREEMENT = 1e-12


def gram_distance(x, y):
    """|x_i|^2 + |y_j|^2 - 2 x_i.y_j from the Gram matrix of all rows, as MMD-GAN has it."""
    n, rows = len(x), torch.cat([x, y])
    gram = rows @ rows.mT
    squares = gram.diagonal()
    whole = squares[:, None] - 2 * gram + squares[None, :]
    return whole[:n, :n], whole[n:, n:], whole[:n, n:]


def pair_distance(x, y):
    """sum_d (x_id - y_jd)^2 from an N x M x D array, as most domain-adaptation code has it."""
    return (x[:, None, :] - y[None, :, :]).square().sum(2)


def v_statistic(kxx, kyy, kxy):
    return kxx.mean() + kyy.mean() - 2 * kxy.mean()


def without_diagonal(k):
    return (k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1))


def u_statistic(kxx, kyy, kxy):
    return without_diagonal(kxx) + without_diagonal(kyy) - 2 * kxy.mean()


def scikit_learn(x, y, gamma=None):
    """exp(-gamma d^2), gamma 1/D unless given."""
    return torch.exp(-pair_distance(x, y) * (1 / x.shape[1] if gamma is None else gamma))


def gpytorch(x, y, lengthscale):
    """exp(-(x - y)' L^-2 (x - y) / 2); a lengthscale, or one per dimension. Centred first, which changes nothing."""
    centre = x.mean(0)
    return torch.exp(-pair_distance((x - centre) / lengthscale, (y - centre) / lengthscale) / 2)


def mmd_gan(x, y, sigma_list, estimate, wts=None):
    """sum of wts exp(-d^2 / (2 sigma^2))."""
    wts = [1.0] * len(sigma_list) if wts is None else wts
    mixtures = (
        sum(w * torch.exp(-d / (2 * s**2)) for s, w in zip(sigma_list, wts, strict=True)) for d in gram_distance(x, y)
    )
    return estimate(*mixtures)


def transferlearning(x, y, kernel_mul=2.0, kernel_num=5):
    """sum_i exp(-d^2 / bw_i), bw_i around the mean pooled d^2, of which no gradient is taken."""
    rows, n = torch.cat([x, y]), len(x)
    d = pair_distance(rows, rows)
    # the zeros of the diagonal add nothing and are not counted
    bandwidth = d.detach().sum() / (len(rows) ** 2 - len(rows)) / kernel_mul ** (kernel_num // 2)
    k = sum(torch.exp(-d / (bandwidth * kernel_mul**i)) for i in range(kernel_num))
    return k[:n, :n].mean() + k[n:, n:].mean() - k[:n, n:].mean() - k[n:, :n].mean()


def ignite(x, y, var):
    """Root of the clamped unbiased estimate with exp(-d^2 / (2 var))."""
    squared = u_statistic(*(torch.exp(-0.5 * d / var) for d in gram_distance(x, y)))
    return squared.clamp(min=0).sqrt()


def geomloss(x, y, blur, a=None, b=None):
    """(a - b)' K (a - b) / 2 with exp(-d^2 / (2 blur^2)); a and b sum to one, and are equal unless given."""
    a = x.new_full(x.shape[:1], 1 / len(x)) if a is None else a
    b = y.new_full(y.shape[:1], 1 / len(y)) if b is None else b
    kxx, kyy, kxy = (torch.exp(-pair_distance(p / blur, q / blur) / 2) for p, q in ((x, x), (y, y), (x, y)))
    return 0.5 * (a @ kxx @ a) + 0.5 * (b @ kyy @ b) - a @ kxy @ b


def torch_two_sample(x, y, alphas):
    """sum of exp(-alpha d^2) with d = sqrt(1e-5 + |squared distance|): each kernel times exp(-1e-5 alpha)."""
    distances = (torch.sqrt(1e-5 + d.abs()) for d in gram_distance(x, y))
    return u_statistic(*(sum(torch.exp(-a * d**2) for a in alphas) for d in distances))


def cmmd(x, y):
    """1000 times the biased estimate, sigma = 10, for embeddings of norm one."""
    return 1000 * v_statistic(*(torch.exp(-d / (2 * 10**2)) for d in gram_distance(x, y)))


def torch_fidelity(x, y, sigma, subsets):
    """Mean over subsets of the unbiased estimate with exp(-d^2 / (2 sigma^2)): the RBF form of KID."""
    parts = [u_statistic(*(torch.exp(-d / (2 * sigma**2)) for d in gram_distance(x[s], y[s]))) for s in subsets]
    return torch.stack(parts).mean()


def alibi_detect(x, y, sigmas):
    """Mean, not sum, of exp(-d^2 / (2 sigma^2)); the unbiased estimate."""
    return u_statistic(
        *(torch.stack([torch.exp(-d / (2 * s**2)) for s in sigmas]).mean(0) for d in gram_distance(x, y))
    )


def domainbed(x, y):
    """sum of exp(-gamma d^2), distances clamped at 1e-30; biased."""
    return v_statistic(*(sum(torch.exp(-g * d.clamp(min=1e-30)) for g in GAMMAS) for d in gram_distance(x, y)))


def tllib(x, y, alphas):
    """Kernels of sigma^2 = alpha mean d^2 over all pairs of the pooled rows, themselves included; unbiased."""
    rows = torch.cat([x, y])
    d, n = pair_distance(rows, rows), len(x)
    k = sum(torch.exp(-d / (2 * a * d.detach().mean())) for a in alphas)
    return u_statistic(k[:n, :n], k[n:, n:], k[:n, n:]) + 2 / (n - 1)


def pythae(x, y, bandwidth):
    """exp(-d^2 / (2 D bandwidth^2)); unbiased."""
    c = 2 * x.shape[1] * bandwidth**2
    return u_statistic(*(torch.exp(-d / c) for d in gram_distance(x, y)))


def scarches(x, y):
    """sum of exp(-d^2 / (2 alpha)); biased."""
    distances = (pair_distance(p, q) for p, q in ((x, x), (y, y), (x, y)))
    return v_statistic(*(sum(torch.exp(-d / (2 * a)) for a in SCARCHES) for d in distances))


def kernel_density(x, data, bandwidth):
    """log of the density of data at x, of torch-kde and scikit-learn."""
    d, dims = pair_distance(x, data), x.shape[1]
    return (
        torch.logsumexp(-d / (2 * bandwidth**2), 1)
        - math.log(len(data))
        - dims / 2 * math.log(2 * math.pi * bandwidth**2)
    )


def sbi(x, y, scale=None):
    """Unbiased, of pairs i < j; scale is the median of all pooled distances unless given."""
    xx, yy, xy = (pair_distance(p, q) for p, q in ((x, x), (y, y), (x, y)))
    xx, yy = (d[tuple(torch.tril_indices(len(d), len(d), -1))] for d in (xx, yy))
    scale = torch.cat([xx, xy.flatten(), yy]).sqrt().median() if scale is None else scale
    kxx, kyy, kxy = (torch.exp(-0.5 / scale**2 * d).sum() for d in (xx, yy, xy))
    n, m = len(x), len(y)
    return 2 * (kxx / (n * (n - 1)) + kyy / (m * (m - 1)) - kxy / (n * m))


def keops(x, y, v, s):
    """(-D_ij / (2 s^2)).exp() @ v"""
    return torch.exp(-pair_distance(x, y) / (2 * s**2)) @ v


GAMMAS = [0.001, 0.01, 0.1, 1, 10, 100, 1000]
SCARCHES = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 5, 10, 15, 20, 25, 30, 35, 100, 1e3, 1e4, 1e5, 1e6]
LADDER = [1, 2, 4, 8, 16]
ALPHAS = [0.05, 0.3, 1.0]
ELL = torch.tensor([0.5, 1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
A, B = (torch.arange(1, 1 + n, dtype=torch.float64) / (n * (n + 1) / 2) for n in (19, 23))
V = torch.linspace(-1, 2, 23, dtype=torch.float64)
SUBSETS = torch.tensor([[0, 3, 5, 8], [1, 3, 7, 18], [2, 4, 6, 9]])


# theirs, under the name that the page gives them; TLlib wants samples of one size
THEIRS = {
    "scikit-learn rbf_kernel, gamma": lambda x, y: scikit_learn(x, y, 0.3),
    "scikit-learn rbf_kernel, default gamma": scikit_learn,
    "scikit-learn KernelDensity": lambda x, y: kernel_density(x, y, 0.8),
    "GPyTorch RBFKernel": lambda x, y: gpytorch(x, y, 1.7),
    "GPyTorch RBFKernel, ARD": lambda x, y: gpytorch(x, y, ELL),
    "GPyTorch ScaleKernel": lambda x, y: 2.5 * gpytorch(x, y, 1.7),
    "GeomLoss gaussian": lambda x, y: geomloss(x, y, 1.3),
    "GeomLoss gaussian, weights": lambda x, y: geomloss(x, y, 1.3, A, B),
    "KeOps Gaussian convolution": lambda x, y: keops(x, y, V, 1.1),
    "MMD-GAN mix_rbf_mmd2": lambda x, y: mmd_gan(x, y, LADDER, v_statistic),
    "MMD-GAN mix_rbf_mmd2, biased=False": lambda x, y: mmd_gan(x, y, LADDER, u_statistic),
    "MMD-GAN _mix_rbf_kernel, wts": lambda x, y: mmd_gan(x, y, [2, 5, 10], v_statistic, [0.5, 0.3, 0.2]),
    "DomainBed MMD": domainbed,
    "TLlib MultipleKernelMaximumMeanDiscrepancy": lambda x, y: tllib(x, y[: len(x)], [0.5, 1.0, 2.0]),
    "transferlearning MMD_loss": transferlearning,
    "pythae INFOVAE and WAE, rbf": lambda x, y: pythae(x, y, 0.8),
    "scarches trVAE": scarches,
    "torch-kde KernelDensity": lambda x, y: kernel_density(x, y, 0.8),
    "sbi unbiased_mmd_squared": sbi,
    "sbi unbiased_mmd_squared, scale": lambda x, y: sbi(x, y, 1.9),
    "ignite MaximumMeanDiscrepancy": lambda x, y: ignite(x, y, 3.0),
    "torch-two-sample MMDStatistic": lambda x, y: torch_two_sample(x, y, ALPHAS),
    "torch-fidelity KID, rbf": lambda x, y: torch_fidelity(x, y, 2.0, SUBSETS),
    "alibi-detect GaussianRBF": lambda x, y: alibi_detect(x, y, [0.5, 2.0]),
}
# what the calls on the page name
GIVEN = {
    **{name: getattr(gkfast, name) for name in ("rbf", "rbf_matmul", "log_density", "mmd2")},
    **{name: getattr(gkfast, name) for name in ("mean_sigma", "median_sigma")},
    **{"exp": math.exp, "gamma": 0.3, "D": 5, "S": 2, "N": 19, "bandwidth": 0.8, "lengthscale": 1.7, "ell": ELL},
    **{"outputscale": 2.5, "blur": 1.3, "a": A, "b": B, "v": V, "s": 1.1, "sigma_list": LADDER, "gammas": GAMMAS},
    **{"alphas": [0.5, 1.0, 2.0], "scarches_alphas": SCARCHES, "scale": 1.9, "var": 3.0, "alphas_of_test": ALPHAS},
    **{"subsets": SUBSETS, "kid_kernel_rbf_sigma": 2.0, "sigmas": [0.5, 2.0]},
}
PAGE = (Path(__file__).parent.parent / "docs" / "migration.md").read_text()
# ours, as it stands on the page
CALLS = dict(re.findall(r"^\| ([^|]+) \| [^|]+ \| `([^`]+)` \|$", PAGE, re.MULTILINE))


def ours(name):
    def call(x, y):
        return eval(CALLS[name], GIVEN | {"x": x, "y": y[: len(x)] if name.startswith("TLlib") else y})

    return call


def test_the_page_has_these_lines_and_no_others():
    assert {*CALLS} == {*THEIRS}


def assert_same(theirs, ours):
    assert ours.shape == theirs.shape
    assert theirs.norm() > 0
    assert (ours - theirs).norm() <= AGREEMENT * theirs.norm()


def assert_same_with_gradients(theirs, ours, x, y):
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    theirs, ours = theirs(x, y), ours(x, y)
    assert_same(theirs.detach(), ours.detach())
    g = torch.linspace(-1, 2, theirs.numel(), dtype=torch.float64).reshape(theirs.shape)
    g = torch.ones_like(g) if g.ndim == 0 else g
    for there, here in zip(torch.autograd.grad(theirs, (x, y), g), torch.autograd.grad(ours, (x, y), g), strict=True):
        assert_same(there, here)


@pytest.mark.parametrize("name", THEIRS)
def test_value_and_gradients(rng, name):
    x, y = torch.from_numpy(rng.normal(size=(19, 5))), torch.from_numpy(rng.normal(size=(23, 5)) * 1.5 + 0.5)
    assert_same_with_gradients(THEIRS[name], ours(name), x, y)


def test_torch_two_sample_without_its_epsilon(rng):
    # leaving the weights out changes the estimate by less than 1e-5 alpha of each kernel
    x, y = torch.from_numpy(rng.normal(size=(19, 5))), torch.from_numpy(rng.normal(size=(23, 5)) + 0.5)
    without = gkfast.mmd2(x, y, [(2 * a) ** -0.5 for a in ALPHAS])
    assert float(without) == pytest.approx(float(torch_two_sample(x, y, ALPHAS)), rel=1e-5 * max(ALPHAS))


def test_cmmd(rng):
    # embeddings of norm one about two directions
    x, y = (torch.from_numpy(rng.normal(size=(40, 768)) + 2 * rng.normal(size=768)) for _ in range(2))
    x, y = (a / a.norm(dim=1, keepdim=True) for a in (x, y))
    assert_same_with_gradients(cmmd, lambda x, y: 1000 * gkfast.mmd2(x, y, 10, estimator="biased"), x, y)


def test_scikit_learn_itself(rng):
    x, y = rng.normal(size=(19, 5)), rng.normal(size=(23, 5))
    for theirs, sigma in (
        (rbf_kernel(x, y, gamma=0.3), (2 * 0.3) ** -0.5),
        (rbf_kernel(x, y), (x.shape[-1] / 2) ** 0.5),
    ):
        here = gkfast.rbf(x, y, sigma)
        assert np.linalg.norm(here - theirs) <= AGREEMENT * np.linalg.norm(theirs)
    density = KernelDensity(bandwidth=0.8).fit(y).score_samples(x)
    assert np.abs(gkfast.log_density(x, y, 0.8) - density).max() <= 1e-12 * np.abs(density).max()


def test_mean_sigma_squared_is_the_mean_pooled_distance(rng):
    # over pairs of different rows: the zeros of the diagonal are neither in the sum nor in the count
    x, y = torch.from_numpy(rng.normal(size=(19, 5))), torch.from_numpy(rng.normal(size=(23, 5)) + 1)
    rows = torch.cat([x, y])
    pooled = pair_distance(rows, rows).sum() / (len(rows) ** 2 - len(rows))
    assert float(gkfast.mean_sigma(x, y)) ** 2 == pytest.approx(float(pooled), rel=AGREEMENT)


# a bandwidth taken from the data is stretched with them
OWN = ("transferlearning MMD_loss", "TLlib MultipleKernelMaximumMeanDiscrepancy", "sbi unbiased_mmd_squared")


@pytest.mark.parametrize("name", [name for name in THEIRS if name not in OWN])
def test_another_bandwidth_would_be_noticed(rng, name):
    # ours on data stretched by 1e-9: an error of that size in a sigma fails
    x, y = torch.from_numpy(rng.normal(size=(19, 5))), torch.from_numpy(rng.normal(size=(23, 5)) * 1.5 + 0.5)
    with pytest.raises(AssertionError):
        assert_same(THEIRS[name](x, y), ours(name)(x * (1 + 1e-9), y * (1 + 1e-9)))
