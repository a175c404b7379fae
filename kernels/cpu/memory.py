"""Memory for results and for what a call needs on its way: the first touch of a page costs more than a kernel entry.

`fresh` is for results: in pages of 2 MiB where the system has them. `scratch` is for arrays that do not outlive the
call: each thread keeps its blocks, and a block is free as soon as nothing but this list refers to it.
"""

import math
import mmap
import sys
import threading

import numpy as np

_LINE = 64
_HUGE_PAGE = 1 << 21
# smaller results gain nothing
_LEAST_HUGE = 1 << 22
# per thread
_MOST_KEPT = 1 << 26

_own = threading.local()


def fresh(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of undefined content that is the caller's to keep."""
    count = math.prod(shape)
    size = count * dtype.itemsize
    if size < _LEAST_HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.empty(shape, dtype)
    # private: shared memory has no huge pages
    room = mmap.mmap(-1, size + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    room.madvise(mmap.MADV_HUGEPAGE)
    begin = -np.frombuffer(room, np.uint8, 1).ctypes.data % _HUGE_PAGE
    return np.frombuffer(room, dtype, count, begin).reshape(shape)


def scratch(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of undefined content, on a line of the cache, for this thread and until the call ends."""
    count = math.prod(shape)
    size = count * dtype.itemsize + _LINE
    blocks = _own.__dict__.setdefault("blocks", [])
    block = None
    for place in range(len(blocks)):
        # the list and the argument of getrefcount
        if len(blocks[place]) >= size and sys.getrefcount(blocks[place]) == 2:
            block = blocks.pop(place)
            break
    if block is None:
        block = np.empty(1 << (size - 1).bit_length() if size < _MOST_KEPT else size, np.uint8)
    blocks.append(block)
    while sum(map(len, blocks)) > _MOST_KEPT:
        # a block that is still in use lives on without the list
        del blocks[0]
    begin = -block.ctypes.data % _LINE
    return block[begin : begin + count * dtype.itemsize].view(dtype).reshape(shape)
