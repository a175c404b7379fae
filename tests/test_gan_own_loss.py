"""Losses of the user's own: what module:function may name, what is refused, and a training by each."""

import json
import sys

import pytest
import torch

import gkfast
from gkfast.cli import main
from gkfast.gan import metrics, objectives, own
from gkfast.gan.objectives import Objective, objective

MINE = """
import torch
import gkfast.nn
from gkfast.gan import Objective
from gkfast.gan.losses import discriminator_loss, generator_loss


def energy(fake, real):
    return 2 * torch.cdist(fake, real).mean() - torch.cdist(fake, fake).mean()


def learned():
    return gkfast.nn.MMDLoss("median")


def whole():
    return Objective(
        discriminator=lambda D, real, fake: discriminator_loss(D(real), D(fake)),
        generator=lambda D, real, fake: 2 * generator_loss(D(fake)),
        kernel=energy,
        lam=5.0,
    )


def detached(fake, real):
    return energy(fake.detach(), real)


def broken():
    raise RuntimeError("no\\nluck")
"""


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    """The module mine in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine.py").write_text(MINE)
    sys.modules.pop("mine", None)
    for name, size in (("SAMPLES", 500), ("COUNTED", 200), ("_TESTED", 100), ("_PERMUTATIONS", 20)):
        monkeypatch.setattr(metrics, name, size)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    sys.modules.pop("mine", None)


def test_names_are_parts_of_losses():
    assert objectives.split_name("mine:energy") == (None, "mine:energy")
    assert objectives.split_name("rpgan+a.b:c") == ("rpgan", "a.b:c")
    assert (objectives.default_lam("mine:energy"), objectives.default_lam("mine:whole")) == (1.0, 5.0)
    assert objectives.without_kernel("rpgan+mine:energy") == "rpgan"


def test_a_term_an_object_with_state_and_an_objective():
    x, y = torch.randn(9, 2), torch.randn(8, 2)
    term = objective("gan+mine:energy", 1.0)
    assert term.discriminator is not None
    assert term.kernel(x, y) == 2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean()
    learned = objective("mine:learned", 1.0, lam=3.0)
    assert isinstance(learned.kernel, gkfast.nn.MMDLoss)
    assert (learned.discriminator, learned.lam) == (None, 3.0)
    whole = objective("mine:whole", 1.0)
    assert isinstance(whole, Objective)
    assert (whole.lam, objective("mine:whole", 1.0, lam=2.0).lam) == (5.0, 2.0)


def test_layers_of_an_encoder_are_compared_by_it():
    encoder = torch.nn.Identity()
    found = objective("mine:energy", [[1.0], [1.0]], encoder=encoder)
    x, y = torch.randn(9, 2), torch.randn(8, 2)
    torch.testing.assert_close(found.kernel([x, x], [y, y]), objective("mine:energy", 1.0).kernel(x, y))


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["mine:energy", "rpgan+mine:learned", "mine:whole"])
def test_a_run_by_it(loss, tmp_path, capsys):
    arguments = ["train", "--data", "ring", "--loss", loss, "--steps", "3", "--batch", "16", "--out", "out"]
    assert main([*arguments, "--set", "r1=0.1"]) == 0
    summary = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert summary["loss"] == loss
    assert summary["control"]["loss"] == ("rpgan" if loss.startswith("rpgan") else "gan")
    assert loss in (tmp_path / "out" / "report.html").read_text()
    assert main(["train", "--resume", "--out", "out"]) == 0


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("mine:nothing", "loss must be module:function, a function that Python can import, got 'mine:nothing'"),
        ("mine:broken", "loss must be a function that can be called without arguments, got 'mine:broken' (RuntimeE"),
        ("gan+mine:whole", "loss must be a kernel term behind gan+, got 'mine:whole', which is an Objective"),
        ("mine:detached", "loss must return a scalar tensor that depends on the generated rows, got"),
        ("mine:gkfast", "loss must be a function of generated and real rows, or one that returns an Objective"),
        ("mine:energy+gan", "loss must name the adversary or critic first, got 'mine:energy+gan'; write gan+mine:e"),
        ("mine:ene rgy", "loss must be an adversary or critic"),
    ],
)
def test_what_is_refused_is_one_sentence_and_writes_nothing(loss, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--data", "ring", "--loss", loss, "--steps", "1"])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert message in said
    assert not (tmp_path / "runs").exists()


def test_an_error_is_one_line():
    assert own.reason(ValueError("a\n  b")) == "ValueError: a b"
