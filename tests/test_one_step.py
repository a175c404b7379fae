"""Losses against data that do not change, and gradients of large batches in pieces."""

import numpy as np
import pytest
import torch

import gkfast
import gkfast.nn

D = torch.float64


def samples(n=40, m=300, dims=3, dtype=D):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, dims, generator=generator, dtype=D) + 0.3
    return x.to(dtype), torch.randn(m, dims, generator=generator, dtype=D).to(dtype)


def close(found, truth, rtol):
    assert (found.double() - truth.double()).norm() <= rtol * truth.double().norm()


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("dtype", [D, torch.float32])
@pytest.mark.parametrize("sigma", [[0.3], [0.5, 1.0, 8.0]])
def test_frozen_loss_is_mmd2(estimator, dtype, sigma):
    x, y = samples(dtype=dtype)
    x.requires_grad_()
    truth = gkfast.mmd2(x, y, sigma, weights=[1 / len(sigma)] * len(sigma), estimator=estimator)
    found = gkfast.nn.FrozenMMDLoss(y, sigma, estimator=estimator)(x)
    assert found.dtype == dtype
    close(found, truth, 1e-12 if dtype == D else 2e-5)
    close(torch.autograd.grad(found, x)[0], torch.autograd.grad(truth, x)[0], 1e-12 if dtype == D else 1e-5)


def test_frozen_loss_finds_bandwidths_and_is_saved():
    x, y = samples()
    loss = gkfast.nn.FrozenMMDLoss(y)
    torch.testing.assert_close(
        loss(x),
        gkfast.nn.MMDLoss(list(gkfast.median_sigma(y) * torch.tensor([0.25, 0.5, 1.0, 2.0, 4.0], dtype=D)))(x, y),
    )
    other = gkfast.nn.FrozenMMDLoss(y + 1, [1.0] * 5)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(x), loss(x))
    single = loss.float()
    assert single.points.dtype == torch.float32
    assert single.numbers.square.dtype == D
    torch.testing.assert_close(single(x.float()).double(), loss(x), rtol=1e-4, atol=1e-6)
    assert loss.bfloat16()(x.bfloat16()).dtype == torch.float32


def test_frozen_loss_is_compiled_and_differentiated_twice():
    x, y = samples(8, 20)
    loss = gkfast.nn.FrozenMMDLoss(y, [0.5, 2.0])
    assert torch.autograd.gradcheck(loss, x.requires_grad_())
    assert torch.autograd.gradgradcheck(loss, x)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_embedding_of_all_rows_is_the_mean(library, dtype):
    _, y = samples(m=50)
    data = y.to(getattr(torch, dtype))
    data = data.numpy() if library == "numpy" else data
    found = gkfast.mean_embedding(data, 0.5, landmarks=99)
    assert len(found.landmarks) == 50
    assert found.landmarks.dtype == data.dtype
    assert found.error < 1e-6
    np.testing.assert_allclose(np.asarray(found.coefficients), 1 / 50, rtol=1e-3)
    exact = gkfast.kernel_means(data, data, 0.5, estimator="biased").xx
    assert found.square == pytest.approx(float(exact), rel=1e-5)


def test_error_falls_with_landmarks_and_is_that_of_new_rows():
    data = torch.randn(4000, 4, generator=torch.Generator().manual_seed(1))
    new = torch.randn(500, 4, generator=torch.Generator().manual_seed(2))
    errors = []
    for count in (10, 40, 160, 640):
        found = gkfast.mean_embedding(data, [1.0, 2.0], landmarks=count)
        errors.append(found.error)
        assert abs(found.coefficients).sum() <= 4
        embedded = gkfast.rbf_matmul(new, found.landmarks, found.coefficients.float(), [1.0, 2.0])
        mean = gkfast.rbf_matmul(new, data, torch.full((4000,), 1 / 4000), [1.0, 2.0])
        assert float((embedded - mean).norm() / mean.norm()) < 2 * found.error + 1e-5
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01


def test_clustered_landmarks_are_no_worse():
    pytest.importorskip("sklearn")
    data = torch.randn(2000, 3, generator=torch.Generator().manual_seed(1))
    sampled, clustered = (gkfast.mean_embedding(data, 1.0, landmarks=40, method=m) for m in ("sample", "kmeans"))
    assert clustered.error < 1.2 * sampled.error
    same = gkfast.mean_embedding(data, 1.0, landmarks=clustered.landmarks)
    torch.testing.assert_close(same.coefficients, clustered.coefficients)


def test_duplicates_and_single_rows():
    data = torch.ones(30, 2)
    found = gkfast.mean_embedding(data, 1.0, landmarks=20)
    assert found.error < 1e-9
    assert float(found.coefficients.sum()) == pytest.approx(1)
    assert gkfast.mean_embedding(data[:1], 1.0).coefficients.tolist() == pytest.approx([1])


@pytest.mark.parametrize("dtype", [D, torch.float32])
def test_landmark_loss_is_its_formula(dtype):
    x, y = samples(dtype=dtype)
    sigma = [0.5, 2.0]
    loss = gkfast.nn.LandmarkMMDLoss(y, sigma, landmarks=60, self_normalized=False)
    z, alpha = loss.points.double(), loss.numbers.coefficients
    wide = x.double().requires_grad_()

    def k(p, q):
        return sum((-(torch.cdist(p, q) ** 2) / (2 * s * s)).exp() for s in sigma) / 2

    truth = k(wide, wide).mean() - 2 * (k(wide, z) @ alpha).mean() + alpha @ k(z, z) @ alpha
    found = loss(x.requires_grad_())
    close(found, truth, 1e-10 if dtype == D else 2e-5)
    close(torch.autograd.grad(found, x)[0], torch.autograd.grad(truth, wide)[0], 1e-10 if dtype == D else 1e-5)


def test_self_normalised_loss():
    x, y = samples()
    loss = gkfast.nn.LandmarkMMDLoss(y, "mean", landmarks=60)
    x.requires_grad_()
    plain = loss.mmd2(x)
    assert loss(x).item() == pytest.approx(1, abs=1e-5)
    expected = torch.autograd.grad(plain, x)[0] / plain.detach()
    torch.testing.assert_close(torch.autograd.grad(loss(x), x)[0], expected, rtol=1e-5, atol=1e-9)
    assert "landmarks=60" in repr(loss)


def test_samples_reach_the_data():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(3000, 2, generator=generator) + 3
    fake = torch.nn.Parameter(torch.randn(200, 2, generator=generator))
    loss = gkfast.nn.LandmarkMMDLoss(real, landmarks=100)
    before = loss.mmd2(fake).item()
    optimiser = torch.optim.Adam([fake], lr=0.1)
    for _ in range(60):
        optimiser.zero_grad()
        loss(fake).backward()
        optimiser.step()
    assert loss.mmd2(fake).item() < 0.02 * before


@pytest.mark.parametrize("sizes", [[64], [16] * 4, [30, 1, 33]])
def test_gradients_in_pieces_are_those_of_the_whole_batch(sizes):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 20), torch.nn.Tanh(), torch.nn.Linear(20, 3)).double()
    z, real = torch.randn(64, 5, dtype=D), torch.randn(80, 3, dtype=D)
    for loss in (gkfast.nn.MMDLoss([1.0]), gkfast.nn.DriftLoss([1.0])):
        net.zero_grad()
        value = loss(net(z), real)
        value.backward()
        expected = [p.grad.clone() for p in net.parameters()]
        net.zero_grad()
        found = gkfast.nn.backward_in_pieces(net, z.split(sizes), lambda y, loss=loss: loss(y, real))
        assert not found.requires_grad
        torch.testing.assert_close(found, value.detach(), rtol=1e-12, atol=0)
        for p, g in zip(net.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, g, rtol=1e-10, atol=1e-13)


def test_pieces_draw_the_same_random_numbers_twice():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 50), torch.nn.Dropout(0.5), torch.nn.Linear(50, 3))
    seen = []
    net[1].register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    gkfast.nn.backward_in_pieces(net, torch.randn(8, 5).split(4), lambda y: y.square().mean())
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda y: gkfast.mean_embedding(y[None], 1.0), ValueError, r"data must be one set of points, \(R, D\)"),
        (lambda y: gkfast.mean_embedding(y[:0], 1.0), ValueError, "data must have at least 1 row for a mean, got 0"),
        (lambda y: gkfast.mean_embedding(y, 1.0, landmarks=0), ValueError, "landmarks must be a whole number of at"),
        (
            lambda y: gkfast.mean_embedding(y, 1.0, landmarks=y[:, :2]),
            ValueError,
            "landmarks must have as many coord",
        ),
        (lambda y: gkfast.mean_embedding(y, 1.0, method="random"), ValueError, "method must be sample or kmeans"),
        (lambda y: gkfast.mean_embedding(y, 1.0, held_out=-1), ValueError, "held_out must be a whole number of at"),
        (lambda y: gkfast.mean_embedding(y, -1.0), ValueError, "sigma must be positive and finite, got -1.0"),
        (lambda y: gkfast.nn.FrozenMMDLoss(y[:1], 1.0), ValueError, "y must have at least 2 rows"),
        (lambda y: gkfast.nn.FrozenMMDLoss(y, 1.0, estimator="linear"), ValueError, "estimator must be unbiased or"),
        (lambda y: gkfast.nn.FrozenMMDLoss(y.numpy(), 1.0), TypeError, "y must be a torch tensor"),
        (lambda y: gkfast.nn.FrozenMMDLoss(y, 1.0)(y[:1]), ValueError, "x must have at least 2 rows for MMD"),
        (lambda y: gkfast.nn.LandmarkMMDLoss(y, 1.0)(y[:, :2]), ValueError, "the reference must have as many coord"),
        (
            lambda y: gkfast.nn.backward_in_pieces(torch.nn.Identity(), y, torch.sum),
            TypeError,
            "pieces must be a list",
        ),
    ],
)
def test_bad_input_is_refused_by_name(call, error, match):
    with pytest.raises(error, match=match):
        call(samples()[1])
