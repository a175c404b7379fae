"""Reductions at 20 000 x 20 000 must not come near the 1.6 GB of one stored kernel matrix."""

import subprocess
import sys

import pytest

MEASURED = """
import resource, torch, gkfast
torch.manual_seed(0)
torch.set_num_threads(2)
x = torch.randn(200, 8, requires_grad=True)
{call}                                     # compile, load, start threads
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
x = torch.randn(20_000, 8, requires_grad=True)
{call}
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
CALLS = {
    "mmd2": "gkfast.mmd2(x, x.detach() + 1, [0.5, 1.0, 2.0]).backward()",
    "rbf_matmul": "gkfast.rbf_matmul(x, x.detach() + 1, x[:, 0], 1.0).sum().backward()",
    "log_density": "gkfast.log_density(x, x.detach() + 1, 1.0).sum().backward()",
}


@pytest.mark.parametrize("name", CALLS)
def test_peak_memory_is_linear(name):
    code = MEASURED.format(call=CALLS[name])
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(output) < 100  # MiB; inputs, gradients and float64 copies are about 10
