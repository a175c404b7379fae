"""MMD^2 between all pairs of groups, by one product of the kernel matrix."""

from typing import Any, Literal

import numpy as np

from gkfast import checks, sample_checks
from gkfast.arguments import prepare, under_autocast, weighted_sum
from gkfast.checks import Array, Backend, Precision, Sigma


def pairwise_mmd2(
    x: Array,
    labels: Any,
    sigma: Sigma,
    *,
    estimator: Literal["unbiased", "biased"] = "unbiased",
    weights: Sigma | None = None,
    precision: Precision | None = None,
    backend: Backend | None = None,
) -> Array:
    """Squared MMD between every pair of groups of rows: models, classes, runs or days against each other.

    .. code-block:: text

        out[..., g, h] = MMD^2 of the rows of group g and those of group h,  0 for g = h

    Parameters
    ----------
    x : array of shape (..., N, D)
        All rows; see `rbf` for sigma, weights, precision, backend, dtypes and errors.
    labels : N whole numbers or strings
        The group of each row, a sequence, array or tensor; two groups at least. Groups are in the order of their
        sorted labels, that of ``numpy.unique(labels)``.
    estimator : {"unbiased", "biased"}
        See `kernel_means`. Each group needs two rows ("biased": one).

    Returns
    -------
    array of shape (..., G, G)
        Symmetric; float32 for half-precision input. "biased" is not negative.

    Raises
    ------
    ValueError
        If labels are not one for each row, or a group is too small.

    Notes
    -----
    With P the N x G matrix of who is in which group, P' K P has all sums of pairs: one product visits each pair of
    rows once, while `mmd2` for each pair of groups visits those within a group G - 1 times. O(N^2 (D + S + G)) time,
    O(N (D + G)) memory; gradients to x, sigma and weights, of every order. Labels on a GPU are copied to the CPU.

    References
    ----------
    A. Gretton et al., "A kernel two-sample test", JMLR 2012, eq. (3) and (5).

    Examples
    --------
    >>> import numpy, gkfast
    >>> x = numpy.array([[0.0], [0.5], [0.0], [0.5], [3.0], [3.5]])
    >>> gkfast.pairwise_mmd2(x, ["a", "a", "b", "b", "c", "c"], 1.0, estimator="biased").round(3)
    array([[0.   , 0.   , 1.848],
           [0.   , 0.   , 1.848],
           [1.848, 1.848, 0.   ]])
    """
    (x,) = under_autocast(x)
    names, numbers = sample_checks.groups(labels, x, estimator)
    call, (z,), bandwidths, options = prepare({"x": x}, sigma, weights, precision, backend)
    xp, size = call.xp, len(names)
    membership = np.zeros((len(numbers), size))
    membership[np.arange(len(numbers)), numbers] = 1
    of_group = xp.asarray(membership, **call.beside(z))
    detached = checks.detached(z)
    baseline = call.backend.baselines(detached, detached, checks.detached(bandwidths[0]))
    columns = call.operand(call.computed(of_group))
    products = call.backend.rbf_matmul(z, z, columns, *bandwidths, None, baseline, skip_diagonal=True, **options)
    sums = xp.einsum("ng,...nh->...gh", of_group, call.double(products))
    counts = of_group.sum(0)
    pairs = counts * (counts - (1 if estimator == "unbiased" else 0))
    within = xp.einsum("...gg->...g", sums)
    if estimator == "biased":
        # K(x_i, x_i) less the baselines, which the product left out
        within = within + counts * weighted_sum(bandwidths[1], 1 - baseline)[..., None]
    means = within / pairs
    found = (
        means[..., :, None] + means[..., None, :] - (sums + xp.swapaxes(sums, -1, -2)) / (counts * counts[:, None])
    )
    found = found * (1 - xp.eye(size, dtype=xp.float64, **call.beside(z)))
    if estimator == "biased" and call.weights is not None and min(call.weights) >= 0:
        # a squared norm, which rounding may take below zero
        found = found + (xp.clip(checks.detached(found), 0, None) - checks.detached(found))
    return call.result(found, call.scalar_dtype)
