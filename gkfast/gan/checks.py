"""Checks that several files of the GAN side share, and their messages: *name must rule, got value; do this*.

The kernels' own arguments are checked by gkfast.checks.
"""

import math
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

import gkfast.checks

# an R1 or R2 weight above is a mistake: on data near 1 papers take 0.1 to 100, and it grows as their square
GREATEST_PENALTY = 1e9

# the greatest seed of torch's generators
GREATEST_SEED = 2**63 - 1

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def require(module: str, purpose: str, package: str, extra: str = "train") -> None:
    """ImportError that names the extra to install, where a module cannot be imported."""
    try:
        import_module(module)
    except ImportError as error:
        raise missing(purpose, package, extra) from error


def missing(purpose: str, package: str, extra: str = "train") -> ImportError:
    return ImportError(f'{purpose} needs {package}, which is not installed; run pip install "gkfast[{extra}]"')


def shown(value: object) -> str:
    """A value in a few characters of one line."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else type(value).__name__


def whole(name: str, value: Any, least: int, remedy: str, most: int | None = None) -> int:
    """The whole number, as Python's."""
    if not _is_real(value, int | np.integer) or value < least or (most is not None and value > most):
        rule = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise _refusal(value)(f"{name} must be a whole number {rule}, got {shown(value)}; {remedy}")
    return int(value)


def number(
    name: str, value: Any, remedy: str, *, most: float = math.inf, open_below: bool = False, open_above: bool = False
) -> float:
    """The finite number between 0 and `most`, as Python's; either end may be left out."""
    if _is_real(value):
        converted = float(value)
        low = converted > 0 if open_below else converted >= 0
        if low and math.isfinite(converted) and (converted < most if open_above else converted <= most):
            return converted
    if most == math.inf:
        rule = "a finite number above 0" if open_below else "a finite number of at least 0"
    else:
        rule = f"a number from 0 to {'below ' * open_above}{most:g}"
    raise _refusal(value)(f"{name} must be {rule}, got {shown(value)}; {remedy}")


def _is_real(value: object, kinds: Any = int | float | np.integer | np.floating) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def _refusal(value: object) -> type[ValueError | TypeError]:
    """A number out of range is a bad value; everything else is of the wrong type."""
    return ValueError if _is_real(value) else TypeError


def flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {shown(value)}; pass one of them")


def penalty(name: str, value: object) -> float:
    """The weight of a gradient penalty."""
    return number(name, value, "10 is usual for data near 1, for others scale the data", most=GREATEST_PENALTY)


def weight(value: object) -> float:
    """The weight of a kernel term."""
    return number("lam", value, "put a minus into the kernel term itself, or leave lam out")


def tensor(name: str, value: object) -> None:
    """value is a floating-point tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch tensor, got {shown(value)}; convert it with torch.as_tensor")
    if value.dtype not in FLOATS:
        raise TypeError(f"{name} must hold floating-point numbers, got {value.dtype}; cast it with .float()")


def outputs(**named: object) -> None:
    """Outputs of a network for one sample or more: (N, ...), all on one device."""
    first: Tensor | None = None
    for name, value in named.items():
        tensor(name, value)
        assert isinstance(value, Tensor)
        if value.ndim == 0 or value.numel() == 0:
            raise ValueError(
                f"{name} must have shape (N,) or (N, 1) with a row at least, got {tuple(value.shape)}; "
                "pass what the discriminator returns for a batch"
            )
        if first is not None and value.device != first.device:
            raise ValueError(
                f"{name} must be on the device of {next(iter(named))} ({first.device}), got {value.device}; "
                "move one with .to()"
            )
        first = value if first is None else first


def samples(**named: object) -> None:
    """Tensors of samples, (N, D), one at least, with one D, dtype and device."""
    first: tuple[str, Tensor] | None = None
    for name, value in named.items():
        tensor(name, value)
        assert isinstance(value, Tensor)
        if value.ndim != 2 or len(value) == 0:
            raise ValueError(
                f"{name} must have shape (N, D) with a row at least, got {tuple(value.shape)}; "
                f"flatten each sample with {name}.flatten(1)"
            )
        if first is not None:
            gkfast.checks.two_point_sets(*first, name, value)
        first = first or (name, value)


def same_shape(first: str, a: Tensor, second: str, b: Tensor, remedy: str) -> None:
    if a.shape != b.shape:
        raise ValueError(
            f"{first} and {second} must have the same shape, got {tuple(a.shape)} and {tuple(b.shape)}; {remedy}"
        )


def choice(name: str, value: object, known: Sequence[str], remedy: str) -> None:
    if not isinstance(value, str) or value not in known:
        names = " or ".join(f'"{option}"' for option in known)
        raise ValueError(f"{name} must be {names}, got {shown(value)}; {remedy}")


def loss(value: object, judges: Sequence[str], kernels: Sequence[str], own: Callable[[str], bool]) -> None:
    """A judge, a kernel term, or one of each with a plus between; a term may be the user's own."""
    parts = value.split("+") if isinstance(value, str) else []
    is_kernel = [part in kernels or own(part) for part in parts]
    is_judge = [part in judges for part in parts]
    if parts == ["literal"]:
        raise ValueError(
            "loss must have an adversary beside literal, which is 0, got 'literal'; write article+literal"
        )
    if len(parts) == 2 and is_kernel[0] and is_judge[1]:
        right = "+".join(reversed(parts))
        raise ValueError(f"loss must name the adversary or critic first, got {value!r}; write {right}")
    if (len(parts) == 1 and (is_judge[0] or is_kernel[0])) or (len(parts) == 2 and is_judge[0] and is_kernel[1]):
        return
    wrong = next((part for part, *known in zip(parts, is_judge, is_kernel, strict=True) if not any(known)), "")
    near = get_close_matches(wrong, [*judges, *kernels], 1)
    advice = f"did you mean {near[0]}?" if near else "choose among them"
    raise ValueError(
        f"loss must be an adversary or critic ({', '.join(judges)}), a kernel term ({', '.join(kernels)}, or "
        f"module:function for one of your own), or one of each as in gan+mmd, got {shown(value)}; {advice}"
    )


def function(name: str, value: object) -> None:
    if not callable(value):
        raise TypeError(f"{name} must be a callable, got {shown(value)}; pass a network or a function")
