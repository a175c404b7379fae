"""The settings of a run: one flat table, with defaults that suit the data.

Settings come from the defaults of the data, then a TOML file, then the command line; each replaces what was before.
"""

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from gkfast.gan import checks, objectives, own

# for sigma = "median" or "mean": wide bandwidths guide from afar, narrow ones sharpen
_LADDER = [1 / 8, 1 / 4, 1 / 2, 1.0, 2.0]

# no number depends on these settings: they may change when a run is resumed
_FREE = ("checkpoint_every", "keep", "control", "control_steps", "control_rate", "tensorboard")


class _Range(NamedTuple):
    least: float
    most: float = math.inf
    above_least: bool = False
    below_most: bool = False


_RANGES: dict[str, _Range] = {
    **dict.fromkeys(("steps", "layers", "critic_features", "critic_steps", "code", "keep", "threads"), _Range(1)),
    **dict.fromkeys(("batch", "code_batch"), _Range(2)),
    **dict.fromkeys(
        ("encoder_steps", "code_steps", "control_steps", "kernel_rows", "micro_batch", "warmup"), _Range(0)
    ),
    "code_noise": _Range(0),
    **dict.fromkeys(
        ("image_size", "units", "noise_dim", "lam", "clip", "checkpoint_every", "control_rate"), _Range(0)
    ),
    **dict.fromkeys(("generator_rate", "discriminator_rate", "encoder_rate"), _Range(0, above_least=True)),
    **dict.fromkeys(("r1", "r2"), _Range(0, checks.GREATEST_PENALTY)),
    "seed": _Range(0, checks.GREATEST_SEED),
    **dict.fromkeys(("momentum", "final_rate"), _Range(0, 1)),
    **dict.fromkeys(("beta1", "beta2", "ema"), _Range(0, 1, below_most=True)),
}
_CHOICES = {
    "space": ("data", "features", "encoder"),
    "code_loss": ("mmd", "gmmn", "logkde"),
    "code_prior": ("network", "kernel"),
    "network": ("mlp", "dcgan"),
    "precision": ("no", "bf16"),
    "device": ("cpu", "cuda"),
}


def _check(settings: Any) -> None:
    """Give every setting its type, and refuse what lies out of its range."""
    for name, kind in get_type_hints(type(settings)).items():
        value = _typed(name, getattr(settings, name), kind)
        object.__setattr__(settings, name, value)
        if name in _RANGES and value is not None:
            _check_range(name, value, _RANGES[name])
        if name in _CHOICES and value not in _CHOICES[name]:
            raise ValueError(f"{name} must be {' or '.join(_CHOICES[name])}, got {value!r}; choose one of them")
        if name in ("sigma", "ladder"):
            _check_bandwidths(name, value)
        for each in value if name in ("rules", "ladders") else ():
            _check_bandwidths(name, each)


def _check_bandwidths(name: str, value: str | list[float]) -> None:
    if isinstance(value, str):
        if value not in ("median", "mean"):
            raise ValueError(f"{name} must be median, mean or positive numbers, got {value!r}; median is usual")
    elif not value or not all(0 < v < math.inf for v in value):
        raise ValueError(f"{name} must be positive finite numbers, got {value!r}; for example [0.5, 1, 2]")


def _check_range(name: str, value: float, limits: _Range) -> None:
    least, most, above_least, below_most = limits
    low = not math.isfinite(value) or value < least or (above_least and value == least)
    high = value > most or (below_most and value == most)
    if most == 1 and (low or high):
        raise ValueError(f"{name} must lie between 0 and 1, got {value!r}; correct it")
    if low:
        rule = f"greater than {least:g}" if above_least else f"at least {least:g}"
        raise ValueError(f"{name} must be {rule} and finite, got {value!r}; correct it")
    if high:
        raise ValueError(f"{name} must be at most {most:g}, got {value!r}; correct it")


def _typed(name: str, value: Any, kind: Any) -> Any:
    """The value in the type of its setting; whole numbers may stand for floats."""
    options = get_args(kind) if get_origin(kind) is UnionType else (kind,)
    for option in options:
        if get_origin(option) is list:
            if isinstance(value, list):
                return [_typed(name, item, *get_args(option)) for item in value]
        elif option is float and type(value) in (int, float):
            return float(value)
        elif type(value) is option or (option is NoneType and value is None):
            return value
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "text", NoneType: "left out"}
    wanted = " or ".join(words.get(option, "a list") for option in options)
    raise ValueError(f"{name} must be {wanted}, got {value!r}; correct it in --config or --set")


@dataclass(frozen=True)
class Recipe:
    """How to train, whatever the networks and the loss."""

    # updates of the generator, and rows of each batch over all processes
    steps: int
    batch: int
    # rows that the generator and the encoder see at a time, 0 for all of a process: a large batch then takes the
    # memory of a small one, and each step another forward pass (gradient caching, Gao et al. 2021)
    micro_batch: int = 0
    # of generate_data, where no noise is given
    noise_dim: int = 16
    # real rows that the kernel compares with each batch's samples, where it compares an encoder's outputs, which are
    # at hand for all rows; 0 for those of the batch
    kernel_rows: int = 0
    # Adam's learning rates at the start, and the share of them that is left at the end of a cosine; 1 keeps them
    generator_rate: float = 1e-3
    discriminator_rate: float = 1e-3
    final_rate: float = 0.05
    # steps in which the rates rise to that: a generator that is good already is not spoilt by a new discriminator
    warmup: int = 0
    # Adam's
    beta1: float = 0.5
    beta2: float = 0.999
    # updates of the discriminator for one of the generator
    critic_steps: int = 1
    # the decay of the averaged generator, which is the one that is measured; 0 for none. It begins lower
    ema: float = 0.0
    # the greatest norm of a network's gradient; 0 for none
    clip: float = 0.0
    # of noise, batches and dropout
    seed: int = 0
    # "no" or "bf16": mixed precision of the networks; Gaussian kernels are computed in float32 all the same
    precision: str = "no"
    # steps between checkpoints, where there are any; 0 for twenty over the whole training
    checkpoint_every: int = 0

    def __post_init__(self) -> None:
        _check(self)

    def rate(self, step: int) -> float:
        """The factor of the learning rates at a step."""
        wave = (1 + math.cos(math.pi * (step - 1) / self.steps)) / 2
        risen = min(1.0, step / self.warmup) if self.warmup else 1.0
        return risen * (self.final_rate + (1 - self.final_rate) * wave)

    def identity(self) -> dict[str, Any]:
        """The settings that the numbers depend on: a run is resumed with the same ones."""
        return _identity(asdict(self))


@dataclass(frozen=True)
class Config:
    """The settings of a run: how to train, and what. In files and on the command line they are one flat table."""

    recipe: Recipe = Recipe(steps=3000, batch=256)
    # one of gkfast.gan.data.NAMES, a file or a folder of images, whose sides become image_size (below), or for 0 what
    # gkfast.gan.sources.read says
    data: str = "digits"
    # one of gkfast.gan.LOSSES, or module:function in place of its kernel term, and the weight of that term; None for
    # what suits the loss
    loss: str = "gan+mmd"
    lam: float | None = None
    # "median", "mean", or bandwidths in the units of what the kernel compares; a rule's distance is multiplied with
    # the ladder. On data it is found once in all of them; on features each step renews `momentum` of it
    sigma: str | list[float] = "median"
    ladder: list[float] = field(default_factory=lambda: list(_LADDER))
    momentum: float = 0.1
    # "data", "features" or "encoder": the kernel compares samples, the discriminator's last hidden layer, or outputs
    # of a frozen encoder
    space: str = "data"
    # the encoder: module:function, a function that returns a torch module; empty for an autoencoder that is trained
    # on the data first, in so many steps, with noise of this standard deviation on its code of so many numbers
    encoder: str = ""
    encoder_steps: int = 2000
    encoder_rate: float = 2e-3
    code: int = 16
    code_noise: float = 0.1
    # the generator is the decoder behind codes of "kernel", a Gaussian kernel density of the data's codes, or of
    # "network", one from noise to codes. Its steps of a kernel loss between the codes of noise and of the data, and
    # their batch. With an encoder of the user's there is no decoder: no steps
    code_prior: str = "network"
    code_loss: str = "mmd"
    code_steps: int = 0
    code_batch: int = 1000
    # which of the encoder's outputs are compared (an autoencoder's are its hidden layers and its code), and for each
    # of them a rule and a ladder in place of `sigma` and `ladder`
    compared: list[int] = field(default_factory=lambda: [-1])
    rules: list[str] = field(default_factory=list)
    ladders: list[list[float]] = field(default_factory=list)
    # gradient penalties on real and on generated samples
    r1: float = 0.0
    r2: float = 0.0
    # "mlp" or "dcgan", its units (0 for what suits the data) and hidden layers
    network: str = "mlp"
    units: int = 0
    layers: int = 2
    # outputs of a kernel critic ("mmdgan", "repulsive", "bounded"; "smmd" has one)
    critic_features: int = 16
    # spectral normalisation of the discriminator; None for kernel critics and the hinge loss alone
    spectral: bool | None = None
    image_size: int = 0
    # in which features images are judged: module:function, as for `encoder`; empty for what suits the data
    features: str = ""
    # checkpoints that stay
    keep: int = 3
    # whether the same GAN is trained without the kernel, for the report
    control: bool = True
    # steps of that one: as many as take the time of the GAN with its encoder; 0 for as many as the GAN's
    control_steps: int = 0
    # both of its learning rates, without a warm-up; 0 for those of the GAN, which may begin with a good generator
    control_rate: float = 0.0
    # "cpu" or "cuda"
    device: str = "cpu"
    # networks this small gain nothing from a second one, and lose all when it shares its core. torch's own sums and
    # matrix products round in another order with another number, so a run keeps the one it has
    threads: int = 1
    # whether records also go to TensorBoard
    tensorboard: bool = False

    def __post_init__(self) -> None:
        _check(self)
        objectives.split_name(self.loss)
        if 0 < self.image_size < 4:
            raise ValueError(f"image_size must be 0 or at least 4, got {self.image_size}; 32 is usual")
        for name, each in (("rules", self.rules), ("ladders", self.ladders)):
            if len(each) not in (0, len(self.compared)):
                raise ValueError(
                    f"{name} must have one for each of the {len(self.compared)} compared layers, got {len(each)}; "
                    "leave it out for the same everywhere"
                )
        if self.space == "encoder":
            self._check_encoder()

    def _check_encoder(self) -> None:
        if objectives.split_name(self.loss)[1] is None:
            raise ValueError(
                f'space must be "data" for a loss without a kernel term, got "encoder" with {self.loss}; '
                f"name a kernel, as in {self.loss}+mmd"
            )
        if not self.compared:
            raise ValueError("compared must have a layer at least, got none; [-1] is the last")
        if self.code_prior == "kernel" and (self.encoder or self.code_steps or self.recipe.noise_dim != self.code):
            raise ValueError(
                'code_prior "kernel" must have an autoencoder, no code_steps and noise_dim = code, got '
                f"encoder={self.encoder!r}, code_steps={self.code_steps}, noise_dim={self.recipe.noise_dim} and "
                f"code={self.code}; correct them"
            )
        if self.encoder and self.code_steps:
            raise ValueError(
                f"code_steps must be 0 with an encoder of your own, which has no decoder, got {self.code_steps}; "
                "set it to 0"
            )
        if not self.encoder and not self.encoder_steps:
            raise ValueError("encoder_steps must be at least 1 without an encoder of your own, got 0; 2000 is usual")

    @classmethod
    def from_settings(cls, **settings: Any) -> "Config":
        """The settings of a flat table, and defaults for the others."""
        return cls().changed(**settings)

    def changed(self, **settings: Any) -> "Config":
        """The same settings, but for the given ones of the flat table."""
        recipe = {name: settings.pop(name) for name in _RECIPE if name in settings}
        return replace(self, recipe=replace(self.recipe, **recipe), **settings)

    def settings(self) -> dict[str, Any]:
        """The flat table."""
        settings = asdict(self)
        recipe: dict[str, Any] = settings.pop("recipe")
        return recipe | settings

    def identity(self) -> dict[str, Any]:
        """The settings that the numbers depend on: a run is resumed with the same ones."""
        return _identity(self.settings())


_RECIPE = tuple(setting.name for setting in fields(Recipe))
_NAMES = tuple(Config().settings())


def _identity(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _FREE}


# bench/gan_quality.py found these the best within three minutes of one core
_MIXTURE = {
    # clusters are a hundred times narrower than the data: bandwidths go from one width to the other
    "loss": "mmd",
    "ladder": [2.0**-k for k in range(9)],
    "batch": 512,
    "units": 128,
    "layers": 3,
    # a loss that has its minimum bears great rates: twice as much is too much
    "generator_rate": 8e-3,
    "control_rate": 1e-3,
    "final_rate": 0.0,
    "ema": 0.999,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "ring": _MIXTURE | {"steps": 8000},
    "grid": _MIXTURE | {"steps": 16000},
    "spiral": {
        "loss": "gan+mmd",
        "ladder": [0.1, 0.2, 0.4, 0.8, 1.6],
        "batch": 128,
        "steps": 8000,
        "units": 256,
        "layers": 4,
        "noise_dim": 1,
        "final_rate": 0.0,
        "ema": 0.99,
    },
    "digits": {
        # as MNIST, in less time
        "loss": "rpgan+mmd",
        "lam": 10.0,
        "space": "encoder",
        "encoder_steps": 2000,
        "encoder_rate": 4e-3,
        "code_noise": 0.2,
        "code_prior": "kernel",
        "ladder": [0.5, 1.0, 2.0, 4.0],
        "compared": [0, 1, 2],
        "generator_rate": 1e-3,
        "discriminator_rate": 2e-3,
        "warmup": 500,
        "control_rate": 2e-3,
        "control_steps": 4000,
        "r1": 1.0,
        "r2": 1.0,
        "steps": 2000,
        "ema": 0.999,
    },
    "stacked": {
        # the kernel finds all modes in a fraction of the time that an adversary takes
        "loss": "mmd",
        "ladder": [0.25, 0.5, 1.0],
        "batch": 128,
        "steps": 3000,
        "units": 512,
        "noise_dim": 32,
        "generator_rate": 2e-3,
        "final_rate": 0.0,
        "ema": 0.99,
    },
    "mnist": {
        # decoded codes of a kernel density are good digits already: low rates, a warm-up and the kernel on an
        # autoencoder's layers (wide bandwidths of the hidden ones, narrow ones of the code) keep and sharpen them
        "loss": "rpgan+mmd",
        "lam": 30.0,
        "space": "encoder",
        "encoder_steps": 2400,
        "encoder_rate": 4e-3,
        "code_noise": 0.2,
        "code_prior": "kernel",
        "ladder": [0.125, 0.25, 0.5, 1.0],
        "compared": [0, 1, 2],
        "ladders": [[0.5, 1.0], [0.5, 1.0], [0.125, 0.25, 0.5, 1.0]],
        "kernel_rows": 256,
        "generator_rate": 1e-3,
        "discriminator_rate": 2e-3,
        "warmup": 500,
        # the best of the adversary alone, and about as many steps as take the same time
        "control_rate": 4e-3,
        "control_steps": 3050,
        "r1": 1.0,
        "r2": 1.0,
        "batch": 128,
        "steps": 1950,
        "units": 512,
        "ema": 0.999,
    },
    "stacked-mnist": {
        # a kernel density of codes has all modes at once, before an adversary has found them
        "loss": "mmd",
        "space": "encoder",
        "encoder_steps": 3500,
        "encoder_rate": 4e-3,
        "code": 48,
        "code_noise": 0.2,
        "code_prior": "kernel",
        "ladder": [0.125, 0.25, 0.5, 1.0],
        "generator_rate": 2e-4,
        "discriminator_rate": 2e-3,
        "batch": 128,
        "steps": 100,
        "units": 512,
        "noise_dim": 48,
        "ema": 0.999,
    },
}


def resolve(
    file: str | None,
    given: Mapping[str, Any],
    overrides: list[str],
    before: Mapping[str, Any] | None = None,
    like: str = "",
) -> Config:
    """The settings of a run from a TOML file, the command line's own options and its --set key=value.

    `before` holds those of a run that is resumed, in place of the defaults; `like` names data in DEFAULTS whose
    defaults suit data of the user's.
    """
    chosen: dict[str, Any] = {}
    if file is not None:
        try:
            chosen |= tomllib.loads(Path(file).read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"--config must be a TOML file of settings, got {file!r} ({reason}); gkfast train --dry-run shows one"
            ) from error
    chosen |= {name: value for name, value in given.items() if value is not None}
    for text in overrides:
        name, value = _override(text)
        chosen[name] = value
    for name in chosen:
        if name not in _NAMES:
            near = get_close_matches(name, _NAMES, 1)
            advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(_NAMES)}"
            raise ValueError(f"settings must be known ones, got {name!r}; {advice}")
    defaults = DEFAULTS.get(like or str(chosen.get("data", "digits")), {}) if before is None else before
    if chosen.get("encoder"):
        # it has no decoder, and the bandwidths are those of the default's code
        defaults = {**defaults, "space": "encoder", "code_steps": 0, "code_prior": "network"}
    usual = str(defaults.get("loss", Config.loss))
    loss = str(chosen.get("loss", usual))
    kernel = objectives.split_name(loss)[1]
    # a function of the user's takes rows, unless an encoder is asked for
    on_data = kernel is None or (own.is_name(kernel) and not chosen.get("encoder"))
    if on_data:
        defaults = {**defaults, "space": "data"}
    # the rates that suit a kernel alone suit no other loss
    if before is None and (on_data or (loss != usual and objectives.split_name(usual)[0] is None)):
        defaults = {**defaults, **_control_rates(defaults.get("control_rate", 0.0))}
    return Config.from_settings(**{**defaults, **chosen})


def saved(folder: Path) -> dict[str, Any]:
    """The settings in the config.json of a run folder."""
    path = folder / "config.json"
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--out must be a run folder with a config.json to resume, got {str(folder)!r}; "
            "leave --resume out to begin one"
        ) from error
    return {name: value for name, value in settings.items() if name in _NAMES}


def control(config: Config) -> Config:
    """The same run without the kernel and its encoder: the same noise, batches, discriminator and sizes."""
    steps = config.control_steps or config.recipe.steps
    recipe = replace(config.recipe, steps=steps, **_control_rates(config.control_rate))
    return replace(config, recipe=recipe, loss=objectives.without_kernel(config.loss), lam=None, space="data")


def _control_rates(rate: float) -> dict[str, Any]:
    return {"generator_rate": rate, "discriminator_rate": rate, "warmup": 0} if rate else {}


def as_toml(config: Config) -> str:
    """The settings as a file for --config, without those that are None."""
    lines = []
    for name, value in config.settings().items():
        if value is None:
            continue
        if isinstance(value, bool):
            value = str(value).lower()
        elif isinstance(value, str | list):
            # JSON's strings and lists are TOML's
            value = json.dumps(value)
        lines.append(f"{name} = {value}")
    return "\n".join(lines) + "\n"


def _override(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name.strip() and equals and value.strip()):
        raise ValueError(f"--set must be key=value, got {text!r}; for example --set lam=30")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        # a bare word, as a shell leaves it
        return name.strip(), value.strip()


def number(option: str, text: str, name: str, example: str) -> float:
    """The number of an option of the command line, for the setting of this name."""
    whole, limits = (get_type_hints(Config) | get_type_hints(Recipe))[name] is int, _RANGES[name]
    try:
        value: float = int(text) if whole else float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and (value > limits.least if limits.above_least else value >= limits.least)):
        kind = "a whole number" if whole else "a finite number"
        rule = "a positive finite number" if limits.above_least else f"{kind} of at least {limits.least:g}"
        raise ValueError(f"{option} must be {rule}, got {text!r}; give for example {example}")
    return value
