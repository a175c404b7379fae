"""The training loop: what it does to the networks, what it records, and what it refuses."""

import doctest
import math
import random
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import gkfast
from gkfast.gan import article, data, generate_data, losses, objectives, run, train_gan
from gkfast.gan.config import Config, Recipe
from gkfast.gan.data import Data
from gkfast.gan.networks import sample
from gkfast.gan.objectives import Objective, objective
from gkfast.gan.train import Training

# what depends on the clock
TIMED = {"seconds", "steps_per_second", "kernel_share"}

Y = 2 + torch.randn(64, 2, generator=torch.Generator().manual_seed(0))


def networks(seed=0, noise=3, sigmoid=True):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        G = nn.Sequential(nn.Linear(noise, 16), nn.Tanh(), nn.Linear(16, 2))
        D = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 1))
    return G, D.append(nn.Sigmoid()) if sigmoid else D


def train(G=None, D=None, x=None, y=Y, sigma=1.0, epochs=2, batch_size=16, **options):
    default_G, default_D = networks()
    return train_gan(G or default_G, D or default_D, x, y, sigma, epochs, batch_size, noise_dim=2, **options)


def weights(module):
    return [w.detach().clone() for w in module.parameters()]


class Layers(nn.Module):
    """An encoder with one output."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return [self.network(x)]


def moved(module, before):
    return [not torch.equal(w, b) for w, b in zip(module.parameters(), before, strict=True)]


@pytest.mark.parametrize("loss", [loss for loss in objectives.LOSSES if objectives.split_name(loss)[0] is not None])
def test_both_networks_are_trained(loss):
    G, D = networks()
    before = weights(G), weights(D)
    result = train(G, D, loss=loss)
    assert (result.generator, result.discriminator) == (G, D)
    assert all(moved(G, before[0]))
    # a bias that is added to real and to generated samples alike stays, where only differences count
    matrices = [change for change, w in zip(moved(D, before[1]), before[1], strict=True) if w.ndim == 2]
    assert all(matrices)
    # two passes over 64 rows in batches of 16
    assert result.steps == 8
    assert [record["step"] for record in result.history] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert all(math.isfinite(value) for record in result.history for value in record.values())
    assert result.history[-1].keys() >= {
        "seconds",
        "d_loss",
        "g_loss",
        "k_xx",
        "k_yy",
        "k_xy",
        "mmd2",
        "steps_per_second",
    }
    assert ("kernel_share" in result.history[-1]) == (loss not in objectives.ADVERSARIES)


@pytest.mark.parametrize("loss", ["mmd", "rpgan+drift", "landmarks"])
@pytest.mark.parametrize("space", ["data", "encoder"])
def test_pieces_have_the_gradients_of_the_whole_and_less_memory(loss, space):
    """Gradient caching: networks see micro_batch rows at a time, the loss all of them."""
    encoder = nn.Sequential(nn.Linear(2, 40), nn.Tanh(), nn.Linear(40, 4)).double() if space == "encoder" else None
    y = Y.double()
    found = []
    for micro_batch in (0, 5):
        torch.manual_seed(0)
        G = nn.Sequential(*[m for _ in range(30) for m in (nn.Linear(2, 2), nn.Tanh())]).double()
        D = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1)).double()
        seen = None if encoder is None else Layers(encoder)
        whole, sigma = (y, [1.0]) if seen is None else (seen(y), [[1.0]])
        goal = objective(loss, sigma, encoder=seen, real=whole)
        recipe = Recipe(steps=3, batch=32, noise_dim=1, micro_batch=micro_batch)
        training = Training(G, D, y, goal, recipe, sigma=[1.0])
        kept = [0]

        def pack(tensor, kept=kept):
            kept[0] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            training.advance()
        training.advance()
        found.append((weights(G), kept[0]))
    (one, much), (other, little) = found
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert little < 0.7 * much


def test_a_result_prints_in_a_line():
    said = repr(train(epochs=1))
    assert re.fullmatch(r"Result\(4 steps in \d+\.\d s, 98 weights, d_loss \S+, g_loss \S+, mmd2 \S+\)", said)


def test_without_a_discriminator_only_the_generator_moves():
    G, D = networks()
    before = weights(D)
    result = train(G, D, loss="mmd")
    assert not any(moved(D, before))
    assert "d_loss" not in result.history[-1]


def test_same_seed_same_numbers():
    def numbers(seed):
        history = train(seed=seed).history
        return [{key: value for key, value in record.items() if key not in TIMED} for record in history]

    torch.manual_seed(1)
    first = numbers(3)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert numbers(3) == first
    assert numbers(4) != first
    torch.manual_seed(1)
    numbers(5)
    assert torch.equal(torch.get_rng_state(), torch.manual_seed(1).get_state())
    assert len(state) > 0


def test_mmd_training_reaches_the_data():
    G, D = networks()
    result = train(G, D, loss="mmd", sigma=[0.5, 1.0, 2.0, 4.0], epochs=75, batch_size=64, learning_rate=3e-2)
    assert result.history[0]["mmd2"] > 0.3
    # the floor: an unbiased estimate between two samples of 64 has a standard deviation of about 0.01
    assert result.history[-1]["mmd2"] < 0.03
    samples = sample(G, generate_data(2000, 2, generator=torch.Generator().manual_seed(9)))
    torch.testing.assert_close(samples.mean(0), Y.mean(0), rtol=0, atol=0.3)


def test_one_step_is_adam_on_the_stated_gradient():
    """With batches of all rows and rows of noise given, the first generator step can be done by hand."""
    x, sigma = torch.tensor([[1.0, -1.0, 0.5]]).repeat(64, 1), [1.0, 3.0]
    G, D = networks()
    by_hand, _ = networks()
    result = train(G, D, x=x, sigma=sigma, epochs=1, batch_size=64, loss="mmd", learning_rate=1e-3)
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=1e-3, betas=(0.5, 0.999))
    loss = sum(gkfast.mmd2(by_hand(x), Y, s) for s in sigma) / 2
    loss.backward()
    optimizer.step()
    assert result.history[0]["g_loss"] == pytest.approx(loss.item(), rel=1e-5)
    # the rows may come in another order: Adam's first step is nearly the sign of the gradient, so 1e-3 is its size
    for w, expected in zip(G.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(w, expected, rtol=0, atol=1e-5)


def test_probabilities_and_logits_train_alike():
    G, D = networks()
    H, E = networks(sigmoid=False)
    train(G, D, loss="gan")
    train(H, E, loss="gan", output="logit")
    for w, v in zip(G.parameters(), H.parameters(), strict=True):
        torch.testing.assert_close(w, v, rtol=0, atol=1e-4)


def test_images_reach_the_kernel_flattened():
    G = nn.Sequential(nn.Linear(3, 8), nn.Unflatten(1, (2, 2, 2)))
    D = nn.Sequential(nn.Flatten(), nn.Linear(8, 1), nn.Sigmoid())
    result = train(G, D, y=Y.repeat(1, 4).reshape(64, 2, 2, 2), epochs=1)
    assert math.isfinite(result.history[-1]["kernel_term"])


def test_frozen_weights_stay():
    G, D = networks()
    D[0].requires_grad_(False)
    before = weights(D)
    train(G, D)
    assert moved(D, before) == [False, False, True, True]
    assert [w.requires_grad for w in D.parameters()] == [False, False, True, True]


def test_any_callable_may_be_the_kernel_term():
    seen = []

    def term(fake, real):
        seen.append((fake.shape, real.shape))
        return fake.square().mean()

    result = train(loss=Objective(kernel=term, lam=2.0), epochs=1)
    assert set(seen) == {((16, 2), (16, 2))}
    assert result.history[-1]["kernel_term"] > 0


def fit(recipe, loss="gan+mmd"):
    sigma = [1.0]
    return Training(*networks(sigmoid=False), Y, objective(loss, sigma), recipe, sigma=sigma).run()


def recipe(**options):
    return Recipe(**{"steps": 6, "batch": 16, "noise_dim": 2, **options})


def test_mixed_precision_is_near_full_precision_and_of_the_networks_only():
    seen = set()

    class Term(nn.Module):
        def forward(self, fake, real):
            seen.update((fake.dtype, real.dtype))
            return gkfast.mmd2(fake, real, 1.0)

    full, mixed = fit(recipe()), fit(recipe(precision="bf16", ema=0.9))
    goal = Objective(kernel=Term(), lam=1.0)
    Training(*networks(sigmoid=False), Y, goal, recipe(precision="bf16"), sigma=[1.0]).run()
    assert seen == {torch.float32}
    a, b = full.history[-1]["g_loss"], mixed.history[-1]["g_loss"]
    assert a != b
    assert b == pytest.approx(a, rel=0.05)


def test_the_average_follows_the_generator_with_its_decay():
    states = []

    def keep(history):
        if history:
            states.append(weights(G))

    G, D = networks(sigmoid=False)
    states.append(weights(G))
    goal = objective("gan+mmd", [1.0])
    result = Training(G, D, Y, goal, recipe(ema=0.25), sigma=[1.0]).run(on_record=keep)
    expected = states[0]
    for step, now in enumerate(states[1:], 1):
        # 2/11 and 3/12 are below and at the decay that was asked for
        decay = min(0.25, (1 + step) / (10 + step))
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, now, strict=True)]
    for ours, truth in zip(result.average.parameters(), expected, strict=True):
        torch.testing.assert_close(ours, truth)


def test_learning_rates_fall_along_a_cosine():
    rates = [Recipe(steps=100, batch=2, final_rate=0.2).rate(step) for step in (1, 51, 100)]
    assert rates == pytest.approx([1, 0.6, 0.2], abs=1e-3)
    risen = [Recipe(steps=100, batch=2, final_rate=0.2, warmup=10).rate(step) for step in (1, 5, 10, 100)]
    assert risen == pytest.approx([0.1, 0.5, 1, 0.2], abs=0.02)


def test_the_discriminator_may_take_more_steps_and_gradients_be_clipped(monkeypatch):
    norms = []
    clip = nn.utils.clip_grad_norm_

    def clipped(parameters, greatest):
        before = clip(parameters, greatest)
        norms.append(torch.stack([p.grad.norm() for p in parameters]).norm())
        return before

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", clipped)
    fit(recipe(critic_steps=3, clip=1e-3))
    assert len(norms) == 6 * (3 + 1)
    assert max(norms) <= 1.01e-3


def test_snapshots_are_of_the_same_noise_at_even_steps():
    result = fit(recipe(steps=14, ema=0.5))
    assert [step for step, _ in result.snapshots] == [0, 2, 4, 6, 8, 10, 12, 14]
    # the last is of the generator that is returned
    again = fit(recipe(steps=14, ema=0.5))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(result.snapshots, again.snapshots, strict=True))
    assert not torch.equal(result.snapshots[-1][1], result.snapshots[-2][1])


def test_a_kernel_on_features_needs_features():
    goal = objective("gan+mmd", "median", on_features=True)
    with pytest.raises(ValueError, match=r"discriminator must have a method features .* got Sequential without one"):
        Training(*networks(sigmoid=False), Y, goal, recipe(), sigma=[1.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"batch_size": 1}, "batch_size must be a whole number of at least 2, got 1"),
        ({"batch_size": 65}, "at most the 64 rows of y, got 65"),
        ({"x": torch.zeros(8, 3)}, "at most the 8 rows of x, got 16"),
        ({"output": "score"}, 'output must be "probability" or "logit", got \'score\''),
        ({"loss": "wgan"}, "loss must be an adversary .* got 'wgan'"),
        ({"y": torch.zeros(64, 5)}, r"generator must return rows of the shape of y's, \(5,\), got \(2,\)"),
        ({"D": nn.Linear(2, 3)}, r"discriminator must return one number per sample, got shape \(16, 3\) for 16"),
        (
            {"D": networks(sigmoid=False)[1].append(nn.Threshold(9.0, 9.0))},
            r"probabilities in \[0, 1\], got values from 9 to 9 for a batch; end it with a sigmoid, or pass output=",
        ),
        ({"sigma": -1.0}, "sigma must be positive"),
        (
            {"loss": "mmdgan", "D": nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))},
            r"features of shape \(B, F\) .* \(16,\)",
        ),
        (
            {"G": nn.Linear(5, 2)},
            r"generator must take noise of shape \(16, 3\) and torch.float32, got RuntimeError .*; set",
        ),
        (
            {"D": nn.Linear(5, 1)},
            r"discriminator must take samples of shape \(16, 2\) and torch.float32, got RuntimeError",
        ),
        (
            {"G": nn.Linear(3, 2).requires_grad_(False)},
            "generator must have weights to train, got frozen ones; give it",
        ),
        ({"D": nn.Sigmoid()}, "discriminator must have weights to train, got none; give it a layer"),
        (
            {"y": torch.full((64, 2), math.nan)},
            "y must hold finite numbers, got NaN or infinity; remove or clip them",
        ),
        ({"y": torch.zeros(64)}, r"y must have shape \(rows, ...\) .* got \(64,\); .* use y.reshape\(-1, 1\)"),
        ({"r1": 1e10}, r"r1 must be a number from 0 to 1e\+09, got 1.*; 10 is usual"),
        ({"seed": 2**64}, "seed must be a whole number from 0 to 9223372036854775807, got 18446744073709551616"),
        (
            {"loss": Objective(kernel=lambda fake, real: fake)},
            r"loss.kernel must return a scalar tensor .* got Tensor of shape \(16, 2\); return a mean",
        ),
        (
            {"loss": Objective(lambda D, real, fake: D(fake).mean().detach())},
            r"loss.discriminator must return a scalar tensor .* got one without a gradient",
        ),
        (
            {"loss": Objective(generator=lambda D, real, fake: 0.5)},
            r"loss.generator must return a scalar tensor .* got 0.5",
        ),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        train(**options)


def random_discriminator(seed, *last):
    """One to three hidden layers of 2 to 64 units; a third of them return nearly one number for every sample."""
    rng = random.Random(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        units, activation = 2 ** rng.randint(1, 6), rng.choice([nn.Tanh, nn.ReLU, nn.LeakyReLU, nn.SiLU])
        layers = [nn.Linear(2, units), activation()]
        for _ in range(rng.randint(0, 2)):
            layers += [nn.Linear(units, units), activation()]
        head = nn.Linear(units, 1)
        if seed % 3 == 0:
            nn.init.normal_(head.weight, std=1e-3)
            nn.init.constant_(head.bias, rng.random())
    return nn.Sequential(*layers, head, *last)


def test_logits_are_never_taken_for_probabilities():
    in_range = 0
    for seed in range(200):
        D = random_discriminator(seed)
        before, d = weights(D), sample(D, Y)
        in_range += bool(((d >= 0) & (d <= 1)).all())
        with pytest.raises(ValueError, match=r"discriminator must return probabilities in \[0, 1\], got values from"):
            train(D=D, epochs=1, batch_size=64)
        # it is given back as it came
        assert not any(moved(D, before))
    # on the data alone many could not be told
    assert in_range > 50


def test_probabilities_are_taken():
    for seed in range(200):
        last = (nn.Sigmoid(), nn.Hardsigmoid(), nn.Sequential(nn.Tanh(), nn.Threshold(0.0, 0.0)))[seed % 3]
        result = train(D=random_discriminator(seed, last), epochs=1, batch_size=64)
        assert result.steps == 1
    # one that ends in no sigmoid
    two = nn.Sequential(nn.Linear(2, 2), nn.Softmax(dim=1), nn.Linear(2, 1, bias=False).requires_grad_(False))
    nn.init.constant_(two[2].weight, 0.0)[0, 0] = 1.0
    assert train(D=two, epochs=1).steps == 4


def test_logits_in_training_alone_are_told_at_the_first_step():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(2, 1)

        def forward(self, x):
            return 10 * self.body(x) if self.training else self.body(x).sigmoid()

    with pytest.raises(ValueError, match=r"probabilities in \[0, 1\], got values from .* by step 1; end it with"):
        train(D=Late())


def test_integer_data_are_refused():
    with pytest.raises(
        TypeError, match=r"y must hold floating-point numbers, got torch.int64; cast it with .float\(\)"
    ):
        train(y=torch.arange(128).reshape(64, 2))


def test_loss_that_is_not_finite_stops_the_training():
    loss = Objective(kernel=lambda fake, real: (fake - fake).log().sum(), lam=1.0)
    with pytest.raises(FloatingPointError, match="training must keep g_loss finite, got -inf at step 1; lower"):
        train(loss=loss)


def small_data():
    return Data("mine", train=Y, validation=Y[:20] + 0.1, test=Y[:30] - 0.1, shape=(2,))


def test_control_is_the_same_gan_without_the_kernel(tmp_path):
    config = Config.from_settings(data="mine", loss="gan+mmd", steps=5, batch=16)
    for name in ("both", "alone"):
        (tmp_path / name).mkdir()
    both = run.run(small_data(), tmp_path / "both", config, progress=False)
    alone = run.run(small_data(), tmp_path / "alone", replace(config, loss="gan"), progress=False)
    assert both["control"]["mmd2"] == alone["mmd2"] != both["mmd2"]
    assert "control" not in alone


def test_settings_are_one_flat_table():
    config = Config.from_settings(data="ring", steps=7, ladder=[1, 2], keep=2)
    assert (config.recipe.steps, config.recipe.batch, config.data, config.ladder) == (7, 256, "ring", [1.0, 2.0])
    assert Config.from_settings(**config.settings()) == config
    # recipe and run in one table, without those that may change when a run is resumed
    free = {"checkpoint_every", "keep", "control", "control_steps", "control_rate", "tensorboard"}
    assert config.settings().keys() - config.identity().keys() == free
    assert config.recipe.identity().items() <= config.identity().items()
    assert config.changed(seed=3, r1=0.5).settings() == config.settings() | {"seed": 3, "r1": 0.5}
    with pytest.raises(ValueError, match=r"batch must be at least 2 and finite, got 1; correct it"):
        config.changed(batch=1)


def test_bandwidth_rules():
    median, mean = float(gkfast.median_sigma(Y)), float(gkfast.mean_sigma(Y))
    assert run.bandwidths(small_data(), Config()) == pytest.approx([median * f for f in (1 / 8, 1 / 4, 1 / 2, 1, 2)])
    assert run.bandwidths(small_data(), Config(sigma="mean", ladder=[3.0])) == pytest.approx([3 * mean])
    assert run.bandwidths(small_data(), Config(sigma=[0.5, 2])) == [0.5, 2.0]


def test_literal_term_changes_nothing_in_training():
    goal = objective("article", [1.0])
    G, D = networks(sigmoid=False)
    H, E = networks(sigmoid=False)
    train(G, D, loss=goal, output="logit")
    train(H, E, loss=Objective(goal.discriminator, goal.generator), output="logit")
    assert all(torch.equal(w, v) for w, v in zip(G.parameters(), H.parameters(), strict=True))


@pytest.mark.parametrize("module", [article, losses, data])
def test_docstring_examples(module):
    failed, tried = doctest.testmod(module)
    assert tried
    assert not failed
