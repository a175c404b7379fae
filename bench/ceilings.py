"""What the machine allows, measured in the same run.

Each case is compared with the greater of two bounds: "fma", its multiply-adds at the rate of the vector units when
nothing else happens, and "store", a fill of the output where one is returned. torch.mm with its output given is shown
beside them as what rivals begin with; it is no bound, since it reads and writes more than it must.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numba
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from bench.machine import vectors
from bench.measure import SQUARINGS, Case, on_one_thread

# enough independent chains to hide the latency of two multiply-adds per clock, few enough for sixteen registers
_CHAINS = 12
# the degree of a polynomial that is 2^f on half a unit within the contract: 2e-7, and 2e-16 in float64
_EXP = {"float32": 5, "float64": 11}


def _multiply_add(bits: int, lanes: int) -> Callable[[int, float], float]:
    """f(rounds, c): _CHAINS registers of acc = acc c + c, `rounds` times."""
    scalar, numba_type = {32: (ir.FloatType(), types.float32), 64: (ir.DoubleType(), types.float64)}[bits]

    @intrinsic
    def chains(typing_context, rounds, c):
        def generate(context, builder, signature, arguments):
            vector = ir.VectorType(scalar, lanes)
            factor = ir.Constant(vector, ir.Undefined)
            for lane in range(lanes):
                factor = builder.insert_element(factor, arguments[1], ir.IntType(32)(lane))
            name = f"llvm.fma.v{lanes}f{bits}"
            fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
            accumulators = [cgutils.alloca_once_value(builder, factor) for _ in range(_CHAINS)]
            with cgutils.for_range(builder, arguments[0]):
                for acc in accumulators:
                    builder.store(builder.call(fma, [builder.load(acc), factor, factor]), acc)
            # every lane is used, or the compiler would drop it
            total = scalar(0)
            for acc in accumulators:
                for lane in range(lanes):
                    total = builder.fadd(total, builder.extract_element(builder.load(acc), ir.IntType(32)(lane)))
            return total

        return numba_type(types.int64, numba_type), generate

    @numba.njit([numba_type(types.int64, numba_type)], nogil=True)
    def run(rounds, c):
        return chains(rounds, c)

    return run


@cache
def fma_rate(dtype: str) -> float:
    """Multiply-adds per second, on as many threads as torch has."""
    bits = {"float32": 32, "float64": 64}[dtype]
    lanes, threads, rounds = vectors()[1] // bits, torch.get_num_threads(), 200_000
    run = _multiply_add(bits, lanes)

    def best_of_own_tries(_: int) -> float:
        return min(_seconds(lambda: run(rounds, 0.5)) for _ in range(50))

    # each thread keeps its own best time, while the others run: another process rarely spares all of them at once
    with ThreadPoolExecutor(threads) as pool:
        return sum(rounds * _CHAINS * lanes / best for best in pool.map(best_of_own_tries, range(threads)))


@cache
def fill_seconds(n: int, m: int, dtype: str) -> float:
    """Seconds to fill an (N, M) matrix that is there already: the best of twenty tries, on one thread and on all."""
    out = torch.empty(n, m, dtype=getattr(torch, dtype))

    def fill() -> Tensor:
        return out.fill_(1.0)

    return min(_seconds(run) for run in (fill, on_one_thread(fill)) for _ in range(20))


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def multiply_adds(case: Case) -> int:
    """The fewest that a case needs.

    A pair costs D for its distance and _EXP for the exponential, a further bandwidth of a ladder its squarings, a
    column of a product one, and each moment (a row or column gradient) D more. Pairs within one set are counted once,
    since K is symmetric.
    """
    n, m, d = case.n, case.m, case.d
    kernel = d + _EXP[case.dtype] + SQUARINGS[case.bandwidths]
    # half of xx, half of yy, all of xy
    pairs_of_two_sets = (n * n + m * m) // 2 + n * m
    counts = {
        "rbf": n * m * kernel,
        "rbf gradient": n * m * (kernel + 2 * d),
        "rbf_matmul": n * m * (kernel + case.columns),
        "log_density": n * m * kernel,
        "mmd2": pairs_of_two_sets * kernel,
        # and the moments: both ends of half of xx, the rows of xy
        "mmd2 gradient": pairs_of_two_sets * kernel + (n * n + n * m) * d,
    }
    # the rest of a name says how the operation is called; bandwidths cost what their sum does
    return counts[
        case.op.replace(" by bandwidth", "").removesuffix(" out").removesuffix(" numpy").partition(" first call")[0]
    ]


def bound(case: Case) -> tuple[str, float]:
    """The name of the bound that holds for this case, and its seconds."""
    bounds = {"fma": multiply_adds(case) / fma_rate(case.dtype)}
    if case.op.split()[0] == "rbf":
        bounds["store"] = fill_seconds(case.n, case.m, case.dtype)
    return max(bounds.items(), key=lambda item: item[1])
