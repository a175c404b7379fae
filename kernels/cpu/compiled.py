"""Numba's njit for this folder: without the GIL, with NumPy's rules for division, kept on disk (disk.py).

Two methods of Numba's dispatchers are replaced, get_call_template and compile: see `compiled`.
"""

import gc
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numba import njit, types
from numba.core import config
from numba.core.compiler_lock import global_compiler_lock

from . import disk
from .library import in_background, late_code
from .passes import Compiler, shortcuts

if config.DISABLE_JIT:
    raise RuntimeError(
        "NUMBA_DISABLE_JIT must be unset for the CPU kernels, which exist as compiled code only, "
        f'got {config.DISABLE_JIT}; unset it, or pass backend="reference"'
    )

_this_process = threading.RLock()
# the thread that compiles
_busy: int | None = None
_told = False
_dispatchers: list[Any] = []


# no fastmath: it would allow to reorder what is ordered with care; no memory that is counted: see arrays.py
_OPTIONS = {
    "nogil": True,
    "error_model": "numpy",
    "no_cfunc_wrapper": True,
    "_nrt": False,
    "pipeline_class": Compiler,
}


def inner(function: Callable[..., Any]) -> Any:
    """Numba's njit for what compiled code calls by its name: its machine code is part of its callers'."""
    return _of_kinds(njit(**_OPTIONS, no_cpython_wrapper=True)(function))


def compiled(function: Callable[..., Any], named: Callable[..., Any] | None = None, **options: bool) -> Any:
    """Numba's njit for what is called from elsewhere: its machine code is kept on disk, under the name of `named`."""
    dispatcher = _of_kinds(njit(**_OPTIONS, **options)(function))
    dispatcher._cache = disk.Code(named or function)
    compile_one = dispatcher.compile

    def compile_alone(signature: Any) -> Any:
        with compiling():
            code = compile_one(signature)
            dispatcher.overloads[signature].library.start()
        return code

    dispatcher.compile = compile_alone
    _dispatchers.append(dispatcher)
    return dispatcher


def _of_kinds(dispatcher: Any) -> Any:
    """The dispatcher, which does not specialise on literal arguments."""
    template_of = dispatcher.get_call_template

    def template_of_kinds(arguments: Any, keywords: Any) -> Any:
        return template_of(tuple(map(types.unliteral, arguments)), keywords)

    dispatcher.get_call_template = template_of_kinds
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
    if not _told and compiled_here():
        _told = True
        logging.getLogger("gkfast").warning(
            "gkfast compiles its CPU kernels for this machine, 2 to 5 s for an operation, and keeps them %s",
            f"in {folder()}; the command `gkfast compile` does it beforehand"
            if folder()
            else "nowhere, as no folder can be written; set NUMBA_CACHE_DIR to one",
        )


@contextmanager
def compiling() -> Iterator[None]:
    """What is compiled meanwhile has machine code, and is on disk, when this ends: LLVM goes on beside Python.

    This thread alone compiles; a block within another one is part of it.
    """
    global _busy
    with _this_process:
        if _busy is not None:
            yield
            return
        _busy = threading.get_ident()
        try:
            with _uncollected(), _lightly(), shortcuts(), in_background():
                yield
                disk.keep()
        finally:
            _busy = None
            disk.release()
    _tell_once()


def undisturbed(work: Callable[[], Any]) -> Any:
    """work(), by another thread if this is the main one, on which Python runs signal handlers.

    What a handler raises in the middle of Numba may leave its tables, which are filled once, half filled for good.
    Here it is raised when the work has ended.
    """
    if threading.current_thread() is not threading.main_thread() or _busy == threading.get_ident():
        return work()
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    raised: BaseException | None = None
    thread = threading.Thread(target=run, name="gkfast compiles")
    while not future.done() or thread.is_alive():
        try:
            if thread.ident is None:
                thread.start()
            wait([future])
            thread.join()
        except BaseException as error:
            if thread.ident is None and str(error) == "can't start new thread":
                return work()
            raised = raised or error
    if raised is not None:
        raise raised
    return future.result()


@contextmanager
def _lightly() -> Iterator[None]:
    """At LLVM's first level: less time, and code as fast, since tiles are written in LLVM's own terms."""
    # the setting is Numba's, for all: nobody else compiles meanwhile
    with global_compiler_lock, late_code():
        usual = config.OPT
        try:
            config.OPT = type(usual)(min(1, usual))
            yield
        finally:
            config.OPT = usual


@contextmanager
def _uncollected() -> Iterator[None]:
    """Numba makes a million objects, few of them garbage: they are not looked through again and again."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            if not gc.get_freeze_count():
                # nor at once: from now on they count as old
                gc.freeze()
                gc.unfreeze()
            gc.enable()
