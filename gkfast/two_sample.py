"""Are two samples from one distribution? MMD^2 with its variance, and the permutation test.

Both need no more than products of the kernel matrix with a few or many columns, so neither stores it.
"""

import math
import sys
from collections.abc import Iterator
from itertools import combinations, islice
from typing import Any, Literal, NamedTuple

import numpy as np

from gkfast import checks, sample_checks
from gkfast.arguments import Call, prepare, under_autocast, weighted_sum
from gkfast.checks import Array, Backend, Precision, Sigma
from gkfast.functional import mmd2
from gkfast.squared_norm import squared_norm

# how many relabellings meet the kernel matrix at a time: enough to make its exponentials cheap beside the products
_COLUMNS = 512


class _Pair(NamedTuple):
    statistic: Array
    p_value: Array


class MMDTest(_Pair):
    """The statistic, (...,), and its permutation p-value, (...,) float64: a named tuple of two.

    null_statistics : array of shape (..., R), or None where they were not asked for
        Those of all relabellings in float64, the observed one first.
    """

    null_statistics: Array | None = None


class MMD2AndVariance(NamedTuple):
    """The squared MMD and the estimate of its variance, each (...,)."""

    mmd2: Array
    variance: Array


def mmd_test(
    x: Array,
    y: Array,
    sigma: Sigma,
    *,
    permutations: int = 1000,
    seed: int | np.random.Generator | None = None,
    estimator: Literal["unbiased", "biased"] = "unbiased",
    null_statistics: bool = False,
    weights: Sigma | None = None,
    precision: Precision | None = None,
    backend: Backend | None = None,
) -> MMDTest:
    """Permutation test of whether x and y come from one distribution, with MMD^2 as its statistic.

    .. code-block:: text

        p = (1 + number of relabellings with a statistic not below the observed one) / (1 + permutations)

    Where the samples have no more than `permutations` different relabellings, binomial(N + M, N), all of them are
    taken, and p is the exact share of those not below the observed one. Either way a test that rejects at p <= alpha
    errs with a probability of at most alpha, at any sample size.

    Parameters
    ----------
    x : array of shape (..., N, D)
        First sample; see `rbf` for sigma, weights, precision, backend, dtypes and errors.
    y : array of shape (..., M, D)
        Second sample. Each needs two rows ("biased": one).
    permutations : int
        How many random relabellings; at least 1. p cannot fall below 1 / (1 + permutations).
    seed : int, numpy.random.Generator or None
        The same seed gives the same relabellings on every device. None draws a fresh one.
    estimator : {"unbiased", "biased"}
        The statistic; see `kernel_means`.
    null_statistics : bool
        Whether the result keeps the statistics of all relabellings, (..., R) float64, for a histogram or a threshold:
        R = 1 + permutations, or binomial(N + M, N) where all are taken; the observed one comes first.

    Returns
    -------
    MMDTest
        Named tuple (statistic, p_value), each (...,), with the attribute null_statistics; no gradients. The p-values
        are float64.

    Notes
    -----
    With P the (N + M) x permutations matrix of who is in the first group, one product K P gives the statistics of all
    relabellings: the sums within the first group are the diagonal of P' K P, and the others follow from row sums. K
    is not stored: O((N + M)^2 (D + S + permutations)) time, O((N + M) (D + 512)) memory. Statistics that
    differ by no more than rounding count as ties.

    References
    ----------
    A. Gretton et al., "A kernel two-sample test", JMLR 2012; B. Phipson and G. Smyth, "Permutation p-values should
    never be zero", 2010, for the 1 + in p.

    Examples
    --------
    >>> import numpy, gkfast
    >>> x, y = numpy.arange(4.0)[:, None], numpy.arange(10.0, 14.0)[:, None]
    >>> float(gkfast.mmd_test(x, y, 1.0).p_value.round(4))  # 2 of the 70 relabellings: this one and its mirror image
    0.0286
    """
    x, y = under_autocast(x, y)
    checks.two_point_sets("x", x, "y", y)
    sample_checks.permutation_test(estimator, permutations, seed, x, y)
    checks.flag("null_statistics", null_statistics)
    x, y, sigma, weights = (checks.detached(value) for value in (x, y, sigma, weights))
    call, points, bandwidths, options = prepare({"x": x, "y": y}, sigma, weights, precision, backend)
    xp, n, m = call.xp, x.shape[-2], y.shape[-2]
    z = xp.concatenate(points, -2)
    sigmas, kernel_weights = map(checks.detached, bandwidths)
    baseline = call.backend.baselines(z, z, sigmas)

    def times_kernel(columns: Array) -> Array:
        # without the diagonal, which every relabelling leaves where it is
        operands = (z, z, call.operand(columns), sigmas, kernel_weights, None, baseline)
        return call.double(call.backend.rbf_matmul(*operands, skip_diagonal=True, **options))

    row_sums = times_kernel(xp.ones((n + m, 1), dtype=call.compute, **call.beside(z)))[..., 0]
    total = row_sums.sum(-1)[..., None]
    diagonal = 0 if estimator == "biased" else 1
    statistics, tolerances = [], []
    for chunk in _labels(n, m, permutations, seed):
        first = xp.asarray(chunk.T.copy(), **call.beside(z))
        products, wide = times_kernel(call.computed(first)), call.double(first)
        within_x = xp.einsum("nr,...nr->...r", wide, products)
        between = xp.einsum("nr,...n->...r", wide, row_sums) - within_x
        within_y = total - 2 * between - within_x
        # what a difference of sums is known to: those of the larger sample may hide the smaller one's; the diagonal,
        # the same for all, adds no rounding that could look like a difference
        known = (abs(total) + 2 * abs(between) + abs(within_x)) / (m * (m - diagonal))
        means = within_x / (n * (n - diagonal)), within_y / (m * (m - diagonal)), 2 * between / (n * m)
        statistics.append(means[0] + means[1] - means[2])
        tolerances.append(sum(abs(mean) for mean in means) + known)
    statistic = xp.concatenate(statistics, -1)
    # the observed labels come first
    tolerance = 8 * xp.finfo(call.compute).eps * xp.concatenate(tolerances, -1)
    not_below = (statistic >= statistic[..., :1] - tolerance).sum(-1)
    # a statistic that is no number rejects nothing
    number = statistic[..., 0] == statistic[..., 0]
    p_value = xp.where(number, call.double(not_below) / statistic.shape[-1], math.nan)
    # by sums of its own, which keep the digits that differences of all pairs' lose
    modes: dict[str, Any] = {"estimator": estimator, "precision": precision, "backend": backend}
    observed = mmd2(x, y, sigma, weights=weights, **modes)
    wide = (sys.modules["torch"] if call.tensors else np).float64
    found = MMDTest(observed, call.result(p_value, wide))
    if null_statistics:
        found.null_statistics = call.result(statistic, wide)
    return found


def _labels(n: int, m: int, permutations: int, seed: Any) -> Iterator[np.ndarray]:
    """Who is in the first group, int8, in chunks (R, N + M); the observed labels come first."""
    if math.comb(n + m, n) <= permutations:
        # in lexicographic order the first n come first
        groups = combinations(range(n + m), n)
        while chunk := list(islice(groups, _COLUMNS)):
            labels = np.zeros((len(chunk), n + m), np.int8)
            np.put_along_axis(labels, np.array(chunk), 1, axis=1)
            yield labels
        return
    rng = np.random.default_rng(seed)
    observed = np.repeat(np.array([1, 0], np.int8), [n, m])
    for start in range(0, permutations + 1, _COLUMNS):
        count = min(_COLUMNS, permutations + 1 - start)
        labels = rng.permuted(np.broadcast_to(observed, (count, n + m)), axis=1)
        if start == 0:
            labels[0] = observed
        yield labels


def mmd2_and_variance(
    x: Array,
    y: Array,
    sigma: Sigma,
    *,
    estimator: Literal["unbiased", "biased"] = "unbiased",
    variance: Literal["unbiased", "biased"] = "unbiased",
    weights: Sigma | None = None,
    precision: Precision | None = None,
    backend: Backend | None = None,
) -> MMD2AndVariance:
    """Squared MMD and an estimate of that estimate's variance, both unbiased unless told otherwise.

    .. code-block:: text

        Var = Var(xx) + Var(yy) + 4 Var(xy) - 4 Cov(xx, xy) - 4 Cov(yy, xy)

        Var(xx)     = (4 (N - 2) zeta_1 + 2 zeta_2) / (N (N - 1))
        Var(xy)     = ((M - 1) zeta_x + (N - 1) zeta_y + zeta_xy) / (N M)
        Cov(xx, xy) = 2 Cov(E[K(x, x') | x], E[K(x, y) | x]) / N

    zeta_1 is the variance of E[K(x, x') | x], zeta_2 that of K(x, x'); zeta_x, zeta_y and zeta_xy are those of
    E[K(x, y) | x], E[K(x, y) | y] and K(x, y). Each is estimated without bias, by sums over different indices. The
    formula is exact for any N and M, and holds where both distributions are one as well as where they differ.

    Parameters
    ----------
    x : array of shape (..., N, D)
        First sample, at least four rows; see `rbf` for sigma, weights, precision, backend, dtypes and errors.
    y : array of shape (..., M, D)
        Second sample, at least four rows.
    estimator : {"unbiased", "biased"}
        Of MMD^2; see `kernel_means`. The variance is the same for both.
    variance : {"unbiased", "biased"}
        "biased" is the estimate in the published code of optimized MMD and of MMD-GANs, for N = M (two rows at
        least). It differs from the unbiased one by terms of the order 1 / N^2, and is too small where N is small.
        `mmd2 / variance.clamp(min=1e-8).sqrt()` is their ratio, with estimator="biased" if theirs was told so.

    Returns
    -------
    MMD2AndVariance
        Named tuple (mmd2, variance), each (...,); float32 for half-precision input. The variance may fall below zero
        in small samples: clamp it before taking a root, as in mmd2 / variance.clamp(min=1e-8).sqrt().

    Notes
    -----
    Everything follows from row sums of K and from sums of its squares, which are sums of Gaussians of other widths:
    O((N + M)^2 (D + S^2)) time, O((N + M) D) memory; in float64, because the terms cancel. Gradients to x, y, sigma
    and weights, of every order.

    References
    ----------
    D. Sutherland and N. Deka, "Unbiased estimators for the variance of MMD estimators", 2019, arXiv 1906.02104, has
    such an estimate for the u-statistic of N = M, which leaves the pairs (x_i, y_i) out. Its variance differs only in
    that of the mean between samples, ((N - 2) (zeta_x + zeta_y) + zeta_xy) / (N (N - 1)): by terms of the order
    1 / N^2. It corrects D. Sutherland et al., "Generative models and model criticism via optimized maximum mean
    discrepancy", ICLR 2017, whose code has the "biased" variance.

    Examples
    --------
    >>> import numpy, gkfast
    >>> x = numpy.arange(5.0)[:, None]
    >>> [round(float(v), 4) for v in gkfast.mmd2_and_variance(x, x + 3, 1.0)]
    [0.169, 0.0584]
    """
    x, y = under_autocast(x, y)
    checks.two_point_sets("x", x, "y", y)
    sample_checks.variance_of_mmd2(variance, estimator, x, y)
    call, points, (sigmas, kernel_weights), _ = prepare({"x": x, "y": y}, sigma, weights, precision, backend)
    n, m = x.shape[-2], y.shape[-2]
    x, y = map(call.double, points)
    baseline = call.backend.baselines(x, y, sigmas)
    bandwidths = (sigmas, kernel_weights, baseline)
    xx, yy = _sums(call, x, x, bandwidths, True), _sums(call, y, y, bandwidths, True)
    xy, yx = _sums(call, x, y, bandwidths), _sums(call, y, x, bandwidths)
    pairs = n * m
    total = xy.rows.sum(-1)
    within_x, within_y, diagonal = xx.rows.sum(-1), yy.rows.sum(-1), 1
    if estimator == "biased":
        own = weighted_sum(kernel_weights, 1 - baseline)
        within_x, within_y, diagonal = within_x + n * own, within_y + m * own, 0
    squared = within_x / (n * (n - diagonal)) + within_y / (m * (m - diagonal)) - 2 * total / pairs
    if estimator == "biased":
        squared = squared_norm(squared, x, y, kernel_weights)
    squared = call.result(squared, call.scalar_dtype)
    if variance == "biased":
        return MMD2AndVariance(squared, call.result(_biased_variance(xx, yy, xy, yx, n), call.scalar_dtype))

    square_x, square_y = (xy.rows**2).sum(-1), (yx.rows**2).sum(-1)
    apart = (total**2 - square_x - square_y + xy.squares) / (pairs * (n - 1) * (m - 1))
    share_x = (square_x - xy.squares) / (pairs * (m - 1)) - apart
    share_y = (square_y - xy.squares) / (pairs * (n - 1)) - apart
    between = ((m - 1) * share_x + (n - 1) * share_y + xy.squares / pairs - apart) / pairs
    spread = _variance_within(xx, n) + _variance_within(yy, m) + 4 * between
    for sums, across, rows, others in ((xx, xy, n, m), (yy, yx, m, n)):
        together = (sums.rows * across.rows).sum(-1)
        separate = (sums.rows.sum(-1) * total - 2 * together) / (rows - 2)
        spread = spread - 8 * (together - separate) / (rows**2 * (rows - 1) * others)
    return MMD2AndVariance(squared, call.result(spread, call.scalar_dtype))


class _Sums(NamedTuple):
    rows: Array  # (..., N) sums over j of K_ij - sum_s w_s baseline_s
    squares: Array  # (...,) sum over all pairs of the squares of these differences


def _sums(call: Call, x: Array, y: Array, bandwidths: tuple[Any, Any, Array], skip_diagonal: bool = False) -> _Sums:
    """A constant less in K changes neither MMD^2 nor its variance: with the baselines less it cancels less."""
    numbers, baseline = bandwidths[:2], bandwidths[2]
    sigma, weights = (call.double(call.array(values)) for values in numbers)
    one = call.xp.ones((*y.shape[:-1], 1), dtype=call.xp.float64, **call.beside(y))

    def rows(sigma: Array, weights: Array, baseline: Array) -> Array:
        operands = (x, y, one, sigma, weights, None, baseline)
        return call.backend.rbf_matmul(*operands, skip_diagonal=skip_diagonal, **call.options)[..., 0]

    sums = rows(*numbers, baseline)
    # k_s k_t is the Gaussian of 1 / sigma^2 = 1 / sigma_s^2 + 1 / sigma_t^2, without squares, which may overflow
    pairs = (*sigma.shape[:-1], sigma.shape[-1] ** 2)
    one_width, other = sigma[..., :, None], sigma[..., None, :]
    widths = (one_width * (other / call.xp.hypot(one_width, other))).reshape(pairs)
    products = (weights[..., :, None] * weights[..., None, :]).reshape(pairs)
    both = (baseline[..., :, None] * baseline[..., None, :]).reshape(pairs)
    # (K - c)^2 = (K^2 - c^2) - 2 c (K - c) with c = sum_s w_s baseline_s
    squares = rows(widths, products, both).sum(-1) - 2 * weighted_sum(numbers[1], baseline) * sums.sum(-1)
    return _Sums(sums, squares)


def _variance_within(sums: _Sums, n: int) -> Array:
    """The variance of the mean over pairs of different rows of one sample."""
    pairs, total, squares = n * (n - 1), sums.rows.sum(-1), sums.squares
    row_squares = (sums.rows**2).sum(-1)
    apart = (total**2 - 4 * row_squares + 2 * squares) / (pairs * (n - 2) * (n - 3))
    zeta_1 = (row_squares - squares) / (pairs * (n - 2)) - apart
    zeta_2 = squares / pairs - apart
    return (4 * (n - 2) * zeta_1 + 2 * zeta_2) / pairs


def _biased_variance(xx: _Sums, yy: _Sums, xy: _Sums, yx: _Sums, n: int) -> Array:
    """That of the published codes, for N = M; a constant added to K does not change it either."""
    of_x, of_y, across = (sums.rows.sum(-1) for sums in (xx, yy, xy))
    squares = sum(2 * (sums.rows**2).sum(-1) - sums.squares for sums in (xx, yy))
    across_squares = (xy.rows**2).sum(-1) + (yx.rows**2).sum(-1)
    together = (xx.rows * xy.rows).sum(-1) + (yy.rows * yx.rows).sum(-1)
    pairs = n * (n - 1)
    return (
        2 * squares / pairs**2
        - (4 * n - 6) * (of_x**2 + of_y**2) / pairs**3
        + 4 * ((n - 2) * across_squares - (n - 3) * xy.squares) / (n * pairs**2)
        - (8 * n - 12) * across**2 / (n**4 * pairs)
        + 8 * ((of_x + of_y) * across / n - together) / (n**2 * pairs)
    )
