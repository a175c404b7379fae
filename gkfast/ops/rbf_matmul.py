"""K @ v, and the change of K @ v that all second derivatives are made of."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

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

# second derivatives take so many rows and columns of K at a time, and multiply them with so many columns
_TILE = 8192
_COLUMNS = 128


def rbf_matmul(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    sigma: Tensor,
    weights: Tensor,
    shift: Tensor | None = None,
    skip_diagonal: bool = False,
    baseline: Tensor | None = None,
    precision: str = "highest",
) -> Tensor:
    """K @ v, (B, N, E). See gkfast.rbf_matmul.

    Kernels times exp(-shift_is) where shift (B, N, S) is given; (K - sum_s weights_s baseline_s) @ v where
    baseline (B, S), of 0 and 1, is given.
    """
    return call("rbf_matmul", _RbfMatmul, x, y, v, sigma, weights, shift, skip_diagonal, baseline, precision)


def rbf_matmul_backward(
    g: Tensor,
    x: Tensor,
    y: Tensor,
    v: Tensor,
    sigma: Tensor,
    weights: Tensor,
    shift: Tensor | None,
    skip_diagonal: bool,
    baseline: Tensor | None,
    wants: Wants,
    precision: str = "highest",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of sum_ie g_ie (K v)_ie to (x, y, v, sigma, weights); those not wanted are (B, 0)."""
    arguments = (g, x, y, v, sigma, weights, shift, skip_diagonal, baseline, list(wants), precision)
    return call("rbf_matmul_backward", _RbfMatmulBackward, *arguments)


def _rbf_matmul_fake(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    sigma: Tensor,
    weights: Tensor,
    shift: Tensor | None,
    skip_diagonal: bool,
    baseline: Tensor | None,
    precision: str,
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
    baseline: Tensor | None,
    precision: str,
) -> Tensor:
    from gkfast.kernels import cpu

    shifts = None if shift is None else array(shift)
    arrays = (array(x), array(y), array(v), numbers(sigma), numbers(weights))
    baselines = None if baseline is None else numbers(baseline)
    return tensor(cpu.rbf_matmul(*arrays, shifts, skip_diagonal, baselines), x)


def _rbf_matmul_gpu(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    sigma: Tensor,
    weights: Tensor,
    shift: Tensor | None,
    skip_diagonal: bool,
    baseline: Tensor | None,
    precision: str,
) -> Tensor:
    from gkfast.kernels import gpu

    x, y, v = x.contiguous(), y.contiguous(), v.contiguous()
    shift = None if shift is None else shift.contiguous()
    return gpu.rbf_matmul(x, y, v, sigma, weights, shift, skip_diagonal, baseline, precision)


def _rbf_matmul_backward_fake(
    g: Tensor,
    x: Tensor,
    y: Tensor,
    v: Tensor,
    sigma: Tensor,
    weights: Tensor,
    shift: Tensor | None,
    skip_diagonal: bool,
    baseline: Tensor | None,
    wants: Wants,
    precision: str,
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
    baseline: Tensor | None,
    wants: Wants,
    precision: str,
) -> tuple[Tensor, ...]:
    from gkfast.kernels import cpu

    shifts = None if shift is None else array(shift)
    arrays = (array(g), array(x), array(y), array(v), numbers(sigma), numbers(weights))
    baselines = None if baseline is None else numbers(baseline)
    gradients = cpu.rbf_matmul_backward(*arrays, wants, shifts, skip_diagonal, baselines)
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
    baseline: Tensor | None,
    wants: Wants,
    precision: str,
) -> tuple[Tensor, ...]:
    from gkfast.kernels import gpu

    g, x, y, v = g.contiguous(), x.contiguous(), y.contiguous(), v.contiguous()
    shift = None if shift is None else shift.contiguous()
    modes = (shift, skip_diagonal, baseline, precision)
    gradients = gpu.rbf_matmul_backward(g, x, y, v, sigma, weights, tuple(wants), *modes)
    likes = (x, y, v, sigma, weights)
    return tuple(unwanted(like) if d is None else d.to(like) for d, like in zip(gradients, likes, strict=True))


define(
    "rbf_matmul(Tensor x, Tensor y, Tensor v, Tensor sigma, Tensor weights, Tensor? shift, bool skip_diagonal,"
    " Tensor? baseline, str precision) -> Tensor",
    _rbf_matmul_fake,
    _rbf_matmul_cpu,
    _rbf_matmul_gpu,
)
define(
    "rbf_matmul_backward(Tensor g, Tensor x, Tensor y, Tensor v, Tensor sigma, Tensor weights, Tensor? shift,"
    " bool skip_diagonal, Tensor? baseline, bool[] wants, str precision)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
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
        ctx.save_for_backward(*inputs[:6], inputs[7])
        ctx.save_for_forward(*inputs[:6], inputs[7])
        ctx.skip_diagonal, _, ctx.precision = inputs[6:]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> Any:
        if g is None:
            return (None,) * 9
        x, y, v, sigma, weights, shift, baseline = ctx.saved_tensors
        wants = list(ctx.needs_input_grad[:5])
        modes = (ctx.skip_diagonal, baseline, wants, ctx.precision)
        gradients = rbf_matmul_backward(g, x, y, v, sigma, weights, shift, *modes)
        dshift = None
        if ctx.needs_input_grad[5]:
            by_bandwidth = _by_bandwidth(x, y, v, sigma, weights, shift, ctx.skip_diagonal, ctx.precision)
            dshift = -(g[..., None] * by_bandwidth).sum(2)
        return *wanted(gradients, wants), dshift, None, None, None

    @forward_mode
    def jvp(ctx: Any, saved: Sequence[Any], *tangents: Any) -> Tensor:
        x, y, v, sigma, weights, shift, baseline = saved
        change = matmul_change(x, y, v, sigma, weights, shift, tangents[:5], tangents[5], ctx.skip_diagonal, baseline)
        return change.to(x.dtype)


def _by_bandwidth(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    sigma: Tensor,
    weights: Tensor,
    shift: Tensor,
    skip_diagonal: bool,
    precision: str = "highest",
) -> Tensor:
    """w_s K_s v for each bandwidth, (B, N, E, S)."""
    one = (slice(s, s + 1) for s in range(sigma.shape[1]))
    modes = (skip_diagonal, None, precision)
    parts = [rbf_matmul(x, y, v, sigma[:, s], weights[:, s], shift[..., s], *modes) for s in one]
    return torch.stack(parts, dim=-1)


class _RbfMatmulBackward(torch.autograd.Function):
    vmap = staticmethod(folded(rbf_matmul_backward))

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return run("rbf_matmul_backward", arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:7], inputs[8])
        ctx.save_for_forward(*inputs[:7], inputs[8])
        ctx.skip_diagonal, _, ctx.wants = inputs[7:10]
        mark_unwanted(ctx, output, ctx.wants)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *directions: Tensor | None) -> Any:
        moved = wanted(directions, ctx.wants)
        *saved, baseline = ctx.saved_tensors
        gradients = _second_order(saved, moved, ctx.skip_diagonal, baseline, ctx.needs_input_grad[:7])
        return *gradients, None, None, None, None

    @forward_mode
    def jvp(ctx: Any, saved: Sequence[Any], tg: Tensor | None, *tangents: Any) -> Any:
        # a gradient moves as the gradient of the change that its arguments' motion makes
        moved, tshift = tangents[:5], tangents[5]
        *saved, baseline = saved
        total = _second_order(saved, moved, ctx.skip_diagonal, baseline, [False, *ctx.wants, False], tshift)[1:6]
        if tg is not None:
            _, x, y, v, sigma, weights, shift = saved
            modes = (ctx.skip_diagonal, baseline)
            gradients = rbf_matmul_backward(tg, x, y, v, sigma, weights, shift, *modes, ctx.wants)
            total = add(total, wanted(gradients, ctx.wants))
        return tuple(total)


def _second_order(
    saved: Sequence[Any],
    directions: Sequence[Tensor | None],
    skip_diagonal: bool,
    baseline: Tensor | None,
    needed: Sequence[bool],
    tshift: Tensor | None = None,
) -> list[Tensor | None]:
    """Gradients of the change of sum_ie g_ie (K v)_ie, to those of (g, x, y, v, sigma, weights, shift)."""
    if all(t is None for t in (*directions, tshift)):
        return [None] * 7

    def change(g: Tensor, *rest: Any, tile: Tile, block: slice) -> Tensor:
        x, y, v, sigma, weights, shift, *moved = rest
        skip = skip_diagonal and tile.on_diagonal
        return (g * block_change(x, y, v, sigma, weights, shift, moved[:5], moved[5], skip, baseline, block)).sum()

    _, x, y, v, *_ = saved
    inputs = (*saved, *directions, tshift)
    lie = (ROW, ROW, COLUMN, COLUMN, WHOLE, WHOLE, ROW, ROW, COLUMN, COLUMN, WHOLE, WHOLE, ROW)
    return vjp_by_tiles(change, inputs, lie, [*needed, *[False] * 6], tiles(x, y), coordinate_blocks(v, x))[:7]


class Tile(NamedTuple):
    """Some rows and columns of K. Second derivatives are computed by tiles, so that memory stays that of the data."""

    rows: slice
    columns: slice

    @property
    def on_diagonal(self) -> bool:
        return self.rows.start == self.columns.start

    def part(self, whole: Tensor | None, lies: int) -> Tensor | None:
        """What this tile needs of a tensor (B, N or M, ...) that belongs to rows or to columns."""
        if whole is None or lies == WHOLE:
            return whole
        place = self.rows if lies == ROW else self.columns
        return whole.narrow(1, place.start, place.stop - place.start)


# what the second dimension of a tensor counts
ROW, COLUMN, WHOLE = range(3)


def tiles(x: Tensor, y: Tensor) -> list[Tile]:
    """Squares, so that the diagonal is that of the tiles that it meets; row by row."""
    rows, columns = (
        [slice(k, min(k + _TILE, count)) for k in range(0, max(1, count), _TILE)]
        for count in (x.shape[1], y.shape[1])
    )
    return [Tile(r, c) for r in rows for c in columns]


def vjp_by_tiles(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    lie: Sequence[int],
    needed: Sequence[bool],
    parts: Sequence[Tile],
    blocks: Sequence[slice],
) -> list[Tensor | None]:
    """The gradient of the sum over tiles and blocks of function(*inputs of the tile, tile, block), see `vjp`."""
    found: list[dict[int, Tensor]] = [{} for _ in inputs]
    for tile in parts:
        own = [tile.part(whole, lies) for whole, lies in zip(inputs, lie, strict=True)]
        places = {ROW: tile.rows.start, COLUMN: tile.columns.start, WHOLE: 0}
        for block in blocks:
            gradients = vjp(partial(function, tile=tile, block=block), own, needed)
            for total, lies, gradient in zip(found, lie, gradients, strict=True):
                if gradient is not None:
                    place = places[lies]
                    total[place] = total[place] + gradient if place in total else gradient
    return [torch.cat(list(total.values()), 1) if len(total) > 1 else total.get(0) for total in found]


def coordinate_blocks(v: Tensor, x: Tensor) -> list[slice]:
    """The coordinates in blocks such that K meets about `_COLUMNS` columns at a time; an empty one if D = 0."""
    dims = x.shape[2]
    most = max(1, _COLUMNS // max(1, v.shape[2]) - 1)
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
    baseline: Tensor | None = None,
) -> Tensor:
    """How K v (B, N, E) changes when x, y, v, sigma, weights move along the directions, and shift along tshift.

    Float64.
    """
    rows: dict[int, Tensor] = {}
    inputs = (x, y, v, sigma, weights, shift, *directions, tshift)
    lie = (ROW, COLUMN, COLUMN, WHOLE, WHOLE, ROW, ROW, COLUMN, COLUMN, WHOLE, WHOLE, ROW)
    for tile in tiles(x, y):
        own: Any = [tile.part(whole, lies) for whole, lies in zip(inputs, lie, strict=True)]
        skip = skip_diagonal and tile.on_diagonal
        for block in coordinate_blocks(v, x):
            arguments: Any = (*own[:6], own[6:11], own[11], skip, baseline, block)
            part = block_change(*arguments)
            place = tile.rows.start
            rows[place] = rows[place] + part if place in rows else part
    return torch.cat(list(rows.values()), 1) if len(rows) > 1 else rows[0]


def block_change(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    sigma: Tensor,
    weights: Tensor,
    shift: Any,
    directions: Sequence[Tensor | None],
    tshift: Tensor | None,
    skip_diagonal: bool,
    baseline: Tensor | None,
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

    def product(columns: Tensor, factors: Tensor, less: Tensor | None = None) -> Tensor:
        return rbf_matmul(x, y, columns, sigma, factors, shift, skip_diagonal, less)

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
        total = total + product(tv, weights, baseline)
    if tweights is not None:
        total = total + product(v, tweights, baseline)
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
