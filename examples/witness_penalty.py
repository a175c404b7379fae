"""A gradient penalty on a witness function: second derivatives of the kernel, in training.

    python examples/witness_penalty.py

An MMD-GAN: the critic maximises MMD^2 of its features, scaled by how steep the witness function is between real and
generated points (the penalty of Binkowski et al. 2018). The penalty is a gradient of the witness, and training the
critic takes the gradient of that. Without it the critic may make its features, and so MMD^2, ever steeper.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import gkfast


def data(n):
    angle = 2 * torch.pi * torch.randint(5, (n, 1)) / 5
    return torch.cat([angle.cos(), angle.sin()], 1) + 0.08 * torch.randn(n, 2)


def witness(critic, points, real, fake):
    return gkfast.witness(critic(points), critic(real), critic(fake), 1.0)


def penalty(critic, real, fake):
    """mean (|grad witness| - 1)^2 on lines between real and generated points."""
    share = torch.rand(len(real), 1)
    between = (share * real + (1 - share) * fake).requires_grad_()
    (slope,) = torch.autograd.grad(witness(critic, between, real, fake).sum(), between, create_graph=True)
    return ((slope.norm(dim=1) - 1) ** 2).mean(), slope.norm(dim=1).mean()


def network(*sizes):
    layers = [part for a, b in zip(sizes, sizes[1:], strict=False) for part in (torch.nn.Linear(a, b), torch.nn.ReLU())]
    return torch.nn.Sequential(*layers[:-1])


def train(weight, steps, batch, seed):
    """The generator, the critic, and the mean slope of the witness along the way."""
    torch.manual_seed(seed)
    generator, critic = network(8, 64, 64, 2), network(2, 64, 8)
    of_generator = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.9))
    of_critic = torch.optim.Adam(critic.parameters(), lr=5e-3, betas=(0.5, 0.9))
    slopes = []
    for _ in range(steps):
        for _ in range(2):
            real, fake = data(batch), generator(torch.randn(batch, 8)).detach()
            bound, slope = penalty(critic, real, fake)
            loss = weight * bound - gkfast.mmd2(critic(real), critic(fake), 1.0)
            of_critic.zero_grad()
            loss.backward()
            of_critic.step()
        loss = gkfast.mmd2(critic(generator(torch.randn(batch, 8))), critic(data(batch)), 1.0)
        of_generator.zero_grad()
        loss.backward()
        of_generator.step()
        slopes.append(slope.item())
    return generator, critic, slopes


def run(steps=300, batch=64, seed=0):
    """With and without the penalty: held-out MMD^2 of points, slopes, samples and witness on a grid."""
    result, axis = {}, torch.linspace(-1.6, 1.6, 60)
    grid = torch.cartesian_prod(axis, axis)
    for name, weight in (("without", 0.0), ("with penalty", 1.0)):
        generator, critic, slopes = train(weight, steps, batch, seed)
        torch.manual_seed(seed + 1)
        with torch.no_grad():
            real, fake = data(1000), generator(torch.randn(1000, 8))
            mmd2 = gkfast.mmd2(fake, real, [0.1, 0.2, 0.4, 0.8]).item()
            result[name] = mmd2, slopes, fake, witness(critic, grid, real, fake).reshape(60, 60).T
    return result


def draw(result, path):
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.3))
    for axis, (name, (mmd2, _, fake, height)) in zip(axes, result.items(), strict=False):
        axis.imshow(height, extent=(-1.6, 1.6, -1.6, 1.6), origin="lower", cmap="RdBu")
        axis.scatter(*fake.T, s=2, color="k")
        axis.set(title=f"{name}: MMD² {mmd2:.3f}", xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), xticks=[], yticks=[])
    for name, (_, slopes, _, _) in result.items():
        axes[2].semilogy(slopes, label=name, lw=0.8)
    axes[2].set(title="mean slope of the witness", xlabel="step")
    axes[2].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("examples/pictures"))
    options = parser.parse_args()
    result = run(options.steps)
    print("critic         held-out MMD^2   last mean slope of the witness")
    for name, (mmd2, slopes, _, _) in result.items():
        print(f"{name:14} {mmd2:13.4f} {slopes[-1]:18.3f}")
    draw(result, options.out / "witness_penalty.png")
