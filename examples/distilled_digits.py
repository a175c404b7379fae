"""Real digits from one step: a flow teaches, and the landmark MMD or the drifting field trains.

    python examples/distilled_digits.py

The teacher is a flow from noise to the 8 x 8 digits of scikit-learn. Its samples, drawn in fifty steps, are all that
a student sees; a student is the teacher's network at the first moment, made to reach a sample in one step. Each loss
has the same seconds of one core with gkfast and in plain torch, whose kernel matrices leave it fewer steps. FID is in
the features of a classifier that no generator has seen, against digits that no network was trained on.
"""

import argparse
import copy
import time
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

import gkfast
import gkfast.nn
from gkfast.gan import data, metrics

STEPS, UNITS, SCALES, DRIFTS = 50, 256, (0.25, 0.5, 1.0), (0.15, 0.3)


class Flow(torch.nn.Module):
    """The velocity at x (N, D) and time t (N, 1)."""

    def __init__(self, dims):
        super().__init__()
        sizes = (dims + 16, UNITS, UNITS, UNITS)
        layers = [m for a, b in pairwise(sizes) for m in (torch.nn.Linear(a, b), torch.nn.SiLU())]
        self.net = torch.nn.Sequential(*layers, torch.nn.Linear(UNITS, dims))
        self.register_buffer("waves", torch.arange(1, 9) * torch.pi / 2)

    def forward(self, x, t):
        angles = t * self.waves
        return self.net(torch.cat([x, angles.sin(), angles.cos()], 1))

    def sample(self, x, steps):
        for k in range(steps):
            x = x + self(x, torch.full_like(x[:, :1], k / steps)) / steps
        return x


def train(network, loss, seconds, rate):
    """The average of its weights after so many seconds of this core, and how many steps they were."""
    optimizer = torch.optim.Adam(network.parameters(), rate, betas=(0.9, 0.99))
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99)
    )
    begin, done, steps = time.process_time(), 0.0, 0
    while done < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - done)
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        average.update_parameters(network)
        steps += 1
        done = (time.process_time() - begin) / seconds if seconds else 1
    return average.module, steps


def features_of(real):
    """The features of a classifier of the digits, 64 for each."""
    body = torch.nn.Sequential(torch.nn.Linear(real.train.shape[1], 128), torch.nn.ReLU(), torch.nn.Linear(128, 64))
    head = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], 2e-3)
    for _ in range(600):
        rows = torch.randint(len(real.train), (128,))
        noisy = real.train[rows] + 0.1 * torch.randn(128, real.train.shape[1])
        optimizer.zero_grad()
        F.cross_entropy(head(body(noisy)), real.train_labels[rows]).backward()
        optimizer.step()
    return body.requires_grad_(False)


def plain_kernels(x, y, sigma):
    """Of each bandwidth, (S, N, M)."""
    d2 = (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)
    return torch.stack([torch.exp(-d2 / (2 * s * s)) for s in sigma])


def plain_landmarks(x, z, alpha, square, sigma):
    """What gkfast.nn.LandmarkMMDLoss computes."""
    value = plain_kernels(x, x, sigma).mean() - 2 * (plain_kernels(x, z, sigma).mean(0) @ alpha).mean() + square
    return value / (value.detach().abs() + 1e-7)


@torch.no_grad()
def plain_drift(x, y, sigma):
    """What gkfast.drift computes, for bandwidths whose kernels do not underflow."""
    field = 0
    for to_real, to_fake in zip(plain_kernels(x, y, sigma), plain_kernels(x, x, sigma), strict=True):
        both = torch.cat([to_real, to_fake.fill_diagonal_(0)], 1)
        both = both / (both.sum(1, keepdim=True) * both.sum(0)).sqrt().clamp(min=1e-30)
        a, b = both[:, : len(y)], both[:, len(y) :]
        field = field + (a * b.sum(1, keepdim=True)) @ y - (b * a.sum(1, keepdim=True)) @ x
    return field


def run(seconds=12.0, batch=1024, taught=8000, seed=0):
    """Of the teacher and of each student: steps of training, FID and samples."""
    torch.manual_seed(seed)
    real = data.load("digits")
    rows, dims = 2 * real.train - 1, real.train.shape[1]
    held_out = torch.cat([real.validation, real.test])
    features = features_of(real)
    flow = Flow(dims)

    def matching():
        x1 = rows[torch.randint(len(rows), (256,))]
        x0, t = torch.randn_like(x1), torch.rand(256, 1)
        return (flow(x0 + t * (x1 - x0), t) - (x1 - x0)).square().mean()

    flow, trained = train(flow, matching, 2 * seconds, 2e-3)
    flow.requires_grad_(False)
    lessons, fresh = flow.sample(torch.randn(taught, dims), STEPS), torch.randn(5000, dims)
    sigma = float(gkfast.median_sigma(lessons[:2000]))
    widths, drifts = [sigma * s for s in SCALES], [sigma * s for s in DRIFTS]
    landmarks = gkfast.nn.LandmarkMMDLoss(lessons, widths, landmarks=min(2000, taught // 2))
    z, numbers = landmarks.points, landmarks.numbers
    alpha, square = numbers.coefficients.float(), float(numbers.square)
    fused_drift = gkfast.nn.DriftLoss(drifts)

    def drifted(x, y):
        return (x - (x + plain_drift(x, y, drifts)).detach()).square().mean()

    losses = {
        "landmark MMD, gkfast": lambda x, y: landmarks(x),
        "landmark MMD, plain torch": lambda x, y: plain_landmarks(x, z, alpha, square, widths),
        "drift, gkfast": lambda x, y: 1e3 * fused_drift(x, y),
        "drift, plain torch": lambda x, y: 1e3 * drifted(x, y),
    }
    result = {}

    def measure(name, steps, samples):
        images = (samples / 2 + 0.5).clamp(0, 1)
        result[name] = steps, metrics.fid(features(held_out), features(images)), images

    measure(f"teacher, {STEPS} steps", trained, flow.sample(fresh, STEPS))
    measure("teacher, 1 step", trained, flow.sample(fresh, 1))
    for name, loss in losses.items():
        torch.manual_seed(seed)
        student = copy.deepcopy(flow).requires_grad_()

        def step(student=student, loss=loss):
            return loss(student.sample(torch.randn(batch, dims), 1), lessons[torch.randint(taught, (batch,))])

        student, steps = train(student, step, seconds, 1e-3)
        with torch.no_grad():
            measure(name, steps, student.sample(fresh, 1))
    return result


def draw(result, path):
    figure, axes = plt.subplots(2, (len(result) + 1) // 2, figsize=(9, 6.6))
    for axis, (name, (_, fid, images)) in zip(axes.T.flat, result.items(), strict=False):
        # a white line around each
        grid = F.pad(images[:36].reshape(6, 6, 8, 8), (1, 1, 1, 1)).permute(0, 2, 1, 3).reshape(60, 60).numpy()
        axis.imshow(grid, cmap="gray_r", vmin=0, vmax=1)
        axis.set_title(f"{name}\nFID {fid:.1f}", fontsize=10)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--out", type=Path, default=Path("examples/pictures"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = run(options.seconds)
    print("sampler                      steps of training      FID")
    for name, (steps, fid, _) in result.items():
        print(f"{name:28} {steps:17} {fid:8.2f}")
    draw(result, options.out / "distilled_digits.png")
