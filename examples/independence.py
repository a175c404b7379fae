"""An independence test by HSIC: which measurements depend on each other, however they do.

    python examples/independence.py

Three kinds of dependence have no correlation at all: a circle, a parabola, and a spread that depends on x. The
p-value is that of permutations of y; all of them are one batch of gkfast.hsic, and no kernel matrix is stored.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import gkfast


def pairs(rng, n):
    x, noise = rng.normal(size=(n, 1)), rng.normal(size=(n, 1))
    angle = rng.uniform(0, 2 * np.pi, (n, 1))
    return {
        "independent": (x, noise),
        "linear, weak": (x, 0.4 * x + noise),
        "parabola": (x, x**2 + noise),
        "circle": (np.cos(angle) + 0.1 * x, np.sin(angle) + 0.1 * noise),
        "spread": (x, noise * (0.3 + abs(x))),
    }


def hsic_test(x, y, permutations, rng):
    """HSIC, and the share of permutations of y that have no less of it."""
    sigma_x, sigma_y = (float(gkfast.median_sigma(a)) for a in (x, y))
    orders = np.array([np.arange(len(y)), *(rng.permutation(len(y)) for _ in range(permutations))])
    values = gkfast.hsic(x, y[orders], sigma_x, sigma_y)
    return float(values[0]), float((values >= values[0]).mean())


def run(rows=200, permutations=200, seed=0):
    """For each kind: points, correlation, HSIC and p-value."""
    rng = np.random.default_rng(seed)
    table = {}
    for name, (x, y) in pairs(rng, rows).items():
        correlation = float(np.corrcoef(x[:, 0], y[:, 0])[0, 1])
        table[name] = (x, y, correlation, *hsic_test(x, y, permutations, rng))
    return table


def draw(table, path):
    figure, axes = plt.subplots(1, len(table), figsize=(2.3 * len(table), 2.5))
    for axis, (name, (x, y, correlation, _, p)) in zip(axes, table.items(), strict=True):
        axis.scatter(x, y, s=4)
        axis.set(title=f"{name}\ncorrelation {correlation:.2f}, p = {p:.3f}", xticks=[], yticks=[])
        axis.title.set_fontsize(8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--permutations", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("examples/pictures"))
    options = parser.parse_args()
    table = run(permutations=options.permutations)
    print("pairs          correlation     HSIC   p-value")
    for name, (_, _, correlation, hsic, p) in table.items():
        print(f"{name:14} {correlation:11.2f} {hsic:8.4f} {p:9.3f}")
    draw(table, options.out / "independence.png")
