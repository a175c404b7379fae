"""What a first call compiles: LLVM beside Python, and what errors, Ctrl-C and a want of threads leave behind."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from llvmlite import binding
from numba.core import config, typed_passes
from numba.core.errors import TypingError
from numba.core.registry import cpu_target

from gkfast.kernels.cpu import calls, disk, library
from gkfast.kernels.cpu.calls import by_pointer, pointers_of
from gkfast.kernels.cpu.compiled import compiled, compiling, undisturbed


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder for compiled code."""
    place = disk.Place(tmp_path)
    monkeypatch.setattr(disk, "writing", lambda: (place, {}))
    monkeypatch.setattr(disk, "reading", lambda: [place])
    return tmp_path


@pytest.fixture
def codes():
    """Two functions that nobody has compiled yet, and one that calls them: [(1, 2), ...], pointers -> a number."""

    @by_pointer(lambda dtype: (dtype.type(0), dtype.type(0)))
    def add(x, y):
        return x + y

    @by_pointer(lambda dtype: (dtype.type(0), dtype.type(0)))
    def multiply(x, y):
        return x * y

    @compiled
    def both(pointers, x, y):
        return add(pointers[0], (x, y)) + 100 * multiply(pointers[1], (x, y))

    return (add, multiply), both


@pytest.fixture
def makers(monkeypatch):
    """On which threads machine code is made."""
    names, make = [], library.Library._make

    def noted(self):
        names.append(threading.current_thread().name)
        make(self)

    monkeypatch.setattr(library.Library, "_make", noted)
    return names


def files(place):
    return sorted(path.name for path in place.iterdir() if path.name != "lock")


def assert_as_before(level):
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gkfast")]
    assert gc.isenabled()
    assert sys.getswitchinterval() == 0.005
    assert level == config.OPT
    assert typed_passes.llvm is binding
    codegen = cpu_target.target_context.codegen()
    assert "resolve_function_type" not in vars(cpu_target.typing_context)
    assert "set_env" not in vars(codegen)
    assert codegen._library_class is not library.Library


def test_llvm_works_on_a_thread_that_is_gone_in_the_end(place, codes, makers):
    (loops, both), level, dtype = codes, config.OPT, np.dtype(np.float64)
    pointers = pointers_of(dtype, *loops)
    assert len(makers) == 2
    assert all(name.startswith("gkfast") for name in makers)
    assert len(files(place)) == 2
    assert_as_before(level)
    assert both(pointers, 2.0, 3.0) == 605.0
    assert len(files(place)) == 3
    assert_as_before(level)


def test_nobody_waits_before_all_is_lowered(place, codes, monkeypatch):
    (loops, _), lowered, make = codes, threading.Event(), library.Library._make

    def waits(self):
        assert lowered.wait(60)
        make(self)

    monkeypatch.setattr(library.Library, "_make", waits)
    with compiling():
        calls.start(np.dtype(np.float32), *loops)
        assert files(place) == []
        lowered.set()
    assert len(files(place)) == 2


def test_where_no_thread_can_be_started_the_caller_makes_it(place, codes, makers, monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    (loops, both), level = codes, config.OPT
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        pointers = pointers_of(np.dtype(np.float64), *loops)
        assert both(pointers, 2.0, 3.0) == 605.0
    assert makers == [threading.current_thread().name] * 3
    assert len(files(place)) == 3
    assert_as_before(level)


def test_what_llvm_raises_is_raised_and_tried_again(place, codes, monkeypatch):
    (loops, both), level, dtype = codes, config.OPT, np.dtype(np.float64)

    def fail(self):
        raise MemoryError("of LLVM")

    with monkeypatch.context() as patch:
        patch.setattr(library.Library, "_optimize_final_module", fail)
        with pytest.raises(MemoryError, match="of LLVM"):
            pointers_of(dtype, *loops)
    assert_as_before(level)
    assert files(place) == []
    assert both(pointers_of(dtype, *loops), 2.0, 3.0) == 605.0
    assert len(files(place)) == 3


def test_an_error_while_python_lowers_leaves_the_rest(place, codes):
    level, ((add, _), _) = config.OPT, codes

    @compiled
    def wrong(x):
        return x.no_such_attribute

    def compile_both():
        with compiling():
            add.compiled(np.dtype(np.float64))
            wrong(1.0)

    with pytest.raises(TypingError, match="no_such_attribute"):
        compile_both()
    assert_as_before(level)
    assert add.pointer(np.dtype(np.float64))
    # the next who compiles writes what was compiled before
    add.compiled(np.dtype(np.float32))
    assert len(files(place)) == 2


def test_by_its_name_only_what_was_lowered_here_can_be_called(place):
    def function(x):
        return x + 1

    compiled(function)(1.0)
    loaded = compiled(function)
    loaded(1.0)
    assert loaded.stats.cache_hits

    @compiled
    def caller(x):
        return loaded(x)

    with pytest.raises(RuntimeError, match="can be called by a pointer, not by its name"):
        caller(1.0)


CHILD = """
import os, signal, sys, threading, numpy, gkfast
from gkfast.kernels.cpu import compiled, disk
x = numpy.random.default_rng(0).normal(size=(300, 20))
expected = gkfast.rbf(x, sigma=3.0, backend="reference")
signal.signal(signal.SIGALRM, signal.default_int_handler)
ended = 0
for k in range(int(sys.argv[1])):
    try:
        signal.setitimer(signal.ITIMER_REAL, float(sys.argv[2]) + 0.15 * k)
        value = gkfast.rbf(x, sigma=3.0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        ended += 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gkfast")]
    assert not disk._held
numpy.testing.assert_allclose(gkfast.rbf(x, sigma=3.0), expected, rtol=0, atol=1e-14)
print(ended, compiled.compiled_here())
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers that send signals")
@pytest.mark.parametrize("first", [0.02, 0.06, 0.1])
def test_ctrl_c_while_it_compiles_leaves_nothing_half_done(first, tmp_path):
    """Nor while Numba fills its tables, in the first tenth of a second."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}

    def run(times):
        command = [sys.executable, "-c", CHILD, str(times), str(first)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        assert "Exception ignored" not in done.stderr
        return map(int, done.stdout.split())

    ended, count = run(12)
    assert ended > 0
    assert count > 0
    paths = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in paths} == {".nbc", ""}
    assert [path.name for path in paths if not path.suffix] == ["lock"]
    # all that was compiled is there for the next process
    assert list(run(0)) == [0, 0]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers that send signals")
@pytest.mark.parametrize("error", [RuntimeError("can't go on"), KeyboardInterrupt()])
def test_what_a_handler_raises_waits_for_the_work(error):
    done = []

    def handler(*_):
        raise error

    def work():
        time.sleep(0.3)
        done.append(threading.current_thread())

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(type(error)) as caught:
            undisturbed(work)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert caught.value is error
    assert done[0] is not threading.main_thread()
    assert not done[0].is_alive()


def test_without_a_thread_the_work_is_done_here(monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert undisturbed(threading.current_thread) is threading.main_thread()
