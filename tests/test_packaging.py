"""The mapping of kernels/ to gkfast.kernels, lazy imports, and the examples in the docstrings."""

import doctest
import importlib
import math
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

import gkfast

ROOT = Path(__file__).parent.parent


def run(code, cwd=ROOT, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_package_is_listed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {"gkfast", "gkfast.kernels"}
    for top, package in ((ROOT / "gkfast", "gkfast"), (ROOT / "kernels", "gkfast.kernels")):
        for init in top.rglob("__init__.py"):
            parts = init.parent.relative_to(top).parts
            if parts[:1] != ("kernels",):  # the git-ignored link
                found.add(".".join((package, *parts)))
    assert set(listed) == found


def test_the_folder_is_not_importable_under_its_bare_name():
    result = run("import kernels")
    assert result.returncode == 1
    assert "this folder is the package gkfast.kernels" in result.stderr


def test_import_loads_neither_torch_nor_numba():
    code = "import sys, gkfast; print(sorted({'torch', 'numba', 'numpy', 'triton', 'matplotlib'} & set(sys.modules)))"
    assert run(code).stdout.strip() == "[]"


def test_numpy_calls_load_no_torch():
    code = "import sys, numpy, gkfast; gkfast.mmd2(numpy.eye(3), numpy.eye(3), 1.0); print('torch' in sys.modules)"
    result = run(code)
    assert result.stdout.strip() == "False", result.stderr


WITHOUT_JIT = """
import sys, numpy, gkfast
x = numpy.eye(3)
given = __import__("torch").from_numpy(x) if sys.argv[1:] else x
print(float(gkfast.rbf(given, sigma=1.0, backend="reference").sum()))
try:
    gkfast.rbf(given, sigma=1.0)
except RuntimeError as error:
    print(error)
"""


@pytest.mark.parametrize("first", ["", "import sys; sys.argv.append('torch')\n"])
def test_cpu_kernels_without_numbas_compiler_are_refused(first):
    result = run(first + WITHOUT_JIT, NUMBA_DISABLE_JIT="1")
    value, said = result.stdout.splitlines()
    # three ones, and six pairs of distance sqrt(2)
    assert float(value) == pytest.approx(3 + 6 * math.exp(-1), rel=1e-14)
    assert said == (
        "NUMBA_DISABLE_JIT must be unset for the CPU kernels, which exist as compiled code only, got 1; unset it, or "
        'pass backend="reference"'
    )


def test_info_and_compile_without_numbas_compiler():
    call = "from gkfast.__main__ import main; main([{!r}])"
    result = run(call.format("info"), NUMBA_DISABLE_JIT="1")
    assert "CPU        none: NUMBA_DISABLE_JIT must be unset" in result.stdout
    assert "precision" in result.stdout
    result = run(call.format("compile"), NUMBA_DISABLE_JIT="1")
    assert result.returncode == 2
    assert result.stderr.startswith("gkfast compile: NUMBA_DISABLE_JIT must be unset")
    assert len(result.stderr.splitlines()) == 1


# what is imported first chooses by other signs what the system has
OTHER_SYSTEM = """
import os, sys, numba
if sys.argv[1:]:
    import torch
for name in ("register_at_fork", "sched_getaffinity", "RTLD_NOLOAD"):
    delattr(os, name)
sys.modules["fcntl"] = None
import numpy, gkfast
from gkfast.kernels.cpu import threads
x = numpy.random.default_rng(0).normal(size=(1500, 6))
print(threads.thread_count() == threads.thread_team(1 << 30)[1] > 1, threads.kind())
d2 = ((x[:, None] - x[None]) ** 2).sum(2)
print(abs(gkfast.rbf(x, sigma=1.5) - numpy.exp(-d2 / 4.5)).max())
"""


@pytest.mark.skipif(not hasattr(os, "RTLD_NOLOAD"), reason="this is such a system")
@pytest.mark.parametrize("first", ["", "import sys, torch; torch.set_num_threads(3); sys.argv.append('torch')\n"])
def test_kernels_run_on_systems_without_fork_affinity_and_locks(first):
    result = run(first + OTHER_SYSTEM, NUMBA_NUM_THREADS="3")
    assert result.returncode == 0, result.stderr
    threads, error = result.stdout.splitlines()
    assert threads == "True threads of its own"
    assert float(error) < 1e-14


def test_all_processors_count_without_affinity():
    code = (
        "import os, numba; del os.sched_getaffinity; os.cpu_count = lambda: 5\n"
        "del os.environ['NUMBA_NUM_THREADS']; import gkfast.kernels.cpu.threads as t; print(t.thread_count())"
    )
    result = run(code, NUMBA_NUM_THREADS="1")
    assert result.stdout.strip() == "5", result.stderr


def test_public_names_are_listed_and_documented():
    # before any of them is loaded
    assert run("import gkfast; print({*gkfast.__all__} - {*dir(gkfast)})").stdout.strip() == "set()"
    for name in gkfast.__all__:
        assert getattr(gkfast, name).__doc__
    with pytest.raises(AttributeError, match="module 'gkfast' has no attribute 'rbd'"):
        _ = gkfast.rbd
    assert gkfast.__version__ == "0.1.0"


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout")
def test_the_source_distribution_is_the_checkout(tmp_path):
    # built from a copy: building leaves files beside what it builds
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    files = {name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()}
    for name in files:
        copy = tmp_path / "tree" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy)
    build = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path), "tree"]
    result = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    with tarfile.open(tmp_path / "gkfast-0.1.0.tar.gz") as archive:
        found = {member.name.partition("/")[2] for member in archive if member.isfile()}
    made = {"PKG-INFO", "setup.cfg"}
    assert {name for name in found if not name.startswith("gkfast.egg-info/")} - made == files


def test_kernels_import_nothing_from_above():
    for path in (ROOT / "kernels").rglob("*.py"):
        imports = [line for line in path.read_text().splitlines() if line.lstrip().startswith(("import ", "from "))]
        assert not [line for line in imports if "gkfast" in line], path


@pytest.mark.parametrize(
    "module", [*gkfast._PUBLIC, "nn", "one_step", "distributed", "metrics", "gan.article", "gan.losses", "gan.data"]
)
def test_docstring_examples(module):
    failed, tried = doctest.testmod(importlib.import_module(f"gkfast.{module}"))
    assert tried
    assert not failed
