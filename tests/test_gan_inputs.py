"""Whatever is given to a public name of gkfast.gan: one sentence that says what to do, or the right value."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gkfast.gan
from gkfast.gan import article, losses, objectives, sampler
from gkfast.nn import KDERatioLoss, MMDLoss

Y = 2 + torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
X = torch.randn(16, 2, generator=torch.Generator().manual_seed(1))
D = torch.rand(16, generator=torch.Generator().manual_seed(2))
ONES = torch.ones(16)

GIVEN = {
    "None": None,
    "text": "a",
    "True": True,
    "nan": math.nan,
    "inf": math.inf,
    "-1": -1,
    "0": 0,
    "array": np.ones((16, 2)),
    "list": [1.0, 2.0],
    "ints": torch.ones(16, 2, dtype=torch.int64),
    "bools": torch.ones(16, 2, dtype=torch.bool),
    "empty": torch.zeros(0, 2),
    "meta": torch.zeros(16, 2, device="meta"),
}


def networks():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(3, 2), nn.Sequential(nn.Linear(2, 1), nn.Sigmoid())


def train_gan(**arguments):
    G, D = networks()
    return gkfast.gan.train_gan(**{"generator": G, "discriminator": D, **arguments})


def load(run):
    sampler.save(Path("saved.pt"), sampler.Sampler(networks()[0], 2, (2,)))
    return gkfast.gan.load(run).sample(3)


# every function: its arguments, and which of GIVEN each of them may be
CALLS = {
    "compute_distance": (
        gkfast.gan.compute_distance,
        {"x": X, "y": Y, "sigma": 1.0},
        {"x": {"empty"}, "y": {"None", "empty"}, "sigma": {"list"}},
    ),
    "similarity": (gkfast.gan.similarity, {"x": X, "y": Y, "sigma": 1.0}, {"sigma": {"list"}}),
    "discriminator_loss": (gkfast.gan.discriminator_loss, {"real_logits": D, "fake_logits": D}, {}),
    "generator_loss": (gkfast.gan.generator_loss, {"fake_logits": D}, {"fake_logits": {"meta"}}),
    "relativistic_loss": (losses.relativistic_loss, {"winner_logits": D, "loser_logits": D}, {}),
    "hinge_discriminator_loss": (losses.hinge_discriminator_loss, {"real_logits": D, "fake_logits": D}, {}),
    "hinge_generator_loss": (losses.hinge_generator_loss, {"fake_logits": D}, {"fake_logits": {"meta"}}),
    "gradient_penalty": (
        losses.gradient_penalty,
        {"discriminator": lambda x: x.square().sum(1), "samples": X},
        {"samples": {"meta"}},
    ),
    "scaled_mmd": (
        losses.scaled_mmd,
        {"discriminator": lambda x: 2 * x, "real": Y, "fake": X, "distance": objectives.KernelTerm(MMDLoss(1.0))},
        {},
    ),
    "KernelTerm of MMDLoss": (
        lambda fake, real, **options: objectives.KernelTerm(MMDLoss(**options))(fake, real),
        {"fake": X, "real": Y, "sigma": 1.0, "scales": [1.0], "momentum": 0.5, "root": False},
        {"sigma": {"list"}, "scales": {"list"}, "momentum": {"0"}},
    ),
    "KernelTerm of KDERatioLoss": (
        lambda fake, real, **options: objectives.KernelTerm(KDERatioLoss(**options))(fake, real),
        {"fake": X, "real": Y, "sigma": 1.0, "scales": [1.0], "momentum": 0.5},
        {"sigma": {"list"}, "scales": {"list"}, "momentum": {"0"}},
    ),
    "mmd": (gkfast.gan.mmd, {"fake": X, "real": Y, "sigma": [1.0]}, {"sigma": {"list"}}),
    "log_kde_ratio": (gkfast.gan.log_kde_ratio, {"fake": X, "real": Y, "sigma": [1.0]}, {"sigma": {"list"}}),
    "gan_loss": (
        gkfast.gan.gan_loss,
        {"y": ONES, "d": D, "fake": X, "real": Y, "sigma": 1.0, "lam": 1.0, "regularizer": "log_ratio"},
        {"lam": {"0"}},
    ),
    "split_name": (objectives.split_name, {"loss": "gan+mmd"}, {}),
    "default_lam": (objectives.default_lam, {"loss": "gan+mmd"}, {}),
    "without_kernel": (objectives.without_kernel, {"loss": "gan+mmd"}, {}),
    "objective": (
        lambda **arguments: gkfast.gan.objective(**arguments).kernel(X, Y),
        {
            **{"loss": "gan+mmd", "sigma": 1.0, "lam": 1.0, "scales": [1.0], "momentum": 0.5},
            **{"on_features": False, "r1": 0.0, "r2": 0.0},
        },
        {
            "sigma": {"list"},
            "lam": {"None", "0"},
            "scales": {"list"},
            "momentum": {"0"},
            "on_features": {"True"},
            "r1": {"0"},
            "r2": {"0"},
        },
    ),
    "Objective": (
        lambda **arguments: gkfast.gan.Objective(**arguments).lam,
        {
            **{
                "discriminator": lambda D, real, fake: D(real).mean(),
                "generator": lambda D, real, fake: D(fake).mean(),
            },
            **{"kernel": MMDLoss(1.0), "lam": 1.0, "on_features": False, "feature_mmd": None},
        },
        {
            **{name: {"None"} for name in ("discriminator", "generator", "kernel", "feature_mmd")},
            "lam": {"0"},
            "on_features": {"True"},
        },
    ),
    "generate_data": (
        gkfast.gan.generate_data,
        {"num_samples": 3, "noise_dim": 2, "generator": torch.Generator(), "device": "cpu", "dtype": torch.float32},
        {
            **{"num_samples": {"0"}, "noise_dim": {"0"}},
            **{name: {"None"} for name in ("generator", "device", "dtype")},
        },
    ),
    "load": (load, {"run": "saved.pt"}, {}),
    "train_gan": (
        lambda **arguments: train_gan(**arguments).history[-1]["g_loss"],
        {
            **{"generator": networks()[0], "discriminator": networks()[1], "x": None, "y": Y, "sigma": 1.0},
            **{"epochs": 1, "batch_size": 16, "loss": "gan+mmd", "lam": 1.0, "output": "probability"},
            **{"noise_dim": 2, "learning_rate": 1e-3, "critic_steps": 1, "ema": 0.0, "r1": 0.0, "r2": 0.0},
            **{"seed": 0, "checkpoints": None, "resume": False, "progress": False},
        },
        {
            **{"x": {"None"}, "sigma": {"list"}, "lam": {"None", "0"}, "ema": {"0"}, "r1": {"0"}, "r2": {"0"}},
            **{"seed": {"0"}, "checkpoints": {"None", "text"}, "resume": {"True"}, "progress": {"True"}},
        },
    ),
}

CASES = [
    (function, argument, given)
    for function, (_, arguments, _) in CALLS.items()
    for argument in arguments
    for given in GIVEN
]


def finite(value):
    if isinstance(value, torch.Tensor):
        return value.is_meta or bool(value.isfinite().all())
    return not isinstance(value, float) or math.isfinite(value)


@pytest.mark.parametrize(("function", "argument", "given"), CASES, ids=["-".join(case) for case in CASES])
def test_one_sentence_or_the_right_value(function, argument, given, tmp_path, monkeypatch):
    # where files and a run folder called "a" are made
    monkeypatch.chdir(tmp_path)
    call, arguments, accepted = CALLS[function]
    arguments = {**arguments, argument: GIVEN[given]}
    if given in accepted.get(argument, ()):
        assert finite(call(**arguments))
        return
    with pytest.raises((ValueError, TypeError, FileNotFoundError)) as refusal:
        call(**arguments)
    said = str(refusal.value)
    assert argument in said
    assert all(word in said for word in (" must ", "got ", "; "))
    assert "\n" not in said


@pytest.mark.parametrize("function", CALLS)
def test_what_is_meant_is_taken(function, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, arguments, _ = CALLS[function]
    assert finite(call(**arguments))


def test_every_public_name_is_in_the_table():
    # a tuple of names, and what training and loading return
    assert {*gkfast.gan.__all__} - {"LOSSES", "Result", "Sampler"} <= CALLS.keys()
    functions = {
        name
        for module in (article, losses)
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and name[0] != "_"
    }
    # what deals with the rows of all processes takes losses, not data
    assert functions - {"gather_rows", "of_global_batch"} <= CALLS.keys()
