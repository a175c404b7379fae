"""Memory for results and for what a call needs on its way: the first touch of a page costs more than a kernel entry.

`fresh` is for results. NumPy asks for huge pages itself where an array has 4 MiB or more; what it lacks is a
beginning on a line of the cache. `scratch` is for arrays that do not outlive the call: each thread keeps its blocks,
and a block is free as soon as nothing but this list refers to it.
"""

import math
import sys
import threading

import numpy as np

_LINE = 64
# smaller results gain nothing
_LEAST_ALIGNED = 1 << 20
# per thread
_MOST_KEPT = 1 << 26
# numbers
_LEAST_KEPT, _MOST_ZEROED = 1 << 13, 1 << 20

_own = threading.local()


def fresh(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of undefined content that is the caller's to keep."""
    count = math.prod(shape)
    if count * dtype.itemsize < _LEAST_ALIGNED:
        return np.empty(shape, dtype)
    return _aligned(np.empty(count * dtype.itemsize + _LINE, np.uint8), count, shape, dtype)


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
    return _aligned(block, count, shape, dtype)
