"""Bandwidth heuristics against scipy's pair distances."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist

import gkfast
from gkfast import bandwidth


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
    # 21 distances, and 15: one pair in the middle; 28, and 10: two
    for rows in (7, 6, 8, 5):
        x = torch.randn(rows, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(gkfast.median_sigma, x)
        assert torch.autograd.gradgradcheck(gkfast.median_sigma, x)
    x, y = (torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x, y: gkfast.median_sigma(x, y, max_points=5), (x, y))


def test_the_gradient_of_the_median_is_that_of_the_middle_pairs():
    # distances 1, 2, 3, 4, 6 and 7; in the middle those of the rows 0 and 3, and of 3 and 7
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]], dtype=torch.float64, requires_grad=True)
    sigma = gkfast.median_sigma(x)
    assert sigma == 3.5
    (g,) = torch.autograd.grad(sigma, x)
    # (|x_2 - x_0| + |x_3 - x_2|) / 2
    assert g[:, 0].tolist() == [-0.5, 0.0, 0.0, 0.5]


# torch loads its own forward-mode formulas by what it deprecates
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("rule", [gkfast.mean_sigma, gkfast.median_sigma])
def test_vmap_is_the_loop_without_a_warning(rule):
    torch.manual_seed(0)
    x, y = torch.randn(3, 2, 7, 3, dtype=torch.float64), torch.randn(3, 1, 6, 3, dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(rule)(x, y), rule(x, y), rtol=1e-15, atol=0)
    torch.testing.assert_close(torch.func.vmap(rule, (0, None))(x, y[0]), rule(x, y[0]), rtol=1e-15, atol=0)
    each = torch.func.vmap(torch.func.vmap(torch.func.grad(rule)))(x)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(each, torch.autograd.grad(rule(leaf).sum(), leaf)[0], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("rule", [gkfast.mean_sigma, gkfast.median_sigma])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sigma_of_equal_rows_is_0(rng, library, rule, dtype):
    for row in ([0.1, 1 / 3, 7e5], rng.normal(size=3) * 1e-12, rng.normal(size=3) * 1e12):
        rows = np.tile(np.asarray(row, dtype), (11, 1))
        assert float(rule(library(rows))) == 0


def test_mean_does_not_depend_on_the_first_row(rng, library):
    # what is taken as the origin must not matter: an outlier, here
    x = rng.normal(size=(40, 3))
    x[0] += 1e6
    exact = np.sqrt(np.mean(pdist(x) ** 2))
    assert float(gkfast.mean_sigma(library(x))) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("rule", [gkfast.mean_sigma, gkfast.median_sigma])
def test_empty_batches_and_no_coordinates(library, numpy_of, rule):
    assert rule(library(np.zeros((0, 4, 3)))).shape == (0,)
    assert rule(library(np.zeros((2, 0, 4, 3)))).shape == (2, 0)
    assert rule(library(np.zeros((0, 4, 0)))).shape == (0,)
    np.testing.assert_array_equal(numpy_of(rule(library(np.zeros((2, 4, 0))))), np.zeros(2))
    for none in (np.zeros((0, 3)), np.zeros((2, 0, 3)), np.zeros((0, 0, 3))):
        with pytest.raises(ValueError, match="x must have at least 2 rows for a pair distance, got 0"):
            rule(library(none))
    # a sample may be empty if the other is not
    assert float(rule(library(np.zeros((0, 1))), library(np.array([[0.0], [2.0]])))) == 2


def test_nan_and_infinite_points(library):
    x = np.array([[0.0], [1.0], [3.0], [np.nan]])
    # of 6 distances 3 are NaN
    assert np.isnan(float(gkfast.median_sigma(library(x))))
    for row in (np.nan, np.inf):
        assert not np.isfinite(float(gkfast.mean_sigma(library(np.array([[0.0], [1.0], [row]])))))
    x = np.vstack([np.arange(6.0)[:, None], [[np.inf]]])
    # of 21 distances six are infinite, and 5, 4, 3, 2 and 1 of them are 1, 2, 3, 4 and 5
    assert float(gkfast.median_sigma(library(x))) == 3


def test_halves_come_back_in_float32(rng):
    x = torch.from_numpy(rng.normal(size=(20, 3))).half()
    assert gkfast.mean_sigma(x).dtype == torch.float32
    assert gkfast.median_sigma(x).dtype == torch.float32


def test_too_few_points_are_refused():
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


@pytest.mark.parametrize("library", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("n", [2, 3, 40, 301])
def test_median_of_products_and_of_differences(library, n):
    """Products of matrices find the pair in the middle, unless they would lose its digits."""
    rng = np.random.default_rng(n)
    near = rng.normal(size=(n, 20))
    # most pairs lie within clusters that are very far apart
    apart = near + 1e9 * (np.arange(n)[:, None] < 0.3 * n)
    equal = np.repeat(near[:1], n, 0)
    for points, by_products in ((near, True), (near + 1e6, None), (apart, None), (equal, None)):
        distances = pdist(points)
        found = gkfast.median_sigma(library(points))
        assert float(found) == pytest.approx(float(np.median(distances)), rel=1e-9, abs=1e-300)
        if by_products:
            assert bandwidth._middle_pairs_by_products(points) is not None
    if n > 3:
        assert bandwidth._middle_pairs_by_products(apart) is None
    near[0, 0] = np.nan
    assert bandwidth._middle_pairs_by_products(near) is None


def test_rules_of_modules_look_at_512_rows():
    x, y = torch.randn(400, 3), torch.randn(400, 3)
    loss = gkfast.nn.MMDLoss("median", scales=(1.0,))
    loss(x, y)
    assert loss.bandwidth.running.item() == pytest.approx(gkfast.median_sigma(x, y, max_points=512).item(), rel=1e-6)
