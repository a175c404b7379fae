"""What a narrow bandwidth costs: nanoseconds a pair from the median distance to 1/256 of it.

    python -m bench.sigma_sweep

Kernels far below 1 leave the range of normal numbers, on which arithmetic takes up to 100 times as long where the
processor is not told to take them for 0. Every operation runs at sigma = median x 1, 1/4, 1/16, 1/64, 1/256 in turns,
beside plain torch with its exponent clamped, one thread, N = M = 2048, float32; medians of the turns. Writes
bench/results/MACHINE-sigma.csv.
"""

import argparse
import csv
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import gkfast
from bench import machine, rivals

RESULTS = Path(__file__).parent / "results"
ROWS = 2048
FACTORS = (1.0, 1 / 4, 1 / 16, 1 / 64, 1 / 256)
DIMS = (1, 2, 16, 64, 784)
TURNS = 15


def operations(dims: int) -> Iterator[tuple[str, dict[str, Callable[[float], Any]], int]]:
    """Names, functions of sigma for each library, and how many pairs they visit."""
    torch.manual_seed(0)
    x, y, v = torch.randn(ROWS, dims), torch.randn(ROWS, dims), torch.rand(ROWS, 1)
    out = torch.empty(ROWS, ROWS)
    pairs = ROWS * ROWS

    def gradient(mmd2: Callable[..., torch.Tensor]) -> Callable[[float], Any]:
        def run(sigma: float) -> Any:
            leaf = x.clone().requires_grad_()
            return torch.autograd.grad(mmd2(leaf, y, [sigma]), leaf)

        return run

    yield "rbf", {
        "gkfast": lambda s: gkfast.rbf(x, y, s, out=out),
        "clamped torch": lambda s: rivals.eager_in_place(x, y, [s]),
    }, pairs  # fmt: skip
    yield "rbf_matmul", {
        "gkfast": lambda s: gkfast.rbf_matmul(x, y, v, s),
        "clamped torch": lambda s: rivals.eager_in_place(x, y, [s]) @ v,
    }, pairs  # fmt: skip
    yield "log_density", {
        "gkfast": lambda s: gkfast.log_density(x, y, s),
        "clamped torch": lambda s: rivals.squared_distance(x, y).mul_(-0.5 / s**2).logsumexp(1),
    }, pairs  # fmt: skip
    yield "mmd2 gradient", {
        "gkfast": gradient(lambda p, q, s: gkfast.mmd2(p, q, s)),
        "clamped torch": gradient(lambda p, q, s: rivals.mmd2(rivals.eager, p, q, s)),
    }, 3 * pairs  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sigma_sweep", description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--out", type=Path, help="the file of rows; by default in bench/results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = options.out or RESULTS / f"{machine.name()}-sigma.csv"
    rows = []
    for dims in DIMS:
        for name, libraries, pairs in operations(dims):
            median = float(gkfast.median_sigma(torch.randn(ROWS, dims)))
            seconds: dict[tuple[str, float], list[float]] = {}
            # the slow rival takes a few turns
            for turn in range(options.turns + 1):
                for library, run in libraries.items():
                    if library != "gkfast" and turn > max(3, options.turns // 5):
                        continue
                    for factor in FACTORS:
                        start = time.perf_counter()
                        run(median * factor)
                        if turn:
                            seconds.setdefault((library, factor), []).append(time.perf_counter() - start)
            for library in libraries:
                each = [statistics.median(seconds[library, f]) / pairs * 1e9 for f in FACTORS]
                print(
                    f"{name:14} D = {dims:3} {library:14} "
                    + "  ".join(f"{value:6.2f}" for value in each)
                    + f"   ns a pair; narrowest over widest {max(each) / each[0]:.2f}",
                    flush=True,
                )
                rows += [
                    (name, dims, library, f"1/{round(1 / f)}", f"{t:.3f}", f"{t / each[0]:.2f}")
                    for f, t in zip(FACTORS, each, strict=True)
                ]
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("operation", "D", "library", "sigma_over_median", "ns_a_pair", "over_widest"))
        writer.writerows(rows)
    print(f"rows in {path}")


if __name__ == "__main__":
    main()
