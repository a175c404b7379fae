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
from functools import cache
from pathlib import Path
from typing import Any

from . import pool

# below this many multiply-adds one thread is done before a second has woken up: 0.14 ms with AVX-512
SERIAL_WORK = 1 << 23

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
    threads = thread_count()
    if threads == 1 or work < SERIAL_WORK:
        return 0, 1
    return _parallel(), threads


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
