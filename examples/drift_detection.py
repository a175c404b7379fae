"""A two-sample test on a stream: when did the data change?

    python examples/drift_detection.py

gkfast.TwoSampleTest learns a reference once, and compares windows of a stream of 4 measurements with it. From window
12 on the correlation of two measurements grows; every mean and every variance stays what it was. Alarms are raised at
p below 5 % over the number of windows, so that one false alarm in the whole stream has a probability of about 5 %.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import gkfast


def window(rng, rows, correlation):
    x = rng.normal(size=(rows, 4))
    x[:, 1] = correlation * x[:, 0] + np.sqrt(1 - correlation**2) * x[:, 1]
    return x


def run(windows=20, change=12, rows=400, permutations=1000, seed=0):
    """Of each window: its correlation, MMD^2, p-value, and the greatest t-value of its 4 means."""
    rng = np.random.default_rng(seed)
    # several windows: what a reference happens to be off by shifts all windows alike
    reference = window(rng, 4 * rows, 0.0)
    test = gkfast.TwoSampleTest(scales=(1 / 4, 1 / 2, 1), level=0.05 / windows, permutations=permutations, seed=seed)
    test.fit(reference, window=rows)
    table = []
    for k in range(windows):
        # a change that comes slowly
        correlation = float(np.clip(0.2 * (k - change + 1), 0, 0.95))
        x = window(rng, rows, correlation)
        found = test.test(x)
        difference = (x.mean(0) - reference.mean(0)) / np.sqrt(x.var(0) / rows + reference.var(0) / len(reference))
        table.append((correlation, found.statistic, found.p_value, float(abs(difference).max())))
    return table


def draw(table, path):
    threshold = 0.05 / len(table)
    figure, axis = plt.subplots(figsize=(7, 3.2))
    axis.semilogy([row[2] for row in table], "o-", label="p of the window")
    axis.axhline(threshold, color="tab:red", ls="--", label="alarm below")
    twin = axis.twinx()
    twin.fill_between(range(len(table)), [row[0] for row in table], alpha=0.15, color="k")
    twin.set(ylim=(0, 1), ylabel="correlation (grey)")
    axis.set(xlabel="window", ylabel="p-value", xticks=range(0, len(table), 2))
    axis.legend(loc="lower left")
    figure.tight_layout()
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--permutations", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("examples/pictures"))
    options = parser.parse_args()
    table = run(permutations=options.permutations)
    print("window  correlation    MMD^2   p-value   greatest t of a mean")
    for k, (correlation, mmd2, p, t) in enumerate(table):
        alarm = "  ALARM" if p < 0.05 / len(table) else ""
        print(f"{k:6} {correlation:12.2f} {mmd2:8.4f} {p:9.4f} {t:12.1f}{alarm}")
    draw(table, options.out / "drift_detection.png")
