"""A wheel with compiled kernels inside, installed in an environment of its own."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest

import gkfast
from gkfast.kernels.cpu import processor

ROOT = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not processor.LEVEL, reason="this processor has no level that kernels are compiled for"),
]

# what is called first in a process: without torch, and with it
CALLS = """
import sys, time, numpy
if sys.argv[1:]:
    import torch
import gkfast
x = numpy.random.default_rng(0).normal(size=(50, 6)).astype(numpy.float32)
y = x[::-1] + numpy.float32(0.5)
if sys.argv[1:]:
    x, y = torch.from_numpy(x).requires_grad_(), torch.from_numpy(y.copy())
start = time.perf_counter(), time.process_time()
if sys.argv[1:]:
    (value,) = torch.autograd.grad(gkfast.mmd2(x, y, 2.0), x)
else:
    value = gkfast.rbf(x, y, 2.0)
seconds = time.perf_counter() - start[0], time.process_time() - start[1]
from gkfast.kernels.cpu import compiled, disk
print(gkfast.__file__, compiled.compiled_here(), min(seconds), disk.places()[0], sep="|")
sys.stdout.flush()
numpy.save(sys.stdout.buffer, value.numpy() if sys.argv[1:] else value)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The environment's Python, where this one's packages are found, but gkfast is the wheel's."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("gkfast", "kernels"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "ready-made"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    # as in a checkout
    shutil.rmtree(source / "gkfast" / "kernels", ignore_errors=True)
    (source / "gkfast" / "kernels").symlink_to(source / "kernels")
    ready = source / "kernels" / "cpu" / "ready-made"

    def run(*command):
        done = subprocess.run(
            [str(part) for part in command], cwd=source, capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    said = run(sys.executable, "-m", "gkfast", "compile", "--level", processor.LEVEL, "--into", ready)
    assert said.splitlines()[-1] == f"kept in {ready / processor.LEVEL}"
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder)
    (wheel,) = folder.glob("gkfast-*.whl")
    inside = zipfile.ZipFile(wheel).namelist()
    assert sum(name.startswith(f"gkfast/kernels/cpu/ready-made/{processor.LEVEL}/") for name in inside) > 40
    run(sys.executable, "-m", "venv", "--without-pip", folder / "environment")
    python = folder / "environment" / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(packages, "others.pth").write_text(sysconfig.get_path("purelib"))
    return python, Path(packages)


def first_call(installed, folder, *arguments, **environment):
    """What was compiled, the seconds of the first call, where code was looked for first, and the result."""
    python, packages = installed
    usual = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA")}
    done = subprocess.run(
        [str(python), "-c", CALLS, *arguments],
        **{"cwd": folder, "env": usual | environment, "capture_output": True, "check": False, "timeout": 600},
    )
    assert done.returncode == 0, done.stderr.decode()
    first, array = done.stdout.split(b"\n", 1)
    path, compiled, seconds, place = first.decode().split("|")
    assert path == str(packages / "gkfast" / "__init__.py")
    (folder / "array.npy").write_bytes(array)
    return int(compiled), float(seconds), place, np.load(folder / "array.npy")


@pytest.mark.parametrize("with_torch", [False, True], ids=["rbf", "gradient of mmd2"])
def test_the_first_call_compiles_nothing(installed, tmp_path, with_torch):
    arguments = ["torch"] * with_torch
    tries = [first_call(installed, tmp_path, *arguments) for _ in range(3)]
    for compiled, _, place, value in tries:
        assert compiled == 0
        assert place.startswith(str(installed[1] / "gkfast" / "kernels" / "cpu" / "ready-made" / processor.LEVEL))
        assert place.endswith(f"only read (for every {processor.LEVEL})")
        np.testing.assert_array_equal(value, tries[0][3])
    # of the processor: other processes may hold it
    assert min(seconds for _, seconds, _, _ in tries) < 0.5
    if not with_torch:
        x = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
        # the same bits as of code for this processor alone
        np.testing.assert_array_equal(tries[0][3], gkfast.rbf(x, x[::-1] + np.float32(0.5), 2.0))


def test_a_processor_without_the_level_compiles_for_itself(installed, tmp_path):
    environment = {"NUMBA_CPU_NAME": "x86-64-v2", "NUMBA_CPU_FEATURES": "+sse4.2,+popcnt"}
    compiled, _, place, value = first_call(installed, tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "own"), **environment)
    assert compiled == 4
    assert place.startswith(str(tmp_path / "own"))
    x = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    expected = gkfast.rbf(x, x[::-1] + np.float32(0.5), 2.0, backend="reference")
    np.testing.assert_allclose(value, expected, rtol=0, atol=1e-6)


def test_what_others_can_write_is_not_executed(installed, tmp_path):
    if os.name != "posix":
        pytest.skip("modes of files are POSIX's")
    folder = installed[1] / "gkfast" / "kernels" / "cpu" / "ready-made" / processor.LEVEL
    mode = folder.stat().st_mode
    folder.chmod(mode | 0o002)
    try:
        compiled, _, place, _ = first_call(installed, tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "own"))
    finally:
        folder.chmod(mode)
    assert compiled == 4
    assert place.startswith(str(tmp_path / "own"))
