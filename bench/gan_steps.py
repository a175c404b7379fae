"""What share of a training step the kernel takes, with gkfast and with plain torch in its place.

    python -m bench.gan_steps            # a minute: every data set with its default loss, one thread

Trainings that differ in nothing but the function behind the kernel term take turns, a few steps each; medians of
their steps and of the kernel term with its gradient. Plain torch stores three matrices for each bandwidth, as MMD-GAN
code has it. Prints a table and writes bench/results/gan_steps.csv.
"""

import csv
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import rivals
from gkfast.gan import data, run, train
from gkfast.gan.config import DEFAULTS, Config
from gkfast.gan.data import generate_data

RESULTS = Path(__file__).parent / "results"
_ROUNDS, _WARM_UP, _STEPS = 40, 5, 5


def main() -> None:
    torch.set_num_threads(1)
    rows = [row for name in DEFAULTS if name != "mnist" for row in rows_of(name)]
    with open(RESULTS / "gan_steps.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def rows_of(name: str) -> list[dict[str, Any]]:
    real = data.load(name)
    config = Config.from_settings(**{**DEFAULTS[name], "data": name})
    sigma = run.bandwidths(real, config)
    objective = run.objective(config, real.train, sigma)

    def plain(kernel: rivals.Kernel) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda fake, real: rivals.mmd2(kernel, fake, real, sigma) / len(sigma)

    objectives = {"gkfast": objective, "plain torch": replace(objective, kernel=plain(rivals.eager))}
    trainings = {
        by: train.Training(
            *run.build(real, config), real.train, own, config.recipe, sigma=sigma, held_out=real.validation
        )
        for by, own in objectives.items()
    }
    steps: dict[str, list[float]] = {by: [] for by in objectives}
    kernels: dict[str, list[float]] = {by: [] for by in objectives}
    batch = real.train[: config.recipe.batch].flatten(1)
    for number in range(_ROUNDS):
        for by, training in trainings.items():
            start = time.perf_counter()
            for _ in range(_STEPS):
                training.advance()
            took = (time.perf_counter() - start) / _STEPS
            with torch.no_grad():
                fake = training.generator(generate_data(config.recipe.batch, config.recipe.noise_dim)).flatten(1)
            kernel = train.kernel_seconds(objectives[by].kernel, fake, batch)
            if number >= _WARM_UP:
                steps[by].append(took)
                kernels[by].append(kernel)
    rows = []
    for by in objectives:
        step, kernel = statistics.median(steps[by]), statistics.median(kernels[by])
        row = {
            "data": name,
            "loss": config.loss,
            "N": config.recipe.batch,
            "D": batch.shape[1],
            "bandwidths": len(sigma),
        }
        rows.append(row | {"by": by, "step_ms": f"{1e3 * step:.4g}", "kernel_share": f"{kernel / step:.3g}"})
        print(*rows[-1].values(), sep="\t", flush=True)
    return rows


if __name__ == "__main__":
    main()
