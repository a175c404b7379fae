"""Recycled memory: touching a new page costs more than computing the kernel values on it.

Each thread keeps blocks that it has used for results; one is free as soon as nothing but this list refers to it, that
is, when the caller has let go of the last array or tensor on it. What is kept is bounded, the oldest goes first.
NumPy asks for huge pages itself where an array has 4 MiB or more.

And it keeps one arena: a block in which a call of compiled code allocates array after array. Arrays that no longer
fit come from NumPy's allocator, and the next call finds a larger arena.
"""

import math
import sys
import threading

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .compiled import inner

_LINE = 64
# smaller results are at hand in the allocator
_LEAST_REUSED = 1 << 17
# per thread
_MOST_KEPT, _MOST_BLOCKS = 1 << 27, 32
_MOST_LENT = 1 << 26

_own = threading.local()


def as_contiguous(array: np.ndarray) -> np.ndarray:
    """The array, or a copy if it is not contiguous, aligned and writeable.

    To Numba a read-only array is another type, for which it would compile everything again.
    """
    return array if array.flags.carray else np.array(array, order="C")


def new_result(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of undefined content that is the caller's to keep."""
    size = math.prod(shape) * dtype.itemsize
    if size < _LEAST_REUSED:
        return np.empty(shape, dtype)
    block = _block(size + _LINE)
    begin = -block.ctypes.data % _LINE
    return block[begin : begin + size].view(dtype).reshape(shape)


def _block(size: int) -> np.ndarray:
    """A free block of at least `size` bytes, the last that this thread has used, or a new one."""
    blocks = _own.__dict__.setdefault("results", [])
    block = None
    for place in range(len(blocks)):
        # 2 references = free (the list and getrefcount's own); blocks more than 4 times too large are skipped
        if size <= len(blocks[place]) <= 4 * size and sys.getrefcount(blocks[place]) == 2:
            block = blocks.pop(place)
            break
    if block is None:
        block = np.empty(size, np.uint8)
    blocks.append(block)
    while sum(map(len, blocks)) > _MOST_KEPT or len(blocks) > _MOST_BLOCKS:
        # a block that is still in use lives on without the list
        del blocks[0]
    return block


def acquire_arena() -> tuple[np.ndarray, np.ndarray]:
    """This thread's arena: the block, and how many bytes of it are taken (1,)."""
    arenas = _own.__dict__.setdefault("arenas", [])
    return arenas.pop() if arenas else (np.empty(_LINE, np.uint8), np.zeros(1, np.int64))


def release_arena(arena: tuple[np.ndarray, np.ndarray]) -> None:
    """Once no array in it is used any more."""
    block, taken = arena
    needed = int(taken[0])
    taken[0] = 0
    if len(block) < needed <= _MOST_LENT:
        block = np.empty(1 << (needed - 1).bit_length(), np.uint8)
    _own.arenas.append((block, taken))


@intrinsic
def lent(typing_context, value):
    """An array, or a tuple of what may be arrays, without owner: no reference to it is counted.

    Counts are atomic, and of few pairs take half of the time. The owner must outlive it.
    """

    def without_owner(context, builder, kind, value):
        if isinstance(kind, types.Array):
            array = context.make_array(kind)(context, builder, value)
            array.meminfo = cgutils.get_null_value(array.meminfo.type)
            return array._getvalue()
        if isinstance(kind, types.BaseTuple):
            items = zip(kind.types, cgutils.unpack_tuple(builder, value), strict=True)
            return context.make_tuple(builder, kind, [without_owner(context, builder, *item) for item in items])
        return value

    def generate(context, builder, signature, arguments):
        return without_owner(context, builder, signature.return_type, arguments[0])

    return value(value), generate


@inner
def allocate(arena, shape, like):
    """An array of undefined content, in an arena, which owns it, or if that is full, anew."""
    block, taken = lent(arena)
    size = 1
    for length in shape:
        size *= length
    begin = taken[0] + -(block.ctypes.data + taken[0]) % _LINE
    end = begin + size * like.itemsize
    taken[0] = end
    array = block[begin:end].view(like.dtype) if end <= block.size else scratch(size, like)
    return array.reshape(shape)


@inner
def scratch(size, like):
    """A new array (size,) of undefined content, aligned to a cache line, for compiled code."""
    block = np.empty(size + _LINE // like.itemsize, like.dtype)
    return block[-block.ctypes.data % _LINE // like.itemsize :][:size]
