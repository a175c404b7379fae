"""MMD^2 of all pairs of groups: one labelled product beside mmd2 for each pair.

    python -m bench.groups

Both run in turns, float32, one thread, after their values have been compared. Writes bench/results/groups.csv.
"""

import argparse
import csv
from itertools import combinations
from pathlib import Path

import torch

import gkfast
from bench import machine, measure

RESULTS = Path(__file__).parent / "results"
# groups, rows of each, coordinates
CASES = ((4, 100, 64), (24, 20, 2), (24, 100, 2), (24, 100, 64), (100, 50, 16))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.groups", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "groups.csv", help="the file of rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for groups, each, dims in CASES:
        x = torch.randn(groups * each, dims, generator=torch.Generator().manual_seed(0))
        labels, sigma = torch.arange(groups).repeat_interleave(each), dims**0.5
        parts = x.split(each)

        def ours(x=x, labels=labels, sigma=sigma):
            return gkfast.pairwise_mmd2(x, labels, sigma)

        def theirs(parts=parts, sigma=sigma):
            return [gkfast.mmd2(a, b, sigma) for a, b in combinations(parts, 2)]

        above = ours()[torch.ones(groups, groups).triu(1) > 0]
        error = (above - torch.stack(theirs())).abs().max()
        if not error < 1e-5:
            raise SystemExit(f"WRONG: error {error:.1e} in {groups} groups of {each} x {dims}")
        turns = measure.alternate(ours, theirs)
        row = (groups, each, dims, turns.ours.best * 1e3, turns.theirs.best * 1e3, turns.ratio)
        rows.append((machine.name(), *row[:3], *(f"{number:.4g}" for number in row[3:])))
        print("{} groups of {} x {}: {:.3f} ms, pair by pair {:.2f} ms, ratio {:.1f}".format(*row), flush=True)
    with open(options.out, "w", newline="") as file:
        head = ("machine", "groups", "N", "D", "pairwise_best_ms", "pair_by_pair_best_ms", "ratio")
        csv.writer(file).writerows((head, *rows))


if __name__ == "__main__":
    main()
