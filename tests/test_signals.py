"""A signal handler that raises during a call on several threads: the call ends with that, or with the right value.

GKFAST_SIGNAL_CALLS sets how many calls each test interrupts.
"""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import gkfast
from gkfast.kernels.cpu import compiled
from gkfast.kernels.cpu import threads as driver

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers that send signals"),
]
CALLS = int(os.environ.get("GKFAST_SIGNAL_CALLS", 40))


class TimeIsUp(BaseException):
    """No Exception, as a test runner's may not be one."""


@pytest.fixture
def timer():
    """interrupted(call, seconds): its value, or None where `raised` came out of it."""
    armed, raised, seen = False, TimeIsUp, 0

    def handler(*_):
        nonlocal seen
        if armed:
            seen += 1
            raise raised

    def interrupted(call, seconds, error):
        nonlocal armed, raised
        raised, value = error, None
        try:
            armed = True
            signal.setitimer(signal.ITIMER_REAL, seconds)
            value = call()
            armed = False
        except error:
            armed = False
            return None, True
        signal.setitimer(signal.ITIMER_REAL, 0)
        return value, False

    before = signal.signal(signal.SIGALRM, handler)
    yield interrupted
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=["torch's team", "threads of its own"])
def team(request, monkeypatch, threads):
    threads(3)
    if request.param == "threads of its own":
        monkeypatch.setattr(driver, "_gnu_openmp", lambda: 0)
    assert driver.thread_team(1 << 30)[1] == 3


@pytest.mark.parametrize("error", [TimeIsUp, KeyboardInterrupt, MemoryError])
def test_a_handler_that_raises_leaves_no_wrong_value(rng, team, timer, error):
    x, y = (rng.normal(size=(700, 20)).astype(np.float32) for _ in range(2))
    x_torch, y_torch = (torch.from_numpy(a).requires_grad_() for a in (x, y))
    calls = (
        lambda: [gkfast.rbf(x, y, 3.0)],
        lambda: [gkfast.mmd2(x, y, [2.0, 3.0])],
        lambda: [gkfast.rbf_matmul(x, y, y[:, :1], 3.0)],
        lambda: [gkfast.rbf_matmul(x, y, y[:, :4], 3.0)],
        lambda: [gkfast.log_density(x, y, 2.0)],
        lambda: torch.autograd.grad(gkfast.mmd2(x_torch, y_torch, 2.0), (x_torch, y_torch)),
        lambda: torch.autograd.grad(gkfast.rbf_matmul(x_torch, y_torch, y_torch, 2.0).sum(), (x_torch, y_torch)),
    )
    # as arrays: what torch would print of tensors that differ is long
    calls = [lambda call=call: [np.asarray(a) for a in call()] for call in calls]
    expected, durations = [], []
    for call in calls:
        call()
        start = time.perf_counter()
        expected.append(call())
        durations.append(time.perf_counter() - start)
    # delays from one seed; what they hit differs from run to run
    moments = random.Random(0)
    arrived = 0
    for k in range(CALLS):
        k %= len(calls)
        value, came = timer(calls[k], moments.uniform(1e-6, 1.2 * durations[k]), error)
        arrived += came
        for values in [calls[k]()] if came else [value, calls[k]()]:
            for ours, right in zip(values, expected[k], strict=True):
                np.testing.assert_array_equal(ours, right)
    print(f"{error.__name__}: {arrived} of {CALLS} calls ended with it, the others with the right value")
    assert arrived > CALLS // 8


# Ctrl-C in a process that has no torch, and in its child after a fork
CHILD = """
import os, signal, sys, numpy, gkfast
x = numpy.random.default_rng(0).normal(size=(3000, 20))
assert "torch" not in sys.modules
expected = gkfast.rbf(x, sigma=3.0)
parent = os.getpid()
if os.fork() == 0:
    numpy.testing.assert_array_equal(gkfast.rbf(x, sigma=3.0), expected)
ended = 0
for k in range(10):
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.002 * (k + 1))
        value = gkfast.rbf(x, sigma=3.0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        numpy.testing.assert_array_equal(value, expected)
    except KeyboardInterrupt:
        ended += 1
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    numpy.testing.assert_array_equal(gkfast.rbf(x, sigma=3.0), expected)
assert ended > 0
if os.getpid() == parent:
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_without_torch_and_after_a_fork():
    environment = os.environ | {"NUMBA_NUM_THREADS": "3"}
    command = [sys.executable, "-c", CHILD]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Exception ignored" not in done.stderr


NO_THREADS = """
import sys, numpy, gkfast
from llvmlite import ir
from gkfast.kernels.cpu import pool, threads
pool._System.start = lambda *_: ir.IntType(1)(0)
x = numpy.random.default_rng(0).normal(size=(1000, 20))
assert threads.thread_team(1000 * 1000 * 30)[1] == 3
numpy.testing.assert_allclose(
    gkfast.rbf(x, sigma=3.0), gkfast.rbf(x, sigma=3.0, backend="reference"), rtol=0, atol=1e-14
)
"""


def test_where_no_thread_can_be_made_the_caller_does_it():
    environment = os.environ | {"NUMBA_NUM_THREADS": "3"}
    command = [sys.executable, "-c", NO_THREADS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_no_operation_returns_what_numba_runs_python_to_make(rng):
    x = rng.normal(size=(5, 2))
    for value in (gkfast.rbf(x, x, 1.0), gkfast.rbf_matmul(x, x, x, 1.0), gkfast.rbf_matmul(x, x, x[:, :1], 1.0)):
        assert np.isfinite(value).all()
    assert np.isfinite(gkfast.mmd2(x, x + 1, 1.0))
    assert np.isfinite(gkfast.log_density(x, x, 1.0)).all()
    assert np.isfinite(gkfast.drift(x, x + 1, sigma=1.0)).all()
    entries = [
        dispatcher
        for dispatcher in compiled._dispatchers
        if dispatcher.__module__.startswith("gkfast.") and not dispatcher.targetoptions.get("no_cpython_wrapper")
    ]
    kinds = {str(code.signature.return_type) for entry in entries for code in entry.overloads.values()}
    assert len(entries) == 10
    assert kinds == {"none", "bool"}
