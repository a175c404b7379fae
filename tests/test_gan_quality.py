"""The table of bench/gan_quality.py: means, standard errors, and which bars are reached; and bench/gan_steps.py."""

import csv

import pytest

from bench import gan_quality, gan_steps


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
    text = (tmp_path / "new" / "gan_quality.md").read_text()
    assert "**stacked**, 3 seeds, mean ± standard error" in text
    assert "| mmd | 990 ± 6 | 0.1 ± 0 |" in text
    assert "| bar | at least 950 | at most 0.2 |" in text


def test_steps_with_and_without_gkfast(monkeypatch):
    for name, value in (("_ROUNDS", 3), ("_WARM_UP", 1), ("_STEPS", 1)):
        monkeypatch.setattr(gan_steps, name, value)
    found = gan_steps.rows_of("digits")
    assert [row["by"] for row in found] == ["gkfast", "plain torch"]
    for row in found:
        assert (row["loss"], row["N"], row["D"], row["bandwidths"]) == ("rpgan+mmd", 256, 64, 4)
        assert float(row["step_ms"]) > 0
        assert 0 < float(row["kernel_share"]) < 1
