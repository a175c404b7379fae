"""How everything here is compiled: without the GIL, with NumPy's rules for division, kept on disk.

Two things that Numba's cache on disk leaves open are settled here. It compares the date of a function's own file, and
would keep code of a tile long changed: the stamp here is of all files of this folder. And it numbers the files of a
function's signatures by what its index lists, so that two processes that compile two of them at once may pick one
number for both, and each would later load the other's code: whoever compiles or loads holds a lock on the folder.
"""

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numba import njit, types
from numba.core import config
from numba.core.compiler_lock import global_compiler_lock

_this_process = threading.RLock()
_depth = 0
_told = False
_dispatchers: list[Any] = []


def _stamp() -> str:
    content = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        content.update(path.read_bytes())
    return content.hexdigest()


_STAMP = _stamp()


def inner(function: Callable[..., Any]) -> Any:
    """`compiled`, for what only compiled code calls: without an entry from Python, whose compilation takes time."""
    return compiled(function, no_cpython_wrapper=True)


def compiled(function: Callable[..., Any], **options: bool) -> Any:
    """Numba's njit. No fastmath: it would allow to reorder what is ordered with care."""
    dispatcher = njit(nogil=True, cache=True, error_model="numpy", no_cfunc_wrapper=True, **options)(function)
    file = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if file is not None:
        file._source_stamp = _STAMP
    template_of, compile_one = dispatcher.get_call_template, dispatcher.compile

    def template_of_kinds(arguments: Any, keywords: Any) -> Any:
        # a constant among the arguments is worth no compilation of its own
        return template_of(tuple(map(types.unliteral, arguments)), keywords)

    dispatcher.get_call_template = template_of_kinds

    def compile_alone(signature: Any) -> Any:
        with _locked(folder()), _lightly():
            found = compile_one(signature)
        _tell_once()
        return found

    # numba calls it for each new signature, also from within the compilation of a caller
    dispatcher.compile = compile_alone
    _dispatchers.append(dispatcher)
    return dispatcher


def folder() -> Path:
    """Where compiled code is kept."""
    return Path(_dispatchers[0].stats.cache_path)


def compiled_here() -> int:
    """How many signatures this process has compiled itself, since the disk did not have them."""
    return sum(sum(dispatcher.stats.cache_misses.values()) for dispatcher in _dispatchers)


def _tell_once() -> None:
    """Why the first call takes so long, as soon as something has been compiled and more may have to be."""
    global _told
    if not _told and not _depth and compiled_here():
        _told = True
        logging.getLogger("gkfast").warning(
            "gkfast compiles its CPU kernels for this machine, 5 to 30 s for an operation, and keeps them in %s; "
            "the command `gkfast compile` does it beforehand",
            folder(),
        )


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    """This process alone in the folder; a compilation within another is not locked out by it."""
    global _depth
    with _this_process:
        if _depth:
            yield
            return
        place.mkdir(parents=True, exist_ok=True)
        with open(place / "lock", "a") as file:
            _wait_for(file)
            _depth = 1
            try:
                yield
            finally:
                # closing the file lets the next one in
                _depth = 0


@contextmanager
def _lightly() -> Iterator[None]:
    """At LLVM's first level: less time, and code as fast, since tiles are written in LLVM's own terms."""
    # the setting is Numba's, for all: nobody else compiles meanwhile
    with global_compiler_lock:
        usual, config.OPT = config.OPT, type(config.OPT)(min(1, config.OPT))
        try:
            yield
        finally:
            config.OPT = usual


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
