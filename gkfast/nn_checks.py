"""Checks of what the modules of gkfast.nn are made with and called with: as in checks.py, one sentence for each."""

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from gkfast.checks import Array, is_tensor


def coordinates(name: str, x: Array, dims: int) -> None:
    if x.shape[-1] != dims:
        raise ValueError(
            f"{name} must have {dims} coordinates, got {x.shape[-1]}; dims was set when the module was made"
        )


def constants(name: str, values: object, *, positive: bool = True) -> list[float]:
    """The numbers that a module is made with, as Python's floats."""
    found = []
    for entry in _entries(name, values):
        number = _real(entry)
        if number is None:
            raise TypeError(
                f"{name} must be a number or a sequence of numbers, got {_got(values)}; for example 1.0 or [1.0, 2.0]"
            )
        if positive and not 0 < number < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {_got(values)}; remove or replace the entry")
        if not -math.inf < number < math.inf:
            raise ValueError(f"{name} must be finite, got {_got(values)}; remove or replace the entry")
        found.append(number)
    return found


def _entries(name: str, values: Any) -> list[Any]:
    if is_tensor(values):
        if values.requires_grad:
            raise ValueError(
                f"{name} must be without a gradient where a module is made, got a tensor that requires one; "
                f"pass {name}.detach(), or call the function of gkfast, whose gradient reaches {name}"
            )
        if values.is_meta or values.layout is not sys.modules["torch"].strided:
            kind = "on the meta device" if values.is_meta else "of a sparse layout"
            raise ValueError(f"{name} must have numbers to read, got a tensor {kind}; pass Python's numbers")
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError(f"{name} must have no mask, got a masked array; pass {name}.compressed()")
    if is_tensor(values) or isinstance(values, np.ndarray):
        if values.ndim > 1 or 0 in values.shape:
            raise ValueError(
                f"{name} must be a number or a non-empty 1-D sequence, got shape {tuple(values.shape)}; flatten it"
            )
        entries = values.tolist()
        return entries if values.ndim else [entries]
    if isinstance(values, Sequence) and not isinstance(values, (str, bytes, bytearray)):
        if not len(values):
            raise ValueError(
                f"{name} must be a number or a non-empty 1-D sequence, got {_got(values)}; for example [1.0, 2.0]"
            )
        # a tensor of no axes is a number too
        arrays = (is_tensor(entry) or isinstance(entry, np.ndarray) for entry in values)
        return [
            _entries(name, entry)[0] if array and entry.ndim == 0 else entry
            for entry, array in zip(values, arrays, strict=True)
        ]
    return [values]


def _real(value: object) -> float | None:
    """A number of Python or NumPy as a float, infinite where it has too many digits; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _got(value: object) -> str:
    """value in one line of an error; Python prints no integer of some thousand digits."""
    try:
        text = repr(value)
    except ValueError:
        text = f"{type(value).__name__} with an integer of thousands of digits"
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def one_constant(name: str, value: object) -> float:
    """One positive number that a module is made with."""
    numbers = constants(name, value)
    if len(numbers) != 1:
        raise ValueError(f"{name} must be one number, got {_got(value)}; make a module for each")
    return numbers[0]


def found_or_given(sigma: object) -> str | list[float]:
    """The rule that finds a loss's bandwidths, or the bandwidths."""
    if not isinstance(sigma, str):
        return constants("sigma", sigma)
    if sigma not in ("median", "mean"):
        raise ValueError(
            f"sigma must be a number, a sequence, 'median' or 'mean', got {_got(sigma)}; 'median' is usual"
        )
    return str(sigma)


def share(name: str, value: object) -> float:
    """A number in [0, 1]."""
    number = _real(value)
    if number is None or not 0 <= number <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {_got(value)}; 1 follows every batch, 0 keeps the first")
    return number


def switch(name: str, value: object) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {_got(value)}; pass one of them")
    return bool(value)


def loss_estimator(value: object, root: bool) -> None:
    """What an MMDLoss estimates by, known before there are samples."""
    known = ("biased", "unbiased", "u_statistic", "linear")
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"estimator must be one of {', '.join(known)}, got {_got(value)}; unbiased is the usual one")
    if root and value != "biased":
        raise ValueError(
            f"estimator must be biased where root is True, got {value!r}; the others may fall below zero"
        )


def squared_bounds(lower: object, upper: object) -> tuple[float, float]:
    """The bounds of a repulsive loss."""
    least, most = _real(lower), _real(upper)
    if least is None or most is None or not 0 <= least < most:
        raise ValueError(
            f"lower and upper must be squared distances with 0 <= lower < upper, got {_got(lower)} and "
            f"{_got(upper)}; 0.25 and 4 are the paper's, for sigma 1"
        )
    return least, most


def term_form(value: object) -> None:
    if not isinstance(value, str) or value not in ("log_ratio", "literal"):
        raise ValueError(f"form must be log_ratio or literal, got {_got(value)}; literal is zero for every input")


# of one module: more coordinates than an image of 2000 x 2000 pixels in four colours
_MOST_DIMS = 1 << 24


def ard(values: list[float], dims: object, weights: object) -> tuple[list[float], int]:
    """One bandwidth for each of the dimensions, and their number."""
    count = int(dims) if isinstance(dims, (int, np.integer)) and not isinstance(dims, bool) else 0
    if not 1 <= count <= _MOST_DIMS:
        raise ValueError(
            f"dims must be a whole number of at least 1 and at most {_MOST_DIMS}, got {_got(dims)}; "
            f"it is the D of x (..., N, D)"
        )
    if len(values) not in (1, count):
        raise ValueError(
            f"sigma must be one number or one for each of {count} dimensions, got {len(values)}; leave dims out for "
            f"a sum of kernels"
        )
    if weights is not None:
        raise ValueError("weights must be left out with dims, got some; a kernel with dims is a single one")
    return (values * count if len(values) == 1 else values), count


def weights_of_kernels(weights: object, count: int) -> list[float] | None:
    """As many finite numbers as there are bandwidths."""
    if weights is None:
        return None
    numbers = constants("weights", weights, positive=False)
    if len(numbers) != count:
        raise ValueError(
            f"weights must have one entry per bandwidth ({count}), got {len(numbers)}; leave it out for all ones"
        )
    return numbers


def module_tensor(name: str, value: Any) -> None:
    """value is a dense torch tensor: modules take no arrays."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name} must be a torch tensor, got a masked array; leave the masked rows out and convert the others "
            f"with torch.from_numpy"
        )
    if not is_tensor(value):
        raise TypeError(
            f"{name} must be a torch tensor, got {type(value).__name__}; convert it with torch.as_tensor, or call "
            f"the function of gkfast, which takes NumPy arrays"
        )
    if value.layout is not sys.modules["torch"].strided:
        raise TypeError(
            f"{name} must be a dense tensor, got layout {value.layout}; convert it with {name}.to_dense()"
        )


def one_sample_per_row(name: str, value: Any, function: str) -> None:
    """value is a tensor (N, D): of images and of batches a loss cannot know what a sample is."""
    module_tensor(name, value)
    if value.ndim != 2:
        raise ValueError(
            f"{name} must have one sample per row, (N, D), got shape {tuple(value.shape)}; pass {name}.flatten(1) "
            f"for images and {name}.reshape(-1, 1) for numbers, or call {function} for batches of samples"
        )


def not_on_meta(name: str, on_meta: bool) -> None:
    if on_meta:
        raise ValueError(
            f"{name} must have its bandwidths in memory, got a module on the meta device; call "
            f"to_empty(device='cpu') on it and load its state"
        )
