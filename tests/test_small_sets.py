"""Batches of problems whose two sets fit into one panel of columns: as right as any other, alone or in a batch."""

import importlib

import numpy as np
import pytest
import torch

import gkfast

small_sets = importlib.import_module("gkfast.kernels.cpu.small_sets")


def _value_and_gradients(x, y, *arguments, **options):
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    value = gkfast.mmd2(x, y, *arguments, **options)
    return value.detach(), *torch.autograd.grad(value.sum(), (x, y))


def _samples(batch, n, m, dims, dtype=torch.float32):
    rng = torch.Generator().manual_seed(n + m)
    x, y = (torch.randn(batch, count, dims, generator=rng, dtype=dtype) for count in (n, m))
    return x, y + 0.5


@pytest.fixture
def tried(monkeypatch):
    """What `small_kernel_sums` returned, call by call."""
    found = []
    kernel_sums = importlib.import_module("gkfast.kernels.cpu.kernel_sums")

    def spy(*arguments):
        found.append(small_sets.small_kernel_sums(*arguments))
        return found[-1]

    monkeypatch.setattr(kernel_sums, "small_kernel_sums", spy)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("estimator", ["unbiased", "biased", "u_statistic"])
@pytest.mark.parametrize("sigma", [2.0, (1.0, 2.0, 4.0, 8.0, 16.0), (0.3, 1.1, 7.0)])
@pytest.mark.parametrize(("batch", "n", "m", "dims"), [(9, 5, 5, 6), (8, 3, 3, 1), (8, 8, 8, 64), (11, 7, 4, 5)])
def test_value_and_gradients(batch, n, m, dims, sigma, estimator, dtype, tried):
    m = n if estimator == "u_statistic" else m
    x, y = _samples(batch, n, m, dims, dtype)
    weights = {}
    if estimator == "biased":
        weights = {"x_weights": torch.rand(batch, n, dtype=dtype), "y_weights": torch.rand(batch, m, dtype=dtype)}
    found = _value_and_gradients(x, y, sigma, estimator=estimator, **weights)
    weights = {name: w.double() for name, w in weights.items()}
    exact = _value_and_gradients(x.double(), y.double(), sigma, estimator=estimator, backend="reference", **weights)
    assert tried == [True]
    for a, b in zip(found, exact, strict=True):
        assert (a.double() - b).norm() <= (1e-5 if dtype == torch.float32 else 1e-12) * b.norm()


def test_the_last_size_that_fits_and_the_next(tried):
    width = 2 * small_sets.BYTES // 4
    for m in (width - 5, width - 4):
        x, y = _samples(8, 5, m, 2)
        found, exact = (_value_and_gradients(x, y, 1.0, backend=b) for b in (None, "reference"))
        for a, b in zip(found, exact, strict=True):
            assert (a - b).norm() <= 1e-5 * b.norm()
    assert tried == [True]


@pytest.mark.parametrize("number", [1e30, np.nan])
def test_extreme_numbers_go_the_general_way(number, tried):
    x, y = _samples(8, 5, 5, 3)
    x[2, 1, 0] = number
    found, exact = (_value_and_gradients(x, y, 2.0, backend=b)[0] for b in (None, "reference"))
    assert tried == [False]
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_same_bits_for_any_number_of_threads(monkeypatch, tried):
    monkeypatch.setattr(importlib.import_module("gkfast.kernels.cpu.threads"), "SERIAL_WORK", 0)
    x, y = _samples(300, 10, 10, 6)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(_value_and_gradients(x, y, (1.0, 2.0)))
    finally:
        torch.set_num_threads(before)
    assert tried == [True] * 3
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
