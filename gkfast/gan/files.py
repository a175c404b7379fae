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

from gkfast.gan import checks, data, own
from gkfast.gan.checkpoint import write as write_bytes
from gkfast.gan.sampler import Sampler

_TABLES = (".csv", ".parquet")


@dataclass(frozen=True)
class Samples:
    """Rows (N, D) float32 of a file, a folder of images or a named data set, in the order of `data.load`."""

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
    try:
        if path.suffix.lower() in _TABLES and path.is_file():
            return _table(path)
        found = data.load(source, 32 if image_size is None else image_size)
    except (ValueError, OSError, ImportError):
        raise
    # Pillow's refusal of a picture that would fill the memory
    except Exception as error:
        raise ValueError(
            f"{option} must hold what can be read, got {source!r} ({own.reason(error)}); remove what cannot"
        ) from error
    # training has seen the others
    rows = found.test if source in data.NAMES else torch.cat([found.train, found.validation, found.test])
    return Samples(source if source in data.NAMES else path.name, rows, found.shape, found.is_image, found.unit_range)


def _table(path: Path) -> Samples:
    """The numbers of a CSV file, with or without a line of names, or of a Parquet file."""
    names, columns = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    if len(columns) < data._MIN_ROWS:
        raise ValueError(
            f"{str(path)!r} must hold at least {data._MIN_ROWS} rows, got {len(columns)}; give more samples"
        )
    with np.errstate(over="ignore"):
        rows = columns.astype(np.float32)
    data._check_rows(path, rows)
    return Samples(path.name, torch.from_numpy(rows), rows.shape[1:], columns=tuple(names))


def _csv(path: Path) -> tuple[list[str], np.ndarray[Any, Any]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.reader(file) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{str(path)!r} must be a CSV file, got bytes that are none; save it as UTF-8") from error
    names: list[str] = []
    if lines and not all(map(_is_number, lines[0])):
        names, lines = [name.strip() for name in lines[0]], lines[1:]
    width = len(names or (lines[0] if lines else []))
    for number, line in enumerate(lines, 1 + bool(names)):
        if len(line) != width:
            raise ValueError(
                f"{str(path)!r} must have {width} columns in each line, got {len(line)} in line {number}; mend it"
            )
        wrong = next((k for k, text in enumerate(line) if not _is_number(text)), None)
        if wrong is not None:
            column = repr(names[wrong]) if names else str(wrong + 1)
            raise ValueError(
                f"{str(path)!r} must hold numbers, got {line[wrong][:40]!r} in line {number}, column {column}; "
                "leave the column out, or write numbers"
            )
    return names, np.array([[float(text) for text in line] for line in lines]).reshape(len(lines), width)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parquet(path: Path) -> tuple[list[str], np.ndarray[Any, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("a .parquet file needs pyarrow, which is not installed; run pip install pyarrow") from error
    try:
        table = parquet.read_table(path)
        return table.column_names, np.stack([np.asarray(column, float) for column in table.columns], 1)
    # Arrow raises its own for foreign bytes, and NumPy for text
    except Exception as error:
        raise ValueError(
            f"{str(path)!r} must be a Parquet file of numbers, got {own.reason(error)[:120]}; leave other columns out"
        ) from error


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


def make_folder(folder: Path, out: str) -> None:
    """The folder that --out asks for."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--out must be where a folder can be made, got {out!r} ({error.strerror}); name another one"
        ) from error


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
