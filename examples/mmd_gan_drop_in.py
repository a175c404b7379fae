"""MMD-GAN code, before and after: one function is replaced, the rest stays.

    python examples/mmd_gan_drop_in.py

A generator learns eight modes on a ring from MMD^2 of five bandwidths. The same seed trains it twice: with the
mixture kernel as MMD-GAN code has it, and with gkfast.mmd2. The table has the time of a step and the loss on held-
out data.
"""

import argparse
import statistics
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import gkfast

SIGMAS = (0.1, 0.2, 0.4, 0.8, 1.6)


# before: three N x N matrices, an exponential of each bandwidth, backward through all of it
def mix_rbf_mmd2_before(x, y, sigmas=SIGMAS):
    z = torch.cat([x, y])
    zz = z @ z.T
    d2 = zz.diagonal()[:, None] - 2 * zz + zz.diagonal()[None, :]
    k = sum(torch.exp(-d2 / (2 * s**2)) for s in sigmas)
    n = len(x)
    return k[:n, :n].mean() + k[n:, n:].mean() - 2 * k[:n, n:].mean()


# after
def mix_rbf_mmd2_after(x, y, sigmas=SIGMAS):
    return gkfast.mmd2(x, y, list(sigmas), estimator="biased")


def ring(n):
    angle = 2 * torch.pi * torch.randint(8, (n, 1)) / 8
    return torch.cat([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(n, 2)


def train(mix_rbf_mmd2, steps, batch, seed):
    """The generator, and the median milliseconds of a step."""
    torch.manual_seed(seed)
    generator = torch.nn.Sequential(
        torch.nn.Linear(16, 128), torch.nn.ReLU(), torch.nn.Linear(128, 128), torch.nn.ReLU(), torch.nn.Linear(128, 2)
    )
    optimizer = torch.optim.Adam(generator.parameters(), lr=2e-3)
    # the first call compiles, or loads compiled code
    mix_rbf_mmd2(torch.zeros(4, 2, requires_grad=True), torch.ones(4, 2)).backward()
    seconds = []
    for _ in range(steps):
        begin = time.perf_counter()
        loss = mix_rbf_mmd2(generator(torch.randn(batch, 16)), ring(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - begin)
    return generator, statistics.median(seconds) * 1e3


def run(steps=600, batch=256, seed=0):
    """For before and after: milliseconds of a step, held-out MMD^2, and samples."""
    result = {}
    for name, loss in (("before", mix_rbf_mmd2_before), ("after", mix_rbf_mmd2_after)):
        generator, milliseconds = train(loss, steps, batch, seed)
        torch.manual_seed(seed + 1)
        with torch.no_grad():
            samples, real = generator(torch.randn(2000, 16)), ring(2000)
        result[name] = milliseconds, gkfast.mmd2(samples, real, list(SIGMAS)).item(), samples
    return result


def draw(result, path):
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.6), sharex=True, sharey=True)
    for axis, (name, (milliseconds, _, samples)) in zip(axes, result.items(), strict=True):
        axis.scatter(*samples.T, s=2)
        axis.set(title=f"{name}: {milliseconds:.1f} ms a step", aspect="equal", xlim=(-1.5, 1.5), ylim=(-1.5, 1.5))
    figure.tight_layout()
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("examples/pictures"))
    options = parser.parse_args()
    result = run(options.steps)
    print("loss      ms a step   held-out MMD^2")
    for name, (milliseconds, mmd2, _) in result.items():
        print(f"{name:8} {milliseconds:10.1f} {mmd2:16.5f}")
    draw(result, options.out / "mmd_gan_drop_in.png")
