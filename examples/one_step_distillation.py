"""Distillation: a teacher that takes fifty steps for a sample, and a student that takes one.

    python examples/one_step_distillation.py

The teacher is a diffusion sampler: it follows the score of ever less noisy data. Of data that are points the score
is gkfast.score, so nothing is trained for it. The student is a small network, trained by a loss between its samples
and the teacher's; losses of other kinds go into LOSSES. The table has both times and held-out MMD^2.
"""

import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import gkfast
import gkfast.nn

# from noise far wider than the data to noise narrower than their details
NOISE = torch.logspace(0.5, -1.3, 50).tolist()
LOSSES = {
    "MMD": gkfast.nn.MMDLoss("median", scales=(0.05, 0.1, 0.2, 0.4, 0.8)),
    "log ratio": gkfast.nn.KDERatioLoss(),
}


def spirals(n):
    """Two arms."""
    t = 0.3 + 2.7 * torch.rand(n, 1).sqrt()
    arm = torch.randint(2, (n, 1)) * torch.pi
    return t / 3 * torch.cat([(2 * t + arm).cos(), (2 * t + arm).sin()], 1) + 0.02 * torch.randn(n, 2)


def teacher(data, n):
    """Samples by the probability-flow equation dx / d(noise) = -noise score(x)."""
    x = NOISE[0] * torch.randn(n, 2)
    for now, after in zip(NOISE, [*NOISE[1:], 0.0], strict=True):
        x = x + (now - after) * now * gkfast.score(x, data, now)
    return x


def train(loss, taught, steps, batch):
    student = torch.nn.Sequential(
        torch.nn.Linear(8, 128), torch.nn.ReLU(), torch.nn.Linear(128, 128), torch.nn.ReLU(), torch.nn.Linear(128, 2)
    )
    optimizer = torch.optim.Adam(student.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        value = loss(student(torch.randn(batch, 8)), taught[torch.randint(len(taught), (batch,))])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    return student


def run(steps=500, batch=256, taught=4000, seed=0):
    """Seconds for 2000 samples, held-out MMD^2 and the samples, of the teacher and of each student."""
    torch.manual_seed(seed)
    data, held_out = spirals(2000), spirals(2000)
    result = {}

    def measure(name, sampler):
        begin = time.perf_counter()
        with torch.no_grad():
            samples = sampler()
        seconds = time.perf_counter() - begin
        result[name] = seconds, gkfast.mmd2(samples, held_out, [0.05, 0.1, 0.2, 0.4]).item(), samples

    measure("teacher, 50 steps", lambda: teacher(data, 2000))
    lessons = torch.cat([result["teacher, 50 steps"][2], teacher(data, max(taught - 2000, 1))])
    for name, loss in LOSSES.items():
        student = train(loss, lessons, steps, batch)
        measure(f"student, {name}", lambda student=student: student(torch.randn(2000, 8)))
    return result


def draw(result, path):
    figure, axes = plt.subplots(1, len(result), figsize=(3.2 * len(result), 3.4), sharex=True, sharey=True)
    for axis, (name, (_, mmd2, samples)) in zip(axes, result.items(), strict=True):
        axis.scatter(*samples.T, s=1)
        axis.set(title=f"{name}\nMMD² {mmd2:.4f}", aspect="equal", xlim=(-1.2, 1.2), ylim=(-1.2, 1.2))
    figure.tight_layout()
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("examples/pictures"))
    options = parser.parse_args()
    result = run(options.steps)
    print("sampler               ms for 2000 samples   held-out MMD^2")
    for name, (seconds, mmd2, _) in result.items():
        print(f"{name:22} {seconds * 1e3:18.1f} {mmd2:16.5f}")
    draw(result, options.out / "one_step_distillation.png")
