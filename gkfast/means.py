"""Mean kernel values of two samples: all three, those that are asked for, or one for each row."""

import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gkfast import checks, sample_checks
from gkfast.arguments import prepare, under_autocast, without_effect
from gkfast.checks import Array, Backend, Estimator, Precision, Sigma
from gkfast.functional import Samples, _row_weights, _samples


class KernelMeans(NamedTuple):
    """Mean kernel values: within x, within y, and between them; each (...,), or None where it was not asked for."""

    xx: Array
    yy: Array
    xy: Array


def kernel_means(
    x: Array,
    y: Array,
    sigma: Sigma,
    *,
    estimator: Estimator = "unbiased",
    parts: Sequence[str] = ("xx", "yy", "xy"),
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
    parts : sequence of str, some of "xx", "yy", "xy"
        Which means are wanted. No pair of the others is visited, except by the "linear" estimator.
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
    O((N^2 + M^2 + N M)(D + S)) time, less the terms of parts that are not wanted, O((N + M) D) memory; "linear" is
    O((N + M)(D + S)). Sums are float64 from block to block. Gradients to x, y, sigma and all weights, of every order.
    Healthy means for training lie well inside (0, 1): near 0 the bandwidth is too small, near 1 too large.

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
    options = {"sigma": sigma, "weights": weights, "precision": precision, "backend": backend}
    x, y, x_weights, y_weights = under_autocast(x, y, x_weights, y_weights)
    checks.two_point_sets("x", x, "y", y)
    wanted = sample_checks.parts(parts)
    unbiased = isinstance(estimator, str) and estimator == "unbiased"
    single = [unbiased and sample.shape[-2] == 1 for sample in (x, y)]
    if single[0]:
        x, x_weights = _twice("x", x, x_weights)
    if single[1]:
        y, y_weights = _twice("y", y, y_weights)
    s = _samples(kernel_means, 1.0, x, y, estimator, x_weights, y_weights, **options)
    if isinstance(s, Samples):
        sums = _sums(s, wanted)
        scales = [s.scale[k] if type(s.scale) is tuple else s.scale[..., k] for k in range(3)]
        s = [None if sums[k] is None else s.call.result(sums[k] * scales[k], s.call.scalar_dtype) for k in range(3)]
    xp: Any = sys.modules["torch"] if checks.is_tensor(x) else np
    means = [
        None if name not in wanted else xp.full_like(mean, math.nan) if one else mean
        for name, mean, one in zip(KernelMeans._fields, s, (*single, False), strict=True)
    ]
    return KernelMeans(*means)


def _sums(s: Samples, wanted: Sequence[str]) -> Sequence[Any]:
    """The sums of the wanted pairs, in places xx, yy, xy."""
    backend = s.call.backend
    if len(wanted) == 3:
        sums = backend.kernel_sums(*s.operands, drop=s.drop, **s.options)
        return [sums[..., k] for k in range(3)]
    x, y, a, b, *bandwidths = s.operands
    found: list[Any] = [None, None, None]
    for k, (name, points, u) in enumerate((("xx", x, a), ("yy", y, b))):
        if name in wanted:
            # one row stands for the other sample
            single, own = points[..., :1, :], None if u is None else u[..., :1]
            operands = (points, single, u, own, *bandwidths)
            found[k] = backend.kernel_sums(*operands, drop=min(s.drop, 1), **s.options)[..., 0]
    if "xy" in wanted:
        a, b = (s.call.xp.ones_like(p[..., 0]) if u is None else u for p, u in ((x, a), (y, b)))
        rows = backend.rbf_matmul(x, y, b[..., None], *bandwidths, skip_diagonal=s.drop >= 2, **s.options)
        found[2] = (s.call.double(a) * s.call.double(rows[..., 0])).sum(-1)
    return found


def _twice(name: str, sample: Array, weights: Array | None) -> tuple[Array, Array | None]:
    """A sample of one row as two equal ones: means with the other sample stay what they are."""
    xp: Any = sys.modules["torch"] if checks.is_tensor(sample) else np
    if weights is not None:
        checks.vector(f"{name}_weights", weights, 1, name, sample)
        weights = xp.concatenate([weights, weights], -1)
    return xp.concatenate([sample, sample], -2), weights


def row_means(
    x: Array,
    data: Array,
    sigma: Sigma,
    *,
    leave_one_out: bool = False,
    data_weights: Array | None = None,
    weights: Sigma | None = None,
    precision: Precision | None = None,
    backend: Backend | None = None,
) -> Array:
    """Mean kernel of each row of a sample to a set: how near it lies to the set, seen through the kernel.

    .. code-block:: text

        mean_j K(x_i, data_j)                 with leave_one_out over j != i

    The parts of MMD^2 are means of them: xx of row_means(x, x, sigma, leave_one_out=True), xy of
    row_means(x, y, sigma). A generated sample far from all others and from the real ones has both small.

    Parameters
    ----------
    x : array of shape (..., N, D)
        The rows that get a value; see `rbf` for sigma, weights, precision, backend, dtypes and errors.
    data : array of shape (..., M, D)
        The set; at least one row.
    leave_one_out : bool
        Row i of data is left out for row i of x (N = M, at least two): for a set with itself, without each row's
        pair with itself.
    data_weights : array of shape (..., M), optional
        Weights of the rows of data, not negative, normalised to sum to one; see `kernel_means` for rows of weight 0.

    Returns
    -------
    array of shape (..., N)
        Float32 for half-precision input.

    Notes
    -----
    O(N M (D + S)) time, O((N + M) D) memory. Gradients to x, data, sigma and all weights, of every order.

    Examples
    --------
    >>> import numpy, gkfast
    >>> x = numpy.array([[0.0], [0.0], [3.0]])
    >>> gkfast.row_means(x, x, 1.0, leave_one_out=True).round(4)  # the last row is alone
    array([0.5056, 0.5056, 0.0111])
    """
    x, data, data_weights = under_autocast(x, data, data_weights)
    checks.two_point_sets("x", x, "data", data)
    checks.leave_one_out(leave_one_out, x, data)
    checks.some_rows("data", data, 1, "a mean")
    others = {}
    if data_weights is not None:
        checks.vector("data_weights", data_weights, data.shape[-2], "data", data)
        data, data_weights = without_effect(data, data_weights)
        others["data_weights"] = tuple(data_weights.shape[:-1])
    found = prepare({"x": x, "data": data}, sigma, weights, precision, backend, others)
    call, (x, data) = found.call, found.points
    b = _row_weights(call, data_weights, data)
    operands = (x, data, b[..., None], *found.bandwidths)
    sums = call.backend.rbf_matmul(*operands, skip_diagonal=bool(leave_one_out), **found.options)
    wide = call.double(b)
    total = wide.sum(-1)[..., None] - (wide if leave_one_out else 0.0)
    return call.result(call.double(sums[..., 0]) / total, call.scalar_dtype)
