"""The public functions against the reference in float64: shapes, dtypes, mixtures, batches, properties."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from functions import BASIC, FUNCTIONS, WITHOUT_GRADIENT

import gkfast

# one more than a tile, primes, one, none; D of 1, 33 and one more than the block over coordinates
SHAPES = [
    (1, 1, 1),
    (3, 5, 2),
    (257, 31, 33),
    (13, 513, 3),
    (64, 256, 65),
    (37, 41, 129),
    (2, 300, 784),
    (5, 7, 3072),
]
BANDWIDTHS = [(1.3, None), ([0.5, 1.0, 2.0], None), ([0.7, 1.9], [0.25, 2.0])]


def sample(rng, dtype, n, m, dims):
    # the typical distance is of the order of sigma for every D
    scale = 1 / np.sqrt(dims)
    return (rng.normal(size=(n, dims)) * scale).astype(dtype), (rng.normal(size=(m, dims)) * scale).astype(dtype)


def relative(ours, truth):
    return np.abs(ours - truth).max() / max(np.abs(truth).max(), 1e-300)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("sigma", "weights"), BANDWIDTHS)
def test_rbf(rng, tolerance, exact, numpy_of, library, dtype, shape, sigma, weights):
    x, y = sample(rng, dtype, *shape)
    ours = numpy_of(gkfast.rbf(library(x), library(y), sigma, weights=weights))
    assert ours.dtype == dtype
    truth = exact(gkfast.rbf, x, y, sigma, weights=weights)
    assert np.abs(ours - truth).max() <= tolerance("kernel", dtype) * np.abs(weights or np.ones(np.size(sigma))).sum()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_rbf_matmul(rng, tolerance, exact, numpy_of, library, dtype, shape):
    x, y = sample(rng, dtype, *shape)
    for v in (rng.uniform(size=len(y)), rng.uniform(size=(len(y), 1)), rng.uniform(size=(len(y), 3))):
        v = v.astype(dtype)
        ours = numpy_of(gkfast.rbf_matmul(library(x), library(y), library(v), [0.8, 1.6]))
        truth = exact(gkfast.rbf_matmul, x, y, v, [0.8, 1.6])
        assert ours.shape == truth.shape
        assert relative(ours, truth) <= tolerance("sum", dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_log_density_and_score(rng, tolerance, exact, numpy_of, library, dtype, shape):
    x, data = sample(rng, dtype, *shape)
    a = rng.uniform(0.1, 1, size=len(data)).astype(dtype)
    options = {"weights": [0.3, 0.7]}
    for function, precision, what in (
        (gkfast.log_density, None, "density alone"),
        (gkfast.log_density, "highest", "density"),
        (gkfast.score, None, "gradient"),
    ):
        arguments = (library(x), library(data), [0.1, 0.5])
        ours = numpy_of(function(*arguments, data_weights=library(a), precision=precision, **options))
        truth = exact(function, x, data, [0.1, 0.5], data_weights=a, **options)
        assert relative(ours, truth) <= tolerance(what, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("estimator", ["biased", "unbiased", "u_statistic", "linear"])
@pytest.mark.parametrize("shape", [(2, 2, 1), (300, 300, 5), (7, 7, 784)])
def test_means_and_mmd2(rng, tolerance, exact, numpy_of, library, dtype, estimator, shape):
    x, y = sample(rng, dtype, *shape)
    for sigma, weights in BANDWIDTHS:
        options = {"estimator": estimator, "weights": weights}
        ours = gkfast.kernel_means(library(x), library(y), sigma, **options)
        truth = exact(gkfast.kernel_means, x, y, sigma, **options)
        for name in ("xx", "yy", "xy"):
            assert relative(numpy_of(getattr(ours, name)), getattr(truth, name)) <= tolerance("sum", dtype)
        value = numpy_of(gkfast.mmd2(library(x), library(y), sigma, **options))
        expected = exact(gkfast.mmd2, x, y, sigma, **options)
        # the terms whose difference MMD^2 is
        size = abs(truth.xx) + abs(truth.yy)
        assert value.dtype == dtype
        assert abs(value - expected) <= tolerance("sum", dtype) * size


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_samples_of_different_sizes_and_weights(rng, tolerance, exact, numpy_of, library, estimator):
    x, y = sample(rng, np.float64, 21, 34, 3)
    a, b = rng.uniform(size=21), rng.uniform(size=34)
    ours = gkfast.mmd2(
        library(x), library(y), [0.5, 1.0], estimator=estimator, x_weights=library(a), y_weights=library(b)
    )
    p, q = a / a.sum(), b / b.sum()
    kxx, kyy, kxy = (
        sum(gkfast.rbf(u, v, s, backend="reference") for s in (0.5, 1.0)) for u, v in ((x, x), (y, y), (x, y))
    )
    if estimator == "unbiased":
        np.fill_diagonal(kxx, 0)
        np.fill_diagonal(kyy, 0)
    within_x = p @ kxx @ p / (1 - (p @ p if estimator == "unbiased" else 0))
    within_y = q @ kyy @ q / (1 - (q @ q if estimator == "unbiased" else 0))
    assert float(ours) == pytest.approx(within_x + within_y - 2 * p @ kxy @ q, abs=1e-13)


def test_weights_are_repetitions_of_rows(rng):
    x, y = sample(rng, np.float64, 6, 5, 2)
    counts = np.array([1, 2, 3, 1, 1, 2])
    weighted = gkfast.mmd2(x, y, 0.7, estimator="biased", x_weights=counts.astype(float))
    repeated = gkfast.mmd2(np.repeat(x, counts, 0), y, 0.7, estimator="biased")
    assert float(weighted) == pytest.approx(float(repeated), abs=1e-14)


CALLS = {name: lambda x, y, f=FUNCTIONS[name], s=[0.9, 1.8] if name == "mmd2" else 0.9: f(x, y, s) for name in BASIC}


@pytest.mark.parametrize("name", CALLS)
def test_batch_dimensions_broadcast_and_equal_a_loop(rng, library, numpy_of, name):
    x, y = rng.normal(size=(4, 1, 11, 3)), rng.normal(size=(5, 13, 3))
    batched = numpy_of(CALLS[name](library(x), library(y)))
    assert batched.shape[:2] == (4, 5)
    for i in range(4):
        for j in range(5):
            np.testing.assert_array_equal(batched[i, j], numpy_of(CALLS[name](library(x[i, 0]), library(y[j]))))


@pytest.mark.parametrize("name", CALLS)
def test_strides_change_no_result(rng, name):
    x, y = rng.normal(size=(3, 22)).T, rng.normal(size=(26, 6))[::2, ::2]
    assert not x.flags.c_contiguous
    assert not y.flags.c_contiguous
    np.testing.assert_array_equal(CALLS[name](x, y), CALLS[name](x.copy(), y.copy()))
    xt, yt = torch.from_numpy(x.copy()).mT.contiguous().mT, torch.from_numpy(np.ascontiguousarray(y))
    np.testing.assert_array_equal(CALLS[name](xt, yt).numpy(), CALLS[name](x, y))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_halves_are_computed_in_float32(rng, name, half):
    x = torch.from_numpy(rng.normal(size=(33, 5))).to(half)
    y = torch.from_numpy(rng.normal(size=(29, 5))).to(half)
    ours = CALLS[name](x, y)
    # kernel values lie within the range of a half; sums and densities are not rounded at all
    wide = CALLS[name](x.float(), y.float())
    assert ours.dtype == (half if name == "rbf" else torch.float32)
    torch.testing.assert_close(ours, wide.to(ours.dtype), atol=0, rtol=0)


def test_sums_of_halves_may_leave_their_range():
    x = torch.zeros(300, 1, dtype=torch.float16)
    v = torch.full((300,), 1000.0, dtype=torch.float16, requires_grad=True)
    sums = gkfast.rbf_matmul(x, None, v, 1.0)
    torch.testing.assert_close(sums, torch.full((300,), 3e5))
    # the gradient is of the half's dtype all the same
    assert torch.autograd.grad(sums.sum(), v)[0].dtype == torch.float16
    assert gkfast.rbf_matmul(x.numpy(), None, v.detach().numpy(), 1.0)[0] == 3e5
    # (data - x) / sigma^2
    far = torch.ones(1, 1, dtype=torch.float16)
    assert gkfast.score(far, x[:1], 2.0**-9).item() == -(2.0**18)
    assert gkfast.score(far.numpy(), x[:1].numpy(), 2.0**-9).item() == -(2.0**18)


@pytest.mark.parametrize("name", CALLS)
def test_autocast_takes_halves_as_float32(rng, name):
    x = torch.from_numpy(rng.normal(size=(33, 5))).bfloat16().requires_grad_()
    y = torch.from_numpy(rng.normal(size=(29, 5))).float()
    with pytest.raises(ValueError, match="must have the dtype of x"):
        CALLS[name](x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # what a layer under autocast returns, against data that no layer has seen
        ours = CALLS[name](x, y)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, CALLS[name](x.float(), y), atol=0, rtol=0)
    (g,) = torch.autograd.grad(ours.sum(), x)
    assert g.dtype == torch.bfloat16


def test_numpy_float16_is_computed_in_float32(rng):
    x = rng.normal(size=(9, 2)).astype(np.float16)
    ours = gkfast.rbf(x, sigma=1.0)
    assert ours.dtype == np.float16
    np.testing.assert_array_equal(ours, gkfast.rbf(x.astype(np.float32), sigma=1.0).astype(np.float16))


def test_a_list_of_tensors_and_numbers_for_sigma(rng):
    x, y = (torch.from_numpy(rng.normal(size=(9, 2))) for _ in range(2))
    sigma = gkfast.median_sigma(x, y).requires_grad_()
    ladder = [sigma / 2, sigma, 2.0]
    ours = gkfast.mmd2(x, y, ladder)
    assert ours.item() == pytest.approx(float(gkfast.mmd2(x, y, [sigma.item() / 2, sigma.item(), 2.0])), abs=1e-15)
    assert float(gkfast.mmd2(x.numpy(), y.numpy(), ladder)) == pytest.approx(ours.item(), abs=1e-15)
    assert torch.autograd.grad(ours, sigma)[0] != 0


def test_empty_inputs_have_defined_results(library, numpy_of):
    none, some = np.zeros((0, 3)), np.ones((4, 3))
    assert numpy_of(gkfast.rbf(library(none), library(some))).shape == (0, 4)
    assert numpy_of(gkfast.rbf(library(some), library(none))).shape == (4, 0)
    assert numpy_of(gkfast.rbf(library(np.zeros((2, 0, 3))))).shape == (2, 0, 0)
    assert numpy_of(gkfast.rbf(library(np.zeros((0, 4, 3))))).shape == (0, 4, 4)
    np.testing.assert_array_equal(
        numpy_of(gkfast.rbf_matmul(library(some), library(none), library(np.zeros((0, 2))))), np.zeros((4, 2))
    )
    assert numpy_of(gkfast.log_density(library(none), library(some), 1.0)).shape == (0,)
    # no coordinates: all points are the same point
    np.testing.assert_array_equal(
        numpy_of(gkfast.rbf(library(np.zeros((2, 0))), weights=[0.5])), np.full((2, 2), 0.5)
    )


def test_out_is_filled_and_memory_around_it_is_kept(rng, library, numpy_of):
    x, y = rng.normal(size=(37, 3)), rng.normal(size=(41, 3))
    guarded = np.full((39, 41), -7.0)
    out = library(guarded)[1:-1]
    result = gkfast.rbf(library(x), library(y), 0.8, out=out)
    assert result is out
    np.testing.assert_array_equal(numpy_of(out), gkfast.rbf(x, y, 0.8))
    np.testing.assert_array_equal(
        guarded[[0, -1]] if isinstance(out, np.ndarray) else out._base.numpy()[[0, -1]], -7.0
    )


# glibc fills what it allocates with the byte 0xfe: a number of about -1e38 in float32, -1e303 in float64
POISONED = """
import sys
import numpy as np
from test_functional import CALLS
points = np.load(sys.argv[1])
fresh = np.empty(10_000, np.float32)
values = {name: call(points["x"], points["y"]) for name, call in CALLS.items()}
np.savez(sys.argv[2], fresh=fresh, **values)
"""


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    """x, y, and by name the results of a process whose new memory is full of large numbers."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("only glibc fills new memory")
    rng, folder = np.random.default_rng(20), tmp_path_factory.mktemp("poisoned")
    points = {"x": rng.normal(size=(37, 3)), "y": rng.normal(size=(300, 3))}
    np.savez(folder / "points.npz", **points)
    environment = os.environ | {"MALLOC_PERTURB_": "1", "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", POISONED, str(folder / "points.npz"), str(folder / "values.npz")]
    subprocess.run(command, cwd=Path(__file__).parent.parent, env=environment, check=True)
    return points | dict(np.load(folder / "values.npz"))


@pytest.mark.parametrize("name", CALLS)
def test_results_do_not_depend_on_what_memory_held(poisoned, name):
    assert (poisoned["fresh"] < -1e38).all()
    np.testing.assert_array_equal(poisoned[name], CALLS[name](poisoned["x"], poisoned["y"]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dims", [1, 3, 17, 784])
def test_kernel_matrix_is_symmetric_with_ones_and_at_most_one(rng, library, numpy_of, dtype, dims):
    x = (rng.normal(size=(301, dims)) * rng.choice([1e-3, 1, 1e3], size=(301, 1))).astype(dtype)
    k = numpy_of(gkfast.rbf(library(x), sigma=1.0))
    np.testing.assert_array_equal(k, k.T)
    np.testing.assert_array_equal(np.diag(k), 1)
    assert k.max() <= 1
    assert k.min() >= 0
    np.testing.assert_array_equal(k, numpy_of(gkfast.rbf(library(x), library(x.copy()), 1.0)))


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("sigma", [[0.0], [-1.0], [float("nan")], [1.0, 0.0], [-2.0, 3.0]])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_tensor_with_a_bandwidth_that_is_not_positive_gives_nan(rng, name, sigma, backend):
    # of coincident points as well, and without a warning
    x = rng.normal(size=(6, 2))
    y = np.concatenate([x[:2], rng.normal(size=(5, 2))])
    function = FUNCTIONS[name]
    # of several bandwidths the good ones have results of their own
    own = name.endswith("by bandwidth")
    bad = (..., [not s > 0 for s in sigma]) if own else ...
    for dtype in (np.float64, np.float32):
        given = torch.tensor(sigma, dtype=torch.float64, requires_grad=True)
        found = np.isnan(function(x.astype(dtype), y.astype(dtype), given, backend=backend))
        assert found[bad].all()
        assert not own or found.sum() == found[bad].size
        xt, yt = (torch.from_numpy(a.astype(dtype)).requires_grad_() for a in (x, y))
        value = function(xt, yt, given, backend=backend)
        assert value[bad].isnan().all()
        if name not in WITHOUT_GRADIENT:
            g = torch.autograd.grad(value.sum(), (xt, given))
            assert g[0].isnan().all()
            # the good one of two has a gradient of its own where kernels are only added
            assert g[1][~(given > 0)].isnan().all()


ODD = {"infinite": np.inf, "NaN": np.nan}
WEIGHTED = {
    "mmd2": lambda x, y, a, **k: gkfast.mmd2(x, y, [0.5, 1.1], x_weights=a, **k),
    "mmd2 of the second": lambda x, y, a, **k: gkfast.mmd2(y, x, 0.9, estimator="biased", y_weights=a, **k),
    "u_statistic": lambda x, y, a, **k: gkfast.mmd2(x, y, 0.9, estimator="u_statistic", x_weights=a, **k),
    "kernel_means": lambda x, y, a, **k: torch.stack(gkfast.kernel_means(x, y, 0.9, x_weights=a, **k)),
    "witness": lambda x, y, a, **k: gkfast.witness(y, x, y, 0.9, x_weights=a, **k),
    "log_density": lambda x, y, a, **k: gkfast.log_density(y, x, 0.9, data_weights=a, **k),
    "score": lambda x, y, a, **k: gkfast.score(y, x, 0.9, data_weights=a, **k),
}


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", WEIGHTED)
def test_a_row_of_weight_0_has_no_effect(name, odd, backend):
    generator = torch.Generator().manual_seed(1)
    whole, y = (torch.randn(2, 7, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    a = torch.rand(2, 7, generator=generator, dtype=torch.float64) + 0.1
    a[:, [0, 4]] = a[1, 5] = 0.0
    ones = torch.tensor([1.0, 0, 2.0])
    spoilt = whole.clone()
    spoilt[:, 0], spoilt[:, 4, 1], spoilt[1, 5, 0] = ODD[odd] * (1 + ones), ODD[odd], ODD[odd]
    found = []
    for x in (spoilt, whole):
        x, z, b = (t.clone().requires_grad_() for t in (x, y, a))
        value = WEIGHTED[name](x, z, b, backend=backend)
        first = torch.autograd.grad(value.square().sum(), (x, z, b), create_graph=True)
        second = torch.autograd.grad(first[0][:, 1].sum() + first[1].square().sum(), (x, z, b))
        found.append((value, *first, *second))
        array = WEIGHTED[name](x.detach(), z.detach(), b.detach(), backend=backend).numpy()
        np.testing.assert_allclose(array, value.detach().numpy(), rtol=1e-12)
    of_spoilt, of_whole = found
    counts = a > 0
    for k, (ours, truth) in enumerate(zip(of_spoilt, of_whole, strict=True)):
        if k in (3, 6):
            # the weights' own gradients, of rows that are 0 because they are not finite
            assert (ours[~counts] == 0).all()
            ours, truth = ours[counts], truth[counts]
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_a_row_of_weight_0_has_no_effect_in_arrays(rng, backend):
    x, y = rng.normal(size=(5, 2)), rng.normal(size=(4, 2))
    a, spoilt = np.array([0.5, 0.0, 1.0, 0.0, 2.0]), x.copy()
    spoilt[[1, 3]] = np.nan, np.inf
    for call in (
        lambda x, a: gkfast.mmd2(x, y, 0.8, x_weights=a, backend=backend),
        lambda x, a: gkfast.witness(y, y, x, 0.8, y_weights=a, backend=backend),
        lambda x, a: gkfast.log_density(y, x, 0.8, data_weights=a, backend=backend),
    ):
        np.testing.assert_allclose(call(spoilt, a), call(x[[0, 2, 4]], a[[0, 2, 4]]), rtol=1e-13)
        assert np.isnan(call(spoilt, np.ones(5))).any()


@pytest.mark.parametrize("backend", [None, "reference"])
def test_kernel_score_of_one_observation(rng, library, numpy_of, backend):
    x, y = rng.normal(size=(3, 1, 2)), rng.normal(size=(3, 6, 2))
    means = gkfast.kernel_means(library(x), library(y), [0.7, 1.4], backend=backend)
    pairs = sum(np.exp(-((y[:, :, None] - y[:, None]) ** 2).sum(-1) / (2 * s * s)) for s in (0.7, 1.4))
    across = sum(np.exp(-((x - y) ** 2).sum(-1) / (2 * s * s)) for s in (0.7, 1.4)).mean(-1)
    within = (pairs.sum((1, 2)) - 12) / 30
    assert np.isnan(numpy_of(means.xx)).all()
    assert numpy_of(means.xx).dtype == np.float64
    np.testing.assert_allclose(numpy_of(means.yy), within, rtol=1e-13)
    np.testing.assert_allclose(numpy_of(means.xy), across, rtol=1e-13)
    turned = gkfast.kernel_means(library(y), library(x), [0.7, 1.4], backend=backend)
    assert np.isnan(numpy_of(turned.yy)).all()
    np.testing.assert_allclose(numpy_of(turned.xx), within, rtol=1e-13)
    weighted = gkfast.kernel_means(library(x), library(y), [0.7, 1.4], x_weights=library(np.full((3, 1), 2.0)))
    np.testing.assert_allclose(numpy_of(weighted.xy), across, rtol=1e-13)
    one = gkfast.kernel_means(library(x), library(x + 1), 1.0, backend=backend)
    np.testing.assert_allclose(numpy_of(one.xy), np.exp(-1.0), rtol=1e-13)


def test_kernel_score_of_one_observation_has_gradients():
    torch.manual_seed(0)
    x, y = (torch.randn(rows, 2, dtype=torch.float64, requires_grad=True) for rows in (1, 5))

    def score(x, y):
        means = gkfast.kernel_means(x, y, 0.9)
        return means.yy / 2 - means.xy

    assert torch.autograd.gradcheck(score, (x, y))
    assert torch.autograd.gradgradcheck(score, (x, y))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_default_device_changes_no_result(rng, name, device):
    x, y = (torch.from_numpy(rng.normal(size=(rows, 2))) for rows in (6, 7))
    function, sigma = FUNCTIONS[name], torch.tensor([0.7, 1.5])
    plain = [function(x, y, s, backend=b) for s in (1.3, [0.7, 1.5], sigma) for b in (None, "reference")]
    median = gkfast.median_sigma(x, y, max_points=9)
    with torch.device(device):
        found = [function(x, y, s, backend=b) for s in (1.3, [0.7, 1.5], sigma) for b in (None, "reference")]
        assert torch.equal(gkfast.median_sigma(x, y, max_points=9), median)
    for ours, truth in zip(found, plain, strict=True):
        assert torch.equal(ours, truth)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_read_only_memory_maps_are_taken(rng, tmp_path, name):
    points = rng.normal(size=(13, 2))
    np.save(tmp_path / "points.npy", points)
    mapped = np.load(tmp_path / "points.npy", mmap_mode="r")
    assert not mapped.flags.writeable
    function = FUNCTIONS[name]
    for backend in (None, "reference"):
        ours = function(mapped[:6], mapped[6:], [0.7, 1.5], backend=backend)
        np.testing.assert_array_equal(ours, function(points[:6], points[6:], [0.7, 1.5], backend=backend))


def test_empty_batches(library):
    x, y, a = (library(np.zeros(shape)) for shape in ((0, 4, 3), (0, 5, 3), (0, 4)))
    for sigma in (1.0, [1.0, 2.0]):
        for backend in (None, "reference"):
            k = {"backend": backend}
            assert gkfast.rbf(x, y, sigma, **k).shape == (0, 4, 5)
            assert gkfast.rbf_matmul(x, y, y, sigma, **k).shape == (0, 4, 3)
            assert gkfast.log_density(y, x, sigma, data_weights=a, **k).shape == (0, 5)
            assert gkfast.score(x, y, sigma, **k).shape == (0, 4, 3)
            assert gkfast.witness(y, x, y, sigma, x_weights=a, **k).shape == (0, 5)
            for estimator in ("biased", "unbiased"):
                assert gkfast.mmd2(x, y, sigma, estimator=estimator, x_weights=a, **k).shape == (0,)
            assert gkfast.mmd2(x, x, sigma, estimator="linear", **k).shape == (0,)
            assert gkfast.kernel_means(x, y, sigma, **k).xy.shape == (0,)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sigma", [2, [1, 2], range(1, 3), np.array([1.0, 2.0]), np.float64(2), np.array(2.0)], ids=repr
)
def test_numbers_for_sigma_in_a_compiled_function(rng, sigma):
    x, y = (torch.from_numpy(rng.normal(size=(rows, 2))) for rows in (6, 7))

    def calls(x, y):
        return (
            gkfast.rbf(x, y, sigma),
            gkfast.mmd2(x, y, sigma, weights=sigma, x_weights=x[:, 0].abs()),
            gkfast.log_density(x, y, sigma, weights=sigma),
        )

    torch._dynamo.reset()
    compiled = torch.compile(calls, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y), calls(x, y), rtol=1e-15, atol=1e-15)
