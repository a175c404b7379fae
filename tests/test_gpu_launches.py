"""What the GPU kernels launch, and what Triton compiles of them for three architectures without a GPU."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parent))
from gpu_samples import DEVICE, ONE, columns, sample
from triton import knobs
from triton.runtime.interpreter import GridExecutor
from triton.runtime.jit import JITFunction

from gkfast import ops
from gkfast.kernels import gpu
from gkfast.kernels.gpu import bandwidths
from gkfast.ops.operator import gpu_kernels

pytestmark = pytest.mark.interpreter
# the function kernel_sums of the package has the module's name
SUMS = importlib.import_module("gkfast.ops.kernel_sums")


class Launches(TorchDispatchMode):
    """Counts what would be launched on a GPU: Triton's kernels, and torch's operators but for views and memory."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.triton, self.torch = 0, []
        owner, name = (GridExecutor, "__call__") if knobs.runtime.interpret else (JITFunction, "run")
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


SCALE = torch.ones(1, 1, 3, dtype=torch.float64, device=DEVICE)


def no_scale():
    """Made beforehand: filling it would be a launch."""
    return SCALE


def sums(x, y, v, *wants, scale=no_scale, less=False):
    arguments = (scale(), x, y, v, v, ONE, ONE)
    return gpu.kernel_sums_with_gradients(*arguments, drop=1, wants=wants + wants[2:], less_baselines=less)


# launches of Triton's kernels by differences, and by products, where columns are not swept in parts
LAUNCHES = {
    "rbf": ((1, 2), lambda x, y, v, g: gpu.rbf(x, y, ONE, ONE)),
    "rbf_backward": ((2, 3), lambda x, y, v, g: gpu.rbf_backward(g, x, y, ONE, ONE, wants=(True,) * 4)),
    "rbf_matmul": ((1, 2), lambda x, y, v, g: gpu.rbf_matmul(x, y, v[..., None], ONE, ONE)),
    "rbf_matmul_backward": (
        (2, 4),
        lambda x, y, v, g: gpu.rbf_matmul_backward(v[..., None], x, y, v[..., None], ONE, ONE, wants=(True,) * 5),
    ),
    "rbf_matmul_backward to v": (
        (1, 2),
        lambda x, y, v, g: gpu.rbf_matmul_backward(
            v[..., None], x, y, v[..., None], ONE, ONE, wants=(False, False, True, False, False)
        ),
    ),
    "kernel_sums": ((2, 2), lambda x, y, v, g: sums(x, y, v, *(False,) * 4, scale=lambda: None)),
    "kernel_sums and dx": ((2, 2), lambda x, y, v, g: sums(x, y, v, True, False, False, False)),
    "mmd2": ((2, 2), lambda x, y, v, g: sums(x, y, v, *(False,) * 4, less=True)),
    "mmd2 and dx, dy": ((2, 2), lambda x, y, v, g: sums(x, y, v, True, True, False, False, less=True)),
    "mmd2 and all gradients": ((3, 4), lambda x, y, v, g: sums(x, y, v, *(True,) * 4, less=True)),
    "log_density": ((1, 2), lambda x, y, v, g: gpu.log_density(x, y, ONE, ONE, v, leave_one_out=False)),
}


@pytest.mark.parametrize("dims", [3, 6])
@pytest.mark.parametrize("name", LAUNCHES)
def test_kernels_launch_as_often_as_they_promise(name, dims, monkeypatch):
    x, y = sample(1, 64, 64, dims, torch.float32)
    v, g = torch.rand(1, 64).to(DEVICE), torch.rand(1, 64, 64).to(DEVICE)
    expected, call = LAUNCHES[name]
    with Launches(monkeypatch) as found:
        call(x, y, v, g)
    assert found.triton == expected[dims > 4]
    assert not found.torch


@pytest.mark.parametrize("name", ["mmd2", "rbf_backward", "rbf_matmul", "rbf_matmul_backward"])
def test_operators_launch_nothing_beside(name, monkeypatch):
    x, y = sample(1, 64, 64, 6, torch.float32)
    v, a, g = columns(1, 64, 1, torch.float32), torch.rand(1, 64).to(DEVICE), columns(1, 64, 64, torch.float32)
    modes = {"drop": 1, "less_baselines": True, "wants": [True, True] + [False] * 4}
    operator, arguments, options = {
        "mmd2": (SUMS._mmd2, (no_scale()[:, 0], x, y, a, a, ONE, ONE), modes),
        "rbf_backward": (ops.rbf_backward, (g, x, y, ONE, ONE), {"wants": [True] * 2 + [False] * 2}),
        "rbf_matmul": (ops.rbf_matmul, (x, y, v, ONE, ONE), {"skip_diagonal": False}),
        "rbf_matmul_backward": (
            ops.rbf_matmul_backward,
            (v, x, y, v, ONE, ONE),
            {"skip_diagonal": False, "wants": [True] * 3 + [False] * 2},
        ),
    }[name]
    inputs = operator.flat(arguments, options)
    with Launches(monkeypatch) as found:
        gpu_kernels[name](*inputs)
    assert found.triton == (2 if name in ("mmd2", "rbf_matmul") else 3)
    assert not found.torch


def all_kernels():
    modules = [module for name, module in sys.modules.items() if name.startswith("gkfast.kernels.gpu.")]
    named = (name for module in modules for name in vars(module))
    return {name for name in named if name.startswith("_") and name.endswith("_kernel")}


def test_no_launch_leaves_contraction_to_the_environment(monkeypatch):
    """TRITON_DEFAULT_FP_FUSION, or Triton's version, would decide whether products that are added are contracted."""
    owner = GridExecutor if knobs.runtime.interpret else JITFunction
    named = {}

    def recorded(self, *arguments, **options):
        named.setdefault(self.fn.__name__, set()).add(options.get("enable_fp_fusion"))

    monkeypatch.setattr(owner, "__call__" if owner is GridExecutor else "run", recorded)
    monkeypatch.setattr(sys.modules["gkfast.kernels.gpu.log_density"], "column_ranges", lambda *_: 2)
    x, y = sample(1, 9, 8, 140, torch.float32)
    v, w = columns(1, 8, 1, torch.float32), columns(1, 8, 3, torch.float32)
    gpu.rbf_backward(columns(1, 9, 8, torch.float32), x, y, ONE, ONE, wants=(True,) * 4)
    gpu.rbf_matmul(x, y, w, ONE, ONE)
    gpu.rbf_matmul_backward(columns(1, 9, 1, torch.float32), x, y, v, ONE, ONE, wants=(True,) * 5)
    gpu.log_density(x, y, ONE, ONE, v[..., 0], leave_one_out=False, precision="high")
    gpu.rbf_matmul(x, y, v, ONE.expand(1, 9), ONE.expand(1, 9))
    gpu.baselines(x, y, ONE)
    assert named == {name: {True} for name in all_kernels()}


def test_bandwidths_compile_no_kernel_anew():
    """Triton compiles a kernel anew for an integer in a tuple that is 1, a multiple of 16, or below 2^31."""
    x, _ = sample(1, 3, 1, 2, torch.float32)
    for sigma, weights in (([1.0, 2.0], [0.0, -1.0]), ([0.1] * 8, [1 / 3] * 8), ([1e-300], [1e300])):
        table = bandwidths.Table(*(torch.tensor([t]).double() for t in (sigma, weights)), x)
        for numbers in table.arguments()[-2:]:
            assert all(number % 2 and abs(number) >= 2**31 for number in (*numbers.bits, numbers.lowest))


def test_operators_agree_with_the_cpu():
    """The operators' GPU functions against their CPU functions, wanted and unwanted, with strided arguments."""
    x, y = (t.mT.contiguous().mT for t in sample(1, 9, 7, 3, torch.float32))
    v, g, a, b = torch.rand(1, 7, 2), torch.rand(1, 9, 2), torch.rand(1, 9), torch.rand(1, 7)
    scale, shift = torch.rand(1, 2, 3).double(), torch.rand(1, 9, 1)
    points, one = (x, y, a, b, ONE, ONE), {"leave_one_out": False, "value_only": False}
    calls = [
        (ops.rbf_matmul, (x, y, v, ONE, ONE, shift), {"skip_diagonal": False}),
        (ops.rbf_matmul, (x, y, v, (1.0,), (1.0,), shift), {"skip_diagonal": False}),
        (ops.log_density, (x, y, ONE, ONE, b), one),
    ]
    for wants in ([True] * 6, [False, True, False, True, False, True]):
        backward, sums = {"skip_diagonal": True, "wants": wants[:5]}, {"drop": 1, "wants": wants}
        calls.append((ops.rbf_matmul_backward, (g, x, y, v, ONE, ONE, shift, ONE), backward))
        for less in (True, False):
            options = {**sums, "less_baselines": less}
            calls.append((SUMS._kernel_sums, (scale, *points), options))
            calls.append((SUMS._mmd2, (scale[:, 0], *points), options))
            calls.append((ops.kernel_sums_with_gradients, (scale[:, 0], *points), options))
    for operator, arguments, options in calls:
        inputs = operator.flat(arguments, options)
        moved = [t.to(DEVICE) if isinstance(t, torch.Tensor) else t for t in inputs]
        there = [t.cpu() if isinstance(t, torch.Tensor) else t for t in inputs]
        ours, theirs = gpu_kernels[operator.name](*moved), getattr(torch.ops.gkfast, operator.name)(*there)
        if isinstance(ours, torch.Tensor):
            ours, theirs = (ours,), (theirs,)
        for found, expected in zip(ours, theirs, strict=True):
            assert found.dtype == expected.dtype
            assert found.shape == expected.shape
            torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-6)


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


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90, 100, 120, "gfx942"])
def test_kernels_compile_without_spills(compiled, architecture):
    rows = [row for row in compiled if row["sm"] == architecture]
    assert {"rbf", "mmd2"} <= {row["op"] for row in rows}
    assert not [row for row in rows if row["wrong"] not in ("", row["hazards"])]


@pytest.mark.slow
def test_no_product_is_used_before_it_is_waited_for(compiled):
    assert not [row for row in compiled if row["hazards"]]


@pytest.mark.slow
def test_speeds_are_told_of_every_kernel_of_pairs(compiled):
    rows = [row for row in compiled if row["sm"] == 90 and row["tile"] and row["dtype"] != "float64"]
    assert rows
    for row in rows:
        assert 0 < row["serial"] <= row["predicted"] <= row["overlapped"], row
        assert row["instructions a pair"] >= 3, row
        # a panel is pulled 64 coordinates at a time
        assert row["form"] == "differences" or row["multiply_adds a pair"] >= min(row["d"], 64), row


@pytest.mark.slow
def test_every_kernel_is_compiled(compiled):
    assert {row["kernel"] for row in compiled} == all_kernels()


@pytest.mark.slow
def test_float32_uses_the_fast_exponential(compiled):
    for row in compiled:
        if row["kernel"] in ("_rbf_kernel", "_sweep_kernel") and row["dtype"] == "float32":
            assert row["ex2"] > 0, row
