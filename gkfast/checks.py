"""Every check on user input, and every message: *name must rule, got value; do this*.

Checks look at types, shapes, dtypes and devices. Values are looked at only where they are already Python numbers or
NumPy arrays, so nothing here waits for a device or breaks a graph.
"""

import math
import sys
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

Array = Any  # a NumPy array or a torch tensor; NumPy in, NumPy out, tensors in, tensors out
Sigma = Any  # a number, an array or tensor of shape () or (..., S), or a sequence of them
Backend = Literal["reference", "cpu", "gpu"]
Precision = Literal["highest", "high", "medium", "torch"]
Estimator = Literal["biased", "unbiased", "u_statistic", "linear"]

_DTYPES = ("float64", "float32", "bfloat16", "float16")
# a tuple, since torch.compile cannot follow a union of NumPy's types
_NUMBERS = (int, float, np.integer, np.floating)


def is_tensor(value: object) -> bool:
    """True for a torch tensor; torch is not loaded to find out."""
    if type(value) is np.ndarray or value is None:
        return False
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def floats(values: Any) -> bool:
    """One number, or a list or tuple of numbers, all of them Python's floats: found out in a moment."""
    return type(values) is float or (type(values) in (list, tuple) and {*map(type, values)} == {float})


def as_floats(values: Any) -> Any:
    """Numbers of Python and NumPy, alone or in a sequence, as a float or a tuple of floats; all else as it is."""
    if values is None:
        return None
    if floats(values):
        return tuple(values) if type(values) is list else values
    if compiling():
        values = traced(values)
    elif type(values) is np.ndarray and values.ndim == 0 and values.dtype.kind in "fiu":
        values = values.item()
    if isinstance(values, (list, tuple, range)):
        numbers = tuple([_as_float(value) for value in values])
        return numbers if floats(numbers) else values
    return _as_float(values)


def compiling() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.compiler.is_compiling())


def traced(value: Any) -> Any:
    """As torch.compile sees it: NumPy's arrays and scalars are tensors there, whose values nobody knows."""
    if not compiling():
        return value
    if isinstance(value, np.ndarray):
        return sys.modules["torch"].as_tensor(value)
    return [traced(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _as_float(value: Any) -> Any:
    # True is no length, and what float64 cannot hold is refused later
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        return value
    try:
        return float(value)
    except OverflowError:
        return value


def on_cpu(array: Array) -> bool:
    return not is_tensor(array) or array.device.type == "cpu"


def detached(array: Array) -> Array:
    """Without a gradient, where it could have one."""
    return array.detach() if is_tensor(array) else array


def dtype_name(array: Array) -> str:
    return str(array.dtype).removeprefix("torch.")


def _array(name: str, value: object) -> None:
    if not (is_tensor(value) or isinstance(value, np.ndarray)):
        raise TypeError(
            f"{name} must be a NumPy array or a torch tensor, got {type(value).__name__}; "
            f"convert it with numpy.asarray or torch.as_tensor"
        )
    _ordinary(name, value)
    # NumPy is slow to spell a dtype, and knows halves, singles and doubles by one character
    if isinstance(value, np.ndarray):
        known = value.dtype.char in "efd" and value.dtype.isnative
    else:
        known = dtype_name(value) in _DTYPES
    if not known:
        raise TypeError(
            f"{name} must have a floating dtype ({', '.join(_DTYPES)}), got {dtype_name(value)}; {_cast(name, value)}"
        )


def _cast(name: str, value: Array) -> str:
    if dtype_name(value).startswith("complex"):
        return f"take its real part, {name}.real"
    return f"cast it, for example {name}{'.float()' if is_tensor(value) else '.astype(numpy.float32)'}"


def _ordinary(name: str, value: Array) -> None:
    """An array or tensor that is no more than its numbers, one after the other."""
    if type(value) is np.ndarray:
        return
    if isinstance(value, np.ndarray):
        if isinstance(value, np.ma.MaskedArray):
            raise TypeError(
                f"{name} must be an array without a mask, got {type(value).__name__}; "
                f"fill the masked entries with {name}.filled()"
            )
        if isinstance(value, np.matrix):
            raise TypeError(
                f"{name} must be an array, got matrix, which is always 2-D; convert it with numpy.asarray({name})"
            )
        return
    if value.is_nested:
        raise TypeError(
            f"{name} must be a dense tensor, got a nested one; call once for each part, or pad it with "
            f"to_padded_tensor"
        )
    if value.layout is not sys.modules["torch"].strided:
        layout = str(value.layout).removeprefix("torch.")
        raise TypeError(f"{name} must be a dense tensor, got layout {layout}; convert it with {name}.to_dense()")
    if value.is_quantized:
        raise TypeError(
            f"{name} must have a floating dtype, got the quantized {dtype_name(value)}; "
            f"convert it with {name}.dequantize()"
        )


def same_kind(name: str, value: Array, first_name: str, first: Array) -> None:
    """value is an array of the same library, dtype and device as first."""
    _array(name, value)
    if is_tensor(value) != is_tensor(first):
        raise TypeError(
            f"{name} must be of the same library as {first_name}, got {type(value).__name__} and "
            f"{type(first).__name__}; convert one of them"
        )
    if value.dtype != first.dtype:
        raise ValueError(
            f"{name} must have the dtype of {first_name} ({dtype_name(first)}), got {dtype_name(value)}; cast one"
        )
    if is_tensor(value) and value.device != first.device:
        raise ValueError(
            f"{name} must be on the device of {first_name} ({first.device}), got {value.device}; move one with .to()"
        )


def points(name: str, value: Array) -> None:
    """value is an array of points, (..., N, D)."""
    _array(name, value)
    if value.ndim < 2:
        raise ValueError(
            f"{name} must have shape (..., N, D), got {tuple(value.shape)}; "
            f"for N points on a line use {name}.reshape(-1, 1)"
        )


def two_point_sets(x_name: str, x: Array, y_name: str, y: Array) -> None:
    """x (..., N, D) and y (..., M, D) with the same D and batch dimensions that broadcast."""
    points(x_name, x)
    points(y_name, y)
    same_kind(y_name, y, x_name, x)
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"{y_name} must have as many coordinates as {x_name} ({x.shape[-1]}), got {y.shape[-1]}; "
            f"both are (..., rows, D){flattened(x_name, x.shape, y_name, y.shape)}"
        )
    batch_shape(((x_name, x.shape[:-2]), (y_name, y.shape[:-2])))


def batch_shape(named: Sequence[tuple[str, tuple[int, ...]]]) -> tuple[int, ...]:
    """The batch dimensions that all of them broadcast to."""
    first = tuple(named[0][1])
    for _, shape in named:
        if shape != first:
            break
    else:
        return first
    # not by NumPy: torch 2.6 cannot trace its function
    found = [1] * max(len(shape) for _, shape in named)
    for _, shape in named:
        for place, size in enumerate(shape, len(found) - len(shape)):
            if size == 1:
                continue
            if found[place] not in (1, size):
                shapes = " and ".join(f"{name} {tuple(shape)}" for name, shape in named)
                images = "; for images (N, C, H, W) call .flatten(1) first" if len(found) > 1 else ""
                raise ValueError(
                    f"batch dimensions must broadcast, got {shapes}; give each leading dimension the same size, "
                    f"or 1{images}"
                )
            found[place] = size
    return tuple(found)


def flattened(x_name: str, x: tuple[int, ...], y_name: str, y: tuple[int, ...]) -> str:
    """What to add where points may have been meant to be images."""
    names = [f"{name}.flatten(1)" for name, shape in ((x_name, x), (y_name, y)) if len(shape) > 2]
    return f"; for images (N, C, H, W) use {' and '.join(names)}" if names else ""


def bandwidths(sigma: Sigma, weights: Sigma | None, batch: tuple[int, ...] | None = None) -> int:
    """sigma is one or more positive numbers, weights as many finite ones; those of a batch may be (..., S).

    How many each problem has.
    """
    count = _numbers("sigma", sigma, batch)
    if weights is not None and _numbers("weights", weights, batch) != count:
        raise ValueError(
            f"weights must have one entry per bandwidth ({count}), got {_numbers('weights', weights, batch)}; "
            f"leave it out for all ones"
        )
    return count


def shares(weights: str, sigma: Sigma) -> tuple[float, ...]:
    """The weights that a word stands for: "mean" gives each bandwidth of a problem an equal share of 1."""
    if weights != "mean":
        raise TypeError(
            f"weights must be a number or a sequence of numbers, got {weights!r}; "
            'for example [0.5, 0.5], or "mean" for the average over bandwidths'
        )
    shape = getattr(sigma, "shape", None)
    count = (shape[-1] if shape else 1) if shape is not None else len(sigma) if hasattr(sigma, "__len__") else 1
    # of no bandwidth at all, which is refused
    return (1 / max(count, 1),) * count


def _numbers(name: str, value: Sigma, batch: tuple[int, ...] | None) -> int:
    """How many numbers there are for one problem."""
    # the usual cases in a moment
    if type(value) is float and 0 < value < math.inf:
        return 1
    if (
        type(value) in (list, tuple)
        and value
        and all(type(entry) is float and 0 < entry < math.inf for entry in value)
    ):
        return len(value)
    if isinstance(value, str):
        raise TypeError(
            f"{name} must be a number or a sequence of numbers, got {value!r}; pass "
            "gkfast.median_sigma(x, y), or use a module of gkfast.nn, which takes the name of a rule"
        )
    value = traced(value)
    if is_tensor(value):
        _floating_tensor(name, value)
        return _shape_of_numbers(name, tuple(value.shape), batch)
    if isinstance(value, np.ndarray):
        _ordinary(name, value)
        if value.dtype.kind not in "fiu":
            raise TypeError(
                f"{name} must have a dtype of real numbers, got {value.dtype}; for example numpy.array([1.0, 2.0])"
            )
        count = _shape_of_numbers(name, value.shape, batch)
        numbers = value.reshape(-1).tolist()
        _finite(name, numbers, value.tolist())
        return count
    if not isinstance(value, (list, tuple, range)):
        _finite(name, [value], value)
        return 1
    entries: list[Any] = list(value)
    if not entries:
        raise ValueError(
            f"{name} must be a number or a non-empty sequence, got {value!r}; for example 1.0 or [1.0, 2.0]"
        )
    numbers = []
    for entry in entries:
        if is_tensor(entry):
            _floating_tensor(name, entry)
            _leading(name, entry.shape, batch or ())
        elif isinstance(entry, np.ndarray):
            _numbers(name, entry[..., None], batch or ())
        else:
            numbers.append(entry)
    _finite(name, numbers, value)
    return len(entries)


def _shape_of_numbers(name: str, shape: tuple[int, ...], batch: tuple[int, ...] | None) -> int:
    """The S of an array of shape () or (..., S), whose leading dimensions broadcast to the batch."""
    if not shape:
        return 1
    if shape[-1] == 0 or (batch is None and len(shape) > 1):
        raise ValueError(
            f"{name} must be a number or a non-empty 1-D sequence, got shape {shape}; "
            f"for one bandwidth per dimension divide the data: rbf(x / ell, y / ell)"
        )
    if batch and shape == batch and math.prod(shape) > 1:
        one = "bandwidth" if name == "sigma" else "weight"
        raise ValueError(
            f"{name} must be (..., S), got shape {shape}, which is the batch's as well; write {name}[..., None] for "
            f"one {one} for each problem, {name}[None] or a list for {shape[-1]} summed kernels"
        )
    _leading(name, shape[:-1], batch or ())
    return shape[-1]


def _leading(name: str, leading: Sequence[int], batch: tuple[int, ...]) -> None:
    """Dimensions before S enlarge no result; those of size 1 in front of the others may be dropped."""
    first = 0
    while first < len(leading) and leading[first] == 1:
        first += 1
    own = leading[first:]
    # by place from the end: torch 2.6 cannot trace zip of unequal lengths
    if len(own) > len(batch) or any(own[-k] not in (1, batch[-k]) for k in range(1, len(own) + 1)):
        raise ValueError(
            f"{name} must have leading dimensions that broadcast to {batch}, the batch's, got {tuple(leading)}; "
            f"the last dimension counts bandwidths; for one per dimension divide the data: rbf(x / ell, y / ell)"
        )


def _floating_tensor(name: str, value: Array) -> None:
    _ordinary(name, value)
    if dtype_name(value) not in _DTYPES:
        raise TypeError(f"{name} must have a floating dtype, got {dtype_name(value)}; {_cast(name, value)}")


def _finite(name: str, entries: list[Any], given: Any) -> None:
    """The entries of what was given are finite numbers, for sigma positive ones."""
    for entry in entries:
        given = entry if len(entries) > 8 else given
        if isinstance(entry, bool) or not isinstance(entry, _NUMBERS):
            raise TypeError(
                f"{name} must be a number or a sequence of numbers, got {given!r}; for example 1.0 or [1.0, 2.0]"
            )
        if isinstance(_as_float(entry), int):
            raise ValueError(f"{name} must be finite, got a whole number beyond float64; remove or replace the entry")
        if name == "sigma" and not 0 < entry < math.inf:
            raise ValueError(f"sigma must be positive and finite, got {given!r}; it is a length in the units of x")
        if not -math.inf < entry < math.inf:
            raise ValueError(f"{name} must be finite, got {given!r}; remove or replace the entry")


def positive_weights(weights: Sigma | None) -> None:
    """Mixture weights of a density, where values can be seen; those of a word are."""
    if isinstance(weights, str):
        return
    for entry in weights if isinstance(weights, (list, tuple, range)) else [weights]:
        if entry is None or is_tensor(entry) or (isinstance(entry, np.ndarray) and compiling()):
            continue
        if not (bool((entry > 0).all()) if isinstance(entry, np.ndarray) else entry > 0):
            raise ValueError(f"weights must be positive for a density, got {weights!r}; leave out what has no weight")


def have_values(name: str, values: Sigma | None, data: Array) -> None:
    """Tensors of bandwidths or weights have values where the data have some."""
    entries: Any = values if isinstance(values, (list, tuple)) else [values]
    for value in entries:
        on_meta = is_tensor(value) and value.device.type == "meta"
        if on_meta and not (is_tensor(data) and data.device.type == "meta"):
            raise ValueError(f"{name} must hold values, got a tensor on meta; move the data there as well")


def vector(name: str, value: Array, size: int, rows_of: str, like: Array) -> None:
    """value is (..., size), a number per row of another argument."""
    same_kind(name, value, rows_of, like)
    if value.ndim < 1 or value.shape[-1] != size:
        raise ValueError(
            f"{name} must have one entry per row of {rows_of} (..., {size}), got shape {tuple(value.shape)}"
            f"; reshape it"
        )
    if isinstance(value, np.ndarray) and not (np.isfinite(value).all() and (value >= 0).all()):
        raise ValueError(f"{name} must be finite and not negative, got such an entry; remove or replace it")
    if isinstance(value, np.ndarray) and size and not (value.max(-1) > 0).all():
        raise ValueError(f"{name} must have a positive entry, got only zeros; leave {name} out for equal weights")


def pairs_of_weights(name: str, value: Array, estimator: str) -> None:
    """Where i = j is left out, two rows have weight; values are seen in NumPy arrays alone."""
    if estimator != "biased" and isinstance(value, np.ndarray) and not ((value > 0).sum(-1) > 1).all():
        raise ValueError(
            f"{name} must have two positive entries for the {estimator} estimator, got one; "
            f"a single row has no pair: use the biased estimator"
        )


def right_hand_side(v: Array, y: Array) -> bool:
    """v is (..., M) or (..., M, E) for y (..., M, D); True where it has the column axis.

    v has one where its last axis but one is as long as y has rows and it has as many axes as y, or more.
    """
    same_kind("v", v, "y", y)
    rows = y.shape[-2]
    if v.ndim >= 2 and v.ndim >= y.ndim and v.shape[-2] == rows:
        return True
    if v.ndim >= 1 and v.shape[-1] == rows:
        return False
    raise ValueError(
        f"v must have shape (..., M) or (..., M, E) with M = {rows}, the rows of y, got {tuple(v.shape)}; "
        f"transpose or reshape it"
    )


def some_rows(
    name: str, array: Array, least: int, purpose: str, otherwise: str = "a mean over nothing has no value"
) -> None:
    if array.shape[-2] < least:
        raise ValueError(
            f"{name} must have at least {least} row{'s' * (least > 1)} for {purpose}, got {array.shape[-2]}; "
            f"{otherwise}"
        )


def estimator(value: str, x: Array, y: Array, weighted: bool) -> None:
    """value names an estimator that these samples allow."""
    known = ("biased", "unbiased", "u_statistic", "linear")
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"estimator must be one of {', '.join(known)}, got {value!r}; unbiased is the usual one")
    least = 1 if value == "biased" else 2
    for name, other, sample in (("x", "yy", x), ("y", "xx", y)):
        one = f"a single row has no pair: use the biased estimator, or {other} and xy of kernel_means"
        some_rows(name, sample, least, f"the {value} estimator", *[one] * (sample.shape[-2] == 1))
    if value in ("u_statistic", "linear") and x.shape[-2] != y.shape[-2]:
        raise ValueError(
            f"x and y must have the same number of rows for the {value} estimator, got {x.shape[-2]} and "
            f"{y.shape[-2]}; use unbiased for samples of different sizes"
        )
    if value == "linear" and weighted:
        raise ValueError(
            "x_weights and y_weights must be left out for the linear estimator, got weights; "
            "use biased or unbiased for weighted samples"
        )


def paired(estimator: object, x: Array, y: Array) -> None:
    """Rows of x and y that belong together, enough for an estimate of their dependence."""
    unbiased_or_biased("estimator", estimator)
    some_rows("x", x, 4 if estimator == "unbiased" else 2, f"the {estimator} estimator")
    if x.shape[-2] != y.shape[-2]:
        raise ValueError(
            f"y must have as many rows as x ({x.shape[-2]}), got {y.shape[-2]}; row i of y belongs to row i of x"
        )


def unbiased_or_biased(name: str, value: object) -> None:
    if not isinstance(value, str) or value not in ("unbiased", "biased"):
        raise ValueError(f"{name} must be unbiased or biased, got {value!r}; unbiased is the usual one")


def flag(name: str, value: bool) -> None:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}; pass a bool")


def by_bandwidth(value: bool, weights: Any) -> None:
    flag("by_bandwidth", value)
    if value and weights is not None:
        raise ValueError(f"weights must be None with by_bandwidth, got a {type(weights).__name__}; leave them out")


def leave_one_out(value: bool, x: Array, data: Array) -> None:
    flag("leave_one_out", value)
    if value and x.shape[-2] != data.shape[-2]:
        raise ValueError(
            f"x must have the rows of data with leave_one_out, got {x.shape[-2]} and {data.shape[-2]}; "
            f"row i of x leaves row i of data out"
        )
    if value:
        some_rows("data", data, 2, "leave_one_out")


def precision(value: str | None) -> None:
    if value is not None and (not isinstance(value, str) or value not in ("highest", "high", "medium", "torch")):
        raise ValueError(f"precision must be highest, high, medium, torch or None, got {value!r}; None is highest")


def backend(value: str | None, x: Array) -> None:
    """value names a backend that can run where x is."""
    if value is not None and (not isinstance(value, str) or value not in ("reference", "cpu", "gpu")):
        raise ValueError(f"backend must be reference, cpu, gpu or None, got {value!r}; None picks by device")
    device = x.device.type if is_tensor(x) else "cpu"
    if value == "cpu" and device != "cpu":
        raise ValueError(f"backend='cpu' must get data on the CPU, got {x.device}; move it with .cpu()")
    if value == "gpu" and device != "cuda":
        where = x.device if is_tensor(x) else "a NumPy array"
        raise ValueError(f"backend='gpu' must get tensors on a CUDA device, got {where}; move them with .cuda()")


def out(value: Array, shape: tuple[int, ...], arrays: Sequence[Array | None], needs_grad: bool) -> None:
    """value can take a result of this shape as it is; the arrays, x first, are what it is made of."""
    same_kind("out", value, "x", arrays[0])
    contiguous = value.is_contiguous() if is_tensor(value) else value.flags.c_contiguous and value.flags.writeable
    if tuple(value.shape) != shape or not contiguous:
        raise ValueError(
            f"out must be a writable contiguous array of shape {shape}, got shape {tuple(value.shape)}"
            f"{'' if contiguous else ', not contiguous or read-only'}; allocate it with empty"
        )
    if needs_grad:
        raise ValueError(
            "out must be left out where a gradient is wanted, got inputs that require one; "
            "call under torch.no_grad() or without out"
        )
    if is_tensor(value) and value.requires_grad and sys.modules["torch"].is_grad_enabled():
        raise ValueError("out must not require a gradient, since none is recorded, got one that does; detach it")
    if any(_share_memory(value, array) for array in arrays if array is not None):
        raise ValueError(
            "out must have memory of its own, got what overlaps the inputs, which are read while it is written; "
            "allocate it with empty"
        )


def _share_memory(one: Array, other: Array) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return np.may_share_memory(one, other)
    if not (is_tensor(one) and is_tensor(other)) or one.device != other.device or one.device.type == "meta":
        return False
    if compiling() or sys.modules["torch"]._C._are_functorch_transforms_active():
        # what stands for a tensor there has no memory
        return False
    (begin, end), (start, stop) = _span(one), _span(other)
    return begin < stop and start < end


def _span(tensor: Any) -> tuple[int, int]:
    """The addresses from the first number on, and just behind the last."""
    if tensor.numel() == 0:
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
