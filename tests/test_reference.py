"""The oracle itself: hand values, SciPy, scikit-learn, closed forms."""

import inspect
import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.neighbors import KernelDensity

import gkfast
from gkfast.kernels import cpu, reference

one = torch.ones(1, 1, dtype=torch.float64)


def points(*rows):
    return torch.tensor(rows, dtype=torch.float64)[None]


def test_rbf_by_hand():
    k = reference.rbf(points([0.0, 0.0], [3.0, 4.0]), points([0.0, 0.0]), 5 * one, one)
    assert k.tolist() == [[[1.0], [pytest.approx(math.exp(-0.5), abs=1e-16)]]]


def test_mixture_is_the_weighted_sum():
    x, y = points([0.0]), points([2.0])
    k = reference.rbf(x, y, torch.tensor([[1.0, 2.0]]).double(), torch.tensor([[3.0, 0.5]]).double())
    assert k.item() == pytest.approx(3 * math.exp(-2) + 0.5 * math.exp(-0.5), abs=1e-15)


def test_rbf_is_scikit_learns_and_scipys(rng):
    x, y, sigma = rng.normal(size=(23, 7)), rng.normal(size=(11, 7)), 1.7
    ours = gkfast.rbf(x, y, sigma, backend="reference")
    np.testing.assert_allclose(ours, rbf_kernel(x, y, gamma=1 / (2 * sigma**2)), atol=1e-14)
    np.testing.assert_allclose(ours, np.exp(-cdist(x, y, "sqeuclidean") / (2 * sigma**2)), atol=1e-14)


def test_rbf_matmul_is_the_product(rng):
    x, y, v = rng.normal(size=(9, 3)), rng.normal(size=(8, 3)), rng.normal(size=(8, 2))
    ours = gkfast.rbf_matmul(x, y, v, 0.9, backend="reference")
    np.testing.assert_allclose(ours, np.exp(-cdist(x, y, "sqeuclidean") / (2 * 0.81)) @ v, atol=1e-13)


def test_log_density_is_scikit_learns(rng):
    x, data = rng.normal(size=(31, 4)), rng.normal(size=(57, 4))
    ours = gkfast.log_density(x, data, 0.6, backend="reference")
    theirs = KernelDensity(bandwidth=0.6, kernel="gaussian").fit(data).score_samples(x)
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_weighted_log_density_is_scikit_learns(rng):
    x, data, weights = rng.normal(size=(5, 2)), rng.normal(size=(20, 2)), rng.uniform(size=20)
    ours = gkfast.log_density(x, data, 0.6, data_weights=weights, backend="reference")
    theirs = KernelDensity(bandwidth=0.6).fit(data, sample_weight=weights).score_samples(x)
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_leave_one_out_is_the_density_of_the_others(rng):
    data = rng.normal(size=(12, 3))
    ours = gkfast.log_density(data, data, 0.7, leave_one_out=True, backend="reference")
    others = [
        KernelDensity(bandwidth=0.7).fit(np.delete(data, i, 0)).score_samples(data[i : i + 1]) for i in range(12)
    ]
    np.testing.assert_allclose(ours, np.concatenate(others), atol=1e-12)


def test_density_of_several_bandwidths_integrates_to_one():
    grid = np.linspace(-12, 12, 4001)[:, None]
    p = np.exp(
        gkfast.log_density(grid, np.array([[-1.0], [2.0]]), [0.3, 1.1], weights=[2.0, 1.0], backend="reference")
    )
    assert np.trapezoid(p, grid[:, 0]) == pytest.approx(1, abs=1e-12)


def test_score_is_the_gradient_of_log_density(rng):
    x = torch.from_numpy(rng.normal(size=(6, 3))).requires_grad_()
    data = torch.from_numpy(rng.normal(size=(9, 3)))
    (gradient,) = torch.autograd.grad(gkfast.log_density(x, data, [0.5, 1.0], backend="reference").sum(), x)
    torch.testing.assert_close(gkfast.score(x, data, [0.5, 1.0], backend="reference"), gradient, atol=1e-12, rtol=0)


def test_score_of_one_point_by_hand():
    assert gkfast.score(np.array([[1.0]]), np.array([[0.0]]), 2.0, backend="reference").item() == -0.25


def loops(x, y, sigma, pairs):
    """MMD^2 by loops, over the pairs that an estimator names."""

    def k(p, q):
        return math.exp(-sum((s - t) ** 2 for s, t in zip(p, q, strict=True)) / (2 * sigma**2))

    def mean(p, q, kept):
        values = [k(p[i], q[j]) for i in range(len(p)) for j in range(len(q)) if kept(i, j)]
        return sum(values) / len(values)

    return mean(x, x, pairs["within"]) + mean(y, y, pairs["within"]) - 2 * mean(x, y, pairs["between"])


PAIRS = {
    "biased": {"within": lambda i, j: True, "between": lambda i, j: True},
    "unbiased": {"within": lambda i, j: i != j, "between": lambda i, j: True},
    "u_statistic": {"within": lambda i, j: i != j, "between": lambda i, j: i != j},
}


@pytest.mark.parametrize("estimator", PAIRS)
def test_mmd2_by_loops(rng, estimator):
    x, y = rng.normal(size=(6, 2)), rng.normal(size=(6, 2)) + 1
    ours = gkfast.mmd2(x, y, 0.8, estimator=estimator, backend="reference")
    assert float(ours) == pytest.approx(loops(x, y, 0.8, PAIRS[estimator]), abs=1e-14)


def test_linear_mmd2_by_loops(rng):
    x, y = rng.normal(size=(7, 2)), rng.normal(size=(7, 2)) + 1

    def k(p, q):
        return math.exp(-((p - q) ** 2).sum() / 2)

    terms = [
        k(x[i], x[i + 1]) + k(y[i], y[i + 1]) - k(x[i], y[i + 1]) - k(x[i + 1], y[i])
        for i in (0, 2, 4)  # the seventh row has no partner
    ]
    ours = gkfast.mmd2(x, y, 1.0, estimator="linear", backend="reference")
    assert float(ours) == pytest.approx(sum(terms) / 3, abs=1e-14)


def gaussian_mean_kernel(mean_difference, variances, sigma, dims):
    """E K(X, Y) for X - Y normal with that mean and a covariance of variances times the identity."""
    total = sigma**2 + variances
    return (sigma**2 / total) ** (dims / 2) * math.exp(-(mean_difference**2) / (2 * total))


def test_mmd2_of_two_gaussians_has_its_closed_form():
    rng, n, dims, shift, sigma = np.random.default_rng(0), 2000, 2, 1.0, 1.2
    estimates = []
    for _ in range(8):
        x = rng.normal(size=(n, dims))
        y = rng.normal(size=(n, dims)) * 1.5 + [shift, 0.0]
        estimates.append(float(gkfast.mmd2(x, y, sigma)))
    expected = (
        gaussian_mean_kernel(0, 2.0, sigma, dims)
        + gaussian_mean_kernel(0, 2 * 1.5**2, sigma, dims)
        - 2 * gaussian_mean_kernel(shift, 1 + 1.5**2, sigma, dims)
    )
    standard_error = np.std(estimates, ddof=1) / math.sqrt(len(estimates))
    assert np.mean(estimates) == pytest.approx(expected, abs=4 * standard_error)
    assert standard_error < 0.05 * expected


def test_kernels_take_the_same_arguments_in_the_same_order():
    for name in set(cpu.__all__) & set(dir(reference)):
        ours, theirs = (
            [
                p.name
                for p in inspect.signature(getattr(module, name)).parameters.values()
                if p.kind is p.POSITIONAL_OR_KEYWORD
            ]
            for module in (cpu, reference)
        )
        assert ours == theirs, name


def test_no_weights_are_weights_of_one():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 9, 3)), rng.normal(size=(2, 12, 3))
    scale, sigma = rng.normal(size=(2, 1, 3)), np.ones((2, 1))
    options = {"drop": 1, "wants": (True, True, False, False, True, True)}
    ones = cpu.kernel_sums_with_gradients(scale, x, y, np.ones((2, 9)), np.ones((2, 12)), sigma, sigma, **options)
    without = cpu.kernel_sums_with_gradients(scale, x, y, None, None, sigma, sigma, **options)
    for ours, theirs in zip(without, ones, strict=True):
        np.testing.assert_array_equal(ours, theirs)
