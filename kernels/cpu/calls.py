"""Compiled code that calls compiled code by a pointer: at once, or in pieces on several threads.

A function that compiled code calls by its name is compiled again with each caller. By a pointer it is compiled once,
and as an argument the pointer does not end up in the cache on disk.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import typeof, types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

from .arrays import MEMORY, emit_memory, emit_release, release, type_of, within
from .compiled import compiled, compiling, inner, undisturbed
from .memory import acquire_arena, release_arena
from .threads import thread_team
from .vector import emit_flush_subnormals

_INT, _UNSIGNED, _BYTES = ir.IntType(64), ir.IntType(32), ir.IntType(8).as_pointer()
# as many pointers for every operation: code that is given them is compiled once
_POINTERS = 6
_NO_MEMORY = np.zeros(1, np.uint8), np.zeros(2, np.int64)
# what an operation is called with, for the Examples below
EXAMPLE_RUN = (0,) * _POINTERS, (0, 1), _NO_MEMORY


_own = threading.local()


@contextmanager
def only_compiling() -> Iterator[None]:
    """Operations are compiled for their arguments, and not called: this processor may lack what they are for."""
    _own.only_compiling = True
    try:
        yield
    finally:
        _own.only_compiling = False


def operation(*loops: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator: the function compiled, as call(dtype, work, *arguments).

    It is called with (pointers of the loops, thread team for so many multiply-adds, arena) before the arguments. An
    operation is one call of compiled code: of few pairs, calls from Python cost more than the arithmetic.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = _entry_of(function)
        unused = (0,) * (_POINTERS - len(loops))
        pointers: dict[np.dtype, tuple[int, ...]] = {}

        def compile_all(dtype: np.dtype, *arguments: Any) -> None:
            start(dtype, *loops)
            dispatcher.compile((typeof(EXAMPLE_RUN), typeof(arguments)))

        def make(dtype: np.dtype, *arguments: Any) -> None:
            with compiling():
                compile_all(dtype, *arguments)
                pointers[dtype] = (*pointers_of(dtype, *loops), *unused)

        def call(dtype: np.dtype, work: int, *arguments: Any) -> Any:
            if getattr(_own, "only_compiling", False):
                return compile_all(dtype, *arguments)
            if dtype not in pointers:
                undisturbed(lambda: make(dtype, *arguments))
            arena = acquire_arena()
            result = dispatcher((pointers[dtype], thread_team(work), arena), arguments)
            release_arena(arena)
            return result

        return call

    return decorate


def _entry_of(function: Callable[..., Any]) -> Any:
    """The function, given NumPy's arrays by Python."""
    code = inner(function)

    def entry(run, arguments):
        run = within(run)
        result = code(run, *within(arguments))
        release(run[2])
        return result

    return compiled(entry, function)


def _kinds_of(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(type_of(typeof(argument)) for argument in arguments)


def start(dtype: Any, *codes: Any) -> None:
    """Compiles or loads what has a pointer, and is not None; within `compiling` nobody waits for machine code."""
    for code in codes:
        if code is not None:
            code.compiled(dtype)


@cache
def pointers_of(dtype: Any, *codes: Any) -> tuple[int, ...]:
    """Of all codes that have a pointer, 0 for None; compiled or loaded if need be, before anyone waits for one."""

    def find() -> tuple[int, ...]:
        with compiling():
            start(dtype, *codes)
            return tuple(0 if code is None else code.pointer(dtype) for code in codes)

    found: tuple[int, ...] = undisturbed(find)
    return found


def _give_pointer(code: Any, dispatcher: Any, example: Callable[[Any], tuple[Any, ...]]) -> None:
    """code.pointer(dtype), for arguments like the example, and code.compiled(dtype), which does not wait for LLVM."""

    @cache
    def compiled_for(dtype: Any) -> Any:
        signature = _kinds_of(example(dtype))
        dispatcher.compile(signature)
        return dispatcher.overloads[signature]

    @cache
    def pointer(dtype: Any) -> int:
        made = compiled_for(dtype)
        return int(made.library.get_pointer_to_function(made.fndesc.llvm_func_name))

    code.compiled, code.pointer = compiled_for, pointer


# arguments of a function for a dtype: it is compiled for their types
Example = Callable[[Any], tuple[Any, ...]]


def by_pointer(example: Example) -> Callable[[Callable[..., Any]], Any]:
    """The function as call(pointer, arguments) for compiled code; the pointer is call.pointer(dtype)."""

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = compiled(function, no_cpython_wrapper=True)
        call = _call_of(lambda kinds: _result(dispatcher, kinds))
        _give_pointer(call, dispatcher, example)
        return call

    return decorate


class Step:
    """A function without a result, that is compiled when its pointer is first asked for: not by every call."""

    def __init__(self, example: Example, function: Callable[..., Any]) -> None:
        dispatcher = compiled(function, no_cpython_wrapper=True)
        _give_pointer(self, dispatcher, example)


def call_of_step(example: Example) -> Any:
    """call(pointer, arguments), for compiled code, of the Steps that have this example."""

    def no_result(kinds: tuple[Any, ...]) -> Any:
        if kinds not in [_kinds_of(example(np.dtype(dtype))) for dtype in "fd"]:
            raise TypingError(f"no step is compiled for {kinds}")
        return types.none

    return _call_of(no_result)


def parallel_for(example: Example, flush_subnormals: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """The function as loop(pointer, team, rows, tasks) for compiled code; the pointer is loop.pointer(dtype).

    It is called with (memory, start, stop, *tasks[k]) for pieces that cover range(rows[k]), for every k, by whichever
    thread is free to take the next one; those of the first task first. tasks is a tuple of tuples of one type, rows
    one of integers; team is that of threads.py. With flush_subnormals each thread takes subnormal numbers for 0
    meanwhile.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = compiled(function, no_cpython_wrapper=True)
        loop = _loop_of(dispatcher, flush_subnormals)
        _give_pointer(loop, dispatcher, lambda dtype: (_NO_MEMORY, 0, 0, *example(dtype)))
        return loop

    return decorate


def _call_of(result_of: Callable[[tuple[Any, ...]], Any]) -> Any:
    @intrinsic
    def call(typing_context, pointer, arguments):
        kinds = tuple(types.unliteral(kind) for kind in arguments)
        result = result_of(kinds)

        def generate(context, builder, signature, values):
            pointer, packed = values
            items = cgutils.unpack_tuple(builder, packed)
            status, value = _emit_call(context, builder, pointer, result, kinds, items)
            with cgutils.if_unlikely(builder, status.is_error):
                context.call_conv.return_status_propagate(builder, status)
            return value

        return result(types.intp, types.Tuple(kinds)), generate

    return call


def _loop_of(dispatcher: Any, flush_subnormals: bool) -> Any:
    @intrinsic
    def loop(typing_context, pointer, team, rows, tasks):
        kinds = tuple(types.unliteral(kind) for kind in tasks[0])
        result = _result(dispatcher, (MEMORY, types.intp, types.intp, *kinds))
        all_tasks, all_rows = types.UniTuple(types.Tuple(kinds), len(tasks)), types.UniTuple(types.intp, len(tasks))

        def generate(context, builder, signature, values):
            pointer, team, rows, tasks = values
            parallel, threads = cgutils.unpack_tuple(builder, team)
            alone = builder.icmp_signed("==", threads, _INT(1))
            most = builder.select(alone, _INT(1), builder.mul(threads, _INT(_PIECES_PER_THREAD)))
            pieces = [_least(builder, count, most) for count in cgutils.unpack_tuple(builder, rows)]
            job = [_INT(0), _INT(0), pointer, rows, cgutils.pack_array(builder, pieces), tasks]
            job = cgutils.alloca_once_value(builder, cgutils.pack_struct(builder, job))
            entry = _emit_entry(
                context, builder.module, job.type, (MEMORY, types.intp, types.intp, *kinds), result, flush_subnormals
            )
            data = builder.bitcast(job, _BYTES)
            with builder.if_else(alone) as (one_thread, several):
                with one_thread:
                    builder.call(entry, [data])
                with several:
                    total = pieces[0]
                    for more in pieces[1:]:
                        total = builder.add(total, more)
                    kind = ir.FunctionType(ir.VoidType(), [entry.type, _BYTES, _UNSIGNED, _UNSIGNED])
                    threads = builder.trunc(_least(builder, total, threads), _UNSIGNED)
                    # GOMP_parallel takes 0 threads for all that it can make
                    with builder.if_then(builder.icmp_signed(">", total, _INT(0))):
                        code = builder.inttoptr(parallel, kind.as_pointer())
                        builder.call(code, [entry, data, threads, _UNSIGNED(0)])
            failed = builder.load(_field(builder, job, _FAILED))
            with cgutils.if_unlikely(builder, builder.icmp_signed("!=", failed, _INT(0))):
                context.call_conv.return_user_exc(builder, MemoryError, ("a thread found no memory",))
            return context.get_dummy_value()

        return types.void(types.intp, types.UniTuple(types.intp, 2), all_rows, all_tasks), generate

    return loop


# pieces end at different times; a thread that is done takes the next
_PIECES_PER_THREAD = 4
# the fields of a job: the number of its next piece, whether one failed, the code; of each task its rows, its pieces,
# and its arguments
_NEXT, _FAILED, _CODE, _ROWS, _PIECES, _TASKS = range(6)


def _least(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.icmp_signed("<", a, b), a, b)


def _result(dispatcher: Any, kinds: tuple[Any, ...]) -> Any:
    # the caller is compiled after the pointer is taken; anything else would read its arguments wrongly
    if kinds not in dispatcher.overloads:
        raise TypingError(f"{dispatcher.__name__} is not compiled for {kinds}")
    return dispatcher.overloads[kinds].signature.return_type


def _emit_call(context: Any, builder: Any, pointer: Any, result: Any, kinds: tuple[Any, ...], items: Any) -> Any:
    kind = context.call_conv.get_function_type(result, kinds).as_pointer()
    return context.call_conv.call_function(builder, builder.inttoptr(pointer, kind), result, kinds, items)


def _emit_entry(
    context: Any, module: Any, job: Any, kinds: tuple[Any, ...], result: Any, flush_subnormals: bool
) -> Any:
    """void entry(job): takes piece after piece, until none is left."""
    entry = ir.Function(module, ir.FunctionType(ir.VoidType(), [_BYTES]), module.get_unique_name("take_pieces"))
    entry.linkage = "internal"
    begin, look, take, fail, end = (
        entry.append_basic_block(name) for name in ("begin", "look", "take", "fail", "end")
    )
    builder = ir.IRBuilder(begin)
    job = builder.bitcast(entry.args[0], job)
    code, rows, pieces = (builder.load(_field(builder, job, place)) for place in (_CODE, _ROWS, _PIECES))
    memory, taken = emit_memory(context, builder)
    put_back = emit_flush_subnormals(builder) if flush_subnormals else None
    builder.branch(look)

    builder.position_at_end(look)
    number = builder.atomic_rmw("add", _field(builder, job, _NEXT), _INT(1), "monotonic")
    # of which task it is, and which of its pieces
    task, piece, left = _INT(-1), number, number
    for k in range(rows.type.count):
        count = builder.extract_value(pieces, k)
        is_task = builder.and_(builder.icmp_signed(">=", left, _INT(0)), builder.icmp_signed("<", left, count))
        task, piece = builder.select(is_task, _INT(k), task), builder.select(is_task, left, piece)
        left = builder.sub(left, count)
    builder.cbranch(builder.icmp_signed(">=", task, _INT(0)), take, end)

    builder.position_at_end(take)
    count, parts = (
        builder.load(builder.gep(_field(builder, job, place), [_INT(0), task])) for place in (_ROWS, _PIECES)
    )
    start, stop = (builder.sdiv(builder.mul(count, part), parts) for part in (piece, builder.add(piece, _INT(1))))
    arguments = builder.gep(job, [_INT(0), _UNSIGNED(_TASKS), task])
    items = [builder.load(_field(builder, arguments, place)) for place in range(len(kinds) - 3)]
    status, _ = _emit_call(context, builder, code, result, kinds, [memory, start, stop, *items])
    emit_release(builder, taken)
    builder.cbranch(status.is_error, fail, look)

    builder.position_at_end(fail)
    builder.store(_INT(1), _field(builder, job, _FAILED))
    builder.branch(look)

    builder.position_at_end(end)
    if put_back is not None:
        put_back()
    builder.ret_void()
    return entry


def _field(builder: Any, struct: Any, place: int) -> Any:
    return builder.gep(struct, [_INT(0), _UNSIGNED(place)])
