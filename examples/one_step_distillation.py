"""Distillation: a teacher that takes fifty steps for a sample, and a student that takes one.

    python examples/one_step_distillation.py

The teacher is a diffusion sampler: it follows the score of ever less noisy data. Of data that are points the score
is gkfast.score, so nothing is trained for it. A student learns the teacher's map from noise to sample, by
regression on pairs; some of its samples then lie between the moons. A loss between sets draws them to the data;
losses of other kinds go into LOSSES. The table has the time of sampling and held-out MMD^2.
"""

import argparse
import time
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import gkfast
import gkfast.nn

# from noise far wider than the data to noise narrower than their details
NOISE = torch.logspace(0.5, -1.3, 50).tolist()
LOSSES = {
    "regression alone": None,
    "and MMD": gkfast.nn.MMDLoss("median", scales=(0.05, 0.1, 0.2, 0.4)),
    "and log ratio": gkfast.nn.KDERatioLoss("median", scales=(0.05, 0.1, 0.2)),
}


def moons(n):
    """Two half circles that reach into each other."""
    t = torch.pi * torch.rand(n, 1)
    side = 2.0 * torch.randint(2, (n, 1)) - 1
    return side * (torch.cat([t.cos() - 0.5, t.sin() - 0.25], 1)) + 0.03 * torch.randn(n, 2)


def teacher(data, noise):
    """Samples by the probability-flow equation dx / d(level) = -level score(x)."""
    x = noise
    for now, after in zip(NOISE, [*NOISE[1:], 0.0], strict=True):
        x = x + (now - after) * now * gkfast.score(x, data, now)
    return x


def train(loss, noise, taught, steps, batch, seed):
    torch.manual_seed(seed)
    sizes = (2, 128, 128, 128)
    layers = [m for a, b in pairwise(sizes) for m in (torch.nn.Linear(a, b), torch.nn.SiLU())]
    student = torch.nn.Sequential(*layers, torch.nn.Linear(128, 2))
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        pairs = torch.randint(len(taught), (batch,))
        made = student(noise[pairs] / NOISE[0])
        value = (made - taught[pairs]).square().mean()
        if loss is not None and step >= steps // 2:
            # the pairs still say which moon; the set says where moons are
            value = 0.02 * value + loss(made, taught[torch.randint(len(taught), (batch,))])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    return student


def run(steps=700, batch=256, taught=4000, seed=0):
    """Seconds for 2000 samples, held-out MMD^2 and the samples, of the teacher and of each student."""
    torch.manual_seed(seed)
    data, held_out = moons(2000), moons(2000)
    noise, fresh = NOISE[0] * torch.randn(taught, 2), NOISE[0] * torch.randn(2000, 2)
    result = {}

    def measure(name, sampler):
        begin = time.perf_counter()
        with torch.no_grad():
            samples = sampler(fresh)
        seconds = time.perf_counter() - begin
        result[name] = seconds, gkfast.mmd2(samples, held_out, [0.05, 0.1, 0.2, 0.4]).item(), samples

    measure("teacher, 50 steps", lambda z: teacher(data, z))
    lessons = teacher(data, noise)
    for name, loss in LOSSES.items():
        student = train(loss, noise, lessons, steps, batch, seed)
        measure(f"student, {name}", lambda z, student=student: student(z / NOISE[0]))
    return result


def draw(result, path):
    figure, axes = plt.subplots(1, len(result), figsize=(3.1 * len(result), 3.1), sharex=True, sharey=True)
    for axis, (name, (_, mmd2, samples)) in zip(axes, result.items(), strict=True):
        axis.scatter(*samples.T, s=1)
        axis.set(title=f"{name}\nMMD² {mmd2:.4f}", aspect="equal", xlim=(-1.8, 1.8), ylim=(-1.3, 1.3))
    figure.tight_layout()
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--out", type=Path, default=Path("examples/pictures"))
    options = parser.parse_args()
    result = run(options.steps)
    print("sampler               ms for 2000 samples   held-out MMD^2")
    for name, (seconds, mmd2, _) in result.items():
        print(f"{name:22} {seconds * 1e3:18.1f} {mmd2:16.5f}")
    draw(result, options.out / "one_step_distillation.png")
