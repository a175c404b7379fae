"""How an operator is made: defined with its kernels and its fake, given derivatives and a vmap rule, and called.

Every tensor that an operator takes or returns has the batch dimension B first. So vmap needs one rule for all of
them: the dimension that it adds is folded into B.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from gkfast.ops.torch_private import (
    below_autograd,
    constant_when_compiled,
    dispatch_keys,
    dispatch_modes,
    forward_mode_enabled,
    func_transforms,
    profiler_enabled,
    tracing_state,
    transforms,
    unwrap_dead_wrappers,
)

library = torch.library.Library("gkfast", "DEF")
# what the dispatcher has been given: for calls that pass it by, and for tests without a GPU
_cpu: dict[str, Callable[..., Any]] = {}
gpu_kernels: dict[str, Callable[..., Any]] = {}

# what the dispatcher sees in tensors that are no more than numbers in memory, for which it would call the CPU kernel
with torch.inference_mode():
    _PLAIN = {dispatch_keys(torch.empty(0, device="cpu")).raw_repr()}
_PLAIN.add(dispatch_keys(torch.empty(0, device="cpu")).raw_repr())
Wants = Sequence[bool]


# a constant of a compiled graph, since dynamo cannot trace it; torch traces anew where the setting goes from or to
# "highest", not between the other two
@constant_when_compiled
def torch_precision() -> str:
    return torch.get_float32_matmul_precision()


def define(
    schema: str, fake: Callable[..., Any], cpu: Callable[..., Any], gpu: Callable[..., Any] | None = None
) -> None:
    name = schema[: schema.index("(")]
    library.define(schema)
    torch.library.register_fake(f"gkfast::{name}", fake, lib=library)
    library.impl(name, cpu, "CPU")
    _cpu[name] = cpu
    if gpu is not None:
        library.impl(name, gpu, "CUDA")
        gpu_kernels[name] = gpu


def derive(name: str, function: Any) -> None:
    torch.library.register_autograd(
        f"gkfast::{name}", function.backward, setup_context=function.setup_context, lib=library
    )
    # torch.func's transforms see the operator itself where a graph is traced: its Function has the rules for them
    library.impl(name, function.apply, "FuncTorchDynamicLayerFrontMode")


def call(name: str, function: Any, *arguments: Any) -> Any:
    # in a graph that is being traced the operator stands for itself
    if torch.compiler.is_dynamo_compiling():
        return getattr(torch.ops.gkfast, name)(*arguments)
    if transforms():
        return function.apply(*arguments)
    # what a finished transform left behind counts as the tensor inside, as it does for apply
    arguments = unwrap_dead_wrappers(arguments)
    if not torch.is_grad_enabled() or not any(isinstance(a, Tensor) and a.requires_grad for a in arguments):
        return run(name, arguments)
    # apply less its look at forward's signature, which takes longer than a small kernel
    return super(torch.autograd.Function, function).apply(*arguments)


def differentiated(*tensors: Tensor) -> bool:
    """Whether somebody may ask for a derivative of what is made of these."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return True
    return not torch.compiler.is_dynamo_compiling() and transforms()


def run(name: str, arguments: Sequence[Any]) -> Any:
    """The operator without its derivatives, for where a Function has them or nobody asks for any."""
    if plain(arguments):
        return _cpu[name](*arguments)
    with below_autograd():
        return getattr(torch.ops.gkfast, name).default(*arguments)


def plain(arguments: Sequence[Any]) -> bool:
    """Nothing but tensors in memory, and nobody looks on: the dispatcher would take longer than a small kernel."""
    watched = dispatch_modes() or func_transforms() or tracing_state() or profiler_enabled()
    return not watched and all(plain_tensor(a) for a in arguments if isinstance(a, Tensor))


def plain_tensor(tensor: Tensor) -> bool:
    """No more than numbers in memory, on the CPU."""
    return dispatch_keys(tensor).raw_repr() in _PLAIN


def visible(tensor: Tensor) -> bool:
    """Whether the numbers in a tensor may be looked at: it is on the CPU, and nothing is traced or transformed."""
    return not torch.compiler.is_dynamo_compiling() and not transforms() and plain((tensor,))


def folded(function: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """The vmap rule of a function all of whose tensors have B first: V more of them are a batch of V B."""

    def rule(info: Any, in_dims: Sequence[int | None], *arguments: Any) -> tuple[Any, Any]:
        size = info.batch_size

        def fold(argument: Any, dim: int | None) -> Any:
            if not isinstance(argument, Tensor):
                return argument
            whole = argument.expand(size, *argument.shape) if dim is None else argument.movedim(dim, 0)
            return whole.flatten(0, 1)

        def unfold(result: Tensor) -> Tensor:
            return result.unflatten(0, (size, -1)) if size else result.new_empty(0, 0, *result.shape[1:])

        results = function(*(fold(a, d) for a, d in zip(arguments, in_dims, strict=True)))
        if isinstance(results, Tensor):
            return unfold(results), 0
        return tuple(unfold(r) for r in results), tuple(0 for _ in results)

    return rule


def forward_mode(rule: Callable[..., Any]) -> Any:
    """rule(ctx, saved, *tangents) as an autograd.Function's jvp, which forward mode can differentiate again.

    PyTorch turns forward mode off around a jvp, and so would lose the tangents of an outer level, silently. Here
    it stays on, and the saved tensors come without their tangents of this level.
    """

    def jvp(ctx: Any, *tangents: Any) -> Any:
        saved = [None if t is None else forward_ad.unpack_dual(t, level=0).primal for t in ctx.saved_tensors]
        with forward_mode_enabled(True):
            return rule(ctx, saved, *tangents)

    return staticmethod(jvp)


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def numbers(tensor: Tensor) -> np.ndarray:
    here = tensor.dtype == torch.float64 and tensor.device.type == "cpu"
    return array(tensor if here else tensor.cpu().double())


def tensor(array: np.ndarray | None, like: Tensor) -> Tensor:
    """A result as a tensor; what was not wanted is (B, 0), since operators return no None."""
    if array is None:
        return unwanted(like)
    result = torch.from_numpy(np.ascontiguousarray(array))
    return result if result.dtype == like.dtype else result.to(like.dtype)


def unwanted(like: Tensor) -> Tensor:
    return like.new_empty(like.shape[0], 0)


def fake(like: Tensor, wanted: bool) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format) if wanted else unwanted(like)


def wanted(gradients: Sequence[Tensor | None], wants: Wants) -> list[Tensor | None]:
    return [gradient if want else None for gradient, want in zip(gradients, wants, strict=True)]


def mark_unwanted(ctx: Any, gradients: Sequence[Tensor], wants: Wants) -> None:
    ctx.mark_non_differentiable(*(d for d, want in zip(gradients, wants, strict=True) if not want))


def double(*tensors: Tensor | None) -> list[Any]:
    return [None if t is None else t.double() for t in tensors]


def add(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Sums of two lists of gradients, where None stands for zero."""
    return [b if a is None else a if b is None else a + b for a, b in zip(first, second, strict=True)]


def vjp(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], needed: Sequence[bool]
) -> list[Tensor | None]:
    """The gradient of a scalar function to those inputs that need one."""
    places = [k for k, need in enumerate(needed) if need]

    def of_needed(*values: Tensor) -> Tensor:
        arguments = list(inputs)
        for place, value in zip(places, values, strict=True):
            arguments[place] = value
        return function(*arguments)

    value, pull = torch.func.vjp(of_needed, *(inputs[k] for k in places))[:2]
    gradients: list[Tensor | None] = [None] * len(inputs)
    for place, gradient in zip(places, pull(torch.ones_like(value)), strict=True):
        gradients[place] = gradient
    return gradients
