"""Compiled code on disk: several processes that fill one empty cache at once, and one that only reads it."""

import os
import subprocess
import sys

import numpy as np
import pytest

import gkfast
from gkfast.kernels.cpu import disk

pytestmark = pytest.mark.slow

# each process begins with another operation and dtype, so that they compile different signatures at the same time
CHILD = """
import sys, time, numpy, gkfast
first = int(sys.argv[1])
rng = numpy.random.default_rng(0)
wide = [rng.normal(size=(40, 3)) for _ in range(2)]
calls = [
    (operation, dtype)
    for operation in (
        lambda x, y: gkfast.rbf(x, y, 0.8),
        lambda x, y: gkfast.rbf_matmul(x, y, y[:, :2], [0.5, 1.5]),
        lambda x, y: gkfast.mmd2(x, y, 0.8),
    )
    for dtype in (numpy.float32, numpy.float64)
]
results = {}
for k in range(len(calls)):
    k = (first + k) % len(calls)
    operation, dtype = calls[k]
    results[k] = float(numpy.sum(operation(*(a.astype(dtype) for a in wide))))
from gkfast.kernels.cpu.compiled import compiled_here
print([results[k] for k in sorted(results)], compiled_here())
"""


def test_processes_share_an_empty_cache(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}

    def start(first):
        command = [sys.executable, "-c", CHILD, str(first)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finish(process):
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        values, compiled = out.strip().rsplit(" ", 1)
        # who waits is told why, and nobody else
        assert err.count("gkfast compiles its CPU kernels") == (compiled != "0")
        return np.array(eval(values)), int(compiled)

    together = [finish(process) for process in [start(first) for first in range(4)]]
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(40, 3)) for _ in range(2))
    expected = [
        gkfast.rbf(x, y, 0.8, backend="reference").sum(),
        gkfast.rbf_matmul(x, y, y[:, :2], [0.5, 1.5], backend="reference").sum(),
        gkfast.mmd2(x, y, 0.8, backend="reference"),
    ]
    for values, _ in together:
        np.testing.assert_allclose(values, np.repeat(expected, 2), rtol=1e-5)
    # what one has compiled the others have loaded
    alone, compiled = finish(start(0))
    assert compiled == 0
    assert sum(count for _, count in together) > 0
    for values, _ in together:
        np.testing.assert_array_equal(values, alone)


# as on some network file systems
NO_LOCKS = """
import errno, fcntl
def no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = no_locks
"""
# one function, for one signature and then the other; meanwhile the other process does the opposite
TWO_SIGNATURES = """
import sys, numpy, gkfast
from gkfast.kernels.cpu import bandwidths, compiled
dtypes = [numpy.float32, numpy.float64]
for dtype in dtypes[:: int(sys.argv[1])]:
    for loop in bandwidths.PACKING:
        loop.pointer(numpy.dtype(dtype))
x = numpy.arange(600.0).reshape(200, 3) ** 0.5
for dtype in dtypes:
    print(float(gkfast.rbf(x.astype(dtype), x[:50].astype(dtype), 2.0).sum()))
print(compiled.compiled_here())
"""


def test_without_locks_on_files_no_process_loads_anothers_code(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}

    def start(code, order):
        command = [sys.executable, "-c", code, order]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finish(process):
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        *values, count = map(float, out.split())
        return values, count

    together = [finish(process) for process in [start(NO_LOCKS + TWO_SIGNATURES, order) for order in ("1", "-1")]]
    assert min(count for _, count in together) > 0
    alone, count = finish(start(TWO_SIGNATURES, "1"))
    assert count == 0
    x = np.arange(600.0).reshape(200, 3) ** 0.5
    expected = gkfast.rbf(x, x[:50], 2.0, backend="reference").sum()
    for values in (alone, *(values for values, _ in together)):
        assert values == alone
        np.testing.assert_allclose(values, [expected] * 2, rtol=1e-6)
    # nothing half-written is left
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".nbc", ""}
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and not path.suffix] == ["lock"]


def test_a_full_disk_is_told_once_and_harms_nothing(tmp_path, monkeypatch, caplog):
    place = disk.Place(tmp_path)
    monkeypatch.setattr(disk, "writing", lambda: (place, {}))
    monkeypatch.setattr(disk, "reading", lambda: [place])
    monkeypatch.setattr(disk.Code, "_told", False)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk.os, "replace", full)
    from gkfast.kernels.cpu.compiled import compiled

    @compiled
    def double(x):
        return 2 * x

    assert double(3) == 6
    assert double(1.5) == 3.0
    assert len(double.signatures) == 2
    assert caplog.text.count(f"gkfast cannot keep compiled code in {tmp_path}: [Errno 28] No space left") == 1
    # what was begun is gone
    assert {path.name for path in tmp_path.iterdir()} <= {"lock"}


@pytest.mark.parametrize("damage", ["shorter", "of another version", "empty"])
def test_a_file_that_is_not_whole_or_of_another_version_is_not_loaded(tmp_path, damage):
    with disk._Folder(disk.Place(tmp_path)) as folder:
        digest, content = b"d" * 32, b"content"
        folder.write("name", digest + disk.hashlib.sha256(content).digest() + content)
    assert disk._find(disk.Place(tmp_path), "name", digest) == content
    path = tmp_path / "name"
    whole = path.read_bytes()
    path.write_bytes({"shorter": whole[:-1], "of another version": b"e" + whole[1:], "empty": b""}[damage])
    assert disk._find(disk.Place(tmp_path), "name", digest) is None
