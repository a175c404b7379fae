"""The short way of ordinary GPU tensors: past the dispatcher, by the GPU kernels, with the CPU's answers."""

import pytest
import torch
from functions import selected

import gkfast
from gkfast import ops
from gkfast.ops import operator, torch_private

pytest.importorskip("triton", minversion="3.6", reason="no Triton on this platform")
pytestmark = pytest.mark.interpreter

FUNCTIONS = selected(
    "rbf", "rbf of x with itself", "rbf_matmul", "mmd2", "kernel_means", "log_density", "score", "witness"
)


@pytest.fixture
def on_gpu(monkeypatch):
    """Tensors here count as ordinary ones on a GPU; the names of the kernels' functions that are called."""
    from gkfast.kernels import gpu
    from gkfast.ops.operator import kernels

    called = []

    def noted(name, function):
        def call(*arguments, **options):
            called.append(name)
            return function(*arguments, **options)

        return call

    for name in gpu.__all__:
        monkeypatch.setattr(gpu, name, noted(name, getattr(gpu, name)))
    keys = frozenset(torch_private._PLAIN)

    def pretend():
        kernels.cache_clear()
        monkeypatch.setattr(torch_private, "_PLAIN", frozenset())
        monkeypatch.setattr(torch_private, "plain_of_gpu", lambda: keys)
        return called

    yield pretend
    kernels.cache_clear()


def sample(shape=(9, 3)):
    torch.manual_seed(3)
    batch, (n, dims) = shape[:-2], shape[-2:]
    # not contiguous
    x, y = (torch.randn(*batch, dims, rows).mT for rows in (n, n - 2))
    return x, y


def gradients(value, *inputs, **options):
    return torch.autograd.grad(value.sum(), inputs, allow_unused=True, materialize_grads=True, **options)


def value_and_gradients(function, x, y, sigma):
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    value = function(x, y, sigma)
    with torch.no_grad():
        alone = function(x, y, sigma)
    return value.detach(), alone, *gradients(value, x, y)


def second_derivatives(function, x, y, sigma):
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    first, _ = gradients(function(x, y, sigma), x, y, create_graph=True)
    return gradients(first.square(), x, y)


@pytest.mark.parametrize("shape", [(9, 3), (2, 7, 5), (2, 1, 6, 2)], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_answers_are_those_of_the_cpu(name, shape, on_gpu, monkeypatch):
    arguments = FUNCTIONS[name], *sample(shape), [0.8, 1.7]
    truth = *value_and_gradients(*arguments), *second_derivatives(*arguments)
    called = on_gpu()
    with monkeypatch.context() as changed:
        # a score's gradient is a second derivative, for which torch.func asks
        if name != "score":
            changed.setattr(operator.Operator, "dispatched", lambda *_: pytest.fail("not the short way"))
        found = value_and_gradients(*arguments)
    assert called
    found = *found, *second_derivatives(*arguments)
    for ours, exact in zip(found, truth, strict=True):
        assert (ours.shape, ours.dtype) == (exact.shape, exact.dtype)
        assert (ours - exact).norm() <= 1e-5 * exact.norm() + 1e-7


def test_learned_bandwidths_have_their_gradients(on_gpu):
    def gradients():
        x, y = sample()
        sigma, weights = (torch.tensor(t, dtype=torch.float64).requires_grad_() for t in ([0.8, 1.7], [0.5, 0.5]))
        value = gkfast.rbf_matmul(x, y, y, sigma, weights=weights).sum() + gkfast.mmd2(x, y, sigma, weights=weights)
        return torch.autograd.grad(value, (sigma, weights))

    truth = gradients()
    assert on_gpu() == []
    for ours, exact in zip(gradients(), truth, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-6)


def test_mmd2_and_its_gradients_are_one_call_of_the_kernels(on_gpu):
    called = on_gpu()
    x, y = (t.requires_grad_() for t in sample())
    gkfast.mmd2(x, y, 0.9).backward()
    assert called == ["kernel_sums_with_gradients"]


def test_modes_still_see_the_operators(on_gpu):
    on_gpu()
    seen = []

    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            seen.append(function.namespace)
            return function(*arguments, **(options or {}))

    with Mode():
        gkfast.rbf(*sample(), 0.9)
    assert "gkfast" in seen


def test_without_a_gpu_no_keys_are_its():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert torch_private.plain_of_gpu() == frozenset()
    assert torch_private.eager_place(()) == "cpu"
    assert ops.visible(torch.zeros(()))
