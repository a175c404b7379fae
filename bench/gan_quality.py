"""What the kernel does for a GAN: each data set with its default loss, and the same networks without the kernel.

    python bench/gan_quality.py                              # all data, seeds 0, 1 and 2: some hours
    python bench/gan_quality.py --data ring --seeds 0,1,2,3,4
    python bench/gan_quality.py --data mnist --sweep         # the other settings that were tried, one seed each

The controls are the non-saturating GAN and the relativistic pairing GAN with R1 and R2. They have the batches and the
seeds of the kernel's run, learning rates that adversaries bear (for mnist and stacked-mnist the best of --sweep), and
as many steps as take the time of the kernel's run on a quiet core, with its encoder and its codes: the median
processor time of a step of each stage is measured, all of them in turns, so that other programs do not matter. Runs
live in runs/gan_quality, one after another; what is there is not run again, and a run that was cut short goes on.
Writes bench/results/gan_quality.csv with a row for each run, gan_quality.md with means over the seeds, their errors
and bars, and a picture for each data set; for mnist and stacked-mnist also quality over those seconds. It ends with
status 1 where a mean misses its bar.
"""

import argparse
import csv
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from gkfast.gan import checkpoint, data, metrics, objectives, pictures, run
from gkfast.gan.config import DEFAULTS, Config, saved
from gkfast.gan.data import Data
from gkfast.gan.sampler import load

RESULTS = Path(__file__).parent / "results"
RUNS = Path(__file__).parent.parent / "runs" / "gan_quality"

# the loss of each run, beside the data's own; R1 and R2 are what the second cannot do without (Huang et al. 2024)
_RATES = {"generator_rate": 1e-3, "discriminator_rate": 1e-3, "final_rate": 0.05, "warmup": 0}
CONTROLS: dict[str, dict[str, Any]] = {
    "gan": {"loss": "gan", "r1": 0.0, "r2": 0.0, **_RATES},
    "rpgan": {"loss": "rpgan", "r1": 0.1, "r2": 0.1, **_RATES},
}

# rows of a data set with other settings than its own: so many steps take 600 seconds of one core
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {"mnist-600": ("mnist", {"steps": 11_900})}

# where the controls are tuned as the kernel's run is: the best of bench/results/gan_search.csv
_BEST = {"loss": "rpgan", "generator_rate": 4e-3, "discriminator_rate": 4e-3, "r1": 1.0, "r2": 1.0, "warmup": 0}


def _at(rate: float, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with this rate of both networks."""
    return {**settings, "generator_rate": rate, "discriminator_rate": rate}


TUNED: dict[str, dict[str, dict[str, Any]]] = {
    **{name: {"rpgan": _BEST} for name in ("mnist", "mnist-600", "stacked-mnist")},
    "digits": {"gan": CONTROLS["gan"], "rpgan": _at(2e-3, _BEST)},
}
_LRS = {f"rpgan-rate-{rate:g}": _at(rate, _BEST) for rate in (1e-3, 2e-3)}
SWEEP: dict[str, dict[str, dict[str, Any]]] = {
    "mnist": {
        **_LRS,
        "rpgan-r-0.1": {**_BEST, "r1": 0.1, "r2": 0.1},
        "rpgan-warmup": {**_BEST, "warmup": 500},
        # the stages without the kernel in the last one, and without the density of codes
        "no-kernel-last": {"lam": 0.0},
        "network-of-codes": {"code_prior": "network", "code_steps": 500},
    },
    "mnist-600": _LRS,
    "stacked-mnist": _LRS,
    "digits": {
        **{f"rpgan-rate-{rate:g}-r-1": _at(rate, _BEST) for rate in (1e-3, 4e-3)},
        **{f"rpgan-rate-{rate:g}": _at(rate, {**_BEST, "r1": 0.1, "r2": 0.1}) for rate in (5e-4, 1e-3, 2e-3, 4e-3)},
    },
    "grid": {
        f"{loss}-rate-{rate:g}": _at(rate, settings) for loss, settings in CONTROLS.items() for rate in (2e-3, 4e-3)
    },
}

# figure: (whether more is better, what the mean over the seeds shall reach)
BARS: dict[str, dict[str, tuple[bool, float]]] = {
    "ring": {
        "strict_modes": (True, 8),
        "high_quality": (True, 0.95),
        "reverse_kl": (False, 0.002),
        "mmd2": (False, 0.003),
    },
    # of 2500 samples, even the data have a reverse KL of 0.0048 on average; of all 10 000 one of 0.0012
    "grid": {"modes": (True, 24), "high_quality": (True, 0.94), "reverse_kl_of_all": (False, 0.003)},
    "spiral": {"recall": (True, 1.0), "median_distance": (False, 0.018)},
    "digits": {"classes": (True, 10), "class_kl": (False, 0.01), "parzen": (True, 23)},
    "stacked": {"modes": (True, 950), "reverse_kl": (False, 0.2)},
    # and what `reached` asks in comparison with the controls
    "mnist": {},
    "mnist-600": {},
    "stacked-mnist": {"modes": (True, 1000), "reverse_kl": (False, 0.1)},
}
# of the control's FID, at most
FRACTIONS = {"mnist": 0.55, "mnist-600": 0.7}
_COMMON = ("mmd2", "p_value", "coverage", "seconds", "steps")
_FEATURES = (
    *("fid", "kid", "manifold_precision", "manifold_recall", "coverage", "class_kl"),
    *("nearest_pixels", "nearest_features"),
)
_BESIDE = {"grid": ("reverse_kl",)}
FIGURES = {
    name: (*bars, *_BESIDE.get(name, ()), *(_FEATURES if name in FRACTIONS else ()), *_COMMON)
    for name, bars in BARS.items()
}
# rounds of steps by which the time of a step is measured
_ROUNDS, _STEPS = 8, 12


def controls(name: str) -> dict[str, dict[str, Any]]:
    return TUNED.get(name, CONTROLS)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default=",".join(BARS), help="names with commas between [%(default)s]")
    parser.add_argument("--seeds", default="0,1,2", help="numbers with commas between [%(default)s]")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the table goes [bench/results]")
    parser.add_argument("--sweep", action="store_true", help="run the settings that were tried, not the best ones")
    parser.add_argument("--steps", type=int, help="of the kernel's runs, to try this file out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [] if options.sweep else before(options.results, options.data.split(","))
    for name in options.data.split(","):
        source, changed = OTHERS.get(name, (name, {}))
        real = data.load(source)
        tried = SWEEP[name] if options.sweep else controls(name)
        for seed in [0] if options.sweep else map(int, options.seeds.split(",")):
            config = Config.from_settings(
                **{**DEFAULTS[source], **changed, "data": source, "seed": seed, "control": False}
            )
            if options.steps is not None:
                config = config.changed(steps=options.steps)
            if not options.sweep:
                rows.append(row(name, "kernel", config, finished(real, config, name, "kernel")))
            for kind, settings in tried.items():
                other = settings_of(config, settings)
                other = other.changed(steps=equal_steps(real, config, other, name, kind))
                rows.append(row(name, kind, other, finished(real, other, name, kind)))
        # after each data set, so that nothing is lost
        if options.sweep:
            write_csv(rows, options.results / "gan_sweep.csv")
            continue
        picture(real, name, options.results)
        if "gan" not in controls(name):
            lead(name, options.results)
        write_table(rows, options.results)
    if options.sweep:
        return 0
    print((options.results / "gan_quality.md").read_text())
    return 0 if all(reached(rows, name) for name in options.data.split(",")) else 1


def settings_of(config: Config, settings: dict[str, Any]) -> Config:
    """The settings of a control, which has no encoder, or of another run with one."""
    if objectives.split_name(settings.get("loss", config.loss))[1] is None:
        settings = {"lam": None, "space": "data", **settings}
    return config.changed(**settings)


def folder_of(config: Config, name: str, kind: str) -> Path:
    return RUNS / f"{name}-{kind}-{config.recipe.seed}"


def finished(real: Data, config: Config, name: str, kind: str) -> dict[str, Any]:
    """What metrics.json holds, of a run that was there, or is made or resumed now."""
    folder = folder_of(config, name, kind)
    if not (folder / "metrics.json").is_file():
        print(f"{folder.name}: {config.loss}, {config.recipe.steps} steps", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        with checkpoint.Signals() as signals:
            run.run(real, folder, config, resume=True, signals=signals)
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return found


def equal_steps(real: Data, kernel: Config, other: Config, name: str, kind: str) -> int:
    """How many steps of this run take as long as the kernel's: measured once, and kept for a resumed run."""
    times = step_times(real, kernel, other, name, kind)
    total = sum(times[stage] * steps for stage, steps in stages(kernel).items())
    before = sum(times[f"own {stage}"] * steps for stage, steps in stages(other).items() if stage != "adversary")
    return max(100, round((total - before) / times["own adversary"]))


def stages(config: Config) -> dict[str, int]:
    """The steps of each stage, the last of which is "adversary"."""
    return {"adversary" if name == config.loss else name: steps for name, steps in run.stages(config).items()}


def stage_steps(real: Data, config: Config) -> dict[str, Callable[[], Any]]:
    found = run.stage_steps(real, config)
    return {"adversary" if name == config.loss else name: step for name, step in found.items()}


def step_times(real: Data, kernel: Config, other: Config, name: str, kind: str) -> dict[str, float]:
    """The median processor seconds of a step of each stage of the kernel's run and of the other, one thread each."""
    path = RUNS / f"{name}-{kind}-step_times.json"
    if not path.is_file():
        advance = stage_steps(real, kernel) | {f"own {k}": step for k, step in stage_steps(real, other).items()}
        counts = stages(kernel) | {f"own {name}": count for name, count in stages(other).items()}
        taken: dict[str, list[float]] = {name: [] for name in advance}
        for _ in range(_ROUNDS):
            for stage, step in advance.items():
                # some stages have a single step
                for _ in range(min(_STEPS, counts[stage])):
                    before = time.process_time()
                    step()
                    taken[stage].append(time.process_time() - before)
        # the first round compiles and warms up
        found = {stage: statistics.median(seconds[len(seconds) // _ROUNDS :]) for stage, seconds in taken.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write(path, (json.dumps(found) + "\n").encode())
    measured: dict[str, float] = json.loads(path.read_text())
    return measured


def row(name: str, kind: str, config: Config, found: dict[str, Any]) -> dict[str, Any]:
    names = dict.fromkeys((*FIGURES[name], "modes", "density", "encoder_seconds", "code_seconds"))
    return {"data": name, "run": kind, "loss": config.loss, "seed": config.recipe.seed} | {
        figure: found[figure] for figure in names if figure in found
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
    if name in FRACTIONS:
        value, other = ({k: mean for k, (mean, _) in means(rows, name, kind).items()} for kind in ("kernel", "rpgan"))
        good += [value["fid"] <= FRACTIONS[name] * other["fid"], value["manifold_recall"] >= other["manifold_recall"]]
        good += [value[figure] >= other[figure] - 0.03 for figure in ("manifold_precision", "coverage")]
    return all(good)


def before(results: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of the table for other data than these."""
    path, words = results / "gan_quality.csv", ("data", "run", "loss")
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        return [
            {key: value if key in words else json.loads(value) for key, value in row.items() if value}
            for row in csv.DictReader(file)
            if row["data"] not in names
        ]


def write_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(figure for row in rows for figure in row))
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_table(rows: Sequence[dict[str, Any]], results: Path) -> None:
    write_csv(rows, results / "gan_quality.csv")
    lines = []
    for name in dict.fromkeys(row["data"] for row in rows):
        figures = list(dict.fromkeys(FIGURES[name]))
        seeds = len({row["seed"] for row in rows if row["data"] == name})
        lines += [
            f"**{name}**, {seeds} seeds, mean ± standard error",
            "",
            f"| run | {' | '.join(figures)} |",
            "|---|" + "---|" * len(figures),
        ]
        for kind in ("kernel", *controls(name)):
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
    for kind in ("kernel", *controls(name)):
        folder = min(RUNS.glob(f"{name}-{kind}-*/generator.pt")).parent
        samples[saved(folder)["loss"]] = load(folder).sample(metrics.COUNTED, seed=1).flatten(1)
    drawn = pictures.png(pictures.samples_figure(real, samples))
    checkpoint.write(results / f"gan-{name}.png", drawn)


def lead(name: str, results: Path) -> None:
    """Quality over the seconds of a quiet core, all stages counted, of every seed."""
    curves: dict[str, list[list[dict[str, float]]]] = {}
    times = json.loads((RUNS / f"{name}-rpgan-step_times.json").read_text())
    for path in sorted(RUNS.glob(f"{name}-rpgan-[0-9]*/metrics.json")):
        seed = path.parent.name.rpartition("-")[2]
        for kind in ("kernel", "rpgan"):
            summary = json.loads((RUNS / f"{name}-{kind}-{seed}" / "metrics.json").read_text())
            records = summary["quality"][summary["loss"]]
            found = _on_quiet_seconds(records, summary, times, "" if kind == "kernel" else "own ")
            curves.setdefault(summary["loss"], []).append(found)
    checkpoint.write(results / f"gan-{name}-lead.png", pictures.png(pictures.quality_figure(curves)))


def _on_quiet_seconds(
    records: list[dict[str, Any]], summary: dict[str, Any], times: dict[str, float], own: str
) -> list[dict[str, float]]:
    """The records of a run with the seconds that its steps take on a quiet core."""
    first = {
        "encoder": summary["encoder_steps"],
        "codes": summary["code_steps"] or int(summary["code_prior"] == "kernel"),
    }
    first = first if "encoder_seconds" in summary else {}
    spent = {stage: times[f"{own}{stage}"] * steps for stage, steps in first.items()}
    begin = {"codes": spent.get("encoder", 0.0)}
    return [
        {
            **record,
            "seconds": begin.get(record["stage"], sum(spent.values()))
            + record["step"] * times[f"{own}{'codes' if record['stage'] == 'codes' else 'adversary'}"],
        }
        for record in records
    ]


if __name__ == "__main__":
    sys.exit(main())
