"""One clear sentence where the GPU kernels do not run, or have not been tested."""

import subprocess

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gkfast import info, notices
from gkfast.arguments import prepare

pytest.importorskip("triton", minversion="3.6", reason="no Triton on this platform")
pytestmark = pytest.mark.interpreter

build = pytest.importorskip("triton.runtime.build")
device = pytest.importorskip("gkfast.kernels.gpu.device")
launch = pytest.importorskip("gkfast.kernels.gpu.launch").launch


@pytest.fixture
def pretended(monkeypatch):
    """Two GPUs of a capability, of NVIDIA's or AMD's."""

    def pretend(capability, hip=None):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda k: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda k: "Some GPU")
        properties = type("Properties", (), {"name": "Some GPU", "major": capability[0], "minor": capability[1]})
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda k: properties)
        monkeypatch.setattr(torch.version, "hip", hip)

    device.check.cache_clear()
    yield pretend
    device.check.cache_clear()


def test_gpus_before_ampere_are_refused(pretended):
    pretended((7, 5))
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"capability 8.0 .* got 7.5 \(Some GPU\), .*; move the tensors"):
            device.check(0)
    assert "no kernels: the GPU must have compute capability 8.0" in info._gpu()


def test_later_gpus_are_not(pretended):
    for capability in ((8, 0), (8, 9), (9, 0), (12, 0)):
        pretended(capability)
        device.check.cache_clear()
        device.check(0)
    device.check(-1)
    assert info._gpu() == "Some GPU (sm_120), Triton kernels"


def test_amd_gpus_are_said_to_be_untested_once(pretended):
    pretended((9, 4), hip="6.4")
    with pytest.warns(UserWarning, match=r"AMD GPUs \(ROCm\) but have not been tested on one; compare with"):
        device.check(0)
    device.check(0)
    device.check.cache_clear()
    assert info._gpu() == "Some GPU (sm_94), Triton kernels, untested on AMD GPUs (ROCm)"


class Failing:
    """A kernel whose launch fails as Triton's first one does."""

    arg_names = ()

    def __init__(self, fail):
        self.fail = fail

    def __getitem__(self, grid):
        return lambda: self.fail()


def build_of(code, folder):
    source = folder / "launcher.c"
    source.write_text(code)
    build._build("launcher", str(source), str(folder), [], [], [], [])


def test_a_missing_compiler_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(RuntimeError, match=r"^a C compiler and Python's headers .* got no compiler .*; install gcc"):
        launch(Failing(lambda: build_of("", tmp_path)), (1,))


def test_missing_headers_are_named(tmp_path):
    with pytest.raises(RuntimeError, match=r"^a C compiler and Python's headers .* failed .*; install gcc"):
        launch(Failing(lambda: build_of("#include <NoPython.h>\n", tmp_path)), (1,))


def test_other_errors_stay_what_they_are():
    for error in (RuntimeError("out of resources"), ValueError("no such tensor"), subprocess.TimeoutExpired("a", 1)):

        def fail(error=error):
            raise error

        with pytest.raises(type(error)) as found:
            launch(Failing(fail), (1,))
        assert found.value is error


@pytest.mark.parametrize("place", ["xpu", "mps"])
def test_devices_without_kernels_hear_once_what_runs_there(place, monkeypatch):
    monkeypatch.setattr(notices, "_said", set())
    with FakeTensorMode():
        x = torch.zeros(5, 3, device=place)
        named = prepare({"x": x}, 1.0, None, None, "reference").call.backend
        with pytest.warns(UserWarning, match=f"got {place}, where torch runs the reference .*; move them with .cpu"):
            assert prepare({"x": x}, 1.0, None, None, None).call.backend is named
        # warnings are errors here
        prepare({"x": torch.zeros(4, 3, device=place)}, 1.0, None, None, None)
