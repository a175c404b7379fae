"""The public functions: check, call the backend, bring the result back.

    K[i, j] = sum_s w_s exp(-|x_i - y_j|^2 / (2 sigma_s^2))

Everywhere x is (..., N, D), y is (..., M, D), leading batch dimensions broadcast, and sigma is a length in the units
of x: one number, or S bandwidths whose kernels are summed with `weights` (default all ones), or (..., S) with others
for each problem of a batch. NumPy arrays give NumPy arrays; torch tensors give tensors on the same device,
differentiable. dtypes are float64, float32, bfloat16 and float16; halves are computed in float32, sums of them are
returned in float32, and under torch.autocast they count as float32.
"""

import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from gkfast import checks
from gkfast.arguments import DROP, Call, prepare, under_autocast, without_effect
from gkfast.checks import Array, Backend, Estimator, Precision, Sigma
from gkfast.squared_norm import squared_norm


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
    weights : S numbers, or an array or tensor of shape (..., S), or "mean", optional
        Weights of the summed kernels; all ones by default, where modules of gkfast.nn average: "mean" is 1/S each.
    out : array of shape (..., N, M), optional
        Contiguous array of the dtype of x that receives K, with memory of its own; no gradient is then recorded.
    precision : {"highest", "high", "medium", "torch"}, optional
        How GPU kernels multiply float32 and half data, see Notes. None is "highest", float32-grade; "torch" follows
        ``torch.get_float32_matmul_precision()``. Ignored for float64 and on the CPU, except that "highest" makes
        `log_density` compute float32 input in float64.
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
    On a GPU "high" and "medium" err by 2e-4 and 4e-2 in K, 1e-4 and 2e-2 of the norm in sums and gradients
    (kernels/gpu/README.md has the table). Second derivatives and forward mode have the highest precision.
    NaN stays in the entries concerned. O(N M (D + S)) time. Memory: the result; on the CPU with one bandwidth
    backward reuses it. You may modify it in place (backward then recomputes). Gradients to x, y, sigma and weights,
    of every order; those to sigma and weights have the shape given. A sigma in a tensor is not checked, since that
    would wait for the device: where it is not positive, every result that it has a part in is NaN.

    Examples
    --------
    >>> import numpy, gkfast
    >>> gkfast.rbf(numpy.array([[0.0], [1.0]]), sigma=1.0).round(4)
    array([[1.    , 0.6065],
           [0.6065, 1.    ]])
    """
    points = {"x": x} if y is None else {"x": x, "y": y}
    call, of_points, bandwidths, options = prepare(points, sigma, weights, precision, backend)
    operands = (*of_points, *[None] * (y is None), *bandwidths)
    if out is None:
        return call.result(call.backend.rbf(*operands, **options))
    x, y = under_autocast(x, y)
    shape = (*call.batch, x.shape[-2], (x if y is None else y).shape[-2])
    differentiable = call.tensors and sys.modules["torch"].is_grad_enabled()
    needs_gradient = differentiable and any(checks.is_tensor(a) and a.requires_grad for a in operands)
    checks.out(out, shape, (x, y, sigma, weights), needs_gradient)
    if call.operators and call.compute == call.dtype:
        call.backend.rbf_out(*operands, out, **options)
    elif call.xp is np and call.compute == call.dtype:
        call.backend.rbf(*operands, out=out.reshape(math.prod(call.batch), *shape[-2:]))
    else:
        out[...] = call.result(call.backend.rbf(*operands, **options))
    return out


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
    points = {"x": x} if y is None else {"x": x, "y": y}
    y = x if y is None else y
    for name, sample in points.items():
        checks.points(name, sample)
    has_columns = checks.right_hand_side(v, y)
    v = v if has_columns else v[..., None]
    found = prepare(points, sigma, weights, precision, backend, {"v": tuple(v.shape[:-2])})
    call, operands = found.call, (found.points[0], found.points[-1])
    sums = call.backend.rbf_matmul(
        *operands, call.operand(v), *found.bandwidths, skip_diagonal=False, **found.options
    )
    result = call.result(sums, call.scalar_dtype)
    return result if has_columns else result[..., 0]


def mmd2(
    x: Array,
    y: Array,
    sigma: Sigma,
    *,
    estimator: Estimator = "unbiased",
    weights: Sigma | None = None,
    x_weights: Array | None = None,
    y_weights: Array | None = None,
    by_bandwidth: bool = False,
    precision: Precision | None = None,
    backend: Backend | None = None,
) -> Array:
    """Squared maximum mean discrepancy between two samples.

    .. code-block:: text

        MMD^2 = xx + yy - 2 xy        with the means of `kernel_means`

    Parameters are those of `kernel_means`; images (N, C, H, W) go in as x.flatten(1).

    Parameters
    ----------
    by_bandwidth : bool
        True: the MMD^2 of each kernel w_s exp(-|x_i - y_j|^2 / (2 sigma_s^2)); their sum is what False returns.

    Returns
    -------
    array of shape (...,), or (..., S) by bandwidth
        For "biased" not negative (unless a kernel weight is), and exactly 0 between a sample and its permutation; the
        other estimators may fall below zero. float32 for half-precision input. One sigma is S = 1.

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

    By bandwidth all values come from one sweep too, with the error of each as above. It cannot know how a loss will
    weigh them: backward is a sweep of its own, and both take about 1.4 times as long as the sum with its gradient.

    References
    ----------
    A. Gretton et al., "A kernel two-sample test", JMLR 2012, eq. (3) "unbiased", (4) "u_statistic", (5) "biased".

    Examples
    --------
    >>> import numpy, gkfast
    >>> x, y = numpy.zeros((2, 1)), numpy.ones((3, 1))
    >>> round(float(gkfast.mmd2(x, y, 1.0)), 4)
    0.7869
    >>> gkfast.mmd2(x, y, [1.0, 2.0], by_bandwidth=True).round(4)
    array([0.7869, 0.235 ])
    """
    function: Any = mmd2
    if by_bandwidth is not False:
        checks.flag("by_bandwidth", by_bandwidth)
        function = partial(mmd2, by_bandwidth=bool(by_bandwidth))
    options = {"sigma": sigma, "weights": weights, "precision": precision, "backend": backend}
    s = _samples(function, -2.0, x, y, estimator, x_weights, y_weights, **options)
    if not isinstance(s, Samples):
        return s
    if by_bandwidth:
        return _mmd2_by_bandwidth(s)
    if s.call.operators and s.drop > 0:
        # in the caller's form already
        return s.call.backend.mmd2(s.scale, *s.operands, drop=s.drop, **s.options)
    scale = s.call.numbers(s.scale) if type(s.scale) is tuple else s.scale
    values = s.call.backend.mmd2(scale, *s.operands, drop=s.drop, **s.options)
    if s.drop == 0:
        x, y, a, b, _, weights = s.operands
        values = squared_norm(values, x, y, weights, a, b)
    return s.call.result(values, s.call.scalar_dtype)


class Samples(NamedTuple):
    """Two samples as the sums over their pairs take them."""

    call: Call
    # x, y, weights of their rows or None for ones, sigma, weights
    operands: tuple[Any, ...]
    drop: int
    # the coefficients of xx, yy, xy over the sums of their pairs' weights: three numbers, or (..., 3) float64
    scale: Any
    options: dict[str, Any]


def _mmd2_by_bandwidth(s: Samples) -> Array:
    scale = s.call.numbers(s.scale) if type(s.scale) is tuple else s.scale
    *points, sigma, weights = s.operands
    values = s.call.backend.mmd2_by_bandwidth(scale, *points, sigma, drop=s.drop, **s.options)
    if s.drop == 0:
        x, y, a, b = points
        values = squared_norm(values, x, y, (1.0,), a, b)
    if type(weights) is tuple:
        # numbers need no copy to the device
        values = s.call.xp.stack([weight * values[..., k] for k, weight in enumerate(weights)], -1)
    else:
        values = values * (weights if s.call.xp is np else weights.to(values.device))
    return s.call.result(values, s.call.scalar_dtype)


def _samples(
    function: Callable[..., Any],
    between: float,
    x: Array,
    y: Array,
    estimator: Estimator,
    x_weights: Array | None,
    y_weights: Array | None,
    **options: Any,
) -> Any:
    """Two samples, the mean between them times `between`; of the linear estimator the function's result itself."""
    weighted = x_weights is not None or y_weights is not None
    others = {}
    if weighted:
        x, y, x_weights, y_weights = under_autocast(x, y, x_weights, y_weights)
        checks.two_point_sets("x", x, "y", y)
        checks.estimator(estimator, x, y, weighted)
    if x_weights is not None:
        x, x_weights = _checked_weights("x", x, x_weights, estimator)
        others["x_weights"] = tuple(x_weights.shape[:-1])
    if y_weights is not None:
        y, y_weights = _checked_weights("y", y, y_weights, estimator)
        others["y_weights"] = tuple(y_weights.shape[:-1])
    points = {"x": x, "y": y}
    call, (x, y), bandwidths, modes = prepare(points, others=others, estimator=estimator, **options)
    if estimator == "linear":
        return _linear(function, points["x"], points["y"], **options)
    drop = DROP[estimator]
    if not weighted:
        # outside of the sums: 1/N and 1/M rounded in float32 would not cancel in MMD^2
        xx, yy, xy = call.share_of_pair
        return Samples(call, (x, y, None, None, *bandwidths), drop, (xx, yy, between * xy), modes)
    a, b = _row_weights(call, x_weights, x), _row_weights(call, y_weights, y)
    wide_a, wide_b = call.double(a), call.double(b)
    total_a, total_b = wide_a.sum(-1), wide_b.sum(-1)
    xx, yy, xy = total_a * total_a, total_b * total_b, total_a * total_b
    if drop >= 1:
        xx, yy = xx - (wide_a * wide_a).sum(-1), yy - (wide_b * wide_b).sum(-1)
    if drop >= 2:
        xy = xy - (wide_a * wide_b).sum(-1)
    scale = call.xp.stack([1 / xx, 1 / yy, between / xy], -1)
    return Samples(call, (x, y, a, b, *bandwidths), drop, scale, modes)


def _linear(function: Callable[..., Any], x: Array, y: Array, sigma: Sigma, weights: Any, **options: Any) -> Any:
    """The mean of the function's u-statistics of pairs of rows, the terms of Gretton's Lemma 14."""
    xp: Any = sys.modules["torch"] if checks.is_tensor(x) else np

    def pairs(sample: Array) -> Array:
        count = sample.shape[-2] // 2
        return sample[..., : 2 * count, :].reshape(*sample.shape[:-2], count, 2, sample.shape[-1])

    def for_each(numbers: Any) -> Any:
        # those of a problem are those of its pairs
        if isinstance(numbers, (list, tuple)):
            return [entry[..., None] if getattr(entry, "ndim", 0) else entry for entry in numbers]
        if not getattr(numbers, "ndim", 0):
            return numbers
        # one axis more than the batch of pairs, whose shape is then no other's
        shape = (*numbers.shape[:-1], 1, numbers.shape[-1])
        return numbers.reshape((*[1] * (max(x.ndim, y.ndim) - len(shape)), *shape))

    options = {**options, "sigma": for_each(sigma), "weights": for_each(weights), "estimator": "u_statistic"}
    found = function(pairs(x), pairs(y), **options)

    def mean(values: Array) -> Array:
        # over the pairs, the last axis of the batch
        wide = values.mean(max(x.ndim, y.ndim) - 2, dtype=xp.float64)
        return wide.to(values.dtype) if checks.is_tensor(wide) else np.asarray(wide, values.dtype)[()]

    # means come as three, mmd2 as one
    return type(found)(*map(mean, found)) if isinstance(found, tuple) else mean(found)


def _checked_weights(name: str, rows: Array, weights: Array, estimator: Estimator) -> tuple[Array, Array]:
    checks.vector(f"{name}_weights", weights, rows.shape[-2], name, rows)
    checks.pairs_of_weights(f"{name}_weights", weights, estimator)
    return without_effect(rows, weights)


def _row_weights(call: Call, weights: Array | None, rows: Array) -> Array:
    """(..., N) in the dtype that is computed in; given weights times a power of two, lest their products overflow."""
    if weights is None:
        return call.xp.ones(rows.shape[:-1], dtype=call.compute, **call.beside(rows))
    weights = call.double(call.operand(weights, 1))
    # only ratios of weights matter; a power of two rounds nothing
    greatest = checks.detached(call.xp.amax(weights, -1))[..., None]
    unit = call.xp.exp2(-call.xp.floor(call.xp.log2(call.xp.where(greatest > 0, greatest, 1.0))))
    return call.computed(weights * unit)


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
    samples, row_weights, others = {"x": x, "y": y}, {"x": x_weights, "y": y_weights}, {}
    for name, sample in samples.items():
        checks.two_point_sets("points", points, name, sample)
        checks.some_rows(name, sample, 1, "a mean")
        own = row_weights[name]
        if own is not None:
            checks.vector(f"{name}_weights", own, sample.shape[-2], name, sample)
            samples[name], row_weights[name] = without_effect(sample, own)
            others[f"{name}_weights"] = tuple(own.shape[:-1])
    found = prepare({"points": points, **samples}, sigma, weights, precision, backend, others)
    call, (at, x, y) = found.call, found.points
    baseline = call.backend.baselines(at, call.xp.concatenate([x, y], -2), found.bandwidths[0])

    def mean(rows: Array, own: Any) -> Array:
        a = _row_weights(call, own, rows)
        operands = (at, rows, a[..., None], *found.bandwidths, None, baseline)
        sums = call.backend.rbf_matmul(*operands, skip_diagonal=False, **found.options)
        return call.double(sums[..., 0]) / call.double(a).sum(-1)[..., None]

    return call.result(mean(x, row_weights["x"]) - mean(y, row_weights["y"]), call.scalar_dtype)
