"""Domain adaptation: a classifier of digits that meets digits of another scanner.

    python examples/domain_adaptation.py

The target images are inverted in part, noisy and darker, and have no labels. One network learns from the labelled
source alone, the other also pulls the features of both domains together by MMD^2, as DAN and DomainBed do.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits

import gkfast.nn


def domains(seed):
    """Source images and labels, target images and labels: halves of the digits."""
    rng = np.random.default_rng(seed)
    images, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(images))
    images, labels = images[order] / 16, labels[order]
    half = len(images) // 2
    target = 0.55 * images[half:] + 0.35 + 0.15 * rng.normal(size=images[half:].shape)
    parts = (images[:half], labels[:half], target, labels[half:])
    return [torch.from_numpy(p).float() if p.dtype.kind == "f" else torch.from_numpy(p) for p in parts]


def train(lam, steps, batch, seed):
    """Accuracy on both domains, and features of both."""
    source, labels, target, target_labels = domains(seed)
    torch.manual_seed(seed)
    features = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32), torch.nn.ReLU())
    head = torch.nn.Linear(32, 10)
    optimizer = torch.optim.Adam([*features.parameters(), *head.parameters()], lr=2e-3)
    align = gkfast.nn.MMDLoss("median", scales=(0.25, 0.5, 1.0, 2.0))
    for _ in range(steps):
        here, there = (torch.randint(len(a), (batch,)) for a in (source, target))
        f, g = features(source[here]), features(target[there])
        loss = torch.nn.functional.cross_entropy(head(f), labels[here]) + lam * align(g, f)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        f, g = features(source), features(target)
        accuracy = [float((head(a).argmax(1) == b).float().mean()) for a, b in ((f, labels), (g, target_labels))]
    return (*accuracy, f, g)


def run(steps=400, batch=256, lam=3.0, seed=0):
    """For the source alone and for alignment: accuracies, features of source and target."""
    return {
        "source alone": train(0.0, steps, batch, seed),
        "with MMD² of features": train(lam, steps, batch, seed),
    }


def draw(result, path):
    figure, axes = plt.subplots(1, len(result), figsize=(8, 3.8))
    for axis, (name, (_, accuracy, f, g)) in zip(axes, result.items(), strict=True):
        both = torch.cat([f, g])
        plane = (both - both.mean(0)) @ torch.pca_lowrank(both, 2, niter=4)[2]
        axis.scatter(*plane[: len(f)].T, s=3, label="source")
        axis.scatter(*plane[len(f) :].T, s=3, label="target")
        axis.set(title=f"{name}: {accuracy:.0%} of the target right", xticks=[], yticks=[])
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("examples/pictures"))
    options = parser.parse_args()
    result = run(options.steps)
    print("trained                  source   target")
    for name, (source, target, _, _) in result.items():
        print(f"{name:24} {source:6.1%} {target:8.1%}")
    draw(result, options.out / "domain_adaptation.png")
