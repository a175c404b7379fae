"""Calls on plain tensors skip the dispatcher; whoever looks on with torch's own means still sees every operator."""

import subprocess
import sys

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import gkfast


def loss(x, y):
    return gkfast.mmd2(x, y, [1.0, 2.0]) + gkfast.rbf(x, y, 1.0).mean()


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(10, 3, generator=generator) for _ in range(2)]


def test_the_profiler_sees_the_operators(samples):
    x, y = samples
    with profile(activities=[ProfilerActivity.CPU]) as found:
        loss(x.requires_grad_(), y).backward()
    names = {event.key for event in found.key_averages()}
    assert {"gkfast::mmd2", "gkfast::rbf", "gkfast::rbf_backward"} <= names


def test_a_dispatch_mode_sees_the_operators(samples):
    seen = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, kinds, arguments=(), keywords=None):
            seen.add(str(function))
            return function(*arguments, **(keywords or {}))

    with Watch():
        value = loss(*samples)
    assert {"gkfast.mmd2.default", "gkfast.rbf.default"} <= seen
    assert torch.equal(value, loss(*samples))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit")
def test_a_trace_holds_the_operators(samples):
    x, y = samples
    traced = torch.jit.trace(lambda x, y: gkfast.rbf(x, y, 1.0), (x, y), check_trace=False)
    assert "gkfast::rbf" in str(traced.graph)
    torch.testing.assert_close(traced(2 * x, y), gkfast.rbf(2 * x, y, 1.0))


def test_parameters_and_subclasses_give_the_same_values(samples):
    x, y = samples

    class Own(torch.Tensor):
        pass

    expected = gkfast.rbf(x, y, 1.0)
    assert torch.equal(gkfast.rbf(torch.nn.Parameter(x), torch.nn.Parameter(y), 1.0), expected)
    assert torch.equal(gkfast.rbf(x.as_subclass(Own), y.as_subclass(Own), 1.0), expected)


def test_imported_under_another_default_device():
    """Where torch makes tensors on meta, those on the CPU are still the plain ones."""
    code = """
import torch
torch.set_default_device("meta")
import gkfast
x = torch.ones(3, 2, device="cpu")
assert gkfast.mmd2(x, x + 1, 1.0).device.type == "cpu"
assert abs(float(gkfast.mmd2(x, x + 1, 1.0)) - 2 * (1 - 2.718281828459045 ** -1)) < 1e-6
assert gkfast.rbf(torch.ones(3, 2), sigma=1.0).device.type == "meta"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
