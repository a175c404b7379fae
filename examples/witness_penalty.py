"""A gradient penalty on a witness function: second derivatives of the kernel, in training.

    python examples/witness_penalty.py

The critic of an MMD-GAN learns features in which MMD^2 between real and generated points is great. Left alone it
makes them ever steeper. The penalty of Binkowski et al. 2018 holds the slope of the witness function near 1. It is
a gradient, and the critic takes the gradient of that.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import gkfast


def real(n):
    angle = 2 * torch.pi * torch.randint(5, (n, 1)) / 5
    return torch.cat([angle.cos(), angle.sin()], 1) + 0.08 * torch.randn(n, 2)


def fake(n):
    return 0.5 * torch.randn(n, 2)


def witness(critic, points, x, y):
    return gkfast.witness(critic(points), critic(x), critic(y), 1.0)


def slopes(critic, x, y):
    """|grad witness| on lines between real and generated points."""
    share = torch.rand(len(x), 1)
    between = (share * x + (1 - share) * y).requires_grad_()
    (gradient,) = torch.autograd.grad(witness(critic, between, x, y).sum(), between, create_graph=True)
    return gradient.norm(dim=1)


def train(weight, steps, batch, seed):
    """The critic, and along the way the mean slope of its witness and the mean kernel value between its features."""
    torch.manual_seed(seed)
    critic = torch.nn.Sequential(torch.nn.Linear(2, 64), torch.nn.Tanh(), torch.nn.Linear(64, 8))
    optimizer = torch.optim.Adam(critic.parameters(), lr=5e-3)
    way = []
    for _ in range(steps):
        x, y = real(batch), fake(batch)
        slope = slopes(critic, x, y)
        loss = weight * ((slope - 1) ** 2).mean() - gkfast.mmd2(critic(x), critic(y), 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            between = gkfast.kernel_means(critic(x), critic(y), 1.0).xy
        way.append((slope.mean().item(), slope.max().item(), between.item()))
    return critic, way


def run(steps=300, batch=128, seed=0):
    """With and without the penalty: the way, and the witness on a grid."""
    result, axis = {}, torch.linspace(-1.8, 1.8, 80)
    grid = torch.cartesian_prod(axis, axis)
    for name, weight in (("without penalty", 0.0), ("with penalty", 1.0)):
        critic, way = train(weight, steps, batch, seed)
        with torch.no_grad():
            result[name] = way, witness(critic, grid, real(1000), fake(1000)).reshape(80, 80).T.numpy()
    return result


def draw(result, path):
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.3))
    for axis, (name, (way, height)) in zip(axes, result.items(), strict=False):
        axis.imshow(height, extent=(-1.8, 1.8, -1.8, 1.8), origin="lower", cmap="RdBu")
        axis.set(title=f"witness {name}", xticks=[], yticks=[])
        axes[2].semilogy([greatest for _, greatest, _ in way], lw=0.8, label=name)
    axes[2].set(title="greatest slope", xlabel="step")
    axes[2].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("examples/pictures"))
    options = parser.parse_args()
    result = run(options.steps)
    print("critic             mean slope   greatest slope   mean kernel between features")
    for name, (way, _) in result.items():
        print(f"{name:18} {way[-1][0]:10.2f} {way[-1][1]:16.2f} {way[-1][2]:16.4f}")
    draw(result, options.out / "witness_penalty.png")
