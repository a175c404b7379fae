"""Errors of MMD^2 in float32 from narrow to wide kernels, against float64.

    python -m bench.mmd2_bandwidths

Samples are N(0, I) and N(.5, I), 256 rows each, the estimator unbiased. sigma runs from 1/1000 to 1000 times the
root mean squared pair distance, alone and as the ladder 1/4 to 4. Errors are relative to the greater of |MMD^2| and
the mean kernel between the samples, and where the means are above 0.9 to |MMD^2| alone. Bandwidths whose mean kernel
is below the range of float32 are left out. Writes bench/results/mmd2_bandwidths.csv and a picture.
"""

import argparse
import csv
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import gkfast
from bench import rivals

RESULTS = Path(__file__).parent / "results"
DIMS = (1, 2, 16, 24, 32, 48, 64, 256, 784)
LADDERS = {"one": (1.0,), "ladder": (0.25, 0.5, 1.0, 2.0, 4.0)}
SMALLEST = 1e-36


class Row(NamedTuple):
    library: str
    D: int
    bandwidths: str
    scale: float  # sigma over the root mean squared distance; 0 stands for sigma = 1
    mmd2: float
    mean_xy: float
    error: float  # relative to max(|mmd2|, mean_xy)
    error_of_mmd2: float  # relative to |mmd2|


def rows() -> list[Row]:
    found = []
    for dims in DIMS:
        rng = np.random.default_rng(0)
        x, y = (rng.normal(size=(256, dims)) + shift for shift in (0, 0.5))
        x, y = x.astype(np.float32), y.astype(np.float32)
        wide = x.astype(np.float64), y.astype(np.float64)
        width = float(gkfast.mean_sigma(*wide))
        for name, ladder in LADDERS.items():
            for scale in (0.0, *np.geomspace(1e-3, 1e3, 25)):
                sigma = [(width * scale if scale else 1.0) * s for s in ladder]
                xx, yy, between = map(float, gkfast.kernel_means(*wide, sigma, backend="reference"))
                # whichever form cancels less in float64
                near = between > 0.5 * len(sigma)
                exact = float(gkfast.mmd2(*wide, sigma, backend="reference")) if near else xx + yy - 2 * between
                if between < SMALLEST:
                    continue
                plain = rivals.mmd2(rivals.eager, torch.from_numpy(x), torch.from_numpy(y), sigma)
                for library, value in (
                    ("gkfast", float(gkfast.mmd2(x, y, sigma))),
                    ("plain torch", float(plain)),
                ):
                    off = abs(value - exact)
                    numbers = exact, between, off / max(abs(exact), between), off / abs(exact)
                    found.append(Row(library, dims, name, float(scale), *numbers))
    return found


def draw(found: list[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for axis, library in zip(axes, ("gkfast", "plain torch"), strict=True):
        for k, dims in enumerate(DIMS):
            mine = [r for r in found if (r.library, r.D, r.bandwidths) == (library, dims, "one") and r.scale]
            colour = plt.get_cmap("viridis")(k / len(DIMS))
            errors = [max(r.error, 1e-9) if math.isfinite(r.error) else 1e3 for r in mine]
            axis.plot([r.scale for r in mine], errors, "o-", ms=3, color=colour, label=f"D = {dims}")
        axis.axhline(1e-5, color="0.4", ls="--", lw=1)
        axis.set(xscale="log", yscale="log", title=library, xlabel="sigma / root mean squared distance")
    axes[0].set_ylabel("error of MMD² over max(|MMD²|, mean k)")
    axes[1].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.mmd2_bandwidths", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    out = parser.parse_args().out
    found = rows()
    with open(out / "mmd2_bandwidths.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        writer.writerows([f"{v:.3g}" if isinstance(v, float) else v for v in row] for row in found)
    draw(found, out / "mmd2_bandwidths.png")
    print("worst errors; of mmd2: where the mean kernel is above 0.9")
    for library in ("gkfast", "plain torch"):
        for dims in DIMS:
            mine = [r for r in found if (r.library, r.D) == (library, dims)]
            near = [r.error_of_mmd2 for r in mine if r.mean_xy > 0.9 * len(LADDERS[r.bandwidths])]
            fault = [r.error for r in mine if r.scale == 0]
            cells = (max(r.error for r in mine), max(near), max(fault, default=math.nan))
            print(f"{library:12} D = {dims:4}  all {cells[0]:.1e}   of mmd2 {cells[1]:.1e}   sigma 1 {cells[2]:.1e}")


if __name__ == "__main__":
    main()
