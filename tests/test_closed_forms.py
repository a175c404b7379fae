"""Integrals over Gaussians, which are known, against gkfast's sums: by quadrature to 1e-11, and by sampling.

    X ~ N(mu, s^2 I), Y ~ N(nu, t^2 I), v = sigma^2 + s^2 + t^2:
    E K(X, Y) = (sigma^2 / v)^(D/2) exp(-|mu - nu|^2 / (2 v)),  E KDE_X(q) = N(q; mu, (sigma^2 + s^2) I)

Gauss-Hermite nodes, with their weights as sample weights, are a sample without noise: sums over them are these
integrals up to an error that falls geometrically with the number of nodes.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import gkfast

SIGMAS, WEIGHTS = (1.5, 2.0, 4.0), (0.5, 1.0, 0.25)
# X's and Y's standard deviations, and how many standard errors an estimate may be off: 1 in 16000 draws of a normal
S, T, ERRORS = 0.8, 1.1, 4


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def mean_kernel(difference, variances, sigma, weights):
    """E K, summed over bandwidths, for X - Y normal with that mean (D,) and variances times the identity."""
    total = sigma.square() + variances
    exponents = -difference.square().sum() / (2 * total)
    return (weights * (sigma.square() / total) ** (len(difference) / 2) * exponents.exp()).sum()


def means(mu, s, nu, t, sigma, weights):
    """The population's kernel means xx, yy, xy."""
    same = torch.zeros_like(mu)
    return (
        mean_kernel(same, 2 * s**2, sigma, weights),
        mean_kernel(same, 2 * t**2, sigma, weights),
        mean_kernel(mu - nu, s**2 + t**2, sigma, weights),
    )


def squared_mmd(*parameters):
    xx, yy, xy = means(*parameters)
    return xx + yy - 2 * xy


def nodes(count, dims):
    """Nodes z (R, D) and weights a (R,), R = count^D, of the standard normal distribution."""
    z, a = np.polynomial.hermite_e.hermegauss(count)
    grid = np.stack(np.meshgrid(*[z] * dims, indexing="ij"), -1).reshape(-1, dims)
    products = np.stack(np.meshgrid(*[a / a.sum()] * dims, indexing="ij"), -1).reshape(-1, dims).prod(1)
    return torch.from_numpy(grid), torch.from_numpy(products)


def normal_log_density(q, mu, variance):
    return -((q - mu).square().sum(-1) / variance + q.shape[-1] * torch.log(2 * math.pi * variance)) / 2


# nodes per dimension, after which the error is that of the sums
@pytest.fixture(params=[(1, 60), (2, 30)], ids=["1-D", "2-D"])
def setting(request):
    """Nodes, their weights, and the parameters mu, s, nu, t, sigma, weights, all of which carry gradients."""
    dims, count = request.param
    z, a = nodes(count, dims)
    parameters = (
        numbers(0.7, -0.4)[:dims],
        numbers(S)[0],
        numbers(-0.2, 0.5)[:dims],
        numbers(T)[0],
        numbers(*SIGMAS),
        numbers(*WEIGHTS),
    )
    return z, a, tuple(p.clone().requires_grad_() for p in parameters)


def gradients(value, parameters):
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, parameters)])


def estimate(z, a, mu, s, nu, t, sigma, weights, function=gkfast.mmd2):
    """The function of two samples that mu, s, nu and t make of the nodes."""
    x, y = mu + s * z, nu + t * z
    return function(x, y, sigma, weights=weights, estimator="biased", x_weights=a, y_weights=a)


def test_kernel_means(setting):
    z, a, parameters = setting
    ours = estimate(z, a, *parameters, function=gkfast.kernel_means)
    for value, truth in zip(ours, means(*parameters), strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-11, atol=0)
        # by every parameter: at the rows through mu, s, nu and t, and at the bandwidths and their weights
        ours_gradients = torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True)
        truth_gradients = torch.autograd.grad(truth, parameters, retain_graph=True, materialize_grads=True)
        for gradient, expected in zip(ours_gradients, truth_gradients, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-11)


def test_mmd2_with_its_gradient_and_hessian(setting):
    z, a, parameters = setting
    ours, truth = estimate(z, a, *parameters), squared_mmd(*parameters)
    assert 0.01 < truth.item() < 1
    torch.testing.assert_close(ours, truth, rtol=1e-11, atol=0)
    ours, truth = gradients(ours, parameters), gradients(truth, parameters)
    torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-11)
    sizes = [p.shape for p in parameters]

    def of_one_vector(function):
        def call(vector):
            parts = vector.split([size.numel() for size in sizes])
            return function(*(part.reshape(size) for part, size in zip(parts, sizes, strict=True)))

        return call

    vector = torch.cat([p.detach().reshape(-1) for p in parameters])
    hessian = torch.autograd.functional.hessian(of_one_vector(lambda *p: estimate(z, a, *p)), vector)
    expected = torch.autograd.functional.hessian(of_one_vector(squared_mmd), vector)
    torch.testing.assert_close(hessian, expected, rtol=1e-9, atol=1e-10)


def test_derivative_by_sigma_by_hand(setting):
    # d/dsigma of log E K = D/sigma - D sigma/v + |mu - nu|^2 sigma/v^2
    z, a, (mu, s, nu, t, _, _) = setting
    sigma, dims = 1.5, z.shape[1]
    bandwidth = numbers(sigma)[0].requires_grad_()
    mean = estimate(z, a, mu, s, nu, t, bandwidth, None, function=gkfast.kernel_means).xy
    (ours,) = torch.autograd.grad(mean, bandwidth)
    v, squared = sigma**2 + S**2 + T**2, (mu - nu).square().sum().item()
    logarithmic = dims / sigma - dims * sigma / v + squared * sigma / v**2
    assert ours.item() == pytest.approx(mean.item() * logarithmic, rel=1e-11)


def test_kernel_mean_embedding(setting):
    # q -> E K(q, X) is a Gaussian again
    z, a, (mu, s, _, _, sigma, weights) = setting
    q = torch.linspace(-3, 3, 10, dtype=torch.float64).reshape(-1, z.shape[1])
    ours = gkfast.rbf_matmul(q, mu + s * z, a, sigma, weights=weights)
    truth = torch.stack([mean_kernel(row - mu, s**2, sigma, weights) for row in q])
    torch.testing.assert_close(ours, truth, rtol=1e-11, atol=0)


def test_density_and_score(setting):
    z, a, (mu, s, _, _, sigma, weights) = setting
    q = torch.linspace(-2, 2, 10, dtype=torch.float64).reshape(-1, z.shape[1])
    options = {"weights": weights.detach(), "data_weights": a}
    ours = gkfast.log_density(q, mu + s * z, sigma, **options)
    shares = (weights / weights.sum()).detach()
    truth = (
        (torch.stack([normal_log_density(q, mu, b**2 + s**2) for b in sigma]).exp() * shares[:, None]).sum(0).log()
    )
    torch.testing.assert_close(ours, truth, rtol=1e-11, atol=0)
    for by in (mu, s, sigma):
        (gradient,) = torch.autograd.grad(ours.square().sum(), by, retain_graph=True)
        (expected,) = torch.autograd.grad(truth.square().sum(), by, retain_graph=True)
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)
    one = gkfast.score(q, mu + s * z, sigma[0], data_weights=a)
    torch.testing.assert_close(one, -(q - mu) / (sigma[0] ** 2 + s**2), rtol=1e-10, atol=1e-12)


def test_quadrature_converges(setting):
    # what the other tests rest on: the error is that of the quadrature until it reaches that of the sums
    z, _, parameters = setting
    dims, truth = z.shape[1], squared_mmd(*parameters).item()
    errors = [abs(estimate(*nodes(count, dims), *parameters).item() / truth - 1) for count in (2, 4, 8, 16, 30)]
    assert errors[0] > 1e-3
    assert all(finer < coarser / 10 for coarser, finer in pairwise(errors[:4]))
    assert errors[-1] < 1e-12


@pytest.mark.parametrize("offset", [0, 1000])
def test_quadrature_in_float32(setting, offset):
    # the nodes are rounded to 6e-8 of their size: by up to 3e-5 at 1000, where sigma is 1.5
    z, a, parameters = setting
    mu, s, nu, t, *_ = (p.detach() for p in parameters)
    x, y = ((c + spread * z + offset).float() for c, spread in ((mu, s), (nu, t)))
    ours = gkfast.mmd2(x, y, SIGMAS, weights=WEIGHTS, estimator="biased", x_weights=a.float(), y_weights=a.float())
    assert ours.item() == pytest.approx(squared_mmd(*parameters).item(), rel=1e-6 if offset == 0 else 3e-4)


def test_unnormalised_sample_weights_are_normalised(setting):
    z, a, parameters = setting
    torch.testing.assert_close(estimate(z, 7 * a, *parameters), estimate(z, a, *parameters), rtol=1e-13, atol=0)


# replicates, rows of each; a replicate is one draw of the estimate, so that their spread is the standard error
REPLICATES, ROWS = 60, 100


@pytest.fixture(params=[1, 3, 16])
def samples(request):
    """Replicates x and y (R, N, D), and the parameters that they were drawn with."""
    dims = request.param
    rng = np.random.default_rng(dims)
    mu, nu = torch.full((dims,), 0.6, dtype=torch.float64), torch.full((dims,), -0.1, dtype=torch.float64)
    # the kernel of high dimensions is not flat where sigma^2 grows with D
    sigma = numbers(*SIGMAS) * math.sqrt(dims) / 2
    x, y = (
        c + torch.from_numpy(rng.normal(size=(REPLICATES, ROWS, dims))) * spread for c, spread in ((mu, S), (nu, T))
    )
    return x, y, (mu, numbers(S)[0], nu, numbers(T)[0], sigma, numbers(*WEIGHTS))


def assert_expected(draws, truth, share):
    """The mean of independent draws is `truth` within standard errors, which are at most that share of it."""
    error = draws.std(0) / math.sqrt(len(draws))
    assert (error < share * truth.abs()).all()
    assert ((draws.mean(0) - truth).abs() < ERRORS * error).all()


@pytest.mark.parametrize("estimator", ["unbiased", "u_statistic", "linear", "biased"])
def test_expected_mmd2(samples, estimator):
    x, y, parameters = samples
    sigma, weights = parameters[4:]
    truth = squared_mmd(*parameters)
    if estimator == "biased":
        # the diagonals, N of N^2 pairs, have K = sum of the weights
        xx, yy, _ = means(*parameters)
        truth = truth + (2 * weights.sum() - xx - yy) / ROWS
    draws = gkfast.mmd2(x, y, sigma, weights=weights, estimator=estimator)
    assert_expected(draws, truth, 0.2 if estimator == "linear" else 0.05)


def test_mmd2_of_one_distribution_is_zero_on_average(samples):
    x, y, (mu, _, nu, _, sigma, _) = samples
    draws = gkfast.mmd2(x, mu + (y - nu) * (S / T), sigma)
    error = draws.std() / math.sqrt(REPLICATES)
    assert draws.mean().abs() < ERRORS * error
    assert error < 0.01


def test_expected_derivative_by_sigma(samples):
    x, y, (mu, s, nu, t, sigma, weights) = samples
    bandwidth = sigma.clone().requires_grad_()
    draws = [
        torch.autograd.grad(gkfast.mmd2(p, q, bandwidth, weights=weights), bandwidth)[0]
        for p, q in zip(x, y, strict=True)
    ]
    (truth,) = torch.autograd.grad(squared_mmd(mu, s, nu, t, bandwidth, weights), bandwidth)
    # these derivatives are small where the estimate is near its greatest value
    assert_expected(torch.stack(draws), truth, 0.25)


def test_expected_density(samples):
    x, _, (mu, s, _, _, sigma, _) = samples
    q = mu + torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    draws = gkfast.log_density(q, x, sigma[0]).exp()
    assert_expected(draws, normal_log_density(q, mu, sigma[0] ** 2 + s**2).exp(), 0.05)


def test_expected_leave_one_out_density(samples):
    # of two draws from N(mu, s^2), the difference is N(0, 2 s^2), and the density is taken where it is zero
    x, _, (mu, s, _, _, sigma, _) = samples
    draws = gkfast.log_density(x, x, sigma[0], leave_one_out=True).exp().mean(1)
    zero = torch.zeros(1, len(mu), dtype=torch.float64)
    assert_expected(draws, normal_log_density(zero, zero[0], sigma[0] ** 2 + 2 * s**2).exp()[0], 0.05)


def test_expected_score(samples):
    # a ratio of means, K_j (x_j - q) / sigma^2 over K_j: its standard error is that of its linearisation
    x, _, (mu, s, _, _, sigma, _) = samples
    rows, bandwidth = x.reshape(-1, x.shape[2]), sigma[0]
    q = mu + torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    ours, truth = gkfast.score(q, rows, bandwidth), -(q - mu) / (bandwidth**2 + s**2)
    kernels = torch.exp(-(rows - q[:, None]).square().sum(2) / (2 * bandwidth**2))
    pulls = (rows - q[:, None]) / bandwidth**2 - truth[:, None]
    error = (kernels[..., None] * pulls / kernels.mean(1)[:, None, None]).std(1) / math.sqrt(len(rows))
    assert ((ours - truth).abs() < ERRORS * error).all()
    assert error.max() < 0.1 * truth.abs().max()
