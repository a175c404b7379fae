"""Stein variational gradient descent: particles that become samples of a density.

    python examples/svgd.py

phi(x_i) = mean_j [ K(x_j, x_i) grad log p(x_j) + grad_{x_j} K(x_j, x_i) ] is one product of the kernel matrix with
five columns, which does not store it. The target is a mixture on a ring; the table has MMD^2 of the particles to
exact samples.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import gkfast

CENTRES = 2 * torch.stack([torch.tensor([a.cos(), a.sin()]) for a in torch.arange(6) * torch.pi / 3])
WIDTH = 0.5


def score(x):
    """grad log p of the mixture: a density of six points, so gkfast has it."""
    return gkfast.score(x, CENTRES, WIDTH)


def phi(x, sigma):
    n = len(x)
    # columns: the scores, the points, and ones
    products = gkfast.rbf_matmul(x, None, torch.cat([score(x), x, torch.ones(n, 1)], 1), sigma)
    driven, moved, mass = products[:, :2], products[:, 2:4], products[:, 4:]
    # sum_j grad_{x_j} K = sum_j K (x_i - x_j) / sigma^2
    return (driven + (x * mass - moved) / sigma**2) / n


def run(steps=200, particles=400, seed=0):
    """Particles along the way, and their MMD^2 to exact samples."""
    torch.manual_seed(seed)
    exact = CENTRES[torch.randint(6, (2000,))] + WIDTH * torch.randn(2000, 2)
    # all in one place, where the density is low
    x = 0.3 * torch.randn(particles, 2)
    optimizer = torch.optim.Adam([x], lr=0.05)
    ways, values = [], []
    for step in range(steps + 1):
        if step % max(1, steps // 4) == 0:
            ways.append((step, x.clone()))
            values.append(gkfast.mmd2(x, exact, [0.25, 0.5, 1.0, 2.0]).item())
        x.grad = -phi(x, 0.7)
        optimizer.step()
    return ways, values, exact


def draw(ways, exact, path):
    figure, axes = plt.subplots(1, len(ways), figsize=(2.4 * len(ways), 2.6), sharex=True, sharey=True)
    for axis, (step, x) in zip(axes, ways, strict=True):
        axis.scatter(*exact.T, s=1, color="0.85")
        axis.scatter(*x.T, s=2, color="tab:blue")
        axis.set(title=f"step {step}", aspect="equal")
    figure.tight_layout()
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("examples/pictures"))
    options = parser.parse_args()
    ways, values, exact = run(options.steps)
    print("step   MMD^2 to exact samples")
    for (step, _), value in zip(ways, values, strict=True):
        print(f"{step:4} {value:12.5f}")
    draw(ways, exact, options.out / "svgd.png")
