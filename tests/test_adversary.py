"""The data on which kernels erred most, found by bench.adversary, and a short search: all within proven bounds."""

import numpy as np
import pytest
import torch

import gkfast
from bench.adversary import BOUNDS, KINDS, Recipe, errors_of, problem_of, search

# quantity, dtype, what the error was, of the magnitudes of the terms, before every distance had a bound of its own
# and sums restarted every 16 terms, and the recipe
WORST = {
    # one large coordinate, and 3071 whose squares are half a unit in the last place
    "value, large coordinate": ("rbf", "float32", 1.2e-6, """
        ["spikes", 3072, 11, 768038522, [0.3755, 0.801336, 0.202943, 0.748954, 0.542294, 0.7018, 0.9067,
        0.364125, 0.61763], [[2, 1967, 0.8926579124322898]]]"""),
    "value, two bandwidths": ("rbf", "float32", 1.3e-6, """
        ["spikes", 513, 24, 919347339, [0.410746, 0.225522, 0.454855, 0.858658, 0.531117, 0.490974, 0.588531,
        0.588612, 0.991373], []]"""),
    # neighbours just too far to be pulled one by one; the terms beside the first were lost
    "gradient, neighbours": ("rbf dx", "float32", 8.1e-5, """
        ["greedy", 48, 75, 625073193, [0.483116, 0.290771, 0.004202, 0.705557, 0.271803, 0.157012, 0.279777,
        0.603995, 0.173372], [[41, 193, 0.0], [48, 12, 0.0]]]"""),
    "gradient, columns": ("rbf dy", "float32", 1.2e-4, """
        ["clusters", 32, 92, 21307763, [0.736153, 0.331987, 0.015583, 0.226161, 1.0, 0.876301, 0.490418,
        0.268008, 0.1703], [[94, 25, 4.0], [13, 14, 1.4688936913855584]]]"""),
    "gradient of MMD^2": ("mmd2 dy", "float32", 3.9e-5, """
        ["greedy", 17, 126, 64157819, [0.928522, 0.421529, 0.014, 0.7905, 0.4795, 0.1077, 0.1469, 0.6411,
        0.7222], []]"""),
    # distances were right to a share of the norms, not of themselves
    "bandwidth": ("rbf dsigma", "float32", 2.0e-3, """
        ["greedy", 256, 34, 93677711, [1.0, 0.270624, 0.0, 0.710726, 0.337493, 0.171359, 0.527118, 0.559832,
        0.173372], [[41, 193, 0.0], [48, 12, 0.0], [71, 5, 0.9999997], [51, 65, -1.0]]]"""),
    "bandwidth of MMD^2": ("mmd2 dsigma", "float32", 1.3e-3, """
        ["greedy", 48, 75, 859911390, [0.995408, 0.275801, 0.0, 0.702281, 0.337493, 0.127355, 0.527118, 0.0,
        0.048604], [[41, 193, 0.0], [48, 12, 0.0], [71, 5, 0.9999997]]]"""),
    "bandwidth in float64": ("rbf dsigma", "float64", 5.6e-13, """
        ["greedy", 257, 33, 346401586, [0.928701, 0.572276, 0.036877, 0.661364, 0.162193, 1.0, 0.098499,
        0.383616, 0.791624], [[69, 39, 0.03125], [40, 149, 0.5], [3, 161, 0.9999998], [5, 207, 0.9999999]]]"""),
    "weight in float64": ("rbf dweights", "float64", 1.6e-13, """
        ["greedy", 2049, 13, 286215829, [1.0, 0.360748, 0.029934, 0.947, 0.0, 0.727053, 0.793694, 1.0,
        0.791627], []]"""),
    "MMD^2": ("mmd2", "float32", 1.3e-5, """
        ["spikes", 513, 24, 933890569, [0.367413, 0.223981, 0.400094, 1.0, 0.389028, 0.097809, 0.0, 0.352448,
        0.432548], []]"""),
}  # fmt: skip


@pytest.mark.parametrize("case", WORST)
def test_the_worst_data_found_keep_the_bounds(case):
    quantity, dtype, before, recipe = WORST[case]
    found = errors_of(Recipe.read(recipe), dtype)
    assert found[quantity].share <= before / 10
    # no quantity pays for another
    for name, errors in found.items():
        assert errors.share <= BOUNDS[KINDS[name]][dtype], name


@pytest.mark.parametrize("rows", [2, 11])
@pytest.mark.parametrize("lost", [0.98, 1.02])
@pytest.mark.parametrize("spans", [(16, 256), (64, 3072)])
def test_kernel_where_every_rounding_of_a_distance_goes_the_same_way(rows, lost, spans):
    # 2.2e-6 before: differences of which the first is 1, and the others' squares are just less, or just more, than
    # half a unit in the last place of the sum that they, or the sums of their spans, are added to
    at = np.arange(3072)
    part = np.where(at < spans[0], 1.0, np.where(at < spans[1], 1 / spans[0], 1 / spans[1]))
    y = np.where(at == 0, 1.0, np.sqrt(lost * 2.0**-24 * part)).astype(np.float32) * np.ones((rows, 1), np.float32)
    x = np.zeros_like(y)
    d2 = np.square(y.astype(np.float64)).sum(1)
    for sigma in (0.6, 0.7071, 0.8):
        k = gkfast.rbf(x, y, sigma)
        assert np.abs(k - np.exp(-d2 / (2 * sigma**2))).max() <= 1e-6


def test_kernel_of_near_points_beside_one_large_coordinate():
    # 1.2e-6 before: terms of |x|^2 and |y|^2 counted double, terms of x.y too; a mirrored row keeps the centre at 0
    at = np.arange(48)
    tiny = np.sqrt(1.02 * 2.0**-24 * np.where(at < 16, 1.0, 1 / 16))
    x = np.where(at == 0, 1.0, tiny) * np.ones((80, 1))
    y = np.where(at == 0, 1.0, -tiny) * np.ones((80, 1))
    x[-1] *= -1
    x, y = x.astype(np.float32), y.astype(np.float32)
    d2 = np.square(x[:, None].astype(np.float64) - y).sum(-1)
    for sigma in np.linspace(0.8, 1.6, 17):
        assert np.abs(gkfast.rbf(x, y, sigma) - np.exp(-d2 / (2 * sigma**2))).max() <= 1e-6


def test_gradient_to_the_weight_of_a_kernel_that_has_almost_none():
    # 3.1e-4 before: distances must be right for its own bandwidth, not for that of the kernel which dominates the sum
    rng = np.random.default_rng(4)
    base = rng.normal(size=256)
    x, y = np.tile(base, (80, 1)), np.tile(base + 0.03 * rng.normal(size=256), (80, 1))
    x[-1] *= -1
    x, y = (torch.from_numpy(a.astype(np.float32)) for a in (x, y))
    weights = torch.tensor([1.0, 1e-9], dtype=torch.float64, requires_grad=True)
    sigma = [20.0, 0.17]
    (ours,) = torch.autograd.grad(gkfast.rbf(x, y, sigma, weights=weights).sum(), weights)
    z = (x.double()[:, None] - y.double()).square().sum(-1) / 2
    for s, found in zip(sigma, ours, strict=True):
        k = torch.exp(-z / s**2)
        assert abs(found - k.sum()) <= 2e-5 * (k * (1 + z / s**2)).sum()


def test_equal_points_have_distance_0_whatever_their_norms():
    rng = np.random.default_rng(4)
    x = (100 * rng.normal(size=(96, 300))).astype(np.float32)
    k = gkfast.rbf(x, x.copy(), 3000.0)
    np.testing.assert_array_equal(np.diag(k), 1)
    np.testing.assert_array_equal(k, k.T)


def test_a_short_search_finds_nothing_beyond_the_bounds():
    rows = search(12, seed=5, most=250)
    broken = [(row.quantity, row.dtype, row.share, row.recipe) for row in rows if not row.holds]
    assert not broken


def test_a_recipe_makes_the_same_data_again():
    recipe = Recipe.read(WORST["gradient, columns"][3])
    one, other = (problem_of(Recipe.read(text), "float32") for text in (recipe.text(), WORST["gradient, columns"][3]))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)
