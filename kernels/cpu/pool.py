"""A team of threads that never runs Python: GOMP_parallel's task with the operating system's own threads.

Python's threads would need the GIL to begin and to end, and the caller a callback into Python, in which a signal
handler may raise at any moment, with nobody there to receive it.

All threads share a list of jobs under one lock; a job lies on its caller's stack. A thread takes the first job, and
sleeps when there is none. The caller takes part in its own job, withdraws what nobody has begun, and waits for the
rest. Threads are made when they are first needed, and stay.
"""

import ctypes
import os
from functools import cache
from typing import Any

from llvmlite import ir
from numba.core import cgutils
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

_WORD, _NUMBER = ir.IntType(8 * ctypes.sizeof(ctypes.c_void_p)), ir.IntType(32)
_POINTER = ir.IntType(8).as_pointer()
_NULL = ir.Constant(_POINTER, None)
_RUN = ir.FunctionType(ir.VoidType(), [_POINTER])
# no system's lock or condition is larger
_ROOM = ir.ArrayType(_WORD, 16)
# lock, threads have work, a job is done, first job, how many threads there are
_LOCK, _WORK, _DONE, _FIRST, _COUNT = range(5)
_TEAM = ir.LiteralStructType([_ROOM, _ROOM, _ROOM, _POINTER, _WORD])
# what it calls and with what, how many threads may still take it, how many are at it, the next job
_ENTRY, _DATA, _WANTED, _RUNNING, _NEXT = range(5)
_JOB = ir.LiteralStructType([_POINTER, _POINTER, _WORD, _WORD, _POINTER])

# the team's address, to be read by compiled code; a forked child gets another team
_team = ctypes.c_void_p()
# memory in use by threads that never end
_kept: list[Any] = []


def renew() -> None:
    """A team without threads, for a new process."""
    memory = (ctypes.c_void_p * (3 * _ROOM.count + 2))()
    _kept.append(memory)
    begin = ctypes.addressof(memory)
    if os.name != "nt":
        system, size = ctypes.CDLL(None), ctypes.sizeof(ctypes.c_void_p) * _ROOM.count
        system.pthread_mutex_init(ctypes.c_void_p(begin), None)
        for place in (_WORK, _DONE):
            system.pthread_cond_init(ctypes.c_void_p(begin + place * size), None)
    _team.value = begin


class _System:
    """The system's functions, as calls emitted by a builder."""

    def __init__(self) -> None:
        self.windows = os.name == "nt"
        library = ctypes.CDLL("kernel32" if self.windows else None)
        names = (
            "AcquireSRWLockExclusive ReleaseSRWLockExclusive SleepConditionVariableSRW WakeAllConditionVariable "
            "CreateThread"
            if self.windows
            else "pthread_mutex_lock pthread_mutex_unlock pthread_cond_wait pthread_cond_broadcast pthread_create"
        )
        functions = (getattr(library, name) for name in names.split())
        addresses = (ctypes.cast(function, ctypes.c_void_p).value for function in functions)
        self.lock_at, self.unlock_at, self.wait_at, self.wake_at, self.start_at = addresses

    def lock(self, builder: Any, team: Any) -> None:
        _call(builder, self.lock_at, _NUMBER, _field(builder, team, _LOCK))

    def unlock(self, builder: Any, team: Any) -> None:
        _call(builder, self.unlock_at, _NUMBER, _field(builder, team, _LOCK))

    def wake(self, builder: Any, team: Any, condition: int) -> None:
        _call(builder, self.wake_at, _NUMBER, _field(builder, team, condition))

    def wait(self, builder: Any, team: Any, condition: int) -> None:
        forever = (_NUMBER(0xFFFFFFFF), _NUMBER(0)) if self.windows else ()
        _call(
            builder, self.wait_at, _NUMBER, _field(builder, team, condition), _field(builder, team, _LOCK), *forever
        )

    def start(self, builder: Any, work: Any, team: Any) -> Any:
        """Whether there is a new thread that calls work(team)."""
        work, team = builder.bitcast(work, _POINTER), builder.bitcast(team, _POINTER)
        if self.windows:
            handle = _call(builder, self.start_at, _WORD, _NULL, _WORD(0), work, team, _NUMBER(0), _NULL)
            return builder.icmp_unsigned("!=", handle, _WORD(0))
        handle = builder.bitcast(cgutils.alloca_once(builder, _WORD), _POINTER)
        error = _call(builder, self.start_at, _NUMBER, handle, _NULL, work, team)
        return builder.icmp_unsigned("==", error, _NUMBER(0))


@cache
def parallel() -> int:
    """Where parallel(entry, data, threads, flags) begins: it calls entry(data) on so many threads at most."""
    if not _team.value:
        renew()
    with global_compiler_lock:
        library = cpu_target.target_context.codegen().create_library("gkfast_pool")
        module = library.create_ir_module("gkfast_pool")
        system = _System()
        _emit_parallel(module, system, _emit_work(module, system))
        library.add_ir_module(module)
        library.finalize()
        # sleeping threads return to this code: it is never freed, not even when Python ends
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(library))
        return int(library.get_pointer_to_function("gkfast_parallel"))


def _emit_work(module: Any, system: _System) -> Any:
    """work(team): takes job after job, for ever."""
    work = ir.Function(module, ir.FunctionType(_POINTER, [_POINTER]), "gkfast_work")
    work.linkage = "internal"
    begin, look, sleep, take = (work.append_basic_block(name) for name in ("begin", "look", "sleep", "take"))
    builder = ir.IRBuilder(begin)
    team = builder.bitcast(work.args[0], _TEAM.as_pointer())
    system.lock(builder, team)
    builder.branch(look)

    builder.position_at_end(look)
    job = builder.load(_field(builder, team, _FIRST))
    builder.cbranch(_is_null(builder, job), sleep, take)

    builder.position_at_end(sleep)
    system.wait(builder, team, _WORK)
    builder.branch(look)

    builder.position_at_end(take)
    job = builder.bitcast(job, _JOB.as_pointer())
    wanted = _add(builder, _field(builder, job, _WANTED), -1)
    _add(builder, _field(builder, job, _RUNNING), 1)
    with builder.if_then(builder.icmp_unsigned("==", wanted, _WORD(0))):
        builder.store(builder.load(_field(builder, job, _NEXT)), _field(builder, team, _FIRST))
    entry, data = (builder.load(_field(builder, job, place)) for place in (_ENTRY, _DATA))
    system.unlock(builder, team)
    builder.call(builder.bitcast(entry, _RUN.as_pointer()), [data])
    system.lock(builder, team)
    # the job is its caller's again as soon as none is at it
    running = _add(builder, _field(builder, job, _RUNNING), -1)
    with builder.if_then(builder.icmp_unsigned("==", running, _WORD(0))):
        system.wake(builder, team, _DONE)
    builder.branch(look)
    return work


def _emit_parallel(module: Any, system: _System, work: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [_POINTER, _POINTER, _NUMBER, _NUMBER])
    function = ir.Function(module, kind, "gkfast_parallel")
    entry, data, threads, _ = function.args
    names = ("begin", "more", "make", "count", "share", "seek", "next", "unlink", "rest", "wait", "end")
    begin, more, make, count, share, seek, following, unlink, rest, wait, end = map(
        function.append_basic_block, names
    )
    builder = ir.IRBuilder(begin)
    team = builder.load(builder.inttoptr(_WORD(ctypes.addressof(_team)), _TEAM.as_pointer().as_pointer()))
    job = builder.alloca(_JOB)
    place = builder.alloca(_POINTER.as_pointer())
    others = builder.sub(builder.zext(threads, _WORD), _WORD(1))
    system.lock(builder, team)
    builder.branch(more)

    builder.position_at_end(more)
    there = builder.load(_field(builder, team, _COUNT))
    builder.cbranch(builder.icmp_unsigned("<", there, others), make, share)
    builder.position_at_end(make)
    # where no more threads are to be had, those at hand do it, this one at least
    builder.cbranch(system.start(builder, work, team), count, share)
    builder.position_at_end(count)
    _add(builder, _field(builder, team, _COUNT), 1)
    builder.branch(more)

    builder.position_at_end(share)
    first = _field(builder, team, _FIRST)
    for number, value in ((_ENTRY, entry), (_DATA, data), (_WANTED, others), (_RUNNING, _WORD(0))):
        builder.store(value, _field(builder, job, number))
    builder.store(builder.load(first), _field(builder, job, _NEXT))
    with builder.if_then(builder.icmp_unsigned("!=", others, _WORD(0))):
        builder.store(builder.bitcast(job, _POINTER), first)
        system.wake(builder, team, _WORK)
    system.unlock(builder, team)
    builder.call(builder.bitcast(entry, _RUN.as_pointer()), [data])
    system.lock(builder, team)
    builder.store(first, place)
    left = builder.load(_field(builder, job, _WANTED))
    builder.cbranch(builder.icmp_unsigned("!=", left, _WORD(0)), seek, rest)

    # what nobody has begun is withdrawn from the list
    builder.position_at_end(seek)
    link = builder.load(place)
    candidate = builder.load(link)
    found = builder.icmp_unsigned("==", candidate, builder.bitcast(job, _POINTER))
    builder.cbranch(found, unlink, following)
    builder.position_at_end(following)
    builder.store(_field(builder, builder.bitcast(candidate, _JOB.as_pointer()), _NEXT), place)
    builder.branch(seek)
    builder.position_at_end(unlink)
    builder.store(builder.load(_field(builder, job, _NEXT)), link)
    builder.branch(rest)

    builder.position_at_end(rest)
    running = builder.load(_field(builder, job, _RUNNING))
    builder.cbranch(builder.icmp_unsigned("==", running, _WORD(0)), end, wait)
    builder.position_at_end(wait)
    system.wait(builder, team, _DONE)
    builder.branch(rest)
    builder.position_at_end(end)
    system.unlock(builder, team)
    builder.ret_void()


def _field(builder: Any, struct: Any, place: int) -> Any:
    return builder.gep(struct, [_WORD(0), _NUMBER(place)])


def _is_null(builder: Any, pointer: Any) -> Any:
    return builder.icmp_unsigned("==", pointer, _NULL)


def _add(builder: Any, place: Any, amount: int) -> Any:
    """The number there, after adding."""
    value = builder.add(builder.load(place), _WORD(amount))
    builder.store(value, place)
    return value


def _call(builder: Any, address: int, result: Any, *arguments: Any) -> Any:
    arguments = [builder.bitcast(a, _POINTER) if isinstance(a.type, ir.PointerType) else a for a in arguments]
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(builder.inttoptr(_WORD(address), kind.as_pointer()), arguments)
