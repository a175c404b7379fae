"""gkfast sample and gkfast eval: draw from a trained generator, and compare two sets of samples."""

import argparse
import json
from pathlib import Path
from typing import Any


def add(commands: Any) -> dict[str, Any]:
    """The parsers of both commands, by name."""
    sample = commands.add_parser(
        "sample",
        help="draw samples from the generator of a run",
        description="Draw samples from the generator of a run, and write them as an array, a table or images.",
        allow_abbrev=False,
    )
    sample.add_argument("run", metavar="RUN", help="the run folder, or its generator.pt or control.pt")
    sample.add_argument("-n", "--number", default="1000", help="how many [1000]")
    sample.add_argument(
        "--out", required=True, help="samples.npy, samples.csv, or a new or empty folder for PNG images"
    )
    sample.add_argument("--seed", default="0", help="same seed, same samples [0]")
    evaluate = commands.add_parser(
        "eval",
        help="compare generated samples with real ones: MMD with its p-value, KID, precision and recall",
        description="Compare two arrays (.npy, .npz, .pt), tables (.csv, .parquet) or folders of images.",
        allow_abbrev=False,
    )
    evaluate.add_argument(
        "real",
        metavar="REAL",
        help="real samples: a file, a folder, or a data set of gkfast train, of which the held-out rows are taken",
    )
    evaluate.add_argument("fake", metavar="FAKE", help="generated samples: a file or folder")
    evaluate.add_argument(
        "--features",
        metavar="MODULE:FUNCTION",
        help="a function of a batch, or one that returns a torch module: what it makes of samples is compared",
    )
    evaluate.add_argument("--image-size", help="the side to which images of folders are cut and scaled [32]")
    evaluate.add_argument("--seed", default="0", help="of the rows and relabellings that are picked [0]")
    evaluate.add_argument("--out", help="a new or empty folder for report.html, its pictures and metrics.json")
    evaluate.add_argument("--json", action="store_true", help="print the figures as JSON")
    return {"sample": sample, "eval": evaluate}


def draw(parser: Any, options: argparse.Namespace) -> int:
    try:
        from gkfast.gan import files, sampler

        number, seed = _whole("-n", options.number, 1), _whole("--seed", options.seed, 0)
        generator = sampler.load(options.run)
        files.kind(options.out, generator.image)
        files.write(_drawn(generator, number, seed), options.out, generator)
    except (ValueError, OSError, ImportError) as error:
        parser.error(_line(error))
    print(f"{options.out}: {number} samples of shape {generator.shape}, seed {seed}")
    return 0


def _drawn(generator: Any, number: int, seed: int) -> Any:
    try:
        return generator.sample(number, seed)
    # torch's word for memory that there is not
    except (RuntimeError, MemoryError) as error:
        raise ValueError(
            f"-n must be a number of samples that fits into memory, got {number}; draw fewer, with several seeds"
        ) from error


def evaluate(parser: Any, options: argparse.Namespace) -> int:
    try:
        from gkfast.gan import compare

        seed = _whole("--seed", options.seed, 0)
        size = None if options.image_size is None else _whole("--image-size", options.image_size, 4)
        folder = None if options.out is None else Path(options.out)
        if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"--out must be a new or empty folder, got {options.out!r}; name another one")
        real, fake = _both(options.real, options.fake, size)
        fake = compare.matched(real, fake)
        found, see = compare.compare(real, fake, named=options.features, seed=seed)
        if folder is not None:
            compare.write(folder, real, fake, found, see)
    except (ValueError, OSError, ImportError) as error:
        parser.error(_line(error))
    print(json.dumps(found, indent=2) if options.json else "\n".join(compare.lines(found)))
    if folder is not None and not options.json:
        print(f"{folder}: report.html, samples.png, witness.png, metrics.json")
    return 0


def _both(real: str, fake: str, size: int | None) -> tuple[Any, Any]:
    """Both samples; the images of a folder in the size of the other sample, where that is none."""
    from gkfast.gan import files

    names = {"REAL": real, "FAKE": fake}
    # folders last
    found: dict[str, Any] = {}
    for name, source in sorted(names.items(), key=lambda item: Path(item[1]).is_dir()):
        other = next(iter(found.values()), None)
        side = other.shape[0] if size is None and other is not None and other.image else size
        found[name] = files.read(name, source, side)
    return found["REAL"], found["FAKE"]


def _whole(option: str, text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value < 2**63:
        raise ValueError(f"{option} must be a whole number of at least {least}, got {text!r}; correct it")
    return value


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
