"""Products, kernel sums and log-densities of the GPU kernels, by differences, against the reference."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from gpu_samples import (
    DEVICE,
    MIXED,
    ONE,
    TOLERANCE,
    check_density,
    check_gradients,
    check_matmul,
    check_sums,
    columns,
    doubled,
    overflows,
    poison_what_is_allocated,
    sample,
    three_sums,
    two_bandwidths,
)

from gkfast.kernels import gpu, reference
from gkfast.kernels.gpu import kernel_sums, sweep

pytestmark = pytest.mark.interpreter


# one column and several; fewer coordinates than registers hold, and more; one more than a tile
SUM_SHAPES = [(1, 65, 33, 3, 1), (2, 33, 65, 1, 3), (1, 34, 67, 9, 1), (1, 33, 20, 5, 17), (2, 1, 1, 2, 2)]


NO_SUMS = [(1, 0, 5, 2, 1), (1, 5, 0, 2, 1), (0, 4, 3, 2, 1), (1, 4, 3, 0, 1), (1, 4, 3, 2, 0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", SUM_SHAPES)
def test_product_and_its_gradients(shape, dtype):
    batch, n, m, dims, count = shape
    x, y = sample(batch, n, m, dims, dtype)
    check_matmul(x, y, columns(batch, m, count, dtype), *two_bandwidths(batch))


@pytest.mark.parametrize("shape", NO_SUMS)
def test_product_of_nothing(shape):
    batch, n, m, dims, count = shape
    x, y = sample(batch, n, m, dims, torch.float32)
    check_matmul(x, y, columns(batch, m, count, torch.float32), *two_bandwidths(batch))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dims", [2, 6])
@pytest.mark.parametrize("modes", [{"skip_diagonal": True}, {"baseline": MIXED}], ids=lambda m: next(iter(m)))
def test_product_with_a_diagonal_left_out_or_a_baseline(modes, dims, dtype):
    x, y = sample(2, 35, 67, dims, dtype)
    shift = torch.randn(2, 35, 2).to(DEVICE, dtype)
    check_matmul(x, y, columns(2, 67, 1, dtype), *two_bandwidths(2), shift, **modes)


def test_baseline_keeps_digits():
    x, y = sample(1, 33, 20, 3, torch.float32)
    check_matmul(x, y, columns(1, 20, 1, torch.float32), 1e4 * ONE, ONE, baseline=ONE, relative=1e-6)


def test_product_gradients_are_those_wanted():
    x, y = sample(1, 9, 8, 5, torch.float32)
    g, v = columns(1, 9, 2, torch.float32), columns(1, 8, 2, torch.float32)
    everything = gpu.rbf_matmul_backward(g, x, y, v, ONE, ONE, wants=(True,) * 5)
    for k in range(5):
        wants = tuple(j == k for j in range(5))
        gradients = gpu.rbf_matmul_backward(g, x, y, v, ONE, ONE, wants=wants)
        assert [t is not None for t in gradients] == list(wants)
        assert torch.equal(gradients[k], everything[k])


@pytest.mark.parametrize("dims", [3, 6])
def test_columns_in_several_ranges(dims, monkeypatch):
    """Sums of parts of the columns are added; how many there are is told from the GPU's size."""
    for name in ("sweep", "log_density"):
        monkeypatch.setattr(sys.modules[f"gkfast.kernels.gpu.{name}"], "column_ranges", lambda *_: 3)
    x, y = sample(1, 33, 200, dims, torch.float32)
    check_matmul(x, y, columns(1, 200, 1, torch.float32), *two_bandwidths(1))
    check_density(x, y, *two_bandwidths(1), leave_one_out=False)


@overflows
@pytest.mark.parametrize(("scale", "offset"), [(1, 1000), (1e20, 0), (1e-20, 0), (1e3, 0)], ids=lambda v: f"{v:g}")
def test_product_of_offset_and_scaled_points(scale, offset):
    # bandwidths and data of the same scale: gradients stay in the range of float32
    x, y = sample(1, 34, 30, 6, torch.float32, scale, offset)
    v = columns(1, 30, 1, torch.float32)
    check_matmul(x, y, v, scale * ONE, ONE)
    there = scale * ONE.to(DEVICE)
    assert torch.equal(gpu.rbf_matmul(x, y, v, there, ONE.to(DEVICE)), gpu.rbf_matmul(x, y, v, scale * ONE, ONE))


def test_product_of_far_clusters():
    x, _ = sample(1, 60, 1, 6, torch.float32)
    x[:, ::2] += 100
    x[:, 1::4] = x[:, 3::4]
    check_matmul(x[:, :35].contiguous(), x[:, 25:].contiguous(), columns(1, 35, 1, torch.float32), ONE, ONE)


def test_many_bandwidths_of_each_batch():
    x, y = sample(2, 10, 12, 3, torch.float32)
    sigma = torch.linspace(0.3, 2, 18).double().reshape(2, 9)
    check_matmul(x, y, columns(2, 12, 1, torch.float32), sigma, torch.linspace(-1, 1, 18).double().reshape(2, 9))


@overflows
@pytest.mark.parametrize("dims", [2, 6])
def test_product_keeps_nan_and_infinity_in_their_rows(dims):
    x, y = sample(1, 20, 15, dims, torch.float32)
    v, g = torch.ones(1, 15, 1, device=DEVICE), torch.ones(1, 20, 1, device=DEVICE)
    clean = gpu.rbf_matmul(x, y, v, ONE, ONE)
    x[0, 4, 1], x[0, 7, 0] = torch.nan, torch.inf
    product = gpu.rbf_matmul(x, y, v, ONE, ONE)
    dx, _, _, dsigma, _ = gpu.rbf_matmul_backward(g, x, y, v, ONE, ONE, wants=(True,) * 5)
    keep = [i for i in range(20) if i not in (4, 7)]
    assert product[0, 4].isnan()
    assert product[0, 7] == 0
    # a tile with such a point goes by differences
    torch.testing.assert_close(product[:, keep], clean[:, keep], rtol=1e-6, atol=0)
    assert dx[0, 4].isnan().all()
    assert (dx[0, 7] == 0).all()
    assert dx[:, keep].isfinite().all()
    assert dsigma.isnan()
    x[0, 4] = 0
    assert all(t.isfinite().all() for t in gpu.rbf_matmul_backward(g, x, y, v, ONE, ONE, wants=(True,) * 5))


@pytest.mark.parametrize("drop", [0, 1, 2])
@pytest.mark.parametrize("baseline", [None, MIXED], ids=["whole", "less"])
@pytest.mark.parametrize("dims", [3, 6])
def test_kernel_sums_and_their_gradients(dims, baseline, drop):
    dtype = torch.float64 if baseline is not None and drop == 1 else torch.float32
    batch, n, m = 2, 33, 33 if drop == 2 else 40
    x, y = sample(batch, n, m, dims, dtype)
    a, b = (torch.rand(batch, rows).to(DEVICE, dtype) for rows in (n, m))
    sigma, weights = two_bandwidths(batch)
    scale = torch.randn(batch, 2, 3, dtype=torch.float64, device=DEVICE)
    wide = [doubled(t).requires_grad_() for t in (x, y, a, b, sigma, weights)]
    truth = three_sums(*wide, baseline, drop)
    values, sums, *gradients = gpu.kernel_sums_with_gradients(
        scale, x, y, a, b, sigma, weights, baseline, drop=drop, wants=(True,) * 6
    )
    assert (doubled(sums) - truth).norm() <= (2e-6 if dtype == torch.float32 else 1e-13) * truth.norm()
    assert values.dtype == dtype
    for r in range(2):
        total = (doubled(scale)[:, r] * truth).sum()
        # they may cancel
        rounding = (doubled(scale)[:, r] * truth).abs().sum()
        assert (doubled(values)[:, r].sum() - total).abs() <= (2e-6 if dtype == torch.float32 else 1e-13) * rounding
        expected = torch.autograd.grad(total, wide, retain_graph=True)
        for gradient, exact in zip(gradients, expected, strict=True):
            assert (doubled(gradient[:, r]) - exact).norm() <= TOLERANCE[dtype][1] * exact.norm()


@pytest.mark.parametrize("given", ["", "a", "b"])
def test_coefficients_of_one_need_not_be_given(given):
    x, y = sample(1, 34, 67, 3, torch.float32)
    ones = {"a": torch.ones(1, 34, device=DEVICE), "b": torch.ones(1, 67, device=DEVICE)}
    scale = torch.tensor([[[1.0, 1.0, -2.0]]], dtype=torch.float64, device=DEVICE)
    modes = {"drop": 1, "wants": (True, True, False, False, True, True)}
    exact = gpu.kernel_sums_with_gradients(scale, x, y, *ones.values(), ONE, ONE, ONE, **modes)
    some = (ones[name] if name in given else None for name in "ab")
    found = gpu.kernel_sums_with_gradients(scale, x, y, *some, ONE, ONE, ONE, **modes)
    for ours, truth in zip(found, exact, strict=True):
        assert (ours is None) == (truth is None)
        assert ours is None or torch.equal(ours, truth)


@pytest.mark.parametrize("baseline", [None, ONE], ids=["whole", "less"])
def test_nan_stays_in_its_mean(baseline):
    """A scale of 0 takes nothing: neither the value nor a gradient of a combination that does without the NaN."""
    x, y = sample(1, 9, 40, 3, torch.float32)
    x[0, 4, 1] = torch.nan
    each = torch.eye(3, dtype=torch.float64, device=DEVICE)[None]
    arguments = (each, x, y, None, None, ONE, ONE, baseline)
    modes = {"drop": 1, "wants": (True, True, False, False, True, True)}
    value, sums, _, dy, _, _, dsigma, dweights = gpu.kernel_sums_with_gradients(*arguments, **modes)
    assert sums.isnan().tolist() == [[True, False, True]]
    for found in (value, dsigma[..., 0], dweights[..., 0]):
        assert found.isnan().tolist() == [[True, False, True]]
    assert not dy[:, 1].isnan().any()
    torch.testing.assert_close(value[:, 1].double(), sums[:, 1])


@pytest.mark.parametrize(
    ("n", "m", "batch", "dims"), [(0, 5, 1, 2), (1, 1, 2, 3), (5, 0, 1, 6), (3, 4, 0, 2), (3, 4, 1, 0)]
)
def test_kernel_sums_of_nothing(n, m, batch, dims):
    x, y = sample(batch, n, m, dims, torch.float32)
    a, b = (torch.rand(batch, rows).to(DEVICE) for rows in (n, m))
    sigma, weights = two_bandwidths(batch)
    scale = torch.randn(batch, 1, 3, dtype=torch.float64, device=DEVICE)
    wide = [doubled(t).requires_grad_() for t in (x, y, a, b, sigma, weights)]
    truth = three_sums(*wide, None, 0)
    for wants in ((True,) * 6, (False,) * 6):
        _, sums, *gradients = gpu.kernel_sums_with_gradients(scale, x, y, a, b, sigma, weights, drop=0, wants=wants)
        assert (doubled(sums) - truth).abs().sum() <= 1e-5
        if wants[0]:
            gradients = [g[:, 0] for g in gradients]
            expected = torch.autograd.grad(
                (doubled(scale)[:, 0] * truth).sum(), wide, allow_unused=True, materialize_grads=True
            )
            for gradient, exact in zip(gradients, expected, strict=True):
                assert gradient.shape == exact.shape
                assert (doubled(gradient) - exact).abs().sum() <= 1e-5


def test_kernel_sums_gradients_are_those_wanted():
    x, y = sample(1, 9, 40, 3, torch.float32)
    a, b = torch.rand(1, 9).to(DEVICE), torch.rand(1, 40).to(DEVICE)
    scale = torch.randn(1, 1, 3, dtype=torch.float64, device=DEVICE)
    everything = gpu.kernel_sums_with_gradients(scale, x, y, a, b, ONE, ONE, ONE, drop=1, wants=(True,) * 6)
    for k in range(6):
        wants = tuple(j == k for j in range(6))
        _, sums, *gradients = gpu.kernel_sums_with_gradients(scale, x, y, a, b, ONE, ONE, ONE, drop=1, wants=wants)
        # a set without gradients meets itself by halves, which adds in another order
        torch.testing.assert_close(sums, everything[1], rtol=1e-6, atol=0)
        assert [t is not None for t in gradients] == list(wants)
        assert torch.equal(gradients[k], everything[2 + k])


@pytest.mark.parametrize("dims", [3, 48])
def test_narrow_kernels_keep_their_digits(dims):
    """Kernels down to 1e-30, of which k - 1 has no digit."""
    x, y = sample(1, 33, 40, dims, torch.float32)
    sigma = 0.12 * ONE
    a, b = (torch.ones(1, n, device=DEVICE) for n in (33, 40))
    scale = torch.tensor([[1 / (33 * 32), 1 / (40 * 39), -2 / (33 * 40)]], dtype=torch.float64, device=DEVICE)
    wide = dict(zip(("x", "y", "a", "b"), map(doubled, (x, y, a, b)), strict=True))
    baseline = reference.baselines(x, y, sigma.to(DEVICE))
    assert not baseline.any()
    truth = reference.mmd2(**wide, scale=doubled(scale), sigma=sigma, weights=ONE, drop=1, baseline=baseline.cpu())
    between = reference.kernel_sums(**wide, sigma=sigma, weights=ONE, drop=1)[0, 2] / (33 * 40)
    assert 0 < between < 1e-2
    arguments = (scale[:, None], x, y, a, b, sigma, ONE, baseline)
    values = gpu.kernel_sums_with_gradients(*arguments, drop=1, wants=(False,) * 6)[0]
    error = (values[:, 0].cpu() - truth).abs()
    assert error <= 1e-5 * max(truth.abs(), between)


# groups of 64 rows: one, two and three of them, a whole one and others
@pytest.mark.parametrize(("n", "m", "drop"), [(64, 128, 0), (130, 100, 1)])
def test_half_of_the_pairs_gives_all_sums(n, m, drop):
    check_sums(*sample(2, n, m, 3, torch.float32), *two_bandwidths(2), drop)


@pytest.mark.parametrize(
    ("dims", "wants", "ranges"),
    [
        (3, (True, True), 3),
        (20, (True, True), 3),
        (20, (False, True), 1),
        (20, (True, False), 3),
        (20, (False, False), 1),
    ],
)
def test_a_sweep_finishes_as_a_reduction_does(dims, wants, ranges, monkeypatch):
    """Two combinations, of which one leaves the sum within x out, on a batch."""
    monkeypatch.setattr(sweep, "column_ranges", lambda *_: ranges)
    x, y = sample(2, 70, 130, dims, torch.float32)
    scale = torch.tensor([[[1.0, 2.0, -2.0], [0.0, 1.0, 3.0]]] * 2, dtype=torch.float64, device=DEVICE)
    scale[1] *= 0.5
    sigma = 2.0 * ONE.expand(2, 1)

    def found():
        return gpu.kernel_sums_with_gradients(
            scale, x, y, None, None, sigma, sigma, drop=1, wants=(*wants, *(False,) * 4), less_baselines=True
        )

    finished = found()
    # no counters: the reduction's launch
    monkeypatch.setattr(kernel_sums, "counters_of", lambda *_: 0)
    for ours, reduced in zip(finished, found(), strict=True):
        assert (ours is None) == (reduced is None)
        if ours is not None:
            # the pulls of products are added in float32, by a reduction in float64
            torch.testing.assert_close(ours, reduced, rtol=3e-7, atol=3e-7 * float(reduced.abs().max()))


def test_half_of_the_pairs_in_several_ranges(monkeypatch):
    monkeypatch.setattr(sweep, "column_ranges", lambda *_: 2)
    check_sums(*sample(1, 130, 70, 6, torch.float32), *two_bandwidths(1), less=False)


def test_half_of_the_pairs_gives_gradients_to_parameters():
    """Gradients to the parameters alone are sums over pairs too."""
    x, y = sample(1, 70, 130, 3, torch.float32)
    a, b = (torch.rand(t.shape[:2]).to(DEVICE) for t in (x, y))
    scale = torch.randn(1, 2, 3, dtype=torch.float64, device=DEVICE)
    wide = [doubled(t).requires_grad_() for t in two_bandwidths(1)]

    def truth():
        return three_sums(*map(doubled, (x, y, a, b)), *wide, None, 1)

    wants = (False, False, False, False, True, True)
    arguments = (scale, x, y, a, b, *(t.detach() for t in wide))
    *_, dsigma, dweights = gpu.kernel_sums_with_gradients(*arguments, drop=1, wants=wants)
    for r in range(2):
        check_gradients((dsigma[:, r], dweights[:, r]), (doubled(scale)[:, r] * truth()).sum(), wide, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_log_density_and_score(leave_one_out, dtype):
    x, y = sample(2, 34, 33, 6, dtype)
    check_density(x, y, *two_bandwidths(2), leave_one_out)
    # exponents in the thousands
    check_density(
        x[:, :2].contiguous(),
        y[:, :3].contiguous(),
        0.01 * two_bandwidths(2)[0],
        torch.ones(2, 2).double(),
        leave_one_out,
    )


@overflows
def test_log_density_of_a_point_far_from_the_others():
    # its own kernel, which does not count, overflows when divided by its density
    x, _ = sample(1, 33, 1, 3, torch.float32)
    x[0, 5] += 100
    check_density(x, x, 0.5 * ONE, ONE, leave_one_out=True)


@overflows
def test_log_density_of_nan_infinity_and_nothing():
    x, y = sample(1, 5, 4, 2, torch.float32)
    x[0, 1, 0], x[0, 2, 0] = torch.nan, torch.inf
    one = torch.ones(1, 4, device=DEVICE)
    found = gpu.log_density(x, y, ONE, ONE, one, leave_one_out=False)
    assert found[0, 1].isnan()
    assert found[0, 2] == -torch.inf
    assert found[0, [0, 3, 4]].isfinite().all()
    nothing = gpu.log_density(x[:, 3:], y[:, :0], ONE, ONE, one[:, :0], leave_one_out=False)
    assert (nothing == -torch.inf).all()
    assert gpu.log_density(x[:, :0], y, ONE, ONE, one, leave_one_out=False).shape == (1, 0)
    each = gpu.log_density_by_bandwidth(x, y, (4.0, 1.0, 2.0), one, leave_one_out=False)
    assert each[0, 1].isnan().all()
    # beside a log weight of one
    torch.testing.assert_close(each[0, [0, 2, 3, 4], 1] + 1, found[0, [0, 2, 3, 4]], rtol=0, atol=1e-12)
    assert gpu.log_density_by_bandwidth(x[:, :0], y, (4.0, 1.0), one, leave_one_out=False).shape == (1, 0, 2)


def test_every_sum_is_written(monkeypatch):
    x, y = sample(1, 33, 65, 6, torch.float32)
    g, v = columns(1, 33, 1, torch.float32), columns(1, 65, 1, torch.float32)
    a, b = g[..., 0], v[..., 0]
    scale = torch.ones(1, 1, 3, dtype=torch.float64, device=DEVICE)

    def everything():
        yield gpu.rbf_matmul(x, y, v, ONE, ONE)
        yield from gpu.rbf_matmul_backward(g, x, y, v, ONE, ONE, wants=(True,) * 5)
        yield from gpu.kernel_sums_with_gradients(scale, x, y, a, b, ONE, ONE, drop=0, wants=(True,) * 6)
        yield gpu.log_density(x, y, ONE, ONE, b.abs(), leave_one_out=False)
        yield gpu.log_density_by_bandwidth(x, y, (2.0, 1.0, 3.0), b.abs(), leave_one_out=False)

    expected = list(everything())
    poison_what_is_allocated(monkeypatch)
    for ours, clean in zip(everything(), expected, strict=True):
        assert torch.equal(ours, clean)
