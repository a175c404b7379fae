"""How Numba goes through a function of this folder: what it does for the sake of other functions is left out."""

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from numba import types
from numba.core import cgutils, ir, typed_passes
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import FunctionPass, PassManager, register_pass
from numba.core.lowering import Lower
from numba.core.registry import cpu_target
from numba.extending import intrinsic

# what is for closures, object mode, literals as types, and expressions of whole arrays
_UNUSED = {
    "WithLifting",
    "InlineClosureLikes",
    "RewriteSemanticConstants",
    "DeadBranchPrune",
    "RewriteDynamicRaises",
    "MakeFunctionToJitFunction",
    "InlineInlinables",
    "FindLiterallyCalls",
    "LiteralUnroll",
    "LiteralPropagationSubPipelinePass",
    "InlineOverloads",
    "NopythonRewrites",
    "DumpParforDiagnostics",
}


def _extreme(compare: Any) -> Any:
    def choose(typing_context, *numbers):
        kind = typing_context.unify_types(*map(types.unliteral, numbers))

        def generate(context, builder, signature, arguments):
            # varargs come as a tuple
            given = [builder.extract_value(arguments[0], place) for place in range(len(numbers))]
            values = [
                context.cast(builder, value, types.unliteral(number), kind)
                for value, number in zip(given, numbers, strict=True)
            ]
            is_better = context.get_function(compare, types.boolean(kind, kind))
            best = values[0]
            for value in values[1:]:
                best = builder.select(is_better(builder, (value, best)), value, best)
            return best

        return kind(types.StarArgTuple.from_types(list(numbers))), generate

    return intrinsic(choose)


# Python's own, for numbers: Numba compiles a function for each combination of types
_OWN = {min: _extreme(operator.lt), max: _extreme(operator.gt)}


@register_pass(mutates_CFG=False, analysis_only=False)
class _OwnBuiltins(FunctionPass):
    _name = "gkfast_builtins"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        for block in state.func_ir.blocks.values():
            for statement in block.find_insts(ir.Assign):
                name = statement.value
                if isinstance(name, ir.Global) and name.value in (min, max):
                    statement.value = ir.Global(name.name, _OWN[name.value], name.loc)
        return True


class _Lower(Lower):
    """Nothing is counted here: a variable's old value needs no look, and its end no trace."""

    def storevar(self, value: Any, name: str, argidx: int | None = None) -> None:
        self._alloca_var(name, self.typeof(name))
        if name in self._singly_assigned_vars and not self._disable_sroa_like_opt:
            self._blk_local_varmap[name] = value
        else:
            self.builder.store(value, self.getvar(name))

    def alloca_lltype(self, name: str, lltype: Any, datamodel: Any = None) -> Any:
        # Numba asks LLVM for the size, for a debugger
        return cgutils.alloca_once(self.builder, lltype, name=name)

    def delvar(self, name: str) -> None:
        if name not in self._blk_local_varmap and not self._disable_sroa_like_opt:
            self._singly_assigned_vars.discard(name)


@register_pass(mutates_CFG=True, analysis_only=False)
class _Lowering(typed_passes.NativeLowering):
    _name = "gkfast_lowering"

    @property
    def lowering_class(self) -> type[Lower]:
        return _Lower


class Compiler(CompilerBase):
    """A pipeline_class for functions without counted memory."""

    def define_pipelines(self) -> list[PassManager]:
        passes = PassManager("gkfast")
        for kind, name in DefaultPassBuilder.define_nopython_pipeline(self.state).passes:
            if kind.__name__ == "NopythonTypeInference":
                passes.add_pass(_OwnBuiltins, "min and max")
            if kind.__name__ not in _UNUSED:
                passes.add_pass(_Lowering if kind is typed_passes.NativeLowering else kind, name)
        passes.finalize()
        return [passes]


@contextmanager
def shortcuts() -> Iterator[None]:
    """Spares Numba what it would do again and again.

    Of a function and types of arguments it tries all that may be meant, at each call. And it asks LLVM, which may be
    at work, how many counts of references were left out, where none are made.
    """
    context, usual = cpu_target.typing_context, typed_passes.llvm
    find, known = context.resolve_function_type, {}

    def find_once(function: Any, arguments: Any, keywords: Any) -> Any:
        # "static_getitem" is of no type, and a slice that it takes has no hash
        if keywords or not isinstance(function, types.Type):
            return find(function, arguments, keywords)
        call = function, tuple(arguments)
        if known.get(call) is None:
            known[call] = find(function, arguments, keywords)
        return known[call]

    none = SimpleNamespace(dump_refprune_stats=int)
    context.resolve_function_type = find_once
    typed_passes.llvm = SimpleNamespace(newpassmanagers=none, passmanagers=none)
    try:
        yield
    finally:
        del context.resolve_function_type
        typed_passes.llvm = usual
