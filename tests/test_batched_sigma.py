"""Bandwidths and kernel weights of shape (..., S): one problem of a batch may have others than the next."""

import numpy as np
import pytest
import torch
from functions import FUNCTIONS, WITHOUT_GRADIENT
from torch.autograd import gradcheck, gradgradcheck

import gkfast
from gkfast import arguments

D = torch.float64
# torch loads its own forward-mode formulas by what it deprecates
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning",
    "ignore:Please use `torch.vmap` instead of `torch._vmap_internals.vmap`:FutureWarning",
)


DIFFERENTIABLE = [name for name in FUNCTIONS if name not in WITHOUT_GRADIENT]
# (batch of x, batch of y, shape of sigma)
SHAPES = [
    ((3,), (3,), (3, 1)),
    ((3,), (3,), (3, 2)),
    ((3,), (), (3, 2)),
    ((3,), (3,), (1, 3)),
    ((2, 3), (3,), (3, 2)),
    ((2, 3), (2, 3), (2, 1, 2)),
    ((2, 3), (2, 3), (2, 3, 1)),
    ((3,), (3,), (1, 1, 3, 2)),
    ((), (), (1, 2)),
    ((), (), (1, 1)),
    ((), (), (1,)),
]


def problem(x_batch, y_batch, shape, seed=4):
    generator = torch.Generator().manual_seed(seed)
    x, y = (
        torch.randn((*batch, rows, 2), dtype=D, generator=generator) for batch, rows in ((x_batch, 4), (y_batch, 5))
    )
    s, w = (torch.rand(shape, dtype=D, generator=generator) + least for least in (0.5, 0.2))
    return x, y, s, w


def one_by_one(function, x, y, s, w):
    """The problems of a batch, each alone, with its S bandwidths as a vector."""
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    w = torch.ones_like(s) if w is None else w
    s, w = (t.reshape(t.shape[max(0, t.ndim - 1 - len(batch)) :]).expand(*batch, t.shape[-1]) for t in (s, w))
    x, y = (t.expand(*batch, *t.shape[-2:]).reshape(-1, *t.shape[-2:]) for t in (x, y))
    results = [function(*each) for each in zip(x, y, s.reshape(-1, s.shape[-1]), w.reshape(-1, w.shape[-1]))]  # noqa: B905
    return torch.stack(results).reshape((*batch, *results[0].shape))


@pytest.fixture(params=FUNCTIONS)
def name(request):
    return request.param


@pytest.mark.parametrize(("x_batch", "y_batch", "shape"), SHAPES)
def test_values_are_those_of_each_problem_alone(name, x_batch, y_batch, shape):
    x, y, s, w = problem(x_batch, y_batch, shape)
    function = FUNCTIONS[name]
    truth = one_by_one(lambda *a: function(*a, backend="reference"), x, y, s, w)
    for backend in (None, "reference"):
        for numbers in ((s, w), (s.numpy(), w.numpy())):
            ours = function(x, y, *numbers, backend=backend)
            assert ours.shape == truth.shape
            torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-13)
            ours = function(x.numpy(), y.numpy(), *numbers, backend=backend)
            np.testing.assert_allclose(ours, truth.numpy(), rtol=1e-12, atol=1e-13)


def test_variance_with_weights_of_each_problem():
    x, y, s, w = problem((3,), (3,), (3, 2))
    function = FUNCTIONS["mmd2_and_variance"]
    torch.testing.assert_close(function(x, y, s, w), one_by_one(function, x, y, s, w), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
@pytest.mark.parametrize("shape", [(), (1,), (2,), (1, 2), (3, 1), (3, 2), (1, 3, 2)])
def test_gradients_have_the_shape_given(name, shape):
    x, y, s, w = problem((3,), (3,), shape)
    s, w = s.requires_grad_(), w.requires_grad_()
    function = FUNCTIONS[name]
    # gradcheck sees that they have the shape, and compares with differences of values
    assert gradcheck(lambda *t: function(x, y, *t), (s, w))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rbf", "rbf_matmul", "log_density", "mmd2", "mmd2, linear", "witness"])
def test_all_gradients_and_second_ones(name):
    x, y, s, w = (t.requires_grad_() for t in problem((2,), (2,), (2, 3)))
    function = FUNCTIONS[name]
    assert gradcheck(function, (x, y, s, w), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, (x, y, s, w))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_vmap_is_the_batch(name):
    x, y, s, w = problem((3,), (3,), (3, 2))
    function = FUNCTIONS[name]
    ours = torch.func.vmap(function)(x, y, s, w)
    torch.testing.assert_close(ours, function(x, y, s, w), rtol=1e-13, atol=1e-13)
    # more of them over bandwidths alone
    many = torch.stack([s, 2 * s, 3 * s])
    ours = torch.func.vmap(lambda s: function(x, y, s, w))(many)
    torch.testing.assert_close(ours, torch.stack([function(x, y, one, w) for one in many]), rtol=1e-13, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["rbf", "rbf_matmul", "log_density", "score", "kernel_means", "mmd2, linear", "witness"]
)
def test_compiled_without_graph_breaks(name):
    torch._dynamo.reset()
    x, y, s, w = problem((3,), (3,), (3, 2))
    s, w = s.requires_grad_(), w.requires_grad_()
    function = FUNCTIONS[name]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    value = function(x, y, s, w)
    torch.testing.assert_close(compiled(x, y, s, w), value, rtol=0, atol=0)
    ours = torch.autograd.grad(compiled(x, y, s, w).square().sum(), (s, w))
    torch.testing.assert_close(ours, torch.autograd.grad(value.square().sum(), (s, w)), rtol=1e-13, atol=1e-13)


def test_gradients_to_points_with_bandwidths_in_arrays():
    # arrays cannot have gradients, so plain tensors skip the operators
    x, y, s, w = problem((3,), (3,), (3, 2))
    for count in (1, 2):
        sigmas, weights = s[:, :count].numpy(), w[:, :count].numpy()
        for call in (
            lambda x, y, s, w: gkfast.rbf(x, y, s, weights=w).square().sum(),
            lambda x, y, s, w: gkfast.mmd2(x, y, s, weights=w).sum(),
        ):
            leaves = [t.clone().requires_grad_() for t in (x, y)]
            ours = torch.autograd.grad(call(*leaves, sigmas, weights), leaves)
            parts = [t.clone().requires_grad_() for t in (x, y)]
            truth = sum(call(parts[0][b], parts[1][b], list(sigmas[b]), list(weights[b])) for b in range(3))
            torch.testing.assert_close(ours, torch.autograd.grad(truth, parts), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("rule", [gkfast.median_sigma, gkfast.mean_sigma])
def test_bandwidths_found_in_each_problem(rng, library, numpy_of, rule):
    x, y = rng.normal(size=(3, 6, 2)), rng.normal(size=(3, 7, 2)) * np.array([1.0, 2.0, 3.0])[:, None, None]
    found = rule(library(x), library(y))
    assert found.shape == (3,)
    with pytest.raises(ValueError, match=r"sigma must be .*; write sigma\[..., None\] for one bandwidth for each"):
        gkfast.mmd2(library(x), library(y), found)
    for sigma, of_one in (
        (found[..., None], lambda s: float(s)),
        ([found, 2 * found], lambda s: [float(s), 2 * float(s)]),
        ([found / 2, 1.5], lambda s: [float(s) / 2, 1.5]),
    ):
        ours = numpy_of(gkfast.mmd2(library(x), library(y), sigma))
        for b in range(3):
            assert ours[b] == pytest.approx(float(gkfast.mmd2(x[b], y[b], of_one(rule(x[b], y[b])))), abs=1e-13)


AMBIGUOUS = [((3,), (3,)), ((3, 3), (3, 3)), ((1, 3), (1, 3))]


@pytest.mark.parametrize(("batch", "shape"), AMBIGUOUS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_ambiguous_shapes_are_refused(name, batch, shape):
    x, y, s, _ = problem(batch, batch, shape)
    function = FUNCTIONS[name]
    for numbers in (s, s.numpy()):
        with pytest.raises(
            ValueError, match=r"sigma must be .*write sigma\[..., None\] .* sigma\[None\] or a list for 3"
        ):
            function(x, y, numbers, None)
        # which takes none
        if name == "log_density, by bandwidth":
            continue
        with pytest.raises(ValueError, match=r"weights must be .*write weights\[..., None\] for one weight"):
            function(x, y, [1.0, 2.0, 3.0], numbers)
    # both spellings, and both meanings
    one_each, summed = function(x, y, s[..., None], None), function(x, y, s[None], None)
    if name.endswith("by bandwidth"):
        assert (one_each.shape[-1], summed.shape[-1]) == (1, s.shape[-1])
    else:
        assert one_each.shape == summed.shape
        assert not torch.equal(one_each, summed)
    if len(shape) == 1:
        assert torch.equal(summed, function(x, y, s.tolist(), None))


@pytest.mark.parametrize(
    ("batch", "shape"), [((), (2, 1)), ((3,), (2, 1)), ((3,), (2, 3, 1)), ((1,), (3, 1)), ((2, 3), (2, 2))]
)
def test_a_larger_batch_of_bandwidths_is_refused(name, batch, shape):
    x, y, s, _ = problem(batch, batch, shape)
    message = r"sigma must have leading dimensions that broadcast to \(.*\), the batch's, got \(2,|got \(3,"
    for numbers in (s, s.numpy()):
        with pytest.raises(ValueError, match=message):
            FUNCTIONS[name](x, y, numbers, None)
    # an entry of a list likewise
    if len(shape) == 2:
        with pytest.raises(ValueError, match=message):
            FUNCTIONS[name](x, y, [s[:, 0], 1.0], None)


def test_empty_batch():
    x, y = torch.zeros(0, 4, 2, dtype=D), torch.zeros(0, 5, 2, dtype=D)
    sigma = gkfast.median_sigma(x, y)
    assert sigma.shape == (0,)
    for name, function in FUNCTIONS.items():
        if name not in ("mmd_test", "mmd2_and_variance"):
            assert function(x, y, sigma[..., None], None).shape[0] == 0


@pytest.mark.parametrize("bandwidths", [torch.bfloat16, torch.float16, torch.float32])
def test_gradients_have_the_dtype_given(bandwidths):
    x, y, s, _ = problem((3,), (3,), (3, 2))
    s = s.to(bandwidths).requires_grad_()
    g = torch.autograd.grad(gkfast.mmd2(x, y, s).sum(), s)[0]
    wide = s.detach().double().requires_grad_()
    truth = torch.autograd.grad(gkfast.mmd2(x, y, wide).sum(), wide)[0]
    assert g.dtype == bandwidths
    torch.testing.assert_close(g.double(), truth, rtol=2 * torch.finfo(bandwidths).eps, atol=0)


def test_equal_bandwidths_share_one_cached_call():
    x, y = torch.randn(11, 3), torch.randn(12, 3)
    for call in (gkfast.rbf, gkfast.mmd2):
        for library in (lambda points: points, torch.Tensor.numpy):
            arguments._kept.clear()

            def calls(call=call, library=library):
                for sigma in ([1.0, 2.0], (1, 2), [1, 2.0], range(1, 3), [np.float64(1), np.int32(2)]):
                    call(library(x), library(y), sigma)
                for sigma in (2.0, 2, np.float32(2), np.int64(2), np.array(2.0), np.array(2)):
                    call(library(x), library(y), sigma, weights=np.float64(0.5))

            calls()
            assert len({*arguments._kept.values()}) == 2
            kept = len(arguments._kept)
            calls()
            # checked once
            assert len(arguments._kept) == kept == 11
            with pytest.raises(TypeError, match="sigma must be a number or a sequence of numbers, got True"):
                call(library(x), library(y), True)
