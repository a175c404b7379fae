"""The kernel matrix."""

from typing import Any

import torch
from torch import Tensor

from gkfast.ops.define import Wants, array, call, define, derive, fake, numbers, tensor, vjp, wanted


def rbf(x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor) -> Tensor:
    """The kernel matrix, (B, N, M). See gkfast.rbf."""
    return call("rbf", _Rbf, x, y, sigma, weights)


def rbf_out(x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor, out: Tensor) -> None:
    """The kernel matrix into out (B, N, M). See gkfast.rbf."""
    torch.ops.gkfast.rbf_out(x, y, sigma, weights, out)


def rbf_backward(
    g: Tensor, x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor, wants: Wants
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of sum_ij g_ij K_ij to (x, y, sigma, weights); those not wanted are empty."""
    return call("rbf_backward", _RbfBackward, g, x, y, sigma, weights, list(wants))


def _rbf_fake(x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], (x if y is None else y).shape[1])


def _rbf_cpu(x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor) -> Tensor:
    from gkfast.kernels import cpu

    return tensor(cpu.rbf(array(x), None if y is None else array(y), numbers(sigma), numbers(weights)), x)


def _rbf_gpu(x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor) -> Tensor:
    from gkfast.kernels import gpu

    return gpu.rbf(x.contiguous(), None if y is None else y.contiguous(), sigma, weights)


def _rbf_out_fake(x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor, out: Tensor) -> None:
    return None


def _rbf_out_cpu(x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor, out: Tensor) -> None:
    from gkfast.kernels import cpu

    cpu.rbf(array(x), None if y is None else array(y), numbers(sigma), numbers(weights), out.detach().numpy())


def _rbf_out_gpu(x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor, out: Tensor) -> None:
    from gkfast.kernels import gpu

    gpu.rbf(x.contiguous(), None if y is None else y.contiguous(), sigma, weights, out)


def _rbf_backward_fake(
    g: Tensor, x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor, wants: Wants
) -> tuple[Tensor, ...]:
    arguments = (x, x if y is None else y, sigma, weights)
    return tuple(fake(a, want) for a, want in zip(arguments, wants, strict=True))


def _rbf_backward_cpu(
    g: Tensor, x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor, wants: Wants
) -> tuple[Tensor, ...]:
    from gkfast.kernels import cpu

    y_array = None if y is None else array(y)
    gradients = cpu.rbf_backward(array(g), array(x), y_array, numbers(sigma), numbers(weights), wants)
    return tuple(tensor(d, like) for d, like in zip(gradients, (x, x, sigma, weights), strict=True))


def _rbf_backward_gpu(
    g: Tensor, x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor, wants: Wants
) -> tuple[Tensor, ...]:
    from gkfast.kernels import gpu

    y = None if y is None else y.contiguous()
    gradients = gpu.rbf_backward(g.contiguous(), x.contiguous(), y, sigma, weights, tuple(wants))
    likes = (x, x, sigma, weights)
    return tuple(like.new_empty(0) if d is None else d.to(like) for d, like in zip(gradients, likes, strict=True))


define("rbf(Tensor x, Tensor? y, Tensor sigma, Tensor weights) -> Tensor", _rbf_fake, _rbf_cpu, _rbf_gpu)
define(
    "rbf_out(Tensor x, Tensor? y, Tensor sigma, Tensor weights, Tensor(a!) out) -> ()",
    _rbf_out_fake,
    _rbf_out_cpu,
    _rbf_out_gpu,
)
define(
    "rbf_backward(Tensor g, Tensor x, Tensor? y, Tensor sigma, Tensor weights, bool[] wants)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _rbf_backward_fake,
    _rbf_backward_cpu,
    _rbf_backward_gpu,
)


class _Rbf(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return torch.ops.gkfast.rbf(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, y, sigma, weights = ctx.saved_tensors
        wants = list(ctx.needs_input_grad[:4])
        return tuple(wanted(rbf_backward(g, x, y, sigma, weights, wants), wants))


class _RbfBackward(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return torch.ops.gkfast.rbf_backward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:5])
        ctx.wants = inputs[5]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *directions: Tensor | None) -> Any:
        tx, ty, tsigma, tweights = wanted(directions, ctx.wants)

        def change(g: Tensor, x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor) -> Tensor:
            return (g * _rbf_change(x, y, sigma, weights, tx, ty, tsigma, tweights)).sum()

        return *vjp(change, ctx.saved_tensors, ctx.needs_input_grad[:5]), None


def _rbf_change(
    x: Tensor,
    y: Tensor | None,
    sigma: Tensor,
    weights: Tensor,
    tx: Tensor | None,
    ty: Tensor | None,
    tsigma: Tensor | None,
    tweights: Tensor | None,
) -> Tensor:
    """How K (B, N, M) changes when x, y, sigma, weights move along tx, ty, tsigma, tweights.

        dK_ij = K'_ij (tx_i - ty_j) . (y_j - x_i) + sum_s (tsigma_s w_s |x_i - y_j|^2 / sigma_s^3 + tweights_s) k_sij

    with K' = sum_s w_s / sigma_s^2 k_s. With y None, y is x and ty is tx.
    """
    first, second = about_their_mean(x, x if y is None else y)
    if y is None:
        ty = tx
    total: Any = 0.0
    if tx is not None or ty is not None:
        motion: Any = 0.0
        if tx is not None:
            motion = tx @ second.mT - (tx * first).sum(-1)[..., :, None]
        if ty is not None:
            motion = motion + first @ ty.mT - (ty * second).sum(-1)[..., None, :]
        total = rbf(x, y, sigma, weights / sigma.square()) * motion
    if tsigma is not None:
        squares = (
            first.square().sum(-1)[..., :, None] + second.square().sum(-1)[..., None, :]
        ) - 2 * first @ second.mT
        total = total + rbf(x, y, sigma, tsigma * weights / sigma**3) * squares
    if tweights is not None:
        total = total + rbf(x, y, sigma, tweights)
    return total


def about_their_mean(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """x and y less a common constant, which no difference sees: products of coordinates then cancel less."""
    if x.shape[1] == 0 or y.shape[1] == 0:
        return x, y
    centre = ((x.mean(1, keepdim=True) + y.mean(1, keepdim=True)) / 2).detach()
    return x - centre, y - centre


derive("rbf", _Rbf)
derive("rbf_backward", _RbfBackward)
