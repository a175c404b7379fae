"""Bandwidth heuristics against scipy's pair distances."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist

import gkfast


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [2, 3, 40, 41])
def test_mean_and_median(rng, library, dtype, n):
    x = rng.normal(size=(n, 5)).astype(dtype)
    distances = pdist(x.astype(np.float64))
    assert float(gkfast.mean_sigma(library(x))) == pytest.approx(np.sqrt(np.mean(distances**2)), rel=1e-6)
    assert float(gkfast.median_sigma(library(x))) == pytest.approx(np.median(distances), rel=1e-6)
    assert gkfast.mean_sigma(x).dtype == dtype
    assert gkfast.median_sigma(x).dtype == dtype


def test_two_samples_are_pooled(rng, library):
    x, y = rng.normal(size=(12, 3)), rng.normal(size=(9, 3)) + 2
    both = pdist(np.concatenate([x, y]))
    assert float(gkfast.mean_sigma(library(x), library(y))) == pytest.approx(np.sqrt(np.mean(both**2)))
    assert float(gkfast.median_sigma(library(x), library(y))) == pytest.approx(np.median(both))


def test_far_from_the_origin(rng):
    x = rng.normal(size=(50, 3)).astype(np.float32)
    moved = (x + np.float32(4096)).astype(np.float32)
    exact = pdist(moved.astype(np.float64))
    assert float(gkfast.mean_sigma(moved)) == pytest.approx(np.sqrt(np.mean(exact**2)), rel=1e-4)
    assert float(gkfast.median_sigma(moved)) == pytest.approx(np.median(exact), rel=1e-6)


def test_batches(rng, library, numpy_of):
    x = rng.normal(size=(3, 2, 10, 4))
    for function in (gkfast.mean_sigma, gkfast.median_sigma):
        batched = numpy_of(function(library(x)))
        assert batched.shape == (3, 2)
        assert batched[1, 0] == pytest.approx(float(function(library(x[1, 0]))))


def test_many_rows_are_sampled_deterministically(rng):
    x = rng.normal(size=(5000, 2))
    sampled = float(gkfast.median_sigma(x, max_points=1000))
    assert sampled == float(gkfast.median_sigma(x, max_points=1000))
    assert sampled == float(gkfast.median_sigma(x[::5]))
    assert sampled == pytest.approx(np.median(pdist(x)), rel=0.05)


def test_gradients():
    torch.manual_seed(0)
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gkfast.mean_sigma, x)
    assert not gkfast.median_sigma(x).requires_grad


def test_halves_come_back_in_float32(rng):
    x = torch.from_numpy(rng.normal(size=(20, 3))).half()
    assert gkfast.mean_sigma(x).dtype == torch.float32
    assert gkfast.median_sigma(x).dtype == torch.float32


def test_errors():
    with pytest.raises(ValueError, match="x must have at least 2 rows for a pair distance, got 1"):
        gkfast.mean_sigma(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="max_points must be a whole number of at least 2, got 1"):
        gkfast.median_sigma(np.zeros((5, 3)), max_points=1)


@pytest.mark.parametrize("scale", [1e-25, 1e18, 1e20])
def test_magnitudes_whose_squares_leave_float32(rng, library, scale):
    x = rng.normal(size=(20, 3))
    for function in (gkfast.mean_sigma, gkfast.median_sigma):
        found = function(library((x * scale).astype(np.float32)))
        assert float(found) == pytest.approx(float(function(x)) * scale, rel=1e-6)
