"""The GPU kernels by products of float16 pieces, and by panels of weights, against the reference."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from gpu_samples import (
    DEVICE,
    OF_BOTH,
    OF_X,
    OF_Y,
    ONE,
    PRECISION,
    TOLERANCE,
    check,
    check_gradients,
    check_matmul,
    check_sums,
    columns,
    doubled,
    overflows,
    poison_what_is_allocated,
    sample,
    score,
    three_sums,
    two_bandwidths,
)
from triton import cdiv
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from gkfast.kernels import gpu, reference
from gkfast.kernels.gpu import bandwidths, panel, points, sweep, tiles

pytestmark = pytest.mark.interpreter


@pytest.fixture
def by_differences(monkeypatch):
    """by_differences(): from now on every tile goes by differences."""
    return lambda: [monkeypatch.setitem(points.LIMITS, products, -1.0) for products in points.LIMITS]


@pytest.fixture
def small_panels(monkeypatch):
    """Small samples take several windows of several panels; the places that were launched are in the list."""
    launched, launch = [], sweep.pull_by_panel
    monkeypatch.setattr(panel, "CELLS", 2**15)
    monkeypatch.setattr(panel, "WINDOW", 128)

    def recorded(of, place, *arguments):
        launched.append(place)
        launch(of, place, *arguments)

    monkeypatch.setattr(sweep, "pull_by_panel", recorded)
    return launched


@pytest.mark.parametrize(
    ("dims", "count", "precision"),
    [(dims, count, precision) for dims, count in ((17, 1), (40, 3)) for precision in PRECISION]
    + [(3, 70, "highest"), (140, 1, "highest")],
)
def test_products_keep_their_precision(dims, count, precision):
    of_value, of_gradient = PRECISION[precision]
    x, y = sample(1, 67, 34, dims, torch.float32, scale=dims**0.5, offset=3)
    v, sigma, weights = torch.rand(1, 34, count).to(DEVICE), *two_bandwidths(1)
    sigma = sigma * 1.5 * dims**0.5
    wide = [doubled(t).requires_grad_() for t in (x, y, v, sigma, weights)]
    truth = reference.rbf_matmul(*wide)
    ours = gpu.rbf_matmul(x, y, v, sigma, weights, precision=precision)
    assert (doubled(ours) - truth).norm() <= of_value * truth.norm()
    g = torch.rand_like(truth).to(DEVICE, torch.float32)
    gradients = gpu.rbf_matmul_backward(g, x, y, v, sigma, weights, wants=(True,) * 5, precision=precision)
    check_gradients(gradients, (truth * doubled(g)).sum(), wide, of_gradient)
    if dims <= 4:
        # so few coordinates go by differences, and only their columns by products
        return
    k = gpu.rbf(x, y, sigma, weights, precision=precision)
    g = torch.randn(k.shape).to(DEVICE)
    for other, arguments in ((y, wide[:2]), (None, wide[:1])):
        own = g if other is not None else torch.randn(1, 67, 67).to(DEVICE)
        exact = reference.rbf(wide[0], None if other is None else wide[1], *wide[3:])
        gradients = gpu.rbf_backward(
            own, x, other, sigma, weights, wants=(True, other is not None, True, True), precision=precision
        )
        gradients = [t for t in gradients if t is not None]
        check_gradients(gradients, (exact * doubled(own)).sum(), (*arguments, *wide[3:]), of_gradient)
    assert (doubled(k) - reference.rbf(doubled(x), doubled(y), sigma, weights)).abs().max() <= 2 * of_value
    # of less precision are other numbers: the test would not see a mode that is not passed on
    assert torch.equal(k, gpu.rbf(x, y, sigma, weights)) == (precision == "highest")


@pytest.mark.parametrize(("dims", "products"), [(64, False), (784, False), (64, True), (784, True), (3000, True)])
def test_rows_of_equal_coordinates_do_not_add_roundings(dims, products, by_differences):
    # roundings of a sum over them go the same way
    if not products:
        by_differences()
    generator = torch.Generator().manual_seed(7)
    x, y = (torch.rand(1, 20, 1, generator=generator).expand(1, 20, dims).contiguous() for _ in range(2))
    for sigma in (0.5, 0.7, 1.0):
        sigma = sigma * dims**0.5 * ONE
        truth = reference.rbf(x.double(), y.double(), sigma, ONE)
        ours = gpu.rbf(x.to(DEVICE), y.to(DEVICE), sigma, ONE)
        assert (doubled(ours).cpu() - truth).abs().max() <= 1e-6


@pytest.fixture
def as_on_hardware(monkeypatch):
    """Sums of tensor cores that are cut off, and an exp2 that is off by 2^-22.5 and has no subnormal results."""
    if DEVICE == "cuda":
        return

    def cut(x, greatest, bits):
        unit = np.exp2(np.floor(np.log2(np.maximum(greatest, 1e-300))) - bits)
        return np.trunc(x / unit) * unit

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        left, right, total = (t.data.astype(np.float64) for t in (a, b, d))
        # tiles are larger than samples
        rows, columns = left.any(1), right.any(0)
        whole, total = total.copy(), total[rows][:, columns]
        left, right = left[rows], right[:, columns]
        for k in range(0, left.shape[1], 16):
            products = left[:, k : k + 16, None] * right[None, k : k + 16]
            addends = np.concatenate([products, total[:, None]], 1)
            total = cut(addends, np.abs(addends).max(1, keepdims=True), 24).sum(1)
            total = cut(total, np.abs(total), 23)
        whole[np.ix_(rows, columns)] = total
        return TensorHandle(whole.astype(np.float32), d.dtype.scalar)

    def create_exp2(self, t):
        found = np.exp2(t.data.astype(np.float64)) * (1 - 2**-22.5)
        return TensorHandle(np.where(found < 2.0**-126, 0, found).astype(t.data.dtype), t.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
    monkeypatch.setattr(InterpreterBuilder, "create_exp2", create_exp2)


def points_of(kind, rows, dims):
    """Pairs of points of which some are near."""
    generator = torch.Generator().manual_seed(dims)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    x = normal(rows, dims)
    near = normal(rows, dims) * torch.rand(rows, 1, generator=generator) ** 3
    if kind == "equal coordinates":
        x, near = (t[:, :1].expand(rows, dims).contiguous() for t in (x, near))
    elif kind == "a cluster apart":
        x = x * 0.05 + (torch.arange(rows) % 2)[:, None]
        near *= 0.05
    return x, x + 0.3 * near


@pytest.mark.parametrize("kind", ["normal", "equal coordinates", "a cluster apart"])
@pytest.mark.parametrize("size", [1.3, 15.9])
@pytest.mark.parametrize("dims", [5, 64, 128, 784, 3072])
def test_kernels_are_right_with_the_arithmetic_of_a_gpu(dims, size, kind, as_on_hardware, monkeypatch):
    """Up to the greatest |x - centre|^2 / (2 sigma^2) for which products are taken: no tile is far."""
    monkeypatch.setitem(points.LIMITS, 4, 3e38)
    x, y = points_of(kind, 24, dims)
    centre = torch.cat([x[:16], y[:16]]).mean(0)
    sigma = (torch.cat([x, y]) - centre).norm(dim=1).max().double() / (2 * size) ** 0.5 * ONE
    ours = gpu.rbf(x[None].to(DEVICE), y[None].to(DEVICE), sigma, ONE)
    truth = reference.rbf(x[None].double(), y[None].double(), sigma, ONE)
    assert (doubled(ours) - truth).abs().max() <= 1e-6


@pytest.mark.parametrize("dims", [16, 128, 784])
def test_median_rule_and_its_ladder_take_products(dims):
    """Up to a quarter of the median distance of normal data, no tile is far."""
    x, y = (torch.randn(500, dims, generator=torch.Generator().manual_seed(k)) for k in range(2))
    sigma = torch.cdist(x, y).median() / 4
    sizes = (torch.cat([x, y]) - torch.cat([x[:16], y[:16]]).mean(0)).square().sum(1) / (2 * sigma**2)
    assert sizes.max() <= points.LIMITS[points.PRODUCTS["highest"]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_of_half_precision_points(dtype):
    x, y = sample(1, 40, 35, 20, dtype)
    check(x, y, 2 * ONE[0], ONE[0])
    check_matmul(x, y, columns(1, 35, 3, dtype), 2 * ONE, ONE)


def test_products_of_x_with_itself_are_symmetric():
    x, _ = sample(1, 67, 1, 20, torch.float32, offset=2)
    k = gpu.rbf(x, None, 2 * ONE, ONE)
    assert torch.equal(k, k.mT)
    assert (k.diagonal(dim1=1, dim2=2) == 1).all()
    assert k.max() <= 1


@pytest.mark.parametrize(
    ("wants", "precision"),
    [*(((True, True), precision) for precision in PRECISION), ((True, False), "highest"), ((False, True), "highest")],
)
def test_products_in_kernel_sums_keep_their_precision(wants, precision):
    of_value, of_gradient = PRECISION[precision]
    x, y = sample(1, 40, 67, 20, torch.float32)
    # the gradient is a difference of two: apart they are larger, together no smaller
    y += 0.3
    a, b = torch.rand(1, 40).to(DEVICE), torch.rand(1, 67).to(DEVICE)
    scale = torch.tensor([[[1.0, 1.0, -2.0]]], dtype=torch.float64, device=DEVICE)
    wide = [doubled(t).requires_grad_() for t in (x, y)]
    weighted = {"a": doubled(a), "b": doubled(b), "scale": doubled(scale)[:, 0]}
    truth = reference.mmd2(x=wide[0], y=wide[1], **weighted, sigma=2 * ONE, weights=ONE, drop=1, baseline=ONE)
    values, sums, *gradients = gpu.kernel_sums_with_gradients(
        scale, x, y, a, b, 2 * ONE, ONE, ONE, drop=1, wants=(*wants, *(False,) * 4), precision=precision
    )
    assert (values[:, 0].cpu() - truth).abs() <= 2 * of_value * sums.abs().max().cpu()
    for gradient, exact, want in zip(gradients, torch.autograd.grad(truth, wide), wants, strict=False):
        assert (gradient is not None) == want
        if want:
            assert (doubled(gradient[:, 0]) - exact).norm() <= 5 * of_gradient * exact.norm()


@pytest.mark.parametrize("drop", [0, 1])
def test_half_of_the_pairs_by_products(drop):
    check_sums(*sample(1, 300, 70, 20, torch.float32), *two_bandwidths(1), drop)


@overflows
@pytest.mark.parametrize(
    ("kind", "dims"), [("two clusters", 6), ("one outlier", 6), ("infinity", 6), ("NaN", 6), ("one outlier", 129)]
)
def test_tiles_that_are_far_go_by_differences(dims, kind, by_differences):
    """Rows and columns of several tiles; what is not finite has its say in no other row."""
    # two tiles of rows, and at least two of columns
    n, m = (80, 70) if dims < 100 else (66, 36)
    x, y = sample(1, n, m, dims, torch.float32)
    v, g = torch.rand(1, m, 1).to(DEVICE), torch.rand(1, n, 1).to(DEVICE)
    if kind == "two clusters":
        # products alone would be off by far more
        x[:, ::2] += 100
        y[:, ::2] += 100
    elif kind == "one outlier":
        x[:, 65] += 1e4
        y[:, 33] += 1e4
    else:
        x[0, 65, 1] = torch.inf if kind == "infinity" else torch.nan

    def results():
        yield gpu.rbf(x, y, ONE, ONE)
        yield gpu.rbf(x, None, ONE, ONE)
        yield gpu.rbf_matmul(x, y, v, ONE, ONE)
        yield gpu.rbf_matmul_backward(g, x, y, v, ONE, ONE, wants=(True, True, True, False, False))[0]
        yield gpu.rbf_backward(g @ v.mT, x, y, ONE, ONE, wants=(True, True, False, False))[0]
        scale = torch.ones(1, 1, 3, dtype=torch.float64, device=DEVICE)
        wants = (True, False, False, False, False, False)
        yield gpu.kernel_sums_with_gradients(scale, x, y, g[..., 0], v[..., 0], ONE, ONE, ONE, drop=1, wants=wants)[2]
        yield gpu.log_density(x, y, ONE, ONE, v[..., 0], leave_one_out=False)

    found = list(results())
    by_differences()
    for ours, plain in zip(found, results(), strict=True):
        assert torch.equal(ours.isnan(), plain.isnan())
        ours, plain = (t.nan_to_num(0, 0, 0) for t in (ours, plain))
        assert (ours - plain).norm() <= 1e-5 * plain.norm()


# of the greatest |x|^2 / (2 sigma^2): float32, two pieces, one
DENSITY_PRECISION = {("high", False): 2**-20, ("high", True): 2**-14, ("medium", True): 2**-6}


@pytest.mark.parametrize(("precision", "products"), DENSITY_PRECISION)
def test_log_density_keeps_its_precision(precision, products, by_differences):
    if not products:
        by_differences()
    bound = DENSITY_PRECISION[precision, products]
    x, y = sample(1, 40, 67, 20, torch.float32, scale=20**0.5, offset=3)
    sigma = 0.9 * 20**0.5 * torch.tensor([[0.8, 1.2]]).double()
    centre = torch.cat([x, y], 1).mean(1)
    greatest = (torch.cat([x, y], 1) - centre).square().sum(-1).max() / (2 * sigma.min() ** 2)
    weights = torch.rand(1, 67).to(DEVICE)
    wide = (doubled(x), doubled(y), sigma, sigma.log(), doubled(weights))
    truth = reference.log_density(*wide, leave_one_out=False)
    arguments, modes = (x, y, sigma, sigma.log(), weights), {"leave_one_out": False, "precision": precision}
    ours = gpu.log_density(*arguments, **modes)
    assert (doubled(ours) - truth).abs().max() <= bound * greatest
    exact = reference.score(*wide, leave_one_out=False)
    assert (doubled(score(*arguments, **modes)) - exact).norm() <= bound * greatest * exact.norm()
    # other numbers than in float64, whose error is far below
    assert (doubled(ours) - truth).abs().max() > 1e-9


@pytest.mark.parametrize(
    ("dims", "n", "m", "batch", "drop", "wants", "dtype"),
    [
        (136, 66, 130, 2, 1, OF_BOTH, torch.float32),
        (784, 34, 30, 1, 0, OF_BOTH, torch.float32),
        (140, 150, 150, 1, 2, OF_X, torch.float32),
        (129, 34, 270, 1, 1, OF_Y, torch.float32),
        (200, 40, 130, 1, 1, OF_X, torch.bfloat16),
    ],
)
def test_panels_of_kernel_sums(dims, n, m, batch, drop, wants, dtype, small_panels):
    x, y = sample(batch, n, m, dims, dtype)
    a, b = (torch.rand(batch, rows).to(DEVICE, dtype) for rows in (n, m))
    sigma, weights = two_bandwidths(batch)
    scale = torch.randn(batch, 1, 3, dtype=torch.float64, device=DEVICE)
    wide = [doubled(t).requires_grad_() for t in (x, y, a, b, sigma, weights)]
    baseline = torch.ones_like(sigma)
    truth = three_sums(*wide, baseline, drop)
    arguments = (scale, x, y, a, b, sigma, weights, baseline)
    _, sums, *gradients = gpu.kernel_sums_with_gradients(*arguments, drop=drop, wants=wants)
    # every block of rows of every window, and each once
    blocks, windows = batch * cdiv(max(n, m), 128), cdiv(max(n, m), 128)
    found = [(first + k, start // 128) for first, count, start in small_panels for k in range(count)]
    assert sorted(found) == [(i, j) for i in range(blocks) for j in range(windows)]
    assert (doubled(sums) - truth).norm() <= 2e-6 * truth.norm()
    expected = torch.autograd.grad((doubled(scale)[:, 0] * truth).sum(), wide)
    for gradient, exact, want in zip(gradients, expected, wants, strict=True):
        assert (gradient is not None) == want
        if want:
            assert (doubled(gradient[:, 0]) - exact).norm() <= TOLERANCE[dtype][1] * exact.norm()


@pytest.mark.parametrize("columns_of_v", [1, 3])
def test_panels_of_products(columns_of_v, small_panels, monkeypatch):
    """With shifts, a diagonal left out, and columns in parts."""
    monkeypatch.setattr(sweep, "column_ranges", lambda *_: 2)
    x, y = sample(1, 35, 270, 140, torch.float32)
    v, shift = columns(1, 270, columns_of_v, torch.float32), torch.randn(1, 35, 2).to(DEVICE)
    check_matmul(x, y, v, *two_bandwidths(1), shift, skip_diagonal=True)
    assert max(start for *_, start in small_panels) > 0


def test_panels_repeat_and_write_every_entry(small_panels, monkeypatch):
    x, y = sample(1, 34, 150, 140, torch.float32)
    a, b = torch.rand(1, 34).to(DEVICE), torch.rand(1, 150).to(DEVICE)
    scale = torch.ones(1, 1, 3, dtype=torch.float64, device=DEVICE)
    arguments, modes = (scale, x, y, a, b, ONE, ONE, ONE), {"drop": 1, "wants": OF_BOTH, "precision": "high"}
    expected = gpu.kernel_sums_with_gradients(*arguments, **modes)
    poison_what_is_allocated(monkeypatch)
    for ours, clean in zip(gpu.kernel_sums_with_gradients(*arguments, **modes), expected, strict=True):
        assert torch.equal(ours, clean)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 10**6, 10**6), (3000, 200, 90), (1, 50, 10**7)])
@pytest.mark.parametrize("pulling", [1, 4])
def test_panels_take_bounded_memory(shape, pulling):
    """Whatever the sizes, 64 MiB; and few launches where pairs are few."""
    batch, n, m = shape
    found = panel.panels(torch.empty(batch, 1, device="meta"), n, m, pulling)
    assert found.weights.numel() <= 2**24
    blocks = batch * cdiv(n, 128)
    assert len(found.places) <= 1 + pulling * blocks * 128 * (m + 1024) / 2**22
    assert sum(count for _, count, start in found.places if start == 0) == blocks
    assert max(start for *_, start in found.places) < m <= max(start for *_, start in found.places) + found.window


def test_tiles_of_panels_fit():
    for row in tiles.TILES:
        if row.kernel.startswith("panel"):
            assert (128 % row.tile.bn, 1024 % row.tile.bm) == (0, 0)


@pytest.mark.parametrize("count", [1, 3])
def test_gradients_of_both_sets_by_panels(count, small_panels):
    """Two parts of one launch: a shift is that of the first one's rows, and of the second one's columns."""
    x, y = sample(2, 70, 130, 140, torch.float32)
    shift = torch.randn(2, 70, 2).to(DEVICE)
    check_matmul(x, y, columns(2, 130, count, torch.float32), *two_bandwidths(2), shift, skip_diagonal=True)
    assert {first for first, *_ in small_panels} > {0}


def test_table_for_all_programs_gives_the_same_bits(monkeypatch):
    """Many programs do not make the rows that they read: the same bits."""
    x, y = sample(1, 40, 35, 6, torch.float32)
    g, v = columns(1, 40, 35, torch.float32), columns(1, 35, 1, torch.float32)
    scale = torch.ones(1, 1, 3, dtype=torch.float64, device=DEVICE)

    def everything():
        # few coordinates are no products
        for p, q in ((x, y), (x[..., :3].contiguous(), y[..., :3].contiguous())):
            yield gpu.rbf(p, q, ONE, ONE)
            yield from gpu.rbf_backward(g, p, q, ONE, ONE, wants=(True,) * 4)
            yield gpu.rbf_matmul(p, q, v, ONE, ONE)
            arguments = (scale, p, q, g[..., 0], v[..., 0], ONE, ONE, ONE)
            yield gpu.kernel_sums_with_gradients(*arguments, drop=1, wants=(True,) * 6)[2]
            yield gpu.log_density(p, q, ONE, ONE, v[..., 0].abs(), leave_one_out=False)

    own = list(everything())
    monkeypatch.setattr(bandwidths.Table, "own", lambda table, *_, **__: table.rows is None and not table.fill())
    for filled, made in zip(everything(), own, strict=True):
        assert torch.equal(filled, made)
