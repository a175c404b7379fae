"""gkfast sample, gkfast.gan.load and gkfast eval: what they write, what they find, and what they refuse."""

import json
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gkfast
from gkfast.cli import main
from gkfast.gan import config, data, networks, run, sampler
from gkfast.gan.checkpoint import write_tensors
from gkfast.gan.sampler import Sampler

Image = pytest.importorskip("PIL.Image", reason='images need pip install "gkfast[train]"')


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def mlp(outputs):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, outputs), networks.Affine(torch.tensor(2.0), torch.ones(()))
        return nn.Sequential(*layers)


@pytest.fixture
def points():
    """points.pt: a generator of points in the plane, without a run."""
    made = Sampler(mlp(2), 2, (2,), (-1.0, 3.0), columns=["left", "right"])
    sampler.save(Path("points.pt"), made)
    return made


@pytest.fixture
def images():
    """images.pt: a generator of 8 x 8 images in [0, 1]."""
    made = Sampler(nn.Sequential(mlp(64), nn.Sigmoid()), 2, (8, 8), image=True)
    sampler.save(Path("images.pt"), made)
    return made


def refused(arguments, capsys, message):
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1, said.err
    assert message in said.err
    assert sorted(Path().rglob("*")) == before


# ---- the file of a generator ----


def small(name, **more):
    rng = torch.Generator().manual_seed(0)
    shape = {"ring": (2,), "digits": (8, 8)}[name]
    x = torch.rand(60, int(np.prod(shape)), generator=rng)
    return data.Data(name, x[:40], x[40:50], x[50:], shape, unit_range=len(shape) > 1, **more)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ring", {"loss": "mmd"}),
        ("digits", {}),
        ("digits", {"network": "dcgan", "units": 8}),
        ("digits", {"space": "encoder", "code": 3, "loss": "gan+mmd"}),
        ("digits", {"space": "encoder", "code": 2, "noise_dim": 2, "code_prior": "kernel", "loss": "gan+mmd"}),
    ],
)
def test_every_network_of_a_run_is_one_file(name, settings, tmp_path):
    chosen = config.Config.from_settings(**settings)
    real = small(name)
    network = run.build(real, chosen)[0]
    made = sampler.of_training(network, real, chosen.recipe.noise_dim)
    sampler.save(tmp_path / "generator.pt", made)
    found = gkfast.gan.load(tmp_path)
    assert found.shape == real.shape
    assert found.image == real.is_image
    assert torch.equal(found.sample(7, seed=3), made.sample(7, seed=3))
    assert not any(weight.requires_grad for weight in found.parameters())
    noise = gkfast.gan.generate_data(5, chosen.recipe.noise_dim)
    torch.testing.assert_close(found(noise).flatten(1), networks.sample(network, noise))


def test_a_seed_fixes_the_samples(points):
    found = gkfast.gan.load("points.pt")
    assert torch.equal(found.sample(5000, seed=1), found.sample(5000, seed=1))
    assert not torch.equal(found.sample(5, seed=1), found.sample(5, seed=2))
    assert found.sample(0).shape == (0, 2)
    assert (found.range, found.columns) == ((-1.0, 3.0), ["left", "right"])
    with pytest.raises(ValueError, match=r"n must be a whole number of at least 0, got -1"):
        found.sample(-1)
    with pytest.raises(ValueError, match="network must have layers among Sequential, Affine"):
        sampler.save(Path("x.pt"), Sampler(nn.Sequential(nn.Dropout()), 2, (3,)))


class Evil:
    def __reduce__(self):
        return (open, ("executed", "w"))


def test_nothing_in_a_file_is_executed(points, capsys, tmp_path):
    torch.save({"weights": Evil()}, "evil.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "text.pt").write_text("text")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "points.pt").read_bytes()[:-500])
    held = torch.load("points.pt", weights_only=True)
    write_tensors(tmp_path / "layer.pt", {**held, "layers": ["Lambda", {}]})
    write_tensors(tmp_path / "shape.pt", {**held, "shape": [3]})
    # more weights than there is memory, which the file does not hold
    large = ["Linear", {"in_features": 1 << 30, "out_features": 1 << 30}]
    write_tensors(tmp_path / "large.pt", {**held, "layers": large})
    for name in ("evil", "pickle", "text", "cut", "layer", "shape", "large"):
        refused(["sample", f"{name}.pt", "--out", "x.npy"], capsys, "run must have a generator.pt of gkfast, whole")
    assert not (tmp_path / "executed").exists()


# ---- gkfast sample ----


def test_samples_are_written_as_asked(points, images, tmp_path, capsys):
    assert main(["sample", "points.pt", "-n", "5", "--seed", "2", "--out", "new/x.npy"]) == 0
    expected = points.sample(5, seed=2).numpy()
    np.testing.assert_array_equal(np.load("new/x.npy"), expected)
    assert main(["sample", "points.pt", "-n", "5", "--seed", "2", "--out", "x.csv"]) == 0
    assert (tmp_path / "x.csv").read_text().splitlines()[0] == "left,right"
    np.testing.assert_array_equal(np.loadtxt("x.csv", delimiter=",", skiprows=1, dtype=np.float32), expected)
    assert main(["sample", "images.pt", "-n", "12", "--out", "pictures/"]) == 0
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [f"{k:02}.png" for k in range(12)]
    with Image.open("pictures/03.png") as image:
        levels = np.asarray(image)
    np.testing.assert_allclose(levels / 255, images.sample(12)[3].numpy(), atol=0.5 / 255 + 1e-6)
    assert capsys.readouterr().out.splitlines()[0] == "new/x.npy: 5 samples of shape (2,), seed 2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--out", "x.npy"], "run must be the folder of a run that has ended, or its generator.pt"),
        (["points.pt", "--out", "x.txt"], "--out must end in .npy or .csv, or be a folder for images, got 'x.txt'"),
        (["points.pt", "--out", "folder/"], "--out must end in .npy or .csv for samples that are no images, got"),
        (["images.pt", "--out", "full"], "--out must be a new or empty folder, got 'full'; name another one"),
        (["points.pt", "--out", "x.npy", "-n", "0"], "-n must be a whole number of at least 1, got '0'"),
        (
            ["points.pt", "--out", "x.npy", "-n", "1" + 15 * "0"],
            "-n must be a number of samples that fits into memory",
        ),
        (
            ["points.pt", "--out", "points.pt/x.npy"],
            "--out must be where a folder can be made, got 'points.pt/x.npy'",
        ),
        (["points.pt", "--out", "x.npy", "--seed", "x"], "--seed must be a whole number of at least 0, got 'x'"),
    ],
)
def test_bad_requests_for_samples(arguments, message, points, images, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    refused(["sample", *arguments], capsys, message)


@pytest.mark.slow
def test_a_run_leaves_its_generator(tmp_path):
    np.save("mine.npy", np.random.default_rng(0).normal(3, 2, (60, 5)))
    assert main(["train", "--data", "mine.npy", "--loss", "gan+mmd", "--steps", "2", "--out", "out"]) == 0
    (tmp_path / "mine.npy").unlink()
    generator, control = gkfast.gan.load("out"), gkfast.gan.load("out/control.pt")
    assert generator.sample(3).shape == control.sample(3).shape == (3, 5)
    assert not torch.equal(generator.sample(3), control.sample(3))
    assert main(["sample", "out", "-n", "30", "--out", "fake.csv"]) == 0
    # a name that is no markup in the page, and no formula in a picture
    (tmp_path / "fake.csv").rename("$a$<script>.csv")
    np.save("mine.npy", np.random.default_rng(0).normal(3, 2, (60, 5)))
    assert main(["eval", "mine.npy", "$a$<script>.csv", "--out", "report"]) == 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<script" not in page
    assert "$a$&lt;script&gt;.csv against mine.npy" in page
    assert len(re.findall('src="data:image/png;base64,', page)) == 2


# ---- gkfast eval ----


def table(path, rows, names=("a", "b")):
    lines = [",".join(names), *(",".join(map(repr, row)) for row in rows.tolist())]
    Path(path).write_text("\n".join(lines) + "\n")


def figures(arguments, capsys):
    assert main(["eval", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_tables_are_compared_in_units_of_their_deviation(rng, capsys):
    x = rng.normal(size=(400, 2)) * [1, 1000]
    table("real.csv", x[:200])
    table("same.csv", x[200:])
    # the columns in another order
    table("turned.csv", x[200:, ::-1], ("b", "a"))
    table("other.csv", x[200:] * [2, 1])
    same, turned, other = (figures(["real.csv", f"{n}.csv"], capsys) for n in ("same", "turned", "other"))
    assert same["p_value"] > 0.05 > other["p_value"]
    assert {**turned, "fake": same["fake"]} == same
    low, high = same["mmd2_interval"]
    assert low < 0 < high
    assert other["mmd2_interval"][0] > 0
    assert other["rows_compared"]["mmd2"] == [200, 200]
    standard = [torch.from_numpy((part - x[:200].mean(0)) / x[:200].std(0, ddof=1)) for part in (x[:200], x[200:])]
    truth = gkfast.mmd2_and_variance(standard[1], standard[0], same["sigma"], weights=[1 / 6] * 6)
    assert same["mmd2"] == pytest.approx(float(truth.mmd2), rel=1e-3)


def test_arrays_and_folders_are_compared(rng, capsys, tmp_path):
    x = (rng.uniform(size=(60, 8, 8, 3)) * 255).astype(np.uint8)
    for name, part in (("real", x[:30]), ("fake", x[30:])):
        (tmp_path / name).mkdir()
        for k, image in enumerate(part):
            Image.fromarray(image).save(tmp_path / name / f"{k}.png")
    folders = figures(["real", "fake", "--image-size", "8"], capsys)
    assert folders["compared"] == "pixels"
    np.save("real.npy", x[:30] / 255)
    # a folder takes the size of an array
    assert figures(["real.npy", "fake"], capsys)["mmd2"] == pytest.approx(folders["mmd2"], abs=1e-3)


def test_a_browser_shows_a_comparison(rng, capsys, tmp_path, browser):
    x = rng.normal(size=(200, 2))
    table("<b>real.csv", x[:100], ("<i>a", "b"))
    table("fake.csv", x[100:] + 3, ("<i>a", "b"))
    assert main(["eval", "<b>real.csv", "fake.csv", "--out", "page"]) == 0
    seen = browser(tmp_path / "page" / "report.html")
    assert "The two are told apart" in seen
    assert not re.search("<script|<b>real|<i>a", seen)
    assert len(re.findall("<img", seen)) == 2


def test_features_of_ones_own(rng, capsys, tmp_path):
    (tmp_path / "seen.py").write_text(
        "import torch\n"
        "def mean(images):\n    assert images.shape[1:] == (1, 8, 8)\n    return images.flatten(1)[:, :4]\n"
        "def network():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))\n"
        "def odd(images):\n    return images.log() * 0\n"
        "def wrong(images):\n    return images[:1]\n"
        "def broken(images):\n    raise RuntimeError('no\\nluck')\n"
        "number = 3\n"
    )
    np.save("a.npy", rng.uniform(size=(50, 8, 8)))
    np.save("b.npy", rng.uniform(size=(40, 8, 8)) ** 4)
    found = figures(["a.npy", "b.npy", "--features", "seen:mean"], capsys)
    assert found["compared"] == "features of seen:mean"
    assert found["fid"] > 0
    assert main(["eval", "a.npy", "b.npy", "--features", "seen:network", "--out", "report"]) == 0
    assert "Fréchet distance of the features" in (tmp_path / "report" / "report.html").read_text()
    assert "told apart" in capsys.readouterr().out
    np.save("b.npy", np.zeros((40, 8, 8)) + np.eye(8) * np.arange(40)[:, None, None])
    for name, message in (
        ("odd", "--features must give a row of finite numbers for each sample, got NaN or infinity"),
        ("wrong", "--features must give a row of finite numbers for each sample, got shape (1, 1, 8, 8)"),
        ("broken", "got RuntimeError: no luck from 'seen:broken'"),
        ("number", "--features must be a function of a batch, or return a torch.nn.Module, got 'seen:number', 3"),
        ("none", "--features must be module:function, a function that Python can import, got 'seen:none'"),
    ):
        refused(["eval", "a.npy", "b.npy", "--features", f"seen:{name}"], capsys, message)


def test_parquet_is_read_where_arrow_is(rng, capsys, tmp_path, monkeypatch):
    table("real.csv", rng.normal(size=(50, 2)))
    (tmp_path / "x.parquet").write_text("none")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    refused(["eval", "real.csv", "x.parquet"], capsys, "a table needs pyarrow, which is not installed")


BAD = {
    "text.csv": ("a,b\n1,2\n" * 30, "must hold numbers, got 'a' in row 2 of column 'a'; give each category a number"),
    "nan.csv": (
        "a,b\n" + "1,2\n" * 29 + "nan,3\n",
        "must have a number in every cell, got 1 empty ones in column 'a'",
    ),
    "one.csv": ("a,b\n1,2\n", "must hold at least 20 rows, got 1; give more samples"),
    "empty.csv": ("", "must be a CSV table with a name for each column, got what"),
    "ragged.csv": (
        "a,b\n" + "1,2\n" * 29 + "3\n",
        "must be a CSV table with a name for each column, got what",
    ),
    "equal.csv": ("1,2\n" * 30, "must hold rows that differ, got 30 equal ones"),
    "bytes.csv": (b"\xff\xfe\x00" * 9, "must be a CSV table with a name for each column, got what"),
    "three.csv": ("1,2,3\n4,5,6\n" * 15, "FAKE must have samples of the shape of REAL's, (2,), got (3,)"),
    "names.csv": ("a,c\n" + "1,2\n4,5\n" * 15, "FAKE must have the 2 columns of REAL, got without 'b'"),
    "no.npy": ("text", "must be a .npy, .npz or .pt file of plain numbers, got what cannot be loaded without pickle"),
    "missing.csv": (None, "FAKE must be an existing .npy, .npz, .pt, .csv or .parquet file, a folder of images, or"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_one_sentence(name, rng, tmp_path, capsys):
    content, message = BAD[name]
    table("real.csv", rng.normal(size=(50, 2)))
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(["eval", "real.csv", name, "--out", "report"], capsys, message)


def test_bad_folders_are_one_sentence(rng, tmp_path, capsys, monkeypatch):
    table("real.csv", rng.normal(size=(50, 2)))
    for name in ("empty", "text", "bomb"):
        (tmp_path / name).mkdir()
    for k in range(30):
        (tmp_path / "text" / f"{k}.png").write_text("text")
        Image.new("L", (40, 40)).save(tmp_path / "bomb" / f"{k}.png")
    refused(["eval", "empty", "real.csv"], capsys, "empty must hold at least 20 images (png, jpg, ...), got 0")
    refused(["eval", "text", "real.csv"], capsys, "must be an image that Pillow can read, got something else")
    # a picture that is far larger than its file, as Pillow sees it
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    refused(["eval", "bomb", "real.csv"], capsys, "must be an image of at most")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "mine").touch()
    refused(["eval", "real.csv", "real.csv", "--out", "report"], capsys, "--out must be a new or empty folder")
    refused(
        ["eval", "real.csv", "real.csv", "--image-size", "1"], capsys, "--image-size must be a whole number of at"
    )
    refused(
        ["eval", "real.csv", "real.csv", "--out", "real.csv/x"], capsys, "--out must be where a folder can be made"
    )
