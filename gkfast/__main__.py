"""The command line: gkfast train, gkfast info."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from gkfast.gan.data import Data

# on the digits more steps let the discriminator learn the 1000 images by heart; points take longer to settle
_STEPS = {"digits": 2000}
_OTHER_STEPS = 3000
_BATCH_SIZE = 256


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence, without the usage above it."""
        # "argument --steps: must be ..." is how argparse quotes the checks below
        message = message.removeprefix("argument ").replace(": must", " must", 1)
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = _Parser(prog="gkfast", description="Gaussian kernels for kernel GANs.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"gkfast {version('gkfast')}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    train = commands.add_parser(
        "train",
        help="train a GAN with a Gaussian-kernel loss, beside the same GAN without it",
        description="Train a GAN with a Gaussian-kernel loss, and the same GAN without the kernel as a control. "
        "Writes a run folder: report.html, samples.png, curves.png, metrics.json and more.",
        allow_abbrev=False,
    )
    whole = _number(int, 1, "a whole number of at least 1", "2000")
    train.add_argument("--data", default="digits", help="digits, ring, or a .npy file (N, D...) [%(default)s]")
    train.add_argument("--loss", default="gan+mmd", help="gan, gan+mmd, mmd, gan+logkde or article [%(default)s]")
    train.add_argument("--steps", type=whole, help="updates of both networks [2000 for digits, else 3000]")
    train.add_argument(
        "--batch",
        type=_number(int, 2, "a whole number of at least 2", "256"),
        help=f"samples per step [{_BATCH_SIZE}, or all if there are fewer]",
    )
    train.add_argument(
        "--sigma",
        default="median",
        help="median or mean distance, times 1/8 to 2; or numbers like 0.5,1,2 [%(default)s]",
    )
    train.add_argument(
        "--lam",
        type=_number(float, 0, "a finite number of at least 0", "30"),
        help="weight of the kernel term [30 for gan+mmd]",
    )
    train.add_argument(
        "--lr",
        type=_number(float, 1e-12, "a positive finite number", "1e-3"),
        default=1e-3,
        help="learning rate at the start [%(default)s]",
    )
    train.add_argument(
        "--seed",
        type=_number(int, 0, "a whole number of at least 0", "0"),
        default=0,
        help="same seed, same numbers [%(default)s]",
    )
    # networks this small gain nothing from a second thread, and lose all when it has to share its core
    train.add_argument(
        "--threads",
        type=_number(int, 1, "a whole number of at least 1", "2"),
        default=1,
        help="CPU threads; more for large networks [%(default)s]",
    )
    train.add_argument("--device", default="cpu", help="cpu or cuda [%(default)s]")
    train.add_argument("--out", help="the run folder, new or empty [the next free runs/DATA-001]")
    train.add_argument("--no-control", action="store_true", help="do not train the same GAN without the kernel")
    commands.add_parser(
        "info",
        help="print what will run here: vectors, threads, cache, GPU, versions",
        description="Print what will run on this machine.",
        allow_abbrev=False,
    )
    options = parser.parse_args(arguments)
    if options.command == "info":
        from gkfast import info

        print("\n".join(info.lines()))
        return 0
    return _train(train, options)


def _train(parser: _Parser, options: argparse.Namespace) -> int:
    # here and not above, so that --help and --version do not wait for torch
    try:
        import torch

        from gkfast.gan import checks, data, losses, trainer

        trainer.require_extra()
        checks.loss("--loss", options.loss, losses.LOSSES)
        _check_device(options.device)
        _check_folder(options.out)
        real = data.load(options.data)
        batch_size = _batch_size(options, real)
        sigma = trainer.bandwidths(real, options.sigma)
        folder = _make_folder(options.out, real.name)
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))

    torch.set_num_threads(options.threads)
    try:
        summary = trainer.run(
            real,
            folder,
            loss=options.loss,
            sigma=sigma,
            steps=options.steps or _STEPS.get(real.name, _OTHER_STEPS),
            batch_size=batch_size,
            lam=options.lam,
            learning_rate=options.lr,
            seed=options.seed,
            device=options.device,
            control=not options.no_control,
        )
    except KeyboardInterrupt:
        print(f"gkfast train: interrupted; {folder} holds what was done so far", file=sys.stderr)
        return 130
    except FloatingPointError as error:
        print(f"gkfast train: {error}; {folder} holds what was done so far", file=sys.stderr)
        return 1
    for name, figures in ((options.loss, summary), ("no kernel", summary.get("control"))):
        if figures is not None:
            print(f"{name:<10} {_figures(figures)}")
    print(f"{folder}: report.html, samples.png, curves.png, metrics.json")
    return 0


def _number(kind: type, least: float, rule: str, example: str) -> Callable[[str], float]:
    """An argparse type: a finite number of this kind, at least `least`."""

    def convert(text: str) -> float:
        try:
            value: float = kind(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= least):
            raise argparse.ArgumentTypeError(f"must be {rule}, got {text!r}; give for example {example}")
        return value

    return convert


def _check_device(device: str) -> None:
    import torch

    if device not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu or cuda, got {device!r}; choose one of them")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device must be a device that torch finds, got 'cuda'; train on the cpu")


def _check_folder(out: str | None) -> None:
    if out is None:
        return
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--out must be a new or empty folder, got {out!r}; name another one")


def _make_folder(out: str | None, name: str) -> Path:
    """The folder of --out, or the next free of runs/NAME-001, runs/NAME-002, ..."""
    if out is not None:
        folder = Path(out)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"--out must be a folder that can be made, got {out!r} ({error.strerror}); name another one"
            ) from error
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


def _batch_size(options: argparse.Namespace, real: "Data") -> int:
    rows = len(real.train)
    size: int = min(_BATCH_SIZE, rows) if options.batch is None else options.batch
    if size > rows:
        raise ValueError(f"--batch must be at most the {rows} samples to train on, got {size}; give a smaller one")
    return size


def _figures(summary: dict[str, object]) -> str:
    keys = ("classes", "class_kl", "parzen", "strict_modes", "high_quality", "reverse_kl", "mmd2", "seconds")
    return ", ".join(f"{key} {summary[key]:.4g}" for key in keys if key in summary)


if __name__ == "__main__":
    sys.exit(main())
