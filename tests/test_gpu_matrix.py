"""The kernel matrix of the GPU kernels, and its gradients, against the reference."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from gpu_samples import (
    DEVICE,
    ONE,
    TOLERANCE,
    check,
    check_matmul,
    check_sums,
    columns,
    doubled,
    overflows,
    poison_what_is_allocated,
    sample,
)

from gkfast.kernels import gpu, reference
from gkfast.kernels.gpu import bandwidths

pytestmark = pytest.mark.interpreter


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
def test_matrix_and_gradients_in_every_dtype(shape, dtype):
    check(*sample(*shape, dtype), torch.tensor([0.8, 1.7]).double(), torch.tensor([1.0, 0.4]).double())


@pytest.mark.parametrize("shape", SHAPES[5:] + NONE)
def test_matrix_of_awkward_shapes(shape):
    check(*sample(*shape, torch.float32), ONE[0], ONE[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matrix_of_x_with_itself_is_symmetric(dtype):
    x, _ = sample(2, 67, 1, 5, dtype)
    check(x, None, 0.9 * ONE[0], ONE[0])
    k = gpu.rbf(x, None, (0.9 * ONE).expand(2, 1), ONE.expand(2, 1))
    assert torch.equal(k, k.mT)
    assert (k.diagonal(dim1=1, dim2=2) == 1).all()
    assert k.max() <= 1


def test_matrix_gradients_are_those_wanted():
    x, y = sample(1, 9, 8, 3, torch.float32)
    g = torch.ones(1, 9, 8, device=DEVICE)
    everything = gpu.rbf_backward(g, x, y, ONE, ONE, wants=(True,) * 4)
    for k in range(4):
        wants = tuple(j == k for j in range(4))
        gradients = gpu.rbf_backward(g, x, y, ONE, ONE, wants=wants)
        assert [t is not None for t in gradients] == list(wants)
        assert torch.equal(gradients[k], everything[k])


def test_bandwidths_on_the_device_and_on_the_cpu_agree():
    x, y = sample(1, 20, 20, 3, torch.float32)
    there = gpu.rbf(x, y, 0.7 * ONE.to(DEVICE), ONE.to(DEVICE))
    assert torch.equal(there, gpu.rbf(x, y, 0.7 * ONE, ONE))


@pytest.mark.parametrize(
    ("scale", "offset"), [(1, 1000), (1e20, 0), (1e-20, 0), (1e3, 0), (1e-3, 0)], ids=lambda v: f"{v:g}"
)
def test_matrix_of_offset_and_scaled_points(scale, offset):
    check(*sample(1, 65, 40, 3, torch.float32, scale, offset), scale * ONE[0], ONE[0])


def test_matrix_of_far_clusters_and_duplicates():
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


@overflows
@pytest.mark.parametrize("spread", [1e6, 1e18, 1e30])
def test_points_at_all_scales_between_two_bandwidths(spread):
    torch.manual_seed(0)
    x = torch.cat([torch.randn(12, 1) * spread**p for p in (-0.5, -0.25, 0, 0.25, 0.5)])[None].to(DEVICE)
    sigma, weights = torch.tensor([[spread**-0.5, spread**0.5]]).double(), torch.ones(1, 2).double()
    truth = reference.rbf(doubled(x), None, sigma, weights)
    assert (doubled(gpu.rbf(x, None, sigma, weights)) - truth).abs().max() <= 2e-6


@overflows
def test_matrix_of_huge_values():
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


def test_every_entry_is_written(monkeypatch):
    x, y = sample(1, 33, 65, 17, torch.float32)
    g = torch.randn(1, 33, 65, device=DEVICE)
    expected = gpu.rbf(x, y, ONE, ONE), *gpu.rbf_backward(g, x, y, ONE, ONE, wants=(True,) * 4)
    poison_what_is_allocated(monkeypatch)
    poisoned = gpu.rbf(x, y, ONE, ONE), *gpu.rbf_backward(g, x, y, ONE, ONE, wants=(True,) * 4)
    for ours, clean in zip(poisoned, expected, strict=True):
        assert torch.equal(ours, clean)


# bandwidths, and the squarings that lead from each to the next narrower one: for sums, for stored kernels
LADDERS = {
    "MMD-GAN's": ([1.0, 2.0, 4.0, 8.0, 16.0], [0, 2, 2, 0, 2], [0, 2, 0, 0, 2]),
    "multi-kernel MMD's": ([2.0 ** ((i - 2) / 2) for i in range(5)], [0, 1, 1, 1, 1], [0, 1, 1, 0, 1]),
    "shuffled": ([4.0, 1.0, 16.0, 2.0, 8.0, 2.0], [0, 2, 2, 0, 0, 2], [0, 2, 0, 0, 0, 2]),
    "with steps that are none": ([1.0, 2.0, 3.0, 6.0], [0, 2, 0, 2], [0, 2, 0, 2]),
    "not quite": ([1.0, 2.0 * (1 + 1e-4), 4.0 * (1 - 1e-4)], [0, 0, 0], [0, 0, 0]),
    "more than travel as numbers": (
        [2.0 ** (i / 2) for i in range(-4, 5)],
        [0, 1, 1, 1, 1, 0, 1, 1, 1],
        [0, 1, 1, 0, 1, 1, 0, 1, 1],
    ),
}


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.float32) for name in LADDERS), ("shuffled", torch.float64)]
)
def test_ladders_are_squared_and_keep_their_digits(name, dtype):
    ladder, *squarings = LADDERS[name]
    sigma = torch.tensor([ladder], dtype=torch.float64)
    x, y = sample(1, 40, 35, 7, dtype)
    # near, far, and all between
    x *= torch.logspace(-4, 1, 40, device=DEVICE)[:, None].to(dtype)
    weights = torch.linspace(0.5, 2, len(ladder)).double()[None]
    for most, expected in zip((4, 2), squarings, strict=True):
        table = bandwidths.Table(sigma, weights, x, squares=most).fill()
        found = table.rows[0, 1:].reshape(6, -1)
        assert found[3].tolist() == expected
        assert sigma[0, found[4].long().cpu()].tolist() == sorted(ladder, reverse=True)
    absolute, _ = TOLERANCE[dtype]
    truth = reference.rbf(doubled(x), doubled(y), sigma, weights)
    assert (doubled(gpu.rbf(x, y, sigma, weights)) - truth).abs().max() <= absolute * weights.sum()
    check_sums(x, y, sigma, weights, relative=2e-6 if dtype == torch.float32 else 1e-13)
    check_matmul(x, y, columns(1, 35, 1, dtype), sigma, weights)
    # the same squarings where the device alone knows the bandwidths
    there = gpu.rbf(x, y, sigma.to(DEVICE), weights.to(DEVICE))
    assert torch.equal(there, gpu.rbf(x, y, sigma, weights))


def test_every_number_reaches_the_table():
    """Numbers that travel as kernel arguments make the same rows as those that are read from memory."""
    torch.manual_seed(3)
    for count in (1, 5, 8):
        sigma, weights = torch.rand(1, count).double() + 0.1, torch.randn(1, count).double()
        weights[0, 0] = 0
        x, _ = sample(2, 3, 1, 2, torch.float64)
        rows = bandwidths.Table(sigma, weights, x).fill().rows
        # rows of a batch that differ are no arguments
        assert torch.equal(
            rows.expand(2, -1), bandwidths.Table(sigma.repeat(2, 1), weights.expand(2, -1), x).fill().rows
        )
