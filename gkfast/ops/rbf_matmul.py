"""K @ v, and the change of K @ v that all second derivatives are made of."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gkfast.ops.operator import Argument, Gradient, Operator, Options
from gkfast.ops.tiling import Tile, tiles, vjp_by_tiles


class RbfMatmul(Operator):
    """K @ v. See gkfast.rbf_matmul.

    Kernels times exp(-shift_is) where shift is given; (K - sum_s weights_s baseline_s) @ v where baseline, of 0 and
    1, is given.
    """

    name = "rbf_matmul"
    tensors = "x: N D, y: M D, v: M E, sigma: S, weights: S, shift?: N S, baseline?: S"
    result = "N E"
    options = "bool skip_diagonal"
    gradients = "x y v sigma weights"

    def vmap(self, info: Any, in_dims: Sequence[Any], *inputs: Any) -> tuple[Any, Any]:
        if [k for k, dim in enumerate(in_dims[: self.count]) if dim is not None] != [2]:
            return super().vmap(info, in_dims, *inputs)
        # only v differs: its copies become more columns, and every kernel value serves all of them
        v = inputs[2].movedim(in_dims[2], -1)
        moved = (*inputs[:2], v.flatten(-2), *inputs[3:])
        result: Tensor = self(*self.arguments(moved), **self.chosen(moved))
        return result.unflatten(-1, v.shape[-2:]), result.ndim

    def gradients_of(
        self, g: Tensor, arguments: Sequence[Argument], options: Options, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        found = super().gradients_of(g, arguments, options, needed)
        if needed[5]:
            found[5] = -(g[..., None] * by_bandwidth(self.as_tensors(arguments), options)).sum(-2)
        return found

    def change(self, tensors: Sequence[Any], tangents: Sequence[Any], options: Options) -> Tensor:
        rows: dict[int, Tensor] = {}
        for tile in self._tiles(tensors):
            own, moved = (
                [tile.of(t, s.axes) for t, s in zip(ts, self.slots, strict=True)] for ts in (tensors, tangents)
            )
            part, start = tile_change(tile, own, moved, options), tile.rows.start
            rows[start] = rows[start] + part if start in rows else part
        return torch.cat(list(rows.values()), -2) if len(rows) > 1 else rows[0]

    def change_vjp(
        self, g: Tensor, tensors: Sequence[Any], tangents: Sequence[Any], options: Options, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        def total(tile: Tile, g: Tensor, *own: Any) -> Tensor:
            return (g * tile_change(tile, own[: self.count], own[self.count :], options)).sum()

        axes = [slot.axes for slot in self.slots]
        inputs, needed = (g, *tensors, *tangents), [*needed, *[False] * self.count]
        found = vjp_by_tiles(total, inputs, [("N", "E"), *axes, *axes], needed, self._tiles(tensors))
        return found[: self.count + 1]

    def _tiles(self, tensors: Sequence[Any]) -> Any:
        x, y, v = tensors[:3]
        return tiles(x.shape[-2], y.shape[-2], x.shape[-1], v.shape[-1])


def tile_change(tile: Tile, tensors: Sequence[Any], tangents: Sequence[Any], options: Options) -> Tensor:
    """The share of one tile in the change of K v; the first block of coordinates also holds what has none.

    The change of K (see `Rbf.change`) is K' times products of something of i with something of j, so each part is a
    product of K' with a few more columns, and K stays unstored. In float64, because those products cancel.
    """
    x, y, v, sigma, weights, shift, baseline = double(tensors)
    tx, ty, tv, tsigma, tweights, tshift, _ = double(tangents)
    skip_diagonal, block = options["skip_diagonal"] and tile.on_diagonal, tile.coordinates
    x, y = about_their_mean(x, y)
    first, second = _of_block(x, block), _of_block(y, block)
    total: Any = x.new_zeros(*x.shape[:-1], v.shape[-1])

    def product(columns: Tensor, factors: Tensor, less: Tensor | None = None) -> Tensor:
        found: Tensor = rbf_matmul(x, y, columns, sigma, factors, shift, less, skip_diagonal=skip_diagonal)
        return found

    if tx is not None or ty is not None:
        columns = [v]
        if tx is not None:
            tx = _of_block(tx, block)
            columns.append(_outer(v, second))
        if ty is not None:
            ty = _of_block(ty, block)
            columns += [v * (ty * second).sum(-1, keepdim=True), _outer(v, ty)]
        parts = product(torch.cat(columns, -1), weights / sigma.square()).split([c.shape[-1] for c in columns], -1)
        if tx is not None:
            total = _inner(parts[1], tx, v) - parts[0] * (tx * first).sum(-1, keepdim=True)
        if ty is not None:
            total = total + _inner(parts[-1], first, v) - parts[-2]
    if tsigma is not None:
        columns = [v, v * second.square().sum(-1, keepdim=True), _outer(v, second)]
        parts = product(torch.cat(columns, -1), tsigma * weights / sigma**3).split([c.shape[-1] for c in columns], -1)
        crossed = _inner(parts[2], first, v)
        total = total + parts[0] * first.square().sum(-1, keepdim=True) + parts[1] - 2 * crossed
    if block.start > 0:
        return total
    if tv is not None:
        total = total + product(tv, weights, baseline)
    if tweights is not None:
        total = total + product(v, tweights, baseline)
    if tshift is not None:
        own = {"skip_diagonal": skip_diagonal}
        by_each = by_bandwidth((x, y, v, sigma, weights, shift, None), own)
        total = total - (by_each * tshift[..., None, :]).sum(-1)
    return total


def by_bandwidth(tensors: Sequence[Any], options: Options) -> Tensor:
    """w_s K_s v for each bandwidth, (..., N, E, S)."""
    x, y, v, *of_bandwidths, _ = tensors
    # not sigma[..., s], see `_of_block`
    each = ([t.narrow(-1, s, 1) for t in of_bandwidths] for s in range(of_bandwidths[0].shape[-1]))
    return torch.stack([rbf_matmul(x, y, v, *own, **options) for own in each], dim=-1)


def double(tensors: Sequence[Tensor | None]) -> list[Any]:
    return [None if t is None else t.double() for t in tensors]


def about_their_mean(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """x and y less a common constant, which no difference sees: products of coordinates then cancel less."""
    if x.shape[-2] == 0 or y.shape[-2] == 0:
        return x, y
    centre = ((x.mean(-2, keepdim=True) + y.mean(-2, keepdim=True)) / 2).detach()
    return x - centre, y - centre


def _of_block(points: Tensor, block: slice) -> Tensor:
    # not points[..., block], which autograd's own batching of gradients cannot follow
    return points.narrow(-1, block.start, block.stop - block.start)


def _outer(v: Tensor, y: Tensor) -> Tensor:
    """v (..., M, E) and y (..., M, D) as (..., M, E D)"""
    return (v[..., :, None] * y[..., None, :]).flatten(-2)


def _inner(product: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """(..., N, E D) with x (..., N, D) as (..., N, E), for the E columns of v"""
    return (product.unflatten(-1, (v.shape[-1], x.shape[-1])) * x[..., None, :]).sum(-1)


rbf_matmul = RbfMatmul()
rbf_matmul.define()
rbf_matmul.differentiate()
rbf_matmul_backward = Gradient(rbf_matmul)
