"""What a narrow bandwidth costs, and data far from the origin: nanoseconds a pair.

    python -m bench.sigma_sweep

Kernels far below 1 leave the range of normal numbers, on which arithmetic takes up to 100 times as long where the
processor is not told to take them for 0. Every operation runs at sigma = median x 1, 1/4, 1/16, 1/64, 1/256 in turns,
beside plain torch with its exponent clamped, one thread, N = M = 2048, float32; medians of the turns. And at
sigma = median with one half of the points moved by 1000 medians and the other by -1000: distances by the product of
points would then lose all digits, and differences take their place. Writes bench/results/MACHINE-sigma.csv.
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
DIMS = (1, 2, 16, 64, 128, 256, 784)
# how far from the origin, in median distances
FAR = 1000.0
TURNS = 15


def operations(dims: int, away: float) -> Iterator[tuple[str, dict[str, Callable[[float], Any]], int]]:
    """Names, functions of sigma for each library, and how many pairs they visit.

    Even rows are moved by `away` along the diagonal, odd rows by -away.
    """
    torch.manual_seed(0)
    x, y, v = torch.randn(ROWS, dims), torch.randn(ROWS, dims), torch.rand(ROWS, 1)
    sides = away / dims**0.5 * (1 - 2 * (torch.arange(ROWS) % 2)[:, None])
    x, y = x + sides, y + sides
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
        median = float(gkfast.median_sigma(torch.randn(ROWS, dims)))
        cases = [(f"1/{round(1 / f)}", median * f) for f in FACTORS] + [("far", median)]
        for near, far in zip(operations(dims, 0.0), operations(dims, FAR * median), strict=True):
            name, libraries, pairs = near
            seconds: dict[tuple[str, str], list[float]] = {}
            # the slow rival takes a few turns
            for turn in range(options.turns + 1):
                for library in libraries:
                    if library != "gkfast" and turn > max(3, options.turns // 5):
                        continue
                    # each is the first once: what runs after the other library finds the cache cold
                    for case, sigma in cases[turn % len(cases) :] + cases[: turn % len(cases)]:
                        run = (far if case == "far" else near)[1][library]
                        start = time.perf_counter()
                        run(sigma)
                        if turn:
                            seconds.setdefault((library, case), []).append(time.perf_counter() - start)
            for library in libraries:
                each = {case: statistics.median(seconds[library, case]) / pairs * 1e9 for case, _ in cases}
                widest = each["1/1"]
                worst = max(value for case, value in each.items() if case != "far")
                print(
                    f"{name:14} D = {dims:3} {library:14} "
                    + "  ".join(f"{value:6.2f}" for value in each.values())
                    + f"   ns a pair; over the widest: narrow {worst / widest:.2f}, far {each['far'] / widest:.2f}",
                    flush=True,
                )
                rows += [(name, dims, library, case, f"{t:.3f}", f"{t / widest:.2f}") for case, t in each.items()]
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("operation", "D", "library", "sigma_over_median", "ns_a_pair", "over_widest"))
        writer.writerows(rows)
    print(f"rows in {path}")


if __name__ == "__main__":
    main()
