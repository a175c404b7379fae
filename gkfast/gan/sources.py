"""Data of one's own, read from files: arrays, tables with a header, and folders of images.

Nothing in a file is executed, and what cannot be used is refused in one sentence.
"""

import csv
import math
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gkfast.gan import checks

SUFFIXES = (".npy", ".npz", ".pt", ".csv", ".parquet")
_TABLES = (".csv", ".parquet")
IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})

# Pillow's names: of all that it reads, PostScript would start a program
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
# folders of these names divide data for training; they are no classes
_PARTS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})

# with fewer rows the held-out fifth is too small for any figure
LEAST_ROWS = 20
# images with equal sides up to this keep them, and others get it
_SIDE = 32
# a file may unpack to so many bytes, and beyond them to so many times its own size
_UNPACKED, _EXPANSION = 2**30, 200


class Read(NamedTuple):
    """What a file or a folder holds."""

    # (N, ...), finite: a table (N, D) of float64, or float32 samples; images from files lie in [0, 1]
    rows: np.ndarray[Any, Any]
    # of the columns of a table, where it has a header
    names: list[str]
    # whole numbers from 0 on, (N,)
    labels: np.ndarray[Any, Any] | None
    # whether every value lies in [0, 1] by its nature
    unit_range: bool
    # what was done to the data, in a sentence; empty where nothing was
    note: str


def read(path: Path, image_size: int = 0, least_rows: int = LEAST_ROWS) -> Read:
    """The numbers of a .npy, .npz, .pt, .csv or .parquet file, or the images of a folder.

    An array of shape (N, ...) holds a sample in each row; bytes of shape (N, H, W) or (N, H, W, C) are images. An
    .npz archive holds it as its only array or under the name x, beside which y may hold N class labels; a .pt file
    holds one tensor. A .csv file begins with a line of column
    names, if not with numbers. Images of a folder are found in its subfolders
    too; where all are in two subfolders or more, these are their classes.

    Parameters
    ----------
    image_size : int
        Sides of a folder's images, whose middle square is resized. 0 keeps the sides of images that all have the same
        ones, up to 32, and resizes others to 32.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        Without Pillow, or without pyarrow for a table.
    ValueError
        If it holds anything else.
    """
    if path.is_dir():
        return _folder(path, image_size, least_rows)
    if not path.is_file():
        raise FileNotFoundError(
            f"{_named(path)} must be a folder of images or an existing {', '.join(SUFFIXES)} file, got none; "
            "check the path"
        )
    if path.suffix.lower() in _TABLES:
        names, rows = _table(path)
        labels = None
    else:
        rows, labels = _array(path)
        names = []
    _check_shape(path, rows, least_rows)
    _check_rows(path, rows)
    if labels is not None and not (
        labels.shape == (len(rows),) and np.issubdtype(labels.dtype, np.integer) and labels.min() >= 0
    ):
        raise ValueError(
            f"{_named(path)} must hold in y one whole number of at least 0 for each of the {len(rows)} rows of x, "
            f"got {labels.dtype} of shape {labels.shape}; save class numbers, or leave y out"
        )
    if rows.dtype == np.uint8 and is_image(rows.shape[1:]):
        note = "bytes are divided by 255; save floats for another range"
        return Read(rows.astype(np.float32) / 255, names, labels, True, note)
    return Read(rows.astype(np.float64 if rows.ndim == 2 else np.float32), names, labels, False, "")


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether samples of this shape are images: (H, W), or (H, W, C) of 1, 3 or 4 channels."""
    return len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))


def _named(path: Path) -> str:
    """A path in one line, whatever is in its name."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def _check_shape(path: Path, rows: np.ndarray[Any, Any], least_rows: int) -> None:
    name = _named(path)
    if not (np.issubdtype(rows.dtype, np.integer) or np.issubdtype(rows.dtype, np.floating)):
        raise ValueError(f"{name} must hold real numbers, got dtype {rows.dtype}; save it as float32")
    if rows.ndim < 2:
        raise ValueError(
            f"{name} must hold an array of shape (N, D...), got shape {rows.shape}; reshape it to one row per sample"
        )
    if len(rows) < least_rows:
        raise ValueError(f"{name} must hold at least {least_rows} rows, got {len(rows)}; give more samples")
    if math.prod(rows.shape[1:]) == 0:
        raise ValueError(f"{name} must hold at least one number per row, got shape {rows.shape}; save it anew")


def _check_rows(path: Path, rows: np.ndarray[Any, Any]) -> None:
    """Rows (N, ...) are finite and not all the same."""
    # a float64 above 3e38 is infinite in float32
    with np.errstate(over="ignore"):
        name, bad = _named(path), int((~np.isfinite(rows.astype(np.float32))).sum())
    if bad:
        raise ValueError(f"{name} must hold finite float32 numbers, got {bad} that are not; remove or clip them")
    if (rows == rows[0]).all():
        raise ValueError(f"{name} must hold rows that differ, got {len(rows)} equal ones; check how it was saved")


def _check_unpacked(path: Path, unpacked: int) -> None:
    """A small file does not fill the memory."""
    if unpacked > _UNPACKED + _EXPANSION * path.stat().st_size:
        raise ValueError(
            f"{_named(path)} must unpack to what its size allows, got {unpacked / 2**30:.1f} GiB of "
            f"{path.stat().st_size / 2**20:.1f} MiB; save it without compression if it is meant"
        )


def _array(path: Path) -> tuple[Any, np.ndarray[Any, Any] | None]:
    """The array of a file, and its class labels or None; no code of the file is run."""
    name = _named(path)
    members: list[str] = []
    if path.suffix != ".pt" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as packed:
            _check_unpacked(path, sum(member.file_size for member in packed.infolist()))
    try:
        if path.suffix == ".pt":
            held = torch.load(path, map_location="cpu", weights_only=True)
        else:
            held = np.load(path, allow_pickle=False)
        if path.suffix != ".pt" and not isinstance(held, np.ndarray):
            # an archive reads a member when it is asked for, and keeps its file open
            with held as archive:
                members = archive.files
                held = [archive[name] for name in (("x", "y") if "x" in members else members) if name in members]
    # pickles that would run code, foreign bytes, truncated archives, empty files, and files without permission
    except Exception as error:
        raise ValueError(
            f"{name} must be a .npy, .npz or .pt file of plain numbers, got what cannot be loaded without pickle; "
            "save it with numpy.save, or name a table .csv or .parquet"
        ) from error
    if isinstance(held, np.ndarray):
        return held, None
    if path.suffix != ".pt":
        if "x" not in members and len(members) != 1:
            raise ValueError(
                f"{name} must hold one array, or one named x, got {', '.join(members) or 'none'}; "
                "save it with numpy.savez(path, x=...)"
            )
        return held[0], held[1] if len(held) > 1 else None
    if not isinstance(held, Tensor):
        raise ValueError(
            f"{name} must hold one tensor, got {type(held).__name__}; save it with torch.save(tensor, path)"
        )
    return (held.float() if held.dtype.itemsize == 2 else held).numpy(), None


def _table(path: Path) -> tuple[list[str], np.ndarray[Any, Any]]:
    """The names and the numbers (N, D) of a table's columns; true and false are 1 and 0."""
    checks.require("pyarrow.parquet", "a table", "pyarrow", extra="tables")
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    name, kind = _named(path), "Parquet" if path.suffix.lower() == ".parquet" else "CSV"
    # a first line of numbers alone is data
    bare = False
    try:
        if kind == "CSV":
            with open(path, encoding="utf-8-sig", newline="") as file:
                header = next(csv.reader(file), [])
            bare = bool(header) and all(map(_is_number, header))
            options = pyarrow.csv.ReadOptions(autogenerate_column_names=bare)
            table = pyarrow.csv.read_csv(path, read_options=options)
            header = [f"column {k}" for k in range(1, len(header) + 1)] if bare else header
        else:
            with pyarrow.parquet.ParquetFile(path) as file:
                header = file.schema_arrow.names
                # a repeated value takes no room in the file
                _check_unpacked(path, 8 * file.metadata.num_rows * file.metadata.num_columns)
                table = file.read()
    # pyarrow's for foreign bytes and for lines of another length, and the csv module's for quotes
    except (pyarrow.ArrowException, csv.Error, UnicodeDecodeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{name} must be a {kind} table with a name for each column, got what cannot be read ({reason:.120}); "
            "save it anew"
        ) from error
    if kind == "CSV" and any(_is_number(cell) for cell in header):
        raise ValueError(
            f"{name} must begin with a line of column names, got the number {next(filter(_is_number, header))}; "
            "add a header"
        )
    index = next((k for k, title in enumerate(header, 1) if not title.strip() or title.startswith("__index_")), 0)
    if index:
        raise ValueError(
            f"{name} must have a name for each column, got an index without one in column {index}; leave it out, as "
            "pandas does with index=False"
        )
    if len(set(header)) < len(header):
        twice = Counter(header).most_common(1)[0][0]
        raise ValueError(f"{name} must have another name for each column, got {twice!r} twice; rename one")
    columns = [_column(path, title, values) for title, values in zip(header, table.columns, strict=True)]
    rows = np.stack(columns, axis=1) if columns else np.empty((table.num_rows, 0))
    return [] if bare else header, rows


def _column(path: Path, title: str, values: Any) -> np.ndarray[Any, Any]:
    import pyarrow.types as types

    kind = values.type
    # without rows there is no type
    if not len(values):
        return np.empty(0)
    if types.is_null(kind) or values.null_count:
        raise ValueError(
            f"{_named(path)} must have a number in every cell, got {values.null_count} empty ones in column "
            f"{title!r}; fill them, or leave these rows out"
        )
    if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind)):
        cells = enumerate(values.to_pylist(), 1)
        row, cell = next(((k, cell) for k, cell in cells if not _is_number(str(cell))), (1, kind))
        raise ValueError(
            f"{_named(path)} must hold numbers, got {checks.shown(cell)} in row {row} of column {title!r}; give each "
            "category a number or a column of 0 and 1, or leave the column out"
        )
    found: np.ndarray[Any, Any] = values.to_numpy().astype(np.float64)
    bad = int((~np.isfinite(found)).sum())
    if bad:
        raise ValueError(
            f"{_named(path)} must hold finite numbers, got {bad} in column {title!r} that are not; "
            "fill them, or leave these rows out"
        )
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _folder(path: Path, size: int, least_rows: int) -> Read:
    """The images of a folder and its subfolders, in [0, 1]; grey where all of them are."""
    checks.require("PIL", "a folder of images", "Pillow")
    names = sorted(
        name
        for name in path.rglob("*")
        if name.suffix.lower() in IMAGES
        and name.is_file()
        # thumbnails, and what systems keep beside files
        and not any(part.startswith(".") for part in name.relative_to(path).parts)
    )
    if len(names) < least_rows:
        raise ValueError(
            f"{_named(path)} must hold at least {least_rows} images (png, jpg, ...), got {len(names)}; "
            "give more, or another folder"
        )
    sizes = []
    for name in names:
        with _image(name) as image:
            sizes.append(image.size)
    W, H = sizes[0]
    same = len(set(sizes)) == 1
    keep = size == 0 and same and 4 <= min(W, H) <= max(W, H) <= _SIDE
    side = 0 if keep else size or _SIDE
    pictures = []
    for name in names:
        with _image(name) as image:
            pictures.append(_cut(image, side))
    mode = "L" if all(image.mode == "L" for image in pictures) else "RGB"
    x = np.stack([np.asarray(image.convert(mode), dtype=np.float32) / 255 for image in pictures])
    _check_rows(path, x)
    classes, labels = _classes(path, names)
    before = (
        f"{W} x {H}" if same else f"from {' x '.join(map(str, min(sizes)))} to {' x '.join(map(str, max(sizes)))}"
    )
    done = (
        "kept as they are"
        if keep or (same and W == H == side)
        else f"of which the middle square is resized to {side} x {side}"
    )
    note = f"{len(names)} {'grey' if mode == 'L' else 'colour'} images, {before} pixels, {done}; "
    note += f"--set image_size={2 * _SIDE} gives another side"
    if labels is not None:
        note += f"; its {len(classes)} subfolders are classes, which metrics use and training does not"
    return Read(x, [], labels, True, note)


@contextmanager
def _image(name: Path) -> Iterator[Any]:
    """An open image file; what is wrong with it comes to light when its pixels are read."""
    from PIL import Image

    try:
        # Pillow warns of more pixels than it likes, and refuses twice as many
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(name, formats=_FORMATS) as image:
                yield image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{_named(name)} must be an image of at most {Image.MAX_IMAGE_PIXELS} pixels, got more; make it smaller"
        ) from error
    # Pillow raises these for foreign bytes, broken files, and values that cannot be
    except (OSError, SyntaxError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{_named(name)} must be an image that Pillow can read, got something else; remove or replace it"
        ) from error


def _cut(image: Any, side: int) -> Any:
    """The middle square of an image, resized to this side, or for 0 all of it: grey or RGB."""
    from PIL import Image, ImageOps

    grey = image.mode in ("1", "L", "F") or image.mode.startswith("I")
    if image.mode.startswith("I"):
        # 16 bits, which convert would cut at 255
        image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
    image = image.convert("RGB")
    image = ImageOps.fit(image, (side, side)) if side else image
    return image.convert("L") if grey else image


def _classes(path: Path, names: list[Path]) -> tuple[list[str], np.ndarray[Any, Any] | None]:
    """The names of two subfolders or more that all images are in, and the number of each image's."""
    parts = [name.relative_to(path).parts[:-1] for name in names]
    if {p[0].lower() for p in parts if p} <= _PARTS:
        parts = [p[1:] for p in parts]
    classes = sorted({p[0] for p in parts if p})
    if len(classes) < 2 or not all(parts):
        return [], None
    return classes, np.array([classes.index(p[0]) for p in parts])
