"""Numba's njit for this folder: without the GIL, with NumPy's rules for division, kept on disk (disk.py).

Two methods of Numba's dispatchers are replaced, get_call_template and compile: see `compiled`.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numba import njit, types
from numba.core import config
from numba.core.compiler_lock import global_compiler_lock

from . import disk

if config.DISABLE_JIT:
    raise RuntimeError(
        "NUMBA_DISABLE_JIT must be unset for the CPU kernels, which exist as compiled code only, "
        f'got {config.DISABLE_JIT}; unset it, or pass backend="reference"'
    )

_this_process = threading.RLock()
_depth = 0
_told = False
_dispatchers: list[Any] = []


def inner(function: Callable[..., Any]) -> Any:
    """Like `compiled`, without an entry from Python, whose compilation takes time: for what compiled code calls."""
    return compiled(function, no_cpython_wrapper=True)


def borrows(function: Callable[..., Any]) -> Any:
    """Like `inner`, for what makes and returns no array: it counts no references, slower than few pairs."""
    return compiled(function, no_cpython_wrapper=True, _nrt=False)


def compiled(function: Callable[..., Any], **options: bool) -> Any:
    """Numba's njit. No fastmath: it would allow to reorder what is ordered with care."""
    dispatcher = njit(nogil=True, error_model="numpy", no_cfunc_wrapper=True, **options)(function)
    dispatcher._cache = disk.Code(function)
    template_of, compile_one = dispatcher.get_call_template, dispatcher.compile

    def template_of_kinds(arguments: Any, keywords: Any) -> Any:
        # do not specialise on literal arguments
        return template_of(tuple(map(types.unliteral, arguments)), keywords)

    dispatcher.get_call_template = template_of_kinds

    def compile_alone(signature: Any) -> Any:
        with _alone(), _lightly():
            code = compile_one(signature)
        _tell_once()
        return code

    # numba calls it for each new signature, also from within the compilation of a caller
    dispatcher.compile = compile_alone
    _dispatchers.append(dispatcher)
    return dispatcher


def folder() -> Path | None:
    """Where compiled code is kept, if anywhere."""
    place, _ = disk.writing()
    return None if place is None else place.path


def compiled_here() -> int:
    """How many signatures this process has compiled itself, since the disk did not have them."""
    return sum(sum(dispatcher.stats.cache_misses.values()) for dispatcher in _dispatchers)


def _tell_once() -> None:
    """Logs once why the first call takes long, after the first compilation."""
    global _told
    if not _told and not _depth and compiled_here():
        _told = True
        logging.getLogger("gkfast").warning(
            "gkfast compiles its CPU kernels for this machine, 5 to 30 s for an operation, and keeps them %s",
            f"in {folder()}; the command `gkfast compile` does it beforehand"
            if folder()
            else "nowhere, as no folder can be written; set NUMBA_CACHE_DIR to one",
        )


@contextmanager
def _alone() -> Iterator[None]:
    """This thread alone compiles; what it compiles within another compilation does not wait for that."""
    global _depth
    with _this_process:
        depth = _depth
        try:
            _depth = depth + 1
            yield
        finally:
            _depth = depth
            if not depth:
                disk.release()


@contextmanager
def _lightly() -> Iterator[None]:
    """At LLVM's first level: less time, and code as fast, since tiles are written in LLVM's own terms."""
    # the setting is Numba's, for all: nobody else compiles meanwhile
    with global_compiler_lock:
        usual = config.OPT
        try:
            config.OPT = type(usual)(min(1, usual))
            yield
        finally:
            config.OPT = usual
