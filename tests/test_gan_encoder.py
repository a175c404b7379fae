"""A kernel on the outputs of an encoder: the user's, or an autoencoder that is trained first."""

import json
import signal

import pytest
import torch
from torch import nn

import gkfast
from gkfast.gan import checkpoint, config, encoder, loop, networks, run
from gkfast.gan.checkpoint import Signals, Stopped
from gkfast.gan.config import Config
from gkfast.gan.data import Data, generate_data
from gkfast.gan.objectives import Objective, objective
from gkfast.gan.train import Training

ROWS = torch.rand(96, 36, generator=torch.Generator().manual_seed(0)).square()


@pytest.fixture(autouse=True)
def judged_at_once(tmp_path, monkeypatch):
    """The autoencoder that judges images is small, and not the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(encoder, "_JUDGE", (20, 16, 8, 4))


def small(**options):
    return Data("mine", ROWS[:64], ROWS[64:80], ROWS[80:], (6, 6), unit_range=True, **options)


def settings(**options):
    return Config.from_settings(
        **{
            **{"data": "mine", "loss": "rpgan+mmd", "steps": 8, "batch": 16, "space": "encoder", "units": 16},
            **{"encoder_steps": 10, "code": 3, "code_steps": 9, "code_batch": 32, "ema": 0.9, "r1": 0.1, "r2": 0.1},
            **options,
        }
    )


def made(folder, **options):
    folder.mkdir(exist_ok=True)
    resume, signals = options.pop("resume", False), options.pop("signals", None)
    return run.run(small(), folder, settings(**options), resume=resume, signals=signals, progress=False)


class Pyramid(nn.Module):
    """Images -> two layers, of other shapes."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        # images come with channels first
        assert x.shape[1:] == (1, 6, 6)
        return x * self.scale, x.mean((2, 3)) * self.scale


def pyramid():
    return Pyramid()


def no_module():
    return 3


def halves(images):
    """No module: a function of a batch."""
    return images[:, :, :3].flatten(1), images[:, :, 3:].flatten(1)


def of_all_rows():
    class Mean(nn.Module):
        def forward(self, x):
            return x.mean().reshape(1, 1)

    return Mean()


def test_an_autoencoder_learns_to_give_back_the_data():
    mine = small()
    net = encoder.autoencoder(mine, settings(units=64))
    layers = net(mine.train)
    assert [layer.shape for layer in layers] == [(64, 64), (64, 64), (64, 3)]
    training = encoder.AutoencoderTraining(net, mine.train, settings(steps=300, generator_rate=3e-3).recipe, 0.05)
    loop.take_steps(training)
    first, last = (training.history[k]["reconstruction"] for k in (0, -1))
    assert last < 0.9 * first
    # a code of a batch has mean 0 and variance 1, and so has that of all rows, nearly
    code = networks.sample(net, mine.train)[-1]
    torch.testing.assert_close(code.mean(0), torch.zeros(3), rtol=0, atol=0.3)
    torch.testing.assert_close(code.std(0), torch.ones(3), rtol=0, atol=0.3)


def test_a_reconstruction_loss_is_summed_over_numbers():
    mine = small()
    net = encoder.autoencoder(mine, settings()).eval()
    x, noise = mine.train[:5], torch.full((5, 3), 0.5)
    p = net.decode(net(x)[-1] + 0.5)
    by_hand = -(x * p.log() + (1 - x) * (1 - p).log()).sum() / 5
    torch.testing.assert_close(net.reconstruction_loss(x, noise), by_hand)


def test_the_term_of_layers_is_the_mean_of_mmds():
    x, y = ([torch.randn(9, 3) + k, torch.randn(9, 5) + k] for k in range(2))
    term = objective("mmd", [[1.0], [0.5, 2.0]], encoder=nn.Identity()).kernel
    first = gkfast.mmd2(x[0], y[0], 1.0)
    second = (gkfast.mmd2(x[1], y[1], 0.5) + gkfast.mmd2(x[1], y[1], 2.0)) / 2
    torch.testing.assert_close(term(x, y), (first + second) / 2)


def test_bandwidths_are_of_each_layer_by_its_rule():
    mine = small()
    layers = {"compared": [1, 0], "rules": ["mean", "median"], "ladders": [[1.0], [0.5, 2]]}
    chosen = settings(encoder=f"{__name__}:pyramid", code_steps=0, **layers)
    sigma = run.encoder_bandwidths(encoder.load("--encoder", chosen.encoder, mine, chosen.compared), mine, chosen)
    mean = float(gkfast.mean_sigma(2 * mine.train.mean(1, keepdim=True)))
    median = float(gkfast.median_sigma(2 * mine.train))
    assert sigma[0] == pytest.approx([mean], rel=1e-5)
    assert sigma[1] == pytest.approx([0.5 * median, 2 * median], rel=1e-5)


def test_the_encoder_is_frozen_and_the_gradient_passes_through_it():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
    frozen = encoder.Encoder(net, [-1])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    y = torch.randn(64, 2)
    G = nn.Linear(3, 2)
    weights = G.weight.detach().clone()
    goal = objective("mmd", [[1.0]], encoder=frozen)
    recipe = config.Recipe(steps=4, batch=16, noise_dim=2)
    training = Training(G, nn.Linear(2, 1), y, goal, recipe, sigma=[1.0])
    # the outputs for real rows are computed once
    torch.testing.assert_close(training.real_outputs[0], frozen(y)[0])
    result = training.run()
    assert not torch.equal(G.weight, weights)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    assert result.history[-1]["kernel_term"] > 0


def test_a_run_has_its_stages_in_order_and_counts_their_time(tmp_path):
    summary = made(tmp_path / "run")
    folder = tmp_path / "run"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(line["run"] for line in lines)) == ["encoder", "codes", "rpgan+mmd", "rpgan"]
    of = {name: [line for line in lines if line["run"] == name] for name in ("encoder", "codes", "rpgan+mmd")}
    assert [rows[-1]["step"] for rows in of.values()] == [10, 9, 8]
    seconds = [rows[-1]["seconds"] for rows in of.values()]
    assert 0 < seconds[0] < seconds[1] < seconds[2] == summary["seconds"]
    assert summary["encoder_seconds"] == seconds[0]
    assert summary["code_seconds"] == pytest.approx(seconds[1] - seconds[0])
    assert "encoder_seconds" not in summary["control"]
    assert len(summary["encoder_sigma"][0]) == 5
    page = (folder / "report.html").read_text()
    assert "an autoencoder with a code of 3" in page
    # the generator, decoder and all, is one file
    assert gkfast.gan.load(folder).sample(3).shape == (3, *small().shape)


def test_the_generator_begins_as_the_decoder_on_matched_codes(tmp_path):
    mine, chosen = small(), settings(code_steps=300, encoder_steps=300, steps=1, generator_rate=1e-3, control=False)
    (tmp_path / "run").mkdir()
    run.run(mine, tmp_path / "run", chosen, progress=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    codes = [line["mmd2"] for line in lines if line["run"] == "codes"]
    assert codes[-1] < 0.5 * codes[0]
    saved = gkfast.gan.load(tmp_path / "run").network.state_dict()
    state = checkpoint.Checkpoints(tmp_path / "run" / "checkpoints" / "encoder").load()
    # a step of Adam moves a weight by its rate at most
    for name, value in saved.items():
        if name.startswith("1."):
            decoder = state["autoencoder"][f"decode.{name.removeprefix('1.')}"]
            torch.testing.assert_close(value, decoder, rtol=0, atol=2e-3)


def test_codes_of_a_kernel_density_have_the_width_that_the_other_codes_ask_for():
    rng = torch.Generator().manual_seed(0)
    codes = torch.randn(500, 3, generator=rng) @ torch.tensor([[1.0, 0, 0], [2.0, 0.5, 0], [0, 0, 0.1]])
    density = encoder.KernelDensity(*codes.shape)
    density.fit(codes)
    torch.testing.assert_close(density.codes, codes)
    # L from all pairs of codes, and the best h of those that are tried
    d = torch.cdist(codes.double(), codes.double()).fill_diagonal_(torch.inf)
    differences = (codes.double()[d.topk(10, largest=False).indices] - codes.double()[:, None]).flatten(0, 1)
    root = torch.linalg.cholesky(differences.T @ differences / len(differences)).float()
    h = density.spread[0, 0] / root[0, 0]
    torch.testing.assert_close(density.spread, h * root, rtol=1e-4, atol=1e-6)
    white = torch.linalg.solve_triangular(root, codes.T, upper=False).T.double()

    def score(width):
        return float(gkfast.log_density(white, white, width, leave_one_out=True).mean())

    assert score(float(h)) > max(score(float(h) / 1.2), score(float(h) * 1.2))
    # the last column of the noise picks a code, the others move it
    noise = torch.tensor([[0.0, 0, 0, 0.5], [1.0, 0, 0, 0.0], [0.0, 0, 0, 0.9999]])
    drawn = density(noise)
    torch.testing.assert_close(drawn, codes[[250, 0, 499]] + noise[:, :3] @ density.spread.T)
    many = density(generate_data(20_000, 3, generator=rng))
    expected = torch.cov(codes.T, correction=0) + density.spread @ density.spread.T
    torch.testing.assert_close(torch.cov(many.T), expected, rtol=0.05, atol=0.05)


def test_a_run_whose_codes_come_from_a_kernel_density(tmp_path):
    options = {"code_prior": "kernel", "code_steps": 0, "noise_dim": 3, "warmup": 3}
    summary = made(tmp_path / "run", **options)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(line["run"] for line in lines)) == ["encoder", "rpgan+mmd", "rpgan"]
    assert summary["code_seconds"] > 0
    assert "kernel density of the data" in (tmp_path / "run" / "report.html").read_text()
    # the generator can be made again, with its codes
    generator, _ = run.build(small(), settings(**options))
    generator.load_state_dict(torch.load(tmp_path / "run" / "generator.pt", weights_only=True)["weights"])
    state = checkpoint.Checkpoints(tmp_path / "run" / "checkpoints" / "encoder").load()
    net = encoder.autoencoder(small(), settings(**options))
    net.load_state_dict(state["autoencoder"])
    torch.testing.assert_close(generator[0].codes, networks.sample(net, small().train)[-1])
    # a cut run goes on to the same bits
    made(tmp_path / "cut", **options, control=False)
    for path in (tmp_path / "cut" / "checkpoints" / "generator").glob("*8*"):
        path.unlink()
    made(tmp_path / "cut", **options, control=False, resume=True)
    again = torch.load(tmp_path / "cut" / "generator.pt", weights_only=True)["weights"]
    assert all(torch.equal(value, again[key]) for key, value in generator.state_dict().items())


@pytest.mark.parametrize("stage", [encoder.AutoencoderTraining, Training])
@pytest.mark.parametrize("step", [4, 6])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, monkeypatch, stage, step):
    whole = made(tmp_path / "whole")
    advance, before = stage.advance, signal.signal(signal.SIGINT, signal.default_int_handler)

    def advancing(training):
        record = advance(training)
        if training.step == step:
            signal.raise_signal(signal.SIGINT)
        return record

    with monkeypatch.context() as patch, Signals() as signals:
        patch.setattr(stage, "advance", advancing)
        with pytest.raises(Stopped, match=f"at step {step}, which is saved"):
            made(tmp_path / "cut", signals=signals)
    signal.signal(signal.SIGINT, before)
    torch.manual_seed(77)
    cut = made(tmp_path / "cut", resume=True)
    timed = {"seconds", "encoder_seconds", "code_seconds", "control"}
    for summary in (whole, cut):
        for record in (record for rows in summary["quality"].values() for record in rows):
            del record["seconds"]
    assert {k: v for k, v in whole.items() if k not in timed} == {k: v for k, v in cut.items() if k not in timed}
    for name in ("generator", "control"):
        a, b = (gkfast.gan.load(tmp_path / run / f"{name}.pt").state_dict() for run in ("whole", "cut"))
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_an_encoder_of_ones_own(tmp_path):
    own = f"{__name__}:pyramid"
    summary = made(tmp_path / "run", encoder=own, code_steps=0, compared=[0, -1], steps=3)
    assert "code_seconds" not in summary
    assert len(summary["encoder_sigma"]) == 2
    assert own in (tmp_path / "run" / "report.html").read_text()


def flat():
    return nn.Flatten()


def test_features_of_ones_own_are_named_in_the_report(tmp_path):
    own = f"{__name__}:flat"
    summary = made(tmp_path / "run", features=own, steps=3)
    # no stage is trained by them
    assert summary["encoder"] == ""
    assert summary["judged_by"] == own
    # those of pixels, as they are the same
    assert summary["raw_precision"] == summary["manifold_precision"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"<dt>judged in</dt><dd>{own}</dd>" in page
    with pytest.raises(ValueError, match="--features must be module:function, a function that Python can import"):
        made(tmp_path / "other", features="nowhere:x")
    assert not list((tmp_path / "other").iterdir())


def test_an_encoder_may_be_a_function_of_a_batch():
    found = encoder.load("--encoder", f"{__name__}:halves", small(), [0, -1])
    first, second = encoder.outputs(found, ROWS)
    assert torch.equal(torch.cat([first, second], 1), ROWS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"encoder": "nowhere:x"},
            r"--encoder must be module:function, .* got 'nowhere:x' \(ModuleNotFoundError: No m",
        ),
        ({"encoder": f"{__name__}:none"}, "--encoder must be module:function"),
        ({"encoder": "json"}, "--encoder must be module:function"),
        (
            {"encoder": f"{__name__}:no_module"},
            "--encoder must be a function of a batch, or return a torch.nn.Module, got .*, 3",
        ),
        ({"encoder": f"{__name__}:pyramid", "compared": [2]}, r"list of tensors that has the layers \[2\]"),
        ({"encoder": f"{__name__}:of_all_rows"}, "must return a row of floating-point numbers for each sample"),
    ],
)
def test_a_wrong_encoder_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        encoder.load("--encoder", options["encoder"], small(), options.get("compared", [-1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "a:b"}, "code_steps must be 0 with an encoder of your own"),
        ({"encoder_steps": 0}, "encoder_steps must be at least 1 without an encoder"),
        ({"loss": "rpgan"}, 'space must be "data" for a loss without a kernel term, got "encoder" with rpgan'),
        (
            {"code_prior": "kernel"},
            'code_prior "kernel" must have an autoencoder, no code_steps and noise_dim = code',
        ),
        ({"code_prior": "kde"}, "code_prior must be network or kernel, got 'kde'"),
        ({"compared": []}, "compared must have a layer at least"),
        ({"ladders": [[1.0], [2.0]]}, "ladders must have one for each of the 1 compared layers, got 2"),
        ({"rules": ["widest"]}, "rules must be median, mean"),
        ({"ladders": [[-1.0]]}, "ladders must be positive finite numbers"),
        ({"image_size": 3}, "image_size must be 0 or at least 4, got 3"),
        ({"compared": [0.5]}, "compared must be a whole number"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        settings(**options)


def test_settings_of_an_encoder_on_the_command_line():
    chosen = config.resolve(None, {"data": "mnist", "encoder": "a:b"}, ["compared=[0, 1]", "ladders=[[1],[2,3]]"])
    assert (chosen.space, chosen.code_steps, chosen.compared) == ("encoder", 0, [0, 1])
    assert chosen.ladders == [[1.0], [2.0, 3.0]]
    # what was printed is read back
    assert Config.from_settings(**config.tomllib.loads(config.as_toml(chosen))) == chosen
    # an adversary alone needs none, and has the rates of the control
    alone = config.resolve(None, {"data": "mnist", "loss": "rpgan"}, [])
    control = config.control(config.resolve(None, {"data": "mnist"}, []))
    for each in (alone, control):
        recipe = each.recipe
        assert (each.space, recipe.generator_rate, recipe.discriminator_rate, recipe.warmup) == (
            "data",
            4e-3,
            4e-3,
            0,
        )
    assert control.recipe.steps == control.control_steps
    given = config.resolve(None, {"data": "mnist", "loss": "rpgan"}, ["generator_rate=1e-3", "warmup=7"]).recipe
    assert (given.generator_rate, given.discriminator_rate, given.warmup) == (1e-3, 4e-3, 7)


def test_a_wrong_encoder_leaves_no_folder_behind(tmp_path):
    with pytest.raises(ValueError, match="--encoder must be module:function"):
        made(tmp_path / "run", encoder="nowhere:x", code_steps=0)
    assert not list((tmp_path / "run").iterdir())


def test_an_encoder_returns_a_list():
    goal = objective("mmd", [[1.0]], encoder=nn.Identity())
    recipe = config.Recipe(steps=4, batch=16, noise_dim=2)
    with pytest.raises(ValueError, match="encoder must return a list of tensors, got Tensor of shape"):
        Training(nn.Linear(3, 2), nn.Linear(2, 1), torch.randn(64, 2), goal, recipe, sigma=[1.0])


def test_an_encoder_must_be_a_module():
    with pytest.raises(TypeError, match=r"encoder must be a torch.nn.Module or None, got"):
        Objective(encoder=lambda x: [x])


def test_an_encoder_that_diverges_is_told(tmp_path):
    message = "training must keep the autoencoder finite, got (nan|-?inf) at its step [0-9]+; lower encoder_rate"
    with pytest.raises(FloatingPointError, match=message):
        made(tmp_path / "run", encoder_rate=1e30)
