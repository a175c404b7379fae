"""The permutation test against enumeration and at its level, the variance against brute force, the witness."""

from itertools import combinations, permutations

import numpy as np
import pytest
import torch

import gkfast


def samples(rng, n, m, dims=2, shift=0.0):
    return rng.normal(size=(n, dims)), 1.3 * rng.normal(size=(m, dims)) + shift


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_small_samples_get_the_exact_p_value(rng, estimator):
    x, y = samples(rng, 4, 5, shift=1.0)
    z = np.concatenate([x, y])

    def statistic(group):
        others = [i for i in range(9) if i not in group]
        return float(gkfast.mmd2(z[list(group)], z[others], [0.7, 1.5], estimator=estimator, backend="reference"))

    every = np.array([statistic(group) for group in combinations(range(9), 4)])
    found = gkfast.mmd_test(x, y, [0.7, 1.5], estimator=estimator)
    assert float(found.statistic) == pytest.approx(every[0], abs=1e-14)
    assert float(found.p_value) == pytest.approx((every >= every[0] - 1e-12).mean(), abs=1e-14)
    # too few permutations for all of the 126: random ones, whose p-value is near
    some = gkfast.mmd_test(x, y, [0.7, 1.5], estimator=estimator, permutations=120, seed=1)
    assert float(some.p_value) == pytest.approx(float(found.p_value), abs=0.15)


def test_relabellings_that_tie_count_for_the_p_value():
    # every relabelling of equal points has the same statistic
    x = np.ones((4, 3), np.float32) * np.float32(0.1)
    assert float(gkfast.mmd_test(x, x, 0.3).p_value) == 1
    # points of two kinds: relabellings of one kind among itself change nothing but the order of sums
    x, y = np.array([[0.1], [0.1], [0.7]], np.float32), np.array([[0.7], [0.7], [0.1]], np.float32)
    # 3 + 3 of each kind; a group holds 1 or 2 of the first kind (as here) in 18 of 20 ways, else it is more extreme
    assert float(gkfast.mmd_test(x, y, 1.0, estimator="biased").p_value) == 1


def test_level_and_power(rng):
    x, y = rng.normal(size=(600, 12, 2)), rng.normal(size=(600, 9, 2))
    p = np.array([gkfast.mmd_test(x[k], y[k], 1.0, permutations=99, seed=k).p_value for k in range(len(x))])
    for alpha in (0.05, 0.1, 0.5):
        assert (p <= alpha).mean() == pytest.approx(alpha, abs=4 * np.sqrt(alpha * (1 - alpha) / len(p)))
    far = gkfast.mmd_test(*samples(rng, 40, 30, shift=2.0), 1.0, seed=0)
    assert float(far.p_value) == pytest.approx(1 / 1001)


def test_a_seed_fixes_the_relabellings(rng, library, numpy_of):
    x, y = samples(rng, 20, 25, shift=0.3)
    test = [float(gkfast.mmd_test(library(x), library(y), 1.0, permutations=600, seed=s).p_value) for s in (5, 5, 6)]
    assert test[0] == test[1] != test[2]
    assert test[0] == float(gkfast.mmd_test(x, y, 1.0, permutations=600, seed=np.random.default_rng(5)).p_value)
    fresh = [float(gkfast.mmd_test(x, y, 1.0, permutations=600).p_value) for _ in range(8)]
    assert len(set(fresh)) > 1


def test_batches_share_the_relabellings(rng):
    x, y = rng.normal(size=(3, 10, 2)), rng.normal(size=(11, 2))
    whole = gkfast.mmd_test(x, y, 0.9, permutations=300, seed=2)
    for k in range(3):
        alone = gkfast.mmd_test(x[k], y, 0.9, permutations=300, seed=2)
        assert whole.p_value[k] == alone.p_value
        assert whole.statistic[k] == pytest.approx(alone.statistic, abs=1e-14)


def test_result_has_no_gradient_and_is_float32_for_halves(rng):
    x, y = (torch.from_numpy(a).bfloat16().requires_grad_() for a in samples(rng, 10, 12))
    found = gkfast.mmd_test(x, y, torch.tensor(1.0, requires_grad=True), permutations=50, seed=0)
    assert (found.statistic.dtype, found.p_value.dtype) == (torch.float32, torch.float64)
    assert not found.statistic.requires_grad


def brute_force_variance(x, y, sigma):
    """The estimate with every mean over distinct indices written out."""
    n, m = len(x), len(y)
    kx, ky, kxy = (gkfast.rbf(a, b, sigma, backend="reference") for a, b in ((x, x), (y, y), (x, y)))

    def mean(values):
        return np.mean(list(values))

    def within(k, size):
        triples, quadruples = permutations(range(size), 3), permutations(range(size), 4)
        one = mean(k[a, b] * k[a, c] for a, b, c in triples)
        apart = mean(k[a, b] * k[c, d] for a, b, c, d in quadruples)
        square = mean(k[a, b] ** 2 for a, b in permutations(range(size), 2))
        return (4 * (size - 2) * (one - apart) + 2 * (square - apart)) / (size * (size - 1))

    two_x, two_y = list(permutations(range(n), 2)), list(permutations(range(m), 2))
    apart = mean(kxy[a, c] * kxy[b, d] for a, b in two_x for c, d in two_y)
    share_x = mean(kxy[a, c] * kxy[a, d] for a in range(n) for c, d in two_y) - apart
    share_y = mean(kxy[a, c] * kxy[b, c] for a, b in two_x for c in range(m)) - apart
    between = ((m - 1) * share_x + (n - 1) * share_y + (kxy**2).mean() - apart) / (n * m)

    def together(k, across, size):
        # across holds a row for each index of k
        columns = range(across.shape[1])
        one = mean(k[a, b] * across[a, c] for a, b in permutations(range(size), 2) for c in columns)
        apart = mean(k[a, b] * across[d, c] for a, b, d in permutations(range(size), 3) for c in columns)
        return 2 * (one - apart) / size

    covariances = together(kx, kxy, n) + together(ky, kxy.T, m)
    return within(kx, n) + within(ky, m) + 4 * between - 4 * covariances


@pytest.mark.parametrize(("n", "m"), [(4, 4), (5, 6), (7, 4)])
@pytest.mark.parametrize("sigma", [0.8, [0.5, 1.0, 3.0]])
def test_variance_by_brute_force(rng, library, n, m, sigma):
    x, y = samples(rng, n, m, shift=0.5)
    found = gkfast.mmd2_and_variance(library(x), library(y), sigma)
    assert float(found.variance) == pytest.approx(brute_force_variance(x, y, sigma), rel=1e-10)
    assert float(found.mmd2) == pytest.approx(float(gkfast.mmd2(x, y, sigma)), abs=1e-14)


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_variance_is_that_of_the_estimate(rng, shift):
    x = rng.normal(size=(4000, 9, 2))
    y = 1.3 * rng.normal(size=(4000, 7, 2)) + shift
    found = gkfast.mmd2_and_variance(x, y, 1.0)
    error = found.variance.std() / np.sqrt(len(x))
    # the spread of a sample variance, for heavier tails than a normal's
    error += 2 * found.mmd2.var() / np.sqrt(len(x))
    assert found.variance.mean() == pytest.approx(found.mmd2.var(), abs=4 * error)


def matrices(x, y, sigma):
    """Kernel matrices in float64, those within a sample without their diagonals."""
    k = [gkfast.rbf(a, b, sigma, backend="reference") for a, b in ((x, x), (y, y), (x, y))]
    return *(a - np.diag(np.diag(a)) for a in k[:2]), k[2]


def published_mmd2_and_variance(x, y, sigma, biased):
    """The formula in the code of "optimized MMD" (Sutherland et al. 2017) and of MMD-GANs, for N = M."""
    kx, ky, k = matrices(x, y, sigma)
    m = len(x)
    scale = np.size(sigma)
    rows_x, rows_y, rows, columns = kx.sum(1), ky.sum(1), k.sum(1), k.sum(0)
    sum_x, sum_y, total = kx.sum(), ky.sum(), k.sum()
    if biased:
        mmd2 = (sum_x + sum_y + 2 * m * scale) / m**2 - 2 * total / m**2
    else:
        mmd2 = (sum_x + sum_y) / (m * (m - 1)) - 2 * total / m**2
    of_x, of_y = (2 * r @ r - (a**2).sum() for r, a in ((rows_x, kx), (rows_y, ky)))
    variance = (
        2 / (m**2 * (m - 1) ** 2) * (of_x + of_y)
        - (4 * m - 6) / (m**3 * (m - 1) ** 3) * (sum_x**2 + sum_y**2)
        + 4 * (m - 2) / (m**3 * (m - 1) ** 2) * (rows @ rows + columns @ columns)
        - 4 * (m - 3) / (m**3 * (m - 1) ** 2) * (k**2).sum()
        - (8 * m - 12) / (m**5 * (m - 1)) * total**2
        + 8 / (m**3 * (m - 1)) * ((sum_x + sum_y) * total / m - rows_x @ rows - rows_y @ columns)
    )
    return mmd2, variance


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("sigma", [0.8, [0.5, 1.0, 3.0]])
@pytest.mark.parametrize("m", [2, 3, 5, 24])
def test_biased_variance_is_that_of_mmd_gans(rng, library, m, sigma, estimator):
    x, y = samples(rng, m, m, shift=0.5)
    found = gkfast.mmd2_and_variance(library(x), library(y), sigma, estimator=estimator, variance="biased")
    mmd2, variance = published_mmd2_and_variance(x, y, sigma, estimator == "biased")
    assert float(found.mmd2) == pytest.approx(mmd2, abs=1e-13)
    assert float(found.variance) == pytest.approx(variance, rel=1e-9, abs=1e-14)
    # their ratio
    ratio = float(found.mmd2) / max(float(found.variance), 1e-8) ** 0.5
    assert ratio == pytest.approx(mmd2 / max(variance, 1e-8) ** 0.5, rel=1e-9)


def test_biased_estimate_of_mmd2_beside_either_variance(rng):
    x, y = samples(rng, 7, 5, shift=0.5)
    found, usual = gkfast.mmd2_and_variance(x, y, 0.8, estimator="biased"), gkfast.mmd2_and_variance(x, y, 0.8)
    assert float(found.mmd2) == pytest.approx(float(gkfast.mmd2(x, y, 0.8, estimator="biased")), abs=1e-14)
    assert found.variance == usual.variance


def test_biased_variance_has_gradients(rng):
    x, y = (torch.from_numpy(a).requires_grad_() for a in samples(rng, 5, 5))
    assert torch.autograd.gradcheck(lambda x, y: gkfast.mmd2_and_variance(x, y, 0.9, variance="biased"), (x, y))


def variance_of_the_u_statistic(x, y, sigma):
    """D. Sutherland and N. Deka's estimate (arXiv 1906.02104) for N = M, as codes that cite it have it."""
    kx, ky, k = matrices(x, y, sigma)
    m = len(x)
    m2, m3 = m * (m - 1), m * (m - 1) * (m - 2)
    m4 = m3 * (m - 3)
    rows_x, rows_y, rows, columns = kx.sum(1), ky.sum(1), k.sum(1), k.sum(0)
    return (
        4 / m4 * (rows_x @ rows_x + rows_y @ rows_y)
        - 2 / m4 * ((kx**2).sum() + (ky**2).sum())
        + 4 * (m**2 - m - 1) / (m2 * m2 * m * (m - 1)) * (rows @ rows + columns @ columns)
        - 4 * (m - 2) / (m2 * m * (m - 1) ** 2) * (k**2).sum()
        - 2 * (2 * m - 3) / (m2 * m4) * (rows_x.sum() ** 2 + rows_y.sum() ** 2)
        - 4 * (2 * m - 3) / m2**3 * k.sum() ** 2
        - 8 / (m * m3) * (rows_x @ rows + rows_y @ columns)
        + 8 / (m * m * m3) * (rows_x.sum() + rows_y.sum()) * k.sum()
    )


def test_variance_beside_that_of_the_u_statistic(rng):
    # they differ in the variance of the mean between samples: with the pairs (i, i) and without
    for m in (4, 6, 20):
        x, y = samples(rng, m, m, shift=0.5)
        _, _, k = matrices(x, y, 0.8)
        rows, columns, total, squares = k.sum(1), k.sum(0), k.sum(), (k**2).sum()
        apart = (total**2 - rows @ rows - columns @ columns + squares) / (m * (m - 1)) ** 2
        shares = (rows @ rows + columns @ columns - 2 * squares) / (m * m * (m - 1)) - 2 * apart
        alone = squares / m**2 - apart
        with_pairs = ((m - 1) * shares + alone) / m**2
        without = ((m - 2) * shares + alone) / (m * (m - 1))
        expected = variance_of_the_u_statistic(x, y, 0.8) + 4 * (with_pairs - without)
        assert float(gkfast.mmd2_and_variance(x, y, 0.8).variance) == pytest.approx(expected, rel=1e-9)


def test_estimates_of_the_variance_of_two_estimators(rng):
    """Each is unbiased for its own estimator, and the published code's is far off where samples are small."""
    x = rng.normal(size=(6000, 5, 2))
    y = 1.3 * rng.normal(size=(6000, 5, 2)) + 0.5
    unbiased, biased = gkfast.mmd2_and_variance(x, y, 0.8), gkfast.mmd2_and_variance(x, y, 0.8, variance="biased")
    u_statistic = gkfast.mmd2(x, y, 0.8, estimator="u_statistic").var()
    of_u = np.mean([variance_of_the_u_statistic(*pair, 0.8) for pair in zip(x[::4], y[::4], strict=True)])
    # standard errors: 1.6e-4 + 2 * 2.6e-2 / sqrt(6000) + 9e-4 for a quarter of the samples
    assert unbiased.variance.mean() == pytest.approx(unbiased.mmd2.var(), abs=3e-3)
    assert of_u == pytest.approx(u_statistic, abs=5e-3)
    assert biased.variance.mean() < 0.6 * unbiased.mmd2.var()


def test_variance_keeps_its_digits_with_a_wide_kernel(rng, exact):
    x, y = (a.astype(np.float32) for a in samples(rng, 30, 40, shift=0.2))
    found, truth = gkfast.mmd2_and_variance(x, y, 200.0), exact(gkfast.mmd2_and_variance, x, y, 200.0)
    assert found.mmd2.dtype == np.float32
    np.testing.assert_allclose(found, truth, rtol=1e-5)


def test_witness_is_the_difference_of_means(rng, library, numpy_of):
    points, (x, y) = rng.normal(size=(6, 2)), samples(rng, 8, 9, shift=1.0)
    a, b = rng.uniform(size=8), rng.uniform(size=9)
    found = numpy_of(
        gkfast.witness(*map(library, (points, x, y)), [0.5, 2.0], x_weights=library(a), y_weights=library(b))
    )
    truth = gkfast.rbf(points, x, [0.5, 2.0]) @ a / a.sum() - gkfast.rbf(points, y, [0.5, 2.0]) @ b / b.sum()
    np.testing.assert_allclose(found, truth, atol=1e-14)


def test_witness_is_the_gradient_of_mmd2(rng):
    # MMD^2 moves by twice the witness as a sample's weight moves, less what keeps the weights' sum at one
    x, y = (torch.from_numpy(a) for a in samples(rng, 8, 9, shift=1.0))
    a = torch.full((8,), 1 / 8, dtype=torch.float64, requires_grad=True)
    value = gkfast.mmd2(x, y, 1.0, x_weights=a, estimator="biased")
    (slope,) = torch.autograd.grad(value, a)
    witness = gkfast.witness(x, x, y, 1.0)
    torch.testing.assert_close(slope, 2 * (witness - witness.mean()), rtol=1e-10, atol=1e-12)


def test_witness_keeps_its_digits_with_a_wide_kernel(rng, exact):
    points, (x, y) = rng.normal(size=(20, 5)), samples(rng, 300, 400, 5, shift=0.1)
    points, x, y = (a.astype(np.float32) for a in (points, x, y))
    found, truth = gkfast.witness(points, x, y, 200.0), exact(gkfast.witness, points, x, y, 200.0)
    assert np.linalg.norm(found - truth) <= 1e-4 * np.linalg.norm(truth)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: gkfast.mmd_test(x, x, 1.0, permutations=0), "permutations must be a whole number of at least 1"),
        (lambda x: gkfast.mmd_test(x, x, 1.0, seed=-1), "seed must be a whole number not below 0"),
        (lambda x: gkfast.mmd_test(x, x, 1.0, estimator="linear"), "estimator must be unbiased or biased for a test"),
        (lambda x: gkfast.mmd_test(x, x[:1], 1.0), "y must have at least 2 rows"),
        (lambda x: gkfast.mmd2_and_variance(x, x[:3], 1.0), "y must have at least 4 rows for the variance"),
        (lambda x: gkfast.mmd2_and_variance(x, x, 1.0, variance="both"), "variance must be unbiased or biased, got"),
        (lambda x: gkfast.mmd2_and_variance(x, x, 1.0, estimator="linear"), "estimator must be unbiased or biased"),
        (
            lambda x: gkfast.mmd2_and_variance(x, x[:4], 1.0, variance="biased"),
            "the same number of rows for the bias",
        ),
        (lambda x: gkfast.mmd2_and_variance(x, x[:1], 1.0, variance="biased"), "y must have at least 2 rows"),
        (lambda x: gkfast.witness(x, x, x[:, :1], 1.0), "y must have as many coordinates as points"),
        (lambda x: gkfast.witness(x, x[:0], x, 1.0), "x must have at least 1 row"),
    ],
)
def test_bad_samples_are_refused(rng, call, message):
    with pytest.raises(ValueError, match=message):
        call(rng.normal(size=(5, 2)))


def test_a_narrow_biased_test_has_power():
    """The diagonal, 1/N + 1/M of the statistic, is no measure of what rounding can change."""
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(20, 20)).astype(np.float32) + shift for shift in (0, 1))
    biased, unbiased = (
        gkfast.mmd_test(x, y.astype(np.float32), 0.7, permutations=200, seed=0, estimator=e)
        for e in ("biased", "unbiased")
    )
    assert unbiased.p_value < 0.05
    assert biased.p_value < 0.05


def test_nan_gives_a_nan_p_value():
    x = np.zeros((5, 2))
    x[0, 0] = np.nan
    for estimator in ("unbiased", "biased"):
        found = gkfast.mmd_test(x, np.ones((5, 2)), 1.0, estimator=estimator)
        assert np.isnan(found.statistic)
        assert np.isnan(found.p_value)


def test_empty_batch():
    for x in (np.empty((0, 6, 2)), torch.empty(0, 6, 2)):
        assert gkfast.mmd2_and_variance(x, x, [1.0, 2.0]).variance.shape == (0,)
