"""The sums behind kernel means and MMD^2, with their gradients in the same sweep."""

from collections.abc import Callable, Sequence
from functools import partial
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
    fake,
    folded,
    forward_mode,
    mark_unwanted,
    numbers,
    run,
    tensor,
    unwanted,
    visible,
    wanted,
)
from gkfast.ops.rbf_matmul import (
    COLUMN,
    ROW,
    WHOLE,
    Tile,
    block_change,
    coordinate_blocks,
    matmul_change,
    rbf_matmul,
    tiles,
    vjp_by_tiles,
)


def kernel_sums(
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    sigma: Tensor,
    weights: Tensor,
    drop: int,
    precision: str = "highest",
) -> Tensor:
    """The sums over xx, yy and xy pairs, (B, 3), added up in float64. See gkfast.kernel_means."""
    each = torch.eye(3, dtype=torch.float64, device=x.device).expand(x.shape[0], 3, 3)
    return _combined_sums(each, x, y, a, b, sigma, weights, drop, None, precision)


def mmd2(
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    scale: Tensor,
    sigma: Tensor,
    weights: Tensor,
    drop: int,
    baseline: Tensor,
    precision: str = "highest",
) -> Tensor:
    """scale . kernel_sums of K - sum_s weights_s baseline_s, (B,), added up in float64. See gkfast.mmd2."""
    return _combined_sums(scale, x, y, a, b, sigma, weights, drop, baseline, precision)


@torch.no_grad()
def baselines(x: Tensor, y: Tensor, sigma: Tensor) -> Tensor:
    """1 or 0 for each bandwidth, (B, S) float64. See gkfast.kernels.reference.baselines."""
    if all(visible(tensor) for tensor in (x, y, sigma)):
        from gkfast.kernels import cpu

        return torch.from_numpy(cpu.baselines(array(x), array(y), numbers(sigma)))
    from gkfast.kernels import reference

    shared = sigma.shape[0] == 1 or sigma.stride(0) == 0
    if sigma.device != x.device and shared and not torch.compiler.is_dynamo_compiling():
        # a number goes along as an argument; a copy would wait for the device, and no graph could capture it
        mean_square = reference.mean_square_distance(x, y)
        return torch.stack([mean_square <= one.square() for one in sigma[0].double()], -1).double()
    return reference.baselines(x, y, sigma)


def _combined_sums(
    scale: Tensor,
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    sigma: Tensor,
    weights: Tensor,
    drop: int,
    baseline: Tensor | None,
    precision: str,
) -> Tensor:
    """scale . sums, (B,), for the combination that scale (B, 3) holds, or (B, R) for those of scale (B, R, 3).

    In the dtype of x, as the caller will want it: a cast of its own would take as long as a small kernel.

    The sweep that computes the values computes the gradients that will be asked for; backward scales them.
    """
    differentiable = torch.is_grad_enabled()
    wants = [differentiable and t.requires_grad for t in (x, y, a, b, sigma, weights)]
    modes = (drop, baseline, wants, precision)
    return call("kernel_sums", _KernelSums, scale, x, y, a, b, sigma, weights, *modes)[0]


def kernel_sums_with_gradients(
    scale: Tensor,
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    sigma: Tensor,
    weights: Tensor,
    drop: int,
    baseline: Tensor | None,
    wants: Wants,
    precision: str = "highest",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The sums (B, 3) and the gradients of scale (B, 3) . sums to (x, y, a, b, sigma, weights), differentiable."""
    arguments = (scale, x, y, a, b, sigma, weights, drop, baseline, list(wants), precision)
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
    baseline: Tensor | None,
    wants: Wants,
    precision: str,
) -> tuple[Tensor, ...]:
    shape = scale.shape[:-1]
    gradients = (
        t.new_empty(*shape, *t.shape[1:]) if want else unwanted(t)
        for t, want in zip((x, y, a, b, sigma, weights), wants, strict=True)
    )
    return x.new_empty(shape), scale.new_empty(len(x), 3), *gradients


def _kernel_sums_cpu(
    scale: Tensor,
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    sigma: Tensor,
    weights: Tensor,
    drop: int,
    baseline: Tensor | None,
    wants: Wants,
    precision: str,
) -> tuple[Tensor, ...]:
    """The combinations, the sums, and each combination's gradients: (B, R), (B, 3), (B, R, ...), or without the R."""
    from gkfast.kernels import cpu

    arrays = (array(x), array(y), array(a), array(b), numbers(sigma), numbers(weights))
    scales = array(scale if scale.ndim == 3 else scale[:, None])
    baselines = None if baseline is None else numbers(baseline)
    values, sums, *gradients = cpu.kernel_sums_with_gradients(scales, *arrays, drop, baselines, wants)
    if scale.ndim == 2:
        values, *gradients = (None if d is None else d[:, 0] for d in (values, *gradients))
    likes = (x, y, a, b, sigma, weights)
    gradients = [tensor(d, like) for d, like in zip(gradients, likes, strict=True)]
    return tensor(values, x), torch.from_numpy(sums), *gradients


def _kernel_sums_gpu(
    scale: Tensor,
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    sigma: Tensor,
    weights: Tensor,
    drop: int,
    baseline: Tensor | None,
    wants: Wants,
    precision: str,
) -> tuple[Tensor, ...]:
    from gkfast.kernels import gpu

    x, y, a, b = x.contiguous(), y.contiguous(), a.contiguous(), b.contiguous()
    scales = scale.detach() if scale.ndim == 3 else scale.detach()[:, None]
    arguments = (scales, x, y, a, b, sigma, weights, drop, baseline, tuple(wants), precision)
    values, sums, *gradients = gpu.kernel_sums_with_gradients(*arguments)
    if scale.ndim == 2:
        values, *gradients = (None if d is None else d[:, 0] for d in (values, *gradients))
    likes = (x, y, a, b, sigma, weights)
    gradients = [unwanted(like) if d is None else d.to(like) for d, like in zip(gradients, likes, strict=True)]
    return values, sums, *gradients


def _with_gradients_fake(
    scale: Tensor,
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    sigma: Tensor,
    weights: Tensor,
    drop: int,
    baseline: Tensor | None,
    wants: Wants,
    precision: str,
) -> tuple[Tensor, ...]:
    gradients = (fake(t, want) for t, want in zip((x, y, a, b, sigma, weights), wants, strict=True))
    return scale.new_empty(x.shape[0], 3), *gradients


def _with_gradients_cpu(scale: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return _kernel_sums_cpu(scale, *arguments)[1:]


def _with_gradients_gpu(scale: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return _kernel_sums_gpu(scale, *arguments)[1:]


define(
    "kernel_sums(Tensor scale, Tensor x, Tensor y, Tensor a, Tensor b, Tensor sigma, Tensor weights,"
    " int drop, Tensor? baseline, bool[] wants, str precision)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _kernel_sums_fake,
    _kernel_sums_cpu,
    _kernel_sums_gpu,
)
define(
    "kernel_sums_with_gradients(Tensor scale, Tensor x, Tensor y, Tensor a, Tensor b, Tensor sigma, Tensor weights,"
    " int drop, Tensor? baseline, bool[] wants, str precision)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _with_gradients_fake,
    _with_gradients_cpu,
    _with_gradients_gpu,
)


def _kernel_sums(*arguments: Any) -> tuple[Tensor, ...]:
    return call("kernel_sums", _KernelSums, *arguments)


class _KernelSums(torch.autograd.Function):
    """Returns the values, and beside them what backward needs: the sums and the gradients of each value."""

    vmap = staticmethod(folded(_kernel_sums))

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return run("kernel_sums", arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.drop, baseline, ctx.wants, ctx.precision = inputs[7:]
        gradients = [d for d, want in zip(output[2:], ctx.wants, strict=True) if want]
        ctx.save_for_backward(*inputs[:7], baseline, output[1], *gradients)
        ctx.save_for_forward(*inputs[:7], baseline, output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, *_: Any) -> Any:
        if g is None:
            return (None,) * 11
        scale, x, y, a, b, sigma, weights, baseline, sums, *gradients = ctx.saved_tensors
        needed = list(ctx.needs_input_grad[1:7])
        lacking = any(need and not want for need, want in zip(needed, ctx.wants, strict=True))
        if torch.is_grad_enabled() or lacking:
            # gradients must themselves be differentiable, or a transform asks for what was not foreseen
            total = g[..., None] * scale
            total = total.sum(1) if scale.ndim == 3 else total
            arguments = (x, y, a, b, sigma, weights, ctx.drop, baseline, needed, ctx.precision)
            sums, *gradients = kernel_sums_with_gradients(total, *arguments)
        else:
            found = iter(gradients)
            gradients = [next(found) if want else None for want in ctx.wants]
            gradients = [_weighted(g, d) if need else None for d, need in zip(gradients, needed, strict=True)]
        dscale = g[..., None] * _for_each(scale, sums) if ctx.needs_input_grad[0] else None
        return dscale, *wanted(gradients, needed), None, None, None, None

    @forward_mode
    def jvp(ctx: Any, saved: Sequence[Any], tscale: Tensor | None, *tangents: Any) -> Any:
        scale, x, baseline, sums = saved[0], saved[1], saved[7], saved[8]
        total: Any = 0.0
        if tscale is not None:
            total = (tscale * _for_each(scale, sums)).sum(-1)
        if any(t is not None for t in tangents[:6]):
            change = _sums_change(saved[:7], tangents[:6], ctx.drop, baseline)
            total = total + (scale * _for_each(scale, change)).sum(-1)
        return total.to(x.dtype), *[None] * 7


def _for_each(scale: Tensor, sums: Tensor) -> Tensor:
    """The sums (B, 3) beside what scale holds, (B, 3) or (B, R, 3)."""
    return sums if scale.ndim == 2 else sums[:, None]


def _weighted(g: Tensor, gradients: Tensor) -> Tensor:
    """g gradients for g (B,), gradients (B, ...); sum_r g_r gradients_r for g (B, R), gradients (B, R, ...)"""
    # bandwidths may stay on the CPU
    g = g.to(gradients)
    if g.shape == (1,):
        return gradients * g
    product = gradients * g.reshape(*g.shape, *[1] * (gradients.ndim - g.ndim))
    return product if g.ndim == 1 else product.sum(1)


class _KernelSumsWithGradients(torch.autograd.Function):
    vmap = staticmethod(folded(kernel_sums_with_gradients))

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return run("kernel_sums_with_gradients", arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.drop, baseline, ctx.wants, ctx.precision = inputs[7:]
        ctx.save_for_backward(*inputs[:7], baseline)
        ctx.save_for_forward(*inputs[:7], baseline)
        mark_unwanted(ctx, output[1:], ctx.wants)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, *directions: Tensor | None) -> Any:
        needed = ctx.needs_input_grad[:7]
        *saved, baseline = ctx.saved_tensors
        modes = ctx.drop, baseline
        total = _second_order(saved, wanted(directions, ctx.wants), *modes, needed)
        if g is not None:
            # the sums themselves: one fused sweep
            arguments = (*saved[1:], *modes, needed[1:], ctx.precision)
            gradients = wanted(kernel_sums_with_gradients(g, *arguments)[1:], needed[1:])
            total = [total[0], *add(total[1:], gradients)]
        return *total, None, None, None, None

    @forward_mode
    def jvp(ctx: Any, saved: Sequence[Any], tscale: Tensor | None, *tangents: Any) -> Any:
        # a gradient moves as the gradient of the change that its arguments' motion makes
        moved = tangents[:6]
        *saved, baseline = saved
        _, x, y, a, b, sigma, weights = saved
        total = _second_order(saved, moved, ctx.drop, baseline, [False, *ctx.wants])[1:]
        if tscale is not None:
            modes = (ctx.drop, baseline, ctx.wants)
            gradients = kernel_sums_with_gradients(tscale, x, y, a, b, sigma, weights, *modes)[1:]
            total = add(total, wanted(gradients, ctx.wants))
        change = None
        if any(t is not None for t in moved):
            change = _sums_change(saved, moved, ctx.drop, baseline)
        return change, *total


def _second_order(
    saved: Sequence[Tensor],
    directions: Sequence[Tensor | None],
    drop: int,
    baseline: Tensor | None,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of the change of scale . sums along the directions, to (scale, x, y, a, b, sigma, weights)."""
    total: list[Tensor | None] = [None] * 7
    if all(t is None for t in directions):
        return total
    lie = (WHOLE, ROW, COLUMN, ROW, COLUMN, WHOLE, WHOLE, ROW, COLUMN, ROW, COLUMN, WHOLE, WHOLE)
    for number, (*own, skip) in enumerate(_pairs(drop)):
        places = (0, *own, 5, 6)

        def change(
            scale: Tensor, *rest: Any, tile: Tile, block: slice, number: int = number, skip: bool = skip
        ) -> Any:
            of_block = partial(block_change, block=block)
            arguments: Any = (of_block, *rest, skip and tile.on_diagonal, baseline, block.start == 0)
            return (scale[:, number] * _pairs_change(*arguments)).sum()

        inputs = [saved[k] for k in places] + [directions[k - 1] for k in places[1:]]
        needed_here = [*(needed[k] for k in places), *[False] * 6]
        p, q, _, v = (saved[k] for k in own)
        found = vjp_by_tiles(change, inputs, lie, needed_here, tiles(p, q), coordinate_blocks(v[..., None], p))
        for place, gradient in zip(places, found, strict=False):
            total = add(total, [gradient if k == place else None for k in range(7)])
    return total


def _pairs(drop: int) -> list[tuple[int, int, int, int, bool]]:
    """Of each sum its points and their weights, as places in (scale, x, y, a, b), and whether i = j is left out."""
    return [(1, 1, 3, 3, drop >= 1), (2, 2, 4, 4, drop >= 1), (1, 2, 3, 4, drop >= 2)]


def _sums_change(
    saved: Sequence[Tensor], directions: Sequence[Tensor | None], drop: int, baseline: Tensor | None
) -> Tensor:
    """How the sums (B, 3) of saved, which begins with scale, change when the others move along the directions."""
    of_each = []
    for *places, skip in _pairs(drop):
        inputs = [saved[k] for k in (*places, 5, 6)] + [directions[k - 1] for k in (*places, 5, 6)]
        arguments: Any = (matmul_change, *inputs, skip, baseline)
        of_each.append(_pairs_change(*arguments))
    return torch.stack(of_each, dim=-1)


def _pairs_change(
    change: Callable[..., Tensor],
    p: Tensor,
    q: Tensor,
    u: Tensor,
    v: Tensor,
    sigma: Tensor,
    weights: Tensor,
    tp: Tensor | None,
    tq: Tensor | None,
    tu: Tensor | None,
    tv: Tensor | None,
    tsigma: Tensor | None,
    tweights: Tensor | None,
    skip_diagonal: bool,
    baseline: Tensor | None,
    with_u: bool = True,
) -> Tensor:
    """The change of sum_ij u_i K(p_i, q_j) v_j, (B,); `change` gives that of K v."""
    moved = (tp, tq, None if tv is None else tv[..., None], tsigma, tweights)
    rows = change(p, q, v[..., None], sigma, weights, None, moved, None, skip_diagonal, baseline)
    total = (u * rows[..., 0]).sum(-1)
    if tu is not None and with_u:
        product = rbf_matmul(p, q, v[..., None], sigma, weights, None, skip_diagonal, baseline)
        total = total + (tu.double() * product[..., 0]).sum(-1)
    return total


derive("kernel_sums", _KernelSums)
derive("kernel_sums_with_gradients", _KernelSumsWithGradients)
