"""Every derivative of every operation: both modes, both orders, batched by vmap, and through torch.compile."""

import importlib

import pytest
import torch
from functions import FUNCTIONS
from torch.autograd import gradcheck, gradgradcheck

import gkfast
import gkfast.ops

D = torch.float64
# torch loads its own forward-mode formulas by what it deprecates, and up to 2.8 so does its gradcheck
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated",
    "ignore:Please use `torch.vmap` instead of `torch._vmap_internals.vmap`:FutureWarning",
    # inductor of torch 2.6 about its own settings
    "ignore:Skipping serialization of skipfiles_inline_module_allowlist",
)


@pytest.fixture
def leaf():
    torch.manual_seed(3)

    def make(*shape, positive=False):
        values = torch.rand(*shape, dtype=D) + 0.2 if positive else torch.randn(*shape, dtype=D)
        return values.requires_grad_()

    return make


def inputs(leaf, dims=3):
    return {
        "x": leaf(2, 4, dims),
        "y": leaf(2, 5, dims),
        "z": leaf(5, dims),
        "v": leaf(2, 5, 2),
        # (2,) would be the batch's shape as well
        "sigma": torch.tensor([[0.7, 1.5]], dtype=D, requires_grad=True),
        "weights": torch.tensor([[0.6, 0.3]], dtype=D, requires_grad=True),
        "a": leaf(2, 4, positive=True),
        "b": leaf(2, 5, positive=True),
    }


# the arguments of each function that can carry a gradient
ARGUMENTS = {
    "rbf": "x y sigma weights",
    "rbf of x with itself": "x sigma weights",
    "rbf_matmul": "x y v sigma weights",
    "rbf_matmul of x with itself": "x sigma",
    "log_density": "x y sigma weights b",
    "log_density, leave one out": "x sigma weights",
    "log_density, by bandwidth": "x y sigma b",
    "score": "x y sigma weights",
    "kernel_means": "x y sigma weights a",
    "mmd2": "x y sigma weights",
    "mmd2, weighted": "x y a b sigma",
    "mmd2, by bandwidth": "x y sigma weights a",
    "mmd2, biased": "x y a sigma",
    "mmd2, u_statistic": "x y sigma",
    "mmd2, linear": "x y sigma",
    "mmd2_and_variance": "x y sigma weights",
    "witness": "x y z sigma a",
}


def positional(name):
    """The function of the tensors in ARGUMENTS alone; y is None where a function takes one set of points."""
    names = ARGUMENTS[name].split()

    def call(*tensors):
        return FUNCTIONS[name](**{"y": None, **dict(zip(names, tensors, strict=True))})

    return call


def tensors_of(name, values):
    names = ARGUMENTS[name].split()
    # one set of points is one for all problems
    return tuple(values["z" if n == "x" and "y" not in names else n] for n in names)


@pytest.fixture(params=ARGUMENTS)
def operation(request, leaf):
    """The function of its tensors alone, and the tensors."""
    return positional(request.param), tensors_of(request.param, inputs(leaf))


def test_gradcheck(operation):
    function, tensors = operation
    assert gradcheck(function, tensors, check_forward_ad=True, check_batched_grad=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARGUMENTS)
def test_gradgradcheck(leaf, name):
    # two coordinates: the time is quadratic in the number of entries
    tensors = tensors_of(name, inputs(leaf, dims=2))
    assert gradgradcheck(positional(name), tensors, check_fwd_over_rev=True, check_batched_grad=True)


def test_func_transforms_compose(operation):
    function, tensors = operation
    points, others = tensors[0].detach(), [t.detach() for t in tensors[1:]]

    def loss(points):
        return function(points, *others).square().sum()

    truth = torch.autograd.functional.hessian(loss, points)
    for outer in (torch.func.jacfwd, torch.func.jacrev):
        for inner in (torch.func.jacfwd, torch.func.jacrev):
            torch.testing.assert_close(outer(inner(loss))(points), truth, rtol=1e-9, atol=1e-9)
    _, change = torch.func.jvp(loss, (points,), (torch.ones_like(points),))
    torch.testing.assert_close(change, torch.func.grad(loss)(points).sum())


def test_vmap_is_the_loop(operation):
    function, tensors = operation
    factors = (1.0, 1.1, 0.9)
    stacked = [torch.stack([t.detach() * f for f in factors]) for t in tensors]
    loop = torch.stack([function(*(t.detach() * f for t in tensors)) for f in factors])
    torch.testing.assert_close(torch.func.vmap(function)(*stacked), loop, rtol=1e-13, atol=1e-13)
    # each argument alone, along its last axis; the others are shared
    for k, batched in enumerate(stacked):
        dims = [None] * len(tensors)
        dims[k] = -1
        mixed = [t.detach() for t in tensors]
        mixed[k] = batched.movedim(0, -1)
        loop = torch.stack([function(*mixed[:k], part, *mixed[k + 1 :]) for part in batched])
        torch.testing.assert_close(torch.func.vmap(function, tuple(dims))(*mixed), loop, rtol=1e-13, atol=1e-13)


def test_gradients_of_each_sample(operation):
    function, tensors = operation
    factors = (1.0, 1.1)
    stacked = [torch.stack([t.detach() * f for f in factors]) for t in tensors]
    every = tuple(range(len(tensors)))
    grad = torch.func.grad(lambda *t: function(*t).square().sum(), argnums=every)
    batched = torch.func.vmap(grad)(*stacked)
    for k, f in enumerate(factors):
        alone = grad(*(t.detach() * f for t in tensors))
        torch.testing.assert_close([b[k] for b in batched], list(alone), rtol=1e-12, atol=1e-12)


def test_third_derivatives(leaf):
    x, y = leaf(3, 2), leaf(4, 2)

    def second(x):
        (g,) = torch.autograd.grad(gkfast.mmd2(x, y, [0.7, 1.4]), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), x, create_graph=True)[0]

    assert gradcheck(second, (x,))


@pytest.mark.slow
def test_compiled_without_graph_breaks(operation):
    function, tensors = operation
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), function(*tensors), rtol=0, atol=0)
    ours = torch.autograd.grad(compiled(*tensors).square().sum(), tensors)
    plain = torch.autograd.grad(function(*tensors).square().sum(), tensors)
    torch.testing.assert_close(ours, plain, rtol=1e-13, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize(
    "transform",
    [
        torch.func.vmap,
        torch.func.hessian,
        lambda f: torch.func.grad(lambda *t: f(*t).sum()),
        lambda f: torch.func.vmap(torch.func.grad(f)),
        lambda f: lambda x, y: torch.func.jvp(lambda x: f(x, y), (x,), (x,))[1],
    ],
    ids=["vmap", "hessian", "grad", "vmap(grad)", "jvp"],
)
@pytest.mark.parametrize("name", ["rbf", "rbf_matmul", "log_density", "mmd2"])
def test_func_transforms_compile(leaf, name, transform):
    torch._dynamo.reset()
    function = FUNCTIONS[name]
    s, w = torch.tensor([0.7, 1.5], dtype=D), torch.tensor([0.6, 0.3], dtype=D)
    x, y = leaf(3, 4, 2).detach(), leaf(3, 5, 2).detach()

    def total(x, y):
        return function(x, y, s, w, b=y[..., 0].square()).sum((-1, -2)[: 2 if "rbf" in name else 1])

    if name == "mmd2":
        total = lambda x, y: function(x, y, s, w)  # noqa: E731
    if transform is torch.func.hessian:
        total = lambda x, y, f=total: f(x, y).sum()  # noqa: E731
    changed = transform(total)
    compiled = torch.compile(changed, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y), changed(x, y), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
# inductor itself imports torch.jit.script_method, which torch 2.13 deprecates
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_compiled_by_inductor(leaf):
    torch._dynamo.reset()
    x, y = leaf(8, 3), leaf(9, 3)

    def loss(x, y):
        return gkfast.mmd2(torch.tanh(x), y, [0.5, 1.0]) + gkfast.rbf(x, y).mean()

    value = torch.compile(loss, fullgraph=True)(x, y)
    ours = torch.autograd.grad(value, (x, y))
    torch.testing.assert_close(value, loss(x, y))
    torch.testing.assert_close(ours, torch.autograd.grad(loss(x, y), (x, y)))


@pytest.mark.slow
# torch 2.15 looks at the gradients of copies that it makes itself
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_opcheck(leaf):
    t = inputs(leaf)
    x, y, a, b = (t[k] for k in ("x", "y", "a", "b"))
    s, w = (t[k].detach().expand(2, 2).clone().requires_grad_() for k in ("sigma", "weights"))
    mixed = torch.tensor([[0.0, 1.0]], dtype=D).expand(2, 2).clone()
    sums, wants = {"drop": 1, "less_baselines": True}, {"wants": [True] * 6}
    module = importlib.import_module("gkfast.ops.kernel_sums")
    points, density = (x, y, a, b, s, w), {"leave_one_out": False, "value_only": False}
    v, out = t["v"], torch.empty(2, 4, 5, dtype=D)
    everything = [
        (gkfast.ops.rbf, (x, y, s, w), {}),
        (gkfast.ops.rbf_out, (x.detach(), y.detach(), s.detach(), w.detach(), out), {}),
        (gkfast.ops.rbf_backward, (leaf(2, 4, 5), x, y, s, w), {"wants": [True] * 4}),
        (gkfast.ops.rbf_matmul, (x, y, v, s, w, None, mixed), {"skip_diagonal": False}),
        (
            gkfast.ops.rbf_matmul_backward,
            (leaf(2, 4, 2), x, y, v, s, w, None, mixed),
            {"skip_diagonal": False, "wants": [True] * 5},
        ),
        (gkfast.ops.log_density, (x, y, s, w.detach().log(), b.detach().requires_grad_()), density),
        (gkfast.ops.log_density_by_bandwidth, (x, y, s, b.detach().requires_grad_()), density),
        (gkfast.ops.mmd2_by_bandwidth, (leaf(2, 3), x, y, a, b, s), {"drop": 1}),
        (module.sums_backward, (leaf(2, 3), *points), {**sums, **wants}),
        (module._kernel_sums, (leaf(2, 2, 3), *points), {**sums, **wants}),
        (module._mmd2, (leaf(2, 3), *points), {**sums, **wants}),
        (gkfast.ops.kernel_sums_with_gradients, (leaf(2, 3), *points), {**sums, **wants}),
    ]
    # numbers in place of bandwidths, and no batch
    everything += [
        (gkfast.ops.rbf, (x[0], None, (0.7, 1.5), (1.0, 0.5)), {}),
        (gkfast.ops.rbf_matmul, (x[0], y[0], v[0], (0.7, 1.5), (1.0, 0.5)), {"skip_diagonal": False}),
        (gkfast.ops.mmd2_by_bandwidth, ((0.1, 0.2, -0.3), x[0], y[0], None, None, (0.7, 1.5)), {"drop": 1}),
        (
            module._mmd2,
            ((0.1, 0.2, -0.3), x[0], y[0], None, None, (0.7,), (1.0,)),
            {**sums, "wants": [True, True] + [False] * 4},
        ),
    ]
    defined = {
        str(name).removeprefix("gkfast::") for name in torch._C._dispatch_get_all_op_names() if "gkfast" in name
    }
    # but for those that tests/test_operator.py adds to this process
    assert {n for n in defined if not n.startswith("paired")} == {operator.name for operator, *_ in everything}
    for operator, arguments, options in everything:
        inputs_of = operator.flat(arguments, {**options, "precision": "high"})
        registered = getattr(torch.ops.gkfast, operator.name).default
        assert set(torch.library.opcheck(registered, inputs_of).values()) == {"SUCCESS"}, operator.name


def test_only_the_wanted_gradients_are_computed(leaf, monkeypatch):
    from gkfast.kernels import cpu

    seen = []
    whole = cpu.kernel_sums_with_gradients
    monkeypatch.setattr(
        cpu,
        "kernel_sums_with_gradients",
        lambda *a, wants, **k: (seen.append(tuple(wants)), whole(*a, wants=wants, **k))[1],
    )
    x, y = leaf(6, 2), leaf(7, 2)
    gkfast.mmd2(x, y.detach(), 1.0).backward()
    # one call: backward only scales what the forward sweep has computed
    assert seen == [(True, False, False, False, False, False)]
    with torch.no_grad():
        gkfast.mmd2(x, y, 1.0)
    assert seen[1:] == [(False,) * 6]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "rbf_matmul",
        "log_density, leave one out",
        "log_density, by bandwidth",
        "score",
        "mmd2, weighted",
        "mmd2, by bandwidth",
        "mmd2, u_statistic",
        "kernel_means",
    ],
)
def test_second_derivatives_by_tiles(leaf, monkeypatch, name):
    import importlib

    tensors = tensors_of(name, inputs(leaf))
    directions = tuple(torch.cos(torch.arange(t.numel(), dtype=D)).reshape(t.shape) for t in tensors)

    def total(*tensors):
        return positional(name)(*tensors).sin().sum()

    def second_order():
        reverse = torch.autograd.functional.vhp(total, tensors, directions)[1]
        forward = torch.func.jvp(torch.func.grad(total, argnums=tuple(range(len(tensors)))), tensors, directions)[1]
        return *reverse, *forward

    whole = second_order()
    # tiles and blocks of coordinates, smaller than the data; tests above differentiate whole ones numerically
    module = importlib.import_module("gkfast.ops.tiling")
    for tile in (2, 3):
        monkeypatch.setattr(module, "_TILE", tile)
        monkeypatch.setattr(module, "_COLUMNS", 4)
        for ours, theirs in zip(second_order(), whole, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_data_weight_of_zero_has_its_derivative(leaf, backend):
    x, y = leaf(3, 2), leaf(4, 2)
    weights = torch.tensor([0.0, 1.0, 2.0, 0.5], dtype=D, requires_grad=True)

    def function(weights):
        return gkfast.log_density(x, y, 0.8, data_weights=weights, backend=backend).sum()

    (g,) = torch.autograd.grad(function(weights), weights)
    k = gkfast.rbf(x, y, 0.8).detach()
    share = k / (k @ weights.detach())[:, None]
    torch.testing.assert_close(g, (share - 1 / weights.detach().sum()).sum(0))
    # the weight may even be all that keeps a near row out
    near = torch.cat([x[:1].detach(), y[1:].detach() + 30])
    (g,) = torch.autograd.grad(
        gkfast.log_density(x[:1], near, 0.8, data_weights=weights, backend=backend).sum(), weights
    )
    assert g[1:].isfinite().all()
    assert g[0] > 1e100


@pytest.mark.parametrize("scale", [1e20, 1e-25])
def test_only_ratios_of_sample_weights_matter(leaf, scale):
    x, y, a = leaf(6, 2).detach().float().requires_grad_(), leaf(5, 2).detach().float(), torch.rand(6)
    found = [
        torch.autograd.grad(function(x, y, a * c), x)[0]
        for function in (
            lambda x, y, a: gkfast.mmd2(x, y, 1.0, x_weights=a),
            lambda x, y, a: gkfast.witness(y, x, y, 1.0, x_weights=a).square().sum(),
        )
        for c in (1, scale)
    ]
    for one, other in (found[:2], found[2:]):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=0)
        assert one.norm() > 0


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_second_derivatives_of_float32_at_any_magnitude(leaf, scale):
    found = []
    for c, dtype in ((1.0, D), (scale, torch.float32)):
        x = (torch.tensor([[0.0], [1.0]], dtype=D) * c).to(dtype).requires_grad_()
        (g,) = torch.autograd.grad(gkfast.rbf(x, x.detach() + 0.5 * c, c).sum() * c, x, create_graph=True)
        found.append(torch.autograd.grad(g.sum() * c, x)[0].double())
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=0)


def test_hessian_at_coincident_points():
    # d2/dx2 exp(-|x - y|^2 / (2 sigma^2)) at x = y is -1 / sigma^2; distances through a square root lose it
    sigma, n, dims = 0.5, 4, 3
    x = torch.ones(n, dims, dtype=D, requires_grad=True)
    y = torch.ones(n, dims, dtype=D)
    (g,) = torch.autograd.grad(gkfast.rbf(x, y, sigma).sum(), x, create_graph=True)
    (h,) = torch.autograd.grad(g.sum(), x)
    torch.testing.assert_close(h, torch.full_like(h, -n / sigma**2))


def train_with_gradient_penalty(rbf):
    torch.manual_seed(0)
    critic = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
    optimiser = torch.optim.Adam(critic.parameters(), lr=1e-2)
    real, fake = torch.randn(32, 2), torch.randn(32, 2) + 1
    penalties = []
    for _ in range(80):
        points = torch.cat([real, fake]).requires_grad_()
        f_real, f_fake, f = critic(real), critic(fake), critic(points)
        witness = rbf(f, f_real).mean(1) - rbf(f, f_fake).mean(1)
        (slope,) = torch.autograd.grad(witness.sum(), points, create_graph=True)
        penalty = (slope.norm(dim=1) - 1).square().mean()
        optimiser.zero_grad()
        penalty.backward()
        optimiser.step()
        penalties.append(penalty.item())
    return penalties


def test_gradient_penalty_on_a_witness_trains_as_with_plain_torch():
    def plain(p, q):
        return torch.exp(-(p[:, None] - q[None]).square().sum(-1) / 2)

    penalties = train_with_gradient_penalty(gkfast.rbf)
    assert penalties == pytest.approx(train_with_gradient_penalty(plain), rel=1e-4)
    assert penalties[-1] < 0.7 * penalties[0]


@pytest.mark.slow
def test_compiled_with_a_changing_number_for_sigma(leaf):
    torch._dynamo.reset()
    x, y = leaf(8, 3), leaf(9, 3)
    compiled = torch.compile(lambda s: gkfast.mmd2(x, y, [s, 2 * s]), fullgraph=True, backend="aot_eager")
    for sigma in (0.5, 0.75, 1.5):
        torch.testing.assert_close(compiled(sigma), gkfast.mmd2(x, y, [sigma, 2 * sigma]), rtol=0, atol=0)


def test_gradients_flow_through_shared_tensors(leaf):
    # y is computed from x: the second derivative must not count that path twice
    x = leaf(4, 2)

    def loss(x):
        return gkfast.mmd2(x, torch.sin(2 * x), 0.8) + gkfast.rbf_matmul(x, x.square(), x[:, 0], 1.2).sum()

    assert gradgradcheck(loss, (x,))


def test_double_backward_of_float32_is_that_of_float64(leaf):
    x, y = leaf(30, 5), leaf(40, 5)

    def second(x, y):
        (g,) = torch.autograd.grad(gkfast.mmd2(x, y, [1.0, 2.0]), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), (x, y))

    narrow = second(*(t.detach().float().requires_grad_() for t in (x, y)))
    for ours, truth in zip(narrow, second(x, y), strict=True):
        assert (ours - truth).norm() <= 1e-4 * truth.norm()


def test_second_derivatives_without_coordinates(leaf):
    # all points are the same point, so K is constant and linear in its weight
    x, y, v = leaf(1, 4, 0), leaf(1, 5, 0), leaf(1, 5, 2)
    weights = torch.tensor([0.5], dtype=D, requires_grad=True)
    assert gradgradcheck(lambda v, w: gkfast.rbf_matmul(x, y, v, 1.0, weights=w), (v, weights))
    assert gkfast.mmd2(x, y[:, :4], 1.0).item() == 0
