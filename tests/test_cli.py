"""gkfast train: what a run leaves, and that nothing is written when it is refused."""

import json
import logging
import os
import re
import signal
import struct
import subprocess
import sys
import tomllib
from contextlib import nullcontext
from importlib.metadata import version

import numpy as np
import pytest
import torch
from PIL import Image

import gkfast
from gkfast.cli import main
from gkfast.gan import config, encoder, metrics
from gkfast.gan.checkpoint import Checkpoints, Signals
from gkfast.gan.config import DEFAULTS
from gkfast.gan.train import Training
from gkfast.kernels.cpu import compiled

pytestmark = pytest.mark.slow

FILES = [
    "checkpoints",
    "config.json",
    "curves.png",
    "generator.pt",
    "metrics.json",
    "metrics.jsonl",
    "progress.png",
    "report.html",
    "samples.png",
    "witness.png",
]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(encoder, "_JUDGE", (20, 16, 8, 4))
    # measuring takes most of so short a run
    for name, size in (("SAMPLES", 500), ("COUNTED", 200), ("_TESTED", 100), ("_PERMUTATIONS", 20)):
        monkeypatch.setattr(metrics, name, size)
    threads = torch.get_num_threads()
    yield
    # --threads is for the whole process
    torch.set_num_threads(threads)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def png_size(path):
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


def test_digits_run_is_complete(tmp_path, capsys):
    arguments = ["--data", "digits", "--loss", "gan+mmd", "--steps", "6", "--batch", "32", "--seed", "5"]
    arguments += ["--set", "space=data", "--set", "control_steps=0"]
    assert main(["train", *arguments]) == 0
    folder = tmp_path / "runs" / "digits-001"
    assert names(folder) == sorted([*FILES, "control.pt"])

    summary = json.loads((folder / "metrics.json").read_text())
    assert summary.keys() >= {"seconds", "steps", "seed", "loss", "data", "sigma", "control"}
    assert (summary["steps"], summary["seed"], summary["loss"], summary["data"]) == (6, 5, "gan+mmd", "digits")
    assert summary.keys() >= {"k_xx", "k_yy", "k_xy"}
    for figures in (summary, summary["control"], summary["real"]):
        assert figures.keys() >= {"mmd2", "p_value", "parzen", "classes", "class_kl", "coverage"}
    # six steps: far from the data, which score best
    assert summary["real"]["mmd2"] < 0.01 < summary["mmd2"]

    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["run"] for record in records] == ["gan+mmd"] * 6 + ["gan"] * 6

    for picture in ("samples.png", "curves.png", "progress.png", "witness.png"):
        width, height = png_size(folder / picture)
        assert width > 1000
        assert height > 300
    page = (folder / "report.html").read_text()
    assert len(re.findall('src="data:image/png;base64,', page)) == 4
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    for key in ("parzen", "mmd2"):
        form = ".1f" if key == "parzen" else ".5f"
        for figures in (summary, summary["control"]):
            assert format(figures[key], form) in page

    weights = torch.load(folder / "generator.pt", weights_only=True)
    assert all(w.isfinite().all() for w in weights["weights"].values())
    printed = capsys.readouterr()
    assert str(folder.relative_to(tmp_path)) in printed.out
    assert "6/6" in printed.err


def test_next_free_folder_and_no_control(tmp_path):
    (tmp_path / "runs" / "ring-004").mkdir(parents=True)
    arguments = ["train", "--data", "ring", "--steps", "2", "--batch", "16", "--no-control", "--loss", "gan+logkde"]
    assert main(arguments) == 0
    folder = tmp_path / "runs" / "ring-005"
    assert names(folder) == FILES
    summary = json.loads((folder / "metrics.json").read_text())
    assert "control" not in summary
    assert summary.keys() >= {"modes", "strict_modes", "high_quality", "reverse_kl", "mmd2"}


@pytest.mark.parametrize("shape", [(40, 1), (40, 5), (40, 6, 6), (40, 4, 4, 3), (20, 3), (20, 6, 6)])
def test_file_run_is_complete(tmp_path, shape):
    np.save("mine.npy", np.random.default_rng(0).normal(3, 2, shape))
    (tmp_path / "out").mkdir()
    # a batch larger than the rows to train on is cut to them where it was not asked for
    assert main(["train", "--data", "mine.npy", "--steps", "2", "--out", "out", "--no-control"]) == 0
    # FID is followed where images have no labels
    images = len(shape) > 2
    assert names(tmp_path / "out") == sorted([*FILES, *["quality.png"] * images])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["batch"] == 0.7 * shape[0]


def test_title_is_escaped(tmp_path):
    np.save("<b>.npy", np.random.default_rng(0).normal(size=(40, 2)))
    assert main(["train", "--data", "<b>.npy", "--steps", "1", "--out", "out", "--no-control"]) == 0
    assert "<b>" not in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--data", "none.npy"],
            "a folder of images or an existing .npy, .npz, .pt, .csv, .parquet file, got 'none.npy'",
        ),
        (["--data", "flat.npy"], "flat.npy must hold an array of shape (N, D...), got shape (40,)"),
        (["--out", "full"], "--out must be a new or empty folder, got 'full'"),
        (["--out", "flat.npy"], "--out must be a new or empty folder, got 'flat.npy'"),
        (["--out", "flat.npy/run"], "--out must be a folder that can be made, got 'flat.npy/run' (Not a directory)"),
        (["--steps", "0"], "--steps must be a whole number of at least 1, got '0'"),
        (["--steps", "1.5"], "--steps must be a whole number of at least 1, got '1.5'"),
        (["--batch", "1"], "--batch must be a whole number of at least 2, got '1'"),
        (["--batch", "1001"], "--batch must be at most the 1000 samples to train on, got 1001"),
        (["--lr", "nan"], "--lr must be a positive finite number, got 'nan'"),
        (["--lr", "0"], "--lr must be a positive finite number, got '0'"),
        (["--lam", "-1"], "--lam must be a finite number of at least 0, got '-1'"),
        (["--seed", "-1"], "--seed must be a whole number of at least 0, got '-1'"),
        (["--sigma", "0,1"], "--sigma must be median, mean, or positive numbers, got '0,1'"),
        (["--sigma", "1", "x"], "--sigma must be median, mean, or positive numbers, got '1 x'; for example"),
        (["--loss", "wgan"], "loss must be an adversary or critic (gan, rpgan, hinge, article, mmdgan, repulsive, "),
        (["--loss", "wgan"], "or one of each as in gan+mmd, got 'wgan'; did you mean gan?"),
        (["--loss", "gan+gan"], "or one of each as in gan+mmd, got 'gan+gan'; choose among them"),
        (["--loss", "mmd+gan"], "loss must name the adversary or critic first, got 'mmd+gan'; write gan+mmd"),
        (
            ["--loss", "literal"],
            "loss must have an adversary beside literal, which is 0, got 'literal'; write article",
        ),
        (["--loss", "nowhere:energy"], "loss must be module:function, a function that Python can import, got"),
        (["--loss", "gan+math:pi"], "loss must be a function of generated and real rows, or one that returns an Obj"),
        (["--loss", "gan+json:dumps"], "loss must take generated and real rows, here (16, 64) of each, got an error"),
        (["--threads", "0"], "--threads must be a whole number of at least 1, got '0'"),
        (["--device", "tpu"], "device must be cpu or cuda, got 'tpu'"),
        (["--stpes", "3"], "unrecognized arguments: --stpes 3"),
        (["--set", "lam"], "--set must be key=value, got 'lam'; for example --set lam=30"),
        (["--set", "lamb=3"], "settings must be known ones, got 'lamb'; did you mean lam?"),
        (["--set", "steps=2.5"], "steps must be a whole number, got 2.5; correct it in --config or --set"),
        (["--set", "ladder=[1,-2]"], "ladder must be positive finite numbers, got [1.0, -2.0]"),
        (["--set", "ema=1"], "ema must lie between 0 and 1, got 1.0"),
        (["--set", "r1=1e10"], "r1 must be at most 1e+09, got 10000000000.0; correct it"),
        (["--seed", str(2**64)], "seed must be at most 9.22337e+18, got 18446744073709551616; correct it"),
        (["--set", "network=unet"], "network must be mlp or dcgan, got 'unet'"),
        (["--data", "ring", "--set", "network=dcgan"], 'network must be "mlp" for data that are no images'),
        (["--config", "none.toml"], "--config must be a TOML file of settings, got 'none.toml'"),
        (["--config", "flat.npy"], "--config must be a TOML file of settings, got 'flat.npy'"),
        (["--resume"], "--out must be the folder to resume, got none, and runs/ holds no run; name it"),
        (["--data", "text.csv"], "text.csv must hold numbers, got 'x' in row 1 of column 'b'; give each category"),
        (["--data", "full"], "full must hold at least 20 images (png, jpg, ...), got 0; give more"),
        (["--data", "bad/<script>.npy"], "bad/<script>.npy must hold an array of shape (N, D...), got shape (40,)"),
        (["--set", "image_size=3"], "image_size must be 0 or at least 4, got 3"),
        (["--features", "nowhere:x"], "--features must be module:function, a function that Python can import"),
        (["--set", "tensorboard=true"], "tensorboard=true needs tensorboard, which is not installed"),
        (["--resume", "--out", "full"], "--out must be a run folder with a config.json to resume, got 'full'"),
    ],
)
def test_refusal_is_one_sentence_and_writes_nothing(tmp_path, capsys, monkeypatch, arguments, message):
    np.save("flat.npy", np.arange(40.0))
    (tmp_path / "full").mkdir()
    (tmp_path / "bad").mkdir()
    np.save("bad/<script>.npy", np.arange(40.0))
    (tmp_path / "text.csv").write_text("a,b\n" + "1,x\n" * 30)
    (tmp_path / "full" / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(SystemExit) as stop:
        main(["train", *arguments])
    assert stop.value.code == 2
    assert sorted(tmp_path.rglob("*")) == before
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert message in said.err


def test_folders_of_images_have_their_recipe(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ("cats", "<script>alert(1)"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in range(15):
            Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(tmp_path / "photos" / name / f"{k}.png")
    assert main(["train", "--data", "photos", "--dry-run", "--steps", "20", "--set", "encoder_steps=2"]) == 0
    said = capsys.readouterr().out
    settings = tomllib.loads(said)
    assert settings.items() >= {"loss": DEFAULTS["mnist"]["loss"], "ema": 0.999, "steps": 20, "image_size": 0}.items()
    assert "60 x 40 pixels, of which the middle square is resized to 32 x 32; --set image_size=64 gives" in said
    short = ["--steps", "2", "--set", "encoder_steps=2", "--set", "code_steps=0", "--no-control", "--set", "units=8"]
    assert main(["train", "--data", "photos", *short, "--out", "out"]) == 0
    summary = json.loads((tmp_path / "out" / "metrics.json").read_text())
    # the folders are classes
    assert summary["judged_by"].startswith("a classifier of the real labels")
    assert summary["real"].keys() >= {"classes", "fid", "raw_precision"}
    assert "<script" not in (tmp_path / "out" / "report.html").read_text()
    assert "photos: 30 colour images" in capsys.readouterr().err


def test_numbers_of_sigma_may_stand_apart(tmp_path):
    common = ["train", "--data", "ring", "--dry-run", "--steps", "5"]
    for given in (["0.5", "1"], ["0.5,1"], ["0.5,", "1"]):
        assert main([*common, "--sigma", *given]) == 0


def test_resume_finds_the_newest_run_and_says_when_it_was_finished(tmp_path, capsys):
    common = ["train", "--data", "ring", "--batch", "16", "--no-control", "--steps", "2"]
    assert main(common) == 0
    assert main([*common, "--seed", "7"]) == 0
    os.utime("runs/ring-001/config.json", (0, 0))
    capsys.readouterr()
    assert main(["train", "--resume"]) == 0
    said = capsys.readouterr()
    assert "going on with runs/ring-002, the newest run" in said.err
    assert "runs/ring-002 was finished before, with all 2 steps: nothing is left to train" in said.err
    assert "runs/ring-002: report.html" in said.out


def test_many_processes_want_one_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        main(["train", "--data", "ring", "--steps", "1"])
    assert "--out must be given to 2 processes, got none; name the folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--resume"])
    assert "--out must be given to 2 processes, got none; name the folder to resume" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_missing_extra_is_named_before_anything_is_written(tmp_path, capsys, monkeypatch):
    # None in sys.modules is how Python marks what must not be imported
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(SystemExit) as stop:
        main(["train", "--steps", "1"])
    assert stop.value.code == 2
    assert 'pip install "gkfast[train]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_divergence_is_one_sentence(tmp_path, capsys):
    arguments = ["--steps", "50", "--batch", "16", "--lr", "1e30", "--set", "space=data", "--out", "out"]
    assert main(["train", *arguments]) == 1
    # the progress line comes first
    assert "finite, got" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "out" / "metrics.jsonl").is_file()


def test_interruption_is_one_sentence(capsys, monkeypatch):
    from gkfast.gan import run

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(run, "run", interrupted)
    assert main(["train", "--data", "ring", "--out", "out"]) == 128 + signal.SIGTERM
    said = "gkfast train: stopped by SIGTERM; go on with gkfast train --resume --out out"
    assert capsys.readouterr().err.splitlines() == ["", said]


def test_settings_come_from_the_file_and_then_the_command_line(tmp_path, capsys):
    (tmp_path / "mine.toml").write_text('data = "ring"\nsteps = 7\nlam = 3\nladder = [1, 2]\nspectral = true\n')
    arguments = ["--config", "mine.toml", "--steps", "9", "--set", "lam=4", "--set", "loss=rpgan+mmd", "--dry-run"]
    assert main(["train", *arguments]) == 0
    said = capsys.readouterr().out
    settings = tomllib.loads(said)
    expected = {"data": "ring", "steps": 9, "lam": 4.0, "ladder": [1.0, 2.0], "spectral": True, "loss": "rpgan+mmd"}
    assert {name: settings[name] for name in expected} == expected
    # what is printed is a file for --config, with a preview in comments
    (tmp_path / "printed.toml").write_text(said)
    assert main(["train", "--config", "printed.toml", "--dry-run"]) == 0
    assert capsys.readouterr().out == said
    assert "# mean kernel values before training: generated 0." in said
    assert names(tmp_path) == ["mine.toml", "printed.toml"]


def test_a_bandwidth_that_underflows_is_no_secret(tmp_path, capsys):
    common = ["train", "--data", "ring", "--loss", "mmd", "--steps", "1", "--batch", "16", "--no-control"]
    assert main([*common, "--sigma", "1e-7", "--out", "narrow"]) == 0
    said = capsys.readouterr().err
    assert "sigma should be wider, got 1e-07 with a mean kernel value of 0.0e+00 between real samples" in said
    assert json.loads((tmp_path / "narrow" / "metrics.json").read_text())["k_yy"] == 0
    assert main([*common, "--out", "default"]) == 0
    assert "sigma should be wider" not in capsys.readouterr().err


def test_kernel_off_is_the_control(tmp_path):
    common = ["train", "--data", "ring", "--loss", "gan+mmd", "--steps", "3", "--batch", "16"]
    assert main([*common, "--out", "both"]) == 0
    assert main([*common, "--kernel-off", "--out", "off"]) == 0
    both, off = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("both", "off"))
    assert (off["loss"], both["loss"]) == ("gan", "gan+mmd")
    assert off["mmd2"] == both["control"]["mmd2"] != both["mmd2"]


def test_resume_takes_the_settings_of_the_folder(tmp_path, capsys):
    common = ["train", "--data", "ring", "--batch", "16", "--no-control"]
    assert main([*common, "--steps", "4", "--set", "ema=0.9", "--out", "out"]) == 0
    first = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert main(["train", "--resume", "--out", "out"]) == 0
    again = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert first == again
    with pytest.raises(SystemExit):
        main(["train", "--resume", "--out", "out", "--steps", "5"])
    assert "steps must be 4 to resume from" in capsys.readouterr().err
    # a refusal changes nothing
    assert main(["train", "--resume", "--out", "out"]) == 0


RESUMED = ["train", "--resume", "--out", "out"]


def contents(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def figures(folder):
    summary = json.loads((folder / "metrics.json").read_text())
    for part in (summary, summary.get("control", {})):
        part.pop("seconds", None)
    return summary


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A run that ended, and the same one in "out", stopped in the middle of its second part."""
    arguments = ["train", "--data", "ring", "--loss", "gan+mmd", "--steps", "6", "--batch", "16"]
    assert main([*arguments, "--out", "whole"]) == 0
    advance, steps = Training.advance, []

    def advancing(training):
        record = advance(training)
        steps.append(training.step)
        if len(steps) == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return record

    with monkeypatch.context() as patch:
        patch.setattr(Training, "advance", advancing)
        assert main([*arguments, "--out", "out"]) == 128 + signal.SIGTERM
    assert names(tmp_path / "out" / "checkpoints") == ["control", "generator"]
    assert max(Checkpoints(tmp_path / "out" / "checkpoints" / "control").steps()) == 3
    return tmp_path / "whole", tmp_path / "out"


def refused(arguments, capsys, message):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert message in said


def assert_same_bits(whole, resumed):
    for name in ("generator.pt", "control.pt"):
        a, b = (torch.load(folder / name, weights_only=True) for folder in (whole, resumed))
        assert a["layers"] == b["layers"]
        assert all(torch.equal(a["weights"][key], b["weights"][key]) for key in a["weights"])
    for name in ("samples.png", "witness.png", "progress.png"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes()


def test_a_refused_resume_changes_nothing(begun, capsys):
    whole, out = begun
    before = contents(out)
    newest = "out/checkpoints/generator/step-000000006.pt"
    for asked, name, was, now in (
        # torch's own sums round otherwise with another number
        (["--threads", "2"], "threads", 1, 2),
        (["--steps", "7"], "steps", 6, 7),
        (["--batch", "8"], "batch", 16, 8),
        (["--seed", "1"], "seed", 0, 1),
        (["--lam", "2"], "lam", None, 2.0),
        (["--lr", "0.5"], "generator_rate", 0.001, 0.5),
        (["--sigma", "0.5,1"], "sigma", "'median'", [0.5, 1.0]),
        (["--data", "grid"], "data must be the rows that", "", None),
        (["--set", "r1=0.5"], "r1", 0.0, 0.5),
        (["--set", "ema=0.5"], "ema", 0.999, 0.5),
        (["--set", "units=32"], "units", 128, 32),
        # with one that may change
        (["--set", "keep=1", "--set", "clip=1"], "clip", 0.0, 1.0),
        (["--kernel-off"], "loss", "'gan+mmd'", "'gan'"),
    ):
        message = name if now is None else f"{name} must be {was} to resume from {newest}, got {now}; resume with"
        refused([*RESUMED, *asked], capsys, message)
        assert contents(out) == before
    assert main(RESUMED) == 0
    assert_same_bits(whole, out)
    assert figures(whole) == figures(out)


def test_what_no_bit_depends_on_may_change(begun):
    whole, out = begun
    arguments = [*RESUMED, "--set", "keep=1", "--set", "checkpoint_every=2", "--set", "tensorboard=false"]
    assert main([*arguments, "--no-control"]) == 0
    assert json.loads((out / "config.json").read_text())["control"] is False
    # and back: the control goes on from where it was
    assert main([*RESUMED, "--set", "control=true"]) == 0
    assert Checkpoints(out / "checkpoints" / "control").steps() == [6]
    assert_same_bits(whole, out)
    settings = json.loads((out / "config.json").read_text())
    assert (settings["keep"], settings["checkpoint_every"], settings["control"]) == (1, 2, True)
    assert figures(out) == figures(whole) | {"keep": 1, "checkpoint_every": 2}


def test_checkpoints_say_how_a_run_began(begun, capsys):
    """A config.json that says something else, as an edit leaves it, is put right by the command line."""
    whole, out = begun
    settings = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(settings | {"threads": 2}))
    before = contents(out)
    refused(RESUMED, capsys, "threads must be 1 to resume from out/checkpoints/generator/step-000000006.pt, got 2")
    assert contents(out) == before
    assert main([*RESUMED, "--threads", "1"]) == 0
    assert_same_bits(whole, out)


def test_the_second_part_is_checked_before_the_first_goes_on(begun, capsys):
    _, out = begun
    path = Checkpoints(out / "checkpoints" / "control").path(3)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    before = contents(out)
    refused(RESUMED, capsys, "step-000000003.pt must be a whole checkpoint")
    assert contents(out) == before
    path.write_bytes(whole)
    assert main(RESUMED) == 0


@pytest.mark.parametrize("change", [lambda x: x[:-1], lambda x: x[::-1], lambda x: x[:, :1], lambda x: x + 0.01])
def test_other_data_are_refused(tmp_path, capsys, change):
    rows = np.random.default_rng(0).normal(size=(60, 2))
    np.save("mine.npy", rows)
    common = ["train", "--data", "mine.npy", "--batch", "16", "--steps", "2", "--no-control", "--out", "out"]
    assert main(common) == 0
    before = contents(tmp_path / "out")
    np.save("mine.npy", change(rows))
    refused(RESUMED, capsys, "data must be the rows that out/checkpoints/generator/step-000000002.pt was trained on")
    assert contents(tmp_path / "out") == before
    # in another precision they are the same
    np.save("mine.npy", rows.astype(np.float32))
    assert main(RESUMED) == 0


def test_a_run_without_a_checkpoint_keeps_its_settings(tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Training, "advance", lambda training: os.kill(os.getpid(), signal.SIGTERM) or os._exit(1))
        patch.setattr(Signals, "held", lambda signals: nullcontext())
        assert (
            main(["train", "--data", "ring", "--batch", "16", "--steps", "2", "--no-control", "--out", "out"]) == 143
        )
    before = contents(tmp_path / "out")
    refused([*RESUMED, "--steps", "3"], capsys, "steps must be 2 to resume from out/config.json, got 3; resume with")
    assert contents(tmp_path / "out") == before
    assert main(RESUMED) == 0


def test_help_and_version_do_not_load_torch():
    for argument in ("--help", "--version"):
        code = (
            "import sys; from gkfast.cli import main\n"
            f"try: main([{argument!r}])\n"
            "finally: assert not {'torch', 'numba', 'sklearn', 'matplotlib'} & sys.modules.keys()"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert (version("gkfast") if argument == "--version" else "train") in done.stdout


def test_after_compile_no_call_compiles(capsys):
    level = logging.getLogger("gkfast").level
    assert main(["compile"]) == 0
    assert logging.getLogger("gkfast").level == level
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("compiling takes 20 to 30 s where nothing is on disk yet")
    assert len(said) == 24
    assert "1/22  rbf, float32" in said[1]
    assert said[-1] == f"kept in {compiled.folder()}"
    before = compiled.compiled_here()
    for dtype in (torch.float32, torch.float64):
        x, y = (torch.randn(3, 5, 3, dtype=dtype).requires_grad_() for _ in range(2))
        sigma, weights = torch.tensor([1.0, 2.0]).requires_grad_(), torch.tensor([1.0, 0.5]).requires_grad_()
        values = (
            gkfast.rbf(x, y, sigma, weights=weights),
            gkfast.rbf(x, sigma=2.0),
            gkfast.rbf_matmul(x, y, y, sigma),
            gkfast.rbf_matmul(x, y, y[..., :1], 1.0),
            gkfast.log_density(x, y, sigma),
            gkfast.score(x, y, sigma),
            gkfast.mmd2(x, y, sigma, weights=weights),
            gkfast.mmd2(x, y, 1.0),
            *gkfast.kernel_means(x, y, sigma),
        )
        leaves = (x, y, sigma, weights)
        first = torch.autograd.grad(sum(value.square().sum() for value in values), leaves, create_graph=True)
        torch.autograd.grad(sum(gradient.square().sum() for gradient in first), leaves)
        gkfast.log_density(x.detach(), y.detach(), 1.0)
    assert compiled.compiled_here() == before


def test_info_says_what_runs_here(capsys):
    assert main(["info"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(lines) == ["gkfast", "packages", "processor", "CPU", "threads", "cache", "GPU", "precision"]
    assert lines["gkfast"].startswith(version("gkfast"))
    assert f"torch {torch.__version__}" in lines["packages"]
    assert re.search(r"vectors of (128|256|512) bits", lines["CPU"])
    assert lines["threads"].startswith(f"{torch.get_num_threads()}, ")
    assert re.search(r"\d+ files, [\d.]+ MiB", lines["cache"])


@pytest.mark.parametrize(
    ("data", "loss", "rate"),
    [
        ("ring", "mmd", 8e-3),
        ("ring", "gan+mmd", 1e-3),
        ("ring", "gmmn", 1e-3),
        ("grid", "rpgan", 1e-3),
        ("mnist", "rpgan+gmmn", 1e-3),
        ("mnist", "rpgan", 4e-3),
    ],
)
def test_rates_suit_the_loss(data, loss, rate):
    assert config.resolve(None, {"data": data, "loss": loss}, []).recipe.generator_rate == rate
    assert config.resolve(None, {"data": data, "loss": loss, "generator_rate": 0.5}, []).recipe.generator_rate == 0.5
