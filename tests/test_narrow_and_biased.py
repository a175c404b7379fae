"""MMD^2 of narrow kernels keeps its digits, and the biased one is the squared norm that it is."""

import itertools
import math

import numpy as np
import pytest
import torch

import gkfast

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
LADDER = (0.25, 0.5, 1.0, 2.0, 4.0)
# everywhere but where the kernel leaves the range of float32, of which no float32 result is right
SMALLEST = 1e-37


def exact_means(x, y, sigma, estimator):
    """xx, yy, xy in float64 from differences, and the same of k - 1."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    n, m = len(x), len(y)

    def mean(p, q, skip, f):
        d2 = sum((p[:, k, None] - q[None, :, k]) ** 2 for k in range(p.shape[1]))
        k = sum(f(-d2 / (2 * s * s)) for s in sigma)
        if skip:
            np.fill_diagonal(k, 0)
        return math.fsum(k.ravel()) / (k.size - len(p) * skip)

    if estimator == "linear":
        between = mean(x, y, 0, np.exp)
        f = np.expm1 if between > 0.5 * len(sigma) else np.exp
        halves = (mean(x[[i]], x[[i + 1]], 0, f) + mean(y[[i]], y[[i + 1]], 0, f) - mean(x[[i]], y[[i + 1]], 0, f)
                  - mean(x[[i + 1]], y[[i]], 0, f) for i in range(0, n - 1, 2))  # fmt: skip
        return math.fsum(halves) / (n // 2), between
    within = estimator != "biased"
    across = estimator == "u_statistic"
    xx, yy, xy = (mean(p, q, s, np.expm1) for p, q, s in ((x, x, within), (y, y, within), (x, y, across)))
    small = [mean(p, q, s, np.exp) for p, q, s in ((x, x, within), (y, y, within), (x, y, across))]
    # whichever cancels less
    value = xx + yy - 2 * xy if min(small) > 0.5 * len(sigma) else small[0] + small[1] - 2 * small[2]
    assert n == m or not across
    return value, small[2]


@pytest.mark.parametrize("estimator", ["unbiased", "biased", "u_statistic", "linear"])
@pytest.mark.parametrize("dims", [2, 16, 24, 32, 48, 64])
def test_narrow_kernels(dims, estimator, rng):
    """The case of the fault: N(0, I) against N(.5, I) with sigma 1, where k - 1 has none of the digits of k."""
    x, y = rng.normal(size=(256, dims)), rng.normal(size=(256, dims)) + 0.5
    x, y = x.astype(np.float32), y.astype(np.float32)
    exact, between = exact_means(x, y, [1.0], estimator)
    ours = (
        gkfast.mmd2(x, y, 1.0, estimator=estimator),
        gkfast.mmd2(torch.from_numpy(x).requires_grad_(), torch.from_numpy(y), 1.0, estimator=estimator).item(),
        gkfast.mmd2(*map(torch.from_numpy, (x, y)), torch.tensor(1.0), estimator=estimator).item(),
    )
    for value in ours:
        assert abs(value - exact) <= 1e-5 * max(abs(exact), between)


@pytest.mark.parametrize("ladder", [(1.0,), LADDER], ids=["one", "ladder"])
@pytest.mark.parametrize("dims", [1, 3, 20, 100])
def test_every_bandwidth(dims, ladder, rng):
    """sigma from 1/1000 to 1000 of the data's scale; near 1 the small difference of the means to 1e-4 of itself."""
    x, y = rng.normal(size=(90, dims)).astype(np.float32), (rng.normal(size=(110, dims)) + 0.3).astype(np.float32)
    # so that no kernel is below the range at every bandwidth
    x[:9], y[:7] = x[:9] * 1e-3, x[:7] * 1.001e-3
    for scale in np.geomspace(1e-3, 1e3, 13):
        sigma = [float(scale * s) for s in ladder]
        exact, between = exact_means(x, y, sigma, "unbiased")
        ours = gkfast.mmd2(x, y, sigma)
        bound = 1e-5 * max(abs(exact), between)
        assert abs(ours - exact) <= bound + SMALLEST
        if between > 0.9 * len(sigma):
            assert abs(ours - exact) <= 1e-4 * abs(exact)


def test_gradients_of_narrow_kernels(rng):
    """To points, to the weights of kernels and of rows, and to sigma."""
    dims = 40
    x, y = rng.normal(size=(64, dims)), rng.normal(size=(64, dims)) + 0.3

    def gradients(dtype, backend):
        leaves = [
            torch.tensor(value, dtype=dtype, requires_grad=True)
            for value in (x.astype(np.float32), y.astype(np.float32), [1.0, 6.0], [1.0, 0.0], [1.0] * 64)
        ]
        p, q, sigma, weights, rows = leaves
        value = gkfast.mmd2(p, q, sigma, weights=weights, x_weights=rows, backend=backend)
        return torch.autograd.grad(value, leaves)

    for found, exact in zip(gradients(torch.float32, None), gradients(torch.float64, "reference"), strict=True):
        # kernels near 1e-17: of which k - 1 would leave nothing
        for one, other in zip(found, exact, strict=True) if found.ndim == 1 and len(found) == 2 else [(found, exact)]:
            assert (one.double() - other).norm() <= 3e-5 * other.norm()


def test_a_narrow_witness(rng):
    dims = 48
    points, x, y = (rng.normal(size=(n, dims)) for n in (20, 60, 70))
    points, x, y = (a.astype(np.float32) for a in (points, x, y))
    exact = gkfast.witness(*(a.astype(np.float64) for a in (points, x, y)), 1.0, backend="reference")
    assert 0 < np.abs(exact).max() < 1e-9
    assert np.linalg.norm(gkfast.witness(points, x, y, 1.0) - exact) <= 1e-5 * np.linalg.norm(exact)


def test_a_narrow_test_and_variance(rng):
    """The statistic of the permutation test, and the variance, of kernels near 1e-13."""
    x, y = rng.normal(size=(30, 32)).astype(np.float32), rng.normal(size=(30, 32)).astype(np.float32) + 0.5
    exact, between = exact_means(x, y, [1.0], "unbiased")
    assert abs(gkfast.mmd_test(x, y, 1.0, permutations=20, seed=0).statistic - exact) <= 1e-5 * max(exact, between)
    wide = x.astype(np.float64), y.astype(np.float64)
    ours, truth = gkfast.mmd2_and_variance(x, y, 1.0), gkfast.mmd2_and_variance(*wide, 1.0, backend="reference")
    assert abs(ours.mmd2 - exact) <= 1e-5 * max(exact, between)
    assert abs(ours.variance - truth.variance) <= 1e-5 * abs(truth.variance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("library", ["numpy", "torch", "operator", "compiled"])
def test_biased_is_a_squared_norm(library, dtype, rng):
    """Never below 0, and 0 between a set and itself or its permutation."""
    torch._dynamo.reset()

    def biased(p, q):
        return gkfast.mmd2(p, q, [0.5, 3.0], estimator="biased")

    compiled = torch.compile(biased, fullgraph=True, backend="aot_eager")

    def mmd2(p, q, sigma):
        if library == "numpy":
            return gkfast.mmd2(p, q, sigma, estimator="biased")
        p, q = torch.from_numpy(p), torch.from_numpy(q)
        if library == "compiled":
            return compiled(p, q).item()
        sigma = torch.tensor(sigma, dtype=p.dtype, requires_grad=True) if library == "operator" else sigma
        return gkfast.mmd2(p.requires_grad_(), q, sigma, estimator="biased").item()

    for k, (n, dims) in enumerate(itertools.product((2, 7, 100) if library != "compiled" else (7,), (1, 3, 30))):
        x = rng.normal(size=(n, dims)).astype(dtype)
        sigma = [0.5, 3.0] if library == "compiled" else [0.3, 1.0, 40.0]
        assert mmd2(x, x.copy(), sigma) == 0
        assert mmd2(x, x[rng.permutation(n)], sigma) == 0
        near = x[rng.permutation(n)].copy()
        near[k % n, 0] += 1e-3
        # another set, however near, is no permutation
        other = mmd2(x, near, sigma)
        assert other >= 0
        x[0, 0], zero = 0.0, x.copy()
        zero[0, 0] = -0.0
        assert mmd2(x, zero, sigma) == 0
        if dtype == np.float64:
            assert other > 0


def test_gradients_stay_where_the_value_is_cut_off(rng):
    """At a permutation the gradient is that of the unclamped value: tiny, but not replaced by exact zeros."""
    x = rng.normal(size=(50, 3))
    y = x + 1e-9 * rng.normal(size=x.shape)
    p, q = torch.tensor(x, requires_grad=True), torch.tensor(y)
    value = gkfast.mmd2(p, q, 1.0, estimator="biased")
    assert value.item() >= 0
    (ours,) = torch.autograd.grad(value, p)
    p64 = torch.tensor(x, requires_grad=True)
    (exact,) = torch.autograd.grad(gkfast.mmd2(p64, q, 1.0, estimator="biased", backend="reference"), p64)
    assert exact.norm() > 0
    assert (ours - exact).norm() <= 1e-5 * exact.norm()


def test_biased_value_with_weights_of_both_signs_may_be_negative(rng):
    x, y = rng.normal(size=(30, 2)), rng.normal(size=(30, 2)) + 1
    for weights in ([-1.0], [1.0, -3.0]):
        sigma = [1.0, 0.5][: len(weights)]
        exact = gkfast.mmd2(x, y, sigma, weights=weights, estimator="biased", backend="reference")
        assert exact < 0
        for w in (weights, torch.tensor(weights)):
            p, q = (x, y) if isinstance(w, list) else map(torch.from_numpy, (x, y))
            assert abs(float(gkfast.mmd2(p, q, sigma, weights=w, estimator="biased")) - exact) <= 1e-12


def test_permuted_rows_with_their_weights(rng):
    x, a, order = rng.normal(size=(40, 3)), rng.uniform(size=40), rng.permutation(40)
    options = {"estimator": "biased", "x_weights": a}
    assert gkfast.mmd2(x, x[order], 1.0, y_weights=a[order], **options) == 0
    assert gkfast.mmd2(x, x[order], 1.0, y_weights=a, **options) > 0


def test_nan_gives_nan(rng):
    x = rng.normal(size=(10, 3))
    x[3, 1] = np.nan
    assert np.isnan(gkfast.mmd2(x, x.copy(), 1.0, estimator="biased"))
