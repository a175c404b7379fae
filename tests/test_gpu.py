"""The Triton kernels against the reference: on a GPU where there is one, else by Triton's interpreter.

conftest.py turns the interpreter on before Triton is loaded. It is slow, so samples are small and few. What it
cannot show is shown by compiling every kernel for three architectures.
"""

import importlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

triton = pytest.importorskip("triton", minversion="3.6", reason="no Triton on this platform")

from gkfast.ops.define import gpu_kernels  # noqa: E402
from triton.runtime.interpreter import GridExecutor  # noqa: E402

import gkfast  # noqa: E402  (after triton)
from gkfast.kernels import gpu, reference  # noqa: E402  (needs triton)
from gkfast.kernels.gpu import bandwidths as packed  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {  # kernel absolute, gradients relative to the norm
    torch.float32: (1e-6, 1e-5),
    torch.float64: (1e-14, 1e-12),
    # a unit in the last place of results between 1 and 2 (the interpreter truncates), and of gradients
    torch.bfloat16: (2**-7, 2**-7),
    torch.float16: (2**-10, 2**-10),
}
ONE = torch.ones(1, 1, dtype=torch.float64)
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")


def sample(batch, n, m, dims, dtype, scale=1.0, offset=0.0):
    torch.manual_seed(n + dims)
    spread = scale / max(dims, 1) ** 0.5
    x, y = (torch.randn(batch, rows, dims) * spread + offset for rows in (n, m))
    return x.to(DEVICE, dtype), y.to(DEVICE, dtype)


def doubled(t):
    """As the oracle takes it: on the CPU, where bandwidths are, in float64."""
    return t.detach().cpu().double()


def check(x, y, sigma, weights):
    """Kernel and all gradients against float64; sigma and weights (S,) serve the whole batch."""
    sigma, weights = (t.expand(x.shape[0], -1).contiguous() for t in (sigma, weights))
    absolute, relative = TOLERANCE[x.dtype]
    wide = [doubled(t).requires_grad_() for t in ((x, sigma, weights) if y is None else (x, y, sigma, weights))]
    truth = reference.rbf(wide[0], None if y is None else wide[1], *wide[-2:])
    ours = gpu.rbf(x, y, sigma, weights)
    assert ours.dtype == x.dtype
    if truth.numel():
        assert (doubled(ours) - truth).abs().max() <= absolute * float(weights[0].abs().sum())
    g = torch.randn_like(truth).to(DEVICE, x.dtype)
    # without coordinates nothing depends on x
    expected = torch.autograd.grad((truth * doubled(g)).sum(), wide, allow_unused=True, materialize_grads=True)
    gradients = gpu.rbf_backward(g, x, y, sigma, weights, wants=(True, y is not None, True, True))
    for gradient, exact in zip((t for t in gradients if t is not None), expected, strict=True):
        assert (doubled(gradient) - exact).norm() <= relative * exact.norm()
        assert not gradient.isnan().any()


# one more than a tile, primes, one, none, more than a block of coordinates
SHAPES = [
    (1, 1, 1, 1),
    (2, 65, 31, 3),
    (3, 7, 5, 2),
    (1, 33, 64, 17),
    (1, 129, 3, 33),
    (1, 20, 30, 70),
    (1, 4, 3, 0),
]
NONE = [(1, 0, 5, 2), (1, 5, 0, 2), (0, 4, 3, 2)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES[:5])
def test_dtypes(shape, dtype):
    check(*sample(*shape, dtype), torch.tensor([0.8, 1.7]).double(), torch.tensor([1.0, 0.4]).double())


@pytest.mark.parametrize("shape", SHAPES[5:] + NONE)
def test_shapes(shape):
    check(*sample(*shape, torch.float32), ONE[0], ONE[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_x_with_itself(dtype):
    x, _ = sample(2, 67, 1, 5, dtype)
    check(x, None, 0.9 * ONE[0], ONE[0])
    k = gpu.rbf(x, None, (0.9 * ONE).expand(2, 1), ONE.expand(2, 1))
    assert torch.equal(k, k.mT)
    assert (k.diagonal(dim1=1, dim2=2) == 1).all()
    assert k.max() <= 1


def test_wants():
    x, y = sample(1, 9, 8, 3, torch.float32)
    g = torch.ones(1, 9, 8, device=DEVICE)
    everything = gpu.rbf_backward(g, x, y, ONE, ONE, wants=(True,) * 4)
    for k in range(4):
        wants = tuple(j == k for j in range(4))
        gradients = gpu.rbf_backward(g, x, y, ONE, ONE, wants=wants)
        assert [t is not None for t in gradients] == list(wants)
        assert torch.equal(gradients[k], everything[k])


def test_sigma_on_the_device_and_on_the_cpu_agree():
    x, y = sample(1, 20, 20, 3, torch.float32)
    there = gpu.rbf(x, y, 0.7 * ONE.to(DEVICE), ONE.to(DEVICE))
    assert torch.equal(there, gpu.rbf(x, y, 0.7 * ONE, ONE))


@pytest.mark.parametrize(
    ("scale", "offset"), [(1, 1000), (1e20, 0), (1e-20, 0), (1e3, 0), (1e-3, 0)], ids=lambda v: f"{v:g}"
)
def test_offset_and_scale(scale, offset):
    check(*sample(1, 65, 40, 3, torch.float32, scale, offset), scale * ONE[0], ONE[0])


def test_far_clusters_and_duplicates():
    x, _ = sample(1, 60, 1, 16, torch.float32)
    x[:, ::2] += 100
    x[:, 1::4] = x[:, 3::4]
    check(x[:, :35], x[:, 25:].contiguous(), ONE[0], ONE[0])


def test_bandwidths_far_apart():
    x, y = sample(1, 30, 30, 3, torch.float32)
    check(x, y, torch.tensor([1e-3, 1e3]).double(), torch.ones(2).double())


@pytest.mark.parametrize("count", [5, 9])
def test_many_bandwidths(count):
    x, y = sample(1, 40, 35, 3, torch.float32)
    check(x, y, torch.linspace(0.3, 2, count).double(), torch.linspace(-1, 1, count).double())


def test_many_coordinates():
    x, y = sample(1, 5, 6, 520, torch.float32)
    assert (doubled(gpu.rbf(x, y, ONE, ONE)) - reference.rbf(doubled(x), doubled(y), ONE, ONE)).abs().max() <= 1e-6
    v, ones = torch.ones(1, 6, 1, device=DEVICE), torch.ones(1, 5, 1, device=DEVICE)
    dx = gpu.rbf_matmul_backward(ones, x, y, v, ONE, ONE, wants=(True, False, False, False, False))[0]
    wide = doubled(x).requires_grad_()
    exact = torch.autograd.grad(reference.rbf(wide, doubled(y), ONE, ONE).sum(), wide)[0]
    assert (doubled(dx) - exact).norm() <= 1e-5 * exact.norm()


# the interpreter is NumPy, which warns where a GPU only returns infinity or NaN
overflows = pytest.mark.filterwarnings("ignore:(overflow|invalid value|All-NaN):RuntimeWarning")


@overflows
@pytest.mark.parametrize("spread", [1e6, 1e18, 1e30])
def test_points_at_all_scales_between_two_bandwidths(spread):
    torch.manual_seed(0)
    x = torch.cat([torch.randn(12, 1) * spread**p for p in (-0.5, -0.25, 0, 0.25, 0.5)])[None].to(DEVICE)
    sigma, weights = torch.tensor([[spread**-0.5, spread**0.5]]).double(), torch.ones(1, 2).double()
    truth = reference.rbf(doubled(x), None, sigma, weights)
    assert (doubled(gpu.rbf(x, None, sigma, weights)) - truth).abs().max() <= 2e-6


@overflows
def test_huge_values():
    x = torch.tensor([[[1e20, -3e38], [1e20, 3e38], [1e-30, 0.0]]], device=DEVICE)
    for sigma in (1e-38, 1e-20, 1.0, 1e20, 1e38):
        k = gpu.rbf(x, None, sigma * ONE, ONE)
        assert (doubled(k) - reference.rbf(doubled(x), None, sigma * ONE, ONE)).abs().max() <= 1e-6
        gradients = gpu.rbf_backward(torch.ones_like(k), x, None, sigma * ONE, ONE, wants=(True, False, True, True))
        assert all(t.isfinite().all() for t in gradients if t is not None)


def test_nan_stays_in_its_entries():
    x, y = sample(1, 20, 15, 3, torch.float32)
    clean = gpu.rbf(x, y, ONE, ONE)
    x[0, 4, 1] = torch.nan
    k = gpu.rbf(x, y, ONE, ONE)
    assert k[0, 4].isnan().all()
    keep = torch.arange(20) != 4
    assert torch.equal(k[:, keep], clean[:, keep])
    dx = gpu.rbf_backward(torch.ones_like(k), x, y, ONE, ONE, wants=(True, False, False, False))[0]
    assert torch.equal(dx.isnan().any(2)[0].cpu(), ~keep)


@overflows
def test_infinite_distance_is_a_kernel_of_zero_and_pulls_nothing():
    x = torch.tensor([[[torch.inf, 0.0], [1.0, 0.0]]], device=DEVICE)
    y = torch.tensor([[[0.0, 0.0]]], device=DEVICE)
    for sigma in (1e-30, 1.0, 1e30):
        k = gpu.rbf(x, y, sigma * ONE, ONE)
        assert k[0, 0, 0] == 0
        gradients = gpu.rbf_backward(torch.ones_like(k), x, y, sigma * ONE, ONE, wants=(True,) * 4)
        assert gradients[0][0, 0].tolist() == [0, 0]
        assert all(t.isfinite().all() for t in gradients)


def test_nothing_around_the_output_is_touched():
    x, y = sample(1, 33, 31, 3, torch.float32)
    guarded = torch.full((1, 35, 31), -7.0, device=DEVICE)
    gpu.rbf(x, y, ONE, ONE, out=guarded[:, 1:-1])
    assert torch.equal(guarded[:, 1:-1], gpu.rbf(x, y, ONE, ONE))
    assert (guarded[:, [0, -1]] == -7).all()


def poison_what_is_allocated(monkeypatch):
    """NaN, or a greatest integer, wherever memory is allocated but not set."""

    def poisoned(allocate):
        def call(*arguments, **options):
            found = allocate(*arguments, **options)
            return found.fill_(torch.nan if found.is_floating_point() else torch.iinfo(found.dtype).max)

        return call

    for owner, name in ((torch.Tensor, "new_empty"), (torch, "empty"), (torch, "empty_like")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


def test_every_entry_is_written(monkeypatch):
    x, y = sample(1, 33, 65, 17, torch.float32)
    g = torch.randn(1, 33, 65, device=DEVICE)
    expected = gpu.rbf(x, y, ONE, ONE), *gpu.rbf_backward(g, x, y, ONE, ONE, wants=(True,) * 4)
    poison_what_is_allocated(monkeypatch)
    poisoned = gpu.rbf(x, y, ONE, ONE), *gpu.rbf_backward(g, x, y, ONE, ONE, wants=(True,) * 4)
    for ours, clean in zip(poisoned, expected, strict=True):
        assert torch.equal(ours, clean)


# one column and several; fewer coordinates than registers hold, and more; one more than a tile
SUM_SHAPES = [(1, 65, 33, 3, 1), (2, 33, 65, 1, 3), (1, 34, 67, 9, 1), (1, 33, 20, 5, 17), (2, 1, 1, 2, 2)]
NO_SUMS = [(1, 0, 5, 2, 1), (1, 5, 0, 2, 1), (0, 4, 3, 2, 1), (1, 4, 3, 0, 1), (1, 4, 3, 2, 0)]


def two_bandwidths(batch):
    """Another pair for each of the batch."""
    sigma = torch.tensor([0.8, 1.7]).double() * torch.arange(1, batch + 1)[:, None] ** 0.5
    return sigma, torch.tensor([[1.0, 0.4]]).double().expand(batch, 2).contiguous()


def check_gradients(ours, truth, inputs, relative):
    expected = torch.autograd.grad(truth, inputs, allow_unused=True, materialize_grads=True)
    for gradient, exact in zip(ours, expected, strict=True):
        assert gradient.shape == exact.shape
        assert (doubled(gradient) - exact).norm() <= relative * exact.norm()


# two bandwidths, of which the sums subtract 1 from the second one's kernel
MIXED = torch.tensor([[0.0, 1.0]], dtype=torch.float64).expand(2, 2)


def kernel_less(baseline, sigma, weights):
    """K or, where baseline is given, K - sum_s w_s baseline_s, by the reference."""
    if baseline is None:
        return lambda p, q: reference.rbf(p, q, sigma, weights)
    return lambda p, q: reference.rbf_less(p, q, sigma, weights, baseline)


def check_matmul(x, y, v, sigma, weights, shift=None, relative=None, **modes):
    """K v and its gradients against float64."""
    relative = TOLERANCE[x.dtype][1] if relative is None else relative
    wide = [doubled(t).requires_grad_() for t in (x, y, v, sigma, weights)]
    truth = reference.log_kernels(*wide[:2], wide[3])
    if shift is not None:
        truth = truth - doubled(shift).mT[..., None]
    k = truth.exp()
    if "baseline" in modes:
        k = truth.expm1().where(doubled(modes["baseline"])[..., None, None] > 0, k)
    k = torch.einsum("bs,bsnm->bnm", wide[4], k)
    if modes.get("skip_diagonal"):
        k = k * reference.off_diagonal(x.shape[1], y.shape[1], k.device)
    truth = k @ wide[2]
    ours = gpu.rbf_matmul(x, y, v, sigma, weights, shift, **modes)
    assert ours.dtype == x.dtype
    assert (doubled(ours) - truth).norm() <= relative * truth.norm()
    g = torch.randn_like(truth).to(DEVICE, x.dtype)
    gradients = gpu.rbf_matmul_backward(g, x, y, v, sigma, weights, shift, wants=(True,) * 5, **modes)
    check_gradients(gradients, (truth * doubled(g)).sum(), wide, relative)


def columns(batch, rows, count, dtype):
    return torch.randn(batch, rows, count).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", SUM_SHAPES)
def test_matmul(shape, dtype):
    batch, n, m, dims, count = shape
    x, y = sample(batch, n, m, dims, dtype)
    check_matmul(x, y, columns(batch, m, count, dtype), *two_bandwidths(batch))


@pytest.mark.parametrize("shape", NO_SUMS)
def test_matmul_of_nothing(shape):
    batch, n, m, dims, count = shape
    x, y = sample(batch, n, m, dims, torch.float32)
    check_matmul(x, y, columns(batch, m, count, torch.float32), *two_bandwidths(batch))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dims", [2, 6])
@pytest.mark.parametrize("modes", [{"skip_diagonal": True}, {"baseline": MIXED}], ids=lambda m: next(iter(m)))
def test_matmul_modes(modes, dims, dtype):
    x, y = sample(2, 35, 67, dims, dtype)
    shift = torch.randn(2, 35, 2).to(DEVICE, dtype)
    check_matmul(x, y, columns(2, 67, 1, dtype), *two_bandwidths(2), shift, **modes)


def test_a_baseline_keeps_digits():
    x, y = sample(1, 33, 20, 3, torch.float32)
    check_matmul(x, y, columns(1, 20, 1, torch.float32), 1e4 * ONE, ONE, baseline=ONE, relative=1e-6)


def test_matmul_wants():
    x, y = sample(1, 9, 8, 5, torch.float32)
    g, v = columns(1, 9, 2, torch.float32), columns(1, 8, 2, torch.float32)
    everything = gpu.rbf_matmul_backward(g, x, y, v, ONE, ONE, wants=(True,) * 5)
    for k in range(5):
        wants = tuple(j == k for j in range(5))
        gradients = gpu.rbf_matmul_backward(g, x, y, v, ONE, ONE, wants=wants)
        assert [t is not None for t in gradients] == list(wants)
        assert torch.equal(gradients[k], everything[k])


@pytest.mark.parametrize("dims", [3, 6])
def test_columns_in_parts(dims, monkeypatch):
    """Sums of parts of the columns are added; how many there are is told from the GPU's size."""
    for name in ("sweep", "log_density"):
        monkeypatch.setattr(sys.modules[f"gkfast.kernels.gpu.{name}"], "column_ranges", lambda *_: 3)
    x, y = sample(1, 33, 200, dims, torch.float32)
    check_matmul(x, y, columns(1, 200, 1, torch.float32), *two_bandwidths(1))
    check_density(x, y, *two_bandwidths(1), leave_one_out=False)


@overflows
@pytest.mark.parametrize(("scale", "offset"), [(1, 1000), (1e20, 0), (1e-20, 0), (1e3, 0)], ids=lambda v: f"{v:g}")
def test_matmul_offset_and_scale(scale, offset):
    # bandwidths and data of the same scale: gradients stay in the range of float32
    x, y = sample(1, 34, 30, 6, torch.float32, scale, offset)
    v = columns(1, 30, 1, torch.float32)
    check_matmul(x, y, v, scale * ONE, ONE)
    there = scale * ONE.to(DEVICE)
    assert torch.equal(gpu.rbf_matmul(x, y, v, there, ONE.to(DEVICE)), gpu.rbf_matmul(x, y, v, scale * ONE, ONE))


def test_matmul_far_clusters():
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
def test_matmul_nan_and_infinity(dims):
    x, y = sample(1, 20, 15, dims, torch.float32)
    v, g = torch.ones(1, 15, 1, device=DEVICE), torch.ones(1, 20, 1, device=DEVICE)
    clean = gpu.rbf_matmul(x, y, v, ONE, ONE)
    x[0, 4, 1], x[0, 7, 0] = torch.nan, torch.inf
    product = gpu.rbf_matmul(x, y, v, ONE, ONE)
    dx, _, _, dsigma, _ = gpu.rbf_matmul_backward(g, x, y, v, ONE, ONE, wants=(True,) * 5)
    keep = [i for i in range(20) if i not in (4, 7)]
    assert product[0, 4].isnan()
    assert product[0, 7] == 0
    assert torch.equal(product[:, keep], clean[:, keep])
    assert dx[0, 4].isnan().all()
    assert (dx[0, 7] == 0).all()
    assert dx[:, keep].isfinite().all()
    assert dsigma.isnan()
    x[0, 4] = 0
    assert all(t.isfinite().all() for t in gpu.rbf_matmul_backward(g, x, y, v, ONE, ONE, wants=(True,) * 5))


@pytest.mark.parametrize("drop", [0, 1, 2])
@pytest.mark.parametrize("baseline", [None, MIXED], ids=["whole", "less"])
@pytest.mark.parametrize("dims", [3, 6])
def test_kernel_sums(dims, baseline, drop):
    dtype = torch.float64 if baseline is not None and drop == 1 else torch.float32
    batch, n, m = 2, 33, 33 if drop == 2 else 40
    x, y = sample(batch, n, m, dims, dtype)
    a, b = (torch.rand(batch, rows).to(DEVICE, dtype) for rows in (n, m))
    sigma, weights = two_bandwidths(batch)
    scale = torch.randn(batch, 2, 3, dtype=torch.float64, device=DEVICE)
    wide = [doubled(t).requires_grad_() for t in (x, y, a, b, sigma, weights)]
    truth = reference._three_sums(kernel_less(baseline, *wide[4:]), *wide[:4], drop)
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


@pytest.mark.parametrize(
    ("n", "m", "batch", "dims"), [(0, 5, 1, 2), (1, 1, 2, 3), (5, 0, 1, 6), (3, 4, 0, 2), (3, 4, 1, 0)]
)
def test_kernel_sums_of_nothing(n, m, batch, dims):
    x, y = sample(batch, n, m, dims, torch.float32)
    a, b = (torch.rand(batch, rows).to(DEVICE) for rows in (n, m))
    sigma, weights = two_bandwidths(batch)
    scale = torch.randn(batch, 1, 3, dtype=torch.float64, device=DEVICE)
    wide = [doubled(t).requires_grad_() for t in (x, y, a, b, sigma, weights)]
    truth = reference._three_sums(lambda p, q: reference.rbf(p, q, *wide[4:]), *wide[:4], 0)
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


def test_kernel_sums_wants():
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


@pytest.fixture
def by_products(monkeypatch):
    """Small samples take the way of large ones."""
    monkeypatch.setattr(sys.modules["gkfast.kernels.gpu.bf16_pieces"], "SMALL", 0)


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


def check_sums(x, y, sigma, weights, drop=1, less=True, relative=2e-6):
    """The sums, with weights and without gradients, so by halves; the same bits again."""
    a, b = (torch.rand(t.shape[:2]).to(DEVICE, t.dtype) for t in (x, y))
    wide = [doubled(t) for t in (x, y, a, b)]
    baseline = torch.ones_like(sigma) if less else None
    truth = reference._three_sums(kernel_less(baseline, sigma, weights), *wide, drop)
    arguments, modes = (None, x, y, a, b, sigma, weights, baseline), {"drop": drop, "wants": (False,) * 6}
    sums = gpu.kernel_sums_with_gradients(*arguments, **modes)[1]
    assert ((doubled(sums) - truth).abs() <= relative * truth.abs()).all()
    assert torch.equal(sums, gpu.kernel_sums_with_gradients(*arguments, **modes)[1])


# groups of 64 rows: one, two and three of them, a whole one and others
@pytest.mark.parametrize(("n", "m", "drop"), [(64, 128, 0), (130, 100, 1)])
def test_halves(n, m, drop):
    check_sums(*sample(2, n, m, 3, torch.float32), *two_bandwidths(2), drop)


def test_halves_in_parts(monkeypatch):
    monkeypatch.setattr(sys.modules["gkfast.kernels.gpu.sweep"], "column_ranges", lambda *_: 2)
    check_sums(*sample(1, 130, 70, 6, torch.float32), *two_bandwidths(1), less=False)


@pytest.mark.parametrize("drop", [0, 1])
def test_halves_by_products(drop, by_products):
    check_sums(*sample(1, 300, 70, 20, torch.float32), *two_bandwidths(1), drop)


def test_moments_by_halves():
    """Gradients to the parameters alone are sums over pairs too."""
    x, y = sample(1, 70, 130, 3, torch.float32)
    a, b = (torch.rand(t.shape[:2]).to(DEVICE) for t in (x, y))
    scale = torch.randn(1, 2, 3, dtype=torch.float64, device=DEVICE)
    wide = [doubled(t).requires_grad_() for t in two_bandwidths(1)]

    def truth():
        return reference._three_sums(lambda p, q: reference.rbf(p, q, *wide), *(doubled(t) for t in (x, y, a, b)), 1)

    wants = (False, False, False, False, True, True)
    arguments = (scale, x, y, a, b, *(t.detach() for t in wide))
    *_, dsigma, dweights = gpu.kernel_sums_with_gradients(*arguments, drop=1, wants=wants)
    for r in range(2):
        check_gradients((dsigma[:, r], dweights[:, r]), (doubled(scale)[:, r] * truth()).sum(), wide, 1e-5)


# bandwidths, and the squarings that lead from each to the next narrower one: for sums, for stored kernels
LADDERS = {
    "MMD-GAN's": ([1.0, 2.0, 4.0, 8.0, 16.0], [0, 2, 2, 0, 2], [0, 2, 0, 0, 2]),
    "multi-kernel MMD's": ([2.0 ** ((i - 2) / 2) for i in range(5)], [0, 1, 1, 1, 1], [0, 1, 1, 0, 1]),
    "shuffled": ([4.0, 1.0, 16.0, 2.0, 8.0, 2.0], [0, 2, 2, 0, 0, 2], [0, 2, 0, 0, 0, 2]),
    "with steps that are none": ([1.0, 2.0, 3.0, 6.0], [0, 2, 0, 2], [0, 2, 0, 2]),
    "not quite": ([1.0, 2.0 * (1 + 1e-4), 4.0 * (1 - 1e-4)], [0, 0, 0], [0, 0, 0]),
    "more than travel as numbers": ([2.0 ** (i / 2) for i in range(-4, 5)], [0, 1, 1, 1, 1, 0, 1, 1, 1], None),
}


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.float32) for name in LADDERS), ("shuffled", torch.float64)]
)
def test_ladders(name, dtype):
    ladder, *squarings = LADDERS[name]
    sigma = torch.tensor([ladder], dtype=torch.float64)
    x, y = sample(1, 40, 35, 7, dtype)
    # near, far, and all between
    x *= torch.logspace(-4, 1, 40, device=DEVICE)[:, None].to(dtype)
    weights = torch.linspace(0.5, 2, len(ladder)).double()[None]
    for most, expected in zip((4, 2), squarings, strict=True):
        table = packed.Table(sigma, weights, x, squares=most).fill()
        found = table.rows[0, 1:].reshape(6, -1)
        assert found[3].tolist() == (found[3].tolist() if expected is None else expected)
        assert sigma[0, found[4].long().cpu()].tolist() == sorted(ladder, reverse=True)
    absolute, _ = TOLERANCE[dtype]
    truth = reference.rbf(doubled(x), doubled(y), sigma, weights)
    assert (doubled(gpu.rbf(x, y, sigma, weights)) - truth).abs().max() <= absolute * weights.sum()
    check_sums(x, y, sigma, weights, relative=2e-6 if dtype == torch.float32 else 1e-13)
    check_matmul(x, y, columns(1, 35, 1, dtype), sigma, weights)
    # the same squarings where the device alone knows the bandwidths
    there = gpu.rbf(x, y, sigma.to(DEVICE), weights.to(DEVICE))
    assert torch.equal(there, gpu.rbf(x, y, sigma, weights))


# error of value and gradients relative in norm, sigma at the data's scale: bits that two pieces, or one, lack
PRECISION = {"highest": (1e-6, 2e-6), "high": (1e-4, 1e-4), "medium": (2e-2, 2e-2)}


@pytest.mark.parametrize(
    ("dims", "count", "precision"),
    [(dims, count, precision) for dims, count in ((17, 1), (40, 3)) for precision in PRECISION]
    + [(3, 70, "highest")],
)
def test_products(dims, count, precision, by_products):
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
        # so few coordinates are products only for the sake of many columns
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


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("dims", [64, 784, 3000])
def test_rows_of_equal_coordinates(dims, products, monkeypatch):
    # roundings of a sum over them go the same way
    monkeypatch.setattr(sys.modules["gkfast.kernels.gpu.bf16_pieces"], "SMALL", 0 if products else 2**60)
    generator = torch.Generator().manual_seed(7)
    x, y = (torch.rand(1, 20, 1, generator=generator).expand(1, 20, dims).contiguous() for _ in range(2))
    for sigma in (0.5, 0.7, 1.0):
        sigma = sigma * dims**0.5 * ONE
        truth = reference.rbf(x.double(), y.double(), sigma, ONE)
        ours = gpu.rbf(x.to(DEVICE), y.to(DEVICE), sigma, ONE)
        assert (doubled(ours).cpu() - truth).abs().max() <= 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_of_halves(dtype, by_products):
    x, y = sample(1, 40, 35, 20, dtype)
    check(x, y, 2 * ONE[0], ONE[0])
    check_matmul(x, y, columns(1, 35, 3, dtype), 2 * ONE, ONE)


def test_products_of_x_with_itself(by_products):
    x, _ = sample(1, 67, 1, 20, torch.float32, offset=2)
    k = gpu.rbf(x, None, 2 * ONE, ONE)
    assert torch.equal(k, k.mT)
    assert (k.diagonal(dim1=1, dim2=2) == 1).all()
    assert k.max() <= 1


@pytest.mark.parametrize(
    ("wants", "precision"),
    [*(((True, True), precision) for precision in PRECISION), ((True, False), "highest"), ((False, True), "highest")],
)
def test_products_in_kernel_sums(wants, precision, by_products):
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


@pytest.fixture
def small_panels(by_products, monkeypatch):
    """Small samples take several windows of several panels; the places that were launched are in the list."""
    module, launched = sys.modules["gkfast.kernels.gpu.panel"], []
    monkeypatch.setattr(module, "CELLS", 2**15)
    monkeypatch.setattr(module, "WINDOW", 128)
    launch = sys.modules["gkfast.kernels.gpu.sweep"].pull_by_panel

    def recorded(of, place, *arguments):
        launched.append(place)
        launch(of, place, *arguments)

    monkeypatch.setattr(sys.modules["gkfast.kernels.gpu.sweep"], "pull_by_panel", recorded)
    return launched


# which of x, y, a, b, sigma, weights have a gradient
OF_X, OF_BOTH, OF_Y = (True,) + (False,) * 5, (True,) * 6, (False, True, False, False, True, True)


@pytest.mark.parametrize(
    ("dims", "n", "m", "batch", "drop", "wants", "dtype"),
    [
        (200, 130, 150, 2, 1, OF_BOTH, torch.float32),
        (784, 67, 34, 1, 0, OF_BOTH, torch.float32),
        (100, 150, 150, 1, 2, OF_X, torch.float32),
        (65, 34, 270, 1, 1, OF_Y, torch.float32),
        (200, 40, 130, 1, 1, OF_X, torch.bfloat16),
    ],
)
def test_panels(dims, n, m, batch, drop, wants, dtype, small_panels):
    x, y = sample(batch, n, m, dims, dtype)
    a, b = (torch.rand(batch, rows).to(DEVICE, dtype) for rows in (n, m))
    sigma, weights = two_bandwidths(batch)
    scale = torch.randn(batch, 1, 3, dtype=torch.float64, device=DEVICE)
    wide = [doubled(t).requires_grad_() for t in (x, y, a, b, sigma, weights)]
    baseline = torch.ones_like(sigma)
    truth = reference._three_sums(kernel_less(baseline, *wide[4:]), *wide[:4], drop)
    arguments = (scale, x, y, a, b, sigma, weights, baseline)
    _, sums, *gradients = gpu.kernel_sums_with_gradients(*arguments, drop=drop, wants=wants)
    # every block of rows of every window, and each once
    blocks, windows = batch * triton.cdiv(max(n, m), 128), triton.cdiv(max(n, m), 128)
    found = [(first + k, start // 128) for first, count, start in small_panels for k in range(count)]
    assert sorted(found) == [(i, j) for i in range(blocks) for j in range(windows)]
    assert (doubled(sums) - truth).norm() <= 2e-6 * truth.norm()
    expected = torch.autograd.grad((doubled(scale)[:, 0] * truth).sum(), wide)
    for gradient, exact, want in zip(gradients, expected, wants, strict=True):
        assert (gradient is not None) == want
        if want:
            assert (doubled(gradient[:, 0]) - exact).norm() <= TOLERANCE[dtype][1] * exact.norm()


@pytest.mark.parametrize("columns_of_v", [1, 3])
def test_panels_of_matmul(columns_of_v, small_panels, monkeypatch):
    """With shifts, a diagonal left out, and columns in parts."""
    monkeypatch.setattr(sys.modules["gkfast.kernels.gpu.sweep"], "column_ranges", lambda *_: 2)
    x, y = sample(1, 35, 270, 100, torch.float32)
    v, shift = columns(1, 270, columns_of_v, torch.float32), torch.randn(1, 35, 2).to(DEVICE)
    check_matmul(x, y, v, *two_bandwidths(1), shift, skip_diagonal=True)
    assert max(start for *_, start in small_panels) > 0


def test_panels_repeat_and_write_all(small_panels, monkeypatch):
    x, y = sample(1, 34, 150, 100, torch.float32)
    a, b = torch.rand(1, 34).to(DEVICE), torch.rand(1, 150).to(DEVICE)
    scale = torch.ones(1, 1, 3, dtype=torch.float64, device=DEVICE)
    arguments, modes = (scale, x, y, a, b, ONE, ONE, ONE), {"drop": 1, "wants": OF_BOTH, "precision": "high"}
    expected = gpu.kernel_sums_with_gradients(*arguments, **modes)
    poison_what_is_allocated(monkeypatch)
    for ours, clean in zip(gpu.kernel_sums_with_gradients(*arguments, **modes), expected, strict=True):
        assert torch.equal(ours, clean)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 10**6, 10**6), (3000, 200, 90), (1, 50, 10**7)])
@pytest.mark.parametrize("pulling", [1, 4])
def test_panels_are_bounded(shape, pulling):
    """Whatever the sizes, 64 MiB; and few launches where pairs are few."""
    batch, n, m = shape
    found = sys.modules["gkfast.kernels.gpu.panel"].panels(torch.empty(batch, 1, device="meta"), n, m, pulling)
    assert found.weights.numel() <= 2**24
    blocks = batch * triton.cdiv(n, 128)
    assert len(found.places) <= 1 + pulling * blocks * 128 * (m + 1024) / 2**22
    assert sum(count for _, count, start in found.places if start == 0) == blocks
    assert max(start for *_, start in found.places) < m <= max(start for *_, start in found.places) + found.window


def test_tiles_of_panels_fit():
    for row in sys.modules["gkfast.kernels.gpu.tiles"].TILES:
        if row.kernel.startswith("panel"):
            assert (128 % row.tile.bn, 1024 % row.tile.bm) == (0, 0)


@pytest.mark.parametrize("count", [1, 3])
def test_gradients_of_both_sets_by_panels(count, small_panels):
    """Two parts of one launch: a shift is that of the first one's rows, and of the second one's columns."""
    x, y = sample(2, 70, 130, 100, torch.float32)
    shift = torch.randn(2, 70, 2).to(DEVICE)
    check_matmul(x, y, columns(2, 130, count, torch.float32), *two_bandwidths(2), shift, skip_diagonal=True)
    assert {first for first, *_ in small_panels} > {0}


def test_a_table_for_all_programs(monkeypatch, by_products):
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
    monkeypatch.setattr(packed.Table, "own", lambda table, *_, **__: table.rows is None and not table.fill())
    for filled, made in zip(everything(), own, strict=True):
        assert torch.equal(filled, made)


def test_products_of_more_points_than_there_are_slots(by_products):
    """Greatest norms of several programs are gathered in one slot, wherever the greatest of all is."""
    x, y = sample(70, 2, 1, 6, torch.float32)
    v = columns(70, 1, 1, torch.float32)
    check(x, y, 3 * ONE[0], ONE[0])
    check_matmul(x, y, v, *(t.expand(70, 1) for t in (3 * ONE, ONE)))
    near = gpu.rbf_matmul(x, y, v, ONE.expand(70, 1), ONE.expand(70, 1))
    for place in (0, 69):
        far = x.clone()
        far[place] += 100
        found = gpu.rbf_matmul(far, y, v, ONE.expand(70, 1), ONE.expand(70, 1))
        keep = torch.arange(70) != place
        exact = reference.rbf_matmul(*map(doubled, (far, y, v)), ONE, ONE)
        assert (doubled(found) - exact).abs().max() <= 1e-6
        # all others by differences now
        assert not torch.equal(found[keep], near[keep])


@overflows
def test_differences_where_products_are_not_accurate(by_products, monkeypatch):
    """Far clusters, and what is not finite, get the same bits as by differences alone."""
    x, y = sample(1, 40, 35, 6, torch.float32)
    v = torch.rand(1, 35, 1).to(DEVICE)
    wide = torch.rand(1, 35, 20).to(DEVICE)
    wide[0, 3, 1] = torch.inf
    far, infinite, lacking = (x.clone() for _ in range(3))
    far[:, ::2] += 100
    infinite[0, 3, 0], lacking[0, 3, 0] = torch.inf, torch.nan

    def results():
        for precision in ("highest", "high"):
            for points in (far, infinite, lacking)[precision == "high" :]:
                arguments = (points, y, v, ONE, ONE)
                yield gpu.rbf_matmul(*arguments, precision=precision)
                g = torch.ones(1, 40, 1, device=DEVICE)
                yield gpu.rbf_matmul_backward(g, *arguments, wants=(True,) + (False,) * 4, precision=precision)[0]
                yield gpu.rbf(points, y, ONE, ONE, precision=precision)
                yield gpu.rbf_backward(
                    g @ v.mT, points, y, ONE, ONE, wants=(True,) + (False,) * 3, precision=precision
                )[0]
            yield gpu.rbf_matmul(x, y, wide, ONE, ONE, precision=precision)

    found = list(results())
    monkeypatch.setattr(sys.modules["gkfast.kernels.gpu.bf16_pieces"], "SMALL", 2**60)
    for ours, plain in zip(found, results(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=0, equal_nan=True)


def score(x, y, sigma, log_weights, data_weights, *, leave_one_out, precision="highest"):
    """The gradient of a log-density at x, of the kernels that the operators call for it."""
    modes = {"leave_one_out": leave_one_out, "precision": precision}
    log_p = gpu.log_density(x, y, sigma, log_weights, data_weights, **modes)
    wide = torch.float64 if precision == "highest" or x.dtype == torch.float64 else torch.float32
    arguments = (torch.ones_like(log_p)[..., None], x, y, data_weights[..., None])
    shift = log_p[..., None] - log_weights.to(log_p)[:, None, :]
    return gpu.rbf_matmul_backward(
        *(t.to(wide) for t in arguments),
        sigma,
        torch.ones_like(sigma),
        shift.to(wide),
        skip_diagonal=leave_one_out,
        wants=(True, False, False, False, False),
        precision=precision,
    )[0].to(x.dtype)


def check_density(x, y, sigma, weights, leave_one_out):
    log_weights = weights.log() - x.shape[2] * sigma.log()
    data_weights = torch.rand(y.shape[:2]).to(DEVICE, x.dtype)
    # a row without weight counts for nothing
    data_weights[:, 0] = 0
    wide = (doubled(x), doubled(y), sigma, log_weights, doubled(data_weights))
    truth = reference.log_density(*wide, leave_one_out=leave_one_out)
    arguments = (x, y, sigma, log_weights, data_weights)
    ours = gpu.log_density(*arguments, leave_one_out=leave_one_out)
    assert ours.dtype == torch.float64
    assert (doubled(ours) - truth).abs().max() <= 1e-13 * (1 + truth.abs().max())
    exact = reference.score(*wide, leave_one_out=leave_one_out)
    found = score(*arguments, leave_one_out=leave_one_out)
    assert (doubled(found) - exact).norm() <= TOLERANCE[x.dtype][1] * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_density(leave_one_out, dtype):
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
def test_density_of_a_point_far_from_the_others():
    # its own kernel, which does not count, overflows when divided by its density
    x, _ = sample(1, 33, 1, 3, torch.float32)
    x[0, 5] += 100
    check_density(x, x, 0.5 * ONE, ONE, leave_one_out=True)


@overflows
def test_density_nan_infinity_and_nothing():
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


# of the greatest |x|^2 / (2 sigma^2): float32, two pieces, one
DENSITY_PRECISION = {("high", False): 2**-20, ("high", True): 2**-14, ("medium", True): 2**-6}


@pytest.mark.parametrize(("precision", "products"), DENSITY_PRECISION)
def test_density_of_less_precision(precision, products, monkeypatch):
    monkeypatch.setattr(sys.modules["gkfast.kernels.gpu.bf16_pieces"], "SMALL", 0 if products else 2**60)
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


class Launches(TorchDispatchMode):
    """Counts what would be launched on a GPU: Triton's kernels, and torch's operators but for views and memory."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.triton, self.torch = 0, []
        owner, name = (
            (GridExecutor, "__call__") if triton.knobs.runtime.interpret else (triton.runtime.jit.JITFunction, "run")
        )
        launch = getattr(owner, name)

        def counted(*arguments, **options):
            self.triton += 1
            # what the interpreter does to run it is not counted
            with torch.utils._python_dispatch._disable_current_modes():
                return launch(*arguments, **options)

        monkeypatch.setattr(owner, name, counted)

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        names = ("empty", "new_empty", "empty_like", "empty_strided", "detach", "lift_fresh")
        if not function.is_view and function.overloadpacket.__name__ not in names:
            self.torch.append(str(function))
        return function(*arguments, **(options or {}))


def no_scale():
    return torch.empty(1, 1, 3, dtype=torch.float64, device=DEVICE)


def mmd2(x, y, v, *wants, scale=no_scale):
    arguments = (scale(), x, y, v, v, ONE, ONE, ONE)
    return gpu.kernel_sums_with_gradients(*arguments, drop=1, wants=wants + wants[2:])


# launches of Triton's kernels, where pairs are few and columns are not swept in parts
LAUNCHES = {
    "rbf": (1, lambda x, y, v, g: gpu.rbf(x, y, ONE, ONE)),
    "rbf_backward": (2, lambda x, y, v, g: gpu.rbf_backward(g, x, y, ONE, ONE, wants=(True,) * 4)),
    "rbf_matmul": (1, lambda x, y, v, g: gpu.rbf_matmul(x, y, v[..., None], ONE, ONE)),
    "rbf_matmul_backward": (
        2,
        lambda x, y, v, g: gpu.rbf_matmul_backward(v[..., None], x, y, v[..., None], ONE, ONE, wants=(True,) * 5),
    ),
    "rbf_matmul_backward to v": (
        1,
        lambda x, y, v, g: gpu.rbf_matmul_backward(
            v[..., None], x, y, v[..., None], ONE, ONE, wants=(False, False, True, False, False)
        ),
    ),
    "kernel_sums": (2, lambda x, y, v, g: mmd2(x, y, v, *(False,) * 4, scale=lambda: None)),
    "mmd2": (2, lambda x, y, v, g: mmd2(x, y, v, *(False,) * 4)),
    "mmd2 and dx": (2, lambda x, y, v, g: mmd2(x, y, v, True, False, False, False)),
    "mmd2 and all gradients": (2, lambda x, y, v, g: mmd2(x, y, v, *(True,) * 4)),
    "log_density": (1, lambda x, y, v, g: gpu.log_density(x, y, ONE, ONE, v, leave_one_out=False)),
}


@pytest.mark.parametrize("name", LAUNCHES)
def test_launches(name, monkeypatch):
    x, y = sample(1, 64, 64, 6, torch.float32)
    v, g = torch.rand(1, 64).to(DEVICE), torch.rand(1, 64, 64).to(DEVICE)
    expected, call = LAUNCHES[name]
    with Launches(monkeypatch) as found:
        call(x, y, v, g)
    assert found.triton == expected
    assert not found.torch


@pytest.mark.parametrize("name", ["kernel_sums", "rbf_backward", "rbf_matmul", "rbf_matmul_backward"])
def test_operators_launch_nothing_beside(name, monkeypatch):
    x, y = sample(1, 64, 64, 6, torch.float32)
    v, a, g = columns(1, 64, 1, torch.float32), torch.rand(1, 64).to(DEVICE), columns(1, 64, 64, torch.float32)
    modes = (None, False, None)
    arguments = {
        "kernel_sums": (no_scale()[:, 0], x, y, a, a, ONE, ONE, 1, ONE, [True, True] + [False] * 4),
        "rbf_backward": (g, x, y, ONE, ONE, [True] * 2 + [False] * 2),
        "rbf_matmul": (x, y, v, ONE, ONE, *modes),
        "rbf_matmul_backward": (v, x, y, v, ONE, ONE, *modes, [True] * 3 + [False] * 2),
    }[name]
    with Launches(monkeypatch) as found:
        gpu_kernels[name](*arguments, "highest")
    assert found.triton == (1 if name == "rbf_matmul" else 2)
    assert not found.torch


def all_kernels():
    modules = [module for name, module in sys.modules.items() if name.startswith("gkfast.kernels.gpu.")]
    named = (name for module in modules for name in vars(module))
    return {name for name in named if name.startswith("_") and name.endswith("_kernel")}


def test_no_launch_leaves_contraction_to_the_environment(small_panels, monkeypatch):
    """TRITON_DEFAULT_FP_FUSION, or Triton's version, would decide whether products that are added are contracted."""
    owner = GridExecutor if triton.knobs.runtime.interpret else triton.runtime.jit.JITFunction
    named = {}

    def recorded(self, *arguments, **options):
        named.setdefault(self.fn.__name__, set()).add(options.get("enable_fp_fusion"))

    monkeypatch.setattr(owner, "__call__" if owner is GridExecutor else "run", recorded)
    monkeypatch.setattr(sys.modules["gkfast.kernels.gpu.log_density"], "column_ranges", lambda *_: 2)
    x, y = sample(1, 9, 8, 100, torch.float32)
    v, w = columns(1, 8, 1, torch.float32), columns(1, 8, 3, torch.float32)
    gpu.rbf_backward(columns(1, 9, 8, torch.float32), x, y, ONE, ONE, wants=(True,) * 4)
    gpu.rbf_matmul(x, y, w, ONE, ONE)
    gpu.rbf_matmul_backward(columns(1, 9, 1, torch.float32), x, y, v, ONE, ONE, wants=(True,) * 5)
    gpu.log_density(x, y, ONE, ONE, v[..., 0], leave_one_out=False, precision="high")
    gpu.rbf_matmul(x, y, v, ONE.expand(1, 9), ONE.expand(1, 9))
    assert named == {name: {True} for name in all_kernels()}


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

    expected = list(everything())
    poison_what_is_allocated(monkeypatch)
    for ours, clean in zip(everything(), expected, strict=True):
        assert torch.equal(ours, clean)


def test_operators_give_what_they_promise():
    """The operators' GPU functions against their CPU functions, wanted and unwanted, with strided arguments."""
    kernel_sums, log_density, rbf_matmul = (
        importlib.import_module(f"gkfast.ops.{name}") for name in ("kernel_sums", "log_density", "rbf_matmul")
    )
    x, y = (t.mT.contiguous().mT for t in sample(1, 9, 7, 3, torch.float32))
    v, g, a, b = torch.rand(1, 7, 2), torch.rand(1, 9, 2), torch.rand(1, 9), torch.rand(1, 7)
    scale, shift = torch.rand(1, 2, 3).double(), torch.rand(1, 9, 1)
    sums = (scale, x, y, a, b, ONE, ONE, 1, ONE)
    pairs = [
        (rbf_matmul._rbf_matmul_gpu, rbf_matmul._rbf_matmul_cpu, (x, y, v, ONE, ONE, shift, False, None, "highest")),
        (log_density._log_density_gpu, log_density._log_density_cpu, (x, y, ONE, ONE, b, False, False, "highest")),
    ]
    for wants in ([True] * 6, [False, True, False, True, False, True]):
        backward = (g, x, y, v, ONE, ONE, shift, True, ONE, wants[:5], "highest")
        pairs += [
            (rbf_matmul._rbf_matmul_backward_gpu, rbf_matmul._rbf_matmul_backward_cpu, backward),
            (kernel_sums._kernel_sums_gpu, kernel_sums._kernel_sums_cpu, (*sums, wants, "highest")),
            (kernel_sums._kernel_sums_gpu, kernel_sums._kernel_sums_cpu, (scale[:, 0], *sums[1:], wants, "highest")),
            (
                kernel_sums._with_gradients_gpu,
                kernel_sums._with_gradients_cpu,
                (scale[:, 0], *sums[1:], wants, "highest"),
            ),
        ]
    for on_gpu, on_cpu, arguments in pairs:
        moved = [t.to(DEVICE) if isinstance(t, torch.Tensor) else t for t in arguments]
        ours, theirs = on_gpu(*moved), on_cpu(*(t.cpu() if isinstance(t, torch.Tensor) else t for t in arguments))
        if isinstance(ours, torch.Tensor):
            ours, theirs = (ours,), (theirs,)
        for found, expected in zip(ours, theirs, strict=True):
            assert found.dtype == expected.dtype
            assert found.shape == expected.shape
            torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-6)


# of x, y and a bandwidth
PUBLIC = {
    "rbf": lambda x, y, s: gkfast.rbf(x, y, s).square().sum(),
    "rbf_matmul": lambda x, y, s: gkfast.rbf_matmul(x, y, y, s).square().sum(),
    "mmd2": lambda x, y, s: gkfast.mmd2(x, y, s),
    "kernel_means": lambda x, y, s: torch.stack(gkfast.kernel_means(x, y, s)).sum(),
    "mmd2_and_variance": lambda x, y, s: torch.stack(gkfast.mmd2_and_variance(x, y, s)).sum(),
    "witness": lambda x, y, s: gkfast.witness(x, x + 1, y, s).square().sum(),
    "log_density": lambda x, y, s: gkfast.log_density(x, y, s).sum(),
    "score": lambda x, y, s: gkfast.score(x, y, s).square().sum(),
}


def two_samples(n=300, m=200, dims=17):
    x, y = sample(1, n, m, dims, torch.float32)
    return x[0].requires_grad_(), (y[0] + 0.3).requires_grad_()


def close(ours, truth, relative=1e-5):
    for found, exact in zip(ours, truth, strict=True):
        assert (found.detach().cpu() - exact.cpu()).norm() <= relative * exact.norm()


@needs_gpu
@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_on_the_device(name):
    x, y = two_samples()
    ours = torch.autograd.grad(PUBLIC[name](x, y, 0.9), (x, y))
    truth = torch.autograd.grad(PUBLIC[name](x.cpu().double(), y.cpu().double(), 0.9), (x, y))
    close(ours, truth)
    # the same bits again
    for found, again in zip(ours, torch.autograd.grad(PUBLIC[name](x, y, 0.9), (x, y)), strict=True):
        assert torch.equal(found, again)


@needs_gpu
def test_a_permutation_test_on_the_device():
    x, y = (t.detach() for t in two_samples())
    ours, truth = (gkfast.mmd_test(a, b, 0.9, permutations=200, seed=0) for a, b in ((x, y), (x.cpu(), y.cpu())))
    close(ours, truth)


# inductor warns of what torch deprecates, and of tensor cores that float32 does not use
@pytest.mark.filterwarnings("ignore")
@needs_gpu
@pytest.mark.parametrize("name", ["rbf", "rbf_matmul", "mmd2", "log_density"])
def test_compiled_on_the_device(name):
    torch._dynamo.reset()
    x, y = two_samples()
    compiled = torch.compile(lambda x, y: PUBLIC[name](x, y, 0.9), fullgraph=True)
    found = compiled(x, y)
    exact = PUBLIC[name](x, y, 0.9)
    close([found, *torch.autograd.grad(found, (x, y))], [exact, *torch.autograd.grad(exact, (x, y))])


@needs_gpu
def test_autocast_on_the_device():
    x, y = two_samples()
    layer = torch.nn.Linear(17, 16, device=DEVICE)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        features, others = layer(x), layer(y)
        assert features.dtype == torch.bfloat16
        loss = gkfast.mmd2(features, others, 0.9)
    assert loss.dtype == torch.float32
    exact = gkfast.mmd2(features.float(), others.float(), 0.9)
    ours, truth = ([t, *torch.autograd.grad(t, x, retain_graph=True)] for t in (loss, exact))
    close(ours, truth, 2**-7)


@needs_gpu
@pytest.mark.parametrize("place", sorted({0, max(0, torch.cuda.device_count() - 1)}))
def test_in_another_thread(place):
    """The gradient of what was computed here, and all of it; the thread's own device stays the first."""
    x, y = (t.detach().to(f"{DEVICE}:{place}").requires_grad_() for t in two_samples())
    value = PUBLIC["mmd2"](x, y, 0.9)
    expected = torch.autograd.grad(value, (x, y), retain_graph=True)
    found, failures = [], []

    def work():
        try:
            found.append(torch.autograd.grad(value, (x, y)))
            found.append(torch.autograd.grad(PUBLIC["mmd2"](x, y, 0.9), (x, y)))
            torch.cuda.synchronize(place)
        except Exception as failure:
            failures.append(failure)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures
    for gradients in found:
        for ours, exact in zip(gradients, expected, strict=True):
            assert torch.equal(ours, exact)


@needs_gpu
@pytest.mark.parametrize("rule", ["median", [0.5, 1.0, 2.0]], ids=["median", "given"])
def test_a_captured_step_of_an_mmd_gan(rule):
    """Generator, critic, MMD^2 of its features, backward and the optimiser, replayed with other data."""

    def networks():
        torch.manual_seed(0)
        generator, critic = torch.nn.Linear(8, 17, device=DEVICE), torch.nn.Linear(17, 16, device=DEVICE)
        return generator, critic, gkfast.nn.MMDLoss(rule).to(DEVICE), torch.optim.SGD(generator.parameters(), lr=0.1)

    def step(networks, noise, real):
        generator, critic, loss, optimiser = networks
        optimiser.zero_grad(set_to_none=True)
        value = loss(critic(generator(noise)), critic(real))
        value.backward()
        optimiser.step()
        return value

    batches = [(torch.randn(64, 8, device=DEVICE), torch.randn(64, 17, device=DEVICE)) for _ in range(6)]
    eager, graphed = networks(), networks()
    expected = [step(eager, *batch).item() for batch in batches]
    noise, real = (t.clone() for t in batches[0])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        found = []
        for batch in batches[:3]:
            noise.copy_(batch[0])
            real.copy_(batch[1])
            found.append(step(graphed, noise, real).item())
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = step(graphed, noise, real)
    for batch in batches[3:]:
        noise.copy_(batch[0])
        real.copy_(batch[1])
        graph.replay()
        found.append(value.item())
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    for ours, exact in zip(graphed[0].parameters(), eager[0].parameters(), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-6)


@needs_gpu
@pytest.mark.parametrize("name", PUBLIC)
def test_a_bandwidth_on_the_device(name):
    x, y = two_samples()
    sigma = torch.tensor([0.8, 1.2], dtype=torch.float64)
    inputs = [x, y, sigma.to(DEVICE).requires_grad_()]
    ours = torch.autograd.grad(PUBLIC[name](*inputs), inputs)
    wide = [t.detach().cpu().double().requires_grad_() for t in inputs]
    close(ours, torch.autograd.grad(PUBLIC[name](*wide), wide))


def needs_memory(gigabytes):
    if torch.cuda.mem_get_info()[0] < gigabytes << 30:
        pytest.skip(f"needs {gigabytes} GiB of a GPU's memory")


@needs_gpu
def test_more_than_2_31_entries():
    needs_memory(24)
    n = 46_400
    x, y = sample(1, n, n, 3, torch.bfloat16)
    k = gpu.rbf(x, y, ONE, ONE)
    assert k.numel() > 2**31
    rows = [0, n // 2, n - 1]
    exact = reference.rbf(doubled(x[:, rows]), doubled(y), ONE, ONE)
    assert (doubled(k[:, rows]) - exact).abs().max() <= 2**-8
    ones = torch.ones(1, n, 1, device=DEVICE, dtype=torch.bfloat16)
    g = ones.mT.expand(1, n, n).contiguous()
    dx = gpu.rbf_backward(g, x, y, ONE, ONE, wants=(True, False, False, False))[0]
    truth = gpu.rbf_matmul_backward(ones, x, y, ones, ONE, ONE, wants=(True, False, False, False, False))[0]
    assert (dx.float() - truth.float())[:, rows].norm() <= 2**-6 * truth[:, rows].float().norm()


@needs_gpu
@pytest.mark.parametrize("precision", PRECISION)
def test_more_than_2_31_coordinates(precision):
    needs_memory(40)
    n, dims = 2**22, 520
    x = torch.randn(1, n, dims, device=DEVICE, dtype=torch.bfloat16)
    y = torch.randn(1, 3, dims, device=DEVICE, dtype=torch.bfloat16)
    assert x.numel() > 2**31
    v, sigma, rows = torch.ones(1, 3, 1, device=DEVICE, dtype=torch.bfloat16), 30 * ONE, [0, n // 2, n - 1]
    found = gpu.rbf_matmul(x, y, v, sigma, ONE, precision=precision)
    exact = reference.rbf_matmul(doubled(x[:, rows]), doubled(y), doubled(v), sigma, ONE)
    assert (doubled(found[:, rows]) - exact).abs().max() <= (2**-6 + 2 * PRECISION[precision][0]) * exact.max()


@needs_gpu
def test_streams_graphs_and_devices():
    x, y = sample(1, 300, 200, 17, torch.float32)
    v, a = torch.rand(1, 200, 1).to(DEVICE), torch.rand(1, 300).to(DEVICE)
    scale = torch.ones(1, 1, 3, dtype=torch.float64, device=DEVICE)
    wants = (True, True, False, False, False, False)

    def everything(x, y, v, a, scale):
        yield gpu.rbf(x, y, ONE, ONE)
        yield gpu.rbf_matmul(x, y, v, ONE, ONE)
        yield gpu.log_density(x, y, ONE, ONE, v[..., 0], leave_one_out=False)
        arguments = (scale, x, y, a, v[..., 0], ONE, ONE, ONE)
        yield from gpu.kernel_sums_with_gradients(*arguments, drop=1, wants=wants)[:4]

    expected = list(everything(x, y, v, a, scale))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = list(everything(x, y, v, a, scale))
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = list(everything(x, y, v, a, scale))
    graph.replay()
    runs = [found, captured]
    if torch.cuda.device_count() > 1:
        # the current device stays the first
        runs.append(list(everything(*(t.to("cuda:1") for t in (x, y, v, a, scale)))))
    for run in runs:
        for ours, exact in zip(run, expected, strict=True):
            torch.testing.assert_close(ours.to(DEVICE), exact, rtol=1e-6, atol=0)


OFFLINE = Path(__file__).parent.parent / "bench/offline.py"


@pytest.fixture(scope="module")
def compiled():
    """What came out of the compiler; in a process of its own, because the interpreter is on in this one."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, OFFLINE, "--brief", "--json"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.stdout, result.stderr
    # rows of the table of tiles that no case of the whole run takes
    assert "never compiled" not in result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_kernels_compile_without_spills(compiled, architecture):
    rows = [row for row in compiled if row["sm"] == architecture]
    assert {"_rbf_kernel", "_sweep_kernel"} <= {row["kernel"] for row in rows}
    assert not [row for row in rows if row["wrong"]]


def test_every_kernel_is_compiled(compiled):
    assert {row["kernel"] for row in compiled} == all_kernels()


def test_float32_uses_the_fast_exponential(compiled):
    for row in compiled:
        if row["kernel"] in ("_rbf_kernel", "_sweep_kernel") and row["dtype"] == "float32":
            assert row["ex2"] > 0, row
