"""The kernel matrix."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gkfast.ops.operator import Argument, Gradient, Operator, Options, Output, array_of, kernels
from gkfast.ops.rbf_matmul import about_their_mean, double
from gkfast.ops.torch_private import keeps_graph, plain_place, version


class Rbf(Operator):
    """K. See gkfast.rbf."""

    name = "rbf"
    tensors = "x: N D, y?: M D, sigma: S, weights: S"
    result = "N M"
    gradients = "x y sigma weights"

    def save(self, ctx: Any, arguments: Sequence[Argument], options: Options, result: Any) -> list[Any]:
        ctx.k = None
        return super().save(ctx, arguments, options, result)

    def record(self, ctx: Any, place: str, arguments: Sequence[Argument], options: Options) -> Any:
        result = super().record(ctx, place, arguments, options)
        # of one bandwidth K is what its gradients are made of. save_for_backward would forbid its change in place;
        # the version counter tells whether it is intact
        sigma, weights = arguments[2:]
        if place == "cpu" and type(sigma) is type(weights) is tuple and len(sigma) == 1:
            ctx.k, ctx.version = result.detach(), version(result)
        return result

    def backward(self, ctx: Any, g: Sequence[Tensor | None], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        k = ctx.k if ctx.k is not None and version(ctx.k) == ctx.version else None
        if ctx.k is not None and not keeps_graph():
            # as saved tensors are let go
            ctx.k = None
        if k is None or g[0] is None or torch.is_grad_enabled() or plain_place(g) != "cpu":
            return super().backward(ctx, g, needed)
        x, y, sigma, weights = self.restored(ctx, ctx.saved_tensors)
        count = x.shape[:-2].numel()
        matrices = [t if t is None else t.detach().numpy().reshape((count, *t.shape[-2:])) for t in (g[0], x, y)]
        numbers = [array_of(values, count) for values in (sigma, weights)]
        stored = k.numpy().reshape((count, *k.shape[-2:]))
        found = kernels("cpu").rbf_backward(*matrices, *numbers, wants=needed, k=stored)
        return [
            d if d is None else torch.from_numpy(d.reshape(t.shape))
            for d, t in zip(found, (x, y, None, None), strict=True)
        ]

    def change(self, tensors: Sequence[Any], tangents: Sequence[Any], options: Options) -> Tensor:
        """How K changes when x, y, sigma, weights move along the directions tx, ty, tsigma, tweights.

            dK_ij = K'_ij (tx_i - ty_j) . (y_j - x_i)
                    + sum_s (tsigma_s w_s |x_i - y_j|^2 / sigma_s^3 + tweights_s) k_sij

        with K' = sum_s w_s / sigma_s^2 k_s. With y None, y is x and ty is tx. In float64, because the products of
        coordinates cancel.
        """
        x, y, sigma, weights = double(tensors)
        tx, ty, tsigma, tweights = double(tangents)
        symmetric = y is None
        y, ty = (x, tx) if symmetric else (y, ty)
        first, second = about_their_mean(x, y)

        def kernel(factors: Tensor) -> Tensor:
            found: Tensor = self(x, None if symmetric else y, sigma, factors)
            return found

        total: Any = x.new_zeros(())
        if tx is not None or ty is not None:
            motion: Any = 0.0
            if tx is not None:
                motion = tx @ second.mT - (tx * first).sum(-1)[..., :, None]
            if ty is not None:
                motion = motion + first @ ty.mT - (ty * second).sum(-1)[..., None, :]
            total = kernel(weights / sigma.square()) * motion
        if tsigma is not None:
            squares = first.square().sum(-1)[..., :, None] + second.square().sum(-1)[..., None, :]
            total = total + kernel(tsigma * weights / sigma**3) * (squares - 2 * first @ second.mT)
        if tweights is not None:
            total = total + kernel(tweights)
        return total


class RbfOut(Operator):
    """K into `out`, without a derivative."""

    name = "rbf_out"
    tensors = "x: N D, y?: M D, sigma: S, weights: S, out: N M"

    def __call__(self, *arguments: Argument, **options: Any) -> None:
        torch.ops.gkfast.rbf_out(*self.flat(arguments, options))

    def declared_outputs(self) -> list[Output]:
        return []

    def call_kernel(self, device: str, operands: Sequence[Any], options: Options) -> Sequence[Any]:
        *tensors, out = operands
        kernels(device).rbf(*tensors, out=out, **options)
        return ()


rbf = Rbf()
rbf.define()
rbf.differentiate()
rbf_backward = Gradient(rbf)
rbf_out = RbfOut()
rbf_out.define()
