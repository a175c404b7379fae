"""Which sigma? The mean kernel value, and how far MMD^2 stands out of its noise, against the bandwidth.

    python examples/which_sigma.py

Two pairs of samples: one differs by a shift, the other by a fine ripple. The picture of docs/guides/sigma.md.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import gkfast


def samples(rng, n):
    plane = rng.normal(size=(n, 2))
    ripple = rng.uniform(-3, 3, size=(4 * n, 1))
    # denser at every second eighth
    ripple = ripple[rng.uniform(size=(4 * n, 1)) < 0.5 + 0.5 * np.sin(8 * np.pi * ripple)][:n, None]
    return {
        "a shift by half a deviation": (plane, rng.normal(size=(n, 2)) + 0.5),
        "a ripple of period 1/4": (rng.uniform(-3, 3, size=(n, 1)), ripple),
    }


def run(rows=600, factors=25, seed=0):
    """For each pair: sigma, mean kernel value, and MMD^2 over its deviation; and the median distance."""
    rng = np.random.default_rng(seed)
    curves = {}
    for name, (x, y) in samples(rng, rows).items():
        median = float(gkfast.median_sigma(x, y))
        sigmas = median * np.geomspace(1 / 300, 30, factors)
        means = [gkfast.kernel_means(x, y, s).xy for s in sigmas]
        found = [gkfast.mmd2_and_variance(x, y, s) for s in sigmas]
        # an estimated variance may fall below zero, where there is little to estimate
        worth = [float(m.mmd2 / np.sqrt(m.variance)) if m.variance > 0 else np.nan for m in found]
        curves[name] = sigmas, np.array(means), np.array(worth), median
    return curves


def draw(curves, path):
    figure, axes = plt.subplots(1, len(curves), figsize=(9, 3.3))
    for axis, (name, (sigmas, means, worth, median)) in zip(axes, curves.items(), strict=True):
        axis.semilogx(sigmas, means, color="0.5", label="mean kernel value")
        axis.axvline(median, ls=":", color="k", label="median distance")
        axis.set(title=name, xlabel="sigma", ylim=(0, 1.05))
        twin = axis.twinx()
        twin.semilogx(sigmas, worth, color="tab:red", label="MMD² over its deviation")
        twin.tick_params(axis="y", colors="tab:red")
        handles = [h for a in (axis, twin) for h in a.get_legend_handles_labels()[0]]
        axis.legend(handles=handles, fontsize=7, loc="center right")
    figure.tight_layout()
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("examples/pictures"))
    options = parser.parse_args()
    curves = run(options.rows)
    print("samples                       median    best sigma   mean kernel value there")
    for name, (sigmas, means, worth, median) in curves.items():
        best = int(np.nanargmax(worth))
        print(f"{name:28} {median:7.2f} {sigmas[best]:13.3f} {means[best]:14.3f}")
    draw(curves, options.out / "which_sigma.png")
