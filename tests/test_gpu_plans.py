"""Plans of launches: plans_without_gpu.py checks them, in a process whose kernels are compiled."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", minversion="3.6", reason="no Triton on this platform")
pytestmark = pytest.mark.interpreter

SCRIPT = Path(__file__).parent / "plans_without_gpu.py"
CHECKS = re.findall(r"^def (check_\w+)", SCRIPT.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    # what other tests have compiled is not to be found
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    found = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, env=environment, check=False)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.mark.parametrize("name", CHECKS)
def test_plan(name, report):
    assert report[name] == ""


def test_all_checks_run(report):
    assert sorted(report) == sorted(CHECKS)
    assert len(CHECKS) >= 9
