"""The tiles of every kernel: a fixed table, so that no first call tunes and results repeat bit for bit.

They were chosen for registers and spills by offline compilation for sm_80, sm_90 and sm_100 (bench/offline.py). None
of them has been tuned on a GPU yet.
"""

from typing import NamedTuple

import torch

# products that are added are contracted to multiply-adds, as when the tiles were chosen: Triton's default differs
# between versions, and where TRITON_DEFAULT_FP_FUSION is set, and gives other bits
FUSION = {"enable_fp_fusion": True}
# sizes among the arguments of kernels, for whose values no kernel is compiled anew. Triton would do it for numbers in
# a tuple, so sizes are arguments of their own
SIZES = [
    "N",
    "M",
    "D",
    "E",
    "B",
    "S",
    "R",
    "RANGES",
    "FIRST",
    "START",
    "WINDOW",
    "BLOCKS",
    "TILES",
    "STRIPS",
]
SIZES += ["table_stride", "moments_stride", "VALUE_RANGES", "PULL_RANGES", "COUNT"]
# columns that are worth a program of their own
RANGE = 64


class Tile(NamedTuple):
    bn: int
    bm: int
    bd: int
    warps: int
    # a cap on the registers of a thread: near a multiple that decides how many blocks fit, the assembler may choose
    # to spill rather than pass it
    registers: int | None
    stages: int = 1
    # coordinates of a product at a time
    bk: int = 32

    @property
    def options(self):
        """What a launch passes to the compiler."""
        return {"num_warps": self.warps, "num_stages": self.stages, "maxnreg": self.registers} | FUSION


class _Row(NamedTuple):
    # "... by products" means products of float16 pieces, "... by one product" those of "medium" alone
    kernel: str
    # 0 fits every GPU
    architecture: int
    float64: bool
    # greatest D
    dims: float
    tile: Tile


_ANY = float("inf")

# the first row that fits is taken: that architecture, that accumulator, at most that many coordinates. A GPU without
# rows of its own takes those of architecture 0, which need no more shared memory than any has.
TILES = [
    _Row("matrix", 0, False, _ANY, Tile(64, 64, 4, 2, 128)),
    _Row("matrix", 0, True, _ANY, Tile(32, 64, 4, 8, 200)),
    _Row("square matrix", 0, False, _ANY, Tile(64, 64, 4, 2, 168)),
    _Row("square matrix", 0, True, _ANY, Tile(32, 32, 4, 4, 200)),
    _Row("weight", 0, False, _ANY, Tile(32, 32, 4, 4, None)),
    _Row("weight", 0, True, _ANY, Tile(32, 32, 4, 8, 168)),
    _Row("pull", 0, False, _ANY, Tile(32, 64, 4, 8, 168)),
    _Row("pull", 0, True, _ANY, Tile(32, 64, 4, 8, 168)),
    _Row("value", 0, False, _ANY, Tile(64, 32, 4, 2, 168)),
    _Row("value", 0, True, _ANY, Tile(32, 32, 4, 8, 168)),
    _Row("columns", 90, False, _ANY, Tile(32, 64, 4, 8, 200)),
    _Row("columns", 100, False, _ANY, Tile(32, 64, 4, 8, 200)),
    _Row("columns", 0, False, _ANY, Tile(32, 32, 4, 8, 168)),
    _Row("columns", 0, True, _ANY, Tile(32, 32, 4, 8, 168)),
    _Row("moments", 0, False, _ANY, Tile(32, 32, 4, 8, 200)),
    _Row("moments", 0, True, _ANY, Tile(32, 16, 4, 4, 255)),
    _Row("matrix by products", 90, False, 128, Tile(64, 128, 64, 4, 255, 2, 64)),
    _Row("matrix by products", 90, False, _ANY, Tile(128, 128, 64, 8, 255, 2, 64)),
    _Row("matrix by products", 0, False, _ANY, Tile(64, 32, 64, 4, 255, 2, 32)),
    _Row("square matrix by products", 90, False, _ANY, Tile(64, 64, 64, 4, 255, 2, 64)),
    _Row("square matrix by products", 0, False, _ANY, Tile(32, 32, 64, 4, 255, 2, 32)),
    _Row("weight by products", 90, False, _ANY, Tile(128, 64, 64, 8, 255, 2, 64)),
    _Row("weight by products", 0, False, _ANY, Tile(64, 32, 64, 4, 255, 2, 32)),
    _Row("pull by products", 90, False, _ANY, Tile(128, 32, 64, 8, 255, 2, 64)),
    _Row("pull by products", 0, False, _ANY, Tile(64, 16, 64, 4, 255, 2, 32)),
    _Row("pull of both by products", 90, False, _ANY, Tile(128, 32, 64, 8, 255, 2, 64)),
    _Row("pull of both by products", 0, False, _ANY, Tile(64, 16, 64, 4, 255, 2, 32)),
    _Row("value by one product", 90, False, 128, Tile(64, 128, 64, 4, 255, 2, 64)),
    _Row("value by products", 90, False, 16, Tile(64, 128, 64, 4, 255, 2, 64)),
    _Row("value by products", 90, False, 128, Tile(64, 64, 64, 4, 255, 2, 64)),
    _Row("value by products", 90, False, _ANY, Tile(128, 64, 64, 8, 255, 2, 64)),
    _Row("value by products", 0, False, _ANY, Tile(64, 32, 64, 4, 255, 2, 32)),
    _Row("columns by products", 90, False, _ANY, Tile(128, 16, 64, 8, 255, 2, 64)),
    _Row("columns by products", 0, False, _ANY, Tile(64, 16, 64, 4, 255, 2, 32)),
    _Row("sums and pull by products", 90, False, _ANY, Tile(64, 32, 64, 4, 255, 2, 64)),
    _Row("sums and pull by products", 0, False, _ANY, Tile(64, 32, 64, 4, 255, 2, 32)),
    _Row("moments by products", 90, False, _ANY, Tile(128, 16, 64, 8, 255, 2, 64)),
    _Row("moments by products", 0, False, _ANY, Tile(64, 16, 64, 4, 255, 2, 32)),
    _Row("moments of columns by products", 90, False, _ANY, Tile(128, 32, 64, 8, 255, 2, 64)),
    _Row("moments of columns by products", 0, False, _ANY, Tile(64, 16, 64, 4, 255, 2, 32)),
    _Row("panel by products", 90, False, _ANY, Tile(64, 32, 64, 4, 255, 2, 64)),
    _Row("panel by products", 0, False, _ANY, Tile(64, 32, 64, 4, 255, 2, 32)),
    _Row("panel with moments by products", 90, False, _ANY, Tile(64, 16, 64, 4, 255, 2, 64)),
    _Row("panel with moments by products", 0, False, _ANY, Tile(64, 16, 64, 4, 255, 2, 32)),
    _Row("panel pull by products", 90, False, _ANY, Tile(64, 64, 64, 4, 255, 2, 64)),
    _Row("panel pull by products", 0, False, _ANY, Tile(64, 32, 64, 4, 255, 2, 32)),
    _Row("log by products", 90, False, 16, Tile(128, 64, 64, 4, 255, 2, 64)),
    _Row("log by products", 90, False, _ANY, Tile(64, 64, 64, 4, 255, 2, 64)),
    _Row("log by products", 0, False, _ANY, Tile(64, 32, 64, 4, 255, 2, 32)),
    _Row("log", 0, False, _ANY, Tile(32, 64, 4, 8, 168)),
    _Row("log", 0, True, _ANY, Tile(32, 32, 4, 8, 168)),
    _Row("logs by products", 90, False, _ANY, Tile(64, 64, 64, 4, 255, 2, 64)),
    _Row("logs by products", 0, False, _ANY, Tile(64, 32, 64, 4, 255, 2, 32)),
    _Row("logs", 0, False, _ANY, Tile(32, 64, 4, 8, 168)),
    _Row("logs", 0, True, _ANY, Tile(32, 32, 4, 8, 168)),
]


def architecture(device):
    """10 times the compute capability; the interpreter, without a GPU, takes Hopper's tiles."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def row(kernel, dims, accumulator, device, products=0):
    """The row of a kernel, or of its form by so many products of float16 pieces."""
    of, wide = architecture(device), accumulator == torch.float64
    forms = {f"{kernel} by products" if products else kernel}
    if products == 1:
        forms.add(f"{kernel} by one product")
    for found in TILES:
        fits = found.architecture in (0, of) and dims <= found.dims
        if found.kernel in forms and found.float64 == wide and fits:
            return found
    raise KeyError((kernel, of, accumulator, dims))


def tile(kernel, dims, accumulator, device, products=0):
    return row(kernel, dims, accumulator, device, products).tile


def multiprocessors(device):
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def column_ranges(of, programs, columns, device):
    """Into how many ranges the columns are cut, so that few rows occupy the whole GPU too; of: the tile."""
    # of 65536 registers, one or two programs a multiprocessor
    at_once = (2 if of.warps * 32 * (of.registers or 128) <= 2**15 else 1) * multiprocessors(device)
    most = max(1, min(4 * at_once // max(1, programs), columns // RANGE, 64))
    # rounds of programs, each so long, and as much as 2 % for the sums of a range
    return min(range(1, most + 1), key=lambda n: -(-programs * n // at_once) / n * (1 + 0.02 * (n - 1)))
