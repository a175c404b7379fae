"""Every private name of torch that gkfast uses, with its reason; no other file of it uses one.

The GPU kernels, which import nothing from here, use TorchDispatchMode to record what a call does.

All are the same in torch 2.6.0, 2.13.0 and 2.15.0, with which the tests pass. None has a public equal, so a
torch without one of them is refused on import, by its name.
"""

import importlib
from collections.abc import Callable, Sequence, Set
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar

import torch
from torch.autograd import forward_ad

Function = TypeVar("Function", bound=Callable[..., Any])


def _find(module: str, name: str) -> Any:
    try:
        return attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"torch must have {module}.{name}, got torch {torch.__version__}, which lacks it; "
            "install a release of torch from 2.6 to 2.15"
        ) from error


# what a finished transform of torch.func left behind, as the tensor inside
unwrap_dead_wrappers = _find("torch._functorch.utils", "unwrap_dead_wrappers")
# the keys by which the dispatcher chooses: plain tensors have no others, whatever Python says of their type
dispatch_keys = _find("torch._C", "_dispatch_keys")
# a context in which operators run without being recorded, for where a Function is their derivative
below_autograd = _find("torch._C", "_AutoDispatchBelowAutograd")
# those who look on at operators: modes such as FakeTensorMode, torch.jit.trace, the profiler
dispatch_modes = _find("torch._C", "_len_torch_dispatch_stack")
tracing_state = _find("torch._C", "_get_tracing_state")
profiler_enabled = _find("torch._C", "_autograd._profiler_enabled")
# whether this backward keeps its graph (retain_graph), and so what was saved for it
keeps_graph = _find("torch._C", "_autograd._get_current_graph_task_keep_graph")
# forward mode stays on within a jvp, which torch calls with it off
forward_mode_enabled = _find("torch.autograd.forward_ad", "_set_fwd_grad_enabled")
# one operation for all tensors of a moving average, and for all gradients that are scaled
foreach_lerp_ = _find("torch", "_foreach_lerp_")
foreach_mul = _find("torch", "_foreach_mul")
# how often a tensor has been changed in place
version = attrgetter("_version")

# whether a transform of torch.func is under way; the level of forward mode, -1 outside of it
func_transforms = _find("torch._C", "_are_functorch_transforms_active")
_find("torch.autograd.forward_ad", "_current_level")


def transforms() -> bool:
    """Whether a transform of torch.func or forward mode is under way, outside of a graph that is being traced."""
    return func_transforms() or forward_ad._current_level >= 0


# dispatch keys of an ordinary CPU tensor, in and out of inference mode
with torch.inference_mode():
    _PLAIN = {dispatch_keys(torch.empty(0, device="cpu")).raw_repr()}
_PLAIN.add(dispatch_keys(torch.empty(0, device="cpu")).raw_repr())


@cache
def plain_of_gpu() -> Set[int]:
    """The dispatch keys of ordinary CUDA tensors."""
    if not torch.cuda.is_available():
        return frozenset()
    with torch.inference_mode():
        inferred = dispatch_keys(torch.empty(0, device="cuda")).raw_repr()
    return frozenset({inferred, dispatch_keys(torch.empty(0, device="cuda")).raw_repr()})


def plain_place(arguments: Sequence[Any]) -> str:
    """Where ordinary tensors are, "cpu" or "cuda", if no mode, transform, trace or profiler is active; else "".

    The dispatcher may then be skipped. Among the tensors there may be None, and numbers in a tuple.
    """
    if dispatch_modes() or func_transforms() or tracing_state() or profiler_enabled():
        return ""
    keys = {dispatch_keys(a).raw_repr() for a in arguments if a is not None and type(a) is not tuple}
    if keys <= _PLAIN:
        return "cpu"
    return "cuda" if keys <= plain_of_gpu() else ""


def eager_place(arguments: Sequence[Any]) -> str:
    """`plain_place`, outside of forward mode and of a graph that is being traced."""
    if torch.compiler.is_dynamo_compiling() or forward_ad._current_level >= 0:
        return ""
    return plain_place(arguments)


def constant_when_compiled(function: Function) -> Function:
    """What torch.compiler.assume_constant_result does after loading dynamo, which takes a second."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
