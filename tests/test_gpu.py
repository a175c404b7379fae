"""The Triton kernels against the reference: on a GPU where there is one, else by Triton's interpreter.

conftest.py turns the interpreter on before Triton is loaded. It is slow, so samples are small and few. What it
cannot show is shown by compiling every kernel for three architectures.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed on this platform")

from gkfast.kernels import gpu, reference  # noqa: E402  (needs triton)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {  # kernel absolute, gradients relative to the norm
    torch.float32: (1e-6, 1e-5),
    torch.float64: (1e-14, 1e-12),
    # a unit in the last place of results between 1 and 2 (the interpreter truncates), and of gradients
    torch.bfloat16: (2**-7, 2**-7),
    torch.float16: (2**-10, 2**-10),
}
ONE = torch.ones(1, 1, dtype=torch.float64)


def sample(batch, n, m, dims, dtype, scale=1.0, offset=0.0):
    torch.manual_seed(n + dims)
    spread = scale / max(dims, 1) ** 0.5
    x, y = (torch.randn(batch, rows, dims) * spread + offset for rows in (n, m))
    return x.to(DEVICE, dtype), y.to(DEVICE, dtype)


def check(x, y, sigma, weights):
    """Kernel and all gradients against float64; sigma and weights (S,) serve the whole batch."""
    sigma, weights = (t.expand(x.shape[0], -1).contiguous() for t in (sigma, weights))
    absolute, relative = TOLERANCE[x.dtype]
    wide = [
        t.detach().double().requires_grad_() for t in ((x, sigma, weights) if y is None else (x, y, sigma, weights))
    ]
    truth = reference.rbf(wide[0], None if y is None else wide[1], *wide[-2:])
    ours = gpu.rbf(x, y, sigma, weights)
    assert ours.dtype == x.dtype
    if truth.numel():
        assert (ours.double() - truth).abs().max() <= absolute * float(weights[0].abs().sum())
    g = torch.randn_like(truth).to(x.dtype)
    # without coordinates nothing depends on x
    expected = torch.autograd.grad((truth * g.double()).sum(), wide, allow_unused=True, materialize_grads=True)
    gradients = gpu.rbf_backward(g, x, y, sigma, weights, (True, y is not None, True, True))
    for gradient, exact in zip((t for t in gradients if t is not None), expected, strict=True):
        assert (gradient.double() - exact).norm() <= relative * exact.norm()
        assert not gradient.isnan().any()


# one more than a tile, primes, one, none, more than a block of coordinates
SHAPES = [
    (1, 1, 1, 1),
    (2, 65, 31, 3),
    (3, 7, 5, 2),
    (1, 33, 64, 17),
    (1, 129, 3, 33),
    (1, 20, 30, 513),
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
    everything = gpu.rbf_backward(g, x, y, ONE, ONE, (True,) * 4)
    for k in range(4):
        wants = tuple(j == k for j in range(4))
        gradients = gpu.rbf_backward(g, x, y, ONE, ONE, wants)
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
    check(*sample(1, 5, 6, 3072, torch.float32), ONE[0], ONE[0])


# the interpreter is NumPy, which warns where a GPU only returns infinity or NaN
overflows = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")


@overflows
@pytest.mark.parametrize("spread", [1e6, 1e18, 1e30])
def test_points_at_all_scales_between_two_bandwidths(spread):
    torch.manual_seed(0)
    x = torch.cat([torch.randn(12, 1) * spread**p for p in (-0.5, -0.25, 0, 0.25, 0.5)])[None].to(DEVICE)
    sigma, weights = torch.tensor([[spread**-0.5, spread**0.5]]).double(), torch.ones(1, 2).double()
    truth = reference.rbf(x.double(), None, sigma, weights)
    assert (gpu.rbf(x, None, sigma, weights) - truth).abs().max() <= 2e-6


@overflows
def test_huge_values():
    x = torch.tensor([[[1e20, -3e38], [1e20, 3e38], [1e-30, 0.0]]], device=DEVICE)
    for sigma in (1e-38, 1e-20, 1.0, 1e20, 1e38):
        k = gpu.rbf(x, None, sigma * ONE, ONE)
        assert (k - reference.rbf(x.double(), None, sigma * ONE, ONE)).abs().max() <= 1e-6
        gradients = gpu.rbf_backward(torch.ones_like(k), x, None, sigma * ONE, ONE, (True, False, True, True))
        assert all(t.isfinite().all() for t in gradients if t is not None)


def test_nan_stays_in_its_entries():
    x, y = sample(1, 20, 15, 3, torch.float32)
    clean = gpu.rbf(x, y, ONE, ONE)
    x[0, 4, 1] = torch.nan
    k = gpu.rbf(x, y, ONE, ONE)
    assert k[0, 4].isnan().all()
    keep = torch.arange(20) != 4
    assert torch.equal(k[:, keep], clean[:, keep])
    dx = gpu.rbf_backward(torch.ones_like(k), x, y, ONE, ONE, (True, False, False, False))[0]
    assert torch.equal(dx.isnan().any(2)[0].cpu(), ~keep)


@overflows
def test_infinite_distance_is_a_kernel_of_zero_and_pulls_nothing():
    x = torch.tensor([[[torch.inf, 0.0], [1.0, 0.0]]], device=DEVICE)
    y = torch.tensor([[[0.0, 0.0]]], device=DEVICE)
    for sigma in (1e-30, 1.0, 1e30):
        k = gpu.rbf(x, y, sigma * ONE, ONE)
        assert k[0, 0, 0] == 0
        gradients = gpu.rbf_backward(torch.ones_like(k), x, y, sigma * ONE, ONE, (True,) * 4)
        assert gradients[0][0, 0].tolist() == [0, 0]
        assert all(t.isfinite().all() for t in gradients)


def test_nothing_around_the_output_is_touched():
    x, y = sample(1, 33, 31, 3, torch.float32)
    guarded = torch.full((1, 35, 31), -7.0, device=DEVICE)
    gpu.rbf(x, y, ONE, ONE, out=guarded[:, 1:-1])
    assert torch.equal(guarded[:, 1:-1], gpu.rbf(x, y, ONE, ONE))
    assert (guarded[:, [0, -1]] == -7).all()


def test_every_entry_is_written(monkeypatch):
    x, y = sample(1, 33, 65, 17, torch.float32)
    g = torch.randn(1, 33, 65, device=DEVICE)
    expected = gpu.rbf(x, y, ONE, ONE), *gpu.rbf_backward(g, x, y, ONE, ONE, (True,) * 4)
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda t, *shape, **options: t.new_full(shape, torch.nan, **options)
    )
    monkeypatch.setattr(torch, "empty_like", lambda t, **options: torch.full_like(t, torch.nan, **options))
    poisoned = gpu.rbf(x, y, ONE, ONE), *gpu.rbf_backward(g, x, y, ONE, ONE, (True,) * 4)
    for ours, clean in zip(poisoned, expected, strict=True):
        assert torch.equal(ours, clean)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_public_functions_on_the_device():
    import gkfast

    x, y = sample(1, 300, 200, 17, torch.float32)
    x, y = x[0].requires_grad_(), y[0].requires_grad_()
    for function in (lambda a, b: gkfast.rbf(a, b, 0.9).square().sum(), lambda a, b: gkfast.mmd2(a, b, [0.5, 1.0])):
        ours = torch.autograd.grad(function(x, y), (x, y))
        truth = torch.autograd.grad(function(x.cpu().double(), y.cpu().double()), (x, y))
        for gradient, exact in zip(ours, truth, strict=True):
            assert (gradient - exact).norm() <= 1e-5 * exact.norm()


COMPILE = Path(__file__).parent / "compile_gpu_kernels.py"


@pytest.fixture(scope="module")
def compiled():
    """What ptxas says of every kernel; in a process of its own, because the interpreter is on in this one."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, COMPILE]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_every_kernel_compiles_without_spills(compiled, architecture):
    rows = [row for row in compiled if row["sm"] == architecture]
    assert {row["kernel"] for row in rows} == {"_rbf_kernel", "_rbf_weight_kernel", "_rbf_pull_kernel"}
    assert {"fp32", "fp64"} <= {row["dtype"] for row in rows}
    for row in rows:
        assert row["spills"] == 0, row
        # of eight warps: at least one block fits a multiprocessor with room to spare
        assert row["registers"] <= 200, row


def test_float32_uses_the_fast_exponential(compiled):
    for row in compiled:
        if row["kernel"] != "_rbf_pull_kernel" and row["dtype"] == "fp32":
            assert row["ex2.approx.ftz"] > 0, row
