"""The thread driver: compiled code hands its pieces of work to a team of threads, without the GIL.

The team is torch's own of OpenMP, where torch has GNU OpenMP loaded (its Linux builds do). Its threads wait awake for
a moment after each of torch's operations, and threads of our own would have to share the cores with them. Elsewhere,
and in a forked child, whose team has not survived the fork, Python's threads do it; they sleep when idle.

Any number of Python threads may call at once. Results never depend on the number of threads, because every output row
is computed by one task in one order.
"""

import ctypes
import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

# below this many multiply-adds one thread is done before a second has woken up: 0.14 ms with AVX-512
SERIAL_WORK = 1 << 23

_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_forked = False
_interrupted = False


def _after_fork() -> None:
    global _pool, _forked
    _pool, _forked = None, True


os.register_at_fork(after_in_child=_after_fork)


def thread_count() -> int:
    """torch.get_num_threads() where torch is loaded, else NUMBA_NUM_THREADS, else the processors at hand."""
    if "torch" in sys.modules:
        return sys.modules["torch"].get_num_threads()
    return int(os.environ.get("NUMBA_NUM_THREADS", 0)) or len(os.sched_getaffinity(0))


def _helpers(count: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    if _pool is None or _pool_size < count:
        # an outgrown pool finishes what it has and ends by itself
        _pool, _pool_size = ThreadPoolExecutor(count, thread_name_prefix="gkfast"), count
    return _pool


def team(work: int) -> tuple[int, int]:
    """For so many multiply-adds: where parallel(entry, data, threads, flags) begins, and how many threads.

    It calls entry(data) on that many threads, this one among them, and returns when all have returned. 0 is for this
    thread alone.
    """
    global _interrupted
    threads = thread_count()
    if threads == 1 or work < SERIAL_WORK:
        return 0, 1
    if _interrupted:
        # Ctrl-C could not pass through compiled code, which called for Python's threads
        _interrupted = False
        raise KeyboardInterrupt
    return ctypes.cast(_parallel(), ctypes.c_void_p).value, threads


_Entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_Parallel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)


@_Parallel
def _by_pool(entry: int, data: int, threads: int, flags: int) -> None:
    """As GOMP_parallel, with Python's threads."""
    global _interrupted
    run = _Entry(entry)
    futures: list[Future[None]] = []
    running = True
    while running:
        # data is the caller's, who waits: nothing leaves before all threads have
        try:
            try:
                while len(futures) < threads - 1:
                    futures.append(_helpers(threads - 1).submit(run, data))
            except RuntimeError:
                # no thread is to be had; this one takes all the pieces
                pass
            run(data)
            for future in futures:
                # a helper that never started has nothing left to do
                if not future.cancel():
                    future.result()
            running = False
        except KeyboardInterrupt:
            _interrupted = True


def _parallel() -> Any:
    """torch's team where it can be used, else Python's threads."""
    return (None if _forked or "torch" not in sys.modules else _gnu_openmp()) or _by_pool


@cache
def _gnu_openmp() -> Any:
    """GOMP_parallel of the OpenMP runtime that torch has loaded, if it is GNU's."""
    libraries = Path(sys.modules["torch"].__file__).parent / "lib"
    for path in libraries.glob("libgomp*.so*"):
        try:
            # not to be loaded a second time: the name finds what is there already
            return ctypes.CDLL(path.name, mode=os.RTLD_NOLOAD | os.RTLD_NOW).GOMP_parallel
        except OSError:
            continue
    return None


def kind() -> str:
    """Whose threads, in words."""
    return "Python's" if _parallel() is _by_pool else "torch's OpenMP team"
