"""Samples in files: read to be compared, and written."""

import csv
import io
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gkfast.gan import checks, data, sources
from gkfast.gan.checkpoint import write as write_bytes
from gkfast.gan.sampler import Sampler


@dataclass(frozen=True)
class Samples:
    """Rows (N, D) float32 of a file, a folder of images or a named data set, in their order."""

    name: str
    rows: Tensor
    # of a sample before it was flattened
    shape: tuple[int, ...]
    image: bool = False
    unit_range: bool = False
    columns: tuple[str, ...] = ()


def read(option: str, source: str, image_size: int | None = None) -> Samples:
    """The samples of an array, a table or a folder of images, or the held-out rows of data.NAMES.

    image_size : int, optional
        To which a folder's images are cut and scaled, by default 32.

    Raises
    ------
    FileNotFoundError, ValueError
        In one sentence, for what is no such thing.
    """
    path = Path(source)
    if source not in data.NAMES and not path.exists():
        raise FileNotFoundError(
            f"{option} must be an existing .npy, .npz, .pt, .csv or .parquet file, a folder of images, or one of "
            f"{', '.join(data.NAMES)}, got {source!r}; check the path"
        )
    if source in data.NAMES:
        found = data.load(source)
        # training has seen the others
        return Samples(source, found.test, found.shape, found.is_image, found.unit_range)
    held = sources.read(path, 32 if image_size is None else image_size)
    rows = torch.from_numpy(held.rows.reshape(len(held.rows), -1).astype(np.float32))
    shape = held.rows.shape[1:]
    return Samples(path.name, rows, shape, sources.is_image(shape), held.unit_range, tuple(held.names))


def kind(out: str, image: bool) -> str:
    """How samples are written: "npy", "csv" or "folder"; refused before anything is drawn."""
    path = Path(out)
    if path.is_dir() or out.endswith(("/", os.sep)) or not path.suffix:
        if not image:
            raise ValueError(
                f"--out must end in .npy or .csv for samples that are no images, got {out!r}; for example samples.csv"
            )
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ValueError(f"--out must be a new or empty folder, got {out!r}; name another one")
        checks.require("PIL", "a folder of images", "Pillow")
        return "folder"
    if path.suffix not in (".npy", ".csv"):
        raise ValueError(f"--out must end in .npy or .csv, or be a folder for images, got {out!r}; rename it")
    return path.suffix[1:]


def write(samples: Tensor, out: str, sampler: Sampler) -> None:
    """Write samples (N, ...) as an array, a table or images, whole or not at all."""
    path, form, array = Path(out), kind(out, sampler.image), samples.numpy()
    make_folder(path.parent, out)
    if form == "folder":
        _write_images(array, path, sampler.range)
        return
    if form == "npy":
        buffer = io.BytesIO()
        np.save(buffer, array)
        write_bytes(path, buffer.getvalue())
        return
    text = io.StringIO()
    rows = array.reshape(len(array), -1)
    table = csv.writer(text, lineterminator="\n")
    table.writerow(sampler.columns or [f"x{k}" for k in range(rows.shape[1])])
    # nine digits give float32 back
    table.writerows([[f"{value:.9g}" for value in row] for row in rows.tolist()])
    write_bytes(path, text.getvalue().encode())


def make_folder(folder: Path, out: str, what: str = "where a folder can be made") -> None:
    """The folder that --out asks for."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out must be {what}, got {out!r} ({error.strerror}); name another one") from error


def _write_images(array: np.ndarray[Any, Any], path: Path, limits: tuple[float, float]) -> None:
    """PNG files of the range of the data, in a folder that appears when all are there."""
    from PIL import Image

    low, high = limits
    levels = ((array - low) / (high - low) * 255).round().clip(0, 255).astype(np.uint8)
    if levels.ndim == 4 and levels.shape[3] == 1:
        levels = levels[..., 0]
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as made:
        folder = Path(made) / path.name
        folder.mkdir()
        for k, image in enumerate(levels):
            Image.fromarray(image).save(folder / f"{k:0{len(str(len(levels) - 1))}}.png")
        os.replace(folder, path)
