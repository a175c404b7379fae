"""The mapping of kernels/ to gkfast.kernels, lazy imports, and the examples in the docstrings."""

import doctest
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import gkfast

ROOT = Path(__file__).parent.parent


def run(code, cwd=ROOT):
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)


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


def test_public_names():
    assert set(gkfast.__all__) <= set(dir(gkfast))
    for name in gkfast.__all__:
        assert getattr(gkfast, name).__doc__
    with pytest.raises(AttributeError, match="module 'gkfast' has no attribute 'rbd'"):
        _ = gkfast.rbd
    assert gkfast.__version__ == "0.1.0"


def test_kernels_import_nothing_from_above():
    for path in (ROOT / "kernels").rglob("*.py"):
        imports = [line for line in path.read_text().splitlines() if line.lstrip().startswith(("import ", "from "))]
        assert not [line for line in imports if "gkfast" in line], path


@pytest.mark.parametrize(
    "module", ["gkfast.functional", "gkfast.bandwidth", "gkfast.two_sample", "gkfast.nn", "gkfast.distributed"]
)
def test_docstring_examples(module):
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert tried
    assert not failed
