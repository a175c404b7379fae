"""The Hilbert-Schmidt independence criterion, against kernel matrices, loops and what it is for."""

import itertools

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import gkfast
from gkfast.kernels import reference

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
ESTIMATORS = ("unbiased", "biased")


def sample(n=7, batch=(), dtype=torch.float64):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(*batch, n, 3, generator=generator, dtype=torch.float64)
    y = x[..., :2] ** 2 + 0.3 * torch.randn(*batch, n, 2, generator=generator, dtype=torch.float64)
    return x.to(dtype), y.to(dtype)


def by_matrices(x, y, sigma_x, sigma_y, estimator, weights_x=None, weights_y=None):
    def matrix(points, sigma, weights):
        sigma = torch.as_tensor(sigma, dtype=torch.float64).reshape(1, -1)
        weights = torch.ones_like(sigma) if weights is None else torch.as_tensor(weights).double().reshape(1, -1)
        return reference.rbf(points.double().reshape(-1, *points.shape[-2:]), None, sigma, weights)

    matrices = matrix(x, sigma_x, weights_x), matrix(y, sigma_y, weights_y)
    return reference.hsic(*matrices, estimator == "unbiased").reshape(x.shape[:-2])


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_value_is_that_of_the_matrices(estimator, dtype, batch):
    x, y = sample(batch=batch, dtype=dtype)
    truth = by_matrices(x, y, [0.7, 2.0], [1.0], estimator, [0.5, 1.5], [2.0])
    options = {"estimator": estimator, "x_kernel_weights": [0.5, 1.5], "y_kernel_weights": 2.0}
    for backend in (None, "reference"):
        found = gkfast.hsic(x, y, [0.7, 2.0], 1.0, **options, backend=backend)
        assert found.shape == batch
        assert found.dtype == (torch.float32 if dtype.itemsize < 8 else dtype)
        torch.testing.assert_close(found.double(), truth, rtol=1e-12 if dtype.itemsize == 8 else 1e-6, atol=1e-8)
        if dtype != torch.bfloat16:
            in_numpy = gkfast.hsic(x.numpy(), y.numpy(), [0.7, 2.0], 1.0, **options, backend=backend)
            np.testing.assert_allclose(
                in_numpy, found.numpy(), rtol=1e-12 if dtype.itemsize == 8 else 1e-6, atol=1e-8
            )


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_value_is_that_of_loops(estimator):
    # the definition by expectations over different rows, or over all of them
    x, y = sample(6)
    k, m = gkfast.rbf(x, sigma=1.0).numpy(), gkfast.rbf(y, sigma=2.0).numpy()

    def mean(count, function):
        rows = (
            itertools.permutations(range(6), count)
            if estimator == "unbiased"
            else itertools.product(range(6), repeat=count)
        )
        return np.mean([function(*chosen) for chosen in rows])

    together = mean(2, lambda i, j: k[i, j] * m[i, j])
    across = mean(3, lambda i, j, q: k[i, j] * m[i, q])
    apart = mean(4, lambda i, j, q, r: k[i, j] * m[q, r])
    found = float(gkfast.hsic(x, y, 1.0, 2.0, estimator=estimator))
    assert found == pytest.approx(together - 2 * across + apart, abs=1e-14)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_constant_offset_and_the_order_of_rows_change_nothing(estimator):
    x, y = sample(20, dtype=torch.float32)
    expected = gkfast.hsic(x, y, 1.0, 1.0, estimator=estimator)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gkfast.hsic(x[order], y[order], 1.0, 1.0, estimator=estimator), expected)
    torch.testing.assert_close(gkfast.hsic(y, x, 1.0, 1.0, estimator=estimator), expected)
    far = gkfast.hsic(x.double() + 4096, y.double() - 512, 1.0, 1.0, estimator=estimator)
    torch.testing.assert_close(far.float(), expected, rtol=1e-5, atol=1e-7)


def test_dependence_is_told_from_independence():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(400, 1, generator=generator)
    noise = torch.randn(400, 1, generator=generator)
    dependent, independent = (float(gkfast.hsic(x, y, 1.0, 1.0)) for y in (x.square() + 0.1 * noise, noise))
    assert abs(independent) < 1e-3 < 0.02 < dependent
    # of a constant nothing depends
    assert float(gkfast.hsic(x, torch.ones_like(x), 1.0, 1.0, estimator="biased")) == pytest.approx(0, abs=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_derivatives(estimator):
    x, y = (t.requires_grad_() for t in sample(5))
    sigma = torch.tensor([0.8, 1.5], dtype=torch.float64, requires_grad=True)
    width = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([0.3, 1.1], dtype=torch.float64, requires_grad=True)

    def value(x, y, sigma, width, weights):
        return gkfast.hsic(x, y, sigma, width, estimator=estimator, x_kernel_weights=weights)

    inputs = (x, y, sigma, width, weights)
    assert gradcheck(value, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(value, inputs)
    stacked = [torch.stack([t.detach(), 1.1 * t.detach()]) for t in inputs]
    loop = torch.stack([value(*(t[k] for t in stacked)) for k in range(2)])
    torch.testing.assert_close(torch.func.vmap(value)(*stacked), loop)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"y": torch.zeros(6, 2)}, r"y must have as many rows as x \(7\), got 6"),
        ({"y": torch.zeros(7, 2).double()}, "y must have the dtype of x"),
        ({"estimator": "linear"}, "estimator must be unbiased or biased, got 'linear'"),
        ({"sigma_y": -1.0}, "sigma must be positive and finite, got -1.0"),
        ({"x": torch.zeros(3, 2), "y": torch.zeros(3, 2)}, "x must have at least 4 rows for the unbiased estimator"),
    ],
)
def test_bad_input_is_refused_by_name(change, match):
    arguments = {"x": torch.zeros(7, 3), "y": torch.zeros(7, 2), "sigma_x": 1.0, "sigma_y": 1.0}
    with pytest.raises(ValueError, match=match):
        gkfast.hsic(**{**arguments, **change})
