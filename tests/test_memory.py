"""Reductions at 12 000 x 12 000 must not come near the 576 MB of one stored kernel matrix."""

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

import gkfast
from gkfast.kernels.cpu import memory

pytestmark = pytest.mark.slow

MEASURED = """
import resource, torch, gkfast
torch.manual_seed(0)
torch.set_num_threads(2)
x = torch.randn(200, 8, requires_grad=True)
{call}                                     # compile, load, start threads
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
x = torch.randn(12_000, 8, requires_grad=True)
{call}
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
CALLS = {
    "mmd2": "gkfast.mmd2(x, x.detach() + 1, [0.5, 1.0, 2.0]).backward()",
    "rbf_matmul": "gkfast.rbf_matmul(x, x.detach() + 1, x[:, 0], 1.0).sum().backward()",
    "log_density": "gkfast.log_density(x, x.detach() + 1, 1.0).sum().backward()",
    "witness": "gkfast.witness(x, x.detach() + 1, x.detach() - 1, 1.0).sum().backward()",
    "drift": "gkfast.drift(x.detach(), x.detach() + 1, sigma=1.0)",
    "mmd_test": "gkfast.mmd_test(x, x + 1, 1.0, permutations=20, seed=0)",
}
SECOND = {
    "mmd2, second order": "gkfast.mmd2(x, x.detach() + 1, [0.5, 1.0])",
    "rbf_matmul, second order": "gkfast.rbf_matmul(x, x.detach() + 1, x[:, 0], 1.0).sum()",
}
CALLS |= {
    name: f"torch.autograd.grad({call}, x, create_graph=True)[0].square().sum().backward()"
    for name, call in SECOND.items()
}


@pytest.mark.parametrize("name", CALLS)
def test_peak_memory_is_linear(name):
    code = MEASURED.format(call=CALLS[name])
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(output) < 100  # MiB; inputs, gradients and float64 copies are about 10


def test_a_result_is_the_callers_until_nothing_refers_to_it(rng):
    x = rng.normal(size=(600, 3)).astype(np.float32)
    first = gkfast.rbf(x, sigma=1.0)
    copy = first.copy()
    address = first.ctypes.data
    others = [gkfast.rbf(x + k, sigma=0.1 + k) for k in range(1, 4)]
    np.testing.assert_array_equal(first, copy)
    assert len({k.ctypes.data for k in (first, *others)}) == 4
    # a row of it keeps it whole
    row = first[5]
    del first
    again = gkfast.rbf(x, sigma=2.0)
    np.testing.assert_array_equal(row, copy[5])
    assert again.ctypes.data != address
    # and only then does its memory serve a new one
    del row
    assert gkfast.rbf(x, sigma=3.0).ctypes.data == address


def test_a_tensor_keeps_its_memory(rng):
    x = torch.from_numpy(rng.normal(size=(600, 3)))
    k = gkfast.rbf(x, sigma=1.0)
    part = k.detach()[3:5].T
    copy = part.clone()
    del k
    for sigma in (2.0, 3.0):
        gkfast.rbf(x, sigma=sigma)
    torch.testing.assert_close(part, copy, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["read-only", "unaligned", "broadcast"])
def test_arrays_that_compiled_code_does_not_take_as_they_are(kind, rng):
    from gkfast.kernels import cpu

    def strange(array):
        if kind == "broadcast":
            return np.broadcast_to(array, array.shape)
        if kind == "read-only":
            array = array.copy()
            array.flags.writeable = False
            return array
        room = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype)
        room[:] = array.ravel()
        return room.reshape(array.shape)

    x, y, g = rng.normal(size=(1, 6, 3)), rng.normal(size=(1, 7, 3)), rng.normal(size=(1, 6, 7))
    sigma, weights, a, b = np.array([[0.9]]), np.ones((1, 1)), rng.uniform(size=(1, 6)), rng.uniform(size=(1, 7))
    scale = np.ones((1, 1, 3))

    def everything(x, y, g, sigma, weights, a, b, scale):
        yield cpu.rbf(x, y, sigma, weights)
        yield from cpu.rbf_backward(g, x, y, sigma, weights, wants=(True,) * 4)
        yield from cpu.kernel_sums_with_gradients(
            scale, x, y, a, b, sigma, weights, weights, drop=1, wants=(True,) * 6
        )
        yield cpu.rbf_matmul(x, y, y, sigma, weights)
        yield cpu.log_density(x, y, sigma, weights, b, leave_one_out=False)

    arrays = (x, y, g, sigma, weights, a, b, scale)
    for ours, usual in zip(everything(*map(strange, arrays)), everything(*arrays), strict=True):
        np.testing.assert_array_equal(ours, usual)
    if kind != "read-only":
        out = np.empty(6 * 7 * 8 + 1, np.uint8)[1:].view(np.float64).reshape(6, 7)
        assert gkfast.rbf(x[0], y[0], 0.9, out=out) is out
        np.testing.assert_array_equal(out, gkfast.rbf(x[0], y[0], 0.9))


def test_a_call_that_needed_more_finds_a_larger_arena(monkeypatch):
    monkeypatch.setattr(memory, "_own", threading.local())
    block, taken = memory.acquire_arena()
    # while it is lent there is another
    other = memory.acquire_arena()
    assert other[0] is not block
    memory.release_arena(other)
    taken[0] = 5000
    memory.release_arena((block, taken))
    block, taken = memory.acquire_arena()
    assert len(block) == 8192
    assert taken[0] == 0
    # what is far too much is left to the allocator
    taken[0] = memory._MOST_LENT + 1
    memory.release_arena((block, taken))
    assert len(memory.acquire_arena()[0]) == 8192
