"""The sums behind kernel means, and MMD^2 with its gradients in one sweep."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gkfast.ops.define import Wants, array, call, define, derive, fake, numbers, tensor, vjp, wanted
from gkfast.ops.rbf_matmul import matmul_change, rbf_matmul


def kernel_sums(x: Tensor, y: Tensor, a: Tensor, b: Tensor, sigma: Tensor, weights: Tensor, drop: int) -> Tensor:
    """The sums over xx, yy and xy pairs, (B, 3) float64. See gkfast.kernel_means."""
    scale = torch.zeros(x.shape[0], 3, dtype=torch.float64, device=x.device)
    return kernel_sums_with_gradients(scale, x, y, a, b, sigma, weights, drop, False, [False] * 6)[0]


def mmd2(
    x: Tensor, y: Tensor, a: Tensor, b: Tensor, scale: Tensor, sigma: Tensor, weights: Tensor, drop: int
) -> Tensor:
    """scale . kernel_sums of K - sum_s weights_s, (B,) float64. See gkfast.mmd2.

    The sweep that computes the value computes the gradients that will be asked for; backward scales them.
    """
    differentiable = torch.is_grad_enabled()
    wants = [differentiable and t.requires_grad for t in (x, y, a, b, sigma, weights)]
    return call("mmd2", _Mmd2, scale, x, y, a, b, sigma, weights, drop, wants)[0]


def kernel_sums_with_gradients(
    scale: Tensor,
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    sigma: Tensor,
    weights: Tensor,
    drop: int,
    minus_one: bool,
    wants: Wants,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The three sums (B, 3) and the gradients of scale . sums to (x, y, a, b, sigma, weights), differentiable."""
    arguments = (scale, x, y, a, b, sigma, weights, drop, minus_one, list(wants))
    return call("kernel_sums_with_gradients", _KernelSumsWithGradients, *arguments)


def _kernel_sums_fake(
    scale: Tensor,
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    sigma: Tensor,
    weights: Tensor,
    drop: int,
    minus_one: bool,
    wants: Wants,
) -> tuple[Tensor, ...]:
    gradients = (fake(t, want) for t, want in zip((x, y, a, b, sigma, weights), wants, strict=True))
    return scale.new_empty(x.shape[0], 3), *gradients


def _by_batch_cpu(
    scale: Tensor,
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    sigma: Tensor,
    weights: Tensor,
    drop: int,
    minus_one: bool,
    wants: Wants,
) -> tuple[Tensor, ...]:
    """The sums and the gradients, those to sigma and weights one row for each of the batch."""
    from gkfast.kernels import cpu

    arrays = (array(scale), array(x), array(y), array(a), array(b), numbers(sigma), numbers(weights))
    sums, *gradients = cpu.kernel_sums_with_gradients(*arrays, drop, minus_one, wants)
    likes = (x, y, a, b, sigma, weights)
    return torch.from_numpy(sums), *(tensor(d, like) for d, like in zip(gradients, likes, strict=True))


def _kernel_sums_cpu(
    scale: Tensor,
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    sigma: Tensor,
    weights: Tensor,
    drop: int,
    minus_one: bool,
    wants: Wants,
) -> tuple[Tensor, ...]:
    sums, *gradients = _by_batch_cpu(scale, x, y, a, b, sigma, weights, drop, minus_one, wants)
    # what is not wanted is empty, and stays so
    gradients[4:] = [d.sum(0) if want else d for d, want in zip(gradients[4:], wants[4:], strict=True)]
    return sums, *gradients


def _mmd2_fake(
    scale: Tensor,
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    sigma: Tensor,
    weights: Tensor,
    drop: int,
    wants: Wants,
) -> tuple[Tensor, ...]:
    sums, dx, dy, da, db, _, _ = _kernel_sums_fake(scale, x, y, a, b, sigma, weights, drop, True, wants)
    # one row of bandwidth gradients for each of the batch, whose values may have different cotangents
    by_bandwidth = (
        t.new_empty(x.shape[0], t.shape[0]) if want else t.new_empty(0)
        for t, want in zip((sigma, weights), wants[4:], strict=True)
    )
    return scale.new_empty(x.shape[0]), sums, dx, dy, da, db, *by_bandwidth


def _mmd2_cpu(
    scale: Tensor,
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    sigma: Tensor,
    weights: Tensor,
    drop: int,
    wants: Wants,
) -> tuple[Tensor, ...]:
    sums, *gradients = _by_batch_cpu(scale, x, y, a, b, sigma, weights, drop, True, wants)
    return (scale.detach() * sums).sum(-1), sums, *gradients


define(
    "kernel_sums_with_gradients(Tensor scale, Tensor x, Tensor y, Tensor a, Tensor b, Tensor sigma, Tensor weights,"
    " int drop, bool minus_one, bool[] wants) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _kernel_sums_fake,
    _kernel_sums_cpu,
)
define(
    "mmd2(Tensor scale, Tensor x, Tensor y, Tensor a, Tensor b, Tensor sigma, Tensor weights, int drop, bool[] wants)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _mmd2_fake,
    _mmd2_cpu,
)


class _Mmd2(torch.autograd.Function):
    """Returns the value, and beside it what backward needs: the sums and the gradients of the value."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return torch.ops.gkfast.mmd2(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs[:7], *output[1:])
        ctx.drop, ctx.wants = inputs[7], inputs[8]

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> Any:
        scale, x, y, a, b, sigma, weights, sums, *gradients = ctx.saved_tensors
        needed = list(ctx.needs_input_grad[1:7])
        lacking = any(need and not want for need, want in zip(needed, ctx.wants, strict=True))
        if torch.is_grad_enabled() or lacking:
            # gradients must themselves be differentiable, or a transform asks for what was not foreseen
            scale = scale * g[:, None]
            sums, *gradients = kernel_sums_with_gradients(scale, x, y, a, b, sigma, weights, ctx.drop, True, needed)
        else:
            gradients = [d if not need else d * _along_batch(g, d) for d, need in zip(gradients, needed, strict=True)]
            # the batch shares its bandwidths
            gradients[4:] = [d.sum(0) for d in gradients[4:]]
        return g[:, None] * sums if ctx.needs_input_grad[0] else None, *wanted(gradients, needed), None, None


def _along_batch(g: Tensor, like: Tensor) -> Tensor:
    """(B,) shaped to multiply (B, ...)"""
    return g.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


class _KernelSumsWithGradients(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return torch.ops.gkfast.kernel_sums_with_gradients(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:7])
        ctx.drop, ctx.minus_one, ctx.wants = inputs[7:]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, *directions: Tensor | None) -> Any:
        drop, minus_one = ctx.drop, ctx.minus_one
        _, x, y, a, b, sigma, weights = ctx.saved_tensors
        needed = ctx.needs_input_grad[:7]
        total: list[Tensor | None] = [None] * 7
        if g is not None:
            # the sums themselves: one fused sweep
            gradients = kernel_sums_with_gradients(g, x, y, a, b, sigma, weights, drop, minus_one, needed[1:])[1:]
            total[1:] = wanted(gradients, needed[1:])
        moved = wanted(directions, ctx.wants)
        if any(t is not None for t in moved):

            def change(
                scale: Tensor, x: Tensor, y: Tensor, a: Tensor, b: Tensor, sigma: Tensor, weights: Tensor
            ) -> Tensor:
                return (scale * _sums_change(x, y, a, b, sigma, weights, moved, drop, minus_one)).sum()

            second = vjp(change, ctx.saved_tensors, needed)
            total = [s if t is None else t if s is None else s + t for s, t in zip(second, total, strict=True)]
        return *total, None, None, None


def _sums_change(
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    sigma: Tensor,
    weights: Tensor,
    directions: Sequence[Tensor | None],
    drop: int,
    minus_one: bool,
) -> Tensor:
    """How the three sums (B, 3) change when x, y, a, b, sigma, weights move along the directions."""
    tx, ty, ta, tb, tsigma, tweights = directions

    def one(p: Tensor, q: Tensor, u: Tensor, v: Tensor, tp: Any, tq: Any, tu: Any, tv: Any, skip: bool) -> Tensor:
        rows = matmul_change(p, q, v[..., None], sigma, weights, tp, tq, tsigma, tweights, None, skip)
        if tv is not None:
            rows = rows + rbf_matmul(p, q, tv[..., None], sigma, weights, None, skip)
        total = (u * rows[..., 0]).double().sum(-1)
        if tu is not None:
            total = total + (tu * rbf_matmul(p, q, v[..., None], sigma, weights, None, skip)[..., 0]).double().sum(-1)
        if minus_one:
            total = total - weights.sum() * _pair_weight_change(u, v, tu, tv, skip)
            if tweights is not None:
                total = total - tweights.sum() * _pair_weight(u, v, skip)
        return total

    return torch.stack(
        [
            one(x, x, a, a, tx, tx, ta, ta, drop >= 1),
            one(y, y, b, b, ty, ty, tb, tb, drop >= 1),
            one(x, y, a, b, tx, ty, ta, tb, drop >= 2),
        ],
        dim=-1,
    )


def _pair_weight(u: Tensor, v: Tensor, skip: bool) -> Tensor:
    """sum_ij u_i v_j, without i = j where skipped, (B,) float64"""
    u, v = u.double(), v.double()
    total = u.sum(-1) * v.sum(-1)
    return total - (u * v).sum(-1) if skip else total


def _pair_weight_change(u: Tensor, v: Tensor, tu: Tensor | None, tv: Tensor | None, skip: bool) -> Any:
    total: Any = 0.0
    if tu is not None:
        total = total + _pair_weight(tu, v, skip)
    if tv is not None:
        total = total + _pair_weight(u, tv, skip)
    return total


derive("mmd2", _Mmd2)
derive("kernel_sums_with_gradients", _KernelSumsWithGradients)
