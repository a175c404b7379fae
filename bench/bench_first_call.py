"""A first call in a fresh process, with the compiled kernels on disk and without: seconds after `import gkfast`.

NumPy's calls load no torch; where gradients are asked for, torch is there before the clock starts. The bound is what
`import numba` takes in such a process: no kernel of Numba's answers sooner.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from bench.measure import Case, Exact, identifier

_N, _D = 256, 16
_SIGMA = 4.0
_CACHES = ("empty cache", "warm cache")
# what is called, and under which name its result is checked
_CALLS = {
    "rbf": ("gkfast.rbf(x, y, sigma, **options)", "kernel"),
    "rbf_matmul": ("gkfast.rbf_matmul(x, y, v, sigma, **options)", "product"),
    "log_density": ("gkfast.log_density(x, y, sigma, **options)", "density"),
    "mmd2": ("gkfast.mmd2(x, y, sigma, **options)", "value"),
    "rbf gradient": ("torch.autograd.grad(gkfast.rbf(x, y, sigma, **options).sum(), x)[0]", "gradient"),
    "mmd2 gradient": ("torch.autograd.grad(gkfast.mmd2(x, y, sigma, **options), x)[0]", "gradient"),
}

# arguments: the file of the arrays, and where the results go
_PROCESS = """
import sys, time
import numpy {torch}
import gkfast

arrays = numpy.load(sys.argv[1])
sigma = {sigma}

def call(dtype, **options):
    x, y, v = (arrays[name].astype(dtype) for name in "xyv")
    {tensors}
    start = time.perf_counter()
    result = {call}
    return time.perf_counter() - start, result

seconds, found = call("float32")
print(seconds)
numpy.savez(sys.argv[2], found=found, exact=call("float64", backend="reference")[1])
"""
_TENSORS = "x, y = torch.from_numpy(x).requires_grad_(), torch.from_numpy(y)"


def _seconds(code, arguments=(), environment=None):
    """What the code prints, run in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(
        command, env=os.environ | (environment or {}), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return float(result.stdout)


@pytest.fixture(scope="module")
def import_numba():
    code = "import time; import numpy; start = time.perf_counter(); import numba; print(time.perf_counter() - start)"
    return min(_seconds(code) for _ in range(3))


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """A folder of compiled kernels for each operation: empty at first, and left warm."""
    return {op: tmp_path_factory.mktemp("compiled") for op in _CALLS}


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(20)
    x, y, v = (rng.normal(size=shape).astype(np.float32) for shape in ((_N, _D), (_N, _D), (_N, 1)))
    # means half a unit apart, or MMD^2 would be all rounding
    return {"x": x, "y": y + np.float32(0.5), "v": v}


# both states of one operation one after the other: the first fills what the second finds
@pytest.mark.parametrize("cache", _CACHES, ids=identifier)
@pytest.mark.parametrize("op", _CALLS, ids=identifier)
def test_first_call(op, cache, caches, arrays, import_numba, benchmark, first_call_row, tmp_path):
    np.savez(tmp_path / "arrays.npz", **arrays)
    call, name = _CALLS[op]
    torch_too = {"torch": ", torch", "tensors": _TENSORS} if "torch" in call else {"torch": "", "tensors": ""}
    code = _PROCESS.format(sigma=_SIGMA, call=call, **torch_too)
    files = (tmp_path / "arrays.npz", tmp_path / "results.npz")

    def run():
        return _seconds(code, files, {"NUMBA_CACHE_DIR": str(caches[op])})

    assert cache == "warm cache" or not any(caches[op].iterdir())
    tries = [benchmark.pedantic(run)]
    assert any(caches[op].rglob("*.nbc")), "nothing was compiled into NUMBA_CACHE_DIR"
    if cache == "warm cache":
        tries += [run() for _ in range(2)]
    found, exact = ({name: torch.from_numpy(a)} for a in np.load(files[1]).values())
    errors = Exact(torch.arange(_N), exact).errors(found)
    first_call_row(Case(f"{op} first call, {cache}", _N, _D), min(tries), errors, import_numba)
