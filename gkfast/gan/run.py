"""A run: a GAN and its control without the kernel, measured and written to a folder, and resumed from it."""

import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gkfast
from gkfast.gan import checks, columns, encoder, metrics, networks, objectives, report, sampler
from gkfast.gan.checkpoint import (
    Checkpoints,
    Signals,
    check_identity,
    check_resumable,
    other_data,
    outline,
    write,
)
from gkfast.gan.config import Config, control, saved
from gkfast.gan.data import Data, generate_data
from gkfast.gan.loop import Record, forked_random_state, take_steps
from gkfast.gan.networks import sample
from gkfast.gan.report import TrainedGan
from gkfast.gan.shown import Shown, duration
from gkfast.gan.train import Result, Training, check_processes

# with a smaller mean kernel value, a batch of a few hundred has not one close pair
_LEAST_MEAN_KERNEL = 1e-5
# steps by which the time of a training is estimated
_TRIED = 10


def run(
    data: Data,
    folder: Path,
    config: Config,
    *,
    resume: bool = False,
    signals: Signals | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train, measure and report into `folder`; returns the contents of metrics.json.

    The folder holds config.json (the settings, and a table's columns), metrics.jsonl (a record per logged step, as it
    goes), checkpoints/, generator.pt, metrics.json, pictures and report.html; progress.png comes and grows while
    training. An interruption leaves whole files, and a run with `resume` goes on from
    the newest checkpoint, to the same bits on a CPU.
    """
    checks.require("accelerate", "training", "accelerate")
    from accelerate import PartialState

    sigma, fixed_sigma = bandwidths(data, config), metrics.fixed_sigma(data)
    processes = PartialState(cpu=config.device == "cpu")
    main: bool = processes.is_main_process
    configs = parts(config)
    checkpoints = {name: Checkpoints(folder / "checkpoints" / name, config.keep) for name in configs}
    # every refusal comes before the first write
    own, features = own_encoder(data, config), own_features(data, config)
    check_processes(config.recipe.batch, processes.num_processes)
    if resume:
        _check_resumable(data, folder, configs, checkpoints)
    expected: dict[str, float] = {}
    if main:
        _warn_of_narrow(data, config, sigma)
        table = {} if data.columns is None else {"columns": data.columns.as_dict()}
        _write_json(folder / "config.json", {"gkfast": gkfast.__version__, **table, **config.settings()})
        finished = resume and all(
            checkpoints[name].steps()[-1:] == [gan.recipe.steps] for name, gan in configs.items()
        )
        if finished and progress:
            print(
                f"gkfast train: {folder} was finished before, with all {config.recipe.steps} steps: nothing is left "
                "to train, the report is written anew",
                file=sys.stderr,
            )
        elif progress:
            # many processes would have to take these steps together
            expected = estimate(data, config) if processes.num_processes == 1 and not resume else {}
            note = [f"{data.name}: {data.note}"] if data.note else []
            print("\n".join([*note, *_sizes(data, config, expected)]), file=sys.stderr)
    # the others measure nothing
    judge = metrics.judge(data, features, config.features) if main else None
    gans: list[TrainedGan] = []
    labels = [label for gan in configs.values() for label in stages(gan)]
    shown = Shown(data, folder, labels, expected, config.tensorboard)
    shared = _Run(data, folder, own, judge, resume, signals, progress, main, shown)
    for name, gan in configs.items():
        first = _first_stages(shared, gan)
        training = Training(
            first.generator,
            build(data, gan)[1].to(gan.device),
            data.train,
            objective(gan, data.train, sigma, first.encoder, first.sigma),
            gan.recipe,
            sigma=fixed_sigma,
            held_out=data.validation,
            quality=partial(_quality, data, gan, shared.follows) if shared.follows else None,
            seconds=sum(first.seconds.values()),
            on_snapshot=partial(shown.draw, gan.loss),
        )
        result = training.run(**shared.options(name, gan.loss, gan))
        shown.end(gan.loss, result.history)
        if main:
            sampler.save(folder / f"{name}.pt", sampler.of_training(result.average, data, gan.recipe.noise_dim))
            samples = draw(result, data, gan)
            found = metrics.evaluate(samples, data, fixed_sigma, gan.recipe.seed, judge)
            figures = {"seconds": result.seconds, **first.seconds, **found}
            quality = first.quality + [{"stage": gan.loss, **record} for record in result.quality]
            gans.append(TrainedGan(gan.loss, samples, result.history, result.snapshots, quality, figures))
            if name == "generator":
                encoder_sigma = first.sigma
    if not main:
        return {}
    summary = _summary(config, sigma, encoder_sigma, gans)
    summary |= {"note": data.note, "judged_by": None if judge is None else judge.name}
    # the same metrics of the real training data: the best that can be hoped for
    summary["real"] = metrics.evaluate(data.train, data, fixed_sigma, config.recipe.seed, judge)
    summary["rows"] = {
        "curves": [len(gans[0].snapshots[0][1]), len(data.validation)],
        "metrics": [min(metrics.COUNTED, len(gans[0].samples)), len(data.test)],
    }
    if data.columns is not None:
        _compare_columns(data, gans, summary)
    _write_json(folder / "metrics.json", summary)
    report.write(folder, data, gans, summary)
    return summary


def parts(config: Config) -> dict[str, Config]:
    """The GANs of a run by the names of their files: the one that is asked for, and its control, if there is one."""
    if not config.control or objectives.without_kernel(config.loss) == config.loss:
        return {"generator": config}
    return {"generator": config, "control": control(config)}


def stages(config: Config) -> dict[str, int]:
    """The stages of a GAN's training, the last of which is named by its loss, and their steps."""
    own = config.space == "encoder" and not config.encoder
    # a kernel density of codes is found in one
    codes = config.code_steps or int(config.code_prior == "kernel")
    first = {"encoder": config.encoder_steps, "codes": codes} if own else {}
    return {name: steps for name, steps in first.items() if steps} | {config.loss: config.recipe.steps}


def stage_steps(data: Data, config: Config) -> dict[str, Callable[[], Any]]:
    """A function for each stage that takes one of its steps, with untrained networks of its own."""
    # many steps: of the few that are taken the first alone is logged
    long = replace(config.recipe, steps=10**6)
    generator, discriminator = (network.to(config.device) for network in build(data, config))
    found: dict[str, Callable[[], Any]] = {}
    compared, sigma = own_encoder(data, config), [[1.0]] * len(config.compared)
    if "encoder" in stages(config):
        net = encoder.autoencoder(data, config).to(config.device)
        own_rate = replace(long, generator_rate=config.encoder_rate, warmup=0)
        found["encoder"] = encoder.AutoencoderTraining(net, data.train, own_rate, config.code_noise).advance
        compared = encoder.Encoder(encoder.autoencoder(data, config), config.compared)
    if "codes" in stages(config):
        codes = torch.randn(len(data.train), config.code)
        goal = objectives.objective(config.code_loss, metrics.sigma_by_rule(codes, "median", config.ladder))
        recipe = replace(long, batch=min(config.code_batch, len(codes)))
        whole = build(data, config)[0].to(config.device)
        assert isinstance(whole, nn.Sequential)
        first = whole[0]
        if isinstance(first, encoder.KernelDensity):
            found["codes"] = partial(first.fit, codes.to(config.device))
        else:
            found["codes"] = Training(first, discriminator, codes, goal, recipe, sigma=[1.0]).advance
    if compared is not None:
        compared = compared.to(config.device)
        sigma = encoder_bandwidths(compared, data, config)
    goal = objective(config, data.train, bandwidths(data, config), compared, sigma)
    found[config.loss] = Training(generator, discriminator, data.train, goal, long, sigma=[1.0]).advance
    return found


def estimate(data: Data, config: Config) -> dict[str, float]:
    """The seconds of each stage, by the time of ten real steps; stages that would not take a hundred are left out."""
    seconds: dict[str, float] = {}
    with forked_random_state(torch.device(config.device)):
        for gan in parts(config).values():
            if max(stages(gan).values()) < 10 * _TRIED:
                continue
            for label, advance in stage_steps(data, gan).items():
                taken = []
                for _ in range(2 + _TRIED):
                    start = time.perf_counter()
                    advance()
                    if config.device == "cuda":
                        torch.cuda.synchronize()
                    taken.append(time.perf_counter() - start)
                # the first two compile and warm up
                seconds[label] = statistics.median(taken[2:]) * stages(gan)[label]
    return seconds


def _sizes(data: Data, config: Config, expected: dict[str, float]) -> list[str]:
    """How large the networks are, and how long the training will take."""
    generator, discriminator = (networks.parameters(network) for network in build(data, config))
    words = f"generator: {generator:,} weights, discriminator: {discriminator:,} weights"
    if expected:
        each = ", ".join(f"{label} {duration(seconds)}" for label, seconds in expected.items())
        words += f"; about {duration(sum(expected.values()))} by the time of {_TRIED} steps: {each}"
    return [words]


def _compare_columns(data: Data, gans: Sequence[TrainedGan], summary: dict[str, Any]) -> None:
    """Add what there is to say about each column of a table, and the worst of it to the metrics."""
    assert data.columns is not None
    real, train = (data.columns.restore(rows) for rows in (data.test, data.train))
    truth = columns.compare(data.columns, real, real)
    summary["columns"] = {"real": truth}
    summary["real"] |= columns.worst(columns.compare(data.columns, real, train), truth)
    for gan, figures in zip(gans, [summary, *([summary["control"]] if "control" in summary else [])], strict=True):
        found = columns.compare(data.columns, real, data.columns.restore(gan.samples))
        summary["columns"][gan.loss] = found
        figures.update(columns.worst(found, truth))
        figures["errors"] |= columns.errors(data.columns, real, data.columns.restore(gan.samples), summary["seed"])


def own_encoder(data: Data, config: Config) -> encoder.Encoder | None:
    """The user's encoder, if the kernel compares its outputs."""
    used = config.space == "encoder" and config.encoder
    return encoder.load("--encoder", config.encoder, data, config.compared) if used else None


def own_features(data: Data, config: Config) -> encoder.Encoder | None:
    """What the user judges samples by, if anything."""
    return encoder.load("--features", config.features, data, [-1]) if config.features else None


@dataclass
class _Run:
    """What the stages of a run share."""

    data: Data
    folder: Path
    # the user's
    encoder: encoder.Encoder | None
    judge: metrics.Judge | None
    resume: bool
    signals: Signals | None
    progress: bool
    main: bool
    shown: Shown

    @property
    def follows(self) -> metrics.Judge | None:
        """What judges samples while training: stacks are read, and need classes."""
        reads = self.judge is not None and self.judge.classes is not None
        return self.judge if self.data.glyphs is None or reads else None

    def options(self, name: str, label: str, config: Config) -> dict[str, Any]:
        """Those of take_steps, for the stage whose checkpoints are in the folder `name`; called once for each."""
        words = self.shown.begin(label)
        return {
            "checkpoints": Checkpoints(self.folder / "checkpoints" / name, config.keep),
            "resume": self.resume,
            "identity": config.identity(),
            "signals": self.signals,
            "progress": words if self.progress else None,
            "on_record": self.shown.log(label) if self.main else None,
        }


@dataclass
class _Stages:
    """What the stages before the adversary's leave to it, and their times and figures."""

    generator: nn.Module
    encoder: nn.Module | None = None
    sigma: list[list[float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    quality: list[dict[str, Any]] = field(default_factory=list)


def _first_stages(shared: _Run, config: Config) -> _Stages:
    """Train the encoder, and a generator of its codes, where the settings ask for them."""
    data, recipe = shared.data, config.recipe
    generator = build(data, config)[0].to(config.device)
    if config.space != "encoder":
        return _Stages(generator)
    if shared.encoder is not None:
        own = shared.encoder.to(config.device)
        return _Stages(generator, own, encoder_bandwidths(own, data, config))
    autoencoder = encoder.autoencoder(data, config).to(config.device)
    first = encoder.AutoencoderTraining(
        autoencoder,
        data.train,
        replace(recipe, steps=config.encoder_steps, generator_rate=config.encoder_rate, warmup=0),
        config.code_noise,
    )
    take_steps(first, **shared.options("encoder", "encoder", config))
    first.share()
    shared.shown.end("encoder", first.history)
    compared = encoder.Encoder(autoencoder, config.compared)
    stages = _Stages(generator, compared, encoder_bandwidths(compared, data, config))
    stages.seconds["encoder_seconds"] = first.seconds
    assert isinstance(generator, nn.Sequential)
    generator[1].load_state_dict(autoencoder.decode.state_dict())
    if isinstance(generator[0], encoder.KernelDensity):
        start = time.perf_counter()
        generator[0].fit(encoder.outputs(encoder.Encoder(autoencoder, [-1]), data.train.to(config.device))[0])
        stages.seconds["code_seconds"] = time.perf_counter() - start
    elif config.code_steps:
        _train_codes(shared, config, autoencoder, stages)
    return stages


def _train_codes(shared: _Run, config: Config, autoencoder: nn.Module, stages: _Stages) -> None:
    """Train the generator's first part by a kernel loss between its codes and those of the data."""
    data = shared.data
    assert isinstance(stages.generator, nn.Sequential)
    network, decoder = stages.generator
    codes = encoder.Encoder(autoencoder, [-1])
    train, held_out = (encoder.outputs(codes, rows.to(config.device))[0] for rows in (data.train, data.validation))
    judge = shared.follows
    sigma = metrics.sigma_by_rule(train, "mean" if config.sigma == "mean" else "median", config.ladder)
    second = Training(
        network,
        # not asked
        build(data, config)[1].to(config.device),
        train,
        objectives.objective(config.code_loss, sigma),
        replace(config.recipe, steps=config.code_steps, warmup=0, batch=min(config.code_batch, len(train))),
        sigma=sigma,
        held_out=held_out,
        quality=None
        if judge is None
        else lambda average: _quality(data, config, judge, nn.Sequential(average, decoder)),
        seconds=sum(stages.seconds.values()),
    )
    result = second.run(**shared.options("codes", "codes", config))
    shared.shown.end("codes", result.history)
    network.load_state_dict(result.average.state_dict())
    stages.seconds["code_seconds"] = result.seconds - sum(stages.seconds.values())
    stages.quality += [{"stage": "codes", **record} for record in result.quality]


def encoder_bandwidths(compared: encoder.Encoder, data: Data, config: Config) -> list[list[float]]:
    """The frozen bandwidths of each compared layer: a rule's distance of all training rows and a ladder, or given."""
    device = next(iter(compared.state_dict().values()), data.train).device
    layers = encoder.outputs(compared, data.train.to(device))
    rules: list[Any] = config.rules or [config.sigma] * len(layers)
    ladders = config.ladders or [config.ladder] * len(layers)
    return [
        rule if isinstance(rule, list) else metrics.sigma_by_rule(rows, rule, ladder)
        for rows, rule, ladder in zip(layers, rules, ladders, strict=True)
    ]


def _quality(data: Data, config: Config, judge: metrics.Judge, generator: nn.Module) -> Record:
    """The figures that are followed while training, of a few thousand samples."""
    noise = _noise(config, metrics.followed(data)).to(config.device)
    return metrics.quality(sample(generator, noise).flatten(1).cpu(), data, judge)


def _noise(config: Config, rows: int) -> Tensor:
    """Noise for samples that are measured: the loop's own is drawn in the same way, from another seed."""
    rng = torch.Generator().manual_seed(config.recipe.seed + 1)
    return generate_data(rows, config.recipe.noise_dim, generator=rng)


def _check_resumable(
    data: Data, folder: Path, configs: dict[str, Config], checkpoints: dict[str, Checkpoints]
) -> None:
    """Every GAN can go on from its newest checkpoint; without any, config.json has the settings of the run."""
    states = {name: kept.load() for name, kept in checkpoints.items()}
    for name, state in states.items():
        if state is not None:
            path = checkpoints[name].path(state["step"])
            check_resumable(path, state, outline(data.train), configs[name].identity())
            # scaled columns look alike
            _check_columns(path, data, folder)
    if not any(states.values()) and (folder / "config.json").is_file():
        check_identity(folder / "config.json", saved(folder), configs["generator"].identity())


def _check_columns(path: Path, data: Data, folder: Path) -> None:
    """A table has the columns of the run that it goes on with."""
    before = columns.saved(folder / "config.json")
    if data.columns is not None and before is not None and not data.columns.alike(before):
        raise other_data(path)


def _warn_of_narrow(data: Data, config: Config, sigma: list[float]) -> None:
    """Say so where the mean kernel value of different real samples is so small that no sample feels another."""
    # a loss of the user's own has its own bandwidths, if any
    if config.loss in objectives.ADVERSARIES or ":" in config.loss:
        return
    real = data.validation[:500]
    mean = metrics.mean_kernels(real, real[:2], sigma)["k_xx"]
    if mean < _LEAST_MEAN_KERNEL:
        print(
            f"gkfast train: sigma should be wider, got {', '.join(f'{s:.3g}' for s in sigma)} with a mean kernel "
            f"value of {mean:.1e} between real samples: the kernel will hardly guide; add wider bandwidths",
            file=sys.stderr,
        )


def build(data: Data, config: Config) -> tuple[nn.Module, nn.Module]:
    """The generator and the discriminator, initialised from the seed."""
    judge, _ = objectives.split_name(config.loss)
    outputs = config.critic_features if judge in objectives.CRITICS and judge != "smmd" else 1
    spectral = judge in (*objectives.CRITICS, "hinge") if config.spectral is None else config.spectral
    shape: dict[str, Any] = {"network": config.network, "units": config.units or None, "layers": config.layers}
    on_codes = config.space == "encoder" and not config.encoder
    with forked_random_state(torch.device("cpu")):
        torch.manual_seed(config.recipe.seed)
        if on_codes:
            generator = encoder.generator(data, config, encoder.autoencoder(data, config).decode)
        else:
            generator = networks.generator(data, config.recipe.noise_dim, **shape)
        discriminator = networks.discriminator(data, **shape, outputs=outputs, spectral=spectral)
    return generator, discriminator


def objective(
    config: Config,
    real: Tensor,
    sigma: Sequence[float],
    compared: nn.Module | None = None,
    encoder_sigma: Sequence[Sequence[float]] = (),
) -> objectives.Objective:
    on_features = config.space == "features"
    # features move while the discriminator learns: their bandwidth follows, unless it is given
    rule: Any = config.sigma
    whole: Tensor | list[Tensor] | None = None
    if objectives.split_name(config.loss)[1] == "landmarks":
        real = real.to(config.device)
        whole = real if compared is None else encoder.outputs(compared, real)
    return objectives.objective(
        config.loss,
        encoder_sigma if compared is not None else rule if on_features else sigma,
        config.lam,
        scales=config.ladder,
        momentum=config.momentum,
        on_features=on_features,
        encoder=compared,
        real=whole,
        r1=config.r1,
        r2=config.r2,
    )


def bandwidths(data: Data, config: Config) -> list[float]:
    """The frozen bandwidths on the data: the median or mean distance of all of them times the ladder, or given."""
    if isinstance(config.sigma, list) and config.space == "data":
        return config.sigma
    return metrics.sigma_by_rule(data.train, "mean" if config.sigma == "mean" else "median", config.ladder)


def draw(result: Result, data: Data, config: Config) -> Tensor:
    """The samples that are measured, on the CPU."""
    noise = _noise(config, metrics.samples_of(data)).to(config.device)
    samples = torch.cat([sample(result.average, rows).flatten(1).cpu() for rows in noise.split(2000)])
    # a table's in the range and kind of its columns
    return samples if data.columns is None else data.columns.as_given(samples)


def preview(data: Data, config: Config) -> list[str]:
    """A run before it begins: data, networks, bandwidths and their mean kernel values."""
    sigma = bandwidths(data, config)
    generator = build(data, config)[0]
    rng = torch.Generator().manual_seed(config.recipe.seed)
    fake = sample(generator, generate_data(500, config.recipe.noise_dim, generator=rng)).flatten(1)
    means = metrics.mean_kernels(fake, data.validation[:500], sigma)
    return [
        f"{data.name}: {len(data.train)} samples of {data.train.shape[1]} numbers to train on, "
        f"{len(data.validation)} and {len(data.test)} held out",
        *([data.note] if data.note else []),
        *_sizes(data, config, estimate(data, config)),
        f"bandwidths on the data: {', '.join(f'{s:.4g}' for s in sigma)}",
        "mean kernel values before training: generated {k_xx:.3g}, real {k_yy:.3g}, between them {k_xy:.3g}".format(
            **means
        ),
    ]


def require_extra(config: Config) -> None:
    """ImportError at the start for a module that is needed at the end."""
    for module in ("accelerate", "tqdm", "matplotlib", "sklearn"):
        if importlib.util.find_spec(module) is None:
            raise checks.missing("training", module)
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ImportError("tensorboard=true needs tensorboard, which is not installed; run pip install tensorboard")


def _summary(
    config: Config, sigma: list[float], encoder_sigma: list[list[float]], gans: Sequence[TrainedGan]
) -> dict[str, Any]:
    lam = objectives.default_lam(config.loss) if config.lam is None else config.lam
    settings = config.settings() | {"sigma": sigma, "encoder_sigma": encoder_sigma, "lam": lam}
    # in the summary it has the figures of the control
    del settings["control"]
    summary: dict[str, Any] = {"gkfast": gkfast.__version__, **settings, **gans[0].figures}
    summary |= {key: gans[0].history[-1][key] for key in ("k_xx", "k_yy", "k_xy")}
    if len(gans) > 1:
        steps = control(config).recipe.steps
        summary["control"] = {"loss": gans[1].loss, "steps": steps, **gans[1].figures}
    # what was followed while training
    summary["quality"] = {gan.loss: gan.quality for gan in gans if gan.quality}
    return summary


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write(path, (json.dumps(value, indent=2) + "\n").encode())
