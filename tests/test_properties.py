"""What must hold for every input: invariances, additivity, bounds, in value and gradient, for every operation.

Points are multiples of 1/64 below 8, so that moving them by 4096, or tripling them, rounds nothing in float32 either;
sigma is four times the root of D and more, so that kernel values are neither near 0 nor near 1.
"""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from functions import BASIC, FUNCTIONS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import gkfast

few = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    # the fixture is the table of tolerances: one for all examples is what is wanted
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class Arguments(NamedTuple):
    """Arguments of every operation: points, what K is multiplied with, row weights, bandwidths and their weights."""

    x: Tensor
    y: Tensor
    v: Tensor  # (M, 2), not negative
    a: Tensor  # (N,) positive
    b: Tensor  # (M,)
    sigma: Tensor  # (S,) float64
    weights: Tensor

    def with_gradients(self):
        return Arguments(*(t.clone().requires_grad_() for t in self))


def _of_arguments(name):
    options = {"estimator": "biased"} if name in ("kernel_means", "mmd2") else {}

    def call(p):
        # [None]: as many bandwidths as there are problems could mean one for each
        return FUNCTIONS[name](p.x, p.y, p.sigma[None], p.weights[None], v=p.v, a=p.a, b=p.b, **options)

    return call


OPERATIONS = {name: _of_arguments(name) for name in BASIC}
# how many rows each needs
LEAST = {"rbf": (0, 0), "rbf_matmul": (0, 0), "log_density": (0, 1), "score": (0, 1)}
ROWS = [0, 1, 2, 3, 5, 8, 17, 40]
DIMS = [0, 1, 2, 3, 16, 17, 33, 40]
every_operation = pytest.mark.parametrize("name", OPERATIONS)


@st.composite
def problems(draw, name, rows=ROWS, dims=DIMS, dtypes=(torch.float32, torch.float64)):
    least_n, least_m = LEAST.get(name, (1, 1))
    n = draw(st.sampled_from([r for r in rows if r >= least_n]))
    m = draw(st.sampled_from([r for r in rows if r >= least_m]))
    d, s = draw(st.sampled_from(dims)), draw(st.sampled_from([1, 3]))
    dtype = draw(st.sampled_from(dtypes))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))

    def tensor(array):
        return torch.from_numpy(np.asarray(array)).to(dtype)

    return Arguments(
        tensor(rng.integers(-512, 512, size=(n, d)) / 64),
        tensor(rng.integers(-512, 512, size=(m, d)) / 64),
        tensor(rng.integers(0, 64, size=(m, 2)) / 32),
        tensor(rng.integers(1, 64, size=n) / 32),
        tensor(rng.integers(1, 64, size=m) / 32),
        4 * math.sqrt(max(d, 1)) * torch.tensor([1.0, 1.7, 2.9], dtype=torch.float64)[:s],
        # halves and quarters: their sums are exact
        torch.tensor([0.75, 0.5, 2.0], dtype=torch.float64)[:s],
    )


def values_and_gradients(name, p, moved=lambda p: p):
    """The operation's value at moved(p), and gradients at p of the sum of its squares (of a number: itself)."""
    p = p.with_gradients()
    value = OPERATIONS[name](moved(p))
    loss = value.square().sum() if value.ndim else value
    gradients = torch.autograd.grad(loss, p, materialize_grads=True, allow_unused=True)
    return value.detach(), Arguments(*gradients)


@pytest.fixture
def close(tolerance):
    """close(name, p, ours, truth): two values of an operation agree; both round, so twice the table's tolerance."""

    def check(name, p, ours, truth):
        assert ours.shape == truth.shape
        if not ours.numel():
            return
        dtype, total = _dtype(p), float(p.weights.sum())
        ours, truth = ours.detach().double(), truth.detach().double()
        largest = float(truth.abs().max())
        allowed = {
            "rbf": tolerance("kernel", dtype) * total,
            "rbf_matmul": tolerance("sum", dtype) * largest,
            "log_density": tolerance("density", dtype) * (1 + largest),
            # a pull of one bandwidth is 1 / sigma
            "score": tolerance("gradient", dtype) * (largest + 1 / float(p.sigma.min())),
            "kernel_means": tolerance("sum", dtype) * largest,
            # relative to the means whose difference it is
            "mmd2": tolerance("sum", dtype) * 2 * total,
        }[name]
        assert float((ours - truth).abs().max()) <= 2 * allowed

    return check


@pytest.fixture
def close_gradients(tolerance):
    """close_gradients(p, value, ours, truth): gradients of the squares' sum agree, argument by argument.

    Relative to the norm, or to that of the terms where they cancel: what is differentiated over sigma, spread over
    the rows.
    """

    def check(p, value, ours, truth):
        loss = float(value.double().square().sum()) if value.ndim else 2 * float(p.weights.sum())
        # logarithms of one, and scores on the spot, are zero
        loss = max(loss, 1e-3)
        for one, other, argument in zip(ours, truth, p, strict=True):
            assert one.shape == other.shape == argument.shape
            terms = loss / math.sqrt(max(len(argument), 1)) / (float(p.sigma.min()) if argument.ndim == 2 else 1)
            size = float(other.double().norm()) + terms
            assert float((one.double() - other.double()).norm()) <= 2 * tolerance("gradient", _dtype(p)) * size

    return check


def _dtype(p):
    return str(p.x.dtype).removeprefix("torch.")


@every_operation
@few
@given(data=st.data())
def test_translation(close, close_gradients, name, data):
    p = data.draw(problems(name))
    value, gradients = values_and_gradients(name, p)
    moved, theirs = values_and_gradients(name, p, lambda p: p._replace(x=p.x + 4096, y=p.y + 4096))
    close(name, p, moved, value)
    close_gradients(p, value, theirs, gradients)
    if name == "rbf":
        assert torch.equal(moved, value)


@every_operation
@few
@given(data=st.data(), seed=st.integers(0, 100))
def test_rotation(close, close_gradients, name, data, seed):
    # in float64: rotating float32 points rounds them by more than is allowed
    p = data.draw(problems(name, dtypes=[torch.float64]))
    dims = p.x.shape[1]
    q = torch.linalg.qr(torch.randn(dims, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).Q
    value, gradients = values_and_gradients(name, p)
    turned, theirs = values_and_gradients(name, p, lambda p: p._replace(x=p.x @ q, y=p.y @ q))
    close(name, p, turned @ q.mT if name == "score" else turned, value)
    close_gradients(p, value, theirs, gradients)


@every_operation
@few
@given(data=st.data())
def test_permutation_and_reflection_of_coordinates(close, close_gradients, name, data):
    # a rotation that rounds nothing, so float32 as well
    p = data.draw(problems(name))
    value, gradients = values_and_gradients(name, p)
    turned, theirs = values_and_gradients(name, p, lambda p: p._replace(x=-p.x.flip(1), y=-p.y.flip(1)))
    close(name, p, -turned.flip(1) if name == "score" else turned, value)
    close_gradients(p, value, theirs, gradients)


@every_operation
@few
@given(data=st.data(), factor=st.sampled_from([3.0, 0.25, 8.0]))
def test_joint_scaling(close, name, data, factor):
    p = data.draw(problems(name))
    value = OPERATIONS[name](p)
    scaled = OPERATIONS[name](p._replace(x=p.x * factor, y=p.y * factor, sigma=p.sigma * factor))
    if name == "log_density":
        scaled = scaled.double() + p.x.shape[1] * math.log(factor)
    elif name == "score":
        scaled = scaled * factor
    close(name, p, scaled, value)
    if name == "rbf":
        # powers of two round nothing
        for power in (2.0**-100, 2.0**-8, 2.0**100):
            scaled = OPERATIONS[name](p._replace(x=p.x * power, y=p.y * power, sigma=p.sigma * power))
            assert torch.equal(scaled, value)


@every_operation
@few
@given(data=st.data(), seed=st.integers(0, 100))
def test_permutation_of_rows(close, close_gradients, name, data, seed):
    p = data.draw(problems(name))
    generator = torch.Generator().manual_seed(seed)
    i, j = (torch.randperm(len(rows), generator=generator) for rows in (p.x, p.y))
    value, gradients = values_and_gradients(name, p)
    # the gradients at the rows in their old places
    shuffled, theirs = values_and_gradients(
        name, p, lambda p: Arguments(p.x[i], p.y[j], p.v[j], p.a[i], p.b[j], *p[5:])
    )
    if name == "rbf":
        value = value[i][:, j]
    elif value.ndim and name != "kernel_means":
        value = value[i]
    close(name, p, shuffled, value)
    close_gradients(p, value, theirs, gradients)


@every_operation
@few
@given(data=st.data(), batch=st.integers(1, 3))
def test_a_batch_is_a_loop(close, close_gradients, name, data, batch):
    # one batch of x against one y: its gradients add up
    p = data.draw(problems(name))
    singles = [p._replace(x=p.x / 2**k, a=p.a + k) for k in range(batch)]
    together = p._replace(
        x=torch.stack([q.x for q in singles]), a=torch.stack([q.a for q in singles])
    ).with_gradients()
    value = OPERATIONS[name](together)
    loss = value.square().sum() if value.ndim > 1 else value.sum()
    gradients = Arguments(*torch.autograd.grad(loss, together, materialize_grads=True, allow_unused=True))
    loop = [values_and_gradients(name, q) for q in singles]
    for k, (one, _) in enumerate(loop):
        close(name, p, value[k], one)
    of_shared = {field: sum(getattr(g, field) for _, g in loop) for field in ("y", "v", "b", "sigma", "weights")}
    values = torch.stack([one for one, _ in loop])
    # the number of a single mmd2 counts once each
    values = values if values.ndim > 1 else torch.ones((), dtype=values.dtype)
    for k, (_, g) in enumerate(loop):
        apart = g._replace(**of_shared)
        close_gradients(p, values, gradients._replace(x=gradients.x[k], a=gradients.a[k]), apart)


@few
@given(data=st.data(), cut=st.integers(0, 40))
def test_products_of_parts_add_up(close, data, cut):
    p = data.draw(problems("rbf_matmul"))
    parts = [p._replace(y=p.y[rows], v=p.v[rows]) for rows in (slice(cut), slice(cut, None))]
    close("rbf_matmul", p, sum(map(OPERATIONS["rbf_matmul"], parts)), OPERATIONS["rbf_matmul"](p))


@few
@given(data=st.data(), cut=st.integers(1, 39))
def test_densities_of_parts_add_up(close, data, cut):
    p = data.draw(problems("log_density", rows=[2, 3, 5, 8, 17, 40]))
    cut = 1 + cut % (len(p.y) - 1)
    parts = [p._replace(y=p.y[rows], b=p.b[rows]) for rows in (slice(cut), slice(cut, None))]
    shares = [(part.b.double().sum() / p.b.double().sum()).log() for part in parts]
    logs = [OPERATIONS["log_density"](q).double() + share for q, share in zip(parts, shares, strict=True)]
    whole = torch.logaddexp(*logs)
    close("log_density", p, OPERATIONS["log_density"](p), whole)
    scores = sum(
        (log - whole).exp()[:, None] * OPERATIONS["score"](q).double() for log, q in zip(logs, parts, strict=True)
    )
    close("score", p, OPERATIONS["score"](p), scores)


@few
@given(data=st.data(), cut=st.integers(1, 39))
def test_means_of_parts_add_up(close, data, cut):
    p = data.draw(problems("kernel_means", rows=[2, 3, 5, 8, 17, 40]))
    cut = 1 + cut % (len(p.x) - 1)
    one, other = (p._replace(x=p.x[rows], a=p.a[rows]) for rows in (slice(cut), slice(cut, None)))
    s, t = (float(q.a.sum() / p.a.sum()) for q in (one, other))
    within_one, _, one_y = OPERATIONS["kernel_means"](one)
    within_other, yy, other_y = OPERATIONS["kernel_means"](other)
    between = OPERATIONS["kernel_means"](one._replace(y=other.x, b=other.a))[2]
    xx = s * s * within_one + t * t * within_other + 2 * s * t * between
    close("kernel_means", p, OPERATIONS["kernel_means"](p), torch.stack([xx, yy, s * one_y + t * other_y]))


@few
@given(data=st.data())
def test_product_is_linear_and_its_gradient_at_v_is_the_transposed_product(close, data):
    p = data.draw(problems("rbf_matmul"))
    other = p.v.flip(0) + 1
    both = OPERATIONS["rbf_matmul"](p._replace(v=2 * p.v + 3 * other))
    close("rbf_matmul", p, both, 2 * OPERATIONS["rbf_matmul"](p) + 3 * OPERATIONS["rbf_matmul"](p._replace(v=other)))
    v, g = p.v.clone().requires_grad_(), torch.ones(len(p.x), 2, dtype=p.x.dtype)
    (dv,) = torch.autograd.grad(OPERATIONS["rbf_matmul"](p._replace(v=v)), v, g)
    close("rbf_matmul", p, dv, OPERATIONS["rbf_matmul"](p._replace(x=p.y, y=p.x, v=g)))


@few
@given(data=st.data())
def test_kernel_is_symmetric_bounded_and_one_at_equal_points(data):
    p = data.draw(problems("rbf"))
    k, total = gkfast.rbf(p.x, sigma=p.sigma, weights=p.weights), float(p.weights.sum())
    assert torch.equal(k, k.mT)
    assert (k.diagonal() == total).all()
    assert ((k > 0) & (k <= total)).all()
    # equal rows of two arrays as well
    assert (gkfast.rbf(p.x, p.x.clone(), p.sigma, weights=p.weights).diagonal() == total).all()
    torch.testing.assert_close(
        OPERATIONS["rbf"](p._replace(x=p.y, y=p.x)), OPERATIONS["rbf"](p).mT, rtol=0, atol=2e-6
    )


@few
@given(data=st.data())
def test_mmd2_is_a_squared_distance(close, close_gradients, data):
    p = data.draw(problems("mmd2"))
    value = OPERATIONS["mmd2"](p)
    close("mmd2", p, OPERATIONS["mmd2"](Arguments(p.y, p.x, p.v, p.b, p.a, *p[5:])), value)
    assert float(value) >= -2e-6 * float(p.weights.sum())
    means = OPERATIONS["kernel_means"](p).double()
    close("mmd2", p, value, means[0] + means[1] - 2 * means[2])
    # a sample is at no distance from itself, and at a minimum: every gradient is zero
    same = p._replace(y=p.x, b=p.a, v=p.v.new_ones(len(p.x), 2))
    zero, gradients = values_and_gradients("mmd2", same)
    close("mmd2", p, zero, torch.zeros_like(zero))
    close_gradients(same, zero, gradients, [torch.zeros_like(g) for g in gradients])


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@few
@given(data=st.data(), row=st.integers(0, 40))
def test_a_row_without_weight_is_a_row_left_out(close, close_gradients, estimator, data, row):
    p = data.draw(problems("mmd2", rows=[3, 5, 8, 17, 40]))
    i, j = row % len(p.x), row % len(p.y)

    def mmd2(p):
        return gkfast.mmd2(p.x, p.y, p.sigma, weights=p.weights, estimator=estimator, x_weights=p.a, y_weights=p.b)

    def left_out(t, k):
        return torch.cat([t[:k], t[k + 1 :]])

    a, b = (t.index_fill(0, torch.tensor([k]), 0) for t, k in ((p.a, i), (p.b, j)))
    x, y = (t.clone().requires_grad_() for t in (p.x, p.y))
    value = mmd2(p._replace(x=x, y=y, a=a, b=b))
    dx, dy = torch.autograd.grad(value, (x, y))
    assert (dx[i] == 0).all()
    assert (dy[j] == 0).all()
    fewer = Arguments(
        left_out(p.x, i), left_out(p.y, j), left_out(p.v, j), left_out(p.a, i), left_out(p.b, j), *p[5:]
    )
    close("mmd2", p, value, mmd2(fewer))
    for name in ("log_density", "score"):
        close(name, p, OPERATIONS[name](p._replace(b=b)), OPERATIONS[name](fewer._replace(x=p.x, a=p.a)))


@every_operation
@few
@given(data=st.data())
def test_a_mixture_is_the_sum_of_its_bandwidths(close, name, data):
    p = data.draw(problems(name))
    one = torch.ones(1, dtype=torch.float64)
    singles = [OPERATIONS[name](p._replace(sigma=s[None], weights=one)).double() for s in p.sigma]
    if name in ("log_density", "score"):
        logs = [OPERATIONS["log_density"](p._replace(sigma=s[None], weights=one)).double() for s in p.sigma]
        shares = (p.weights / p.weights.sum()).log()
        terms = torch.stack([log + share for log, share in zip(logs, shares, strict=True)])
        whole = terms.logsumexp(0)
        if name == "score":
            whole = sum((t - whole).exp()[:, None] * one for t, one in zip(terms, singles, strict=True))
    else:
        whole = sum(w * one for w, one in zip(p.weights, singles, strict=True))
    close(name, p, OPERATIONS[name](p), whole)


@pytest.mark.parametrize("name", ["log_density", "score", "kernel_means", "mmd2"])
@few
@given(data=st.data(), seed=st.integers(0, 100))
def test_whole_weights_are_repeated_rows(close, name, data, seed):
    p = data.draw(problems(name))
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(1, 4, rows.shape[:1], generator=generator) for rows in (p.x, p.y))
    if name in ("log_density", "score"):
        a = torch.ones_like(a)
    counted = OPERATIONS[name](p._replace(a=a.to(p.a), b=b.to(p.b)))
    x, y = p.x.repeat_interleave(a, 0), p.y.repeat_interleave(b, 0)
    repeated = p._replace(x=x, y=y, a=x.new_ones(len(x)), b=y.new_ones(len(y)))
    close(name, p, counted, OPERATIONS[name](repeated))


@every_operation
@few
@given(data=st.data())
def test_gradients_obey_the_invariances(tolerance, name, data):
    """What moving, turning and scaling everything says about the derivatives at x, y and sigma (Euler's theorem)."""
    p = data.draw(problems(name))
    value, g = values_and_gradients(name, p)
    dx, dy, dsigma, x, y = (t.double() for t in (g.x, g.y, g.sigma, p.x, p.y))
    allowed = 2 * tolerance("gradient", _dtype(p))
    # moved: the pulls on all rows add up to nothing
    pulls = float(dx.abs().sum() + dy.abs().sum())
    assert (dx.sum(0) + dy.sum(0)).norm().item() <= allowed * pulls
    # turned: so do their moments
    moments = x.mT @ dx + y.mT @ dy
    arms = float((x.abs().mT @ dx.abs()).sum() + (y.abs().mT @ dy.abs()).sum())
    assert (moments - moments.mT).norm().item() <= allowed * arms
    # scaled: K does not change; a log-density loses D for each e-fold, a score its size
    change = {"log_density": -torch.ones_like(value) * p.x.shape[1], "score": -value}.get(
        name, torch.zeros_like(value)
    )
    expected = (2 * value.double() * change.double()).sum() if value.ndim else 0.0
    radial = moments.trace() + (p.sigma * dsigma).sum()
    terms = arms + float((p.sigma * dsigma).abs().sum())
    assert abs(float(radial - expected)) <= allowed * terms


@every_operation
@few
@given(data=st.data())
def test_second_derivatives_obey_the_invariances(name, data):
    """Moving everything changes no gradient; scaling everything by e shrinks those of K by e."""
    p = data.draw(problems(name, rows=[1, 2, 5, 8], dims=[1, 2, 3, 17], dtypes=[torch.float64]))
    x, y, sigma = (t.clone().requires_grad_() for t in (p.x, p.y, p.sigma))
    value = OPERATIONS[name](p._replace(x=x, y=y, sigma=sigma))
    loss = value.square().sum() if value.ndim else value
    gradients = torch.autograd.grad(loss, (x, y, sigma), create_graph=True)

    def along(*directions):
        product = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
        return torch.autograd.grad(product, (x, y, sigma), retain_graph=True)

    dx, dy, _ = gradients
    size = sum(g.detach().norm() for g in gradients) + float(loss.detach()) / float(p.sigma.min())
    # ten times the table's tolerance of float64 gradients: one differentiation more
    for change in along(torch.ones_like(dx), torch.ones_like(dy), torch.zeros_like(sigma)):
        assert change.norm() <= 1e-10 * size
    if name not in ("log_density", "score"):
        for change, g in zip(along(p.x, p.y, p.sigma), gradients, strict=True):
            assert (change + g).norm() <= 1e-10 * size
