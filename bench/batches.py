"""Batches of small problems: MMD^2, value and gradient to x, beside the same formula on dense torch matrices.

    python -m bench.batches

256 problems of 4 to 10 points are offline reinforcement learning's, 2048 of 16 points an ensemble's, 128 to 2048 of
64 points those of drifting models. Both run in turns, float32, on all threads, after values and gradients have been
compared. Writes bench/results/MACHINE-batches.csv.
"""

import argparse
import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gkfast
from bench import machine, measure, rivals

RESULTS = Path(__file__).parent / "results"
# problems, points of either set, coordinates, bandwidths
CASES = (
    *((256, n, 6, s) for n in (4, 10) for s in (1, 5)),
    *((2048, 16, 8, s) for s in (1, 5)),
    *((problems, 64, 160, 1) for problems in (128, 512, 2048)),
)


def dense(x: Tensor, y: Tensor, sigma: list[float]) -> Tensor:
    """The unbiased estimate from three stored matrices of each problem, the exponents clamped."""

    def kernel(p: Tensor, q: Tensor) -> Tensor:
        d2 = p.square().sum(-1)[..., :, None] + q.square().sum(-1)[..., None, :] - 2 * (p @ q.mT)
        return rivals.add_up(torch.exp((d2 / (-2 * s * s)).clamp(min=-87)) for s in sigma)

    def within(p: Tensor) -> Tensor:
        k, n = kernel(p, p), p.shape[-2]
        return (k.sum((-1, -2)) - k.diagonal(dim1=-2, dim2=-1).sum(-1)) / (n * (n - 1))

    return within(x) + within(y) - 2 * kernel(x, y).mean((-1, -2))


def runs(problems: int, n: int, d: int, bandwidths: int) -> list[Callable[[], dict[str, Tensor]]]:
    torch.manual_seed(0)
    x, y = torch.randn(problems, n, d, requires_grad=True), torch.randn(problems, n, d) + 0.5
    sigma = [math.sqrt(d)] if bandwidths == 1 else [math.sqrt(d * 2.0 ** (s - 2)) for s in range(bandwidths)]

    def of(mmd2: Callable[..., Any]) -> Callable[[], dict[str, Tensor]]:
        def run() -> dict[str, Tensor]:
            values = mmd2(x, y, sigma)
            return {"value": values.detach(), "gradient": torch.autograd.grad(values.sum(), x)[0]}

        return run

    return [of(gkfast.mmd2), of(dense)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.batches", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="the file of rows; by default in bench/results")
    options = parser.parse_args()
    rows = []
    for case in CASES:
        ours, theirs = runs(*case)
        found, expected = ours(), theirs()
        for name, value in found.items():
            error = (value - expected[name]).norm() / expected[name].norm()
            if not error < 1e-3:
                raise SystemExit(f"WRONG: error of {name} {error:.1e} in {case}")
        turns = measure.alternate(ours, theirs)
        row = (*case, turns.ours.best * 1e3, turns.theirs.best * 1e3, turns.ratio, turns.best_ratio, turns.others)
        rows.append((*case, *(f"{number:.4g}" for number in row[4:])))
        print(
            "{} problems of {} x {}, {} bandwidths: {:.3f} ms, dense torch {:.3f} ms, ratio {:.2f}, "
            "of the best turns {:.2f}; {:.2f} cores in other hands".format(*row),
            flush=True,
        )
    with open(options.out or RESULTS / f"{machine.name()}-batches.csv", "w", newline="") as file:
        writer = csv.writer(file)
        case, times = ("problems", "N", "D", "bandwidths"), ("gkfast_best_ms", "dense_torch_best_ms")
        writer.writerows(((*case, *times, "ratio", "best_ratio", "others"), *rows))


if __name__ == "__main__":
    main()
