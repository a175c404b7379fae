"""A run: a GAN and its control without the kernel, measured and written to a folder, and resumed from it."""

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gkfast
from gkfast.gan import checks, losses, metrics, networks, report
from gkfast.gan.checkpoint import Checkpoints, Signals, outline, write, write_tensors
from gkfast.gan.config import Config, control, saved
from gkfast.gan.data import Data, generate_data
from gkfast.gan.train import Record, sample
from gkfast.gan.trainer import Result, fit
from gkfast.nn import Bandwidth


@dataclass(frozen=True)
class Part:
    """One trained GAN of a run, and what is left of it."""

    loss: str
    samples: Tensor
    history: list[Record]
    snapshots: list[tuple[int, Tensor]]
    figures: dict[str, Any]


def run(
    data: Data,
    folder: Path,
    config: Config,
    *,
    resume: bool = False,
    signals: Signals | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train, measure and report into `folder`; returns what metrics.json holds.

    The folder holds config.json, metrics.jsonl (a record per logged step, as it goes), checkpoints/, generator.pt,
    metrics.json, pictures and report.html. After an interruption what is there is whole, and a run with `resume`
    goes on from the newest checkpoint, to the same bits on a CPU.
    """
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise checks.missing("training", "accelerate") from error
    sigma, fixed = bandwidths(data, config), metrics.fixed_sigma(data)
    processes = PartialState(cpu=config.device == "cpu")
    main: bool = processes.is_main_process
    configs = [config]
    if config.control and losses.without_kernel(config.loss) != config.loss:
        configs.append(control(config))
    names = ("generator", "control")[: len(configs)]
    folders = [Checkpoints(folder / "checkpoints" / name, config.keep) for name in names]
    # whatever may be refused is, before anything is written
    checks.shares(config.batch, processes.num_processes)
    if resume:
        _check_same(data, folder, configs, folders)
    if main:
        warning = checks.narrow(_mean_kernel(data, sigma), sigma)
        if warning and config.loss not in losses.ADVERSARIES:
            print(f"gkfast train: {warning}", file=sys.stderr)
        _write_json(folder / "config.json", {"gkfast": gkfast.__version__, **asdict(config)})
    parts: list[Part] = []
    done: list[dict[str, Any]] = []
    for name, part, checkpoints in zip(names, configs, folders, strict=True):
        log = _log(folder, done, part) if main else None
        result = _train(data, part, sigma, fixed, checkpoints, resume, signals, log, progress)
        done += [{"run": part.loss, **record} for record in result.history]
        if main:
            write_tensors(folder / f"{name}.pt", result.average.state_dict())
            samples = draw(result, data, part)
            figures = metrics.evaluate(samples, data, fixed, part.seed)
            figures = {"seconds": result.seconds, **figures}
            parts.append(Part(part.loss, samples, result.history, result.snapshots, figures))
    if not main:
        return {}
    summary = _summary(config, sigma, parts)
    # what the same metrics give for the real training data: the best that can be hoped for
    summary["real"] = metrics.evaluate(data.train, data, fixed, config.seed)
    _write_json(folder / "metrics.json", summary)
    report.write(folder, data, parts, summary)
    return summary


def _train(
    data: Data,
    config: Config,
    sigma: list[float],
    fixed: list[float],
    checkpoints: Checkpoints,
    resume: bool,
    signals: Signals | None,
    log: Callable[[list[Record]], None] | None,
    progress: bool,
) -> Result:
    generator, discriminator = build(data, config)
    return fit(
        generator.to(config.device),
        discriminator.to(config.device),
        data.train,
        objective(config, sigma),
        config,
        sigma=fixed,
        held_out=data.validation,
        checkpoints=checkpoints,
        resume=resume,
        signals=signals,
        progress=config.loss if progress else None,
        on_record=log,
    )


def _check_same(data: Data, folder: Path, configs: Sequence[Config], folders: Sequence[Checkpoints]) -> None:
    """Every part can go on from its newest checkpoint; before there are any, config.json says what was begun."""
    states = [checkpoints.load() for checkpoints in folders]
    for config, checkpoints, state in zip(configs, folders, states, strict=True):
        if state is not None:
            path = checkpoints.path(state["step"])
            checks.same_data(path, state.get("data"), outline(data.train))
            checks.same_run(path, state["identity"], config.identity())
    if not any(states) and (folder / "config.json").is_file():
        checks.same_run(folder / "config.json", saved(folder), configs[0].identity())


def build(data: Data, config: Config) -> tuple[nn.Module, nn.Module]:
    """The generator and the discriminator, initialised from the seed."""
    critic = losses.parts(config.loss)[0]
    features = {"smmd": 1}.get(critic or "", config.critic_features) if critic in losses.CRITICS else 1
    spectral = critic in (*losses.CRITICS, "hinge") if config.spectral is None else config.spectral
    shape: dict[str, Any] = {"network": config.network, "units": config.units or None, "layers": config.layers}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        generator = networks.generator(data, config.noise_dim, **shape)
        discriminator = networks.discriminator(data, **shape, outputs=features, spectral=spectral)
    return generator, discriminator


def objective(config: Config, sigma: list[float]) -> losses.Objective:
    on_features = config.space == "features"
    return losses.objective(
        config.loss,
        # features move while the discriminator learns: their bandwidth follows, unless it is given
        _rule(config) if on_features else sigma,
        config.lam,
        scales=config.ladder,
        momentum=config.momentum,
        on_features=on_features,
        r1=config.r1,
        r2=config.r2,
    )


def _rule(config: Config) -> Bandwidth:
    if isinstance(config.sigma, list):
        return config.sigma
    return "mean" if config.sigma == "mean" else "median"


def bandwidths(data: Data, config: Config) -> list[float]:
    """The frozen bandwidths on the data: the median or mean distance of all of them times the ladder, or given."""
    if isinstance(config.sigma, list) and config.space == "data":
        return config.sigma
    rule = gkfast.mean_sigma if config.sigma == "mean" else gkfast.median_sigma
    base = float(rule(data.train))
    checks.spread(base, config.sigma)
    return [base * step for step in config.ladder]


def draw(result: Result, data: Data, config: Config) -> Tensor:
    """The samples that are measured, on the CPU."""
    rng = torch.Generator().manual_seed(config.seed + 1)
    # the loop's own noise is drawn in the same way
    noise = generate_data(metrics.samples_of(data), config.noise_dim, generator=rng).to(config.device)
    return torch.cat([sample(result.average, part).flatten(1).cpu() for part in noise.split(2000)])


def _mean_kernel(data: Data, sigma: list[float]) -> float:
    """The mean kernel value of different real samples: near 0 no sample would feel another."""
    real, weights = data.validation[:500], [1 / len(sigma)] * len(sigma)
    return float(gkfast.kernel_means(real, real[:2], sigma, weights=weights).xx)


def preview(data: Data, config: Config) -> list[str]:
    """What a run would be, in words: data, networks, bandwidths and their mean kernel values before training."""
    sigma = bandwidths(data, config)
    generator, discriminator = build(data, config)
    noise = generate_data(500, config.noise_dim, generator=torch.Generator().manual_seed(config.seed))
    made, real = sample(generator, noise).flatten(1), data.validation[:500]
    means = gkfast.kernel_means(made, real, sigma, weights=[1 / len(sigma)] * len(sigma))
    return [
        f"{data.name}: {len(data.train)} samples of {data.train.shape[1]} numbers to train on, "
        f"{len(data.validation)} and {len(data.test)} held out",
        f"generator: {networks.parameters(generator)} parameters, "
        f"discriminator: {networks.parameters(discriminator)}",
        f"bandwidths on the data: {', '.join(f'{s:.4g}' for s in sigma)}",
        f"mean kernel values before training: generated {float(means.xx):.3g}, real {float(means.yy):.3g}, "
        f"between them {float(means.xy):.3g}",
    ]


def require_extra(config: Config) -> None:
    """ImportError if anything that a run needs at its end is missing, so that it is known at its start."""
    for module in ("accelerate", "tqdm", "matplotlib", "sklearn"):
        if importlib.util.find_spec(module) is None:
            raise checks.missing("training", module)
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise checks.no_tensorboard()


def _log(folder: Path, before: Sequence[dict[str, Any]], config: Config) -> Callable[[list[Record]], None]:
    """Writes metrics.jsonl anew when a part begins or is resumed, and appends to it from then on.

    What a killed run had logged after its last checkpoint, or half a line of it, is gone then.
    """
    path, written = folder / "metrics.jsonl", -1
    board = _tensorboard(folder / "tensorboard" / config.loss) if config.tensorboard else None

    def lines(history: Sequence[Record]) -> str:
        return "".join(json.dumps({"run": config.loss, **record}) + "\n" for record in history)

    def log(history: list[Record]) -> None:
        nonlocal written
        if written < 0:
            write(path, ("".join(json.dumps(record) + "\n" for record in before) + lines(history)).encode())
        else:
            with open(path, "a") as file:
                file.write(lines(history[written:]))
        if board is not None:
            for record in history[max(written, 0) :]:
                for name, value in record.items():
                    board.add_scalar(name, value, int(record["step"]))
            board.flush()
        written = len(history)

    return log


def _tensorboard(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


def _summary(config: Config, sigma: list[float], parts: Sequence[Part]) -> dict[str, Any]:
    settings = asdict(config) | {"sigma": sigma, "lam": losses.default_lam(config.loss)}
    # in the summary this is what the control scored
    del settings["control"]
    if config.lam is not None:
        settings["lam"] = config.lam
    summary: dict[str, Any] = {"gkfast": gkfast.__version__, **settings, **parts[0].figures}
    summary |= {key: parts[0].history[-1][key] for key in ("k_xx", "k_yy", "k_xy")}
    if len(parts) > 1:
        summary["control"] = {"loss": parts[1].loss, "steps": config.steps, **parts[1].figures}
    return summary


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write(path, (json.dumps(value, indent=2) + "\n").encode())
