"""A kernel density estimate in 64 dimensions: scikit-learn's digits, and what is not one.

    python examples/kde_64d.py

The bandwidth is the one that makes left-out training images likeliest. Then the density of held-out digits is
compared with that of inverted ones, of noise, and of digits shifted by a pixel; the score moves noisy digits
uphill. Exact log densities in 64 dimensions are near 25 or far below zero, and none of them underflows.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import gkfast


def run(rows=1400, climbs=15, seed=0):
    """The bandwidth, log densities of each kind of image, and images before and after climbing."""
    rng = np.random.default_rng(seed)
    images = rng.permutation(load_digits().data / 16)
    train, test = images[:rows], images[rows : rows + 397]
    # 64 pixels take few values: a little noise makes a density of them
    train, test = (a + rng.normal(size=a.shape) / 64 for a in (train, test))
    candidates = np.geomspace(0.05, 0.8, 17)
    fit = [gkfast.log_density(train, train, s, leave_one_out=True).mean() for s in candidates]
    sigma = float(candidates[int(np.argmax(fit))])
    kinds = {
        "digits": test,
        "shifted by a pixel": np.roll(test.reshape(-1, 8, 8), 1, 2).reshape(-1, 64),
        "inverted": 1 - test,
        "noise of their pixels": rng.permuted(test, axis=1),
    }
    densities = {name: gkfast.log_density(x, train, sigma) for name, x in kinds.items()}
    noisy = test[:10] + 0.2 * rng.normal(size=(10, 64))
    x = noisy
    for _ in range(climbs):
        # a mean-shift step: sigma^2 times the score
        x = x + sigma**2 * gkfast.score(x, train, sigma)
    return candidates, fit, sigma, densities, noisy, x


def draw(candidates, fit, sigma, densities, noisy, climbed, path):
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), width_ratios=(1, 1.2, 1.5))
    axes[0].semilogx(candidates, fit, ".-")
    axes[0].axvline(sigma, ls=":", color="k")
    axes[0].set(xlabel="sigma", title="log-likelihood, one left out")
    axes[0].set_xticks([0.05, 0.1, 0.2, 0.4, 0.8], labels=[".05", ".1", ".2", ".4", ".8"], minor=False)
    axes[0].minorticks_off()
    for name, values in densities.items():
        axes[1].hist(np.clip(values, -300, None), bins=60, alpha=0.6, label=name)
    axes[1].set(title="log density", yscale="log")
    axes[1].legend(fontsize=7)
    rows = np.vstack([np.hstack(a.reshape(-1, 8, 8)) for a in (noisy, climbed)])
    axes[2].imshow(rows, cmap="gray_r")
    axes[2].set(title="noisy digits, and uphill by the score", xticks=[], yticks=[])
    figure.tight_layout()
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1400)
    parser.add_argument("--out", type=Path, default=Path("examples/pictures"))
    options = parser.parse_args()
    candidates, fit, sigma, densities, noisy, climbed = run(options.rows)
    print(f"sigma {sigma:.3f}")
    print("images                   median log density   below the 1st percentile of digits")
    low = np.percentile(densities["digits"], 1)
    for name, values in densities.items():
        print(f"{name:24} {np.median(values):18.1f} {(values < low).mean():16.0%}")
    draw(candidates, fit, sigma, densities, noisy, climbed, options.out / "kde_64d.png")
