"""K @ v, and the change of K @ v that all second derivatives are made of."""

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
from gkfast.ops.rbf import about_their_mean

# second derivatives multiply K with this many columns at a time, so that memory stays near that of the data
_COLUMNS = 20
# and with this many rows
_ROWS = 4096


def rbf_matmul(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    sigma: Tensor,
    weights: Tensor,
    shift: Tensor | None = None,
    skip_diagonal: bool = False,
    minus_one: bool = False,
) -> Tensor:
    """K @ v, (B, N, E). See gkfast.rbf_matmul.

    Kernels times exp(-shift_is) where shift (B, N, S) is given; (K - sum_s weights_s) @ v with minus_one.
    """
    return call("rbf_matmul", _RbfMatmul, x, y, v, sigma, weights, shift, skip_diagonal, minus_one)


def rbf_matmul_backward(
    g: Tensor,
    x: Tensor,
    y: Tensor,
    v: Tensor,
    sigma: Tensor,
    weights: Tensor,
    shift: Tensor | None,
    skip_diagonal: bool,
    minus_one: bool,
    wants: Wants,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of sum_ie g_ie (K v)_ie to (x, y, v, sigma, weights); those not wanted are (B, 0)."""
    arguments = (g, x, y, v, sigma, weights, shift, skip_diagonal, minus_one, list(wants))
    return call("rbf_matmul_backward", _RbfMatmulBackward, *arguments)


def _rbf_matmul_fake(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    sigma: Tensor,
    weights: Tensor,
    shift: Tensor | None,
    skip_diagonal: bool,
    minus_one: bool,
) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], v.shape[2])


def _rbf_matmul_cpu(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    sigma: Tensor,
    weights: Tensor,
    shift: Tensor | None,
    skip_diagonal: bool,
    minus_one: bool,
) -> Tensor:
    from gkfast.kernels import cpu

    shifts = None if shift is None else array(shift)
    arrays = (array(x), array(y), array(v), numbers(sigma), numbers(weights))
    return tensor(cpu.rbf_matmul(*arrays, shifts, skip_diagonal, minus_one), x)


def _rbf_matmul_gpu(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    sigma: Tensor,
    weights: Tensor,
    shift: Tensor | None,
    skip_diagonal: bool,
    minus_one: bool,
) -> Tensor:
    from gkfast.kernels import gpu

    x, y, v = x.contiguous(), y.contiguous(), v.contiguous()
    shift = None if shift is None else shift.contiguous()
    return gpu.rbf_matmul(x, y, v, sigma, weights, shift, skip_diagonal, minus_one)


def _rbf_matmul_backward_fake(
    g: Tensor,
    x: Tensor,
    y: Tensor,
    v: Tensor,
    sigma: Tensor,
    weights: Tensor,
    shift: Tensor | None,
    skip_diagonal: bool,
    minus_one: bool,
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
    minus_one: bool,
    wants: Wants,
) -> tuple[Tensor, ...]:
    from gkfast.kernels import cpu

    shifts = None if shift is None else array(shift)
    arrays = (array(g), array(x), array(y), array(v), numbers(sigma), numbers(weights))
    gradients = cpu.rbf_matmul_backward(*arrays, wants, shifts, skip_diagonal, minus_one)
    return tuple(tensor(d, like) for d, like in zip(gradients, (x, y, v, sigma, weights), strict=True))


def _rbf_matmul_backward_gpu(
    g: Tensor,
    x: Tensor,
    y: Tensor,
    v: Tensor,
    sigma: Tensor,
    weights: Tensor,
    shift: Tensor | None,
    skip_diagonal: bool,
    minus_one: bool,
    wants: Wants,
) -> tuple[Tensor, ...]:
    from gkfast.kernels import gpu

    g, x, y, v = g.contiguous(), x.contiguous(), y.contiguous(), v.contiguous()
    shift = None if shift is None else shift.contiguous()
    gradients = gpu.rbf_matmul_backward(g, x, y, v, sigma, weights, tuple(wants), shift, skip_diagonal, minus_one)
    likes = (x, y, v, sigma, weights)
    return tuple(unwanted(like) if d is None else d.to(like) for d, like in zip(gradients, likes, strict=True))


define(
    "rbf_matmul(Tensor x, Tensor y, Tensor v, Tensor sigma, Tensor weights, Tensor? shift, bool skip_diagonal,"
    " bool minus_one) -> Tensor",
    _rbf_matmul_fake,
    _rbf_matmul_cpu,
    _rbf_matmul_gpu,
)
define(
    "rbf_matmul_backward(Tensor g, Tensor x, Tensor y, Tensor v, Tensor sigma, Tensor weights, Tensor? shift,"
    " bool skip_diagonal, bool minus_one, bool[] wants) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _rbf_matmul_backward_fake,
    _rbf_matmul_backward_cpu,
    _rbf_matmul_backward_gpu,
)


def _rbf_matmul_vmap(info: Any, in_dims: Sequence[int | None], *arguments: Any) -> tuple[Tensor, int]:
    if [k for k, dim in enumerate(in_dims) if dim is not None] == [2]:
        # only v differs: its copies become more columns, and every kernel value serves all of them
        v = arguments[2].movedim(in_dims[2], -1)
        wide: Any = (*arguments[:2], v.flatten(2), *arguments[3:])
        result = rbf_matmul(*wide)
        return result.unflatten(2, v.shape[2:]), 3
    return folded(rbf_matmul)(info, in_dims, *arguments)


class _RbfMatmul(torch.autograd.Function):
    vmap = staticmethod(_rbf_matmul_vmap)

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return run("rbf_matmul", arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:6])
        ctx.save_for_forward(*inputs[:6])
        ctx.skip_diagonal, ctx.minus_one = inputs[6:]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> Any:
        if g is None:
            return (None,) * 8
        x, y, v, sigma, weights, shift = ctx.saved_tensors
        wants = list(ctx.needs_input_grad[:5])
        gradients = rbf_matmul_backward(g, x, y, v, sigma, weights, shift, ctx.skip_diagonal, ctx.minus_one, wants)
        dshift = None
        if ctx.needs_input_grad[5]:
            by_bandwidth = _by_bandwidth(x, y, v, sigma, weights, shift, ctx.skip_diagonal)
            dshift = -(g[..., None] * by_bandwidth).sum(2)
        return *wanted(gradients, wants), dshift, None, None

    @forward_mode
    def jvp(ctx: Any, saved: Sequence[Any], *tangents: Any) -> Tensor:
        x, y, v, sigma, weights, shift = saved
        change = matmul_change(
            x, y, v, sigma, weights, shift, tangents[:5], tangents[5], ctx.skip_diagonal, ctx.minus_one
        )
        return change.to(x.dtype)


def _by_bandwidth(
    x: Tensor, y: Tensor, v: Tensor, sigma: Tensor, weights: Tensor, shift: Tensor, skip_diagonal: bool
) -> Tensor:
    """w_s K_s v for each bandwidth, (B, N, E, S)."""
    one = (slice(s, s + 1) for s in range(sigma.shape[1]))
    parts = [rbf_matmul(x, y, v, sigma[:, s], weights[:, s], shift[..., s], skip_diagonal) for s in one]
    return torch.stack(parts, dim=-1)


class _RbfMatmulBackward(torch.autograd.Function):
    vmap = staticmethod(folded(rbf_matmul_backward))

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return run("rbf_matmul_backward", arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:7])
        ctx.save_for_forward(*inputs[:7])
        ctx.skip_diagonal, ctx.minus_one, ctx.wants = inputs[7:]
        mark_unwanted(ctx, output, ctx.wants)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *directions: Tensor | None) -> Any:
        moved = wanted(directions, ctx.wants)
        gradients = _second_order(
            ctx.saved_tensors, moved, ctx.skip_diagonal, ctx.minus_one, ctx.needs_input_grad[:7]
        )
        return *gradients, None, None, None

    @forward_mode
    def jvp(ctx: Any, saved: Sequence[Any], tg: Tensor | None, *tangents: Any) -> Any:
        # a gradient moves as the gradient of the change that its arguments' motion makes
        moved, tshift = tangents[:5], tangents[5]
        total = _second_order(saved, moved, ctx.skip_diagonal, ctx.minus_one, [False, *ctx.wants, False], tshift)[1:6]
        if tg is not None:
            _, x, y, v, sigma, weights, shift = saved
            modes = (ctx.skip_diagonal, ctx.minus_one)
            gradients = rbf_matmul_backward(tg, x, y, v, sigma, weights, shift, *modes, ctx.wants)
            total = add(total, wanted(gradients, ctx.wants))
        return tuple(total)


def _second_order(
    saved: Sequence[Any],
    directions: Sequence[Tensor | None],
    skip_diagonal: bool,
    minus_one: bool,
    needed: Sequence[bool],
    tshift: Tensor | None = None,
) -> list[Tensor | None]:
    """Gradients of the change of sum_ie g_ie (K v)_ie, to those of (g, x, y, v, sigma, weights, shift).

    Many rows of x go in blocks, so that memory stays near that of the data; unless i and j must be told apart.
    """
    total: list[Tensor | None] = [None] * 7
    if all(t is None for t in (*directions, tshift)):
        return total
    rows = saved[1].shape[1]
    if rows <= _ROWS or skip_diagonal:
        return _second_order_of_rows(saved, directions, skip_diagonal, minus_one, needed, tshift)
    by_row: list[list[Tensor | None]] = []
    for start in range(0, rows, _ROWS):
        g, x, y, v, sigma, weights, shift = saved
        count = min(_ROWS, rows - start)
        g, x, shift, tx, own_tshift = (
            None if t is None else t.narrow(1, start, count) for t in (g, x, shift, directions[0], tshift)
        )
        block = (g, x, y, v, sigma, weights, shift)
        found = _second_order_of_rows(block, (tx, *directions[1:]), False, minus_one, needed, own_tshift)
        by_row.append([found[k] for k in (0, 1, 6)])
        total = add(total, [None, None, *found[2:6], None])
    for k, parts in zip((0, 1, 6), zip(*by_row, strict=True), strict=True):
        total[k] = torch.cat(parts, 1) if needed[k] else None
    return total


def _second_order_of_rows(
    saved: Sequence[Any],
    directions: Sequence[Tensor | None],
    skip_diagonal: bool,
    minus_one: bool,
    needed: Sequence[bool],
    tshift: Tensor | None,
) -> list[Tensor | None]:
    total: list[Tensor | None] = [None] * 7
    for block in coordinate_blocks(saved[3].shape[2], saved[1].shape[2]):

        def change(g: Tensor, *arguments: Any, block: slice = block) -> Tensor:
            whole: Any = (*arguments, directions, tshift, skip_diagonal, minus_one, block)
            return (g * matmul_change(*whole)).sum()

        total = add(total, vjp(change, saved, needed))
    return total


def coordinate_blocks(columns: int, dims: int) -> list[slice]:
    """The coordinates in blocks such that K meets about `_COLUMNS` columns at a time; an empty one if D = 0."""
    most = max(1, _COLUMNS // max(1, columns) - 1)
    # equal blocks, since each computes all distances
    size = max(1, -(-dims // -(-max(1, dims) // most)))
    return [slice(d, min(d + size, dims)) for d in range(0, max(1, dims), size)]


def matmul_change(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    sigma: Tensor,
    weights: Tensor,
    shift: Tensor | None,
    directions: Sequence[Tensor | None],
    tshift: Tensor | None = None,
    skip_diagonal: bool = False,
    minus_one: bool = False,
    block: slice | None = None,
) -> Tensor:
    """How K v (B, N, E) changes when x, y, v, sigma, weights move along the directions, and shift along tshift.

    Float64. With a block, only the share of those coordinates.
    """
    arguments = (x, y, v, sigma, weights, shift, directions, tshift, skip_diagonal, minus_one)
    if block is not None:
        return _block_change(*arguments, block)
    total, *others = (_block_change(*arguments, block) for block in coordinate_blocks(v.shape[2], x.shape[2]))
    for part in others:
        total = total + part
    return total


def _block_change(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    sigma: Tensor,
    weights: Tensor,
    shift: Any,
    directions: Sequence[Tensor | None],
    tshift: Tensor | None,
    skip_diagonal: bool,
    minus_one: bool,
    block: slice,
) -> Tensor:
    """The share of one block of coordinates in the change of K v; the first block also holds what has none.

    The change of K (see `_rbf_change`) is K' times products of something of i with something of j, so each part is a
    product of K' with a few more columns, and K stays unstored. In float64, because those products cancel.
    """
    x, y, v, sigma, weights, shift, tshift, *moved = double(x, y, v, sigma, weights, shift, tshift, *directions)
    tx, ty, tv, tsigma, tweights = moved
    x, y = about_their_mean(x, y)
    first, second = _of_block(x, block), _of_block(y, block)
    total: Any = x.new_zeros(x.shape[0], x.shape[1], v.shape[2])

    def product(columns: Tensor, factors: Tensor, less_one: bool = False) -> Tensor:
        return rbf_matmul(x, y, columns, sigma, factors, shift, skip_diagonal, less_one)

    if tx is not None or ty is not None:
        columns = [v]
        if tx is not None:
            tx = _of_block(tx, block)
            columns.append(_outer(v, second))
        if ty is not None:
            ty = _of_block(ty, block)
            columns += [v * (ty * second).sum(-1, keepdim=True), _outer(v, ty)]
        parts = product(torch.cat(columns, -1), weights / sigma.square()).split([c.shape[2] for c in columns], -1)
        if tx is not None:
            total = _inner(parts[1], tx, v.shape[2]) - parts[0] * (tx * first).sum(-1, keepdim=True)
        if ty is not None:
            total = total + _inner(parts[-1], first, v.shape[2]) - parts[-2]
    if tsigma is not None:
        columns = [v, v * second.square().sum(-1, keepdim=True), _outer(v, second)]
        parts = product(torch.cat(columns, -1), tsigma * weights / sigma**3).split([c.shape[2] for c in columns], -1)
        crossed = _inner(parts[2], first, v.shape[2])
        total = total + parts[0] * first.square().sum(-1, keepdim=True) + parts[1] - 2 * crossed
    if block.start > 0:
        return total
    if tv is not None:
        total = total + product(tv, weights, minus_one)
    if tweights is not None:
        total = total + product(v, tweights, minus_one)
    if tshift is not None:
        total = total - (_by_bandwidth(x, y, v, sigma, weights, shift, skip_diagonal) * tshift[:, :, None]).sum(-1)
    return total


def _of_block(points: Tensor, block: slice) -> Tensor:
    # not points[..., block], which autograd's own batching of gradients cannot follow
    return points.narrow(-1, block.start, block.stop - block.start)


def _outer(v: Tensor, y: Tensor) -> Tensor:
    """v (B, M, E) and y (B, M, D) as (B, M, E D)"""
    return (v[..., :, None] * y[..., None, :]).flatten(2)


def _inner(product: Tensor, x: Tensor, columns: int) -> Tensor:
    """(B, N, E D) with x (B, N, D) as (B, N, E)"""
    return (product.unflatten(2, (columns, x.shape[2])) * x[..., None, :]).sum(-1)


derive("rbf_matmul", _RbfMatmul)
derive("rbf_matmul_backward", _RbfMatmulBackward)
