"""The kernel matrix."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gkfast.ops.define import (
    Wants,
    add,
    array,
    call,
    define,
    derive,
    double,
    fake,
    folded,
    forward_mode,
    mark_unwanted,
    numbers,
    run,
    tensor,
    unwanted,
    vjp,
    wanted,
)


def rbf(x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor, precision: str = "highest") -> Tensor:
    """The kernel matrix, (B, N, M). See gkfast.rbf."""
    return call("rbf", _Rbf, x, y, sigma, weights, precision)


def rbf_out(
    x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor, out: Tensor, precision: str = "highest"
) -> None:
    """The kernel matrix into out (B, N, M). See gkfast.rbf."""
    torch.ops.gkfast.rbf_out(x, y, sigma, weights, out, precision)


def rbf_backward(
    g: Tensor,
    x: Tensor,
    y: Tensor | None,
    sigma: Tensor,
    weights: Tensor,
    wants: Wants,
    precision: str = "highest",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of sum_ij g_ij K_ij to (x, y, sigma, weights); those not wanted are (B, 0)."""
    return call("rbf_backward", _RbfBackward, g, x, y, sigma, weights, list(wants), precision)


def _rbf_fake(x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor, precision: str) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], (x if y is None else y).shape[1])


def _rbf_cpu(x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor, precision: str) -> Tensor:
    from gkfast.kernels import cpu

    return tensor(cpu.rbf(array(x), None if y is None else array(y), numbers(sigma), numbers(weights)), x)


def _rbf_gpu(x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor, precision: str) -> Tensor:
    from gkfast.kernels import gpu

    return gpu.rbf(x.contiguous(), None if y is None else y.contiguous(), sigma, weights, precision=precision)


def _rbf_out_fake(x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor, out: Tensor, precision: str) -> None:
    return None


def _rbf_out_cpu(x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor, out: Tensor, precision: str) -> None:
    from gkfast.kernels import cpu

    cpu.rbf(array(x), None if y is None else array(y), numbers(sigma), numbers(weights), out.detach().numpy())


def _rbf_out_gpu(x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor, out: Tensor, precision: str) -> None:
    from gkfast.kernels import gpu

    gpu.rbf(x.contiguous(), None if y is None else y.contiguous(), sigma, weights, out, precision)


def _rbf_backward_fake(
    g: Tensor, x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor, wants: Wants, precision: str
) -> tuple[Tensor, ...]:
    arguments = (x, x if y is None else y, sigma, weights)
    return tuple(fake(a, want) for a, want in zip(arguments, wants, strict=True))


def _rbf_backward_cpu(
    g: Tensor, x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor, wants: Wants, precision: str
) -> tuple[Tensor, ...]:
    from gkfast.kernels import cpu

    y_array = None if y is None else array(y)
    gradients = cpu.rbf_backward(array(g), array(x), y_array, numbers(sigma), numbers(weights), wants)
    return tuple(tensor(d, like) for d, like in zip(gradients, (x, x, sigma, weights), strict=True))


def _rbf_backward_gpu(
    g: Tensor, x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor, wants: Wants, precision: str
) -> tuple[Tensor, ...]:
    from gkfast.kernels import gpu

    y = None if y is None else y.contiguous()
    gradients = gpu.rbf_backward(g.contiguous(), x.contiguous(), y, sigma, weights, tuple(wants), precision)
    likes = (x, x, sigma, weights)
    return tuple(unwanted(like) if d is None else d.to(like) for d, like in zip(gradients, likes, strict=True))


define(
    "rbf(Tensor x, Tensor? y, Tensor sigma, Tensor weights, str precision) -> Tensor",
    _rbf_fake,
    _rbf_cpu,
    _rbf_gpu,
)
define(
    "rbf_out(Tensor x, Tensor? y, Tensor sigma, Tensor weights, Tensor(a!) out, str precision) -> ()",
    _rbf_out_fake,
    _rbf_out_cpu,
    _rbf_out_gpu,
)
define(
    "rbf_backward(Tensor g, Tensor x, Tensor? y, Tensor sigma, Tensor weights, bool[] wants, str precision)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _rbf_backward_fake,
    _rbf_backward_cpu,
    _rbf_backward_gpu,
)


class _Rbf(torch.autograd.Function):
    vmap = staticmethod(folded(rbf))

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return run("rbf", arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:4])
        ctx.save_for_forward(*inputs[:4])
        ctx.precision = inputs[4]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> Any:
        if g is None:
            return (None,) * 5
        x, y, sigma, weights = ctx.saved_tensors
        wants = list(ctx.needs_input_grad[:4])
        return *wanted(rbf_backward(g, x, y, sigma, weights, wants, ctx.precision), wants), None

    @forward_mode
    def jvp(ctx: Any, saved: Sequence[Any], *tangents: Any) -> Tensor:
        x, y, sigma, weights = saved
        return _rbf_change(x, y, sigma, weights, tangents[:4]).to(x.dtype)


class _RbfBackward(torch.autograd.Function):
    vmap = staticmethod(folded(rbf_backward))

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return run("rbf_backward", arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:5])
        ctx.save_for_forward(*inputs[:5])
        ctx.wants = inputs[5]
        mark_unwanted(ctx, output, ctx.wants)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *directions: Tensor | None) -> Any:
        moved = wanted(directions, ctx.wants)
        return *_second_order(ctx.saved_tensors, moved, ctx.needs_input_grad[:5]), None, None

    @forward_mode
    def jvp(ctx: Any, saved: Sequence[Any], tg: Tensor | None, *tangents: Any) -> Any:
        # a gradient moves as the gradient of the change that its arguments' motion makes
        moved = tangents[:4]
        total = _second_order(saved, moved, [False, *ctx.wants])[1:]
        if tg is not None:
            _, x, y, sigma, weights = saved
            total = add(total, wanted(rbf_backward(tg, x, y, sigma, weights, ctx.wants), ctx.wants))
        return tuple(total)


def _second_order(
    saved: Sequence[Tensor | None], directions: Sequence[Tensor | None], needed: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of the change of sum_ij g_ij K_ij along the directions, to those of (g, x, y, sigma, weights)."""
    if all(t is None for t in directions):
        return [None] * 5

    def change(g: Tensor, x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor) -> Tensor:
        return (g * _rbf_change(x, y, sigma, weights, directions)).sum()

    return vjp(change, saved, needed)


def _rbf_change(
    x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor, directions: Sequence[Tensor | None]
) -> Tensor:
    """How K (B, N, M) changes when x, y, sigma, weights move along the directions tx, ty, tsigma, tweights.

        dK_ij = K'_ij (tx_i - ty_j) . (y_j - x_i) + sum_s (tsigma_s w_s |x_i - y_j|^2 / sigma_s^3 + tweights_s) k_sij

    with K' = sum_s w_s / sigma_s^2 k_s. With y None, y is x and ty is tx. In float64, because the products of
    coordinates cancel.
    """
    symmetric = y is None
    y = x if y is None else y
    x, y, sigma, weights, tx, ty, tsigma, tweights = double(x, y, sigma, weights, *directions)
    first, second = about_their_mean(x, y)
    if symmetric:
        ty = tx

    def kernel(factors: Tensor) -> Tensor:
        return rbf(x, None if symmetric else y, sigma, factors)

    total: Any = x.new_zeros(())
    if tx is not None or ty is not None:
        motion: Any = 0.0
        if tx is not None:
            motion = tx @ second.mT - (tx * first).sum(-1)[..., :, None]
        if ty is not None:
            motion = motion + first @ ty.mT - (ty * second).sum(-1)[..., None, :]
        total = kernel(weights / sigma.square()) * motion
    if tsigma is not None:
        squares = (
            first.square().sum(-1)[..., :, None] + second.square().sum(-1)[..., None, :]
        ) - 2 * first @ second.mT
        total = total + kernel(tsigma * weights / sigma**3) * squares
    if tweights is not None:
        total = total + kernel(tweights)
    return total


def about_their_mean(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """x and y less a common constant, which no difference sees: products of coordinates then cancel less."""
    if x.shape[1] == 0 or y.shape[1] == 0:
        return x, y
    centre = ((x.mean(1, keepdim=True) + y.mean(1, keepdim=True)) / 2).detach()
    return x - centre, y - centre


derive("rbf", _Rbf)
derive("rbf_backward", _RbfBackward)
