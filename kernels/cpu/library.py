"""Numba's libraries, whose machine code is made once, where its address is asked for.

Numba makes machine code of every function, and optimises a function anew with each of its callers. Here a function
waits as it was lowered until one that calls it is called from outside: both are then optimised together. LLVM does it
on a thread of its own, without the GIL, while Python lowers what is next. LLVM has one lock (llvmlite's), so nothing
here calls LLVM before that: a lowered function is kept as text.
"""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from llvmlite import binding, ir
from numba.core.cgutils import normalize_ir_text
from numba.core.codegen import CPUCodeLibrary, JITCodeLibrary
from numba.core.registry import cpu_target
from numba.core.runtime import rtsys

_TRIPLE = binding.get_process_triple()


class Library(JITCodeLibrary):
    """One function, and those that it calls."""

    def __init__(self, codegen: Any, name: str) -> None:
        # without CPUCodeLibrary's own, which calls LLVM
        super(CPUCodeLibrary, self).__init__(codegen, name)
        self._linking_libraries: list[Any] = []
        self._shared_module = None
        self._texts: list[str] = []
        self._defined: list[str] = []
        self._job: Future[None] | None = None
        self._has_code = False

    def _empty(self) -> Any:
        module = binding.parse_assembly(str(self.create_ir_module(self.name)))
        module.name = normalize_ir_text(self.name)
        return module

    # what Numba looks at before there is code
    _final_module = cached_property(_empty)

    def create_ir_module(self, name: str) -> Any:
        module = ir.Module(normalize_ir_text(name))
        module.triple, module.data_layout = _TRIPLE, self._codegen._data_layout
        return module

    def add_linking_library(self, library: Any) -> None:
        self._linking_libraries.append(library)

    def add_ir_module(self, ir_module: Any) -> None:
        self._texts.append(normalize_ir_text(str(ir_module)))
        self._defined += [function.name for function in ir_module.functions if not function.is_declaration]

    def finalize(self) -> None:
        self._raise_if_finalized()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        self._ensure_finalized()
        if name in self._defined:
            self.make_code()
        return super().get_pointer_to_function(name)

    def _called(self) -> dict[Any, None]:
        """The libraries of all functions that are called from here, in a fixed order."""
        found: dict[Any, None] = {}
        waiting = list(self._linking_libraries)
        while waiting:
            library = waiting.pop(0)
            if library not in found and library is not self:
                found[library] = None
                waiting += library._linking_libraries if isinstance(library, Library) else []
        return found

    def _lowered(self) -> Any:
        """A new module of the function alone."""
        if not self._texts:
            raise RuntimeError(f"{self.name} has machine code only: it can be called by a pointer, not by its name")
        module = self._empty()
        for text in self._texts:
            part = binding.parse_assembly(text)
            part.data_layout = self._codegen._data_layout
            module.link_in(part)
        return module

    def _linked(self) -> Any:
        """A new module of the function and of those that it calls."""
        module = self._lowered()
        for library in self._called():
            if isinstance(library, Library):
                module.link_in(_for_linking(library._lowered()))
            else:
                module.link_in(library._get_module_for_linking(), preserve=True)
        module.verify()
        return module

    def _make(self) -> None:
        module = self._linked()
        for function in module.functions:
            if not function.is_declaration and function.name not in self._defined:
                function.linkage = "internal"
        self._final_module = module
        self._optimize_final_module()
        # the engine asks for the code of this module, and forgets it
        code = self._compiled_object = self._codegen._tm.emit_object(module)
        self._finalize_final_module()
        self._compiled_object = code

    def start(self) -> None:
        """Has machine code made meanwhile, within `in_background`."""
        if not self._has_code and (self._job is None or _has_failed(self._job)):
            self._job = _begin(self._make)

    def make_code(self) -> None:
        """Returns when there is machine code."""
        if self._has_code:
            return
        if self._job is None or _has_failed(self._job):
            self._make()
        else:
            self._job.result()

    def _finalize_final_module(self) -> None:
        super()._finalize_final_module()
        self._has_code = True

    def _get_module_for_linking(self) -> Any:
        # for a caller that is compiled by Numba itself
        if self._shared_module is None:
            self._shared_module = _for_linking(self._linked())
        return self._shared_module

    def serialize_using_object_code(self) -> tuple[str, str, tuple[bytes, bytes]]:
        self.make_code()
        # what the object code defines, without its content
        names = [
            f'define void @"{function.name}"() {{ ret void }}'
            for function in self._final_module.functions
            if not function.is_declaration
        ]
        names += [
            f'@"{variable.name}" = global i8 0'
            for variable in self._final_module.global_variables
            if not variable.is_declaration and variable.linkage == binding.Linkage.common
        ]
        module = binding.parse_assembly("\n".join(names))
        return self.name, "object", (self._get_compiled_object(), module.as_bitcode())


def _for_linking(module: Any) -> Any:
    for function in module.functions:
        if not function.is_declaration and function.linkage == binding.Linkage.external:
            function.linkage = "linkonce_odr"
    return module


def _has_failed(job: "Future[None]") -> bool:
    """Whether it was dropped, or has raised."""
    return job.cancelled() or (job.done() and job.exception() is not None)


_worker: ThreadPoolExecutor | None = None


@contextmanager
def in_background() -> Iterator[None]:
    """What is started meanwhile is done by a thread, which is gone in the end. What it has not begun is dropped."""
    global _worker
    usual = sys.getswitchinterval()
    try:
        # between two long calls of LLVM are hundreds of short ones, after each of which it waits for the GIL
        sys.setswitchinterval(min(usual, 1e-4))
        _worker = ThreadPoolExecutor(1, "gkfast compiles")
        yield
    finally:
        _dismiss()
        sys.setswitchinterval(usual)


def _dismiss() -> None:
    global _worker
    worker, _worker = _worker, None
    if worker is not None:
        worker.shutdown(cancel_futures=True)


def _begin(work: Callable[[], None]) -> "Future[None] | None":
    """None where no thread can be started: who needs the code then makes it."""
    try:
        return None if _worker is None else _worker.submit(work)
    except RuntimeError:
        _dismiss()
        return None


@contextmanager
def late_code() -> Iterator[None]:
    """Functions are compiled into such libraries; under Numba's lock, not within another such block."""
    codegen = cpu_target.target_context.codegen()
    rtsys.initialize(cpu_target.target_context)
    usual, set_env = codegen._library_class, codegen.set_env

    def set_known(name: str, env: Any) -> None:
        # a function without machine code has no environment yet; none here looks at its own
        engine = codegen._engine
        if engine.is_symbol_defined(name) and engine.get_global_value_address(name):
            set_env(name, env)

    codegen._library_class, codegen.set_env = Library, set_known
    try:
        yield
    finally:
        codegen._library_class = usual
        del codegen.set_env
