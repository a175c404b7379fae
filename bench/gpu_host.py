"""Host time of calls of the GPU kernels, compiled by Triton for an H200, under a driver that does nothing.

    python bench/gpu_host.py                             what a GAN step calls; writes bench/results/gpu_host.csv
    python bench/gpu_host.py mmd2:1024:1024:128 ...      op:N:M:D[:precision]

No GPU is needed, or used: tensors are on the CPU, and the driver takes launches without carrying them out. So the
times hold all of Python and of torch's allocator, none of CUDA's own launch (2 to 3 us for each), and for torch's
operators beside the kernels what the CPU takes.
Printed for each case: launches of Triton's kernels, torch operators beside them, and the least and median time of a
call, at two levels: the function of kernels.gpu, and the public function with its backward, which takes the path of
GPU tensors. Operators are counted by a mode of torch, under which gradients are scaled one by one, not in one launch.
"""

import argparse
import contextlib
import csv
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parent.parent
OPS = ("mmd2", "mmd2_value", "rbf", "rbf_matmul", "log_density")
CASES = ["mmd2:64:64:128", "mmd2:256:256:128", "mmd2:1024:1024:128", "mmd2:4096:4096:128", "mmd2_value:1024:1024:128"]
CASES += ["rbf:1024:1024:16", "rbf_matmul:1000:1000:3", "log_density:1000:10000:16"]
# torch's operators that launch nothing
QUIET = ("empty", "new_empty", "empty_like", "empty_strided", "detach", "lift_fresh", "_unsafe_view", "alias")
# of an H200
MULTIPROCESSORS, SHARED = 132, 232448


class Launcher:
    """Triton's launcher of one kernel: it counts, and does nothing."""

    count = 0

    def __init__(self, source: Any, metadata: Any) -> None:
        pass

    def __call__(self, *arguments: Any) -> None:
        Launcher.count += 1
        # behind grid, stream, function and settings: what a profiler added
        metadata, enter, leave = arguments[6:9]
        if enter is not None:
            enter(metadata)
        if leave is not None:
            leave(metadata)


class Utils:
    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[int, ...]:
        return 1, 1, 128, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED, "multiprocessor_count": MULTIPROCESSORS, "warpSize": 32}

    def unload_module(self, module: int) -> None:
        pass


class Driver:
    """What Triton asks of a driver, for Hopper."""

    utils, launcher_cls = Utils(), Launcher

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


class Beside(TorchDispatchMode):
    """Counts torch operators that would launch something on a GPU."""

    now: "Beside | None" = None

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if not function.is_view and name not in QUIET and function.namespace == "aten":
            self.names.append(name)
        return function(*arguments, **(options or {}))


def pretend() -> None:
    """Makes tensors on the CPU take the path of those on a GPU."""
    from triton.runtime import driver

    sys.path.insert(0, str(ROOT))
    driver.set_active(Driver())
    import gkfast.ops  # noqa: F401
    from gkfast.kernels import gpu  # noqa: F401  (loads the modules that are changed)
    from gkfast.ops import operator, torch_private

    sys.modules["gkfast.kernels.gpu.tiles"].multiprocessors = lambda device: MULTIPROCESSORS
    # a tensor of the CPU is one of the GPU's
    keys = frozenset(torch_private._PLAIN)
    torch_private._PLAIN, torch_private.plain_of_gpu = frozenset(), lambda: keys
    # the dispatcher keeps the first kernel of a key, unless it is told to forget it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, kernel in operator.gpu_kernels.items():
            _library.impl(name, partial(watched, kernel), "CPU", allow_override=True)


def watched(kernel: Callable[..., Any], *inputs: Any) -> Any:
    """A kernel of the dispatcher, whose torch operators are counted too: torch looks away in there."""
    with Beside.now or contextlib.nullcontext():
        return kernel(*inputs)


_library = torch.library.Library("gkfast", "FRAGMENT")


def of_kernels(op: str, n: int, m: int, d: int, precision: str) -> Callable[[], Any]:
    """A call of a function of kernels.gpu."""
    from gkfast.kernels import gpu

    x, y = torch.zeros(1, n, d), torch.zeros(1, m, d)
    # numbers of the host, as the operators give them
    sigma, weights = (float(d) ** 0.5,), (1.0,)
    by = {"precision": precision}
    if op.startswith("mmd2"):
        scale, baseline = (1.0, 1.0, -2.0), torch.ones(1, 1, dtype=torch.float64)
        wants = (op == "mmd2",) * 2 + (False,) * 4
        return lambda: gpu.kernel_sums_with_gradients(
            scale, x, y, None, None, sigma, weights, baseline, drop=1, wants=wants, **by
        )
    if op == "rbf":
        return lambda: gpu.rbf(x, y, sigma, weights, **by)
    if op == "rbf_matmul":
        v = torch.zeros(1, m, 1)
        return lambda: gpu.rbf_matmul(x, y, v, sigma, weights, **by)
    share = torch.ones(1, m, dtype=torch.float64)
    return lambda: gpu.log_density(x, y, sigma, weights, share, leave_one_out=False, **by)


def of_public(op: str, n: int, m: int, d: int, precision: str) -> Callable[[], Any]:
    """A call of the public function, and its backward."""
    import gkfast

    x, y = torch.zeros(n, d, requires_grad=op != "mmd2_value"), torch.zeros(m, d, requires_grad=op != "mmd2_value")
    sigma, v = float(d) ** 0.5, torch.zeros(m)
    functions = {
        "rbf": lambda: gkfast.rbf(x, y, sigma, precision=precision),
        "rbf_matmul": lambda: gkfast.rbf_matmul(x, y, v, sigma, precision=precision),
        "log_density": lambda: gkfast.log_density(x, y, sigma, precision=precision),
    }
    function = functions.get(op, lambda: gkfast.mmd2(x, y, sigma, precision=precision))
    if op == "mmd2_value":
        return function
    g = torch.ones_like(function())

    def call() -> Any:
        return torch.autograd.grad(function(), (x, y), g)

    return call


class Row(NamedTuple):
    """A call: what it launches, and how long the host takes."""

    case: str
    level: str
    launches: int
    torch_operators: int
    best_us: float
    median_us: float
    triton: str
    names: str = ""

    def __str__(self) -> str:
        times = f"{self.launches:3d} launches, best {self.best_us:5.0f} us, median {self.median_us:5.0f} us"
        return f"{self.case:28} {self.level:12} {times}, torch beside: {self.torch_operators} {self.names}".rstrip()


def measure(case: str, level: str, call: Callable[[], Any], rounds: int) -> Row:
    import triton

    for _ in range(3):
        # its kernels are compiled, and its plan made
        call()
    Beside.now, Launcher.count = Beside(), 0
    with Beside.now as beside:
        call()
    Beside.now, launches = None, Launcher.count
    times = []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - start) / 1e3)
    times.sort()
    best, median = round(times[0], 1), round(times[rounds // 2], 1)
    names = ", ".join(beside.names)
    return Row(case, level, launches, len(beside.names), best, median, triton.__version__, names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=CASES, metavar="op:N:M:D[:precision]")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--kernels-only", action="store_true", help="not the public functions")
    parser.add_argument("--profile", action="store_true", help="where the time goes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pretend()
    rows = []
    for text in options.cases:
        op, *sizes = text.split(":")
        if op not in OPS or len(sizes) not in (3, 4):
            parser.error(f"a case must be op:N:M:D[:precision] with op one of {', '.join(OPS)}, got {text}")
        precision = sizes.pop() if len(sizes) == 4 else "highest"
        n, m, d = map(int, sizes)
        levels = (
            {"kernels.gpu": of_kernels} if options.kernels_only else {"kernels.gpu": of_kernels, "public": of_public}
        )
        for level, make in levels.items():
            call = make(op, n, m, d, precision)
            rows.append(measure(text, level, call, options.rounds))
            print(rows[-1], flush=True)
            if options.profile:
                import cProfile
                import pstats

                with cProfile.Profile() as profile:
                    for _ in range(options.rounds):
                        call()
                pstats.Stats(profile).sort_stats("tottime").print_stats(40)
    if options.cases == CASES and not options.kernels_only:
        with open(ROOT / "bench/results/gpu_host.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(Row._fields)
            writer.writerows(rows)


if __name__ == "__main__":
    main()
