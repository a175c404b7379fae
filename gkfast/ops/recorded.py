"""The short way: plain CPU tensors go as NumPy arrays, and one autograd Function records the whole call.

Operators are what torch.compile, torch.func, tracing and second derivatives see. On a GAN's batch they take longer
than the kernel itself: tensors for the bandwidths and weights, the views that give every tensor a batch dimension and
their derivatives, results of which only backward has need. Where nobody looks, none of that happens.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gkfast.ops.define import Wants, array, plain, plain_tensor
from gkfast.ops.torch_private import keeps_graph, transforms, version

# (arrays, which of their gradients will be wanted) -> the value, and what the gradients will be made of: also of the
# value, if it is the last of them
Value = Callable[[Sequence[np.ndarray], Wants], tuple[np.ndarray, Sequence[np.ndarray]]]
# (g, the tensors, what Value kept, which gradients are wanted) -> gradients of sum g . value, None where not wanted;
# of what was kept a value that has been changed in place is missing
Pull = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor], Wants], Sequence[Tensor | None]]


def possible(tensors: Sequence[Tensor]) -> bool:
    """Whether these are no more than numbers in memory, and nobody looks on."""
    return not torch.compiler.is_dynamo_compiling() and plain(tensors) and not transforms()


def call(tensors: Sequence[Tensor], value: Value, pull: Pull, again: Callable[..., Tensor]) -> Tensor:
    """The value, for which backward calls pull; again(*tensors) is the same value by operators, to any order."""
    if torch.is_grad_enabled():
        for t in tensors:
            if t.requires_grad:
                # apply less its look at forward's signature, which takes longer than a small kernel
                return super(torch.autograd.Function, _Recorded).apply(value, pull, again, *tensors)
    return torch.from_numpy(value([array(t) for t in tensors], (False,) * len(tensors))[0])


class _Recorded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Value, pull: Pull, again: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        result, kept = value([array(t) for t in tensors], ctx.needs_input_grad[3:])
        found = torch.from_numpy(result)
        ctx.pull, ctx.again, ctx.count, ctx.own = pull, again, len(tensors), None
        if kept and kept[-1] is result:
            # not saved as the others: whoever changes it in place later is free to
            kept, ctx.own, ctx.version = kept[:-1], found.detach(), version(found)
        ctx.save_for_backward(*tensors, *map(torch.from_numpy, kept))
        return found

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        saved = ctx.saved_tensors
        tensors, kept = saved[: ctx.count], saved[ctx.count :]
        if ctx.own is not None:
            if version(ctx.own) == ctx.version:
                kept = (*kept, ctx.own)
            if not keeps_graph():
                # as saved tensors are let go
                ctx.own = None
        wants = ctx.needs_input_grad[3:]
        differentiable = torch.is_grad_enabled()
        if not differentiable and plain_tensor(g):
            return None, None, None, *ctx.pull(g, tensors, kept, wants)
        # gradients must themselves be differentiable, or come many at a time
        with torch.enable_grad():
            value = ctx.again(*tensors)
        needed = [t for t, want in zip(tensors, wants, strict=True) if want]
        found = iter(torch.autograd.grad(value, needed, g, create_graph=differentiable))
        return None, None, None, *(next(found) if want else None for want in wants)
