"""Random calls of every public name (see fuzz.py), and what they found, each shrunk to a small call.

`pytest tests/test_fuzz.py --fuzz 13000` makes more of them, `--fuzz-seed 17` one.
"""

import math
import warnings

import fuzz
import numpy as np
import pytest
import torch

import gkfast
import gkfast.distributed
import gkfast.nn

D = torch.float64
NAN, INF = math.nan, math.inf
BLOCK = 100


def pytest_generate_tests(metafunc):
    if "seeds" in metafunc.fixturenames:
        only, count = (metafunc.config.getoption(name) for name in ("fuzz_seed", "fuzz"))
        blocks = [range(k, min(k + BLOCK, count)) for k in range(0, count, BLOCK)] if only is None else [[only]]
        metafunc.parametrize("seeds", blocks, ids=[f"{b[0]}-{b[-1]}" for b in blocks])


def test_random_calls(seeds, tolerance):
    found = fuzz.failures(seeds, tolerance)
    lines = [f"{seed}: {call}\n    {wrong}" for seed, call, wrong in found]
    assert not found, f"{len(found)} of {len(seeds)}; python tests/fuzz.py SEED shows one\n" + "\n".join(lines)


def test_calls_are_their_seeds():
    for seed in range(20):
        assert str(fuzz.drawn(seed)) == str(fuzz.drawn(seed))


def test_about_half_of_the_calls_are_valid():
    calls = [fuzz.drawn(seed) for seed in range(1000)]
    assert 400 < sum(not call.broken for call in calls) < 600
    assert {call.name for call in calls} == set(fuzz.POINTS)
    assert set(fuzz.PUBLIC) < set(fuzz.POINTS)


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("value", lambda f: lambda *a, **k: f(*a, **k) + 1e-5),
        ("error from inside", lambda f: lambda *a, **k: f(*a, **k).no_such_thing),
        ("accepted in silence", lambda f: lambda x, *a, **k: np.ones(1)),
        ("shape", lambda f: lambda *a, **k: f(*a, **k)[..., None]),
        ("warning", lambda f: lambda *a, **k: warnings.warn("by the way", stacklevel=1) or f(*a, **k)),
    ],
)
def test_faults_are_found(kind, spoil, monkeypatch, tolerance):
    function = gkfast.rbf
    seeds = [seed for seed in range(400) if fuzz.drawn(seed).name == "rbf"]
    assert not fuzz.failures(seeds, tolerance)
    monkeypatch.setattr(gkfast, "rbf", spoil(function))
    assert any(wrong.startswith(kind) for *_, wrong in fuzz.failures(seeds, tolerance))


def test_a_wrong_gradient_is_found(monkeypatch, tolerance):
    function = gkfast.rbf

    def with_another_gradient(x, *arguments, **options):
        k = function(x, *arguments, **options)
        return k + 1e-3 * (x - x.detach()).sum() if isinstance(x, torch.Tensor) and x.requires_grad else k

    seeds = [seed for seed in range(400) if fuzz.drawn(seed).name == "rbf"]
    monkeypatch.setattr(gkfast, "rbf", with_another_gradient)
    assert any(wrong.startswith("gradient") for *_, wrong in fuzz.failures(seeds, tolerance))


# ---- faults that were found, and mended ----


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dims", [1, 4, 17])
def test_infinitely_far_apart_without_a_finite_coordinate(dims, dtype, library):
    x, y = np.full((1, dims), INF, dtype), np.full((1, dims), -INF, dtype)
    assert gkfast.rbf(library(x), library(y)).tolist() == [[0.0]]
    assert gkfast.witness(library(x), library(y), library(np.ones((1, dims), dtype)), 1.0).tolist() == [0.0]


def test_nan_in_one_sample_leaves_the_mean_of_the_other(library):
    x, y = np.array([[NAN], [0.0]]), np.array([[0.0], [2.0]])
    for estimator, within in (("biased", (1 + math.exp(-2)) / 2), ("unbiased", math.exp(-2))):
        means = gkfast.kernel_means(library(x), library(y), 1.0, estimator=estimator)
        assert math.isnan(means.xx)
        assert math.isnan(means.xy)
        assert float(means.yy) == pytest.approx(within, abs=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("sigma", [0.25, 0.1])
def test_the_score_far_from_the_data_has_a_gradient(dtype, sigma):
    """Of one datum score = (data - x) / sigma^2: its derivative is -1 / sigma^2 at any distance."""
    x = torch.tensor([[80.0], [-3.0]], dtype=dtype, requires_grad=True)
    score = gkfast.score(x, torch.tensor([[99.0]], dtype=dtype), sigma)
    (gradient,) = torch.autograd.grad(score.sum(), x)
    np.testing.assert_allclose(gradient.numpy(), -1 / sigma**2, rtol=1e-5)


@pytest.mark.xfail(reason="the terms of the second derivative are rounded to float32 before they cancel")
def test_the_log_density_far_from_the_data_has_a_second_derivative():
    x = torch.tensor([[-3.0]], requires_grad=True)
    value = gkfast.log_density(x, torch.tensor([[99.0]]), 0.1)
    (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    assert torch.autograd.grad(gradient.sum(), x)[0].item() == pytest.approx(-100, rel=1e-5)


def test_a_row_of_weight_0_near_x_has_no_part_in_its_score():
    x, data = torch.tensor([[0.0]], dtype=D, requires_grad=True), torch.tensor([[0.1], [50.0]], dtype=D)
    a = torch.tensor([0.0, 1.0], dtype=D)
    # the nearer row is beyond exp(1023 log 2) times the density
    for sigma in (0.1, [0.1, 0.05]):
        score = gkfast.score(x, data, sigma, data_weights=a)
        np.testing.assert_allclose(score.item(), 50 / 0.1**2, rtol=1e-12)
        (gradient,) = torch.autograd.grad(score.sum(), x)
        np.testing.assert_allclose(gradient.item(), -1 / 0.1**2, rtol=1e-5)


@pytest.mark.parametrize("batch", [(0,), (2, 0)])
@pytest.mark.parametrize("variance", ["unbiased", "biased"])
def test_the_variance_of_no_problems(batch, variance, library):
    x = library(np.zeros((*batch, 4, 2)))
    for result in gkfast.mmd2_and_variance(x, x, [1.0, 2.0], variance=variance):
        assert tuple(result.shape) == batch


@pytest.mark.parametrize("scale", [1e-306, 1e-200, 1e200, 1e300])
def test_bandwidths_whose_squares_leave_the_range(scale, rng, library):
    """MMD^2, its variance and the p-value do not change where data and bandwidths are scaled."""
    x, y = rng.normal(size=(5, 3)), rng.normal(size=(6, 3)) + 1
    unit = 2.0 ** round(math.log2(scale))
    near = [1.0, 2.5]
    far = [unit * s for s in near]
    for function in (
        gkfast.mmd2,
        lambda x, y, s: gkfast.mmd2_and_variance(x, y, s).mmd2,
        lambda x, y, s: gkfast.mmd2_and_variance(x, y, s).variance,
        lambda x, y, s: gkfast.mmd_test(x, y, s, permutations=50, seed=0).p_value,
        lambda x, y, s: gkfast.witness(x, x, y, s),
    ):
        ours, truth = function(library(unit * x), library(unit * y), far), function(library(x), library(y), near)
        np.testing.assert_allclose(np.asarray(ours), np.asarray(truth), rtol=1e-10)


def test_the_gradient_of_nothing_to_a_tiny_bandwidth():
    sigma = torch.tensor(1e-307, dtype=D, requires_grad=True)
    none = torch.zeros(0, 1, dtype=D)
    value = gkfast.rbf_matmul(none, none.new_zeros(7, 1), none.new_zeros(7), sigma)
    assert torch.autograd.grad(value.sum(), sigma)[0].item() == 0


def test_a_score_beyond_float32_is_infinite(library):
    x, data = np.array([[0.0]], np.float32), np.array([[3e37]], np.float32)
    assert gkfast.score(library(x), library(data), 0.1).tolist() == [[INF]]


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_the_statistic_of_a_small_sample_beside_a_large_one(estimator, rng, exact):
    """Its pairs are few of all, and were once the difference of the others."""
    x, y = rng.normal(size=(500, 3)).astype(np.float32), rng.normal(size=(2, 3)).astype(np.float32)
    ours = gkfast.mmd_test(x, y, 1.0, permutations=9, seed=0, estimator=estimator).statistic
    truth = exact(gkfast.mmd2, x, y, 1.0, estimator=estimator)
    assert abs(ours - truth) <= 1e-5 * max(abs(truth), float(exact(gkfast.kernel_means, x, y, 1.0).xy))


def test_losses_of_several_processes_take_tensors_of_two_axes():
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"y must have one sample per row, \(N, D\), got shape \(1, 3, 2\)"):
        gkfast.distributed.mmd2(x, x[None], 1.0)
    for call in (gkfast.distributed.gather, lambda x: gkfast.distributed.mmd2(x, x, 1.0)):
        with pytest.raises(TypeError, match="x must be a torch tensor, got ndarray"):
            call(x.numpy())


# ---- faults that were found, and are not mended: fuzz.KNOWN leaves them out of the random calls ----


def fault(reason):
    assert reason in fuzz.KNOWN
    return pytest.mark.xfail(reason=reason)


def test_numbers_beside_a_float32_tensor_keep_their_digits():
    x, y = torch.zeros(1, 1, dtype=D), torch.ones(1, 1, dtype=D)
    k = gkfast.rbf(x, y, [1.1, torch.tensor(2.0)])
    assert k.item() == pytest.approx(math.exp(-1 / (2 * 1.1**2)) + math.exp(-1 / 8), abs=1e-14)


@pytest.mark.parametrize("rule", [gkfast.mean_sigma, gkfast.median_sigma])
@pytest.mark.parametrize("size", [1e300, 1e-200])
def test_rules_at_both_ends_of_float64(rule, size):
    assert float(rule(np.array([[0.0], [size]]))) == pytest.approx(size, rel=1e-12, abs=0)


@pytest.mark.parametrize("rule", [gkfast.mean_sigma, gkfast.median_sigma])
def test_rules_of_float16_under_autocast(rule):
    with torch.autocast("cpu", torch.bfloat16):
        assert rule(torch.tensor([[0.0], [2.0]], dtype=torch.float16)).item() == 2


def test_halves_of_which_one_is_on_meta():
    x = torch.zeros(2, 1, dtype=torch.float16)
    with pytest.raises(ValueError, match="must be on the device of x"):
        gkfast.mmd2(x, x.to("meta"), 1.0)


@pytest.mark.parametrize(
    ("option", "value"),
    [("precision", ["high"]), ("precision", np.array(["high", "highest"])), ("backend", np.array(["cpu", "gpu"]))],
    ids=["list", "array", "backend"],
)
def test_options_that_are_no_strings(option, value):
    x = torch.zeros(2, 1)
    with pytest.raises(ValueError, match=f"{option} must be"):
        gkfast.rbf(x, x, **{option: value})


def test_estimators_that_are_no_strings():
    x = np.zeros((2, 1))
    with pytest.raises(ValueError, match="estimator must be"):
        gkfast.mmd2(x, x, 1.0, estimator=np.array(["biased", "linear"]))


@pytest.mark.parametrize("value", ["no", None, torch.ones(2)], ids=["string", "None", "tensor"])
@pytest.mark.parametrize("backend", [None, "reference"])
def test_leave_one_out_that_is_no_switch(value, backend):
    x = np.zeros((2, 1))
    with pytest.raises(TypeError, match="leave_one_out must be True or False"):
        gkfast.log_density(x, x, 1.0, leave_one_out=value, backend=backend)


def test_the_literal_term_of_halves_is_float32():
    x = torch.zeros(2, 1, dtype=torch.float16)
    assert gkfast.nn.ArticleRegularizer(form="literal")(x, x).dtype == torch.float32


def test_a_module_of_as_many_bandwidths_as_problems():
    x = torch.zeros(2, 3, 1)
    assert gkfast.nn.RBF([1.0, 2.0])(x).tolist() == torch.full((2, 3, 3), 2.0).tolist()


def test_the_gradient_of_no_medians():
    x = torch.zeros(0, 3, 1, requires_grad=True)
    assert torch.autograd.grad(gkfast.median_sigma(x).sum(), x)[0].shape == x.shape


@fault("log densities near the end of float32")
def test_log_densities_near_the_end_of_float32():
    x, data = np.array([[1.2e20]], np.float32), np.array([[0.0]], np.float32)
    assert gkfast.log_density(x, data, 5.0).tolist() == pytest.approx([-2.88e38], rel=1e-5)


@fault("the reference of what is not finite")
@pytest.mark.parametrize(
    "call",
    [
        lambda by: gkfast.mmd2(np.array([[INF], [0.0]]), np.array([[1.0], [0.0]]), 1.0, backend=by),
        lambda by: gkfast.rbf(np.array([[0.0]]), np.array([[1e300]]), 1e300, backend=by),
        lambda by: gkfast.score(np.array([[0.0]]), np.array([[1.0], [INF]]), 1.0, backend=by),
    ],
    ids=["left out", "range", "infinitely far"],
)
def test_the_reference_of_what_is_not_finite(call):
    np.testing.assert_allclose(call("reference"), call("cpu"), rtol=1e-12)
