"""Memory for results and for what a call needs on its way: a page first touched costs more than its kernel entries.

Each thread keeps blocks that it has used; one is free as soon as nothing but this list refers to it. `scratch`
is for arrays that do not outlive the call; `fresh` for results, which are the caller's: their block comes back when
the caller has let go of the last array or tensor on it. What is kept is bounded, the oldest goes first. NumPy asks
for huge pages itself where an array has 4 MiB or more.
"""

import math
import sys
import threading

import numpy as np

_LINE = 64
# smaller results are at hand in the allocator
_LEAST_REUSED = 1 << 17
# of each kind, per thread
_MOST_KEPT, _MOST_RESULTS_KEPT = 1 << 26, 1 << 27
_MOST_BLOCKS = 32
# numbers
_LEAST_KEPT, _MOST_ZEROED = 1 << 13, 1 << 20

_own = threading.local()


def behaved(array: np.ndarray) -> np.ndarray:
    """As compiled code takes it: contiguous, aligned and writeable; a copy where it is not.

    Numba counts what may not be written to as a type of its own, and would compile everything again.
    """
    return array if array.flags.carray else np.array(array, order="C")


def fresh(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of undefined content that is the caller's to keep."""
    count = math.prod(shape)
    size = count * dtype.itemsize
    if size < _LEAST_REUSED:
        return np.empty(shape, dtype)
    # results are as large as they are, scratch grows to the next power of two
    return _aligned(_block("results", size + _LINE, size + _LINE, _MOST_RESULTS_KEPT), count, shape, dtype)


def _aligned(block: np.ndarray, count: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    begin = -block.ctypes.data % _LINE
    return block[begin : begin + count * dtype.itemsize].view(dtype).reshape(shape)


def zeros(shape: tuple[int, ...]) -> np.ndarray:
    """float64 zeros, for this thread and until the call ends."""
    # below, the allocator has memory at hand; above, touching new pages is nothing beside the work on them
    if not _LEAST_KEPT <= math.prod(shape) < _MOST_ZEROED:
        return np.zeros(shape)
    block = scratch(shape, np.dtype(np.float64))
    block.fill(0)
    return block


def scratch(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of undefined content, on a line of the cache, for this thread and until the call ends."""
    count = math.prod(shape)
    size = count * dtype.itemsize + _LINE
    room = 1 << (size - 1).bit_length() if size < _MOST_KEPT else size
    return _aligned(_block("scratch", size, room, _MOST_KEPT), count, shape, dtype)


def _block(kind: str, size: int, room: int, most: int) -> np.ndarray:
    """A free block of at least `size` bytes, or a new one of `room`; the last that this thread has used."""
    blocks = _own.__dict__.setdefault(kind, [])
    block = None
    for place in range(len(blocks)):
        # the list and the argument of getrefcount; a block far too large is for what needs it
        if size <= len(blocks[place]) <= 4 * room and sys.getrefcount(blocks[place]) == 2:
            block = blocks.pop(place)
            break
    if block is None:
        block = np.empty(room, np.uint8)
    blocks.append(block)
    while sum(map(len, blocks)) > most or len(blocks) > _MOST_BLOCKS:
        # a block that is still in use lives on without the list
        del blocks[0]
    return block
