"""K @ v, and the change of K @ v that all second derivatives are made of."""

from typing import Any

import torch
from torch import Tensor

from gkfast.ops.define import Wants, array, call, define, derive, fake, numbers, tensor, vjp, wanted
from gkfast.ops.rbf import about_their_mean


def rbf_matmul(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    sigma: Tensor,
    weights: Tensor,
    shift: Tensor | None = None,
    skip_diagonal: bool = False,
) -> Tensor:
    """K @ v, (B, N, E), kernels times exp(-shift_is) where shift (B, N, S) is given.

    See gkfast.rbf_matmul.
    """
    return call("rbf_matmul", _RbfMatmul, x, y, v, sigma, weights, shift, skip_diagonal)


def rbf_matmul_backward(
    g: Tensor,
    x: Tensor,
    y: Tensor,
    v: Tensor,
    sigma: Tensor,
    weights: Tensor,
    shift: Tensor | None,
    skip_diagonal: bool,
    wants: Wants,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of sum_ie g_ie (K v)_ie to (x, y, v, sigma, weights); those not wanted are empty."""
    return call(
        "rbf_matmul_backward",
        _RbfMatmulBackward,
        g,
        x,
        y,
        v,
        sigma,
        weights,
        shift,
        skip_diagonal,
        list(wants),
    )


def _rbf_matmul_fake(
    x: Tensor, y: Tensor, v: Tensor, sigma: Tensor, weights: Tensor, shift: Tensor | None, skip_diagonal: bool
) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], v.shape[2])


def _rbf_matmul_cpu(
    x: Tensor, y: Tensor, v: Tensor, sigma: Tensor, weights: Tensor, shift: Tensor | None, skip_diagonal: bool
) -> Tensor:
    from gkfast.kernels import cpu

    shifts = None if shift is None else array(shift)
    arrays = (array(x), array(y), array(v), numbers(sigma), numbers(weights))
    return tensor(cpu.rbf_matmul(*arrays, shifts, skip_diagonal), x)


def _rbf_matmul_backward_fake(
    g: Tensor,
    x: Tensor,
    y: Tensor,
    v: Tensor,
    sigma: Tensor,
    weights: Tensor,
    shift: Tensor | None,
    skip_diagonal: bool,
    wants: Wants,
) -> tuple[Tensor, ...]:
    return tuple(fake(a, want) for a, want in zip((x, y, v, sigma, weights), wants, strict=True))


def _rbf_matmul_backward_cpu(
    g: Tensor,
    x: Tensor,
    y: Tensor,
    v: Tensor,
    sigma: Tensor,
    weights: Tensor,
    shift: Tensor | None,
    skip_diagonal: bool,
    wants: Wants,
) -> tuple[Tensor, ...]:
    from gkfast.kernels import cpu

    shifts = None if shift is None else array(shift)
    arrays = (array(g), array(x), array(y), array(v), numbers(sigma), numbers(weights))
    gradients = cpu.rbf_matmul_backward(*arrays, wants, shifts, skip_diagonal)
    return tuple(tensor(d, like) for d, like in zip(gradients, (x, y, v, sigma, weights), strict=True))


define(
    "rbf_matmul(Tensor x, Tensor y, Tensor v, Tensor sigma, Tensor weights, Tensor? shift, bool skip_diagonal)"
    " -> Tensor",
    _rbf_matmul_fake,
    _rbf_matmul_cpu,
)
define(
    "rbf_matmul_backward(Tensor g, Tensor x, Tensor y, Tensor v, Tensor sigma, Tensor weights, Tensor? shift,"
    " bool skip_diagonal, bool[] wants) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _rbf_matmul_backward_fake,
    _rbf_matmul_backward_cpu,
)


class _RbfMatmul(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return torch.ops.gkfast.rbf_matmul(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:6])
        ctx.skip_diagonal = inputs[6]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, y, v, sigma, weights, shift = ctx.saved_tensors
        wants = list(ctx.needs_input_grad[:5])
        gradients = rbf_matmul_backward(g, x, y, v, sigma, weights, shift, ctx.skip_diagonal, wants)
        dshift = None
        if ctx.needs_input_grad[5]:
            dshift = -_by_bandwidth(g, x, y, v, sigma, weights, shift, ctx.skip_diagonal)
        return *wanted(gradients, wants), dshift, None


def _by_bandwidth(
    g: Tensor,
    x: Tensor,
    y: Tensor,
    v: Tensor,
    sigma: Tensor,
    weights: Tensor,
    shift: Tensor,
    skip_diagonal: bool,
) -> Tensor:
    """g_i . (w_s K_s v)_i for each bandwidth, (B, N, S)."""
    parts = [
        rbf_matmul(x, y, v, sigma[s : s + 1], weights[s : s + 1], shift[..., s : s + 1], skip_diagonal)
        for s in range(sigma.shape[0])
    ]
    return torch.stack([(g * part).sum(-1) for part in parts], dim=-1)


class _RbfMatmulBackward(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return torch.ops.gkfast.rbf_matmul_backward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:7])
        ctx.skip_diagonal, ctx.wants = inputs[7], inputs[8]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *directions: Tensor | None) -> Any:
        tx, ty, tv, tsigma, tweights = wanted(directions, ctx.wants)
        skip_diagonal = ctx.skip_diagonal

        def change(
            g: Tensor, x: Tensor, y: Tensor, v: Tensor, sigma: Tensor, weights: Tensor, shift: Tensor | None
        ) -> Tensor:
            total = matmul_change(x, y, v, sigma, weights, tx, ty, tsigma, tweights, shift, skip_diagonal)
            if tv is not None:
                total = total + rbf_matmul(x, y, tv, sigma, weights, shift, skip_diagonal)
            return (g * total).sum()

        return *vjp(change, ctx.saved_tensors, ctx.needs_input_grad[:7]), None, None


def matmul_change(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    sigma: Tensor,
    weights: Tensor,
    tx: Tensor | None,
    ty: Tensor | None,
    tsigma: Tensor | None,
    tweights: Tensor | None,
    shift: Tensor | None = None,
    skip_diagonal: bool = False,
) -> Tensor:
    """How K v (B, N, E) changes when x, y, sigma, weights move along tx, ty, tsigma, tweights.

    The change of K (see `_rbf_change`) is K' times products of something of i with something of j, so each part is a
    product of K' with a few more columns, and K stays unstored.
    """
    first, second = about_their_mean(x, y)
    total: Any = x.new_zeros(x.shape[0], x.shape[1], v.shape[2])
    if tx is not None or ty is not None:
        pull = weights / sigma.square()
        columns = [v]
        if tx is not None:
            columns.append(_outer(v, second))
        if ty is not None:
            columns += [v * (ty * second).sum(-1, keepdim=True), _outer(v, ty)]
        sizes = [c.shape[2] for c in columns]
        parts = rbf_matmul(x, y, torch.cat(columns, -1), sigma, pull, shift, skip_diagonal).split(sizes, -1)
        if tx is not None:
            total = _inner(parts[1], tx) - parts[0] * (tx * first).sum(-1, keepdim=True)
        if ty is not None:
            total = total + _inner(parts[-1], first) - parts[-2]
    if tsigma is not None:
        columns = [v, v * second.square().sum(-1, keepdim=True), _outer(v, second)]
        sizes = [c.shape[2] for c in columns]
        spread = tsigma * weights / sigma**3
        parts = rbf_matmul(x, y, torch.cat(columns, -1), sigma, spread, shift, skip_diagonal).split(sizes, -1)
        total = total + parts[0] * first.square().sum(-1, keepdim=True) + parts[1] - 2 * _inner(parts[2], first)
    if tweights is not None:
        total = total + rbf_matmul(x, y, v, sigma, tweights, shift, skip_diagonal)
    return total


def _outer(v: Tensor, y: Tensor) -> Tensor:
    """v (B, M, E) and y (B, M, D) as (B, M, E D)"""
    return (v[..., :, None] * y[..., None, :]).flatten(2)


def _inner(product: Tensor, x: Tensor) -> Tensor:
    """(B, N, E D) with x (B, N, D) as (B, N, E)"""
    return (product.unflatten(2, (-1, x.shape[2])) * x[..., None, :]).sum(-1)


derive("rbf_matmul", _RbfMatmul)
derive("rbf_matmul_backward", _RbfMatmulBackward)
