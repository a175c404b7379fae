"""The table of bench/gan_quality.py: means, standard errors, and which bars are reached; and bench/gan_steps.py."""

import csv

import pytest

from bench import gan_quality, gan_steps
from gkfast.gan import data
from gkfast.gan.config import Config


def rows(kernel_modes, gan_modes):
    common = {"mmd2": 0.001, "p_value": 0.5, "coverage": 0.9, "seconds": 20.0, "steps": 100, "reverse_kl": 0.1}
    runs = (("kernel", "mmd", kernel_modes), ("gan", "gan", gan_modes), ("rpgan", "rpgan", gan_modes))
    return [
        {"data": "stacked", "run": kind, "loss": loss, "seed": seed, "modes": modes, **common}
        for kind, loss, found in runs
        for seed, modes in enumerate(found)
    ]


def test_means_and_standard_errors():
    mean, error = gan_quality.means(rows([990, 1000, 980], [700] * 3), "stacked", "kernel")["modes"]
    assert mean == 990
    # the standard deviation is 10
    assert error == pytest.approx(10 / 3**0.5)


@pytest.mark.parametrize(
    ("kernel", "gan", "good"),
    [
        ([960, 950, 1000], [700] * 3, True),
        # of the mean, not of the best
        ([1000, 900, 900], [700] * 3, False),
        # two hundred more than the control
        ([1000] * 3, [801] * 3, False),
    ],
)
def test_bars(kernel, gan, good):
    assert gan_quality.reached(rows(kernel, gan), "stacked") is good


def test_the_table_has_every_run_and_every_bar(tmp_path):
    made = rows([990, 1000, 980], [700, 710, 720])
    gan_quality.write_table(made, tmp_path / "new")
    with open(tmp_path / "new" / "gan_quality.csv", newline="") as file:
        assert [(row["run"], int(row["modes"])) for row in csv.DictReader(file)] == [
            (row["run"], row["modes"]) for row in made
        ]
    # rows of other data stay when some are run again
    assert gan_quality.before(tmp_path / "new", ["ring"]) == made
    assert gan_quality.before(tmp_path / "new", ["stacked"]) == gan_quality.before(tmp_path, ["ring"]) == []
    text = (tmp_path / "new" / "gan_quality.md").read_text()
    assert "**stacked**, 3 seeds, mean ± standard error" in text
    assert "| mmd | 990 ± 6 | 0.1 ± 0 |" in text
    assert "| bar | at least 950 | at most 0.2 |" in text


def test_mnist_is_asked_for_a_lead_over_the_control():
    def mnist(fid, recall=0.9, precision=0.9, coverage=0.8, name="mnist"):
        runs = {"kernel": (fid, recall, precision, coverage), "rpgan": (40.0, 0.9, 0.9, 0.8)}
        names = ("fid", "manifold_recall", "manifold_precision", "coverage")
        return [
            {"data": name, "run": kind, "seed": 0} | dict(zip(names, values, strict=True))
            for kind, values in runs.items()
        ]

    assert gan_quality.reached(mnist(22.0), "mnist")
    assert gan_quality.reached(mnist(22.0, precision=0.875), "mnist")
    assert not gan_quality.reached(mnist(22.1), "mnist")
    assert not gan_quality.reached(mnist(20.0, recall=0.89), "mnist")
    assert not gan_quality.reached(mnist(20.0, coverage=0.76), "mnist")
    assert gan_quality.reached(mnist(28.0, name="mnist-600"), "mnist-600")
    assert not gan_quality.reached(mnist(28.1, name="mnist-600"), "mnist-600")


def test_equal_time_counts_every_stage(monkeypatch):
    kernel = Config.from_settings(
        data="mnist", loss="rpgan+mmd", space="encoder", encoder_steps=100, code_steps=50, steps=300
    )
    control = gan_quality.settings_of(kernel, gan_quality.TUNED["mnist"]["rpgan"])
    assert (control.space, control.lam, control.loss) == ("data", None, "rpgan")
    assert gan_quality.stages(kernel) == {"encoder": 100, "codes": 50, "adversary": 300}
    assert gan_quality.stages(control) == {"adversary": 300}
    times = {"encoder": 0.02, "codes": 0.01, "adversary": 0.06, "own adversary": 0.05}
    monkeypatch.setattr(gan_quality, "step_times", lambda *_: times)
    assert gan_quality.equal_steps(None, kernel, control, "mnist", "rpgan") == (2 + 0.5 + 18) / 0.05
    # another run with an encoder pays for it too
    other = gan_quality.settings_of(kernel, {"lam": 1.0, "code_steps": 0})
    times |= {"own encoder": 0.02, "own codes": 0.01}
    assert gan_quality.equal_steps(None, kernel, other, "mnist", "code") == round((2 + 0.5 + 18 - 2) / 0.05)
    # quality is drawn over the same seconds
    records = [{"stage": "codes", "step": 50}, {"stage": "rpgan+mmd", "step": 300}]
    summary = kernel.settings() | {"encoder_seconds": 1.0}
    seconds = [row["seconds"] for row in gan_quality._on_quiet_seconds(records, summary, times, "")]
    assert seconds == [2.5, 20.5]


def test_every_stage_is_timed(tmp_path, monkeypatch):
    for name, value in (("RUNS", tmp_path), ("_ROUNDS", 2), ("_STEPS", 1)):
        monkeypatch.setattr(gan_quality, name, value)
    kernel = Config.from_settings(data="digits", loss="rpgan+mmd", space="encoder", batch=16, code=3, code_steps=5)
    control = gan_quality.settings_of(kernel, {"loss": "rpgan"})
    times = gan_quality.step_times(data.digits(), kernel, control, "digits", "rpgan")
    assert times.keys() == {"encoder", "codes", "adversary", "own adversary"}
    assert all(seconds > 0 for seconds in times.values())
    # and kept
    monkeypatch.setattr(gan_quality, "stage_steps", None)
    assert gan_quality.step_times(None, kernel, control, "digits", "rpgan") == times


def test_steps_with_and_without_gkfast(monkeypatch):
    for name, value in (("_ROUNDS", 3), ("_WARM_UP", 1), ("_STEPS", 1)):
        monkeypatch.setattr(gan_steps, name, value)
    found = gan_steps.rows_of("digits")
    assert [row["by"] for row in found] == ["gkfast", "plain torch"]
    for row in found:
        assert (row["loss"], row["N"], row["D"], row["bandwidths"]) == ("rpgan+mmd", 256, 64, 4)
        assert float(row["step_ms"]) > 0
        assert 0 < float(row["kernel_share"]) < 1
