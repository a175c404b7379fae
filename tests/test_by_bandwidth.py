"""Values of every bandwidth from one sweep: MMD^2 and log-densities, beside the same one by one."""

import numpy as np
import pytest
import torch

import gkfast
import gkfast.ops
from gkfast.kernels import cpu

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
# squares of each other; none of any; more than numbers that a GPU kernel takes, of all sizes and in no order
LADDERS = {
    "sigma x2": [0.5, 1.0, 2.0, 4.0, 8.0],
    "variance x2": [2.0**-0.5, 1.0, 2.0**0.5, 2.0],
    "others": [3.0, 0.7, 1.9, 40.0],
    "many": [1.0, 0.02, 700.0, 0.3, 2.0, 1.1, 5.0, 0.6, 9.0, 1.3, 64.0],
    "one": [1.5],
}
ESTIMATORS = ("unbiased", "biased", "u_statistic", "linear")


@pytest.fixture(params=LADDERS)
def sigma(request):
    return LADDERS[request.param]


def pair(rng, n, m, dims, dtype=np.float32, shift=0.5):
    return rng.normal(size=(n, dims)).astype(dtype), (rng.normal(size=(m, dims)) + shift).astype(dtype)


# one block, several, several panels of chunks; few coordinates, and products
@pytest.mark.parametrize(("n", "m", "dims"), [(2, 3, 1), (37, 37, 3), (300, 270, 7), (600, 700, 33)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mmd2_is_that_of_each_bandwidth(rng, library, numpy_of, sigma, n, m, dims, dtype):
    x, y = pair(rng, n, m, dims, dtype)
    found = numpy_of(gkfast.mmd2(library(x), library(y), sigma, by_bandwidth=True))
    assert found.dtype == dtype
    wide = x.astype(np.float64), y.astype(np.float64)
    for k, s in enumerate(sigma):
        exact = float(gkfast.mmd2(*wide, s, backend="reference"))
        # of the greater of |MMD^2| and the mean of k (1 + z) between the samples; see gkfast.mmd2
        z = ((wide[0][:, None] - wide[1]) ** 2).sum(-1) / (2 * s * s)
        size = max(abs(exact), float((np.exp(-z) * (1 + z)).mean()))
        assert abs(found[k] - exact) <= (1e-5 if dtype == np.float32 else 1e-13) * size


@pytest.mark.parametrize("weights", [None, [0.5, 0.0, -1.0, 2.0]])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_they_add_up_to_mmd2(rng, estimator, weights):
    x, y = pair(rng, 45, 45, 4, np.float64)
    options = {"estimator": estimator, "weights": weights}
    each = gkfast.mmd2(x, y, LADDERS["others"], **options, by_bandwidth=True)
    assert each.sum() == pytest.approx(float(gkfast.mmd2(x, y, LADDERS["others"], **options)), abs=1e-14)
    assert weights is None or each[1] == 0


def test_batches_and_sample_weights(rng, numpy_of, library):
    x, y = rng.normal(size=(3, 1, 20, 2)), rng.normal(size=(2, 25, 2))
    a, sigma = rng.uniform(size=(3, 2, 20)), rng.uniform(0.5, 2, size=(3, 1, 4))
    x, y, a, sigma = map(library, (x, y, a, sigma))
    found = numpy_of(gkfast.mmd2(x, y, sigma, x_weights=a, by_bandwidth=True))
    assert found.shape == (3, 2, 4)
    for k in range(4):
        one = numpy_of(gkfast.mmd2(x, y, sigma[..., k : k + 1], x_weights=a))
        np.testing.assert_allclose(found[..., k], one, rtol=1e-12, atol=1e-14)


def test_the_biased_one_is_a_squared_norm_of_each(rng, library, numpy_of, sigma):
    x, _ = pair(rng, 40, 1, 3)
    y = x[rng.permutation(40)]
    options = {"estimator": "biased", "by_bandwidth": True}
    assert not numpy_of(gkfast.mmd2(library(x), library(y), sigma, **options)).any()
    y[0] += 1e-4
    assert (numpy_of(gkfast.mmd2(library(x), library(y), sigma, **options)) >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_give_float32(rng, dtype):
    x, y = (torch.from_numpy(p).to(dtype) for p in pair(rng, 20, 30, 3))
    for function in (gkfast.mmd2, gkfast.log_density):
        found = function(x, y, [0.5, 1.0], by_bandwidth=True)
        assert found.dtype == torch.float32
        truth = function(x.double(), y.double(), [0.5, 1.0], by_bandwidth=True)
        torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [40, 300])
def test_gradients_of_float32(rng, sigma, n):
    x, y = (torch.from_numpy(p).requires_grad_() for p in pair(rng, n, n + 7, 9))
    width = torch.tensor(sigma, dtype=torch.float64, requires_grad=True)
    factors = torch.from_numpy(rng.normal(size=len(sigma)))

    def gradients(x, y, factors, **options):
        return torch.autograd.grad((factors * gkfast.mmd2(x, y, width, **options)).sum(), (x, y, width))

    wide = [p.detach().double().requires_grad_() for p in (x, y)]
    truth = gradients(*wide, factors, by_bandwidth=True, backend="reference")
    for ours, exact in zip(gradients(x, y, factors.float(), by_bandwidth=True), truth, strict=True):
        assert (ours - exact).norm() <= 1e-5 * exact.norm()


def test_values_are_one_sweep_and_gradients_another(rng, monkeypatch):
    seen = []
    whole = cpu.kernel_sums_with_gradients
    monkeypatch.setattr(cpu, "kernel_sums_with_gradients", lambda *a, **k: (seen.append(k), whole(*a, **k))[1])
    x, y = (torch.from_numpy(p).requires_grad_() for p in pair(rng, 30, 40, 9))
    values = gkfast.mmd2(x, y.detach(), [1.0, 2.0, 3.0], by_bandwidth=True)
    assert seen == []
    torch.autograd.grad(values, x, torch.ones(3))
    assert [(call["wants"], call["want_sums"]) for call in seen] == [([True, *[False] * 5], False)]


def test_without_sums_a_gradient_is_the_same(rng):
    x, y = (p[None] for p in pair(rng, 300, 280, 9))
    a, b = rng.uniform(size=(1, 300)).astype(np.float32), rng.uniform(size=(1, 280)).astype(np.float32)
    scale, one = np.array([[[1.0, 2.0, -3.0]]]), np.array([[1.5]])
    for wants in ((True, False, False, False), (False, True, True, False), (False, False, False, True)):
        arguments, options = (scale, x, y, a, b, one, one), {"drop": 1, "wants": (*wants, False, False)}
        _, _, *with_sums = cpu.kernel_sums_with_gradients(*arguments, **options)
        _, _, *without = cpu.kernel_sums_with_gradients(*arguments, **options, want_sums=False)
        for one_way, other in zip(with_sums, without, strict=True):
            np.testing.assert_array_equal(one_way, other)


@pytest.mark.parametrize("function", [gkfast.mmd2, gkfast.log_density])
def test_bits_do_not_depend_on_threads(rng, threads, function):
    x, y = pair(rng, 1100, 900, 12)
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append(function(x, y, LADDERS["many"], by_bandwidth=True))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("precision", [None, "highest"])
def test_log_density_is_that_of_each_bandwidth(rng, library, numpy_of, sigma, leave_one_out, weighted, precision):
    x, data = pair(rng, 300, 300, 9)
    a = rng.uniform(size=300).astype(np.float32) if weighted else None
    options = {"leave_one_out": leave_one_out, "data_weights": a}
    wide = {"leave_one_out": leave_one_out, "data_weights": None if a is None else a.astype(np.float64)}
    options["data_weights"] = library(a)
    found = gkfast.log_density(library(x), library(data), sigma, **options, by_bandwidth=True, precision=precision)
    for k, s in enumerate(sigma):
        exact = gkfast.log_density(x.astype(np.float64), data.astype(np.float64), s, **wide, backend="reference")
        # see gkfast.log_density
        exponents = (((x[:, None].astype(np.float64) - data) ** 2).sum(-1) / (2 * s * s)).mean()
        bound = 3e-6 * (1 + exponents + abs(exact)) if precision is None else 2e-7 * (1 + abs(exact))
        assert (abs(numpy_of(found)[:, k] - exact) <= bound).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_of_the_data_of_all_sizes(rng, dtype):
    x, data = pair(rng, 40, 600, 3, np.float64)
    x[0], data[:, 0] = 30, data[:, 0] * 9
    sizes = {
        "level": rng.uniform(1e-3, 1, 600),
        "some without": np.where(np.arange(600) % 3, 1.0, 0.0),
        "some tiny": np.where(np.arange(600) % 3, 1.0, 1e-30),
        "but one": np.where(np.arange(600) == 411, 1.0, 0.0),
    }
    for a in sizes.values():
        options = {"data_weights": a.astype(dtype), "by_bandwidth": True}
        found = gkfast.log_density(x.astype(dtype), data.astype(dtype), LADDERS["sigma x2"], **options)
        wide = {"data_weights": a.astype(dtype).astype(np.float64), "by_bandwidth": True, "backend": "reference"}
        exact = gkfast.log_density(
            *(p.astype(dtype).astype(np.float64) for p in (x, data)), LADDERS["sigma x2"], **wide
        )
        np.testing.assert_allclose(found, exact, rtol=5e-6 if dtype == np.float32 else 1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log_density_far_from_the_data(dtype):
    # exponents that float32, and that float64, hold no better than to many units
    x, data = np.array([[0.0]], dtype), np.array([[1e4], [2e4]], dtype)
    sigma = [0.01, 0.02, 0.04, 0.07, 1e-6]
    found = gkfast.log_density(x, data, sigma, by_bandwidth=True, precision="highest")[0]
    np.testing.assert_allclose(found, -(1e4**2) / (2 * np.array(sigma) ** 2), rtol=1e-5)
    np.testing.assert_allclose(gkfast.log_density(x, data, sigma, by_bandwidth=True)[0], found, rtol=3e-6)


def test_a_mixture_is_made_of_them(rng):
    x, data = pair(rng, 70, 80, 4, np.float64)
    each = gkfast.log_density(x, data, LADDERS["many"], by_bandwidth=True)
    weights = rng.uniform(0.1, 1, size=each.shape[-1])
    mixture = np.log((np.exp(each) * weights).sum(-1) / weights.sum())
    np.testing.assert_allclose(gkfast.log_density(x, data, LADDERS["many"], weights=weights), mixture, rtol=1e-12)


def test_a_bandwidth_is_chosen_by_leave_one_out(rng):
    x = rng.normal(size=(400, 2))
    sigmas = np.geomspace(0.05, 5, 9)
    scores = gkfast.log_density(x, x, sigmas, leave_one_out=True, by_bandwidth=True).mean(0)
    assert scores.shape == (9,)
    assert 0.15 < sigmas[scores.argmax()] < 0.6


@pytest.mark.parametrize("signs", ["positive", "negative", "mixed", "some zero", "all zero"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_densities_for_factors_of_any_sign(rng, signs, dtype):
    x, data = (torch.from_numpy(p).to(dtype).requires_grad_() for p in pair(rng, 30, 40, 6))
    a = torch.from_numpy(rng.uniform(size=40)).to(dtype).requires_grad_()
    width = torch.tensor(LADDERS["others"], dtype=torch.float64, requires_grad=True)
    factors = torch.from_numpy(rng.normal(size=(30, 4))).to(dtype)
    factors = {"positive": factors.abs(), "negative": -factors.abs(), "mixed": factors}.get(signs, factors.relu())
    factors = factors * (signs != "all zero")

    def gradients(**options):
        inputs = x, data, a, width
        values = gkfast.log_density(x, data, width, data_weights=a, by_bandwidth=True, **options)
        return torch.autograd.grad(values, inputs, factors.to(values.dtype))

    for ours, exact in zip(gradients(), gradients(backend="reference"), strict=True):
        assert (ours.double() - exact.double()).norm() <= (1e-5 if dtype == torch.float32 else 1e-11) * exact.norm()


@pytest.mark.parametrize("function", [gkfast.mmd2, gkfast.log_density])
def test_of_nothing(function, library, numpy_of):
    x, y = np.zeros((0, 4, 3)), np.zeros((0, 5, 3))
    found = numpy_of(function(library(x), library(y), [1.0, 2.0], by_bandwidth=True))
    assert found.shape == ((0, 2) if function is gkfast.mmd2 else (0, 4, 2))
    if function is gkfast.log_density:
        assert numpy_of(function(library(x[0:0, 0]), library(np.ones((5, 3))), [1.0], by_bandwidth=True)).shape == (
            0,
            1,
        )
    # no coordinates: all points are one
    flat = numpy_of(function(library(np.zeros((4, 0))), library(np.zeros((5, 0))), [1.0, 2.0], by_bandwidth=True))
    assert not flat.any()


@pytest.mark.parametrize("function", [gkfast.mmd2, gkfast.log_density])
def test_bad_input(function):
    x = np.zeros((4, 2))
    for value in (1, None, "yes", np.ones(2)):
        with pytest.raises(TypeError, match=r"by_bandwidth must be True or False, got .*; pass a bool"):
            function(x, x, [1.0], by_bandwidth=value)
    with pytest.raises(ValueError, match=r"weights must be None with by_bandwidth, got a list; leave them out"):
        gkfast.log_density(x, x, [1.0, 2.0], weights=[1.0, 1.0], by_bandwidth=True)
