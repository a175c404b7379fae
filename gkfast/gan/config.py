"""What a run is made of: one flat table of settings, with defaults that suit the data.

Settings come from the defaults of the data, then a TOML file, then the command line; each replaces what was before.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from gkfast.gan import checks, losses
from gkfast.gan.train import Recipe

# of sigma = "median" or "mean": wide bandwidths guide from afar, narrow ones sharpen
_LADDER = [1 / 8, 1 / 4, 1 / 2, 1.0, 2.0]


@dataclass(frozen=True)
class Config(Recipe):
    """The settings of a run: how to train, see gkfast.gan.train.Recipe, and what.

    Attributes
    ----------
    data : str
        One of gkfast.gan.data.NAMES, a file or a folder of images.
    loss : str
        One of gkfast.gan.LOSSES.
    lam : float or None
        The weight of the kernel term; None for what suits the loss.
    sigma : "median", "mean" or a list of numbers
        The rule for the bandwidths, or the bandwidths in the units of what the kernel compares.
    ladder : list of float
        What the rule's distance is multiplied with.
    momentum : float
        How much of a rule's bandwidth each step renews. On data it is found once in all of them, and frozen; this
        is for features.
    space : {"data", "features"}
        What the kernel term compares: samples, or the discriminator's last hidden layer.
    r1, r2 : float
        Gradient penalties on real and on generated samples.
    network : {"mlp", "dcgan"}
    units, layers : int
        Of the networks; units 0 for what suits the data.
    critic_features : int
        Outputs of a kernel critic ("mmdgan", "repulsive", "bounded"; "smmd" has one).
    spectral : bool or None
        Spectral normalisation of the discriminator; None for kernel critics and the hinge loss alone.
    image_size : int
        Side of the images of a folder.
    keep : int
        Checkpoints that stay.
    control : bool
        Whether the same GAN is trained without the kernel, for the report.
    device : {"cpu", "cuda"}
    threads : int
        Of the CPU; networks this small gain nothing from a second one, and lose all when it shares its core. torch's
        own sums and matrix products round in another order with another number, so a run keeps the one it has.
    tensorboard : bool
        Whether records also go to TensorBoard.
    """

    FREE: ClassVar[tuple[str, ...]] = (*Recipe.FREE, "keep", "control", "tensorboard")

    steps: int = 3000
    batch: int = 256
    data: str = "digits"
    loss: str = "gan+mmd"
    lam: float | None = None
    sigma: str | list[float] = "median"
    ladder: list[float] = field(default_factory=lambda: list(_LADDER))
    momentum: float = 0.1
    space: str = "data"
    r1: float = 0.0
    r2: float = 0.0
    network: str = "mlp"
    units: int = 0
    layers: int = 2
    critic_features: int = 16
    spectral: bool | None = None
    image_size: int = 32
    keep: int = 3
    control: bool = True
    device: str = "cpu"
    threads: int = 1
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for setting in fields(self):
            object.__setattr__(self, setting.name, _typed(setting.name, getattr(self, setting.name)))
        checks.loss("loss", self.loss, losses.LOSSES)
        checks.config(self)


# what is best within three minutes of one core, by bench/gan_quality.py
_MIXTURE = {
    # clusters a hundred times narrower than what they lie on: bandwidths from the one to the other
    "loss": "mmd",
    "ladder": [2.0**-k for k in range(9)],
    "batch": 512,
    "units": 128,
    "layers": 3,
    "final_rate": 0.0,
    "ema": 0.999,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "ring": _MIXTURE | {"steps": 12000},
    "grid": _MIXTURE | {"steps": 20000},
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
        # wide bandwidths and a light hand: the adversary draws sharper strokes than narrow kernels do
        "loss": "rpgan+mmd",
        "lam": 3.0,
        "ladder": [0.5, 1.0, 2.0, 4.0],
        "r1": 0.1,
        "r2": 0.1,
        "steps": 3500,
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
    "mnist": {"loss": "rpgan+mmd", "r1": 0.1, "r2": 0.1, "batch": 128, "steps": 3000, "units": 512, "ema": 0.999},
}


def resolve(
    file: str | None, given: Mapping[str, Any], overrides: list[str], before: Mapping[str, Any] | None = None
) -> Config:
    """The settings of a run from a TOML file, the command line's own options and its --set key=value.

    `before` holds those of a run that is resumed, in place of the defaults.
    """
    chosen: dict[str, Any] = {}
    if file is not None:
        try:
            chosen |= tomllib.loads(Path(file).read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise checks.unreadable_config(file, error) from error
    chosen |= {name: value for name, value in given.items() if value is not None}
    for text in overrides:
        name, value = _override(text)
        chosen[name] = value
    checks.setting_names(chosen, [field.name for field in fields(Config)])
    defaults = DEFAULTS.get(str(chosen.get("data", "digits")), {}) if before is None else before
    return Config(**{**defaults, **chosen})


def saved(folder: Path) -> dict[str, Any]:
    """The settings in the config.json of a run folder."""
    path = folder / "config.json"
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise checks.no_run(folder) from error
    known = {field.name for field in fields(Config)}
    return {name: value for name, value in settings.items() if name in known}


def control(config: Config) -> Config:
    """The same run without the kernel: the same networks, noise, batches and number of steps."""
    loss = losses.without_kernel(config.loss)
    return Config(**{**asdict(config), "loss": loss, "lam": None, "space": "data"})


def as_toml(config: Config) -> str:
    """The settings as a file for --config; what is None is left out."""
    lines = []
    for name, value in asdict(config).items():
        if value is None:
            continue
        if isinstance(value, bool):
            value = str(value).lower()
        elif isinstance(value, str):
            value = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        lines.append(f"{name} = {value}")
    return "\n".join(lines) + "\n"


def _override(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    checks.override(text, bool(name.strip() and equals and value.strip()))
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        # a bare word, as a shell leaves it
        return name.strip(), value.strip()


def _typed(name: str, value: Any) -> Any:
    """The value in the type of its setting; whole numbers may stand for floats."""
    wanted = get_type_hints(Config)[name]
    options = get_args(wanted) if get_origin(wanted) is UnionType else (wanted,)
    for option in options:
        if get_origin(option) is list:
            if isinstance(value, list) and all(type(item) in (int, float) for item in value):
                return [float(item) for item in value]
        elif option is float and type(value) in (int, float):
            return float(value)
        elif type(value) is option or (option is NoneType and value is None):
            return value
    raise checks.setting_type(name, value, options)
