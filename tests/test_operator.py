"""A new operator is a page: this file declares one, and everything that follows from the declaration is checked."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from gkfast.ops.operator import Gradient, Operator

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")


def paired_kernel(x, y, sigma, weights):
    """sum_s w_s exp(-|x_i - y_i|^2 / (2 sigma_s^2)), (B, N)."""
    squares = ((x - y) ** 2).sum(-1)
    return (weights[:, None] * np.exp(-squares[..., None] / (2 * sigma[:, None] ** 2))).sum(-1)


def paired_kernel_backward(g, x, y, sigma, weights, *, wants):
    """Gradients of sum_i g_i k_i to (x, y, sigma, weights)."""
    apart = x - y
    squares = (apart**2).sum(-1)
    k = np.exp(-squares[..., None] / (2 * sigma[:, None] ** 2))
    pull = -(g[..., None] * weights[:, None] * k / sigma[:, None] ** 2).sum(-1)[..., None] * apart
    of_sigma = (g[..., None] * weights[:, None] * k * squares[..., None] / sigma[:, None] ** 3).sum(1)
    found = (pull, -pull, of_sigma, (g[..., None] * k).sum(1))
    return [d if want else None for d, want in zip(found, wants, strict=True)]


class PairedKernel(Operator):
    """The kernel of paired rows."""

    name = "paired_kernel"
    tensors = "x: N D, y: N D, sigma: S, weights: S"
    result = "N"
    gradients = "x y sigma weights"

    def call_kernel(self, device, operands, options):
        return (paired_kernel(*operands, **options),)

    def change(self, tensors, tangents, options):
        """K' (x - y) . (ty - tx) + sum_s (tsigma_s w_s d2 / sigma_s^3 + tweights_s) k_s."""
        x, y, sigma, weights = tensors
        tx, ty, tsigma, tweights = tangents
        squares = (x - y).square().sum(-1)[..., None]
        sigma, weights = sigma[..., None, :], weights[..., None, :]
        k = torch.exp(-squares / (2 * sigma.square()))
        total = torch.zeros_like(k)
        for t, sign in ((tx, -1), (ty, 1)):
            if t is not None:
                total = total + sign * weights * k / sigma.square() * ((x - y) * t).sum(-1)[..., None]
        if tsigma is not None:
            total = total + tsigma[..., None, :] * weights * k * squares / sigma**3
        if tweights is not None:
            total = total + tweights[..., None, :] * k
        return total.sum(-1)


class PairedKernelBackward(Gradient):
    """Its gradients."""

    def call_kernel(self, device, operands, options):
        return paired_kernel_backward(*operands, **options)


@pytest.fixture(scope="module")
def operator():
    made = PairedKernel()
    made.define()
    made.differentiate()
    PairedKernelBackward(made)
    return made


def inputs(*batch):
    generator = torch.Generator().manual_seed(2)

    def leaf(*shape):
        return torch.rand(*batch, *shape, generator=generator, dtype=torch.float64).add(0.3).requires_grad_()

    return leaf(4, 3), leaf(4, 3), leaf(2), leaf(2)


def by_autograd(x, y, sigma, weights):
    squares = (x - y).square().sum(-1)[..., None]
    return (weights[..., None, :] * torch.exp(-squares / (2 * sigma[..., None, :].square()))).sum(-1)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_values_and_gradients_in_every_batch(operator, batch):
    tensors = inputs(*batch)
    value, truth = operator(*tensors), by_autograd(*tensors)
    torch.testing.assert_close(value, truth)
    g = torch.rand(value.shape, dtype=value.dtype)
    for ours, exact in zip(*(torch.autograd.grad(v, tensors, g) for v in (value, truth)), strict=True):
        torch.testing.assert_close(ours, exact)


def test_numbers_stand_for_tensors(operator):
    x, y, _, _ = inputs(3)
    one = torch.tensor([0.7, 1.5], dtype=torch.float64).expand(3, 2)
    value, truth = operator(x, y, (0.7, 1.5), (1.0, 1.0)), by_autograd(x, y, one, torch.ones_like(one))
    torch.testing.assert_close(value, truth)
    ours, exact = (torch.autograd.grad(v.square().sum(), (x, y), create_graph=True) for v in (value, truth))
    torch.testing.assert_close(ours, exact)
    second, wanted = (torch.autograd.grad(g[0].sin().sum(), (x, y)) for g in (ours, exact))
    torch.testing.assert_close(second, wanted)


def test_both_modes_of_both_orders(operator):
    assert gradcheck(
        operator, inputs(), check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    assert gradgradcheck(operator, inputs(), check_fwd_over_rev=True, check_batched_grad=True)


def test_vmap_is_the_loop(operator):
    tensors = inputs(3)
    loop = torch.stack([operator(*(t[k] for t in tensors)) for k in range(3)])
    torch.testing.assert_close(torch.func.vmap(operator)(*tensors), loop)


def test_torch_accepts_the_registration(operator):
    samples = operator.flat(inputs(2), {})
    torch.library.opcheck(torch.ops.gkfast.paired_kernel.default, samples)
    x, y, _, _ = inputs(2)
    torch.library.opcheck(torch.ops.gkfast.paired_kernel.default, operator.flat((x, y, (0.7,), (1.0,)), {}))


def test_a_compiled_graph_holds_the_operator(operator):
    torch._dynamo.reset()
    tensors = inputs()
    compiled = torch.compile(lambda *t: operator(*t).sum(), fullgraph=True, backend="aot_eager")
    ours, exact = (torch.autograd.grad(f(*tensors).sum(), tensors) for f in (compiled, by_autograd))
    torch.testing.assert_close(ours, exact)
