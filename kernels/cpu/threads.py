"""The thread driver: compiled kernels release the GIL, so several threads run their pieces side by side.

The threads are those of torch's own OpenMP team, where torch has GNU OpenMP loaded (its Linux builds do). They wait
awake for a moment after each of torch's operations, and threads of our own would have to share the cores with them.
Elsewhere, and in a forked child, whose team has not survived the fork, Python's threads do it; they sleep when idle.

Any number of Python threads may call at once. Results never depend on the number of threads, because every output row
is computed by one task in one order.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

# below this many multiply-adds one thread is done before a second has woken up: 0.14 ms with AVX-512
SERIAL_WORK = 1 << 23
_TASKS_PER_THREAD = 4

_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_forked = False


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


class Task(NamedTuple):
    """run(start, stop) for pieces that together cover range(rows)."""

    run: Callable[[int, int], None]
    rows: int
    work_per_row: int  # multiply-adds


def run_rows(run: Callable[[int, int], None], rows: int, work_per_row: int) -> None:
    """One task, on this thread and its helpers."""
    run_tasks([Task(run, rows, work_per_row)])


def run_tasks(tasks: Sequence[Task]) -> None:
    """Tasks side by side, in pieces, on this thread and its helpers."""
    threads = thread_count()
    if threads == 1 or sum(task.rows * task.work_per_row for task in tasks) < SERIAL_WORK:
        for task in tasks:
            if task.rows:
                task.run(0, task.rows)
        return
    pieces = []
    for run, rows, work_per_row in tasks:
        count = min(rows, threads * _TASKS_PER_THREAD)
        bounds = [rows * k // count for k in range(count + 1)] if count else []
        pieces += [((stop - start) * work_per_row, run, start, stop) for start, stop in pairwise(bounds)]
    # the longest first: what is left at the end is short
    pieces.sort(key=lambda piece: -piece[0])
    _share([piece[1:] for piece in pieces], threads)


def _share(pieces: Sequence[tuple[Callable[[int, int], None], int, int]], threads: int) -> None:
    # one shared iterator hands the pieces out; taking the next one is atomic under the GIL
    todo = iter(pieces)
    errors: list[BaseException] = []

    def drain(_: object = None) -> None:
        try:
            for run, start, stop in todo:
                run(start, stop)
        # also Ctrl-C: nothing may pass through the team's code, which is not Python's
        except BaseException as error:
            errors.append(error)

    count = min(threads, len(pieces))
    team = _team()
    if team is not None:
        team(_Entry(drain), None, count, 0)
    else:
        futures = [_helpers(threads - 1).submit(drain) for _ in range(count - 1)]
        drain()
        # a helper that never started has nothing left to do
        for future in futures:
            if not future.cancel():
                future.result()
    if errors:
        raise errors[0]


_Entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _team() -> Callable[..., None] | None:
    """torch's team, GOMP_parallel(entry, argument, threads, 0), where it can be used."""
    return None if _forked or "torch" not in sys.modules else _gnu_openmp()


@cache
def _gnu_openmp() -> Callable[..., None] | None:
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
    return "Python's" if _team() is None else "torch's OpenMP team"
