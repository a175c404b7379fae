"""What all tests share: one oracle, one table of tolerances."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    # read when Triton is first imported: the GPU kernels then run on the CPU, interpreted
    os.environ["TRITON_INTERPRET"] = "1"

# absolute error of kernel values, relative (to the norm) of gradients and sums, against float64 on the same input
TOLERANCE = {
    # the contract: rounding of the difference, its square, the exponent and the polynomial
    ("kernel", np.float32): 1e-6,
    ("kernel", np.float64): 1e-14,
    # moments: float32 within a block of 256 columns, float64 beyond
    ("gradient", np.float32): 1e-5,
    # the oracle rounds too, and gradients of MMD^2 are differences of nearly equal sums
    ("gradient", np.float64): 1e-11,
    # sums of one sign: the entries' errors average out
    ("sum", np.float32): 2e-6,
    ("sum", np.float64): 1e-13,
    # computed in float64 and rounded once; relative to the greatest magnitude
    ("density", np.float32): 2e-7,
    ("density", np.float64): 1e-13,
    # a value of which no derivative is wanted: float32 in float32, relative to the greatest exponent
    ("density alone", np.float32): 2e-6,
    ("density alone", np.float64): 1e-13,
}


def pytest_addoption(parser):
    parser.addoption(
        "--fuzz", type=int, default=2000, metavar="N", help="random calls of test_fuzz.py (default 2000)"
    )
    parser.addoption("--fuzz-seed", type=int, metavar="K", help="of the random calls only this one")


def pytest_configure(config):
    if not config.getoption("benchmark_only", default=False):
        # samples are small: a second thread would only wait for its core; test_threads.py sets its own numbers
        torch.set_num_threads(1)


def pytest_ignore_collect(collection_path, config):
    """With --benchmark-only the benchmarks run alone."""
    return True if config.getoption("benchmark_only", default=False) else None


# each process takes whole files; the longest begin, so that none is left alone at the end
LONGEST = (
    "test_gpu",
    "test_derivatives",
    "test_wheel",
    "test_cache",
    "test_bench_gpu",
    "test_cli",
    "test_distributed",
    "test_device",
    "test_disk",
    "test_examples",
    "test_docs",
)


def pytest_collection_modifyitems(items):
    def rank(item):
        return next((k for k, name in enumerate(LONGEST) if item.path.name.startswith(name)), len(LONGEST))

    items.sort(key=rank)


@pytest.fixture(autouse=True)
def no_plans():
    """Tests change what plans of GPU calls follow from, such as the table of tiles."""
    launch = sys.modules.get("gkfast.kernels.gpu.launch")
    if launch is not None:
        launch.forget()


@pytest.fixture
def tolerance():
    return lambda what, dtype: TOLERANCE[what, np.dtype(dtype).type]


@pytest.fixture
def rng():
    return np.random.default_rng(20)


@pytest.fixture
def exact():
    """exact(f, *arrays, **options): the public function on float64 copies, by the reference; arrays come back."""

    def call(function, *arguments, **options):
        wide = [_wide(a) for a in arguments]
        options = {name: _wide(value) for name, value in options.items()}
        return function(*wide, **options, backend="reference")

    return call


def _wide(value):
    return value.astype(np.float64) if isinstance(value, np.ndarray) else value


@pytest.fixture(params=["numpy", "torch"])
def library(request):
    """Turns a NumPy array into what the library under test takes."""
    return {"numpy": lambda a: a, "torch": lambda a: a if a is None else torch.from_numpy(np.ascontiguousarray(a))}[
        request.param
    ]


@pytest.fixture
def threads():
    """Sets the number of threads, and restores it."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def as_numpy(value):
    return value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


@pytest.fixture
def numpy_of():
    return as_numpy


@pytest.fixture
def browser():
    """A function: the page of a file, as Chromium has it."""
    if shutil.which("chromium") is None:
        pytest.skip("no browser")

    def page(path):
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"file://{path}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    return page
