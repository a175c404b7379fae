"""The thread driver: compiled kernels release the GIL, so Python's own threads run them side by side.

No OpenMP and no second runtime beside torch's: threads sleep when idle, any number of Python threads may call at
once, and a forked child (a DataLoader worker) starts a pool of its own when it first needs one. Results never depend
on the number of threads, because every output row is computed by one task in one order.
"""

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

# below this many multiply-adds one thread is done before a second has woken up: 0.14 ms with AVX-512
_SERIAL_WORK = 1 << 23
_TASKS_PER_THREAD = 4

_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def _forget_pool() -> None:
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)


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
    if threads == 1 or sum(task.rows * task.work_per_row for task in tasks) < _SERIAL_WORK:
        for task in tasks:
            if task.rows:
                task.run(0, task.rows)
        return
    pieces = []
    for run, rows, _ in tasks:
        count = min(rows, threads * _TASKS_PER_THREAD)
        bounds = [rows * k // count for k in range(count + 1)] if count else []
        pieces += [(run, start, stop) for start, stop in pairwise(bounds)]
    _share(pieces, threads)


def _share(pieces: Sequence[tuple[Callable[[int, int], None], int, int]], threads: int) -> None:
    # one shared iterator hands the pieces out; taking the next one is atomic under the GIL
    todo = iter(pieces)

    def drain() -> None:
        for run, start, stop in todo:
            run(start, stop)

    count = min(threads, len(pieces)) - 1
    futures = [_helpers(threads - 1).submit(drain) for _ in range(count)]
    try:
        drain()
    finally:
        # a helper that never started has nothing left to do
        for future in futures:
            if not future.cancel():
                future.result()
