"""The thread driver: compiled code hands its pieces of work to a team of threads, without the GIL.

The team is torch's own of OpenMP, where torch has GNU OpenMP loaded (its Linux builds do). Its threads wait awake for
a moment after each of torch's operations, and threads of our own would have to share the cores with them. Elsewhere,
and in a forked child, whose team has not survived the fork, pool.py's threads do it; they sleep when idle.

Neither runs a line of Python. So no signal handler runs, and nothing is raised, before the call has ended and its
result is whole: Ctrl-C or a time-out by SIGALRM is raised right after it.

Any number of Python threads may call at once. Results never depend on the number of threads, because every output row
is computed by one task in one order.
"""

import ctypes
import os
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

from . import pool
from .vector import BYTES

# below this many multiply-adds one thread does it alone; None: measured, see `serial_work`
SERIAL_WORK: int | None = None
# what takes one thread this many times as long as a team takes for nothing is worth a team: it then takes two thirds
_WORTH = 30
# of one thread in a second: half of one register in each clock at 3 GHz
_MULTIPLY_ADDS = 1.5e9 * BYTES / 4
# whatever was measured; other processes may have had the cores
_LEAST_SERIAL, _MOST_SERIAL = 1 << 20, 1 << 23
# seconds after which no more is measured
_ENOUGH = 0.02

_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True
    pool.renew()


# Windows has no fork
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def thread_count() -> int:
    """torch.get_num_threads() where torch is loaded, else NUMBA_NUM_THREADS, else the processors at hand."""
    if "torch" in sys.modules:
        return sys.modules["torch"].get_num_threads()
    return int(os.environ.get("NUMBA_NUM_THREADS", 0)) or _processors()


def _processors() -> int:
    # macOS and Windows do not tell which of them this process may use
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_team(work: int) -> tuple[int, int]:
    """For so many multiply-adds: where parallel(entry, data, threads, flags) begins, and how many threads.

    It calls entry(data) on that many threads, this one among them, and returns when all have returned. An address of
    0 stands for this thread alone.
    """
    if work < _LEAST_SERIAL and SERIAL_WORK is None:
        return 0, 1
    threads = thread_count()
    if threads == 1:
        return 0, 1
    team = _parallel()
    alone = serial_work(team, threads) if SERIAL_WORK is None else SERIAL_WORK
    return (0, 1) if work < alone else (team, threads)


@cache
def serial_work(team: int, threads: int) -> int:
    """Below how many multiply-adds so many threads take longer than one, by the time they take for nothing."""
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(team)
    # free(NULL) does nothing
    nothing = _address((ctypes.cdll.msvcrt if os.name == "nt" else ctypes.CDLL(None)).free)

    def seconds() -> float:
        start = time.perf_counter()
        call(nothing, None, threads, 0)
        return time.perf_counter() - start

    tries: list[float] = []
    # on cores that are busy with something else each takes milliseconds
    while len(tries) < 20 and sum(tries) < _ENOUGH:
        tries.append(seconds())
    return int(min(max(_WORTH * _MULTIPLY_ADDS * min(tries), _LEAST_SERIAL), _MOST_SERIAL))


def _parallel() -> int:
    """torch's team where it can be used, else threads of our own."""
    return (0 if _forked or "torch" not in sys.modules else _gnu_openmp()) or pool.parallel()


@cache
def _gnu_openmp() -> int:
    """GOMP_parallel of the OpenMP runtime that torch has loaded, if it is GNU's; else 0."""
    libraries = Path(sys.modules["torch"].__file__).parent / "lib"
    loaded = getattr(os, "RTLD_NOLOAD", None)
    for path in libraries.glob("libgomp*.so*") if loaded is not None else ():
        try:
            # the name finds the library that torch has loaded; it must not be loaded twice
            return _address(ctypes.CDLL(path.name, mode=loaded | os.RTLD_NOW).GOMP_parallel)
        except OSError:
            continue
    return 0


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def kind() -> str:
    """Whose threads, in words."""
    return "threads of its own" if _parallel() == pool.parallel() else "torch's OpenMP team"
