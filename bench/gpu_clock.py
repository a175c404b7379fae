"""How runs on a GPU are timed, and what the GPU can do at best. On the CPU a clock stands for the GPU's events."""

import statistics
import time
from functools import partial

import torch

from bench import gpu_cases

# runs shorter than this are copied into one graph, whose launch would count otherwise
_SHORT = 300e-6
_COPIES = 20


def synchronize():
    if gpu_cases.DEVICE != "cpu":
        torch.cuda.synchronize()


def once(run):
    """Seconds of one run."""
    if gpu_cases.DEVICE == "cpu":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / 1e3


def seconds(run, budget=0.5):
    """Median of single runs, after a few that warm up: at least three, but one of a run that takes seconds."""
    return in_turn([run], budget)[0]


def in_turn(runs, budget=0.5, most=200):
    """The median of each run; they take turns, so that all meet the same clocks."""
    for _ in range(3):
        warm = sum(once(run) for run in runs)
        if warm > budget:
            break
    times = [[once(run) for run in runs]]
    least = 1 if warm > 4 * budget else 3
    while len(times) < least or (sum(map(sum, times)) < budget and len(times) < most):
        times.append([once(run) for run in runs])
    return [statistics.median(column) for column in zip(*times, strict=True)]


def captured(run, copies=1):
    """So many copies of the run as one CUDA graph, and what the last returns."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(copies):
            outputs = run()

    def replay():
        graph.replay()
        return outputs

    return replay


def replays(run):
    """The run as a graph, how many copies of the run it holds, and why it is no graph where it is the run itself."""
    if gpu_cases.DEVICE == "cpu":
        return run, 1, "on the CPU"
    try:
        graph = captured(run)
    except Exception as failure:
        torch.cuda.synchronize()
        return run, 1, f"{type(failure).__name__}: {failure}"[:200]
    once(graph)
    if once(graph) > _SHORT:
        return graph, 1, ""
    return captured(run, _COPIES), _COPIES, ""


def exponentials_per_second(blocks=132 * 64, block=1024, rounds=2000):
    import triton
    import triton.language as tl

    @triton.jit
    def exponentials(out_ptr, ROUNDS: tl.constexpr, BLOCK: tl.constexpr):
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        # chains that neither grow nor vanish: -2^x stays between -1 and 0
        x = at.to(tl.float32) * -1e-9
        for _ in range(ROUNDS):
            x = -tl.exp2(x)
        tl.store(out_ptr + at, x)

    out = torch.empty(blocks * block, device=gpu_cases.DEVICE)
    return blocks * block * rounds / seconds(lambda: exponentials[(blocks,)](out, ROUNDS=rounds, BLOCK=block))


def products_per_second(size=8192, dtype=torch.float16):
    """Multiply-adds of a matrix product."""
    a, b = (torch.randn(size, size, device=gpu_cases.DEVICE, dtype=dtype) for _ in range(2))
    return size**3 / seconds(lambda: a @ b)


def bytes_per_second(numbers=2**28):
    """Read and written by a copy, by default of far more than any cache holds."""
    big = torch.randn(numbers, device=gpu_cases.DEVICE)
    other = torch.empty_like(big)
    return 2 * 4 * big.numel() / seconds(partial(other.copy_, big))


def measured_ceilings():
    """exp2 a second, float16 multiply-adds a second, bytes a second."""
    return exponentials_per_second(), products_per_second(), bytes_per_second()
