"""Every example runs: with tiny settings always, as it is given in the slow tests, which look at what it claims."""

import importlib
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import gkfast
import gkfast.nn

pytest.importorskip("matplotlib", reason='needs pip install "gkfast[train]"')

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples"
# arguments of run() that make an example quick
TINY = {
    "distilled_digits": {"seconds": 0, "batch": 16, "taught": 60},
    "domain_adaptation": {"steps": 3, "batch": 32},
    "drift_detection": {"windows": 2, "change": 1, "rows": 40, "permutations": 50},
    "independence": {"rows": 30, "permutations": 20},
    "jax_recipe": {"steps": 2, "points": 30},
    "kde_64d": {"rows": 200, "climbs": 1},
    "mmd_gan_drop_in": {"steps": 2, "batch": 32},
    "one_step_distillation": {"steps": 2, "batch": 32, "taught": 50},
    "svgd": {"steps": 4, "particles": 30},
    "which_sigma": {"rows": 60, "factors": 5},
    "witness_penalty": {"steps": 2, "batch": 16},
}


def example(name):
    if name == "jax_recipe":
        pytest.importorskip("jax", reason='needs pip install "gkfast[jax]"')
    return importlib.import_module(f"examples.{name}")


def test_every_example_is_tested_and_in_the_gallery():
    scripts = {path.stem for path in FOLDER.glob("*.py")}
    assert scripts == {*TINY, "many_processes"}
    gallery = (FOLDER / "README.md").read_text()
    assert scripts <= {*re.findall(r"\(([a-z_0-9]+)\.py\)", gallery)}


@pytest.mark.parametrize("name", TINY)
def test_runs_with_tiny_settings(name, tmp_path):
    module = example(name)
    result = module.run(**TINY[name])
    picture = tmp_path / "picture.png"
    if name in ("kde_64d", "jax_recipe"):
        module.draw(*(result if name == "kde_64d" else result[1:]), picture)
    elif name == "svgd":
        module.draw(result[0], result[2], picture)
    else:
        module.draw(result, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def output_of(*command):
    environment = os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error::UserWarning"}
    result = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def losses(text):
    return [float(loss) for loss in re.findall(r"^ *\d+ +(\d+\.\d+)$", text, re.MULTILINE)]


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    script = [str(FOLDER / "many_processes.py"), "--steps", "20", "--batch", "64"]
    one = output_of(*script)
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    two = output_of(*launch, *script)
    assert "2 processes" in two
    assert losses(one) == pytest.approx(losses(two), rel=1e-7)
    assert losses(one)[-1] < losses(one)[0]


@pytest.mark.slow
def test_drop_in_has_the_same_training():
    result = example("mmd_gan_drop_in").run(steps=100)
    assert result["after"][1] == pytest.approx(result["before"][1], rel=0.05)


@pytest.mark.slow
def test_drift_is_found_and_nothing_before_it():
    table = example("drift_detection").run()
    alarms = [k for k, row in enumerate(table) if row[2] < 0.05 / len(table)]
    assert alarms[0] in (13, 14, 15)
    assert alarms == [*range(alarms[0], len(table))]


@pytest.mark.slow
def test_dependence_without_correlation_is_found():
    table = example("independence").run()
    assert table["independent"][4] > 0.05
    assert all(table[name][4] < 0.02 for name in table if name != "independent")
    assert all(abs(table[name][2]) < 0.2 for name in ("parabola", "circle", "spread"))


@pytest.mark.slow
def test_density_tells_digits_from_others():
    *_, sigma, densities, _, _ = example("kde_64d").run()
    assert 0.08 < sigma < 0.25
    digits = densities.pop("digits")
    assert all(values.mean() < digits.mean() - 30 for values in densities.values())


@pytest.mark.slow
def test_svgd_reaches_the_modes():
    _, values, _ = example("svgd").run()
    assert values[-1] < 0.05 * values[0]


@pytest.mark.slow
def test_alignment_helps_the_target():
    result = example("domain_adaptation").run()
    assert result["with MMD² of features"][1] > result["source alone"][1] + 0.1


@pytest.mark.slow
def test_students_learn_from_the_teacher():
    result = example("one_step_distillation").run()
    teacher, regression, *with_sets = result.values()
    assert all(student[0] < teacher[0] / 5 for student in (regression, *with_sets))
    assert all(student[1] < 0.8 * regression[1] for student in with_sets)


def test_plain_losses_of_distilled_digits_are_those_of_gkfast():
    module = example("distilled_digits")
    torch.manual_seed(0)
    x, y = torch.randn(60, 5), torch.randn(80, 5) + 0.3
    ours = gkfast.drift(x, y, sigma=[1.0, 2.0])
    assert torch.allclose(module.plain_drift(x, y, [1.0, 2.0]), ours, rtol=1e-3, atol=1e-4 * float(ours.abs().max()))
    landmarks = gkfast.nn.LandmarkMMDLoss(y, [1.0, 2.0], landmarks=40)
    numbers = landmarks.numbers
    plain = module.plain_landmarks(
        x, landmarks.points, numbers.coefficients.float(), float(numbers.square), [1.0, 2.0]
    )
    assert plain.item() == pytest.approx(landmarks(x).item(), rel=1e-3)


@pytest.mark.slow
def test_one_step_is_better_than_one_of_the_teacher():
    result = example("distilled_digits").run(seconds=4.0, batch=512, taught=3000)
    fids = {name: fid for name, (_, fid, _) in result.items()}
    assert all(fids[f"{loss}, gkfast"] < 0.3 * fids["teacher, 1 step"] for loss in ("landmark MMD", "drift"))


@pytest.mark.slow
def test_narrow_kernels_see_ripples():
    curves = example("which_sigma").run(rows=300, factors=15)
    best = {name: sigmas[np.nanargmax(worth)] / median for name, (sigmas, _, worth, median) in curves.items()}
    assert best["a ripple of period 1/4"] < 0.1 < best["a shift by half a deviation"]


@pytest.mark.slow
def test_penalty_holds_the_slope():
    result = example("witness_penalty").run()
    (without, _), (held, _) = result.values()
    assert held[-1][1] < 0.6 * without[-1][1]


@pytest.mark.slow
def test_notebook_runs():
    """The code cells, in order and in one namespace."""
    cells = [
        cell for cell in json.loads((FOLDER / "story.ipynb").read_text())["cells"] if cell["cell_type"] == "code"
    ]
    assert all(cell["outputs"] for cell in cells), "committed with its outputs"
    names = {}
    for k, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"story.ipynb, cell {k}", "exec"), names)
    assert float(names["test"].p_value) < 0.01
    assert names["curve"][-1] < 0.05
    assert max(names["ours"]) < 1e-6 < max(names["plain"])
