"""Kernel code of other projects, each written from its formula, against the line of README's table that replaces it.

Values and gradients at x and y, in float64. The projects' own distance forms are kept: what they lose in float32 to
cancellation is below the tolerance here.
"""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import rbf_kernel

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


LADDER = [1, 2, 4, 8, 16]
ALPHAS = [0.05, 0.3, 1.0]
ELL = torch.tensor([0.5, 1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
A, B = (torch.arange(1, 1 + n, dtype=torch.float64) / (n * (n + 1) / 2) for n in (19, 23))
SUBSETS = torch.tensor([[0, 3, 5, 8], [1, 3, 7, 18], [2, 4, 6, 9]])


def ladder_of_transferlearning(x, y):
    """bw_i = mean_sigma^2 2^(i - 2) and sigma_i^2 = bw_i / 2, for i of 0 to 4."""
    return gkfast.mean_sigma(x, y).detach() * x.new_tensor([2 ** (i / 2) for i in (-3, -2, -1, 0, 1)])


# theirs, and ours in one line
PAIRS = {
    "scikit-learn rbf_kernel, gamma": (
        lambda x, y: scikit_learn(x, y, 0.3),
        lambda x, y: gkfast.rbf(x, y, (2 * 0.3) ** -0.5),
    ),
    "scikit-learn rbf_kernel, default gamma": (
        scikit_learn,
        lambda x, y: gkfast.rbf(x, y, (x.shape[-1] / 2) ** 0.5),
    ),
    "GPyTorch RBFKernel": (lambda x, y: gpytorch(x, y, 1.7), lambda x, y: gkfast.rbf(x, y, 1.7)),
    "GPyTorch RBFKernel, ARD": (lambda x, y: gpytorch(x, y, ELL), lambda x, y: gkfast.rbf(x / ELL, y / ELL)),
    "GPyTorch ScaleKernel": (
        lambda x, y: 2.5 * gpytorch(x, y, 1.7),
        lambda x, y: gkfast.rbf(x, y, 1.7, weights=[2.5]),
    ),
    "MMD-GAN mix_rbf_mmd2": (
        lambda x, y: mmd_gan(x, y, LADDER, v_statistic),
        lambda x, y: gkfast.mmd2(x, y, LADDER, estimator="biased"),
    ),
    "MMD-GAN mix_rbf_mmd2, biased=False": (
        lambda x, y: mmd_gan(x, y, LADDER, u_statistic),
        lambda x, y: gkfast.mmd2(x, y, LADDER),
    ),
    "MMD-GAN _mix_rbf_kernel, wts": (
        lambda x, y: mmd_gan(x, y, [2, 5, 10], v_statistic, [0.5, 0.3, 0.2]),
        lambda x, y: gkfast.mmd2(x, y, [2, 5, 10], weights=[0.5, 0.3, 0.2], estimator="biased"),
    ),
    "transferlearning MMD_loss": (
        transferlearning,
        lambda x, y: gkfast.mmd2(x, y, ladder_of_transferlearning(x, y), estimator="biased"),
    ),
    "ignite MaximumMeanDiscrepancy": (
        lambda x, y: ignite(x, y, 3.0),
        lambda x, y: gkfast.mmd2(x, y, 3.0**0.5).clamp(min=0).sqrt(),
    ),
    "GeomLoss gaussian": (
        lambda x, y: geomloss(x, y, 1.3),
        lambda x, y: 0.5 * gkfast.mmd2(x, y, 1.3, estimator="biased"),
    ),
    "GeomLoss gaussian, weights": (
        lambda x, y: geomloss(x, y, 1.3, A, B),
        lambda x, y: 0.5 * gkfast.mmd2(x, y, 1.3, estimator="biased", x_weights=A, y_weights=B),
    ),
    "torch-two-sample MMDStatistic": (
        lambda x, y: torch_two_sample(x, y, ALPHAS),
        lambda x, y: gkfast.mmd2(
            x, y, [(2 * a) ** -0.5 for a in ALPHAS], weights=[math.exp(-1e-5 * a) for a in ALPHAS]
        ),
    ),
    "torch-fidelity KID, rbf": (
        lambda x, y: torch_fidelity(x, y, 2.0, SUBSETS),
        lambda x, y: gkfast.mmd2(x[SUBSETS], y[SUBSETS], 2.0).mean(),
    ),
    "alibi-detect GaussianRBF": (
        lambda x, y: alibi_detect(x, y, [0.5, 2.0]),
        lambda x, y: gkfast.mmd2(x, y, [0.5, 2.0], weights=[1 / 2] * 2),
    ),
}


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


@pytest.mark.parametrize("name", PAIRS)
def test_value_and_gradients(rng, name):
    x, y = torch.from_numpy(rng.normal(size=(19, 5))), torch.from_numpy(rng.normal(size=(23, 5)) * 1.5 + 0.5)
    assert_same_with_gradients(*PAIRS[name], x, y)


def test_torch_two_sample_without_its_epsilon(rng):
    # leaving the weights out, as README's row does, changes the estimate by less than 1e-5 alpha of each kernel
    x, y = torch.from_numpy(rng.normal(size=(19, 5))), torch.from_numpy(rng.normal(size=(23, 5)) + 0.5)
    ours = gkfast.mmd2(x, y, [(2 * a) ** -0.5 for a in ALPHAS])
    assert float(ours) == pytest.approx(float(torch_two_sample(x, y, ALPHAS)), rel=1e-5 * max(ALPHAS))


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
        ours = gkfast.rbf(x, y, sigma)
        assert np.linalg.norm(ours - theirs) <= AGREEMENT * np.linalg.norm(theirs)


def test_mean_sigma_squared_is_the_mean_pooled_distance(rng):
    # over pairs of different rows: the zeros of the diagonal are neither in the sum nor in the count
    x, y = torch.from_numpy(rng.normal(size=(19, 5))), torch.from_numpy(rng.normal(size=(23, 5)) + 1)
    rows = torch.cat([x, y])
    pooled = pair_distance(rows, rows).sum() / (len(rows) ** 2 - len(rows))
    assert float(gkfast.mean_sigma(x, y)) ** 2 == pytest.approx(float(pooled), rel=AGREEMENT)


# a bandwidth taken from the data is stretched with them
@pytest.mark.parametrize("name", [name for name in PAIRS if name != "transferlearning MMD_loss"])
def test_another_bandwidth_would_be_noticed(rng, name):
    # ours on data stretched by 1e-9: an error of that size in a sigma fails
    x, y = torch.from_numpy(rng.normal(size=(19, 5))), torch.from_numpy(rng.normal(size=(23, 5)) * 1.5 + 0.5)
    theirs, ours = PAIRS[name]
    with pytest.raises(AssertionError):
        assert_same(theirs(x, y), ours(x * (1 + 1e-9), y * (1 + 1e-9)))
