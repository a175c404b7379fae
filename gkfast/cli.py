"""The command line: gkfast train, sample, eval, compile and info."""

import argparse
import gc
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gkfast import cli_samples

if TYPE_CHECKING:
    from gkfast.gan.config import Config
    from gkfast.gan.data import Data


# characters of a progress bar
_BAR = 24


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence, without the usage above it."""
        self.exit(2, f"{self.prog}: {message.removeprefix('argument ')}\n")


# options of gkfast train that are numbers: their setting, an example, and help
_NUMBERS = {
    "steps": ("steps", "2000", "updates of the generator [what suits the data]"),
    "batch": ("batch", "256", "samples per step, over all processes [what suits the data]"),
    "lam": ("lam", "30", "weight of the kernel term [what suits the loss]"),
    "lr": ("generator_rate", "1e-3", "both learning rates at the start [what suits the data]"),
    "seed": ("seed", "0", "same seed, same numbers [0]"),
    "threads": ("threads", "2", "CPU threads [1]"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = _Parser(prog="gkfast", description="Gaussian kernels for kernel GANs.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"gkfast {version('gkfast')}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    train = commands.add_parser(
        "train",
        help="train a GAN with a Gaussian-kernel loss, beside the same GAN without it",
        description="Train a GAN with a Gaussian-kernel loss, and the same GAN without the kernel as a control. "
        "Writes a run folder: report.html, pictures, metrics.json, checkpoints and more. Under torchrun or "
        "accelerate launch it trains in all processes.",
        allow_abbrev=False,
    )
    train.add_argument(
        "--data",
        help="ring, grid, spiral, digits, stacked, mnist, stacked-mnist, a .npy, .npz or .pt file (N, D...), a .csv "
        "or .parquet table with a header, or a folder of images and folders of them [digits]",
    )
    train.add_argument(
        "--loss",
        help="gan, rpgan, hinge, article, mmdgan, repulsive, bounded or smmd; mmd, gmmn, logkde, drift, "
        "landmarks or module:function; or one of each with a plus between [what suits the data]",
    )
    for name, (_, _, text) in _NUMBERS.items():
        train.add_argument(f"--{name}", help=text)
        if name == "batch":
            train.add_argument(
                "--sigma", nargs="+", help="median or mean distance, times a ladder; or numbers: 0.5 1 2 [median]"
            )
    train.add_argument(
        "--encoder",
        help="module:function that returns a torch module: the kernel compares what this makes of samples",
    )
    train.add_argument(
        "--features",
        help="module:function that returns a torch module: FID, KID and precision are of what this makes of samples",
    )
    train.add_argument("--device", help="cpu or cuda [cpu]")
    train.add_argument("--config", help="a TOML file of settings; the command line's own come after it")
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any setting, as in the file; --dry-run lists them all",
    )
    train.add_argument("--out", help="the run folder, new or empty unless resumed [the next free runs/DATA-001]")
    train.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint in --out [the newest run]"
    )
    train.add_argument("--dry-run", action="store_true", help="say what would be done, and write nothing")
    train.add_argument(
        "--kernel-off", action="store_true", help="train the control alone: the same, without the kernel"
    )
    train.add_argument("--no-control", action="store_true", help="do not train the same GAN without the kernel")
    afterwards = cli_samples.add(commands)
    compiling = commands.add_parser(
        "compile",
        help="compile the CPU kernels for this machine now, not at the first call of each: half a minute, once",
        description="Compile every CPU kernel for this machine, to be kept on disk, where later processes find them.",
        allow_abbrev=False,
    )
    compiling.add_argument(
        "--level", help="not for this machine, but for all that have x86-64-v3 or x86-64-v4; with --into"
    )
    compiling.add_argument("--into", metavar="FOLDER", help="where code for a level is put, as a wheel carries it")
    commands.add_parser(
        "info",
        help="print what will run here: vectors, threads, cache, GPU, versions",
        description="Print what will run on this machine.",
        allow_abbrev=False,
    )
    options = parser.parse_args(arguments)
    if options.command in afterwards:
        run = cli_samples.draw if options.command == "sample" else cli_samples.evaluate
        return run(afterwards[options.command], options)
    if options.command == "compile":
        return _compile(compiling, options)
    if options.command == "info":
        from gkfast import info

        print("\n".join(info.lines()))
        return 0
    return _train(train, options)


def _compile(parser: _Parser, options: argparse.Namespace) -> int:
    import logging

    try:
        from gkfast.kernels.cpu import compiled, disk, precompile, processor
    # NUMBA_DISABLE_JIT is set
    except RuntimeError as error:
        parser.error(str(error))

    if (options.level is None) != (options.into is None):
        parser.error("--level and --into must be given together, as in --level x86-64-v3 --into ready-made")
    if options.level is not None:
        if options.level not in processor.LEVELS:
            parser.error(f"--level must be {' or '.join(processor.LEVELS)}, got {options.level}")
        wanted = processor.environment(options.level)
        if not wanted.items() <= os.environ.items():
            # Numba reads them when it is imported
            again = [sys.executable, "-m", "gkfast", "compile", "--level", options.level, "--into", options.into]
            return subprocess.run(again, env=os.environ | wanted, check=False).returncode
        disk.fill(Path(options.into))

    # told here, so not in the log
    log = logging.getLogger("gkfast")
    level = log.level
    log.setLevel(logging.ERROR)
    print("compiling takes 20 to 30 s where nothing is on disk yet, and a second where all is", flush=True)
    try:
        _show(precompile.compile_everything(), len(precompile.parts()))
    finally:
        log.setLevel(level)
    kept, refused = disk.writing()
    if kept is None or refused:
        print("\n".join(disk.places()))
    if kept is None and compiled.compiled_here():
        parser.exit(1, f"{parser.prog}: what was compiled is lost with this process\n")
    print("nothing was to be compiled" if kept is None else f"kept in {kept.path}")
    return 0


def _show(names: Iterator[str], count: int) -> None:
    """A bar on a terminal, a line for each name elsewhere."""
    start = time.perf_counter()
    for done, name in enumerate(names, 1):
        seconds = time.perf_counter() - start
        if sys.stdout.isatty():
            bar = "#" * (_BAR * done // count)
            print(f"\r[{bar:{_BAR}}] {done}/{count}, {seconds:.0f} s: {name:30}", end="", flush=True)
        else:
            print(f"{seconds:6.1f} s  {done}/{count}  {name}", flush=True)
    if sys.stdout.isatty():
        print()


def _train(parser: _Parser, options: argparse.Namespace) -> int:
    # imported here, so that --help and --version do not wait for torch
    try:
        import torch

        from gkfast.gan import config, data, objectives
        from gkfast.gan import run as runs
        from gkfast.gan.checkpoint import Signals, Stopped

        settings = _settings(options)
        runs.require_extra(settings)
        if settings.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device must be one that torch finds, got 'cuda'; train on the cpu")
        _check_folder(options)
        real = data.load(settings.data, settings.image_size)
        if settings.data not in data.NAMES and real.is_image:
            # the recipe of what is most like them
            settings = _settings(options, like="mnist" if min(real.shape[:2]) >= 16 else "digits")
        settings = _fitted(settings, real, options)
        objectives.try_own(settings.loss, real.train if settings.space == "data" else None)
        # refused before a folder is made
        runs.own_encoder(real, settings)
        runs.own_features(real, settings)
        if options.dry_run:
            torch.set_num_threads(settings.threads)
            print(config.as_toml(settings) + "\n".join(f"# {line}" for line in runs.preview(real, settings)))
            return 0
        folder = _make_folder(options.out, real.name)
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))

    torch.set_num_threads(settings.threads)
    with Signals() as signals:
        try:
            summary = runs.run(real, folder, settings, resume=options.resume, signals=signals)
        except (Stopped, KeyboardInterrupt) as stop:
            reason = str(stop) if isinstance(stop, Stopped) else "stopped by SIGINT"
            print(f"\ngkfast train: {reason}; go on with gkfast train --resume --out {folder}", file=sys.stderr)
            return 128 + (stop.number if isinstance(stop, Stopped) else 2)
        except FloatingPointError as error:
            print(f"gkfast train: {error}; {folder} holds what was done so far", file=sys.stderr)
            return 1
        # a checkpoint is damaged, or of another run
        except ValueError as error:
            parser.error(str(error))
        finally:
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                # a traceback may hold networks, which keep the group and its threads
                gc.collect()
                torch.distributed.destroy_process_group()
    # only the first process has a summary
    if not summary:
        return 0
    for name, figures in ((settings.loss, summary), ("no kernel", summary.get("control"))):
        if figures is not None:
            print(f"{name:<10} {_figures(figures)}")
    print(f"{folder}: report.html, samples.png, witness.png, progress.png, curves.png, metrics.json")
    return 0


def _settings(options: argparse.Namespace, like: str = "") -> "Config":
    """The settings of the folder to resume, the defaults, --config, the options and --set, each after the other.

    `like` names the data whose defaults are taken for those of a file or folder.
    """
    from gkfast.gan import config

    given: dict[str, Any] = {
        name: getattr(options, name) for name in ("data", "loss", "encoder", "features", "device")
    }
    for name, (setting, example, _) in _NUMBERS.items():
        text = getattr(options, name)
        given[setting] = None if text is None else config.number(f"--{name}", text, setting, example)
    given["discriminator_rate"] = given["generator_rate"]
    if options.sigma is not None:
        given["sigma"] = _sigma(" ".join(options.sigma))
    if options.no_control:
        given["control"] = False
    before = None
    if options.resume:
        options.out = _newest_run() if options.out is None else options.out
        before = config.saved(Path(options.out))
    settings = config.resolve(options.config, given, options.set, before, like)
    return config.control(settings).changed(control=False) if options.kernel_off else settings


def _fitted(settings: "Config", real: "Data", options: argparse.Namespace) -> "Config":
    """The settings, with a batch that fits the data where none was asked for."""
    rows = len(real.train)
    if options.batch is None and not any(text.startswith("batch=") for text in options.set):
        settings = settings.changed(batch=min(settings.recipe.batch, rows))
    if settings.recipe.batch > rows:
        raise ValueError(
            f"--batch must be at most the {rows} samples to train on, got {settings.recipe.batch}; give a smaller one"
        )
    if settings.network == "dcgan" and not real.is_image:
        raise ValueError('network must be "mlp" for data that are no images, got "dcgan"; leave it out')
    return settings


def _sigma(text: str) -> str | list[float]:
    """A rule, or positive numbers with spaces or commas between."""
    if text in ("median", "mean"):
        return text
    try:
        numbers = [float(number) for number in text.replace(",", " ").split()]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < s < math.inf for s in numbers):
        raise ValueError(
            f"--sigma must be median, mean, or positive numbers, got {text!r}; for example --sigma 0.5 1 2"
        )
    return numbers


def _newest_run() -> str:
    """The run in the folder runs/ that was begun or went on last."""
    if _processes() > 1:
        raise ValueError(f"--out must be given to {_processes()} processes, got none; name the folder to resume")
    begun = list(Path("runs").glob("*/config.json"))
    if not begun:
        raise ValueError("--out must be the folder to resume, got none, and runs/ holds no run; name it")
    newest = str(max(begun, key=lambda path: path.stat().st_mtime).parent)
    print(f"gkfast train: going on with {newest}, the newest run", file=sys.stderr)
    return newest


def _rank() -> int:
    # torchrun and accelerate launch set these
    return int(os.environ.get("RANK", "0"))


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _check_folder(options: argparse.Namespace) -> None:
    if _processes() > 1 and options.out is None and not options.dry_run:
        raise ValueError(f"--out must be given to {_processes()} processes, got none; name the folder of the run")
    # the first process has checked the folder, and may have written to it
    if options.out is None or options.resume or _rank() > 0:
        return
    folder = Path(options.out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"--out must be a new or empty folder, got {options.out!r}; name another one, or --resume this one"
        )


def _make_folder(out: str | None, name: str) -> Path:
    """The folder of --out, or the next free of runs/NAME-001, runs/NAME-002, ..."""
    if out is not None:
        from gkfast.gan import files

        folder = Path(out)
        files.make_folder(folder, out, "a folder that can be made")
        return folder
    taken = [int(path.name[len(name) + 1 :]) for path in Path("runs").glob(f"{name}-[0-9][0-9][0-9]")]
    number = max(taken, default=0) + 1
    while True:
        folder = Path("runs") / f"{name}-{number:03}"
        try:
            folder.mkdir(parents=True)
            return folder
        # another run took it a moment ago
        except FileExistsError:
            number += 1


def _figures(summary: dict[str, object]) -> str:
    keys = (
        *("fid", "classes", "class_kl", "parzen", "modes", "strict_modes", "high_quality", "reverse_kl"),
        *("recall", "median_distance", "coverage", "mmd2", "p_value", "seconds"),
    )
    return ", ".join(f"{key} {summary[key]:.4g}" for key in keys if key in summary)
