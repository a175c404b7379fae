"""The sums behind kernel means and MMD^2, with their gradients in the same sweep."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gkfast.ops.operator import Argument, Gradient, Operator, Options, Output, array_of, kernels, tensor_of
from gkfast.ops.rbf_matmul import rbf_matmul, tile_change
from gkfast.ops.tiling import Tile, add, tiles, vjp_by_tiles
from gkfast.ops.torch_private import eager_place, foreach_mul

# one combination for each of the three sums
_EACH = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
# of each sum its points and their weights, as places in (x, y, a, b), and from which `drop` on i = j is left out
_PAIRS = ((0, 0, 2, 2, 1), (1, 1, 3, 3, 1), (0, 1, 2, 3, 2))
# the axes of points, weights, sigma, kernel weights and baseline of such a pair
_PAIR_AXES = (("N", "D"), ("M", "D"), ("N",), ("M",), ("S",), ("S",), ("S",))


class Baselines(Operator):
    """1 or 0 for each bandwidth, to be subtracted from its kernel. See gkfast.kernels.reference.baselines."""

    name = "baselines"
    tensors = "x: N D, y: M D, sigma: S"
    result = "S"
    result_float64 = True

    @torch.no_grad()
    def __call__(self, *arguments: Argument, **options: Any) -> Tensor:
        x, y, sigma = arguments
        if eager_place(arguments) == "cpu":
            found: Tensor = self.on_cpu(arguments, options)
            return found
        from gkfast.kernels import reference

        batch = x.shape[:-2]
        mean_square = reference.mean_square_distance(*(t.reshape(batch.numel(), *t.shape[-2:]) for t in (x, y)))
        mean_square = mean_square.reshape(batch)
        if type(sigma) is tuple or (sigma.device != x.device and _shared(sigma)):
            # numbers go along as arguments; a copy would wait for the device, and no graph could capture it
            values = sigma if type(sigma) is tuple else sigma[(0,) * (sigma.ndim - 1)].double()
            return torch.stack([mean_square <= one * one for one in values], -1).double()
        return (mean_square[..., None] <= sigma.to(mean_square).square()).double()


def _shared(numbers: Tensor) -> bool:
    """Whether those of all problems are the same ones in memory."""
    return all(size == 1 or stride == 0 for size, stride in zip(numbers.shape[:-1], numbers.stride(), strict=False))


baselines = Baselines()


class Sums(Operator):
    """The sums over xx, yy and xy pairs, added up in float64; without a or b all weights are one.

        xx = sum_ij a_i a_j K(x_i, x_j),  yy = sum_ij b_i b_j K(y_i, y_j),  xy = sum_ij a_i b_j K(x_i, y_j)

    less_baselines: of K less the baselines of its bandwidths. See gkfast.kernel_means, gkfast.mmd2.
    """

    name = "sums"
    tensors = "x: N D, y: M D, a?: N, b?: M, sigma: S, weights: S"
    result = "3"
    result_float64 = True
    options = "int drop, bool less_baselines"
    gradients = "x y a b sigma weights"

    def change(self, tensors: Sequence[Any], tangents: Sequence[Any], options: Options) -> Tensor:
        operands = _operands(tensors, options)
        found = []
        for *places, least in _PAIRS:
            pair, moved = ([ts[k] for k in (*places, 4, 5, 6)] for ts in (operands, (*tangents, None)))
            found.append(_pair_change(rbf_matmul.change, pair, moved, options["drop"] >= least))
        return torch.stack(found, -1)

    def change_vjp(
        self, g: Tensor, tensors: Sequence[Any], tangents: Sequence[Any], options: Options, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        operands = _operands(tensors, options)
        # of g, the six tensors and the baseline
        found: list[Tensor | None] = [None] * 8
        of_g: list[Any] = []
        for number, (*points, least) in enumerate(_PAIRS):
            places = (*points, 4, 5, 6)
            pair, moved = ([ts[k] for k in places] for ts in (operands, (*tangents, None)))

            def total(tile: Tile, g: Tensor, *both: Any, least: int = least) -> Tensor:
                skip = options["drop"] >= least and tile.on_diagonal
                # what does not depend on coordinates belongs to the first block of them
                first = tile.coordinates.start == 0
                return (g[..., 0] * _pair_change(partial(tile_change, tile), both[:7], both[7:], skip, first)).sum()

            of_pair = [needed[0], *([*needed, False][k + 1] for k in places), *[False] * 7]
            parts = tiles(pair[0].shape[-2], pair[1].shape[-2], pair[0].shape[-1], 1)
            inputs = (g[..., number : number + 1], *pair, *moved)
            dg, *gradients = vjp_by_tiles(total, inputs, (("1",), *_PAIR_AXES, *_PAIR_AXES), of_pair, parts)[:8]
            of_g.append(dg)
            for place, gradient in zip(places, gradients, strict=True):
                found[place + 1] = add([found[place + 1]], [gradient])[0]
        return [torch.cat(of_g, -1) if needed[0] else None, *found[1:7]]


def _operands(tensors: Sequence[Any], options: Options) -> list[Any]:
    """(x, y, a, b, sigma, weights, baseline), with ones in place of no weights."""
    x, y, a, b, sigma, weights = tensors
    a, b = (p.new_ones(p.shape[:-1]) if u is None else u for p, u in ((x, a), (y, b)))
    return [x, y, a, b, sigma, weights, baselines(x, y, sigma.detach()) if options["less_baselines"] else None]


def _pair_change(
    change: Callable[..., Tensor], pair: Sequence[Any], moved: Sequence[Any], skip: bool, with_u: bool = True
) -> Tensor:
    """The change of sum_ij u_i K(p_i, q_j) v_j; `change` gives that of K v."""
    p, q, u, v, sigma, weights, baseline = pair
    tp, tq, tu, tv, tsigma, tweights, _ = moved
    operands = (p, q, v[..., None], sigma, weights, None, baseline)
    tangents = (tp, tq, None if tv is None else tv[..., None], tsigma, tweights, None, None)
    total = (u * change(operands, tangents, {"skip_diagonal": skip})[..., 0]).sum(-1)
    if tu is not None and with_u:
        total = total + (tu.double() * rbf_matmul(*operands, skip_diagonal=skip)[..., 0]).sum(-1)
    return total


def _call_kernel(
    device: str, scale: Any, operands: Sequence[Any], options: Options, want_sums: bool = True
) -> Sequence[Any]:
    asked = {**options, "want_sums": want_sums}
    found: Sequence[Any] = kernels(device).kernel_sums_with_gradients(scale, *operands, **asked)
    return found


class SumsWithGradients(Gradient):
    """The sums, and the gradients of g . sums."""

    with_value = True

    def call_kernel(self, device: str, operands: Sequence[Any], options: Options) -> Sequence[Any]:
        g, *tensors = operands
        _, sums, *found = _call_kernel(device, g[:, None], tensors, options)
        return sums, *(None if d is None else d[:, 0] for d in found)


class SumsBackward(Gradient):
    """The gradients of g . sums alone."""

    def call_kernel(self, device: str, operands: Sequence[Any], options: Options) -> Sequence[Any]:
        g, *tensors = operands
        _, _, *found = _call_kernel(device, g[:, None], tensors, options, want_sums=False)
        return [None if d is None else d[:, 0] for d in found]


class MMD2ByBandwidth(Operator):
    """scale . sums of each bandwidth's kernel less its baseline, in float64. See gkfast.mmd2.

    With the bandwidths weighted by g that is the value of `mmd2`, and so all gradients are those of the three sums.
    """

    name = "mmd2_by_bandwidth"
    tensors = "scale: 3, x: N D, y: M D, a?: N, b?: M, sigma: S"
    result = "S"
    result_float64 = True
    options = "int drop"

    def gradients_of(
        self, g: Tensor, arguments: Sequence[Argument], options: Options, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        scale, *tensors = arguments
        if type(scale) is tuple:
            scale = tensor_of(scale, g.shape[:-1], g)
        wants = [*needed[1:], False]
        # sums of kernels, but not their derivatives, change with the baselines
        options = {**options, "less_baselines": needed[0] or needed[3] or needed[4], "wants": wants}
        operands = (scale, *tensors, g)
        found: Any
        if needed[0]:
            of_scale, *found = kernel_sums_with_gradients(*operands, **options)
        else:
            of_scale, found = None, sums_backward(*operands, **options)
        return [of_scale, *(d if want else None for d, want in zip(found[:5], wants[:5], strict=True))]

    def change(self, tensors: Sequence[Any], tangents: Sequence[Any], options: Options) -> Tensor:
        """That of the sums is linear in the weights of the bandwidths: its gradient to them."""
        (scale, *tensors), (tscale, *tangents) = tensors, tangents
        total: Any = 0.0
        if tscale is not None:
            total = self(tscale, *tensors, **options)
        if any(t is not None for t in tangents):
            sigma = tensors[4]
            operands = (scale.to(tensors[0].device), [*tensors, torch.ones_like(sigma)], [*tangents, None])
            options = {**options, "less_baselines": True}
            total = total + _sums.change_vjp(*operands, options, [*[False] * 6, True])[6]
        found: Tensor = total
        return found


class Combinations(Operator):
    """scale . sums, and beside it what backward needs: the sums, and the gradients of each combination.

    The sweep that computes the values computes the gradients that will be asked for; backward scales them.
    """

    def __init__(self, name: str, rows: str) -> None:
        # rows: the axis that counts combinations, or none of a single one
        self.name, self.rows = name, tuple(rows.split())
        self.tensors = f"scale: {rows} 3, {Sums.tensors}"
        self.options = f"{Sums.options}, bool[] wants"
        super().__init__()
        self.define()
        self.differentiate()

    def declared_outputs(self) -> list[Output]:
        values = [Output(self.rows, self.x), Output(("3",), None)]
        return values + [Output((*self.rows, *slot.axes), k) for k, slot in enumerate(self.slots) if k > 0]

    def __call__(self, *arguments: Argument, **options: Any) -> Tensor:
        scale, *points, sigma, weights = arguments
        numbers = (scale, sigma, weights)
        graph = torch.is_grad_enabled()
        place = eager_place(points) if type(scale) is type(sigma) is type(weights) is tuple else ""
        if place:
            if graph and any([t is not None and t.requires_grad for t in points]):
                # as `_apply` does
                swept: Tensor = super(torch.autograd.Function, _Swept).apply(self, place, numbers, options, *points)
                return swept
            return self.swept(place, numbers, points, options, (False,) * 4)[0]
        wants = [graph and isinstance(a, Tensor) and a.requires_grad for a in arguments[1:]]
        found: Tensor = self.dispatched(arguments, {**options, "wants": wants})[0]
        return found

    def swept(
        self, place: str, numbers: tuple[Any, ...], points: Sequence[Any], options: Options, wants: Sequence[bool]
    ) -> Sequence[Any]:
        """The values, and the gradients to points and their weights, of ordinary tensors."""
        if place == "cuda":
            scale, sigma, weights = numbers
            operands = (scale, *points, sigma, weights)
            found = self.on_gpu(operands, {**options, "wants": [*wants, False, False]})
            return found[0], *found[2:6]
        batch = points[0].shape[:-2]
        count, axes = batch.numel(), len(batch)
        scale, sigma, weights = (array_of(values, count) for values in numbers)
        scale = scale.reshape(count, scale.shape[1] // 3, 3)
        cpu = kernels("cpu")
        arrays = [t if t is None else t.detach().numpy().reshape((count, *t.shape[axes:])) for t in points]
        operands = (scale, *arrays, sigma, weights)
        rest = {name: options[name] for name in ("drop", "less_baselines")}
        found = cpu.kernel_sums_with_gradients(*operands, **rest, wants=(*wants, False, False))
        first = 1 if self.rows else 2
        return [
            r if r is None else torch.from_numpy(r.reshape(batch + r.shape[first:])) for r in (found[0], *found[2:6])
        ]

    def call_kernel(self, device: str, operands: Sequence[Any], options: Options) -> Sequence[Any]:
        scale, *tensors = operands
        if isinstance(scale, Tensor) or device == "cpu":
            if device == "cuda" and scale.device != tensors[0].device:
                scale = scale.to(tensors[0].device)
            # numbers come as (B, 3 R)
            scale = scale.reshape(len(scale), math.prod(scale.shape[1:]) // 3, 3)
        values, sums, *found = _call_kernel(device, scale, tensors, options)
        if self.rows:
            return values, sums, *found
        return values[:, 0], sums, *[None if d is None else d[:, 0] for d in found]

    def save(self, ctx: Any, arguments: Sequence[Argument], options: Options, result: Any) -> list[Any]:
        _, sums, *gradients = result
        own = [d for d, want in zip(gradients, options["wants"], strict=True) if want]
        return [*super().save(ctx, arguments, options, result), sums, *own]

    def constants(self, results: Sequence[Any], wants: Sequence[bool]) -> list[Tensor]:
        return [t for t in results[1:] if t is not None]

    def backward(self, ctx: Any, g: Sequence[Tensor | None], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        if g[0] is None:
            return [None] * self.count
        weight, saved, wants, of_tensors = g[0], ctx.saved_tensors, ctx.options["wants"], needed[1:]
        sums, own = saved[self.count], saved[self.count + 1 :]
        if torch.is_grad_enabled() or any(need and not want for need, want in zip(of_tensors, wants, strict=True)):
            # gradients must themselves be differentiable, or a transform asks for one that was not foreseen
            scale, *tensors = self.restored(ctx, saved)[: self.count]
            gradients: list[Any]
            sums, *gradients = self.differentiable(weight, scale, tensors, {**ctx.options, "wants": list(of_tensors)})
        else:
            gradients = [None] * 6
            for k, d in zip([k for k in range(6) if wants[k]], own, strict=True):
                gradients[k] = self.times(weight, d) if of_tensors[k] else None
        of_scale = weight[..., None] * (sums[..., None, :] if self.rows else sums) if needed[0] else None
        return [of_scale, *gradients]

    def differentiable(self, g: Tensor, scale: Argument, tensors: Sequence[Argument], options: Options) -> list[Any]:
        """The sums, and the gradients of sum g . values that are wanted, by an operator with derivatives."""
        sums, *found = kernel_sums_with_gradients(self._of_sums(g.double(), scale), *tensors, **options)
        return [sums, *(d if want else None for d, want in zip(found, options["wants"], strict=True))]

    def jvp(self, ctx: Any, saved: Sequence[Any], tangents: Sequence[Any]) -> Any:
        scale, *tensors = self.as_tensors(self.restored(ctx, saved)[: self.count])
        scale = scale.unflatten(-1, (-1, 3)) if self.rows and scale.ndim < tensors[0].ndim else scale
        sums, (tscale, *tangents) = saved[self.count], tangents
        total: Any = 0.0
        if tscale is not None:
            total = (tscale * (sums[..., None, :] if self.rows else sums)).sum(-1)
        if any(t is not None for t in tangents):
            change = _sums.change(tensors, tangents, ctx.options)
            total = total + (scale.to(change.device) * (change[..., None, :] if self.rows else change)).sum(-1)
        return total.to(tensors[0].dtype), *[None] * 7

    def _of_sums(self, g: Tensor, scale: Argument) -> Tensor:
        """sum_r g_r scale_r, (..., 3): the gradient to the sums. Numbers need no copy to the device."""
        if type(scale) is not tuple:
            return (g[..., None] * scale).sum(-2) if self.rows else g[..., None] * scale
        g = g if self.rows else g[..., None]
        rows = range(g.shape[-1])
        return torch.stack([sum(g[..., r] * scale[3 * r + k] for r in rows) for k in range(3)], -1)

    def times(self, g: Tensor, gradients: Tensor) -> Tensor:
        """g gradients, summed over combinations; gradients to bandwidths may stay on the CPU."""
        if g.device != gradients.device or g.dtype != gradients.dtype:
            g = g.to(gradients)
        product = gradients * (g.reshape(*g.shape, *[1] * (gradients.ndim - g.ndim)) if g.ndim else g)
        return product.sum(g.ndim - 1) if self.rows else product


class _Swept(torch.autograd.Function):
    """A call on ordinary tensors: forward computes the gradients, backward scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        operator: Combinations,
        place: str,
        numbers: tuple[Any, ...],
        options: Options,
        *points: Tensor | None,
    ) -> Tensor:
        wants = ctx.needs_input_grad[4:]
        value, *gradients = operator.swept(place, numbers, points, options, wants)
        ctx.save_for_backward(*points, *gradients)
        ctx.call = operator, place, numbers, options
        found: Tensor = value
        return found

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        saved, needed = ctx.saved_tensors, ctx.needs_input_grad[4:]
        operator, place, numbers, options = ctx.call
        if not torch.is_grad_enabled():
            wanted = [k for k, need in enumerate(needed) if need]
            if place == "cuda" and g.ndim == 0 and len(wanted) > 1:
                # one launch for all
                scaled = dict(zip(wanted, foreach_mul([saved[4 + k] for k in wanted], g), strict=True))
                return None, None, None, None, *(scaled.get(k) for k in range(4))
            found = [operator.times(g, d) if need else None for d, need in zip(saved[4:], needed, strict=True)]
            return None, None, None, None, *found
        # gradients must themselves be differentiable
        scale, sigma, weights = numbers
        options = {**options, "wants": [*needed, False, False]}
        return None, None, None, None, *operator.differentiable(g, scale, [*saved[:4], sigma, weights], options)[1:5]


_sums = Sums()
kernel_sums_with_gradients = SumsWithGradients(_sums, "kernel_sums_with_gradients")
sums_backward = SumsBackward(_sums, "sums_backward")
mmd2_by_bandwidth = MMD2ByBandwidth()
mmd2_by_bandwidth.define()
mmd2_by_bandwidth.differentiate()
_mmd2 = Combinations("mmd2", "")
_kernel_sums = Combinations("kernel_sums", "R")


def mmd2(scale: Argument, *tensors: Argument, **options: Any) -> Tensor:
    """scale . sums of (x, y, a, b, sigma, weights) less the baselines, in the dtype of x. See gkfast.mmd2."""
    return _mmd2(scale, *tensors, **options, less_baselines=True)


def kernel_sums(*tensors: Argument, **options: Any) -> Tensor:
    """The three sums of (x, y, a, b, sigma, weights), in the dtype of x."""
    return _kernel_sums(_EACH, *tensors, **options, less_baselines=False)
