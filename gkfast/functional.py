"""The public functions: check, bring to one shape, call the backend, bring back.

    K[i, j] = sum_s w_s exp(-|x_i - y_j|^2 / (2 sigma_s^2))

Everywhere x is (..., N, D), y is (..., M, D), leading batch dimensions broadcast, and sigma is a length in the units
of x: one number, or S bandwidths whose kernels are summed with `weights` (default all ones), or (..., S) with others
for each problem of a batch. NumPy arrays give NumPy arrays; torch tensors give tensors on the same device,
differentiable. dtypes are float64, float32, bfloat16 and float16; halves are computed in float32, sums of them are
returned in float32, and under torch.autocast they count as float32.
"""

import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache, partial
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from gkfast import checks
from gkfast.checks import Array, Backend, Estimator, Precision, Sigma
from gkfast.squared_norm import squared_norm


class KernelMeans(NamedTuple):
    """Mean kernel values: within x, within y, and between them; each (...,)."""

    xx: Array
    yy: Array
    xy: Array


def under_autocast(*arrays: Array) -> list[Any]:
    """Halves as float32 where torch.autocast is on, as torch's own distances and exponentials take them."""
    return [a.float() if _autocast_half(a) else a for a in arrays]


def _autocast_half(array: Array) -> bool:
    if not checks.is_tensor(array) or array.dtype.itemsize != 2 or not array.is_floating_point():
        return False
    torch, device = sys.modules["torch"], array.device.type
    return bool(torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device))


class Problem:
    """The arguments of one call in the form that backends take: (B, N, D), float32 or float64, sigma (B, S)."""

    def __init__(
        self,
        op: str,
        named: dict[str, Array],
        sigma: Sigma,
        weights: Sigma | None,
        precision: Precision | None,
        backend: Backend | None,
    ) -> None:
        first = next(iter(named.values()))
        self.batch = checks.batch_shape([(name, tuple(a.shape[:-2])) for name, a in named.items()])
        checks.bandwidths(sigma, weights, self.batch)
        checks.precision(precision)
        checks.backend(backend, first)
        self.tensors = checks.is_tensor(first)
        self.count = math.prod(self.batch)
        self.dtype = first.dtype
        self.through_torch = not self.tensors and backend == "reference"
        if self.through_torch:
            import torch

            first = torch.from_numpy(np.empty(0, first.dtype))
        self.xp: Any = sys.modules["torch"] if checks.is_tensor(first) else np
        self.compute = self.xp.float64 if first.dtype == self.xp.float64 else self.xp.float32
        self.run = _backend(op, first, backend)
        # what the operators take besides: the CPU kernels and the reference have one precision
        by_operators = self.run.__name__ == "gkfast.ops"
        self.modes = {"precision": _precision(first, precision)} if by_operators else {}
        self.by_reference = self.run.__name__ == "gkfast.kernels.reference"
        if self.by_reference and first.device.type != "mps":
            # the reference is for believing: in float64, but for a device that has none
            self.compute = self.xp.float64
        self.sigma = self.numbers("sigma", sigma, first)
        if weights is None:
            self.weights = self._float64([1.0] * self.sigma.shape[-1])
        else:
            self.weights = self.numbers("weights", weights, first)

    def numbers(self, name: str, values: Sigma, data: Array) -> Array:
        """(S,), or (B, S) where problems differ; float64, but a tensor beside tensors stays what it is.

        So it keeps its gradient and its device. A bandwidth in a tensor that is not positive becomes NaN, as is then
        all that is made of it: to refuse it would wait for the device.
        """
        values = checks.as_floats(values)
        if checks.floats(values):
            # they stay on the CPU: kernels read them there without waiting for the device
            return self._float64([values] if type(values) is float else values)
        entries = values if isinstance(values, (list, tuple, range)) else [values]
        tensors = [value for value in entries if checks.is_tensor(value)]
        for tensor in tensors:
            checks.tensor_of_numbers(name, tensor, data)
        found = self._array(values, tensors) if entries is values else self._entry(values)
        if tensors and name == "sigma":
            found = found * self.xp.where(found > 0, 1.0, math.nan)
        if math.prod(found.shape[:-1]) == 1:
            # of no or one entry in front of S
            return found.reshape(found.shape[-1:] or (1,))
        found = found.reshape(found.shape[max(0, found.ndim - 1 - len(self.batch)) :])
        return self.xp.broadcast_to(found, (*self.batch, found.shape[-1])).reshape((self.count, found.shape[-1]))

    def _array(self, entries: Sequence[Any], tensors: Sequence[Array]) -> Array:
        """Numbers, arrays and tensors, one for each bandwidth, as (..., S)."""
        if self.xp is np or self.through_torch or not tensors:
            return self._entry(np.stack(np.broadcast_arrays(*(_numbers_of(entry) for entry in entries)), -1))
        torch = self.xp
        # multiples of a bandwidth found in the data, say; where one is on a device, all go there
        like = next((tensor for tensor in tensors if not checks.on_cpu(tensor)), tensors[0])
        # numbers beside tensors keep their digits
        wide = len(tensors) < len(entries) and like.device.type != "mps"
        dtype = torch.float64 if wide else like.dtype
        for tensor in tensors:
            dtype = dtype if tensor.dtype == dtype else torch.promote_types(dtype, tensor.dtype)
        parts = [torch.as_tensor(entry, dtype=dtype, device=like.device) for entry in entries]
        return torch.stack(torch.broadcast_tensors(*parts), -1)

    def _entry(self, values: Array) -> Array:
        """An array or tensor in this problem's library."""
        if self.xp is np:
            return _numbers_of(values)
        if checks.is_tensor(values) and not self.through_torch:
            return values
        return self._float64(values.tolist()).reshape(values.shape)

    def _float64(self, values: Any) -> Array:
        if self.xp is np:
            return np.array(values, dtype=np.float64)
        # named, since torch.set_default_device may say otherwise
        return self.xp.tensor(values, dtype=self.xp.float64, device="cpu")

    def bandwidths(self, count: int | None = None) -> tuple[Array, Array]:
        """sigma and weights for each of a batch, (B, S), by default this problem's batch."""
        count = self.count if count is None else count
        return self.for_each(self.sigma, count), self.for_each(self.weights, count)

    def for_each(self, numbers: Array, count: int | None = None) -> Array:
        """(S,) or (B, S) as (B, S); where each problem is split into parts, B counts those."""
        count = self.count if count is None else count
        if numbers.ndim == 1:
            return numbers[None] if count == 1 else self.xp.broadcast_to(numbers, (count, len(numbers)))
        if count == self.count:
            return numbers
        parts = (self.count, count // self.count, numbers.shape[1])
        return self.xp.broadcast_to(numbers[:, None], parts).reshape((count, numbers.shape[1]))

    def rows(self, array: Array) -> Array:
        """(..., R, C) as (B, R, C) in the dtype that is computed in."""
        if self.through_torch and not checks.is_tensor(array):
            # torch warns of what may not be written to
            array = self.xp.from_numpy(np.require(array, requirements=("C", "W")))
        if array.dtype != self.compute:
            array = array.to(self.compute) if self.xp is not np else array.astype(self.compute)
        if array.ndim == 2 and not self.batch:
            return array[None]
        whole = self.xp.broadcast_to(array, (*self.batch, *array.shape[-2:]))
        return whole.reshape((self.count, *array.shape[-2:]))

    def give(self, array: Array, dtype: Any = None) -> Array:
        """(B, ...) as (..., ...) in the caller's dtype (or the one named) and library."""
        if self.through_torch:
            array = array.numpy()
        dtype = self.dtype if dtype is None else dtype
        array = array.reshape((*self.batch, *array.shape[1:]))
        if array.dtype == dtype:
            return array
        return array.to(dtype) if self.tensors else array.astype(dtype)

    @property
    def scalar_dtype(self) -> Any:
        """Losses of half-precision data come back in float32."""
        wide = sys.modules["torch"] if self.tensors else np
        return wide.float64 if self.dtype == wide.float64 else wide.float32


def _numbers_of(values: Any) -> np.ndarray:
    """Numbers, an array or a tensor as a float64 array; NumPy knows no bfloat16."""
    return np.array(values.tolist() if checks.is_tensor(values) else values, dtype=np.float64)


def _backend(op: str, x: Array, backend: Backend | None) -> ModuleType:
    """The module whose function `op` runs: the CPU kernels for NumPy, the torch operators, or the reference."""
    if backend == "reference":
        from gkfast.kernels import reference

        return reference
    if not checks.is_tensor(x):
        from gkfast.kernels import cpu

        return cpu
    from gkfast import ops

    if x.device.type == "cpu" or (op in ops.ON_GPU and x.device.type == "cuda"):
        return ops
    checks.gpu_kernel(op, backend != "gpu")
    from gkfast.kernels import reference

    return reference


def _precision(x: Array, asked: Precision | None) -> str:
    """What the operators are told; float64 is float64 in every mode, and only GPU kernels read it."""
    if x.dtype.itemsize == 8:
        return "highest"
    if asked is None and x.device.type == "cuda":
        from gkfast import ops

        return ops.torch_precision()
    return asked or "highest"


def rbf(
    x: Array,
    y: Array | None = None,
    sigma: Sigma = 1.0,
    *,
    weights: Sigma | None = None,
    out: Array | None = None,
    precision: Precision | None = None,
    backend: Backend | None = None,
) -> Array:
    """Gaussian kernel matrix.

    .. code-block:: text

        K[..., i, j] = sum_s weights_s exp(-|x_i - y_j|^2 / (2 sigma_s^2))

    Parameters
    ----------
    x : array of shape (..., N, D)
        Points. NumPy array or torch tensor; float64, float32, bfloat16 or float16. Dimensions before N are a batch of
        problems: pass images (N, C, H, W) as x.flatten(1), or each channel of each would be a set of H points.
    y : array of shape (..., M, D), optional
        Points of the same library, dtype and device. None means y = x: K is then bitwise symmetric.
    sigma : float, or S numbers, or an array or tensor of shape () or (..., S)
        Bandwidths, in the units of x. gamma = 1 / (2 sigma^2). A list is always S bandwidths. The leading dimensions
        of an array broadcast to the batch's: of shape (B, 1) it has one bandwidth for each problem of a batch (B,).
        An entry of a list may be an array over the batch: ``[s, 2 * s]`` for ``s = median_sigma(x, y)``. An array of
        just the batch's shape could mean either, and is refused.
    weights : S numbers, or an array or tensor of shape (..., S), optional
        Weights of the summed kernels; all ones by default. Pass 1/S for the average.
    out : array of shape (..., N, M), optional
        Contiguous array of the dtype of x that receives K, with memory of its own; no gradient is then recorded.
    precision : {"highest", "high", "medium"}, optional
        Of GPU kernels for float32 and half-precision data, see Notes; None follows
        ``torch.get_float32_matmul_precision()``. For float64 data, and on the CPU, it changes nothing, but for
        float32 values of `log_density`.
    backend : {"reference", "cpu", "gpu"}, optional
        None picks by type and device.

    Returns
    -------
    array of shape (..., N, M)
        K in the dtype of x. Without rows it is empty; without coordinates (D = 0) every entry is sum_s weights_s.

    Raises
    ------
    TypeError
        For what is no floating-point array.
    ValueError
        For shapes, dtypes or devices that do not fit together, and for a sigma that is not positive.

    Notes
    -----
    Absolute error at most 1e-6 (float32) and 1e-14 (float64) times sum_s |weights_s|, for every finite input:
    distances that rounding would harm are sums of squared differences, so neither an offset nor far clusters cost
    digits. A kernel below the normal numbers of its dtype (1.2e-38 in float32) is 0. K_ii is exactly sum_s weights_s
    for finite x_i.
    On a GPU, where pairs are many, "high" and "medium" allow K 2e-4 and 4e-2, sums and gradients 1e-4 and 2e-2 of
    their norm, log densities 2^-14 and 2^-6 of the greatest exponent: for bandwidths of the data's scale, more where
    (x - centre)^2 / sigma^2 is large, and five times as much for gradients of MMD^2. Gradients have the precision of
    the value; the kernels' second derivatives, and forward mode, the highest.
    NaN stays in the entries concerned. O(N M (D + S)) time; memory is the result's, which on the CPU is kept for
    backward where there is one bandwidth; it may be changed in place. Gradients to x, y, sigma and weights, of every
    order; those to sigma and weights have the shape given. A sigma in a tensor is not checked, since that would wait
    for the device: where it is not positive, every result that it has a part in is NaN.

    Examples
    --------
    >>> import numpy, gkfast
    >>> gkfast.rbf(numpy.array([[0.0], [1.0]]), sigma=1.0).round(4)
    array([[1.    , 0.6065],
           [0.6065, 1.    ]])
    """
    options = {"sigma": sigma, "weights": weights, "precision": precision, "backend": backend}
    points = (x,) if y is None else (x, y)
    if out is None and _plain(points, **options):
        from gkfast.ops import recorded

        of_arrays, pull = partial(_rbf_of_arrays, **options), partial(_rbf_pull, **options)
        return recorded.call(points, of_arrays, pull, partial(_rbf, **options))
    return _rbf(x, y, out, **options)


def _rbf_of_arrays(points: Sequence[Array], wants: Sequence[bool], **options: Any) -> tuple[Array, list[Array]]:
    p, x, y = _rbf_worked_out(points, **options)
    k = p.give(p.run.rbf(x, y, *p.bandwidths()))
    # of one bandwidth K is what its gradients are made of
    return k, [k] if any(wants) and p.sigma.shape[-1] == 1 else []


def _rbf_pull(
    g: Array, points: Sequence[Array], kept: Sequence[Array], wants: Sequence[bool], **options: Any
) -> list[Array]:
    """Gradients of sum_ij g_ij K_ij to x, or to x and y."""
    from_numpy = sys.modules["torch"].from_numpy
    count = len(points)
    g, *arrays = (tensor.detach().numpy() for tensor in (g, *points, *kept))
    p, x, y = _rbf_worked_out(arrays[:count], **options)
    wants = (*wants, False, False, False)[:4]
    found = p.run.rbf_backward(p.rows(g), x, y, *p.bandwidths(), wants, *map(p.rows, arrays[count:]))
    return [None if d is None else from_numpy(p.give(d)) for d in found[:count]]


def _rbf_worked_out(points: Sequence[Array], **options: Any) -> tuple[Problem, Array, Array | None]:
    p = _worked_out(_problem_of, points, **options)
    x, y = (*map(p.rows, points), None)[:2]
    return p, x, y


@lru_cache(maxsize=32)
def _problem_of(shapes: Sequence[tuple[int, ...]], dtype: Any, **options: Any) -> Problem:
    return _rbf_problem(*_stand_ins(shapes, dtype), **options)[0]


def _rbf_problem(x: Array, y: Array | None = None, **options: Any) -> tuple[Problem, Array, Array | None]:
    if y is None:
        checks.points("x", x)
        p = Problem("rbf", {"x": x}, **options)
        return p, p.rows(x), None
    checks.two_point_sets("x", x, "y", y)
    p = Problem("rbf", {"x": x, "y": y}, **options)
    return p, p.rows(x), p.rows(y)


def _rbf(x: Array, y: Array | None = None, out: Array | None = None, **options: Any) -> Array:
    x, y = under_autocast(x, y)
    p, x3, y3 = _rbf_problem(x, y, **options)
    if out is None:
        return p.give(p.run.rbf(x3, y3, *p.bandwidths(), **p.modes))
    shape = (*p.batch, x.shape[-2], (x if y is None else y).shape[-2])
    inputs = (x, y, options["sigma"], options["weights"])
    checks.out(out, shape, inputs, _wants_gradient(p, x, y, p.sigma, p.weights))
    if p.by_reference or p.compute != p.dtype:
        out[...] = p.give(p.run.rbf(x3, y3, *p.bandwidths(), **p.modes))
    elif p.tensors:
        p.run.rbf_out(x3, y3, *p.bandwidths(), out.reshape((p.count, *shape[-2:])), **p.modes)
    else:
        p.run.rbf(x3, y3, *p.bandwidths(), out.reshape((p.count, *shape[-2:])))
    return out


def _plain(
    points: Sequence[Array], sigma: Sigma, weights: Sigma | None, precision: Precision | None, backend: Backend | None
) -> bool:
    """Whether the call may go the short way of gkfast.ops.recorded: nothing but these points can have gradients."""
    first = points[0]
    if not checks.is_tensor(first) or first.dtype.itemsize < 4 or not first.is_floating_point():
        return False
    if not all(option is None or isinstance(option, str) for option in (precision, backend)):
        # to be refused by name
        return False
    if backend not in (None, "cpu") or _holds_tensors(sigma) or _holds_tensors(weights):
        return False
    from gkfast.ops import recorded

    for other in points[1:]:
        if not checks.is_tensor(other) or other.dtype != first.dtype:
            return False
    # before their shapes, which nested tensors do not have
    return recorded.possible(points) and all(other.shape[:-2] == first.shape[:-2] for other in points[1:])


def _worked_out(what: Any, points: Sequence[Array], sigma: Sigma, weights: Sigma | None, **options: Any) -> Any:
    """what(shapes, dtype, ...) of arrays: from memory if it was worked out before, as in every step of a training."""
    sigma, weights = checks.as_floats(sigma), checks.as_floats(weights)
    shapes = tuple([a.shape for a in points])
    known = checks.floats(sigma) and (weights is None or checks.floats(weights))
    if not known or sum(map(math.prod, shapes)) > _MOST_REMEMBERED:
        # what is equal as a key need not be: True is 1.0
        what = what.__wrapped__
    return what(shapes, points[0].dtype, sigma=sigma, weights=weights, **options)


def _stand_ins(shapes: Sequence[tuple[int, ...]], dtype: Any) -> list[np.ndarray]:
    """Arrays that take no memory, for what looks at no values."""
    return [np.broadcast_to(np.zeros((), dtype), shape) for shape in shapes]


# numbers in the points: some of what is remembered has as many as they have rows
_MOST_REMEMBERED = 1 << 20


def _holds_tensors(values: Sigma | None) -> bool:
    if values is None or checks.floats(values):
        return False
    return any(checks.is_tensor(value) for value in (values if isinstance(values, (list, tuple)) else [values]))


def _without_effect(rows: Array, weights: Array) -> tuple[Array, Array]:
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


def _wants_gradient(p: Problem, *arrays: Array | None) -> bool:
    if not p.tensors or not sys.modules["torch"].is_grad_enabled():
        return False
    return any(a.requires_grad for a in arrays if a is not None)


def rbf_matmul(
    x: Array,
    y: Array | None,
    v: Array,
    sigma: Sigma = 1.0,
    *,
    weights: Sigma | None = None,
    precision: Precision | None = None,
    backend: Backend | None = None,
) -> Array:
    """Product of the kernel matrix with a vector or matrix; the kernel matrix is never stored.

    .. code-block:: text

        out[..., i, e] = sum_j K[i, j] v[..., j, e]

    Parameters
    ----------
    x : array of shape (..., N, D)
        Points; see `rbf` for x, y, sigma, weights, precision, backend, dtypes and errors.
    y : array of shape (..., M, D), or None
        None means y = x.
    v : array of shape (..., M) or (..., M, E)
        What K is multiplied with. It is read as (..., M, E) where it has as many axes as y, or more.

    Returns
    -------
    array of shape (..., N) or (..., N, E)
        In the dtype of x, but float32 for half-precision input, whose range a sum may leave; zeros where y has no
        rows.

    Notes
    -----
    O(N M (D + S + E)) time, O(N D + M D + (N + M) E) memory, at first and second order. Sums are float64 from block
    to block. Gradients to x, y, v, sigma and weights, of every order.

    Examples
    --------
    >>> import numpy, gkfast
    >>> x = numpy.array([[0.0], [1.0]])
    >>> gkfast.rbf_matmul(x, None, numpy.array([1.0, 1.0])).round(4)
    array([1.6065, 1.6065])
    """
    x, y, v = under_autocast(x, y, v)
    if y is None:
        checks.points("x", x)
        y = x
    else:
        checks.two_point_sets("x", x, "y", y)
    has_columns = checks.right_hand_side(v, y)
    v = v if has_columns else v[..., None]
    p = Problem("rbf_matmul", {"x": x, "y": y, "v": v}, sigma, weights, precision, backend)
    sums = p.run.rbf_matmul(p.rows(x), p.rows(y), p.rows(v), *p.bandwidths(), **p.modes)
    result = p.give(sums, p.scalar_dtype)
    return result if has_columns else result[..., 0]


def log_density(
    x: Array,
    data: Array,
    sigma: Sigma,
    *,
    weights: Sigma | None = None,
    data_weights: Array | None = None,
    leave_one_out: bool = False,
    precision: Precision | None = None,
    backend: Backend | None = None,
) -> Array:
    """Logarithm of the Gaussian kernel density estimate (Parzen window) of `data` at `x`.

    .. code-block:: text

        log p(x_i) = log sum_s w_s sum_j a_j (2 pi sigma_s^2)^(-D/2) exp(-|x_i - data_j|^2 / (2 sigma_s^2))

    with w and a normalised to sum to one. With leave_one_out, row i of x leaves row i of data out, and a is
    normalised over the others.

    Parameters
    ----------
    x : array of shape (..., N, D)
        Where the density is wanted; see `rbf` for sigma, precision, backend, dtypes and errors.
    data : array of shape (..., M, D)
        The sample; at least one row (two with leave_one_out).
    weights : S positive numbers, or an array or tensor of shape (..., S), optional
        Weights of the bandwidths; equal by default.
    data_weights : array of shape (..., M), optional
        Weights of the rows of data, not negative; equal by default. A row of weight 0 counts for nothing, whatever
        its coordinates.
    leave_one_out : bool
        Needs N = M.

    Returns
    -------
    array of shape (..., N)
        In natural logarithms of probability per unit of x to the power D; float32 for half-precision input.

    Notes
    -----
    A log-sum-exp: finite however far x is from the data. Exponents |x_i - data_j|^2 / (2 sigma_s^2) may reach
    thousands; they are computed in float64 for every dtype, but for float32 values of which no derivative is wanted:
    those are right to 3e-6 of 1 + the mean exponent + |log p| unless `precision` is "highest". On a GPU `precision`
    holds for derivatives too.
    O(N M (D + S)) time, O(N + M) memory besides copies of the data. Gradients of every order; the first is `score`.

    References
    ----------
    E. Parzen, "On estimation of a probability density function and mode", 1962, eq. (1.4).

    Examples
    --------
    >>> import numpy, gkfast
    >>> gkfast.log_density(numpy.zeros((1, 1)), numpy.zeros((5, 1)), 1.0).round(6)
    array([-0.918939])
    """
    p, arguments, constant = _density(
        "log_density", x, data, sigma, weights, data_weights, leave_one_out, precision, backend
    )
    modes: dict[str, Any] = p.modes
    if not p.tensors and not p.by_reference:
        modes = {"in_float64": precision == "highest"}
    elif modes:
        # gradients begin with the value, and want it better than float32 can be
        modes = {**modes, "alone": not p.run.differentiated(*arguments)}
        if precision is None and checks.on_cpu(x):
            modes["precision"] = "high"
    return p.give(p.run.log_density(*arguments, leave_one_out, **modes) + constant, p.scalar_dtype)


def score(
    x: Array,
    data: Array,
    sigma: Sigma,
    *,
    weights: Sigma | None = None,
    data_weights: Array | None = None,
    leave_one_out: bool = False,
    precision: Precision | None = None,
    backend: Backend | None = None,
) -> Array:
    """Gradient at `x` of `log_density`: the mean-shift vector over sigma squared.

    .. code-block:: text

        score(x_i) = sum_s sum_j p_sij (data_j - x_i) / sigma_s^2

    where p_sij, which sums to one over s and j, is the share of data row j and bandwidth s in the density at x_i.

    Parameters are those of `log_density`.

    Returns
    -------
    array of shape (..., N, D)
        In inverse units of x; float32 for half-precision input, whose range distance / sigma^2 may leave.

    Notes
    -----
    O(N M (D + S)) time and O(N D + M D) memory; on the CPU computed in float64 for every dtype, on a GPU if
    `precision` is "highest"; gradients of every order.

    References
    ----------
    D. Comaniciu and P. Meer, "Mean shift: a robust approach toward feature space analysis", 2002, eq. (17).

    Examples
    --------
    >>> import numpy, gkfast
    >>> gkfast.score(numpy.array([[1.0]]), numpy.array([[0.0]]), 2.0)
    array([[-0.25]])
    """
    p, arguments, _ = _density("score", x, data, sigma, weights, data_weights, leave_one_out, precision, backend)
    return p.give(p.run.score(*arguments, leave_one_out, **p.modes), p.scalar_dtype)


def _density(
    op: str,
    x: Array,
    data: Array,
    sigma: Sigma,
    weights: Sigma | None,
    data_weights: Array | None,
    leave_one_out: bool,
    precision: Precision | None,
    backend: Backend | None,
) -> tuple[Problem, tuple[Array, ...], Array]:
    """The arguments of the log-sum-exp, and what is to be added to it.

    That is the greatest normaliser, which would round the exponents were it among them, less log(1 - a_i) where row i
    is left out.
    """
    x, data, data_weights = under_autocast(x, data, data_weights)
    checks.two_point_sets("x", x, "data", data)
    checks.some_rows("data", data, 1, "a density")
    checks.leave_one_out(leave_one_out, x, data)
    named = {"x": x, "data": data}
    if data_weights is not None:
        checks.vector("data_weights", data_weights, data.shape[-2], "data", data)
        data, data_weights = _without_effect(data, data_weights)
        named["data_weights"] = data_weights[..., None]
    p = Problem(op, named, sigma, weights, precision, backend)
    checks.positive_weights(weights)
    xp, dims = p.xp, x.shape[-1]
    s, w = double(p, p.sigma), double(p, p.weights)
    if xp is not np and s.device != w.device:
        # numbers beside a bandwidth that is on the device, or the other way round; equal ones are made there
        home = w.device if checks.on_cpu(s) else s.device
        s, w = s.to(home), (xp.ones_like(s) if weights is None else w.to(home))
    # weights in tensors are not checked
    with np.errstate(divide="ignore", invalid="ignore") if xp is np else nullcontext():
        log_weights = xp.log(w / w.sum(-1)[..., None]) - dims * xp.log(s) - 0.5 * dims * np.log(2 * np.pi)
    # a number, which goes with tensors of any device, or (B, 1)
    greatest = checks.detached(xp.amax(log_weights, -1))
    differences = log_weights - greatest[..., None]
    x3, data3 = p.rows(x), p.rows(data)
    if data_weights is None:
        share = xp.full(data3.shape[:2], 1 / data.shape[-2], dtype=xp.float64, **on(p, data3))
    else:
        a = double(p, p.rows(named["data_weights"])[..., 0])
        share = a / a.sum(-1)[..., None]
    if greatest.ndim:
        greatest = greatest[:, None] if xp is np else greatest[:, None].to(x3.device)
    arguments = (x3, data3, p.for_each(s), p.for_each(differences), share)
    return p, arguments, greatest - xp.log1p(-share) if leave_one_out else greatest


def double(p: Problem, array: Array) -> Array:
    return array.astype(np.float64) if p.xp is np else array.double()


def computed(p: Problem, array: Array) -> Array:
    """In the dtype that is computed in."""
    return array.astype(p.compute) if p.xp is np else array.to(p.compute)


def on(p: Problem, array: Array) -> dict[str, Any]:
    return {} if p.xp is np else {"device": array.device}


def kernel_means(
    x: Array,
    y: Array,
    sigma: Sigma,
    *,
    estimator: Estimator = "unbiased",
    weights: Sigma | None = None,
    x_weights: Array | None = None,
    y_weights: Array | None = None,
    precision: Precision | None = None,
    backend: Backend | None = None,
) -> KernelMeans:
    """Mean kernel values within x, within y and between them.

    .. code-block:: text

        xx = mean of K(x_i, x_j),  yy = mean of K(y_i, y_j),  xy = mean of K(x_i, y_j)

    Parameters
    ----------
    x : array of shape (..., N, D)
        First sample, images (N, C, H, W) as x.flatten(1); see `rbf` for batches, sigma, weights, precision, backend,
        dtypes and errors.
    y : array of shape (..., M, D)
        Second sample.
    estimator : {"unbiased", "biased", "u_statistic", "linear"}
        Which pairs are averaged. "biased" (V-statistic): all. "unbiased": i != j in xx and yy. "u_statistic": i != j
        in xy as well (N = M). "linear": the disjoint pairs (0, 1), (2, 3), ... (N = M; an odd last row is left out).
    x_weights, y_weights : arrays of shape (..., N) and (..., M), optional
        Weights of the rows, not negative, normalised to sum to one; a pair counts the product of its weights. A row
        of weight 0 counts for nothing, whatever its coordinates; the gradient to its weight is 0 if they are not
        finite.

    Returns
    -------
    KernelMeans
        Named tuple (xx, yy, xy), each (...,); float32 for half-precision input. The "unbiased" mean within a sample
        of one row is NaN without a gradient, since it has no pair i != j; the other two are as ever. So the kernel
        score of a forecast y at one observation x is yy / 2 - xy.

    Notes
    -----
    O((N^2 + M^2 + N M)(D + S)) time, O((N + M) D) memory; "linear" is O((N + M)(D + S)). Sums are float64 from block
    to block. Gradients to x, y, sigma and all weights, of every order. Healthy means for training lie well inside
    (0, 1): near 0 the bandwidth is too small, near 1 too large.

    References
    ----------
    A. Gretton et al., "A kernel two-sample test", JMLR 2012, eq. (3), (5), and Lemma 14 ("linear").

    Examples
    --------
    >>> import numpy, gkfast
    >>> x, y = numpy.zeros((2, 1)), numpy.ones((3, 1))
    >>> [round(float(m), 4) for m in gkfast.kernel_means(x, y, 1.0)]
    [1.0, 1.0, 0.6065]
    """
    x, y, x_weights, y_weights = under_autocast(x, y, x_weights, y_weights)
    checks.two_point_sets("x", x, "y", y)
    unbiased = isinstance(estimator, str) and estimator == "unbiased"
    single = [name for name, sample in (("xx", x), ("yy", y)) if unbiased and sample.shape[-2] == 1]
    if "xx" in single:
        x, x_weights = _twice("x", x, x_weights)
    if "yy" in single:
        y, y_weights = _twice("y", y, y_weights)
    arguments = (x, y, sigma, estimator, weights, precision, backend, x_weights, y_weights)
    s = samples("kernel_sums", (1, 1, 1), *arguments)
    p = s.problem
    means = s.scale * p.run.kernel_sums(s.x, s.y, s.a, s.b, *p.bandwidths(s.x.shape[0]), s.drop, **p.modes)
    if s.parts != 1:
        means = means.reshape((p.count, s.parts, 3)).mean(1)
    found = [p.give(means[:, k], p.scalar_dtype) for k in range(3)]
    xp: Any = sys.modules["torch"] if p.tensors else np
    for k, name in enumerate(KernelMeans._fields):
        if name in single:
            found[k] = xp.full_like(found[k], math.nan)
    return KernelMeans(*found)


def _twice(name: str, sample: Array, weights: Array | None) -> tuple[Array, Array | None]:
    """A sample of one row as two equal ones: means with the other sample stay what they are."""
    xp: Any = sys.modules["torch"] if checks.is_tensor(sample) else np
    if weights is not None:
        checks.vector(f"{name}_weights", weights, 1, name, sample)
        weights = xp.concatenate([weights, weights], -1)
    return xp.concatenate([sample, sample], -2), weights


def mmd2(
    x: Array,
    y: Array,
    sigma: Sigma,
    *,
    estimator: Estimator = "unbiased",
    weights: Sigma | None = None,
    x_weights: Array | None = None,
    y_weights: Array | None = None,
    precision: Precision | None = None,
    backend: Backend | None = None,
) -> Array:
    """Squared maximum mean discrepancy between two samples.

    .. code-block:: text

        MMD^2 = xx + yy - 2 xy        with the means of `kernel_means`

    Parameters are those of `kernel_means`; images (N, C, H, W) go in as x.flatten(1).

    Returns
    -------
    array of shape (...,)
        For "biased" not negative (unless a kernel weight is), and exactly 0 between a sample and its permutation; the
        other estimators may fall below zero. float32 for half-precision input.

    Notes
    -----
    The weights of all pairs sum to zero, so k may be replaced by k - 1. Of bandwidths of at least the root mean
    squared pair distance (`mean_sigma`) that is what is summed, as expm1 of the exponent: it keeps the digits that a
    difference of nearly equal means loses. Of narrower ones k is summed, whose digits k - 1 would lose. For
    every bandwidth whose kernels are in the dtype's range, the error in float32 is at most 4e-5 of the greater of
    |MMD^2| and the mean of k (1 + z) between the samples, z = |x_i - y_j|^2 / (2 sigma^2), and usually below 1e-5 of
    |MMD^2| or the mean of k.

    For tensors that require gradients, value and gradients come from one sweep, and backward only scales. Time and
    memory as for `kernel_means`; gradients of every order. For sqrt(MMD^2) add an epsilon under the root, or use the
    "biased" estimator.

    References
    ----------
    A. Gretton et al., "A kernel two-sample test", JMLR 2012, eq. (3) "unbiased", (4) "u_statistic", (5) "biased".

    Examples
    --------
    >>> import numpy, gkfast
    >>> x, y = numpy.zeros((2, 1)), numpy.ones((3, 1))
    >>> round(float(gkfast.mmd2(x, y, 1.0)), 4)
    0.7869
    """
    options = {"sigma": sigma, "weights": weights, "precision": precision, "backend": backend}
    unweighted = x_weights is None and y_weights is None
    short = unweighted and isinstance(estimator, str) and estimator != "linear" and _plain((x, y), **options)
    options["estimator"] = estimator
    if short:
        from gkfast.ops import recorded

        return recorded.call((x, y), partial(_mmd2_of_arrays, **options), _scaled, partial(_mmd2, **options))
    return _mmd2(x, y, x_weights=x_weights, y_weights=y_weights, **options)


def _mmd2(x: Array, y: Array, **options: Any) -> Array:
    s = samples("mmd2", (1, 1, -2), x, y, **options)
    p = s.problem
    sigma, weights = p.bandwidths(s.x.shape[0])
    baseline = p.run.baselines(s.x, s.y, sigma)
    values = p.run.mmd2(s.x, s.y, s.a, s.b, s.scale, sigma, weights, s.drop, baseline, **p.modes)
    if s.drop == 0:
        values = squared_norm(values, s.x, s.y, weights, s.a, s.b)
    return s.give(values)


def _mmd2_of_arrays(points: Sequence[Array], wants: Sequence[bool], **options: Any) -> tuple[Array, list[Array]]:
    """MMD^2 and its gradients."""
    s = _worked_out(_samples_of, points, **options)
    p = s.problem
    x, y = map(p.rows, points)
    sigma, weights = p.bandwidths()
    baseline = p.run.baselines(x, y, sigma)
    arguments = (x, y, s.a, s.b, sigma, weights, s.drop, baseline, (*wants, False, False, False, False))
    values, _, *gradients = p.run.kernel_sums_with_gradients(s.scale[:, None], *arguments)
    values = values[:, 0]
    if s.drop == 0:
        values = squared_norm(values, x, y, weights)
    of_points = zip(points, gradients, strict=False)
    return s.give(values), [d.reshape(a.shape) for a, d in of_points if d is not None]


@lru_cache(maxsize=32)
def _samples_of(shapes: Sequence[tuple[int, ...]], dtype: Any, **options: Any) -> "Samples":
    x, y = _stand_ins(shapes, dtype)
    return samples("mmd2", (1, 1, -2), x, y, **options)


def _scaled(g: Array, points: Sequence[Array], kept: Sequence[Array], wants: Sequence[bool]) -> list[Array | None]:
    """What was kept are gradients of a scalar for each of a batch."""
    found = iter(kept)
    times = g[..., None, None] if g.ndim else g
    return [next(found) * times if want else None for want in wants]


class Samples(NamedTuple):
    problem: Problem
    x: Array  # (B, N, D)
    y: Array
    a: Array  # (B, N) row weights, as given
    b: Array
    drop: int  # 1: the diagonals of xx and yy are left out, 2: of xy as well
    scale: Array  # (B, 3) float64: the coefficients of xx, yy, xy over the sums of their pairs' weights
    parts: int  # how many consecutive B are averaged into one result

    def give(self, values: Array) -> Array:
        """(B,) as (...,), averaged over parts."""
        p = self.problem
        if self.parts != 1:
            values = values.reshape((p.count, self.parts)).mean(1, dtype=p.xp.float64)
        return p.give(values, p.scalar_dtype)


def samples(
    op: str,
    coefficients: tuple[int, int, int],
    x: Array,
    y: Array,
    sigma: Sigma,
    estimator: Estimator,
    weights: Sigma | None,
    precision: Precision | None,
    backend: Backend | None,
    x_weights: Array | None = None,
    y_weights: Array | None = None,
) -> Samples:
    x, y, x_weights, y_weights = under_autocast(x, y, x_weights, y_weights)
    checks.two_point_sets("x", x, "y", y)
    checks.estimator(estimator, x, y, x_weights is not None or y_weights is not None)
    named = {"x": x, "y": y}
    for name, value, like in (("x_weights", x_weights, x), ("y_weights", y_weights, y)):
        if value is not None:
            checks.vector(name, value, like.shape[-2], name[0], like)
            checks.pairs_of_weights(name, value, estimator)
            named[name[0]], value = _without_effect(like, value)
            named[name] = value[..., None]
    x, y = named["x"], named["y"]
    p = Problem(op, named, sigma, weights, precision, backend)
    xp = p.xp
    x3, y3 = p.rows(x), p.rows(y)
    parts = 1
    if estimator == "linear":
        # each pair of rows is a small sample of its own, and its u-statistic the term of Gretton's Lemma 14
        parts = x3.shape[1] // 2
        x3 = x3[:, : 2 * parts].reshape((p.count * parts, 2, x3.shape[2]))
        y3 = y3[:, : 2 * parts].reshape((p.count * parts, 2, y3.shape[2]))
    unweighted = x_weights is None and y_weights is None
    a = _row_weights(p, named.get("x_weights"), x3)
    # as many ones are the same ones
    b = a if unweighted and x3.shape[1] == y3.shape[1] else _row_weights(p, named.get("y_weights"), y3)
    drop = {"biased": 0, "unbiased": 1, "u_statistic": 2, "linear": 2}[estimator]
    # in float64, and outside the sums: 1/N and 1/M rounded in float32 would not cancel in MMD^2
    if unweighted:
        n, m = x3.shape[1], y3.shape[1]
        totals = (n * n - n * (drop >= 1), m * m - m * (drop >= 1), n * m - n * (drop >= 2))
        shares = [[c / total for c, total in zip(coefficients, totals, strict=True)]]
        scale = _float64(p, shares, x3)
        if x3.shape[0] != 1:
            scale = xp.broadcast_to(scale, (x3.shape[0], 3))
        return Samples(p, x3, y3, a, b, drop, scale, parts)
    wide_a, wide_b = double(p, a), double(p, b)
    total_a, total_b = wide_a.sum(-1), wide_b.sum(-1)
    xx, yy, xy = total_a * total_a, total_b * total_b, total_a * total_b
    if drop >= 1:
        xx, yy = xx - (wide_a * wide_a).sum(-1), yy - (wide_b * wide_b).sum(-1)
    if drop >= 2:
        xy = xy - (wide_a * wide_b).sum(-1)
    totals = (xx, yy, xy)
    scale = xp.stack([c / total for c, total in zip(coefficients, totals, strict=True)], -1)
    return Samples(p, x3, y3, a, b, drop, scale, parts)


def _float64(p: Problem, values: list[list[float]], like: Array) -> Array:
    if p.xp is np:
        return np.array(values)
    if checks.on_cpu(like):
        return p.xp.tensor(values, dtype=p.xp.float64, device="cpu")
    # set there: a copy from the host would wait for the device, and no CUDA graph could capture it
    first = values[0][0]
    numbers = like.new_full((len(values), len(values[0])), first, dtype=p.xp.float64)
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if value != first:
                numbers[i, j] = value
    return numbers


def _row_weights(p: Problem, given: Array | None, like: Array) -> Array:
    """(B, N) in the dtype that is computed in; given weights times a power of two, lest their products overflow."""
    if given is None:
        return np.ones(like.shape[:2], p.compute) if p.xp is np else like.new_ones(like.shape[:2])
    rows = p.rows(given)[..., 0]
    # only ratios of weights matter; a power of two rounds nothing
    greatest = checks.detached(p.xp.amax(double(p, rows), -1))[:, None]
    unit = p.xp.exp2(-p.xp.floor(p.xp.log2(p.xp.where(greatest > 0, greatest, 1.0))))
    return computed(p, double(p, rows) * unit)


def witness(
    points: Array,
    x: Array,
    y: Array,
    sigma: Sigma,
    *,
    weights: Sigma | None = None,
    x_weights: Array | None = None,
    y_weights: Array | None = None,
    precision: Precision | None = None,
    backend: Backend | None = None,
) -> Array:
    """Witness function of the MMD: where sample x lies denser than sample y, seen through the kernel.

    .. code-block:: text

        f(p) = mean_i K(p, x_i) - mean_j K(p, y_j)

    With x generated and y real, it is positive where the generator puts too much and negative where it puts too
    little.

    Parameters
    ----------
    points : array of shape (..., P, D)
        Where the function is wanted; see `rbf` for sigma, weights, precision, backend, dtypes and errors.
    x : array of shape (..., N, D)
        First sample; at least one row.
    y : array of shape (..., M, D)
        Second sample; at least one row.
    x_weights, y_weights : arrays of shape (..., N) and (..., M), optional
        Weights of the rows, not negative, normalised to sum to one; see `kernel_means` for rows of weight 0.

    Returns
    -------
    array of shape (..., P)
        Float32 for half-precision input.

    Notes
    -----
    The weights of all terms sum to zero, so k - 1 is summed in place of k for wide bandwidths, as in `mmd2`.
    O(P (N + M) (D + S)) time, O((P + N + M) D) memory. Gradients to points, x, y, sigma and all weights, of every
    order.

    References
    ----------
    A. Gretton et al., "A kernel two-sample test", JMLR 2012, section 2.3.

    Examples
    --------
    >>> import numpy, gkfast
    >>> gkfast.witness(numpy.array([[0.0], [1.0]]), numpy.zeros((3, 1)), numpy.ones((2, 1)), 1.0).round(4)
    array([ 0.3935, -0.3935])
    """
    points, x, y, x_weights, y_weights = under_autocast(points, x, y, x_weights, y_weights)
    named = {"points": points}
    for name, sample, row_weights in (("x", x, x_weights), ("y", y, y_weights)):
        checks.two_point_sets("points", points, name, sample)
        checks.some_rows(name, sample, 1, "a mean")
        named[name] = sample
        if row_weights is not None:
            checks.vector(f"{name}_weights", row_weights, sample.shape[-2], name, sample)
            named[name], row_weights = _without_effect(sample, row_weights)
            named[f"{name}_weights"] = row_weights[..., None]
    p = Problem("rbf_matmul", named, sigma, weights, precision, backend)
    at = p.rows(points)
    sigmas, kernel_weights = p.bandwidths()
    baseline = p.run.baselines(at, p.xp.concatenate([p.rows(x), p.rows(y)], 1), sigmas)

    def mean(name: str, sample: Array) -> Array:
        rows = p.rows(sample)
        a = _row_weights(p, named.get(f"{name}_weights"), rows)
        sums = p.run.rbf_matmul(at, rows, a[..., None], sigmas, kernel_weights, None, False, baseline, **p.modes)
        return double(p, sums[..., 0]) / double(p, a).sum(-1)[..., None]

    return p.give(mean("x", named["x"]) - mean("y", named["y"]), p.scalar_dtype)


def weighted_sum(weights: Array, factors: Array) -> Array:
    """sum_s weights_s factors_s, (B,), for two (B, S), of which the weights may be numbers on the CPU."""
    if not checks.is_tensor(weights) or weights.device == factors.device:
        return (weights * factors).sum(-1)
    if weights.shape[0] > 1 and weights.stride(0) != 0:
        return (weights.to(factors.device) * factors).sum(-1)
    # a number goes along as an argument; a copy would wait for the device
    return sum(weights[0, s] * factors[:, s] for s in range(weights.shape[1]))
