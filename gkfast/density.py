"""The kernel density estimate of a sample, and its gradient."""

import math
from contextlib import nullcontext
from typing import Any

import numpy as np

from gkfast import checks
from gkfast.arguments import Call, prepare, under_autocast, without_effect
from gkfast.checks import Array, Backend, Precision, Sigma


def log_density(
    x: Array,
    data: Array,
    sigma: Sigma,
    *,
    weights: Sigma | None = None,
    data_weights: Array | None = None,
    leave_one_out: bool = False,
    by_bandwidth: bool = False,
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
    by_bandwidth : bool
        True: the estimate of each bandwidth by itself, log sum_j a_j (2 pi sigma_s^2)^(-D/2) exp(...), for S sigmas;
        no mixture, so without `weights`. The bandwidth whose mean over the rows is greatest, on held-out x or with
        leave_one_out, is the one to choose.

    Returns
    -------
    array of shape (..., N), or (..., N, S) by bandwidth
        In natural logarithms of probability per unit of x to the power D; float32 for half-precision input. One sigma
        is S = 1.

    Notes
    -----
    A log-sum-exp: finite however far x is from the data. Exponents |x_i - data_j|^2 / (2 sigma_s^2) may reach
    thousands; they are computed in float64 for every dtype, but for float32 values of which no derivative is wanted:
    those are right to 3e-6 of 1 + the mean exponent + |log p| unless `precision` is "highest". On a GPU `precision`
    holds for derivatives too.
    O(N M (D + S)) time, O(N + M) memory besides copies of the data. Gradients of every order; the first is `score`.
    By bandwidth all values come from one sweep over the distances, in O(N S) memory; their gradients from another, or
    two where what arrives has both signs; higher derivatives take one for each bandwidth.

    References
    ----------
    E. Parzen, "On estimation of a probability density function and mode", 1962, eq. (1.4).

    Examples
    --------
    >>> import numpy, gkfast
    >>> gkfast.log_density(numpy.zeros((1, 1)), numpy.zeros((5, 1)), 1.0).round(6)
    array([-0.918939])
    >>> x, sigmas = numpy.arange(5.0)[:, None] ** 2, [0.5, 1.0, 2.0, 4.0, 8.0]
    >>> scores = gkfast.log_density(x, x, sigmas, leave_one_out=True, by_bandwidth=True).mean(0)
    >>> sigmas[scores.argmax()]
    8.0
    """
    checks.by_bandwidth(by_bandwidth, weights)
    options = {"sigma": sigma, "weights": weights, "precision": precision, "backend": backend}
    call, operands, constant = _density(x, data, data_weights, leave_one_out, by_bandwidth, **options)
    modes = call.options
    if call.xp is np:
        modes = {"in_float64": precision == "highest"}
    elif call.operators:
        # gradients begin with the value, and want it better than float32 can be
        modes["value_only"] = not call.backend.differentiated(*operands)
        if precision is None and checks.on_cpu(x):
            modes["precision"] = "high"
    density = call.backend.log_density_by_bandwidth if by_bandwidth else call.backend.log_density
    found = density(*operands, leave_one_out=leave_one_out, **modes)
    return call.result(found + constant, call.scalar_dtype)


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
    options = {"sigma": sigma, "weights": weights, "precision": precision, "backend": backend}
    call, operands, _ = _density(x, data, data_weights, leave_one_out, False, **options)
    found = call.backend.score(*operands, leave_one_out=leave_one_out, **call.options)
    return call.result(found, call.scalar_dtype)


def _density(
    x: Array,
    data: Array,
    data_weights: Array | None,
    leave_one_out: bool,
    by_bandwidth: bool,
    *,
    sigma: Sigma,
    weights: Any,
    **options: Any,
) -> tuple[Call, tuple[Any, ...], Any]:
    """The operands of the log-sum-exp, and a constant (or one for each row, or bandwidth) to be added to it.

    The constant is the largest log normaliser, which inside the sum would round the exponents, or by bandwidth each
    one's own; minus log(1 - a_i) where row i is left out.
    """
    x, data, data_weights = under_autocast(x, data, data_weights)
    checks.two_point_sets("x", x, "data", data)
    checks.some_rows("data", data, 1, "a density")
    checks.leave_one_out(leave_one_out, x, data)
    others = {}
    if data_weights is not None:
        checks.vector("data_weights", data_weights, data.shape[-2], "data", data)
        data, data_weights = without_effect(data, data_weights)
        others["data_weights"] = tuple(data_weights.shape[:-1])
    call, (at, rows), bandwidths, _ = prepare({"x": x, "data": data}, sigma, weights, others=others, **options)
    checks.positive_weights(weights)
    if data_weights is None:
        share = call.xp.full(rows.shape[:-1], 1 / data.shape[-2], dtype=call.xp.float64, **call.beside(rows))
    else:
        a = call.double(call.operand(data_weights, 1))
        share = a / a.sum(-1)[..., None]
    left_out = call.xp.log1p(-share) if leave_one_out else None
    if by_bandwidth:
        constant = _log_normaliser_of_each(call, bandwidths[0], x.shape[-1], rows)
        constant = constant if left_out is None else constant - left_out[..., None]
        return call, (at, rows, bandwidths[0], share), constant
    log_weights, constant = _log_normalisers(call, *bandwidths, x.shape[-1], rows)
    constant = constant if left_out is None else constant - left_out
    return call, (at, rows, bandwidths[0], log_weights, share), constant


def _log_normaliser_of_each(call: Call, sigma: Any, dims: int, like: Array) -> Any:
    """-D / 2 log(2 pi sigma_s^2), (S,) for numbers or (..., 1, S)."""
    xp, rest = call.xp, 0.5 * dims * math.log(2 * math.pi)
    if call.sigma is None:
        widths = call.double(sigma)
        return -(rest + dims * xp.log(widths if xp is np else widths.to(like.device)))[..., None, :]
    numbers = [-rest - dims * math.log(width) for width in call.sigma]
    if xp is np:
        return np.array(numbers)
    # numbers need no copy to the device
    return xp.stack([xp.full((), number, dtype=xp.float64, device=like.device) for number in numbers])


def _log_normalisers(call: Call, sigma: Any, weights: Any, dims: int, like: Array) -> tuple[Any, Any]:
    """log(w_s / sum w) - D / 2 log(2 pi sigma_s^2) less the greatest, and the greatest, a number or (..., 1)."""
    # numbers as they are, not in the backend's form
    sigma, weights = call.sigma or sigma, call.weights or weights
    xp, widths = call.xp, [sigma, weights]
    if checks.is_tensor(sigma) and checks.is_tensor(weights) and sigma.device != weights.device:
        widths = [n.to(weights.device if checks.on_cpu(sigma) else sigma.device) for n in widths]
    # of each bandwidth a number, which goes with tensors of any device, or (...,)
    s, w = (n if type(n) is tuple else [call.double(n)[..., k] for k in range(n.shape[-1])] for n in widths)

    def log(value: Any) -> Any:
        return math.log(value) if isinstance(value, float) else xp.log(value)

    # weights in tensors are not checked
    with np.errstate(divide="ignore", invalid="ignore") if xp is np else nullcontext():
        rest = log(sum(w)) + 0.5 * dims * math.log(2 * math.pi)
        logs = [log(weight) - rest - dims * log(width) for weight, width in zip(w, s, strict=True)]
    if all(isinstance(each, float) for each in logs):
        return call.numbers(tuple([each - max(logs) for each in logs])), max(logs)
    stacked = xp.stack(logs, -1)
    greatest = checks.detached(xp.amax(stacked, -1))
    differences = stacked - greatest[..., None]
    if greatest.ndim == 0:
        # a number goes with tensors of any device
        return differences, greatest
    return differences, greatest[..., None] if xp is np else greatest[..., None].to(like.device)
