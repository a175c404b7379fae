"""What a run says of itself: the verdict, bold figures, columns, curves, and what is shown while it trains."""

import html
import json
import re
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch

import gkfast.gan
from gkfast.gan import data, metrics, pictures, report, run, shown
from gkfast.gan.config import Config

# what would be run, drawn as a formula, or end a line
NAMES = ["<script>alert(1)</script>", "$x^$ & <b>", "two\nlines", "plain"]


def table(rows=80):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 4)) * [1e4, 1, 0.1, 1] + [3e4, 0, 0, 0]
    x[:, 2] = rng.integers(0, 2, rows)
    x[:, 3] = x[:, 1] + 0.1 * x[:, 3]
    columns = data.Columns.from_rows(x, NAMES)
    return data._split("<i>mine</i>", columns.standard(x).numpy(), None, columns=columns, note=columns.note())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder of a run on a table, and its figures."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        for name, size in (("SAMPLES", 300), ("COUNTED", 200), ("_TESTED", 50), ("_PERMUTATIONS", 20)):
            patch.setattr(metrics, name, size)
        # a picture at every snapshot
        patch.setattr(shown, "_BETWEEN", 0.0)
        config = Config.from_settings(data="<i>mine</i>", loss="gan+mmd", steps=6, batch=16)
        summary = run.run(table(), folder, config, progress=False)
    return folder, summary


def test_a_table_is_reported_column_by_column(finished):
    folder, summary = finished
    assert list(summary["columns"]) == ["real", "gan+mmd", "gan"]
    first = summary["columns"]["gan+mmd"][0]
    # in the units of the file
    assert 1e4 < first["mean"] < 5e4
    assert {*np.unique([column["least"] for column in summary["columns"]["gan"][2:3]])} <= {0, 1}
    for figures in (summary, summary["control"], summary["real"]):
        assert figures["mean_error"] >= 0
        assert figures["deviation_ratio"] >= 1
    assert summary["errors"].keys() >= {"mmd2", "mean_error", "manifold_recall"}
    page = (folder / "report.html").read_text()
    assert "<h2>Columns</h2>" in page
    assert "one of 2 whole numbers" in page
    assert "the worst mean of a column is" in page
    # samples can be given back without the data
    settings = json.loads((folder / "config.json").read_text())
    assert data.Columns(**settings["columns"]) == table().columns
    sampler = gkfast.gan.load(folder)
    assert (sampler.columns, sampler.table) == (NAMES, table().columns)
    drawn = sampler.sample(50, seed=1)
    assert 1e4 < drawn[:, 0].mean() < 5e4
    assert {*drawn[:, 2].tolist()} <= {0, 1}
    assert (folder / "progress.png").is_file()


def test_no_name_is_run_or_drawn_as_a_formula(finished):
    page = (finished[0] / "report.html").read_text()
    for name in (*NAMES[:2], "<i>mine</i>"):
        assert name not in page
        assert html.escape(name) in page
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)


def test_a_browser_shows_the_page(finished, browser):
    seen = browser(finished[0] / "report.html")
    assert "<script" not in seen
    assert "Bold is what is nearer to it" in seen
    assert len(re.findall("<img", seen)) == 4


def figures(**found):
    return {"mmd2": 0.01, "p_value": 0.01, "seconds": 3.0, "errors": {"mmd2": 0.001}, **found}


def summary(kernel, control, real=None):
    real = {"mmd2": 0.0, "density": 1.0, "p_value": 0.6} | (real or {})
    others = {"loss": "gan+mmd", "steps": 5, "judged_by": None, "real": real}
    return figures(**kernel) | others | {"control": figures(**control) | {"loss": "gan", "steps": 5}}


def test_one_near_run_does_not_speak_for_the_other():
    text = report._seen(summary({"mmd2": -1e-4, "p_value": 0.4}, {"mmd2": 0.2, "p_value": 0.002}))
    assert "too near" not in text
    assert "tells samples without the kernel from held-out data, and not those with the loss gan+mmd" in text
    assert "is smaller with the kernel: -0.0001 with the kernel, 0.2 without" in text
    assert "The permutation test tells neither from held-out data (p = 0.4 and 0.15)." in report._seen(
        summary({"p_value": 0.4}, {"p_value": 0.15})
    )
    assert "The permutation test tells both from held-out data" in report._seen(summary({}, {}))


def test_a_difference_within_the_error_is_called_that():
    within = report._seen(summary({"mmd2": 0.010}, {"mmd2": 0.012}))
    assert "differs by no more than the error of its estimate: 0.01 with the kernel, 0.012 without" in within
    assert "brings the squared MMD to held-out data down 3.0 times" in report._seen(summary({}, {"mmd2": 0.03}))
    near = report._seen(summary({"mmd2": 0.105}, {"mmd2": 0.1}))
    assert "The squared MMD to held-out data is larger with the kernel: 0.105 with the kernel, 0.1 without" in near
    assert "is 3.0 times larger" in report._seen(summary({"mmd2": 0.03}, {}))


def test_bold_is_what_is_nearer_to_the_real_data():
    # a collapsed generator has a high density
    both = summary({"density": 0.9, "p_value": 0.5}, {"density": 3.6, "p_value": 0.01})
    each = [both, both["control"], both["real"]]
    assert report._nearer("density", each) == 0
    assert report._nearer("mmd2", each) is None
    assert report._nearer("p_value", each) is None
    assert report._nearer("seconds", each) is None
    within = summary({"mmd2": 0.010}, {"mmd2": 0.012})
    assert report._nearer("mmd2", [within, within["control"], within["real"]]) is None
    page = report._table(both)
    assert page.count("class=best") == 1
    assert re.search("<td class=best>0.900</td><td>3.600</td>", page)
    assert "± 0.001" in page


def test_curves_show_what_falls_below_zero_and_name_their_rows():
    record = {"mmd2": 1e-7, "g_loss": 1.0, "k_xx": 0.5, "k_yy": 0.5, "k_xy": 0.5}
    histories = {"mmd": [{**record, "step": 1}, {**record, "step": 2, "mmd2": -3e-4}]}
    figure = pictures.curves_figure(histories, (500, 300))
    first = figure.axes[0]
    assert first.lines[0].get_ydata().tolist() == [1e-7, -3e-4]
    assert first.get_ylim()[0] < -3e-4
    assert first.get_ylabel() == "500 samples, 300 real rows; linear below 0.0003"
    assert [axis.get_ylabel() for axis in figure.axes[1:]] == ["loss of a batch", "mean kernel value"]


def test_axes_are_named():
    mine = table()
    rows = mine.train[:, 2:]
    plane = replace(mine, train=rows, test=rows, columns=replace(mine.columns, names=["a", "5 $"]), shape=(2,))
    for drawn, names in (
        (plane, ["a, scaled", r"5 \$, scaled"]),
        (mine, ["widest direction, of scaled columns", "second, of scaled columns"]),
    ):
        axis = pictures.samples_figure(drawn, {"mmd": drawn.train}).axes[0]
        assert [axis.get_xlabel(), axis.get_ylabel()] == names


def test_what_is_left_is_told():
    board = shown.Shown(table(), None, ["codes", "mmd", "gan"], {"mmd": 65.0, "gan": 7000.0}, False)
    assert board.begin("codes") == "codes, then mmd (65 s), gan (1 h 57 min):"
    assert board.begin("mmd") == "mmd, then gan (1 h 57 min):"
    assert board.begin("gan") == "gan:"
    assert [shown.duration(s) for s in (3.4, 130, 5900)] == ["3 s", "2 min", "98 min"]


def test_samples_come_to_tensorboard_while_training(tmp_path, monkeypatch):
    told = []

    class SummaryWriter:
        def __init__(self, folder):
            self.folder = folder

        def add_scalar(self, name, value, step):
            told.append((self.folder, name, step))

        def add_image(self, name, image, step, dataformats):
            told.append((self.folder, name, step))
            assert (image.shape[2], image.dtype, dataformats) == (3, np.uint8, "HWC")

        def flush(self):
            pass

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(shown, "_BETWEEN", 0.0)
    board = shown.Shown(table(), tmp_path, ["mmd"], {}, True)
    board.log("mmd")([{"step": 1, "mmd2": 0.5}])
    board.draw("mmd", [(0, table().train), (7, table().train)])
    folder = str(tmp_path / "tensorboard" / "mmd")
    assert told == [(folder, "step", 1), (folder, "mmd2", 1), (folder, "samples", 7)]
    assert (tmp_path / "progress.png").read_bytes()[:4] == b"\x89PNG"


def test_pictures_come_every_few_seconds_at_most(tmp_path):
    board = shown.Shown(table(), tmp_path, ["mmd"], {}, False)
    board.draw("mmd", [(0, table().train)])
    assert list(tmp_path.iterdir()) == []


def test_the_time_is_estimated_by_ten_steps_of_each_stage(monkeypatch):
    mine = table()
    state = torch.get_rng_state()
    config = Config.from_settings(data="mine", loss="gan+mmd", steps=200, batch=16)
    taken = run.estimate(mine, config)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(taken) == ["gan+mmd", "gan"]
    assert all(seconds > 0 for seconds in taken.values())
    assert re.fullmatch(
        r"generator: [\d,]+ weights, discriminator: [\d,]+ weights; about \d+ s by the time of 10 steps: "
        r"gan\+mmd \d+ s, gan \d+ s",
        run._sizes(mine, config, taken)[0],
    )
    # a run that is as short begins at once
    assert run.estimate(mine, config.changed(steps=99)) == {}
