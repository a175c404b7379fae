"""The drifting field, against the dense definition, scores, copies of rows and awkward input."""

import importlib

import numpy as np
import pytest
import torch

import gkfast
import gkfast.nn
from gkfast.ops.drift import by_operators

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
POWERS = [(0.5, 0.5), (1.0, 0.0), (0.0, 1.0), (0.3, 0.4), None]


def samples(n=9, m=13, dims=3, batch=(), dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    fake, real = rng.normal(size=(*batch, n, dims)), 1.2 * rng.normal(size=(*batch, m, dims)) + 0.3
    return fake.astype(dtype), real.astype(dtype)


def dense(fake, real, negative, sigma, a=None, b=None, powers=(0.5, 0.5), skip_self=True):
    """One bandwidth, by loops over pairs of targets as in the definition."""
    a, b = np.ones(len(real)) if a is None else a, np.ones(len(negative)) if b is None else b
    targets, weights = np.concatenate([real, negative]), np.concatenate([a, b])
    k = np.exp(-((fake[:, None] - targets[None]) ** 2).sum(-1) / (2 * sigma**2))
    if skip_self:
        for i in range(len(fake)):
            k[i, len(real) + i] = 0
    rows, columns = (k * weights).sum(1), k.sum(0)
    columns[columns == 0] = 1
    field = np.zeros_like(fake)
    for i in range(len(fake)):
        if powers is None:
            for part, sign in ((slice(0, len(real)), 1), (slice(len(real), None), -1)):
                share = k[i, part] * weights[part]
                field[i] += sign * (share / share.sum()) @ targets[part]
            continue
        share = weights * k[i] / (rows[i] ** powers[0] * columns ** powers[1])
        for j in range(len(real)):
            for q in range(len(real), len(targets)):
                field[i] += share[j] * share[q] * (targets[j] - targets[q])
    return field


def close(found, truth, rtol):
    found, truth = np.asarray(found, np.float64), np.asarray(truth, np.float64)
    assert found.shape == truth.shape
    # fields may lie below the range of float32
    assert np.linalg.norm(found - truth) <= rtol * np.linalg.norm(truth) + 1e-37


@pytest.mark.parametrize("powers", POWERS)
@pytest.mark.parametrize("backend", [None, "reference"])
def test_field_is_that_of_loops(powers, backend, library, numpy_of):
    fake, real = samples()
    rng = np.random.default_rng(1)
    negative = np.concatenate([fake, rng.normal(size=(4, 3))])
    a, b = rng.uniform(0.2, 2, 13), rng.uniform(0.2, 2, 13)
    truth = dense(fake, real, fake, 0.8, powers=powers)
    options = {"sigma": 0.8, "powers": powers, "backend": backend}
    close(numpy_of(gkfast.drift(library(fake), library(real), **options)), truth, 1e-12)
    truth = dense(fake, real, negative, 0.8, a, b, powers)
    weighted = {"real_weights": library(a), "negative_weights": library(b)}
    arrays = library(fake), library(real), library(negative)
    close(numpy_of(gkfast.drift(*arrays, **options, **weighted, skip_self=True)), truth, 1e-12)
    truth = dense(fake, real, negative, 0.8, a, b, powers, skip_self=False)
    close(numpy_of(gkfast.drift(*arrays, **options, **weighted)), truth, 1e-12)


@pytest.mark.parametrize("powers", POWERS)
@pytest.mark.parametrize("skip", [False, True])
def test_other_operators_give_the_same_field(powers, skip):
    if powers is None:
        pytest.skip("is made of scores")
    fake, real = map(torch.from_numpy, samples(batch=(2,)))
    a, b = torch.rand(2, 13, dtype=torch.float64), torch.rand(2, 9, dtype=torch.float64)
    a[0, 3] = 0
    truth = gkfast.drift(
        fake, real, fake, sigma=0.4, real_weights=a, negative_weights=b, skip_self=skip, powers=powers
    )
    for sigma in ((0.4,), torch.full((2, 1), 0.4)):
        found = by_operators(fake, real, fake, sigma, a, b, powers=powers, skip_diagonal=skip, precision="highest")
        close(found, truth, 1e-6 if isinstance(sigma, torch.Tensor) else 1e-12)


SHAPES = [(1, 1, 1), (2, 1, 2), (7, 300, 5), (65, 33, 33), (130, 257, 64), (300, 40, 2), (31, 64, 100)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("exponent", [0.1, 3.0, 60.0, 3000.0])
@pytest.mark.parametrize("powers", [(0.5, 0.5), (1.0, 0.0), None])
def test_float32_keeps_the_contract(shape, exponent, powers, library, numpy_of):
    n, m, dims = shape
    fake, real = samples(n, m, dims, dtype=np.float32)
    if powers is None and n == 1:
        return
    sigma = (dims / exponent) ** 0.5
    exact = gkfast.drift(fake.astype(float), real.astype(float), sigma=sigma, powers=powers, backend="reference")
    found = numpy_of(gkfast.drift(library(fake), library(real), sigma=sigma, powers=powers))
    assert found.dtype == np.float32
    close(found, exact, 1e-5)
    wide = gkfast.drift(fake.astype(float), real.astype(float), sigma=sigma, powers=powers)
    close(wide, exact, 1e-10)


@pytest.fixture
def sweeps(monkeypatch):
    """Small problems are given to the sweeps of large ones."""
    module = importlib.import_module("gkfast.kernels.cpu.drift")
    return lambda: monkeypatch.setattr(module, "applies", lambda *_: False)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("skip", [False, True])
def test_small_problems_have_the_field_of_large_ones(shape, dtype, skip, sweeps):
    fake, real = samples(*shape, batch=(2,), dtype=dtype)
    own = np.concatenate([fake, real[:, :1]], 1)
    weights = np.random.default_rng(3).uniform(0.1, 3, real.shape[:-1]).astype(dtype)
    options = {"sigma": (shape[2] / 3) ** 0.5, "real_weights": weights, "skip_self": skip}
    calls = [dict(options, powers=powers) for powers in POWERS[:4]]
    found = [gkfast.drift(fake, real, own, **call) for call in calls]
    sweeps()
    for field, call in zip(found, calls, strict=True):
        close(field, gkfast.drift(fake, real, own, **call), 2e-6 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", ["one side far", "a row far", "uneven weights", "huge", "tiny", "one near pair"])
def test_what_small_problems_leave_to_sweeps(case, dtype, monkeypatch):
    module, fields = importlib.import_module("gkfast.kernels.cpu.drift"), []
    small = module.small_drift
    monkeypatch.setattr(module, "small_drift", lambda *a: fields.append(small(*a)) or fields[-1])
    fake, real = samples(20, 30, 70, dtype=dtype)
    sigma, weights = 4.0, np.ones(30, dtype)
    if case == "one side far":
        real += 8
    elif case == "a row far":
        fake[3] += 9
    elif case == "uneven weights":
        weights[::2] = 1e-12
    elif case == "one near pair":
        fake[7] = real[5] * dtype(1 + 1e-6)
    else:
        factor = dtype(10.0 ** ((1 if case == "huge" else -1) * (30 if dtype == np.float32 else 140)))
        fake, real, sigma = fake * factor, real * factor, sigma * float(factor)
    exact = gkfast.drift(
        *(a.astype(float) for a in (fake, real)), real_weights=weights.astype(float), sigma=sigma, backend="reference"
    )
    found = gkfast.drift(fake, real, sigma=sigma, real_weights=weights)
    close(found, exact, 1e-5 if dtype == np.float32 else 1e-11)
    assert (fields[0] is None) == (case != "one near pair")


@pytest.mark.parametrize("hostile", ["far from the origin", "two clusters", "duplicates", "an outlier"])
@pytest.mark.parametrize(("powers", "by_sweeps"), [((0.5, 0.5), False), ((0.5, 0.5), True), (None, False)])
def test_hostile_data(hostile, powers, by_sweeps, sweeps):
    if by_sweeps:
        sweeps()
    fake, real = samples(60, 80, 8, dtype=np.float32)
    if hostile == "far from the origin":
        fake, real = fake + np.float32(1000), real + np.float32(1000)
    elif hostile == "two clusters":
        fake[::2] += 100
        real[::2] += 100
    elif hostile == "duplicates":
        fake[:30], real[:40] = fake[0], real[0]
    else:
        real[3], fake[5] = 400, -3000
    exact = gkfast.drift(fake.astype(float), real.astype(float), sigma=1.0, powers=powers, backend="reference")
    close(gkfast.drift(fake, real, sigma=1.0, powers=powers), exact, 1e-5)


def test_batches_bandwidths_and_weights_are_their_parts(library, numpy_of):
    fake, real = samples(batch=(2, 3))
    found = gkfast.drift(library(fake), library(real[0, :1]), sigma=[0.5, 1.0], weights=[2.0, -0.5])
    parts = [
        gkfast.drift(library(fake), library(np.broadcast_to(real[0, :1], (2, 3, 13, 3)).copy()), sigma=s)
        for s in (0.5, 1.0)
    ]
    close(numpy_of(found), 2 * numpy_of(parts[0]) - 0.5 * numpy_of(parts[1]), 1e-12)
    one = gkfast.drift(library(fake[1, 2]), library(real[0, 0]), sigma=0.5)
    close(numpy_of(parts[0])[1, 2], numpy_of(one), 1e-13)
    each = gkfast.drift(library(fake[0]), library(real[0]), sigma=library(np.array([[0.5], [1.0], [2.0]])))
    for k, s in enumerate((0.5, 1.0, 2.0)):
        close(numpy_of(each)[k], gkfast.drift(fake[0, k], real[0, k], sigma=s), 1e-13)


def test_weights_count_rows():
    fake, real = samples()
    twice = np.concatenate([real, real[:4], np.full((1, 3), np.nan)])
    weights = np.ones(18)
    weights[17] = 0
    counted = np.ones(13)
    counted[:4] = 2
    for powers in POWERS:
        options = {"sigma": 0.7, "powers": powers}
        found = gkfast.drift(fake, real, real_weights=counted, **options)
        close(found, gkfast.drift(fake, twice, real_weights=weights, **options), 1e-12)


def test_unit_rms():
    fake, real = samples(batch=(2,))
    found = gkfast.drift(fake, real, sigma=[0.5, 1.0], weights=[1.0, 0.0], unit_rms=True)
    np.testing.assert_allclose((found**2).mean((1, 2)), 1, rtol=1e-12)
    alone = gkfast.drift(fake[:, :1], real, sigma=1.0, unit_rms=True)
    assert (alone == 0).all()


def test_equal_samples_rest():
    fake, _ = samples(40)
    found = gkfast.drift(fake, fake[::-1].copy(), fake, sigma=1.0)
    assert abs(found).max() < 1e-14


def test_awkward_input(library, numpy_of):
    fake, real = samples()
    for empty in (gkfast.drift(library(fake[:0]), library(real), sigma=1.0),):
        assert tuple(empty.shape) == (0, 3)
    assert tuple(gkfast.drift(library(fake[:, :0]), library(real[:, :0]), sigma=1.0).shape) == (9, 0)
    same = np.ones((5, 3))
    assert (numpy_of(gkfast.drift(library(same), library(same), sigma=1.0)) == 0).all()
    assert (numpy_of(gkfast.drift(library(fake[:1]), library(real), sigma=1.0)) == 0).all()
    fake[2, 1] = np.nan
    assert np.isnan(numpy_of(gkfast.drift(library(fake), library(real), sigma=1.0))[2]).all()


@pytest.mark.parametrize("shape", [(500, 700, 40), (60, 70, 40, (5,))])
def test_same_bits_for_any_number_of_threads(threads, shape):
    fake, real = samples(*shape, dtype=np.float32)
    found = []
    for count in (1, 2):
        threads(count)
        found += [gkfast.drift(fake, real, sigma=s) for s in (2.0, 0.5)]
    assert (found[0] == found[2]).all()
    assert (found[1] == found[3]).all()


def test_no_gradient_and_dtypes():
    fake, real = map(torch.from_numpy, samples(dtype=np.float32))
    sigma = torch.tensor([1.0], requires_grad=True)
    for powers in POWERS:
        assert not gkfast.drift(fake.requires_grad_(), real, sigma=sigma, powers=powers).requires_grad
    half = gkfast.drift(fake.bfloat16(), real.bfloat16(), sigma=1.0)
    assert half.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert gkfast.drift(fake.bfloat16(), real, sigma=1.0).dtype == torch.float32


@pytest.mark.slow
def test_vmap_and_compilation():
    fake, real = map(torch.from_numpy, samples(batch=(2,)))
    for powers in ((0.5, 0.5), None):

        def call(x, y, powers=powers):
            return gkfast.drift(x, y, sigma=0.8, powers=powers)

        truth = call(fake, real)
        close(torch.func.vmap(call)(fake, real), truth, 1e-12)
        close(torch.compile(call, fullgraph=True, backend="aot_eager")(fake, real), truth, 1e-12)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"real": np.zeros((5, 4))}, r"real must have as many coordinates as fake \(3\), got 4"),
        ({"real": np.zeros((0, 3))}, "real must have at least 1 row for a drifting field, got 0; pass some"),
        ({"real": np.zeros((5, 3), np.float32)}, "real must have the dtype of fake"),
        ({"negative": np.zeros((4, 3)), "skip_self": True}, r"negative must have a row for each of fake \(9\)"),
        (
            {"fake": np.zeros((1, 3)), "powers": None},
            "negative must have at least 2 rows for a field with powers=None",
        ),
        ({"powers": (0.5, 0.6)}, r"powers must be None or two numbers .* got \(0.5, 0.6\)"),
        ({"powers": (-0.1, 0.6)}, "powers must be None or two numbers"),
        ({"powers": 0.5}, "powers must be None or two numbers"),
        ({"sigma": 0.0}, "sigma must be positive and finite, got 0.0"),
        ({"real_weights": np.ones(4)}, r"real_weights must have one entry per row of real \(..., 13\)"),
        ({"negative_weights": -np.ones(9)}, "negative_weights must be finite and not negative"),
    ],
)
def test_bad_input_is_refused_by_name(change, match):
    fake, real = samples()
    arguments = {"fake": fake, "real": real, "sigma": 1.0, **change}
    with pytest.raises(ValueError, match=match):
        gkfast.drift(**arguments)


@pytest.mark.parametrize("name", ["skip_self", "unit_rms"])
def test_switches_are_bools(name):
    fake, real = samples()
    with pytest.raises(TypeError, match=f"{name} must be True or False, got 1"):
        gkfast.drift(fake, real, sigma=1.0, **{name: 1})


def test_loss_leads_along_the_field():
    fake, real = map(torch.from_numpy, samples(dtype=np.float32))
    fake.requires_grad_()
    for options in ({}, {"powers": None}, {"unit_rms": True}):
        loss = gkfast.nn.DriftLoss([0.5, 1.0], **options)
        field = gkfast.drift(fake, real, sigma=[0.5, 1.0], **options)
        value = loss(fake, real)
        torch.testing.assert_close(value, field.square().mean())
        (gradient,) = torch.autograd.grad(value, fake)
        torch.testing.assert_close(gradient, -2 * field / field.numel(), rtol=1e-4, atol=1e-7)
    half = fake.detach().bfloat16().requires_grad_()
    gkfast.nn.DriftLoss("median")(half, real.bfloat16()).backward()
    assert half.grad.isfinite().all()


def test_samples_reach_the_data():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(200, 2, generator=generator) + 3
    fake = torch.nn.Parameter(torch.randn(200, 2, generator=generator))
    before = gkfast.mmd2(fake.detach(), real, 1.0)
    loss, optimiser = gkfast.nn.DriftLoss(1.0, powers=None), torch.optim.SGD([fake], lr=100)
    for _ in range(60):
        optimiser.zero_grad()
        loss(fake, real).backward()
        optimiser.step()
    assert gkfast.mmd2(fake.detach(), real, 1.0) < 0.02 * before


def test_loss_refuses_bad_input():
    with pytest.raises(ValueError, match="powers must be None or two numbers"):
        gkfast.nn.DriftLoss(1.0, powers=(1, 1))
    with pytest.raises(ValueError, match="real must have one sample per row"):
        gkfast.nn.DriftLoss(1.0)(torch.zeros(3, 2), torch.zeros(1, 3, 2))
