"""Calls on ordinary CPU tensors skip the dispatcher: the same results, and all that autograd offers."""

import gc
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import gkfast
from gkfast.ops.operator import Operator

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
SIGMA = [0.7, 1.5]

WAYS = {
    "rbf of one bandwidth": lambda x, y, sigma: gkfast.rbf(x, y, sigma[1:], weights=[-0.5]),
    "rbf": lambda x, y, sigma: gkfast.rbf(x, y, sigma, weights=[1.0, 0.5]),
    "rbf of one set": lambda x, y, sigma: gkfast.rbf(x, sigma=sigma),
    "mmd2": lambda x, y, sigma: gkfast.mmd2(x, y, sigma),
    "biased mmd2": lambda x, y, sigma: gkfast.mmd2(x, y, sigma, estimator="biased", weights=[1.0, 2.0]),
    "u-statistic": lambda x, y, sigma: gkfast.mmd2(x, y, sigma, estimator="u_statistic"),
}


@pytest.fixture(params=[torch.float32, torch.float64])
def samples(request):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(3, 9, 4, generator=generator, dtype=request.param).requires_grad_() for _ in range(2)]


@pytest.fixture
def dispatched(monkeypatch):
    """The operators whose arguments were brought to the form of the dispatcher."""
    names = []
    usual = Operator.flat
    monkeypatch.setattr(Operator, "flat", lambda self, *given: names.append(self.name) or usual(self, *given))
    return names


class Watch(TorchDispatchMode):
    """While a mode watches, every operator goes by the dispatcher."""

    def __torch_dispatch__(self, function, kinds, arguments=(), keywords=None):
        return function(*arguments, **(keywords or {}))


def by_dispatcher(call, x, y):
    with Watch():
        return call(x, y, SIGMA)


def gradients(value, x, y, **options):
    return torch.autograd.grad(value, (x, y), torch.ones_like(value) * 1.5, allow_unused=True, **options)


@pytest.mark.parametrize("call", WAYS.values(), ids=WAYS)
def test_values_and_gradients_of_the_dispatcher(samples, dispatched, call):
    x, y = samples
    value = call(x, y, SIGMA)
    assert not dispatched
    expected = by_dispatcher(call, x, y)
    assert dispatched
    assert value.dtype == x.dtype
    assert torch.equal(value, expected)
    for ours, theirs in zip(gradients(value, x, y), gradients(expected, x, y), strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    with torch.no_grad():
        dispatched.clear()
        assert torch.equal(call(x, y, SIGMA), value)
        assert not dispatched
    half = call(x, y.detach(), SIGMA)
    expected = by_dispatcher(call, x, y.detach())
    torch.testing.assert_close(torch.autograd.grad(half.sum(), x), torch.autograd.grad(expected.sum(), x))


@pytest.mark.slow
@pytest.mark.parametrize("samples", [torch.float64], indirect=True)
@pytest.mark.parametrize("call", WAYS.values(), ids=WAYS)
def test_higher_derivatives(samples, call):
    x, y = samples
    assert torch.autograd.gradcheck(lambda x, y: call(x, y, SIGMA), (x, y))
    assert torch.autograd.gradgradcheck(lambda x, y: call(x, y, SIGMA), (x, y))
    row = x[0, 0].detach()

    def of_row(row):
        return call(torch.cat([row[None], x[0, 1:].detach()]), y[0].detach(), SIGMA).square().sum()

    one_by_one = torch.autograd.functional.hessian(of_row, row)
    together = torch.autograd.functional.hessian(of_row, row, vectorize=True)
    torch.testing.assert_close(one_by_one, together)
    assert one_by_one.abs().max() > 0


def test_batched_gradients(samples):
    x, y = samples
    value = gkfast.mmd2(x, y, SIGMA)
    each = torch.eye(3, dtype=x.dtype)
    found = torch.autograd.grad(value, x, each, is_grads_batched=True, retain_graph=True)[0]
    expected = torch.stack([torch.autograd.grad(value, x, g, retain_graph=True)[0] for g in each])
    torch.testing.assert_close(found, expected)


def test_a_graph_is_used_once_unless_it_is_kept(samples):
    x, y = samples
    value = gkfast.mmd2(x, y, SIGMA).sum()
    first = torch.autograd.grad(value, x, retain_graph=True)[0].clone()
    assert torch.equal(torch.autograd.grad(value, x)[0], first)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(value, x)


@pytest.mark.parametrize("call", WAYS.values(), ids=WAYS)
def test_a_change_in_place_is_noticed(samples, call):
    x, y = samples
    moved = x * 1
    value = call(moved, y, SIGMA)
    with torch.no_grad():
        moved.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.sum().backward()


POINTS = {
    "of few coordinates": (40, 3, 1.0, 0.0),
    "of many": (200, 64, 1.0, 0.0),
    "off the origin": (200, 64, 1.0, 30.0),
    "with near pairs": (200, 64, 1e-3, 0.0),
    "equal": (200, 64, 0.0, 0.0),
}


@pytest.mark.parametrize("sigma", [0.3, 1.0, 100.0])
@pytest.mark.parametrize(("rows", "dims", "apart", "offset"), POINTS.values(), ids=POINTS)
def test_gradients_from_a_stored_kernel_matrix(rows, dims, apart, offset, sigma):
    # apart is the distance of y from x; of 1 they are two samples
    generator = torch.Generator().manual_seed(5)
    x, other = (torch.randn(rows, dims, generator=generator) + offset for _ in range(2))
    y = other if apart == 1.0 else x + apart * (other - offset)
    g = torch.randn(rows, rows, generator=generator)
    x, y = x.requires_grad_(), y.requires_grad_()
    for points in ((x, y), (x,)):
        exact = [t.detach().double().requires_grad_() for t in points]
        value = gkfast.rbf(*exact, sigma=sigma * dims**0.5, weights=3.0, backend="reference")
        truth = torch.autograd.grad(value, exact, g.double())
        for changed in (False, True):
            k = gkfast.rbf(*points, sigma=sigma * dims**0.5, weights=3.0)
            if changed:
                # backward then makes the kernels anew
                with torch.no_grad():
                    k.mul_(0)
            for ours, theirs in zip(torch.autograd.grad(k, points, g), truth, strict=True):
                assert (ours.double() - theirs).norm() <= 2e-6 * theirs.norm()


def test_a_stored_kernel_matrix_is_read():
    # or the test above compares kernels made anew with themselves
    from gkfast.kernels.cpu.rbf import rbf_backward

    generator = torch.Generator().manual_seed(6)
    x, y = (torch.randn(1, 200, 64, generator=generator).numpy() for _ in range(2))
    g = torch.randn(1, 200, 200, generator=generator).numpy()
    sigma = torch.full((1, 1), 8.0).double().numpy()
    arguments, wants = (g, x, y, sigma, sigma), (True, True, False, False)
    assert all(not d.any() for d in rbf_backward(*arguments, wants=wants, k=0 * g)[:2])
    # not where their rounding could be felt
    narrow = (g, x, y, sigma / 8, sigma)
    assert all(d.any() for d in rbf_backward(*narrow, wants=wants, k=0 * g)[:2])


def test_a_result_may_be_changed_in_place(samples):
    x, y = samples
    truth = torch.autograd.grad(gkfast.rbf(x, y, 1.0), x, torch.ones(3, 9, 9, dtype=x.dtype))[0]
    k = gkfast.rbf(x, y, 1.0)
    alias = k.detach()
    alias.zero_()
    found = torch.autograd.grad(k, x, torch.ones_like(k), retain_graph=True)[0]
    torch.testing.assert_close(found, truth)
    k = gkfast.rbf(x, y, 1.0)
    k.diagonal(dim1=1, dim2=2).zero_()
    off = 1 - torch.eye(9, dtype=x.dtype)
    expected = torch.autograd.grad(gkfast.rbf(x, y, 1.0), x, off.expand(3, 9, 9))[0]
    torch.testing.assert_close(torch.autograd.grad(k.sum(), x)[0], expected)


def test_a_kernel_matrix_is_freed_after_backward(samples):
    x, y = samples
    for keep in (True, False):
        k = gkfast.rbf(x, y, 1.0)
        memory = weakref.ref(k.untyped_storage())
        loss = (2 * k).sum()
        del k
        loss.backward(retain_graph=keep)
        gc.collect()
        assert (memory() is None) != keep
        if keep:
            loss.backward()


def test_values_that_are_kept_hold_no_gradients(samples):
    # losses are often kept in a list; what backward needed must be gone
    x, y = samples
    held = []

    def pack(tensor):
        held.append(weakref.ref(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = gkfast.mmd2(x, y.detach(), SIGMA).sum()
    assert len(held) == 3  # x, y and the gradient to x
    loss.backward()
    gc.collect()
    assert held[-1]() is None
    assert loss.grad_fn is not None


def test_activation_checkpoints(samples):
    x, y = samples

    def loss(x, y):
        return gkfast.rbf(x.sin(), y, SIGMA).mean() + gkfast.mmd2(x.sin(), y, SIGMA).sum()

    expected = torch.autograd.grad(loss(x, y), (x, y))
    found = torch.autograd.grad(checkpoint(loss, x, y, use_reentrant=False), (x, y))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_calls_that_others_must_see_go_by_the_dispatcher(samples, dispatched):
    x, y = samples
    one = torch.ones(3, 9, 4, dtype=x.dtype)
    torch.func.grad(lambda x: gkfast.mmd2(x, y, 1.0).sum())(x)
    assert dispatched
    dispatched.clear()
    with torch.autograd.forward_ad.dual_level():
        gkfast.mmd2(torch.autograd.forward_ad.make_dual(x.detach(), one), y, 1.0)
    assert dispatched


def test_calls_of_every_form_agree_with_the_reference(samples, dispatched):
    x, y = samples
    one = torch.ones(3, 9, dtype=x.dtype)
    learned = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    calls = [
        lambda **by: gkfast.rbf(x.half(), y.half(), 1.0, **by).float(),
        lambda **by: gkfast.rbf(x, y[:1], 1.0, **by),
        lambda **by: gkfast.rbf(x, y, [1.0, torch.tensor(2.0)], **by),
        lambda **by: gkfast.rbf(x, y, 1.0, weights=learned, **by),
        lambda **by: gkfast.rbf(x.detach(), y.detach(), 1.0, out=torch.empty(3, 9, 9, dtype=x.dtype), **by),
        lambda **by: gkfast.mmd2(x, y, 1.0, x_weights=one, **by),
        lambda **by: gkfast.mmd2(x, y, 1.0, estimator="linear", **by),
    ]
    for k, call in enumerate(calls):
        tolerance = 2e-3 if k == 0 else 2e-6
        torch.testing.assert_close(call(), call(backend="reference"), rtol=tolerance, atol=tolerance)
    # an operator that writes into a tensor is the dispatcher's, and so are sums whose coefficients are tensors
    assert set(dispatched) == {"rbf_out", "mmd2"}
    with pytest.raises(TypeError, match="same library"):
        gkfast.rbf(x, y.detach().numpy(), 1.0)
    with pytest.raises(ValueError, match="dtype of x"):
        gkfast.rbf(x, y.bfloat16(), 1.0)


def test_errors_are_those_of_the_operators(samples):
    x, y = samples
    with pytest.raises(TypeError, match=r"x must have a floating dtype .*, got int64; .*x.float\(\)"):
        gkfast.rbf(x.long(), y.long(), 1.0)
    with pytest.raises(ValueError, match="as many coordinates as x"):
        gkfast.mmd2(x, y[..., :2], 1.0)
    with pytest.raises(ValueError, match="sigma must be positive"):
        gkfast.mmd2(x, y, -1.0)
    with pytest.raises(ValueError, match="estimator must be one of"):
        gkfast.mmd2(x, y, 1.0, estimator="best")
