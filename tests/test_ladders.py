"""Mixtures whose bandwidths are a ladder, where one kernel is another's square: in any order, at any scale, mixed."""

import numpy as np
import pytest
import torch

import gkfast

LADDERS = {
    "MMD-GAN's": [1.0, 2.0, 4.0, 8.0, 16.0],
    "multi-kernel MMD's": [2.0 ** ((i - 2) / 2) for i in range(5)],
    "falling": [16.0, 8.0, 4.0, 2.0, 1.0],
    "shuffled": [4.0, 1.0, 16.0, 2.0, 8.0, 2.0],
    "with steps that are none": [1.0, 2.0, 3.0, 6.0, 6.0 * 2**0.5, 50.0],
    "long": [2.0 ** (i / 2) for i in range(-8, 9)],
    "twice the same": [1.0, 1.0, 2.0, 2.0],
    # a ladder in float32, where the ratios are not quite powers of two
    "nearly": [float(np.float32(0.3) * np.float32(2) ** np.float32(i / 2)) for i in range(5)],
    # so little from a ladder that it is none: squaring would give the kernel of another bandwidth
    "not quite": [1.0, 2.0 * (1 + 1e-4), 4.0 * (1 - 1e-4)],
}
WEIGHTS = [0.5, 1.0, 0.25, 2.0, 1.5]


@pytest.fixture(params=LADDERS)
def sigma(request):
    return LADDERS[request.param]


def weights_of(sigma):
    return [WEIGHTS[s % len(WEIGHTS)] for s in range(len(sigma))]


def points(rng, dtype, n=130, m=90, dims=7):
    x = rng.normal(size=(n, dims)) * np.logspace(-4, 1, n)[:, None]
    y = np.concatenate([x[: m // 2] + 1e-3 * rng.normal(size=(m // 2, dims)), rng.normal(size=(m - m // 2, dims))])
    return x.astype(dtype), y.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_matrix(rng, tolerance, exact, sigma, dtype):
    x, y = points(rng, dtype)
    weights = weights_of(sigma)
    error = np.abs(gkfast.rbf(x, y, sigma, weights=weights) - exact(gkfast.rbf, x, y, sigma, weights=weights)).max()
    assert error <= tolerance("kernel", dtype) * sum(weights)
    np.testing.assert_array_equal(np.diag(gkfast.rbf(x, sigma=sigma)), len(sigma))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_and_gradients(rng, tolerance, sigma, dtype):
    arrays = points(rng, dtype)
    results = {}
    for backend, kind in (("cpu", dtype), ("reference", np.float64)):
        x, y = (torch.from_numpy(a.astype(kind)).requires_grad_() for a in arrays)
        s, w = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (sigma, weights_of(sigma)))
        value = gkfast.mmd2(x, y, s, weights=w, backend=backend)
        product = gkfast.rbf_matmul(x, y, y[:, :2], s, weights=w, backend=backend)
        gradients = (
            torch.autograd.grad(value, (x, y, s, w)),
            torch.autograd.grad(product.square().sum(), (x, y, s, w)),
        )
        results[backend] = [value.detach()], [product.detach()], *gradients
    for ours, truth in zip(results["cpu"], results["reference"], strict=True):
        for one, other in zip(ours, truth, strict=True):
            assert (one.double() - other).norm() <= tolerance("gradient", dtype) * other.norm()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_where_kernels_are_small(rng, sigma, dtype):
    # far apart for all but the widest bandwidth: sums must keep their digits there as well
    x = rng.normal(size=(40, 3)).astype(dtype)
    y = (rng.normal(size=(50, 3)) + 4 * max(sigma)).astype(dtype)
    ours = gkfast.kernel_means(x, y, sigma).xy
    truth = gkfast.kernel_means(x.astype(np.float64), y.astype(np.float64), sigma, backend="reference").xy
    assert float(ours) == pytest.approx(float(truth), rel=2e-5 if dtype == np.float32 else 1e-12)


def test_gradients_keep_the_order_of_the_bandwidths(rng):
    x, y = points(rng, np.float64, 30, 20)
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    order = [3, 0, 4, 1, 2]
    sigma = torch.tensor(LADDERS["MMD-GAN's"], dtype=torch.float64)
    plain, shuffled = sigma.clone().requires_grad_(), sigma[order].clone().requires_grad_()
    (g,) = torch.autograd.grad(gkfast.mmd2(x, y, plain), plain)
    (h,) = torch.autograd.grad(gkfast.mmd2(x, y, shuffled), shuffled)
    torch.testing.assert_close(h, g[order], rtol=1e-11, atol=0)
