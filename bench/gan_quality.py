"""What the kernel does for a GAN: each data set with its default loss, and the same networks without the kernel.

    python bench/gan_quality.py                              # all data, seeds 0, 1 and 2: about an hour and a half
    python bench/gan_quality.py --data ring --seeds 0,1,2,3,4

The controls are the non-saturating GAN and the relativistic pairing GAN with R1 and R2. They have the networks, the
batches and the seeds of the kernel's run, learning rates that adversaries bear, and as many steps as take the time of
the kernel's run on a quiet core: the medians of both are measured, so that other programs do not matter. Each run
trains for at most 3 minutes. Runs live in runs/gan_quality, one after another; what is there is not run again, and
a run that was cut short goes on. Writes bench/results/gan_quality.csv with a row for each run, gan_quality.md with
means over the seeds, standard errors and bars, and a picture for each data set. It ends with status 1 where a mean
misses its bar.
"""

import argparse
import csv
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gkfast.gan import checkpoint, data, metrics, networks, pictures, run, train
from gkfast.gan.config import DEFAULTS, Config, saved
from gkfast.gan.data import Data, generate_data

RESULTS = Path(__file__).parent / "results"
RUNS = Path(__file__).parent.parent / "runs" / "gan_quality"

# the loss of each run, beside the data's own; R1 and R2 are what the second cannot do without (Huang et al. 2024)
_RATES = {"generator_rate": 1e-3, "discriminator_rate": 1e-3, "final_rate": 0.05}
CONTROLS: dict[str, dict[str, Any]] = {
    "gan": {"loss": "gan", "r1": 0.0, "r2": 0.0, **_RATES},
    "rpgan": {"loss": "rpgan", "r1": 0.1, "r2": 0.1, **_RATES},
}

# figure: (whether more is better, what the mean over the seeds shall reach)
BARS: dict[str, dict[str, tuple[bool, float]]] = {
    "ring": {
        "strict_modes": (True, 8),
        "high_quality": (True, 0.80),
        "reverse_kl": (False, 0.03),
        "mmd2": (False, 0.003),
    },
    "grid": {"modes": (True, 24), "high_quality": (True, 0.50), "reverse_kl": (False, 0.05)},
    "spiral": {"recall": (True, 1.0), "median_distance": (False, 0.022)},
    "digits": {"classes": (True, 10), "class_kl": (False, 0.01), "parzen": (True, 23)},
    "stacked": {"modes": (True, 950), "reverse_kl": (False, 0.2)},
}
_COMMON = ("mmd2", "p_value", "coverage", "seconds", "steps")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default=",".join(BARS), help="names with commas between [%(default)s]")
    parser.add_argument("--seeds", default="0,1,2", help="numbers with commas between [%(default)s]")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the table goes [bench/results]")
    parser.add_argument("--steps", type=int, help="of the kernel's runs, to try this file out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name in options.data.split(","):
        real = data.load(name)
        for seed in map(int, options.seeds.split(",")):
            config = Config.from_settings(**{**DEFAULTS[name], "data": name, "seed": seed, "control": False})
            if options.steps is not None:
                config = config.changed(steps=options.steps)
            kernel = finished(real, config, "kernel")
            rows.append(row("kernel", config, kernel))
            for control, settings in CONTROLS.items():
                other = config.changed(**settings, lam=None, space="data")
                other = other.changed(steps=equal_steps(real, other, control, seconds_of(config, "kernel")))
                rows.append(row(control, other, finished(real, other, control)))
        picture(real, name, options.results)
        # after each data set, so that nothing is lost
        write_table(rows, options.results)
    print((options.results / "gan_quality.md").read_text())
    return 0 if all(reached(rows, name) for name in {row["data"] for row in rows}) else 1


def folder_of(config: Config, kind: str) -> Path:
    return RUNS / f"{config.data}-{kind}-{config.recipe.seed}"


def finished(real: Data, config: Config, kind: str) -> dict[str, Any]:
    """What metrics.json holds, of a run that was there, or is made or resumed now."""
    folder = folder_of(config, kind)
    if not (folder / "metrics.json").is_file():
        print(f"{folder.name}: {config.loss}, {config.recipe.steps} steps", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        with checkpoint.Signals() as signals:
            run.run(real, folder, config, resume=True, signals=signals)
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return found


def seconds_of(config: Config, kind: str) -> float:
    """What a finished run would have taken, had every step taken the median time."""
    lines = (folder_of(config, kind) / "metrics.jsonl").read_text().splitlines()
    return config.recipe.steps / statistics.median(json.loads(line)["steps_per_second"] for line in lines)


def equal_steps(real: Data, config: Config, kind: str, seconds: float) -> int:
    """How many steps of this loss take as long as the kernel's run: measured once, and kept for a resumed run."""
    path = folder_of(config, kind) / "equal_steps.json"
    if path.is_file():
        return int(json.loads(path.read_text())["steps"])
    generator, discriminator = run.build(real, config)
    objective = run.objective(config, [1.0])
    training = train.Training(
        generator, discriminator, real.train, objective, config.recipe, sigma=[1.0], held_out=real.validation
    )
    times = []
    for _ in range(300):
        before = training.seconds
        training.advance()
        times.append(training.seconds - before)
    steps = max(100, round(seconds / statistics.median(times[50:])))
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write(path, (json.dumps({"steps": steps}) + "\n").encode())
    return steps


def row(kind: str, config: Config, found: dict[str, Any]) -> dict[str, Any]:
    names = dict.fromkeys((*BARS[config.data], "modes", "density", *_COMMON))
    return {"data": config.data, "run": kind, "loss": config.loss, "seed": config.recipe.seed} | {
        name: found[name] for name in names if name in found
    }


def means(rows: Sequence[dict[str, Any]], name: str, kind: str) -> dict[str, tuple[float, float]]:
    """The mean and standard error over the seeds of each figure."""
    chosen = [row for row in rows if row["data"] == name and row["run"] == kind]
    found = {}
    for figure in chosen[0]:
        values = [row[figure] for row in chosen]
        if figure != "seed" and not isinstance(values[0], str):
            error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
            found[figure] = (statistics.fmean(values), error)
    return found


def reached(rows: Sequence[dict[str, Any]], name: str) -> bool:
    found = means(rows, name, "kernel")
    good = [
        found[figure][0] >= bar if more else found[figure][0] <= bar for figure, (more, bar) in BARS[name].items()
    ]
    if name == "stacked":
        good.append(found["modes"][0] >= means(rows, name, "gan")["modes"][0] + 200)
    return all(good)


def write_table(rows: Sequence[dict[str, Any]], results: Path) -> None:
    results.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(figure for row in rows for figure in row))
    with open(results / "gan_quality.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    lines = []
    for name in dict.fromkeys(row["data"] for row in rows):
        figures = list(dict.fromkeys((*BARS[name], *_COMMON)))
        seeds = len({row["seed"] for row in rows if row["data"] == name})
        lines += [
            f"**{name}**, {seeds} seeds, mean ± standard error",
            "",
            f"| run | {' | '.join(figures)} |",
            "|---|" + "---|" * len(figures),
        ]
        for kind in ("kernel", *CONTROLS):
            found = means(rows, name, kind)
            loss = next(row["loss"] for row in rows if row["data"] == name and row["run"] == kind)
            cells = [f"{found[figure][0]:.4g} ± {found[figure][1]:.1g}" for figure in figures]
            lines.append(f"| {loss} | {' | '.join(cells)} |")
        bars = [_bar(*BARS[name][figure]) if figure in BARS[name] else "" for figure in figures]
        lines += [f"| bar | {' | '.join(bars)} |", ""]
    (results / "gan_quality.md").write_text("\n".join(lines))


def _bar(more: bool, bar: float) -> str:
    return f"{'at least' if more else 'at most'} {bar:g}"


def picture(real: Data, name: str, results: Path) -> None:
    """Real samples and those of the three runs of the first seed, side by side."""
    results.mkdir(parents=True, exist_ok=True)
    samples = {}
    for kind in ("kernel", *CONTROLS):
        folder = min(RUNS.glob(f"{name}-{kind}-*/generator.pt")).parent
        config = Config.from_settings(**saved(folder))
        generator, _ = run.build(real, config)
        generator.load_state_dict(torch.load(folder / "generator.pt", weights_only=True))
        noise = generate_data(metrics.COUNTED, config.recipe.noise_dim, generator=torch.Generator().manual_seed(1))
        samples[config.loss] = networks.sample(generator, noise)
    drawn = pictures.png(pictures.samples_figure(real, samples))
    checkpoint.write(results / f"gan-{name}.png", drawn)


if __name__ == "__main__":
    sys.exit(main())
