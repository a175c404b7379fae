"""Compiled code that calls compiled code by its address: at once, or in pieces on several threads.

A function that compiled code calls by its name is compiled again with each caller. By its address it is compiled
once, and as an argument the address does not end up in the cache on disk.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

_INT, _UNSIGNED, _BYTES = ir.IntType(64), ir.IntType(32), ir.IntType(8).as_pointer()


def address_of(dispatcher: Any, *arguments: Any) -> int:
    """Where its code for arguments of these types begins, compiled or loaded if need be."""
    signature = tuple(dispatcher.typeof_pyval(argument) for argument in arguments)
    dispatcher.compile(signature)
    code = dispatcher.overloads[signature]
    return int(code.library.get_pointer_to_function(code.fndesc.llvm_func_name))


def called_at(dispatcher: Any) -> Any:
    """call(address, arguments) for compiled code: the dispatcher by its `address_of`."""

    @intrinsic
    def call(typing_context, address, arguments):
        kinds = tuple(types.unliteral(kind) for kind in arguments)
        result = _result(dispatcher, kinds)

        def generate(context, builder, signature, values):
            address, packed = values
            items = cgutils.unpack_tuple(builder, packed)
            status, value = _emit_call(context, builder, address, result, kinds, items)
            with cgutils.if_unlikely(builder, status.is_error):
                context.call_conv.return_status_propagate(builder, status)
            return value

        return result(types.intp, types.Tuple(kinds)), generate

    return call


def shared_at(dispatcher: Any) -> Any:
    """share(address, team, pieces, tasks) for compiled code: the dispatcher, by its `address_of`, on several threads.

    For each row (k, start, stop) of pieces (P, 3) it is called with (start, stop, *tasks[k]) by whichever thread is
    free to take the next one. tasks is a tuple of tuples of one type; team is that of threads.py.
    """

    @intrinsic
    def share(typing_context, address, team, pieces, tasks):
        kinds = tuple(types.unliteral(kind) for kind in tasks[0])
        result = _result(dispatcher, (types.intp, types.intp, *kinds))
        all_tasks = types.UniTuple(types.Tuple(kinds), len(tasks))

        def generate(context, builder, signature, values):
            address, team, pieces_, tasks = values
            pieces_ = cgutils.create_struct_proxy(pieces)(context, builder, pieces_)
            count = builder.extract_value(pieces_.shape, 0)
            # what the threads see: the next piece, whether one failed, the pieces, their number, the code, the tasks
            told = cgutils.pack_struct(builder, [_INT(0), _INT(0), pieces_.data, count, address, tasks])
            told = cgutils.alloca_once_value(builder, told)
            entry = _emit_entry(context, builder.module, told.type, (types.intp, types.intp, *kinds), result)
            parallel, threads = cgutils.unpack_tuple(builder, team)
            seen = builder.bitcast(told, _BYTES)
            with builder.if_else(builder.icmp_signed("==", parallel, _INT(0))) as (alone, together):
                with alone:
                    builder.call(entry, [seen])
                with together:
                    kind = ir.FunctionType(ir.VoidType(), [entry.type, _BYTES, _UNSIGNED, _UNSIGNED])
                    threads = builder.select(builder.icmp_signed("<", count, threads), count, threads)
                    threads = builder.trunc(threads, _UNSIGNED)
                    builder.call(builder.inttoptr(parallel, kind.as_pointer()), [entry, seen, threads, _UNSIGNED(0)])
            failed = builder.load(_field(builder, told, 1))
            with cgutils.if_unlikely(builder, builder.icmp_signed("!=", failed, _INT(0))):
                context.call_conv.return_user_exc(builder, MemoryError, ("a thread found no memory",))
            return context.get_dummy_value()

        return types.void(types.intp, types.UniTuple(types.intp, 2), pieces, all_tasks), generate

    return share


def _result(dispatcher: Any, kinds: tuple[Any, ...]) -> Any:
    # the caller is compiled after address_of; anything else would read its arguments wrongly
    if kinds not in dispatcher.overloads:
        raise TypingError(f"{dispatcher.__name__} is not compiled for {kinds}")
    return dispatcher.overloads[kinds].signature.return_type


def _emit_call(context: Any, builder: Any, address: Any, result: Any, kinds: tuple[Any, ...], items: Any) -> Any:
    kind = context.call_conv.get_function_type(result, kinds).as_pointer()
    return context.call_conv.call_function(builder, builder.inttoptr(address, kind), result, kinds, items)


def _emit_entry(context: Any, module: Any, told: Any, kinds: tuple[Any, ...], result: Any) -> Any:
    """void entry(told): takes piece after piece, until none is left."""
    entry = ir.Function(module, ir.FunctionType(ir.VoidType(), [_BYTES]), module.get_unique_name("take_pieces"))
    entry.linkage = "internal"
    begin, look, take, fail, end = (
        entry.append_basic_block(name) for name in ("begin", "look", "take", "fail", "end")
    )
    builder = ir.IRBuilder(begin)
    told = builder.bitcast(entry.args[0], told)
    following, failed = _field(builder, told, 0), _field(builder, told, 1)
    pieces, count, address = (builder.load(_field(builder, told, place)) for place in (2, 3, 4))
    builder.branch(look)

    builder.position_at_end(look)
    number = builder.atomic_rmw("add", following, _INT(1), "monotonic")
    builder.cbranch(builder.icmp_signed("<", number, count), take, end)

    builder.position_at_end(take)
    first = builder.mul(number, _INT(3))
    task, start, stop = (builder.load(builder.gep(pieces, [builder.add(first, _INT(place))])) for place in range(3))
    arguments = builder.gep(told, [_INT(0), _UNSIGNED(5), task])
    items = [builder.load(_field(builder, arguments, place)) for place in range(len(kinds) - 2)]
    status, _ = _emit_call(context, builder, address, result, kinds, [start, stop, *items])
    builder.cbranch(status.is_error, fail, look)

    builder.position_at_end(fail)
    builder.store(_INT(1), failed)
    builder.branch(look)

    builder.position_at_end(end)
    builder.ret_void()
    return entry


def _field(builder: Any, struct: Any, place: int) -> Any:
    return builder.gep(struct, [_INT(0), _UNSIGNED(place)])
