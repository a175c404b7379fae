"""The accuracy contract on data made to break kernels: offsets, far clusters, duplicates, scales, NaN, inf."""

import numpy as np
import pytest
import torch

import gkfast
from bench import datasets

ROWS = 150
DATA = {
    f.__name__: f
    for f in (
        datasets.offset,
        datasets.far_clusters,
        datasets.duplicates,
        datasets.neighbours,
        datasets.narrow,
        datasets.sigma_1000,
        datasets.tiny,
        datasets.huge,
        datasets.grey,
        datasets.two_greys,
    )
}
DIMS = [1, 2, 3, 16, 17, 33, 64, 513, 784, 3072]


def drawn(rng, data, dims, dtype):
    x, sigma = DATA[data](rng, ROWS, dims)
    x = x.astype(dtype)
    # neighbours stay together, so that near pairs lie between the two sets as well
    return x[: ROWS // 2], x[ROWS // 3 :], float(sigma)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("data", DATA)
def test_kernel_matrix(rng, tolerance, exact, data, dims, dtype):
    x, y, sigma = drawn(rng, data, dims, dtype)
    error = np.abs(gkfast.rbf(x, y, sigma) - exact(gkfast.rbf, x, y, sigma)).max()
    assert error <= tolerance("kernel", dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dims", [1, 3, 17, 64, 784])
@pytest.mark.parametrize("data", DATA)
def test_gradients(rng, tolerance, data, dims, dtype):
    x, y, sigma = drawn(rng, data, dims, dtype)
    g = rng.normal(size=(len(x), len(y)))
    gradients = {}
    for backend, kind in (("cpu", dtype), ("reference", np.float64)):
        xt, yt = (torch.from_numpy(a.astype(kind)).requires_grad_() for a in (x, y))
        k = gkfast.rbf(xt, yt, sigma, backend=backend)
        rbf = torch.autograd.grad((k * torch.from_numpy(g.astype(kind))).sum() * sigma, (xt, yt))
        mmd = torch.autograd.grad(gkfast.mmd2(xt, yt, [sigma, 2 * sigma], backend=backend) * sigma, (xt, yt))
        log_p = gkfast.log_density(xt, yt, sigma, backend=backend)
        density = torch.autograd.grad(log_p.sum() * sigma, (xt, yt))
        gradients[backend] = [*rbf, *mmd, *density]
    # a softmax over exponents of this size is known to their rounding, by the oracle as well
    exponents = float(log_p.detach().abs().max()) * 1e-15
    for ours, truth in zip(gradients["cpu"], gradients["reference"], strict=True):
        error = (ours.double() - truth).norm() / truth.norm()
        assert error <= tolerance("gradient", dtype) + exponents


@pytest.mark.parametrize("dims", [1, 3, 17, 64, 200, 784])
@pytest.mark.parametrize("data", DATA)
def test_log_density_to_a_share_of_its_greatest_exponent(rng, exact, data, dims):
    x, y, sigma = drawn(rng, data, dims, np.float32)
    truth = exact(gkfast.log_density, x, y, sigma)
    apart = np.linalg.norm(x[:, None].astype(np.float64) - y[None], axis=-1).max()
    exponent = 1 + (apart / sigma) ** 2 / 2
    for precision, share in ((None, 2e-6), ("high", 2e-6), ("highest", 1e-7)):
        error = np.abs(gkfast.log_density(x, y, sigma, precision=precision) - truth).max()
        assert error <= share * exponent + np.finfo(np.float32).eps * np.abs(truth).max()


@pytest.mark.slow
# forward mode and inductor import what torch 2.13 deprecates
@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script", "ignore:Skipping serialization of skipfiles_inline_module_allowlist"
)
@pytest.mark.parametrize("transform", ["backward", "vjp", "jvp", "compile"])
def test_gradients_of_a_density_begin_with_a_float64_value(rng, transform):
    # exponents near 1000: a value to 2e-6 of them would move the shares by 2e-3
    x, y = (torch.from_numpy((20 * rng.normal(size=(40, 64))).astype(np.float32)) for _ in range(2))

    def total(x, y=y):
        return gkfast.log_density(x, y, 5.0).sum()

    truth = torch.func.grad(lambda x: total(x, y.double()))(x.double())
    if transform == "jvp":
        directions = torch.eye(64, dtype=torch.float32)[:3]
        ours = torch.stack([torch.func.jvp(total, (x,), (d.expand_as(x).contiguous(),))[1] for d in directions])
        truth = truth.sum(0)[:3]
    elif transform == "vjp":
        ours = torch.func.grad(total)(x)
    else:
        leaf = x.clone().requires_grad_()
        function = torch.compile(total, fullgraph=True) if transform == "compile" else total
        (ours,) = torch.autograd.grad(function(leaf), leaf)
    assert (ours.double() - truth).norm() <= 1e-5 * truth.norm()


def test_mmd2_keeps_its_digits_where_means_are_nearly_equal(rng, exact):
    # unit-norm embeddings with a wide kernel: every k is near 1
    x, y = (rng.normal(size=(250, 768)) + shift for shift in (0, 0.01))
    x, y = ((a / np.linalg.norm(a, axis=1, keepdims=True)).astype(np.float32) for a in (x, y))
    for sigma, estimator in ((10.0, "biased"), (10.0, "unbiased"), (200.0, "biased")):
        ours = float(gkfast.mmd2(x, y, sigma, estimator=estimator))
        truth = float(exact(gkfast.mmd2, x, y, sigma, estimator=estimator))
        assert ours == pytest.approx(truth, rel=1e-3)


def test_means_keep_their_digits_where_kernels_are_small(rng, exact):
    x, y = (rng.normal(size=(60, 50)).astype(np.float32) for _ in range(2))
    ours, truth = gkfast.kernel_means(x, y, 1.0), exact(gkfast.kernel_means, x, y, 1.0)
    assert float(ours.xy) == pytest.approx(float(truth.xy), rel=1e-5)
    assert float(ours.xy) < 1e-10


def test_log_density_is_finite_far_from_the_data(rng, exact):
    data = rng.normal(size=(50, 64)).astype(np.float32)
    x = (data[:5] + 1000).astype(np.float32)
    ours = gkfast.log_density(x, data, 0.1)
    assert np.isfinite(ours).all()
    truth = exact(gkfast.log_density, x, data, 0.1)
    np.testing.assert_allclose(ours, truth, rtol=2e-6)
    np.testing.assert_allclose(gkfast.log_density(x, data, 0.1, precision="highest"), truth, rtol=1e-7)


def test_leave_one_out_keeps_its_digits_where_the_own_kernel_dominates(rng, exact, numpy_of):
    data = (3 * rng.normal(size=(40, 30))).astype(np.float32)
    for function in (gkfast.log_density, gkfast.score):
        ours = function(data, data, 0.5, leave_one_out=True)
        truth = exact(function, data, data, 0.5, leave_one_out=True)
        np.testing.assert_allclose(ours, truth, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_stays_in_its_entries(rng, dtype):
    x, y = rng.normal(size=(20, 3)).astype(dtype), rng.normal(size=(15, 3)).astype(dtype)
    clean = gkfast.rbf(x, y, 1.0)
    x[4, 1], y[7, 0] = np.nan, np.nan
    k = gkfast.rbf(x, y, 1.0)
    assert np.isnan(k[4]).all()
    assert np.isnan(k[:, 7]).all()
    others = np.ix_(np.delete(np.arange(20), 4), np.delete(np.arange(15), 7))
    np.testing.assert_array_equal(k[others], clean[others])
    product = gkfast.rbf_matmul(x, y[:7], np.ones(7, dtype), 1.0)
    np.testing.assert_array_equal(np.isnan(product), np.arange(20) == 4)
    density = gkfast.log_density(x, y[:7], 1.0)
    np.testing.assert_array_equal(np.isnan(density), np.arange(20) == 4)
    assert np.isnan(gkfast.mmd2(x, y, 1.0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_infinite_distance_is_a_kernel_of_zero(dtype):
    x = np.array([[np.inf, 0.0], [1.0, 0.0]], dtype)
    y = np.array([[0.0, 0.0], [-np.inf, 0.0]], dtype)
    k = gkfast.rbf(x, y, 1.0)
    assert k[0].tolist() == [0, 0]
    assert k[1, 1] == 0


def test_infinitely_far_points_pull_nothing():
    x = torch.tensor([[torch.inf, 0.0], [1e-30, 0.0]], requires_grad=True)
    y = torch.tensor([[0.0, 0.0], [1e20, 0.0]], requires_grad=True)
    for sigma in (1e-30, 1.0, 1e30):
        bandwidth = torch.tensor(sigma, dtype=torch.float64, requires_grad=True)
        dx, dy, dsigma = torch.autograd.grad(gkfast.rbf(x, y, bandwidth).sum(), (x, y, bandwidth))
        assert dx[0].tolist() == [0, 0]
        assert dx.isfinite().all()
        assert dy.isfinite().all()
        assert dsigma.isfinite()


@pytest.mark.parametrize("sigma", [1e-38, 1e-20, 1.0, 1e20, 1e38])
def test_overflowing_squares(exact, sigma):
    x = np.array([[1e20, -3e38], [1e20, 3e38], [1e-30, 0.0], [1e20, 3e38], [-3e38, 3e38]], np.float32)
    k = gkfast.rbf(x, sigma=sigma)
    np.testing.assert_array_equal(np.diag(k), 1)
    np.testing.assert_allclose(k, exact(gkfast.rbf, x, sigma=sigma), atol=1e-6)
    xt, bandwidth = torch.from_numpy(x).requires_grad_(), torch.tensor(sigma, dtype=torch.float64, requires_grad=True)
    for gradient in torch.autograd.grad(gkfast.rbf(xt, None, bandwidth).sum(), (xt, bandwidth)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("spread", [1e6, 1e18, 1e30])
def test_points_at_all_scales_between_two_bandwidths(rng, exact, spread):
    x = np.concatenate([rng.normal(size=(12, 1)) * spread**p for p in (-0.5, -0.25, 0, 0.25, 0.5)]).astype(np.float32)
    sigma = [spread**-0.5, spread**0.5]
    np.testing.assert_allclose(gkfast.rbf(x, sigma=sigma), exact(gkfast.rbf, x, sigma=sigma), atol=2e-6)


def test_bandwidths_far_apart_in_one_mixture():
    x = np.array([[0.0], [1e-3], [1e3]])
    k = gkfast.rbf(x, sigma=[1e-3, 1e3])
    np.testing.assert_allclose(k, sum(gkfast.rbf(x, sigma=s, backend="reference") for s in (1e-3, 1e3)), atol=1e-14)
