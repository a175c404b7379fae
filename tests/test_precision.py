"""`precision` on its way from the public functions to the GPU kernels, and what it leaves alone."""

import importlib
import inspect

import numpy as np
import pytest
import torch
from functions import selected
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import gkfast
from gkfast import notices, ops
from gkfast.arguments import prepare
from gkfast.ops.operator import gpu_kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MODES = ("highest", "high", "medium")
pytestmark = [
    pytest.mark.interpreter,
    # torch loads its own forward-mode formulas by what it deprecates
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),
]


class OnGpu(TorchDispatchMode):
    """Runs every operator by its GPU function, wherever the tensors are."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function.namespace != "gkfast":
            return function(*arguments, **(options or {}))
        with torch.no_grad():
            return gpu_kernels[function._opname](*arguments)


@pytest.fixture
def launched(monkeypatch):
    """(function, dtype of x, precision) of every call of a function of gkfast.kernels.gpu."""
    pytest.importorskip("triton", minversion="3.6", reason="no Triton on this platform")
    from gkfast.kernels import gpu

    calls = []

    def recorded(name, function):
        signature = inspect.signature(function)

        def call(*arguments, **options):
            bound = signature.bind(*arguments, **options)
            bound.apply_defaults()
            calls.append((name, bound.arguments["x"].dtype, bound.arguments["precision"]))
            return function(*arguments, **options)

        return call

    for name in set(gpu.__all__) - {"baselines"}:
        monkeypatch.setattr(gpu, name, recorded(name, getattr(gpu, name)))
    return calls


@pytest.fixture
def torch_setting():
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


def sample(dtype=torch.float32):
    torch.manual_seed(1)
    x, y = torch.randn(5, 3, dtype=dtype), torch.randn(6, 3, dtype=dtype)
    return x.to(DEVICE).requires_grad_(), y.to(DEVICE).requires_grad_()


PRODUCTS = {"rbf_matmul", "rbf_matmul_backward"}
SUMS = {"kernel_sums_with_gradients"}
# what runs on the GPU for the value and the gradients of each function
KERNELS = {
    "rbf": {"rbf", "rbf_backward"},
    "rbf of x with itself": {"rbf", "rbf_backward"},
    "rbf_matmul": PRODUCTS,
    "log_density": {"log_density", "rbf_matmul_backward"},
    "kernel_means": SUMS,
    "mmd2": SUMS,
    "witness": PRODUCTS,
    "mmd2_and_variance": PRODUCTS,
}
# and for the value alone; the gradient of a score is a second derivative
KERNELS_OF_VALUES = {
    "rbf of x and y, out": {"rbf"},
    "score": {"log_density", "rbf_matmul_backward"},
    "mmd_test": {"rbf_matmul", *SUMS},
}
FUNCTIONS = selected(*KERNELS, "score", "mmd_test") | {
    "rbf of x and y, out": lambda x, y, s, **k: gkfast.rbf(x, y, s, out=x.new_empty(len(x), len(y)), **k)
}


@pytest.mark.parametrize("precision", MODES)
@pytest.mark.parametrize("name", KERNELS)
def test_precision_reaches_the_kernels_of_values_and_gradients(name, precision, launched):
    function, expected = FUNCTIONS[name], KERNELS[name]
    points = sample()
    needed = points if "itself" not in name else points[:1]
    with OnGpu():
        value = function(*points, 0.9, precision=precision)
        torch.autograd.grad(value.sum(), needed)
    assert {call[0] for call in launched} == expected
    assert {call[2] for call in launched} == {precision}


@pytest.mark.parametrize("precision", MODES)
@pytest.mark.parametrize("name", KERNELS_OF_VALUES)
def test_precision_reaches_the_kernels_of_values(name, precision, launched):
    expected = KERNELS_OF_VALUES[name]
    with OnGpu(), torch.no_grad():
        FUNCTIONS[name](*sample(), 0.9, precision=precision)
    assert {call[0] for call in launched} == expected
    assert {call[2] for call in launched} == {precision}


@pytest.mark.parametrize("name", KERNELS)
def test_gradients_have_the_precision_and_second_derivatives_the_highest(name, launched):
    function, expected = FUNCTIONS[name], KERNELS[name]
    x, y = sample()
    with OnGpu():
        value = function(x, y, 0.9, precision="medium").square().sum()
        launched_before = len(launched)
        (g,) = torch.autograd.grad(value, x, create_graph=True)
        # MMD^2 computes its gradients again, now differentiably
        assert launched[launched_before:]
        assert {call[2] for call in launched} == {"medium"}
        launched.clear()
        if name == "mmd2_and_variance":
            return
        torch.autograd.grad(g.square().sum(), x)
    # through the square the second derivative goes over the first one of the value
    first = [call for call in launched if call[2] == "medium"]
    assert {call[0] for call in first} <= expected
    others = {call[1:] for call in launched if call not in first}
    assert others == {(torch.float64, "highest")}


@pytest.mark.parametrize("name", ["rbf", "rbf_matmul", "log_density", "mmd2"])
def test_forward_mode_has_the_highest_precision(name, launched):
    function = FUNCTIONS[name]
    x, y = (t.detach() for t in sample())
    with OnGpu():
        torch.func.jvp(lambda x: function(x, y, 0.9, precision="medium"), (x,), (torch.ones_like(x),))
    value, *changes = launched
    assert value[1:] == (torch.float32, "medium")
    assert changes
    assert {call[1:] for call in changes} == {(torch.float64, "highest")}


@pytest.mark.parametrize("name", ["rbf", "rbf_matmul", "log_density", "mmd2"])
def test_precision_reaches_the_kernels_under_vmap(name, launched):
    function, expected = FUNCTIONS[name], KERNELS[name]
    x, y = (torch.stack([t.detach(), 2 * t.detach()]) for t in sample())
    gradient = torch.func.grad(lambda x, y: function(x, y, 0.9, precision="high").sum())
    with OnGpu():
        torch.func.vmap(gradient)(x, y)
        # only v differs: more columns
        torch.func.vmap(lambda v: gkfast.rbf_matmul(x[0], y[0], v, 0.9, precision="high"))(y)
    assert {call[0] for call in launched} == expected | {"rbf_matmul"}
    assert {call[2] for call in launched} == {"high"}


def test_precision_reaches_the_gradients_of_operators(launched):
    x, y = (t.detach()[None] for t in sample())
    one = torch.ones(1, 1, dtype=torch.float64)
    shift = torch.zeros(1, 5, 1, device=DEVICE, requires_grad=True)
    with OnGpu():
        ops.rbf_matmul(x, y, y, one, one, shift, skip_diagonal=False, precision="medium").sum().backward()
    assert [call for call in launched if call[0] == "rbf_matmul"] == [("rbf_matmul", torch.float32, "medium")] * 2
    launched.clear()
    scale, a, b = torch.ones(1, 3, dtype=torch.float64, device=DEVICE), x[..., 0], y[..., 0]
    with OnGpu():
        options = {"drop": 1, "less_baselines": True, "wants": [False] * 6, "precision": "medium"}
        ops.kernel_sums_with_gradients(scale, x.requires_grad_(), y, a, b, one, one, **options)[0].sum().backward()
    assert launched == [("kernel_sums_with_gradients", torch.float32, "medium")] * 2


@pytest.mark.parametrize("name", FUNCTIONS)
def test_precision_changes_no_bit_on_the_cpu(name, torch_setting):
    function = FUNCTIONS[name]
    x, y = (t.detach().cpu() for t in sample())

    def found(**by):
        x1, y1 = x.clone().requires_grad_(name in KERNELS), y.clone()
        value = function(x1, y1, 0.9, **by)
        return value.detach(), torch.autograd.grad(value.sum(), x1)[0] if name in KERNELS else value

    expected = found()
    torch_setting("medium")
    for by in ({}, *({"precision": mode} for mode in (*MODES, "torch"))):
        for ours, theirs in zip(found(**by), expected, strict=True):
            assert torch.equal(ours, theirs)
    if name in ("rbf", "mmd2", "score"):
        expected = function(x.numpy(), y.numpy(), 0.9)
        np.testing.assert_array_equal(function(x.numpy(), y.numpy(), 0.9, precision="medium"), expected)


def precision_of(x, asked=None, backend=None):
    return prepare({"x": x}, 1.0, None, asked, backend).options


@pytest.fixture
def unsaid(monkeypatch):
    """No warning has been given yet in this process."""
    monkeypatch.setattr(notices, "_said", set())


@pytest.mark.parametrize("setting", MODES)
def test_precision_named_torch_follows_it(setting, torch_setting):
    torch_setting(setting)
    with FakeTensorMode():
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert precision_of(torch.zeros(2, 3, device="cuda", dtype=dtype), "torch") == {"precision": setting}
        # float64 is float64
        wide = torch.zeros(2, 3, device="cuda", dtype=torch.float64)
        assert precision_of(wide, "torch") == {"precision": "highest"}


@pytest.mark.parametrize("setting", ["high", "medium"])
def test_precision_of_none_is_the_highest_and_says_so_once(setting, torch_setting, unsaid):
    torch_setting(setting)
    with FakeTensorMode():
        x = torch.zeros(2, 3, device="cuda")
        # nobody is told of what does not concern them
        for quiet in (torch.zeros(2, 3), x.double()):
            assert precision_of(quiet) == {"precision": "highest"}
        assert precision_of(x, "highest") == {"precision": "highest"}
        with pytest.warns(UserWarning, match=r"precision is None, .*; pass precision='torch' to follow torch, or"):
            assert precision_of(x) == {"precision": "highest"}
        # warnings are errors here
        for again in (x, x.half(), torch.zeros(5, 3, device="cuda")):
            assert precision_of(again) == {"precision": "highest"}


def test_precision_of_none_says_nothing_where_torch_has_the_highest(torch_setting, unsaid):
    torch_setting("highest")
    with FakeTensorMode():
        assert precision_of(torch.zeros(2, 3, device="cuda")) == {"precision": "highest"}


def test_torch_is_followed_by_its_newer_setting(torch_setting, unsaid):
    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("this torch has the older setting alone")
    for newer, expected in (("tf32", "high"), ("ieee", "highest")):
        # what the older one says beside it, torch refuses to tell
        torch_setting("highest")
        matmul.fp32_precision = newer
        assert ops.torch_precision() == expected
        assert precision_of(torch.zeros(2, 3), "torch") == {"precision": expected}
    matmul.fp32_precision = "tf32"
    with FakeTensorMode(), pytest.warns(UserWarning, match="precision is None"):
        assert precision_of(torch.zeros(2, 3, device="cuda")) == {"precision": "highest"}
    torch_setting("highest")


def test_the_precision_of_none_can_be_compiled_with_a_lower_setting(torch_setting, unsaid):
    torch._dynamo.reset()
    torch_setting("medium")

    @torch.compile(fullgraph=True, backend="eager")
    def precision(x):
        return x + MODES.index(ops.default_precision()), MODES.index(ops.torch_precision())

    with pytest.warns(UserWarning, match="precision is None"):
        found = precision(torch.zeros(()))
    assert found == (0, 2)


@pytest.mark.parametrize("asked", MODES)
def test_precision_that_is_asked_for_reaches_all_but_float64(asked, torch_setting):
    torch_setting("high")
    with FakeTensorMode():
        assert precision_of(torch.zeros(2, 3, device="cuda"), asked) == {"precision": asked}
        for given in (asked, None):
            assert precision_of(torch.zeros(2, 3, device="cuda", dtype=torch.float64), given) == {
                "precision": "highest"
            }
    assert precision_of(torch.zeros(2, 3, dtype=torch.float64), asked) == {"precision": "highest"}


@pytest.mark.parametrize("x", [np.zeros((2, 3), np.float32), torch.zeros(2, 3)], ids=["numpy", "torch"])
def test_backends_of_one_precision_get_no_precision(x):
    assert precision_of(x, "medium", "reference") == {}
    assert precision_of(np.zeros((2, 3), np.float32), "medium") == {}


def test_gradients_of_densities_are_as_wide_as_their_exponents(launched, monkeypatch):
    module = importlib.import_module("gkfast.ops.log_density")
    with FakeTensorMode():
        for dtype in (torch.float32, torch.float64):
            for dims, of_points in ((3, torch.float64), (6, dtype)):
                points = torch.zeros(1, 2, dims, device="cuda", dtype=dtype)
                widths = [module._wide(points, mode) for mode in MODES]
                assert widths == [(of_points, torch.float64), (dtype, dtype), (dtype, dtype)]
            assert module._wide(torch.zeros(1, 2, 3, dtype=dtype), "medium") == (torch.float64, torch.float64)
    # as on a GPU
    monkeypatch.setattr(module, "_wide", lambda x, precision: (x.dtype, x.dtype))
    x, y = sample()
    a = torch.rand(6, dtype=torch.float32, device=DEVICE).requires_grad_()
    sigma = torch.tensor([0.8, 1.2], dtype=torch.float64, requires_grad=True)
    inputs = (x, y, sigma, a)

    def everything(x, y, sigma, a, **by):
        log_p = gkfast.log_density(x, y, sigma, data_weights=a, **by)
        score = gkfast.score(x, y, sigma, data_weights=a, **by)
        return score, *torch.autograd.grad(log_p.sum(), (x, y, sigma, a))

    with OnGpu():
        found = everything(*inputs, precision="high")
    assert {call[1:] for call in launched} == {(torch.float32, "high")}
    truth = everything(*(t.detach().double().requires_grad_() for t in inputs), backend="reference")
    for ours, exact, like in zip(found, truth, (x, *inputs), strict=True):
        assert ours.dtype == like.dtype
        assert (ours - exact).norm() <= 1e-5 * exact.norm()


def test_a_compiled_graph_follows_torch(torch_setting):
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="eager")
    def setting_of_torch(x):
        return x + MODES.index(ops.torch_precision())

    for setting in ("highest", "high", "highest"):
        torch_setting(setting)
        assert setting_of_torch(torch.zeros(())) == MODES.index(setting)


@pytest.mark.parametrize("name", ["rbf", "log_density", "mmd2"])
def test_precision_is_compiled(name):
    torch._dynamo.reset()
    function = FUNCTIONS[name]
    x, y = (t.detach().cpu() for t in sample())
    compiled = torch.compile(lambda x, y: function(x, y, 0.9, precision="high"), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y), function(x, y, 0.9), rtol=0, atol=0)
