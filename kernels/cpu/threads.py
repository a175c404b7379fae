"""The thread driver: compiled kernels release the GIL, so Python's own threads run them side by side.

No OpenMP and no second runtime beside torch's: threads sleep when idle, any number of Python threads may call at
once, and a forked child (a DataLoader worker) starts a pool of its own when it first needs one. Results never depend
on the number of threads, because every output row is computed by one task in one order.
"""

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

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


def run_rows(task: Callable[[int, int], None], rows: int, work_per_row: int) -> None:
    """Call task(start, stop) for pieces that together cover range(rows), on this thread and its helpers."""
    threads = thread_count()
    if threads == 1 or rows < 2 or rows * work_per_row < _SERIAL_WORK:
        task(0, rows)
        return
    pieces = min(rows, threads * _TASKS_PER_THREAD)
    bounds = [rows * k // pieces for k in range(pieces + 1)]
    _share(lambda number: task(bounds[number], bounds[number + 1]), pieces, threads)


def _share(task: Callable[[int], None], count: int, threads: int) -> None:
    # one shared iterator hands the tasks out; taking the next one is atomic under the GIL
    todo = iter(range(count))

    def drain() -> None:
        for number in todo:
            task(number)

    helpers = _helpers(threads - 1)
    futures = [helpers.submit(drain) for _ in range(threads - 1)]
    try:
        drain()
    finally:
        # a helper that never started has nothing left to do
        for future in futures:
            if not future.cancel():
                future.result()
