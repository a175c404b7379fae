"""Numba's libraries, whose machine code is made once, where its address is asked for.

Numba makes machine code of every function, and optimises a function anew with each of its callers. Here a function
waits as it was lowered until one that calls it is called from outside: both are then optimised together.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import binding
from numba.core.codegen import JITCodeLibrary
from numba.core.registry import cpu_target
from numba.core.runtime import rtsys


class Library(JITCodeLibrary):
    """One function, and those that it calls."""

    def __init__(self, codegen: Any, name: str) -> None:
        super().__init__(codegen, name)
        self._has_code = False

    def add_linking_library(self, library: Any) -> None:
        self._linking_libraries.append(library)

    def add_llvm_module(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout
        self._final_module.link_in(ll_module)

    def finalize(self) -> None:
        self._raise_if_finalized()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        self._ensure_finalized()
        if name in self._names():
            self.make_code()
        return super().get_pointer_to_function(name)

    def _names(self) -> list[str]:
        """Of the functions that are defined here."""
        return [function.name for function in self._final_module.functions if not function.is_declaration]

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

    def _link(self) -> None:
        for library in self._called():
            own = library._final_module if isinstance(library, Library) and not library._has_code else None
            module = library._get_module_for_linking() if own is None else _for_linking(own)
            self._final_module.link_in(module, preserve=own is None)
        self._linking_libraries = []

    def make_code(self) -> None:
        if self._has_code:
            return
        own = set(self._names())
        self._link()
        for function in self._final_module.functions:
            if not function.is_declaration and function.name not in own:
                function.linkage = "internal"
        self._optimize_final_module()
        self._finalize_final_module()

    def _finalize_final_module(self) -> None:
        self._has_code = True
        super()._finalize_final_module()

    def _get_module_for_linking(self) -> Any:
        # for a caller that is compiled by Numba itself
        if not self._has_code and self._shared_module is None:
            self._link()
        return super()._get_module_for_linking()

    def serialize_using_object_code(self) -> tuple[str, str, tuple[bytes, bytes]]:
        self.make_code()
        # what the object code defines, without its content
        names = [f'define void @"{name}"() {{ ret void }}' for name in self._names()]
        names += [
            f'@"{variable.name}" = global i8 0'
            for variable in self._final_module.global_variables
            if not variable.is_declaration and variable.linkage == binding.Linkage.common
        ]
        module = binding.parse_assembly("\n".join(names))
        return self.name, "object", (self._get_compiled_object(), module.as_bitcode())


def _for_linking(module: Any) -> Any:
    module = module.clone()
    for function in module.functions:
        if not function.is_declaration and function.linkage == binding.Linkage.external:
            function.linkage = "linkonce_odr"
    return module


@contextmanager
def late_code() -> Iterator[None]:
    """Functions are compiled into such libraries; under Numba's lock."""
    codegen = cpu_target.target_context.codegen()
    if codegen._library_class is Library:
        # within the compilation of a caller
        yield
        return
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
