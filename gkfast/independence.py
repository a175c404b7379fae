"""Are two variables independent? The Hilbert-Schmidt independence criterion."""

from typing import Any, Literal

from gkfast import checks
from gkfast.arguments import prepare, under_autocast
from gkfast.checks import Array, Backend, Precision, Sigma


def hsic(
    x: Array,
    y: Array,
    sigma_x: Sigma,
    sigma_y: Sigma,
    *,
    estimator: Literal["unbiased", "biased"] = "unbiased",
    x_kernel_weights: Sigma | None = None,
    y_kernel_weights: Sigma | None = None,
    precision: Precision | None = None,
    backend: Backend | None = None,
) -> Array:
    """Hilbert-Schmidt independence criterion of paired rows.

    .. code-block:: text

        biased    HSIC = tr(K H L H) / N^2                                      H = I - 1 1' / N
        unbiased  HSIC = (tr(K L) + 1'K1 1'L1 / ((N - 1)(N - 2)) - 2 1'K L 1 / (N - 2)) / (N (N - 3))

    with K the kernel matrix of x and L that of y; in the unbiased one both without their diagonals.

    Parameters
    ----------
    x : array of shape (..., N, D)
        First variable; see `rbf` for batches, bandwidths, precision, backend, dtypes and errors.
    y : array of shape (..., N, C)
        Second variable: row i belongs to row i of x.
    sigma_x, sigma_y : float, or S numbers, or an array or tensor of shape () or (..., S)
        Bandwidths of the two kernels, each in the units of its variable.
    estimator : {"unbiased", "biased"}
        "unbiased" needs four rows, and may fall below zero; "biased" needs two.
    x_kernel_weights, y_kernel_weights : numbers or array, optional
        Weights of the summed kernels; all ones by default.

    Returns
    -------
    array of shape (...,)
        0 in expectation where x and y are independent; float32 for half-precision input.

    Notes
    -----
    The product of two Gaussians is one, exp(-|z - z'|^2 / 2) with z = (x / sigma_x, y / sigma_y). So every term is a
    sum of kernel rows, and no matrix is stored: O(N^2 (D + C) S T) time for S and T bandwidths, O(N (D + C)) memory.
    In float64, because the terms cancel. Gradients to x, y, bandwidths and weights, of every order.

    References
    ----------
    A. Gretton et al., "Measuring statistical dependence with Hilbert-Schmidt norms", ALT 2005, eq. (9); for the
    unbiased estimate L. Song et al., "Feature selection via dependence maximization", JMLR 2012, eq. (5).

    Examples
    --------
    >>> import numpy, gkfast
    >>> x = numpy.arange(6.0)[:, None]
    >>> round(float(gkfast.hsic(x, x**2, 1.0, 5.0)), 4), round(float(gkfast.hsic(x, x % 2, 1.0, 5.0)), 4)
    (0.0883, -0.002)
    """
    x, y = under_autocast(x, y)
    checks.points("x", x)
    checks.points("y", y)
    checks.same_kind("y", y, "x", x)
    checks.paired(estimator, x, y)
    # the batch of both; bandwidths are of each
    of_x = prepare({"x": x}, sigma_x, x_kernel_weights, precision, backend, {"y": tuple(y.shape[:-2])})
    of_y = prepare({"y": y}, sigma_y, y_kernel_weights, precision, backend, {"x": tuple(x.shape[:-2])})
    call, n, unbiased = of_x.call, x.shape[-2], estimator == "unbiased"
    xp, x, y = call.xp, call.double(of_x.points[0]), call.double(of_y.points[0])
    one = xp.ones((*x.shape[:-1], 1), dtype=xp.float64, **call.beside(x))

    def row_sums(points: Array, sigma: Any, weights: Any) -> Array:
        operands = (points, points, one, sigma, weights)
        return call.backend.rbf_matmul(*operands, skip_diagonal=unbiased, **of_x.options)[..., 0]

    rows_x, rows_y = row_sums(x, *of_x.bandwidths), row_sums(y, *of_y.bandwidths)
    unit, together = call.numbers((1.0,)), 0.0
    for s, v in call.each(*of_x.bandwidths, x):
        for t, w in of_y.call.each(*of_y.bandwidths, y):
            z = xp.concatenate([x / s[..., None, None], y / t[..., None, None]], -1)
            together = together + v * w * row_sums(z, unit, unit).sum(-1)
    across, apart = (rows_x * rows_y).sum(-1), rows_x.sum(-1) * rows_y.sum(-1)
    if unbiased:
        value = (together + apart / ((n - 1) * (n - 2)) - 2 * across / (n - 2)) / (n * (n - 3))
    else:
        value = together / n**2 - 2 * across / n**3 + apart / n**4
    return call.result(value, call.scalar_dtype)
