"""The arguments of one call: checked, brought to the form that its backend takes, and the result brought back.

Backends are modules with functions of the same names and arguments: `gkfast.kernels.cpu` for NumPy arrays,
`gkfast.ops` for tensors, and `gkfast.kernels.reference`, in torch, for either. The operators take any batch
dimensions, and numbers as tuples of floats; the other two take one batch dimension B and bandwidths (B, S).
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from gkfast import checks, notices
from gkfast.checks import Array, Backend, Precision, Sigma

# calls that are kept: a training repeats its few shapes and bandwidths, and checks them once
_MOST_KEPT = 256
_kept: dict[Any, "Call"] = {}


@dataclass(frozen=True, slots=True)
class Call:
    """What a call is, by its shapes, dtypes and numbers alone; it holds no arrays."""

    batch: tuple[int, ...]
    # of the caller
    dtype: Any
    tensors: bool
    # numpy or torch, and the dtype that the backend computes in
    xp: Any
    compute: Any
    backend: ModuleType
    # None where they are in an array or tensor
    sigma: tuple[float, ...] | None
    weights: tuple[float, ...] | None
    precision: Precision | None
    # whether the backend is the operators, which take any batch dimensions
    operators: bool
    # whether the point sets are in the backend's form as they are
    as_given: bool
    # of an estimator, one over the number of pairs in its means xx, yy and xy
    share_of_pair: Any

    @property
    def options(self) -> dict[str, Any]:
        """What the operators take besides; the CPU kernels and the reference have one precision."""
        if not self.operators:
            return {}
        # float64 is float64 in every mode, and only GPU kernels read it
        if self.compute == self.xp.float64:
            return {"precision": "highest"}
        if self.precision == "torch":
            return {"precision": self.backend.torch_precision()}
        return {"precision": self.precision or self.backend.default_precision()}

    @property
    def scalar_dtype(self) -> Any:
        """Losses of half-precision data come back in float32."""
        library: Any = sys.modules["torch"] if self.tensors else np
        return library.float64 if self.dtype == library.float64 else library.float32

    def operand(self, array: Array | None, axes: int = 2) -> Any:
        """An array with so many axes behind the batch, in the backend's form."""
        if array is None:
            return None
        if not self.tensors and self.xp is not np and not checks.is_tensor(array):
            # torch warns of an array that may not be written to
            array = self.xp.from_numpy(np.require(array, requirements=("C", "W")))
        if array.dtype != self.compute:
            array = array.to(self.compute) if self.xp is not np else array.astype(self.compute)
        if array.shape[:-axes] != self.batch:
            array = self.xp.broadcast_to(array, (*self.batch, *array.shape[array.ndim - axes :]))
        return array if self.operators else self._folded(array)

    def _folded(self, array: Array) -> Array:
        """(..., R, C) as (B, R, C)."""
        if len(self.batch) == 1:
            return array
        return array.reshape((math.prod(self.batch), *array.shape[len(self.batch) :]))

    def bandwidths(self, sigma: Sigma, weights: Sigma | None) -> tuple[Any, Any]:
        """sigma and weights as the backend takes them."""
        found = self.numbers(self.sigma) if self.sigma is not None else self._given(sigma, True)
        return found, self.numbers(self.weights) if self.weights is not None else self._given(weights, False)

    def numbers(self, values: tuple[float, ...]) -> Any:
        """Numbers as the backend takes them."""
        return values if self.operators else self.array(values)

    def array(self, values: Any) -> Array:
        """Numbers, the same for every problem, as a float64 array; an array as it is."""
        if type(values) is not tuple:
            return values
        if self.xp is np:
            return _array(values, math.prod(self.batch))
        # on the CPU, where kernels read them without waiting; named, since torch.set_default_device may say otherwise
        found = self.xp.tensor(values, dtype=self.xp.float64, device="cpu")
        return found.expand(*(self.batch if self.operators else [math.prod(self.batch)]), len(values))

    def _given(self, values: Sigma, lengths: bool) -> Array:
        """Arrays or tensors of bandwidths or weights, for each problem; tensors keep their device and gradient.

        A bandwidth in a tensor that is not positive becomes NaN, and so does every result that it has a part in: to
        refuse it would wait for the device.
        """
        values = checks.traced(values)
        entries = values if isinstance(values, (list, tuple, range)) else [values]
        tensors = [value for value in entries if checks.is_tensor(value)]
        found = self._stacked(values, tensors) if entries is values else self._own(values)
        if tensors and lengths:
            found = found * self.xp.where(found > 0, 1.0, math.nan)
        # leading dimensions of size 1 may be more than the batch has
        found = found.reshape(found.shape[max(0, found.ndim - 1 - len(self.batch)) :] or (1,))
        found = self.xp.broadcast_to(found, (*self.batch, found.shape[-1]))
        return found if self.operators else self._folded(found)

    def _stacked(self, entries: Sequence[Any], tensors: Sequence[Array]) -> Array:
        """Numbers, arrays and tensors, one for each bandwidth, as (..., S)."""
        if self.xp is np or not self.tensors or not tensors:
            return self._own(np.stack(np.broadcast_arrays(*(_as_float64(entry) for entry in entries)), -1))
        torch = self.xp
        # where one is on a device, all go there
        like = next((tensor for tensor in tensors if not checks.on_cpu(tensor)), tensors[0])
        # numbers beside tensors keep their digits
        wide = len(tensors) < len(entries) and like.device.type != "mps"
        dtype = torch.float64 if wide else like.dtype
        for tensor in tensors:
            dtype = dtype if tensor.dtype == dtype else torch.promote_types(dtype, tensor.dtype)
        parts = [torch.as_tensor(entry, dtype=dtype, device=like.device) for entry in entries]
        return torch.stack(torch.broadcast_tensors(*parts), -1)

    def _own(self, values: Array) -> Array:
        """An array or tensor in the backend's library."""
        if self.xp is np:
            return _as_float64(values)
        if checks.is_tensor(values) and self.tensors:
            return values
        return self.xp.tensor(values.tolist(), dtype=self.xp.float64, device="cpu").reshape(values.shape)

    def result(self, array: Array, dtype: Any = None) -> Array:
        """A result of the backend in the caller's form, dtype (or the one named) and library."""
        if not self.operators:
            array = array.reshape((*self.batch, *array.shape[1:]))
        if not self.tensors and self.xp is not np:
            array = array.numpy()
        dtype = self.dtype if dtype is None else dtype
        if array.dtype == dtype:
            return array
        return array.to(dtype) if self.tensors else array.astype(dtype)

    def each(self, sigma: Any, weights: Any, like: Array) -> list[tuple[Array, Array]]:
        """Each bandwidth and its weight, (...,) float64, beside an array."""
        arrays = [self.double(self.array(values)) for values in (sigma, weights)]
        if self.xp is not np:
            arrays = [array.to(like.device) for array in arrays]
        return [(arrays[0][..., s], arrays[1][..., s]) for s in range(arrays[0].shape[-1])]

    def double(self, array: Array) -> Array:
        return array.astype(np.float64) if self.xp is np else array.double()

    def computed(self, array: Array) -> Array:
        """In the dtype that is computed in."""
        return array.astype(self.compute) if self.xp is np else array.to(self.compute)

    def beside(self, array: Array) -> dict[str, Any]:
        """The device of an array, for functions that make one."""
        return {} if self.xp is np else {"device": array.device}


def weighted_sum(weights: Any, factors: Array) -> Array:
    """sum_s weights_s factors_s over the last axis; numbers need no copy to the device."""
    if type(weights) is tuple:
        return sum(weight * factors[..., s] for s, weight in enumerate(weights))
    if checks.is_tensor(weights):
        weights = weights.to(factors.device)
    return (weights * factors).sum(-1)


@lru_cache(maxsize=256)
def _array(values: tuple[float, ...], count: int) -> np.ndarray:
    return np.ascontiguousarray(np.broadcast_to(np.array(values), (count, len(values))))


def _as_float64(values: Any) -> np.ndarray:
    """Numbers, an array or a tensor as a float64 array; NumPy knows no bfloat16."""
    return np.array(values.tolist() if checks.is_tensor(values) else values, dtype=np.float64)


class Prepared(NamedTuple):
    """A call, its point sets and bandwidths in the backend's form, and the backend's options."""

    call: Call
    points: Sequence[Any]
    bandwidths: tuple[Any, Any]
    options: dict[str, Any]


def prepare(
    points: dict[str, Array],
    sigma: Sigma,
    weights: Sigma | None,
    precision: Precision | None,
    backend: Backend | None,
    others: dict[str, tuple[int, ...]] | None = None,
    estimator: Any = ...,
) -> Prepared:
    """Check the arguments of a function on point sets (..., N, D), and bring them to the backend's form.

    others: the batch dimensions of further arguments, by name; estimator: of the means over the pairs of x and y.
    """
    if type(weights) is str:
        weights = checks.shares(weights, sigma)
    arrays = under_autocast(*points.values())
    key = call = None
    if not _compiling():
        more = (*points, *(others.items() if others else ()), precision, backend, estimator)
        key, call = _look_up(arrays, sigma, weights, more)
    if call is None:
        names = dict(zip(points, arrays, strict=True))
        call = _checked(names, sigma, weights, precision, backend, others, estimator)
        if key is not None and call.sigma and call.weights:
            if len(_kept) >= _MOST_KEPT:
                _kept.clear()
            _kept[key] = call
    of_backend = arrays if call.as_given else [call.operand(a) for a in arrays]
    return Prepared(call, of_backend, call.bandwidths(sigma, weights), call.options)


# all that checks of points look at
_FACTS_OF_ARRAY = attrgetter("shape", "dtype")
_FACTS_OF_TENSOR = attrgetter("shape", "dtype", "device", "layout")


def _compiling() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.compiler.is_compiling()


def _look_up(
    arrays: Sequence[Array], sigma: Sigma, weights: Sigma | None, others: tuple[Any, ...]
) -> tuple[Any, Call | None]:
    """What a call is kept by, None where it cannot be, and the call if it was kept."""
    try:
        kinds = [(type(a), (_FACTS_OF_ARRAY if type(a) is np.ndarray else _FACTS_OF_TENSOR)(a)) for a in arrays]
        key = (*kinds, _as_key(sigma), _as_key(weights), *others)
        return key, _kept.get(key)
    except (AttributeError, RuntimeError, TypeError):
        # no array, one without a shape, or an unhashable option, to be refused; or a size that is a symbol
        return None, None


def _as_key(numbers: Any) -> Any:
    """Numbers in a form that can be looked up; 1, 1.0 and True are equal there, but for their types."""
    if type(numbers) in (list, tuple):
        return *numbers, *map(type, numbers)
    if type(numbers) is np.ndarray and numbers.ndim == 0:
        return numbers.item(), numbers.dtype
    return numbers if type(numbers) is float or numbers is None else (numbers, type(numbers))


def _checked(
    points: dict[str, Array],
    sigma: Sigma,
    weights: Sigma | None,
    precision: Precision | None,
    backend: Backend | None,
    others: dict[str, tuple[int, ...]] | None,
    estimator: Any,
) -> Call:
    (name, first), *rest = points.items()
    checks.points(name, first)
    for other_name, other in rest:
        checks.two_point_sets(name, first, other_name, other)
    if estimator is not ...:
        checks.estimator(estimator, points["x"], points["y"], bool(others))
    named = [(name, tuple(array.shape[:-2])) for name, array in points.items()]
    batch = checks.batch_shape([*named, *(others or {}).items()])
    count = checks.bandwidths(sigma, weights, batch)
    checks.have_values("sigma", sigma, first)
    checks.have_values("weights", weights, first)
    checks.precision(precision)
    checks.backend(backend, first)
    tensors = checks.is_tensor(first)
    module, operators = _backend(first, backend)
    xp: Any = np
    if tensors or backend == "reference":
        import torch

        xp = torch
    wide = str(first.dtype).endswith("float64")
    if xp is not np and not operators and not (tensors and first.device.type == "mps"):
        # the reference is for believing: in float64, but for a device that has none
        wide = True
    if precision is None and checks.on_cpu(first):
        precision = "highest"
    compute = xp.float64 if wide else xp.float32
    as_given = operators and first.dtype == compute and all(a.shape[:-2] == batch for a in points.values())
    return Call(
        batch=batch,
        dtype=first.dtype,
        tensors=tensors,
        xp=xp,
        compute=compute,
        backend=module,
        sigma=_tuple(sigma),
        weights=(1.0,) * count if weights is None else _tuple(weights),
        precision=precision,
        operators=operators,
        as_given=as_given,
        share_of_pair=None if estimator is ... else _share_of_pair(estimator, *points.values()),
    )


# which diagonals an estimator leaves out: 1 those of xx and yy, 2 that of xy as well
DROP = {"biased": 0, "unbiased": 1, "u_statistic": 2, "linear": 2}


def _share_of_pair(estimator: str, x: Array, y: Array) -> tuple[float, ...]:
    n, m, drop = x.shape[-2], y.shape[-2], DROP[estimator]
    return 1 / (n * n - n * (drop >= 1)), 1 / (m * m - m * (drop >= 1)), 1 / (n * m - n * (drop >= 2))


def _backend(first: Array, backend: Backend | None) -> tuple[ModuleType, bool]:
    """The module of the backend, and whether it is that of the operators."""
    if checks.is_tensor(first) and backend != "reference" and first.device.type in ("cpu", "cuda"):
        from gkfast import ops

        return ops, True
    if checks.is_tensor(first) or backend == "reference":
        if backend is None:
            notices.no_kernels(first.device)
        from gkfast.kernels import reference

        return reference, False
    from gkfast.kernels import cpu

    return cpu, False


def _tuple(values: Any) -> tuple[float, ...] | None:
    """Numbers as a tuple of floats; None for an array or tensor."""
    values = checks.as_floats(values)
    if not checks.floats(values):
        return None
    return (values,) if type(values) is float else tuple(values)


def under_autocast(*arrays: Array) -> Sequence[Any]:
    """Halves as float32 where torch.autocast is on, as torch's own distances and exponentials take them."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(arrays[0], torch.Tensor):
        return arrays
    device = arrays[0].device.type
    available = device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)
    if not available or not torch.is_autocast_enabled(device):
        return arrays
    halves = (torch.float16, torch.bfloat16)
    return [a.float() if isinstance(a, torch.Tensor) and a.dtype in halves else a for a in arrays]


def without_effect(rows: Array, weights: Array) -> tuple[Array, Array]:
    """Rows of weight 0 that are not finite as copies of the heaviest row: no sum then meets 0 times NaN.

    The derivative with respect to the weight of such a row is 0.
    """
    if rows.shape[-2] == 0:
        return rows, weights
    xp: Any = sys.modules["torch"] if checks.is_tensor(rows) else np
    odd = (weights == 0) & ~xp.isfinite(rows).all(-1)
    if xp is np and not odd.any():
        return rows, weights
    heaviest = weights.argmax(-1)[..., None, None]
    batch = checks.batch_shape([("rows", tuple(rows.shape[:-2])), ("weights", tuple(weights.shape[:-1]))])
    whole = xp.broadcast_to(rows, (*batch, *rows.shape[-2:]))
    places = xp.broadcast_to(heaviest, (*batch, 1, rows.shape[-1]))
    copy = np.take_along_axis(whole, places, -2) if xp is np else whole.gather(-2, places)
    return xp.where(odd[..., None], copy, whole), xp.where(odd, xp.zeros_like(weights), weights)
