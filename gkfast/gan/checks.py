"""Every check on what the GAN side is given, and every message: *name must rule, got value; do this*.

The kernels' own arguments are checked by gkfast.checks, the command line's by gkfast.__main__.
"""

import math
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

# below, a batch of a few hundred has not one pair that is near
_LEAST_MEAN_KERNEL = 1e-5

# of fewer rows the held-out fifth is too small for any figure
_MIN_ROWS = 20


class Refusal(ValueError):
    """What a file holds is not what is wanted."""


def missing(purpose: str, module: str, extra: str = "train") -> ImportError:
    return ImportError(f'{purpose} needs {module}, which is not installed; run pip install "gkfast[{extra}]"')


def no_tensorboard() -> ImportError:
    return ImportError("tensorboard=true needs tensorboard, which is not installed; run pip install tensorboard")


def not_negative(name: str, size: int) -> None:
    if size < 0:
        raise ValueError(f"{name} must not be negative, got {size}; pass 0 or more")


def same_shape(first: str, a: Tensor, second: str, b: Tensor, remedy: str) -> None:
    if a.shape != b.shape:
        raise ValueError(
            f"{first} and {second} must have the same shape, got {tuple(a.shape)} and {tuple(b.shape)}; {remedy}"
        )


def regularizer(value: str) -> None:
    if value not in ("literal", "log_ratio"):
        raise ValueError(f'regularizer must be "literal" or "log_ratio", got {value!r}; pass one of them')


def gaussian_term(value: str, fake: Tensor | None, real: Tensor | None, sigma: float | None) -> None:
    """The regularizer has what it needs."""
    if fake is None or sigma is None:
        raise ValueError("fake and sigma must be given when lam is not 0, got None; pass the generated samples")
    if value == "log_ratio" and real is None:
        raise ValueError('real must be given for regularizer="log_ratio", got None; pass the real samples')


def loss(name: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}; choose one of them")


def epochs(value: int) -> None:
    if value < 1:
        raise ValueError(f"epochs must be at least 1, got {value}; pass the number of passes over y")


def output(value: str) -> None:
    if value not in ("probability", "logit"):
        raise ValueError(f'output must be "probability" or "logit", got {value!r}; say what D returns')


def rows(name: str, value: Tensor, batch_size: int) -> None:
    """Floating-point rows, enough for one batch; an unbiased MMD needs two of each."""
    if not value.is_floating_point():
        raise TypeError(f"{name} must hold floating-point numbers, got {value.dtype}; cast it with .float()")
    if not 2 <= batch_size <= len(value):
        raise ValueError(
            f"batch_size must be at least 2 and at most the {len(value)} rows of {name}, got {batch_size}; "
            "pass one in between"
        )


def shares(batch_size: int, processes: int) -> None:
    """Every process gets a row at least."""
    if batch_size < processes:
        raise ValueError(
            f"batch_size must be at least the {processes} processes, got {batch_size}; pass more, or start fewer"
        )


def has_features(discriminator: nn.Module) -> None:
    if not callable(getattr(discriminator, "features", None)):
        raise ValueError(
            "discriminator must have a method features where the kernel compares features, "
            f"got {type(discriminator).__name__} without one; return its last hidden layer there"
        )


def same_run(path: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    for name in now:
        if saved.get(name) != now[name]:
            raise ValueError(
                f"{name} must be {saved.get(name)!r} to resume from {path}, got {now[name]!r}; "
                "resume with the same settings, or train into another folder"
            )


def generated(samples: Tensor, real: Tensor) -> None:
    """What the generator returns has the shape of real rows."""
    if samples.shape[1:] != real.shape[1:]:
        raise ValueError(
            f"generator must return rows of the shape of y's, {tuple(real.shape[1:])}, "
            f"got {tuple(samples.shape[1:])}; change its last layer"
        )


def judged(d: Tensor, probabilities: bool) -> None:
    """What the discriminator returns for two rows is one number each, of the kind that was announced."""
    if d.numel() != 2:
        raise ValueError(
            f"discriminator must return one number per sample, got shape {tuple(d.shape)} for two; "
            "change its last layer"
        )
    if probabilities and not ((d >= 0) & (d <= 1)).all():
        raise ValueError(
            f"discriminator must return probabilities in [0, 1], got {d.flatten().tolist()}; "
            'end it with a sigmoid, or pass output="logit"'
        )


def finite(record: dict[str, float]) -> None:
    for name, value in record.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"training must keep {name} finite, got {value} at step {record['step']}; "
                "lower the learning rate or lam"
            )


def existing(path: Path, names: Collection[str]) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"--data must be {', '.join(names)}, a folder of images or an existing .npy, .npz or .pt file, "
            f"got {str(path)!r}; check the path"
        )


def array(path: Path, value: Any) -> None:
    """What a file held is an array (N, D...) of real numbers."""
    if not (np.issubdtype(value.dtype, np.integer) or np.issubdtype(value.dtype, np.floating)):
        raise ValueError(f"{path} must hold real numbers, got dtype {value.dtype}; save it as float32")
    if value.ndim < 2:
        raise ValueError(
            f"{path} must hold an array of shape (N, D...), got shape {value.shape}; reshape it to one row per sample"
        )
    if len(value) < _MIN_ROWS:
        raise ValueError(f"{path} must hold at least {_MIN_ROWS} rows, got {len(value)}; give more samples")
    if math.prod(value.shape[1:]) == 0:
        raise ValueError(f"{path} must hold at least one number per row, got shape {value.shape}; save it anew")


def archive_member(path: Path, names: Sequence[str]) -> str:
    """The name of the array in an .npz archive."""
    if "x" in names:
        return "x"
    if len(names) != 1:
        raise Refusal(
            f"{path} must hold one array, or one named x, got {', '.join(names) or 'none'}; "
            "save it with numpy.savez(path, x=...)"
        )
    return names[0]


def one_tensor(path: Path, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{path} must hold one tensor, got {type(value).__name__}; save it with torch.save(tensor, path)"
        )


def labels(path: Path, value: Any, rows: int) -> None:
    if value.shape != (rows,) or not np.issubdtype(value.dtype, np.integer) or value.min() < 0:
        raise ValueError(
            f"{path} must hold in y one whole number of at least 0 for each of the {rows} rows of x, "
            f"got {value.dtype} of shape {value.shape}; save class numbers, or leave y out"
        )


def enough_images(path: Path, count: int) -> None:
    if count < _MIN_ROWS:
        raise ValueError(
            f"{path} must hold at least {_MIN_ROWS} images (png, jpg, ...), got {count}; give more, or another folder"
        )


def unreadable_image(path: Path) -> ValueError:
    return ValueError(f"{path} must be an image that Pillow can read, got something else; remove or replace it")


def plain_numbers(path: Path) -> ValueError:
    return ValueError(
        f"{path} must be a .npy, .npz or .pt file of plain numbers, got what cannot be loaded without pickle; "
        "save it with numpy.save"
    )


def damaged(path: Path) -> ValueError:
    return ValueError(
        f"{path} must be a whole checkpoint of gkfast, got what torch cannot load without running code; "
        "remove it, and the one before it is taken"
    )


def float32_rows(path: Path, value: Any) -> None:
    """Rows (N, D) are finite and not all the same."""
    bad = int((~np.isfinite(value)).sum())
    if bad:
        raise ValueError(f"{path} must hold finite float32 numbers, got {bad} that are not; remove or clip them")
    if (value == value[0]).all():
        raise ValueError(f"{path} must hold rows that differ, got {len(value)} equal ones; check how it was saved")


def neighbours(k: int, *rows: int) -> None:
    if not 1 <= k < min(rows):
        raise ValueError(
            f"k must be at least 1 and below the number of rows, {min(rows)}, got {k}; 5 is usual, with more rows"
        )


def kid(kernel: str, subset_size: int, *rows: int) -> None:
    if kernel not in ("polynomial", "gaussian"):
        raise ValueError(f'kernel must be "polynomial" or "gaussian", got {kernel!r}; pass one of them')
    if not 2 <= subset_size <= min(rows):
        raise ValueError(
            f"subset_size must be at least 2 and at most the number of rows, {min(rows)}, got {subset_size}; "
            "pass one in between"
        )


def spread(base: float, rule: object) -> None:
    """A rule found a bandwidth."""
    if base == 0:
        raise ValueError(
            f"sigma must be positive numbers for data of which half are equal, got {rule!r}; its distance is 0"
        )


def narrow(mean_kernel: float, sigma: Sequence[float]) -> str:
    """A warning, where the mean kernel value of different real samples says that no sample would feel another."""
    if mean_kernel >= _LEAST_MEAN_KERNEL:
        return ""
    return (
        f"sigma should be wider, got {', '.join(f'{s:.3g}' for s in sigma)} with a mean kernel value of "
        f"{mean_kernel:.1e} between real samples: the kernel will hardly guide; add wider bandwidths"
    )


def unreadable_config(file: str, error: Exception) -> ValueError:
    said = " ".join(str(error).split())
    return ValueError(
        f"--config must be a TOML file of settings, got {file!r} ({said}); gkfast train --dry-run shows one"
    )


def no_run(folder: Path) -> ValueError:
    return ValueError(
        f"--out must be a run folder with a config.json to resume, got {str(folder)!r}; "
        "leave --resume out to begin one"
    )


def override(text: str, good: bool) -> None:
    if not good:
        raise ValueError(f"--set must be key=value, got {text!r}; for example --set lam=30")


def setting_names(chosen: Collection[str], known: Sequence[str]) -> None:
    for name in chosen:
        if name not in known:
            near = get_close_matches(name, known, 1)
            advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"settings must be known ones, got {name!r}; {advice}")


def setting_type(name: str, value: object, options: Sequence[Any]) -> ValueError:
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "text", type(None): "left out"}
    wanted = " or ".join(words.get(option, "a list of numbers") for option in options)
    return ValueError(f"{name} must be {wanted}, got {value!r}; correct it in --config or --set")


# the least of each number, and whether it may be reached
_LEAST: dict[str, tuple[float, bool]] = {
    **dict.fromkeys(("steps", "layers", "critic_features", "critic_steps", "keep", "threads"), (1, True)),
    **dict.fromkeys(("batch",), (2, True)),
    **dict.fromkeys(("image_size",), (4, True)),
    **dict.fromkeys(("seed", "units", "noise_dim", "lam", "r1", "r2", "clip", "checkpoint_every"), (0, True)),
    **dict.fromkeys(("generator_rate", "discriminator_rate"), (0, False)),
}
_SHARES = ("momentum", "final_rate", "beta1", "beta2", "ema")
_CHOICES = {
    "space": ("data", "features"),
    "network": ("mlp", "dcgan"),
    "precision": ("no", "bf16"),
    "device": ("cpu", "cuda"),
}


def config(settings: Any) -> None:
    """Every setting of a run lies where it may."""
    for name, (least, reached) in _LEAST.items():
        value = getattr(settings, name)
        if value is not None and not (math.isfinite(value) and (value >= least if reached else value > least)):
            rule = f"at least {least:g}" if reached else f"greater than {least:g}"
            raise ValueError(f"{name} must be {rule} and finite, got {value!r}; correct it")
    for name in _SHARES:
        value = getattr(settings, name)
        if not 0 <= value <= 1 or (value == 1 and name in ("beta1", "beta2", "ema")):
            raise ValueError(f"{name} must lie between 0 and 1, got {value!r}; correct it")
    for name, choices in _CHOICES.items():
        value = getattr(settings, name)
        if value not in choices:
            raise ValueError(f"{name} must be {' or '.join(choices)}, got {value!r}; choose one of them")
    for name in ("sigma", "ladder"):
        value = getattr(settings, name)
        if isinstance(value, str):
            if value not in ("median", "mean"):
                raise ValueError(f"{name} must be median, mean or positive numbers, got {value!r}; median is usual")
        elif not value or not all(0 < v < math.inf for v in value):
            raise ValueError(f"{name} must be positive finite numbers, got {value!r}; for example [0.5, 1, 2]")


def trainable(settings: Any, rows: int, is_image: bool) -> None:
    """The settings fit the data."""
    if settings.batch > rows:
        raise ValueError(
            f"--batch must be at most the {rows} samples to train on, got {settings.batch}; give a smaller one"
        )
    if settings.network == "dcgan" and not is_image:
        raise ValueError('network must be "mlp" for data that are no images, got "dcgan"; leave it out')


def cuda(found: bool) -> None:
    if not found:
        raise ValueError("device must be one that torch finds, got 'cuda'; train on the cpu")
