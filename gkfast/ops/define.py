"""How an operator is made: defined with its kernels and its fake, given derivatives, and called."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

library = torch.library.Library("gkfast", "DEF")
Wants = Sequence[bool]


def define(
    schema: str, fake: Callable[..., Any], cpu: Callable[..., Any], gpu: Callable[..., Any] | None = None
) -> None:
    name = schema[: schema.index("(")]
    library.define(schema)
    torch.library.register_fake(f"gkfast::{name}", fake, lib=library)
    library.impl(name, cpu, "CPU")
    if gpu is not None:
        library.impl(name, gpu, "CUDA")


def derive(name: str, function: type[torch.autograd.Function]) -> None:
    torch.library.register_autograd(
        f"gkfast::{name}", function.backward, setup_context=function.setup_context, lib=library
    )


def call(name: str, function: Any, *arguments: Any) -> Any:
    # in a graph that is being traced the operator stands for itself
    if torch.compiler.is_dynamo_compiling():
        return getattr(torch.ops.gkfast, name)(*arguments)
    return function.apply(*arguments)


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().astype(np.float64)


def tensor(array: np.ndarray | None, like: Tensor) -> Tensor:
    """A result as a tensor; what was not wanted is an empty one, since operators return no None."""
    if array is None:
        return like.new_empty(0)
    return torch.from_numpy(np.ascontiguousarray(array)).to(like.dtype)


def fake(like: Tensor, wanted: bool) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format) if wanted else like.new_empty(0)


def wanted(gradients: Sequence[Tensor | None], wants: Wants) -> list[Tensor | None]:
    return [gradient if want else None for gradient, want in zip(gradients, wants, strict=True)]


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
