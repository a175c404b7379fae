"""Compiled code on disk, written by one process at a time.

Numba numbers the files of a function's compiled signatures by what its index lists. Two processes that compile two
signatures of one function at once may therefore pick one number for both, and each would later load the other's code.
So whoever compiles, or loads what was compiled, holds a lock on the cache's folder.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numba import njit

_this_process = threading.RLock()
_depth = 0
_dispatchers: list[Any] = []


def jit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """njit as all kernels here want it: without the GIL, with NumPy's rules of arithmetic, cached on disk."""

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = njit(nogil=True, cache=True, error_model="numpy", **options)(function)
        compile_one = dispatcher.compile

        def compile_alone(signature: Any) -> Any:
            with _locked(Path(dispatcher.stats.cache_path)):
                return compile_one(signature)

        # numba calls it for each new signature, also from within the compilation of a caller
        dispatcher.compile = compile_alone
        _dispatchers.append(dispatcher)
        return dispatcher

    return decorate


def folder() -> Path:
    """Where compiled code is kept."""
    return Path(_dispatchers[0].stats.cache_path)


def compiled_here() -> int:
    """How many signatures this process has compiled itself, since the disk did not have them."""
    return sum(sum(dispatcher.stats.cache_misses.values()) for dispatcher in _dispatchers)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """This process alone in the folder; a compilation within another is not locked out by it."""
    global _depth
    with _this_process:
        if _depth:
            yield
            return
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "lock", "a") as file:
            _wait_for(file)
            _depth = 1
            try:
                yield
            finally:
                # closing the file lets the next one in
                _depth = 0


try:
    import fcntl

    def _wait_for(file: Any) -> None:
        fcntl.flock(file, fcntl.LOCK_EX)

except ImportError:
    import msvcrt
    import time

    def _wait_for(file: Any) -> None:
        while True:
            try:
                file.seek(0)
                return msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
            except OSError:  # it gives up after ten seconds
                time.sleep(0.1)
