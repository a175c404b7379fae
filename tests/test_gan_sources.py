"""Files of a user's own: what is read, what is made of it, and what is refused in one sentence."""

import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from gkfast.gan import data, sources
from gkfast.gan.columns import Columns, compare

RNG = np.random.default_rng(0)
PRICE, ROOMS, SHARE, CODE = np.exp(RNG.normal(10, 1, 60)), RNG.poisson(40, 60), RNG.random(60), RNG.integers(1, 4, 60)


def write_csv(path, header="price,rooms,share,kind,change", change=None, **cells):
    lines = [header]
    for k in range(60):
        row = [f"{PRICE[k]:.6g}", str(ROOMS[k]), f"{SHARE[k]:.6g}", str(2 * CODE[k]), f"{PRICE[k] - 3e4:.6g}"]
        lines.append(",".join(change(k, row) if change else row))
    path.write_text("\n".join(lines) + "\n", **cells)
    return path


def save_images(folder, sizes, count=20, mode="RGB", name="{:02}.png"):
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        W, H = sizes[k % len(sizes)]
        shape = (H, W) if mode == "L" else (H, W, len(mode))
        Image.fromarray(RNG.integers(0, 256, shape, np.uint8)).save(folder / name.format(k))
    return folder


def test_a_table_has_its_names_and_its_numbers(tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    held = sources.read(write_csv(tmp_path / "homes.csv"))
    assert held.names == ["price", "rooms", "share", "kind", "change"]
    assert held.rows.shape == (60, 5)
    np.testing.assert_allclose(held.rows[:, 0], PRICE, rtol=1e-5)
    table = {name: held.rows[:, k] for k, name in enumerate(held.names)} | {"kind": pyarrow.array(2 * CODE > 4)}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "homes.parquet")
    again = sources.read(tmp_path / "homes.parquet")
    assert again.names == held.names
    np.testing.assert_array_equal(again.rows[:, :3], held.rows[:, :3])
    np.testing.assert_array_equal(again.rows[:, 3], 2 * CODE > 4)


def test_a_first_line_of_numbers_alone_is_data(tmp_path):
    pytest.importorskip("pyarrow")
    held = sources.read(write_csv(tmp_path / "bare.csv", "1,2,3,4,5"))
    assert (held.names, held.rows.shape) == ([], (61, 5))
    assert data.load(str(tmp_path / "bare.csv")).columns.names[1] == "column 2"


def test_columns_keep_their_kind():
    rows = np.stack([PRICE, ROOMS, SHARE, 2 * CODE, PRICE - 3e4, np.full(60, 7.5)], axis=1)
    columns = Columns.from_rows(rows)
    z = columns.standard(rows)
    torch.testing.assert_close(z[:, :5].mean(0), torch.zeros(5), rtol=0, atol=1e-5)
    torch.testing.assert_close(z[:, :5].std(0, correction=0), torch.ones(5), rtol=0, atol=1e-5)
    # what was read comes back
    np.testing.assert_allclose(columns.restore(z), rows, rtol=1e-5, atol=1e-2)
    wild = columns.restore(10 * torch.randn(500, 6, generator=torch.Generator().manual_seed(0)))
    assert wild[:, :4].min() == 0
    assert (wild[:, 1] == wild[:, 1].round()).all()
    assert wild[:, 2].max() == 1
    assert {*wild[:, 3]} == {2, 4, 6}
    assert wild[:, 4].min() < -1e5
    assert {*wild[:, 5]} == {7.5}
    kinds = ["at least 0", "whole, at least 0", "0 to 1", "one of 3 whole numbers", "any number", "always 7.5"]
    assert [columns.kind(k) for k in range(6)] == kinds
    assert "2 get no negatives, 1 stay in [0, 1], 1 are rounded to whole numbers" in columns.note()
    assert Columns(**columns.as_dict()) == columns
    # scaled again they are what a user gets
    np.testing.assert_allclose(columns.restore(columns.as_given(z)), columns.restore(z), rtol=1e-6)


def test_large_numbers_keep_their_digits(tmp_path):
    # which float32 cannot tell apart
    np.save(tmp_path / "stamps.npy", 1.7e18 + 1e4 * RNG.normal(size=(50, 1)))
    assert data.load(str(tmp_path / "stamps.npy")).train.std() == pytest.approx(1, rel=0.1)


def test_columns_are_compared_in_real_deviations():
    x = RNG.normal(size=(4000, 2)) * [1, 100]
    real = np.stack([x[:, 0], x[:, 1], 50 * x[:, 0] + x[:, 1]], axis=1)
    fake = np.stack([x[:, 0] + 2, 3 * x[:, 1], RNG.permutation(real[:, 2])], axis=1)
    first, second, third = compare(Columns.from_rows(real, ["a", "b", "c"]), real, fake)
    assert first["mean_error"] == pytest.approx(2, rel=0.05)
    assert second["deviation"] == pytest.approx(300, rel=0.05)
    # the shuffled column has lost its correlations
    expected = abs(np.corrcoef(real.T))
    assert second["correlation_error"] == pytest.approx(expected[1, 2], abs=0.06)
    assert (second["with"], third["name"]) == ("c", "c")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda k, row: ["ten" if k == 3 else row[0], *row[1:]], "got 'ten' in row 4 of column 'price'; give each"),
        (
            lambda k, row: ["" if k < 2 else row[0], *row[1:]],
            "number in every cell, got 2 empty ones in column 'price'",
        ),
        (lambda k, row: ["nan" if k < 2 else row[0], *row[1:]], "got 2"),
        (lambda k, row: ["inf" if k < 2 else row[0], *row[1:]], "finite numbers, got 2 in column 'price'"),
        (lambda k, row: row[: 5 - (k == 7)], "a CSV table with a name for each column, got what cannot be read"),
    ],
)
def test_bad_cells_are_refused(tmp_path, change, message):
    pytest.importorskip("pyarrow")
    refused(write_csv(tmp_path / "bad.csv", change=change), message)


def refused(path, message, error=ValueError):
    with pytest.raises(error, match=message) as refusal:
        data.load(str(path))
    said = str(refusal.value)
    assert "\n" not in said
    assert "; " in said
    assert len(said) < 400 + len(str(path))


def test_bad_tables_are_refused(tmp_path):
    pytest.importorskip("pyarrow")
    write_csv(tmp_path / "none.csv", "a,2,b,c,d")
    refused(tmp_path / "none.csv", "must begin with a line of column names, got the number 2; add a header")
    write_csv(tmp_path / "twice.csv", "a,b,a,c,d")
    refused(tmp_path / "twice.csv", "another name for each column, got 'a' twice; rename one")
    (tmp_path / "one.csv").write_text("a,b\n1,2\n")
    refused(tmp_path / "one.csv", "must hold at least 20 rows, got 1; give more samples")
    (tmp_path / "header.csv").write_text("a,b\n")
    refused(tmp_path / "header.csv", "must hold at least 20 rows, got 0; give more samples")
    write_csv(tmp_path / "index.csv", ",a,b,c,d")
    refused(
        tmp_path / "index.csv", "got an index without one in column 1; leave it out, as pandas does with index=False"
    )
    (tmp_path / "empty.csv").touch()
    refused(tmp_path / "empty.csv", "a CSV table .* got what cannot be read")
    (tmp_path / "bytes.csv").write_bytes(bytes(range(256)) * 9)
    refused(tmp_path / "bytes.csv", "a CSV table .* got what cannot be read")
    (tmp_path / "no.parquet").write_text("a,b\n1,2\n")
    refused(tmp_path / "no.parquet", "a Parquet table .* got what cannot be read")


def test_what_fills_the_memory_is_refused(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("x.npy", bytes(2**22))
    monkeypatch.setattr(sources, "_UNPACKED", 0)
    refused(tmp_path / "bomb.npz", r"must unpack to what its size allows, got 0.0 GiB of 0.0 MiB; save it")
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"a": np.zeros(10**6)}), tmp_path / "bomb.parquet")
    refused(tmp_path / "bomb.parquet", "must unpack to what its size allows")


def test_folders_are_read_to_their_depths(tmp_path):
    save_images(tmp_path / "photos" / "cats", [(16, 16)], 12)
    save_images(tmp_path / "photos" / "dogs" / "old", [(16, 16)], 12)
    save_images(tmp_path / "photos" / ".thumbnails", [(16, 16)], 3)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    photos = data.load(str(tmp_path / "photos"))
    assert (photos.name, photos.shape, photos.unit_range) == ("photos", (16, 16, 3), True)
    assert len(photos.train) + len(photos.validation) + len(photos.test) == 24
    assert set(photos.train_labels.tolist()) == {0, 1}
    assert photos.note == (
        "24 colour images, 16 x 16 pixels, kept as they are; --set image_size=64 gives another side; "
        "its 2 subfolders are classes, which metrics use and training does not"
    )
    # parts of a split are no classes
    for part in ("train", "val"):
        save_images(tmp_path / "parts" / part, [(9, 9)], 10, mode="L")
    parts = data.load(str(tmp_path / "parts"))
    assert (parts.shape, parts.train_labels) == ((9, 9), None)
    for part in ("train", "val"):
        for kind in ("a", "b"):
            save_images(tmp_path / "both" / part / kind, [(9, 9)], 5)
    assert set(data.load(str(tmp_path / "both")).train_labels.tolist()) == {0, 1}


def test_sizes_are_said_and_can_be_chosen(tmp_path):
    mixed = save_images(tmp_path / "mixed", [(40, 20), (64, 64)])
    assert data.load(str(mixed)).shape == (32, 32, 3)
    note = "20 colour images, from 40 x 20 to 64 x 64 pixels, of which the middle square is resized to 32 x 32; --set"
    assert data.load(str(mixed)).note.startswith(note)
    assert data.load(str(mixed), 64).shape == (64, 64, 3)
    small = save_images(tmp_path / "small", [(16, 12)], mode="L")
    assert data.load(str(small)).shape == (12, 16)
    assert data.load(str(small), 8).shape == (8, 8)


def test_images_are_cut_to_their_middle_and_keep_their_values(tmp_path):
    for k in range(20):
        # the middle square of a wide image: what is left and right of it is black
        image = np.zeros((12, 20, 3), np.uint8)
        image[:, 4:16] = 100 + k
        Image.fromarray(image).save(tmp_path / f"{k:02}.png")
    colour = data.load(str(tmp_path), image_size=6)
    # a pixel of the middle, which the black does not reach
    values = sorted(float(row[63]) for row in torch.cat([colour.train, colour.validation, colour.test]))
    assert values == pytest.approx([(100 + k) / 255 for k in range(20)])


def test_sixteen_bits_are_not_cut_off(tmp_path):
    for k in range(20):
        Image.fromarray(np.full((8, 8), 257 * (10 * k + 5), np.uint16)).save(tmp_path / f"{k:02}.png")
    grey = data.load(str(tmp_path))
    values = sorted(float(row[0]) for row in torch.cat([grey.train, grey.validation, grey.test]))
    assert values == pytest.approx([(10 * k + 5) / 255 for k in range(20)])


def bomb(path):
    """A PNG of a thousand bytes that says it has 40 000 x 40 000 pixels."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**6))))


def test_bad_images_are_refused(tmp_path):
    folder = save_images(tmp_path / "images", [(9, 9)])
    for name, content in (
        ("text.png", b"no image"),
        ("empty.jpg", b""),
        # Pillow would start a program for it
        ("program.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"),
    ):
        (folder / name).write_bytes(content)
        refused(folder, f"{name} must be an image that Pillow can read, got something else; remove or replace it")
        (folder / name).unlink()
    whole = (folder / "00.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    refused(folder, "cut.png must be an image that Pillow can read")
    (folder / "cut.png").unlink()
    bomb(folder / "bomb.png")
    refused(folder, r"bomb.png must be an image of at most \d+ pixels, got more; make it smaller")


def test_folders_without_images_are_refused(tmp_path):
    refused(tmp_path, r"must hold at least 20 images \(png, jpg, ...\), got 0; give more, or another folder")
    save_images(tmp_path / "one", [(9, 9)], 1)
    refused(tmp_path / "one", "must hold at least 20 images .* got 1")
    same = tmp_path / "same"
    same.mkdir()
    for k in range(20):
        Image.new("L", (8, 8), 3).save(same / f"{k}.png")
    refused(same, "must hold rows that differ, got 20 equal ones")


def test_a_name_cannot_break_the_line(tmp_path):
    path = tmp_path / "two\nlines.npy"
    np.save(path, np.zeros(3))
    refused(path, r"two\\nlines.npy' must hold an array of shape")


def test_a_table_without_pyarrow_names_its_extra(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r'a table needs pyarrow, .* run pip install "gkfast\[tables\]"'):
        data.load(str(write_csv(tmp_path / "homes.csv")))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"none.csv must be a folder of images or an existing .npy, .* got none"
    ):
        sources.read(tmp_path / "none.csv")
    assert os.listdir(tmp_path) == []
