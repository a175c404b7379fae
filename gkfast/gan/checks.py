"""Every check on what the GAN side is given, and every message: *name must rule, got value; do this*.

The kernels' own arguments are checked by gkfast.checks, the command line's by gkfast.__main__.
"""

import math
import os
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import gkfast.checks

# below, a batch of a few hundred has not one pair that is near
_LEAST_MEAN_KERNEL = 1e-5

# of fewer rows the held-out fifth is too small for any figure
_MIN_ROWS = 20

# an R1 or R2 weight above is a mistake: on data near 1 papers take 0.1 to 100, and it grows as their square
_GREATEST_PENALTY = 1e9

# torch's own generators take no more
_GREATEST_SEED = 2**63 - 1

# times the spread of data: what rounding may change in their means, and other rows do not
_SAME = 1e-5

# a probability that was put together from others may be off by rounding
_ROUNDING = 1e-6

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Refusal(ValueError):
    """What a file holds is not what is wanted."""


def missing(purpose: str, module: str, extra: str = "train") -> ImportError:
    return ImportError(f'{purpose} needs {module}, which is not installed; run pip install "gkfast[{extra}]"')


def no_tensorboard() -> ImportError:
    return ImportError("tensorboard=true needs tensorboard, which is not installed; run pip install tensorboard")


def _shown(value: object) -> str:
    """A value in a few characters of one line."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    said = repr(value)
    return said if len(said) <= 60 and "\n" not in said else type(value).__name__


def whole(name: str, value: object, least: int, remedy: str, most: int | None = None) -> int:
    """The whole number, as Python's."""
    good = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not good or value < least or (most is not None and value > most):  # type: ignore[operator]
        rule = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise _refused(value, f"{name} must be a whole number {rule}, got {_shown(value)}; {remedy}")
    return int(value)  # type: ignore[call-overload]


def number(
    name: str,
    value: object,
    remedy: str,
    *,
    most: float = math.inf,
    open_below: bool = False,
    open_above: bool = False,
) -> float:
    """The finite number between 0 and `most`, as Python's; either end may be left out."""
    good = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if good:
        found = float(value)  # type: ignore[arg-type]
        low = found > 0 if open_below else found >= 0
        if low and math.isfinite(found) and (found < most if open_above else found <= most):
            return found
    if most == math.inf:
        rule = "a finite number above 0" if open_below else "a finite number of at least 0"
    else:
        rule = f"a number from 0 to {'below ' * open_above}{most:g}"
    raise _refused(value, f"{name} must be {rule}, got {_shown(value)}; {remedy}")


def _refused(value: object, message: str) -> ValueError | TypeError:
    """A number out of range is a bad value; everything else is of the wrong type."""
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return ValueError(message) if number else TypeError(message)


def flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {_shown(value)}; pass one of them")


def penalty(name: str, value: object) -> float:
    """The weight of a gradient penalty."""
    return number(name, value, "10 is usual for data near 1, for others scale the data", most=_GREATEST_PENALTY)


def weight(value: object) -> float:
    """The weight of a kernel term."""
    return number("lam", value, "put a minus into the kernel term itself, or leave lam out")


def seed(value: object) -> int:
    return whole("seed", value, 0, "0 is usual", most=_GREATEST_SEED)


def tensor(name: str, value: object) -> None:
    """value is a floating-point tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch tensor, got {_shown(value)}; convert it with torch.as_tensor")
    if value.dtype not in _FLOATS:
        raise TypeError(f"{name} must hold floating-point numbers, got {value.dtype}; cast it with .float()")


def outputs(**named: object) -> None:
    """What a discriminator returns for one sample or more: (N, ...), all on one device."""
    first: Tensor | None = None
    for name, value in named.items():
        tensor(name, value)
        assert isinstance(value, Tensor)
        if value.ndim == 0 or value.numel() == 0:
            raise ValueError(
                f"{name} must have shape (N,) or (N, 1) with a row at least, got {tuple(value.shape)}; "
                "pass what the discriminator returns for a batch"
            )
        if first is not None and value.device != first.device:
            raise ValueError(
                f"{name} must be on the device of {next(iter(named))} ({first.device}), got {value.device}; "
                "move one with .to()"
            )
        first = value if first is None else first


def samples(name: str, value: object) -> None:
    """value is a tensor of samples, (N, D), one at least."""
    tensor(name, value)
    assert isinstance(value, Tensor)
    if value.ndim != 2 or len(value) == 0:
        raise ValueError(
            f"{name} must have shape (N, D) with a row at least, got {tuple(value.shape)}; "
            f"flatten each sample with {name}.flatten(1)"
        )


def two_samples(fake: object, real: object) -> None:
    """Generated and real samples of this process, (N, D) and (M, D)."""
    samples("fake", fake)
    samples("real", real)
    gkfast.checks.two_point_sets("fake", fake, "real", real)


def enough_samples(least: int, **named: Tensor) -> None:
    """As many samples as a mean over pairs takes."""
    for name, value in named.items():
        if len(value) < least:
            raise ValueError(f"{name} must have at least {least} rows, got {len(value)}; pass a larger batch")


def bandwidths(sigma: Any) -> list[float]:
    """Given bandwidths as Python's numbers."""
    if isinstance(sigma, Tensor):
        if sigma.device.type == "meta":
            raise ValueError("sigma must hold numbers, got a tensor on the meta device; pass a number")
        gkfast.checks.bandwidths(sigma, None)
        sigma = sigma.tolist()
    elif isinstance(sigma, np.ndarray | np.generic):
        gkfast.checks.bandwidths(sigma, None)
        sigma = sigma.tolist()
    gkfast.checks.bandwidths(sigma, None)
    return [float(s) for s in sigma] if isinstance(sigma, list | tuple) else [float(sigma)]


def one_bandwidth(sigma: Any) -> float:
    found = bandwidths(sigma)
    if len(found) != 1:
        raise ValueError(f"sigma must be one number, got {len(found)} of them; pass one of them")
    return found[0]


def bandwidth_rule(sigma: Any, scales: Any, momentum: Any) -> tuple[Any, list[float], float]:
    """Bandwidths or the rule that finds them, what it is multiplied with, and how much of it is renewed."""
    if isinstance(sigma, str):
        if sigma not in ("median", "mean"):
            raise ValueError(f'sigma must be numbers, "median" or "mean", got {sigma!r}; "median" is usual')
    else:
        sigma = bandwidths(sigma)
    if not isinstance(scales, list | tuple) or not scales:
        raise TypeError(f"scales must be a list of positive numbers, got {_shown(scales)}; for example [0.5, 1, 2]")
    ladder = [number("scales", scale, "for example [0.5, 1, 2]", open_below=True) for scale in scales]
    return sigma, ladder, number("momentum", momentum, "1 follows every batch, 0 keeps the first", most=1)


def beside(sigma: Any, x: Any) -> None:
    """One set of bandwidths, which can be read where x is."""
    gkfast.checks.bandwidths(sigma, None)
    if isinstance(sigma, Tensor) and isinstance(x, Tensor) and (sigma.device.type == "meta") != (x.is_meta):
        raise ValueError(f"sigma must be on the device of x ({x.device}), got {sigma.device}; pass a number")


def same_shape(first: str, a: Any, second: str, b: Any, remedy: str) -> None:
    if a.shape != b.shape:
        raise ValueError(
            f"{first} and {second} must have the same shape, got {tuple(a.shape)} and {tuple(b.shape)}; {remedy}"
        )


def pairs(x: Any, y: Any) -> None:
    """Arrays (..., D) of one shape, library and dtype."""
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor | np.ndarray) or value.ndim == 0:
            raise TypeError(
                f"{name} must be an array or tensor of shape (..., D), got {_shown(value)}; "
                "convert it with numpy.asarray or torch.as_tensor"
            )
    same_shape("x", x, "y", y, "for all pairs of two sets call compute_distance")
    gkfast.checks.same_kind("x", x, "x", x)
    gkfast.checks.same_kind("y", y, "x", x)


def labels_and_outputs(y: Any, d: Any) -> None:
    tensor("y", y)
    tensor("d", d)
    same_shape("y", y, "d", d, "reshape one of them")
    outputs(y=y, d=d)


def probabilities(name: str, value: Tensor, remedy: str) -> None:
    if not ((value >= 0) & (value <= 1)).all():
        low, high = (float(v) for v in value.detach().aminmax())
        raise ValueError(f"{name} must lie in [0, 1], got values from {low:.4g} to {high:.4g}; {remedy}")


def regularizer(value: object) -> None:
    _choice("regularizer", value, ("literal", "log_ratio"), "pass one of them")


def _choice(name: str, value: object, known: Sequence[str], remedy: str) -> None:
    if not isinstance(value, str) or value not in known:
        names = " or ".join(f'"{one}"' for one in known)
        raise ValueError(f"{name} must be {names}, got {_shown(value)}; {remedy}")


def gaussian_term(value: str, fake: Tensor | None, real: Tensor | None, sigma: float | None) -> None:
    """The regularizer has what it needs."""
    if fake is None or sigma is None:
        raise ValueError("fake and sigma must be given when lam is not 0, got None; pass the generated samples")
    if value == "log_ratio" and real is None:
        raise ValueError('real must be given for regularizer="log_ratio", got None; pass the real samples')


def loss(name: str, value: object, known: Collection[str]) -> None:
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {_shown(value)}; choose one of them")


def part(name: str, value: object) -> None:
    """A part of an objective."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be a callable or None, got {_shown(value)}; pass a function of its arguments")


def function(name: str, value: object) -> None:
    if not callable(value):
        raise TypeError(f"{name} must be a callable, got {_shown(value)}; pass a network or a function")


def trains_something(generator: object, kernel: object) -> None:
    if generator is None and kernel is None:
        raise ValueError("generator or kernel must be given, got None for both; pass what the generator minimises")


def output(value: object) -> None:
    _choice("output", value, ("probability", "logit"), "say what D returns")


def network(name: str, value: object) -> None:
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, got {_shown(value)}; wrap a function in a module")


def weights(name: str, value: nn.Module, trained: bool) -> None:
    """The module has weights, which can be trained where they are to be."""
    if not any(w.requires_grad or not trained for w in value.parameters()):
        frozen = "frozen ones" if any(True for _ in value.parameters()) else "none"
        raise ValueError(f"{name} must have weights to train, got {frozen}; give it a layer, or requires_grad_(True)")


def objective_or_name(value: object, known: Collection[str], kind: type) -> None:
    if not isinstance(value, kind):
        if not isinstance(value, str):
            raise TypeError(f"loss must be one of LOSSES or an Objective, got {_shown(value)}; pass one of them")
        loss("loss", value, known)


def folder(name: str, value: object) -> None:
    """A folder that is there, or may be made."""
    if value is None:
        return
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be the path of a folder, got {_shown(value)}; pass a str or a Path")
    if Path(value).exists() and not Path(value).is_dir():
        raise ValueError(f"{name} must be the path of a folder, got the file {str(value)!r}; name another one")


def noise_options(generator: object, device: object, dtype: object) -> None:
    """Where noise comes from, and what it is."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {_shown(generator)}; leave it out, or make one")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype in _FLOATS):
        raise TypeError(f"dtype must be a floating torch dtype, got {_shown(dtype)}; for example torch.float32")
    if device is not None:
        try:
            if isinstance(device, bool) or not isinstance(device, str | int | torch.device):
                raise TypeError("of another type")
            torch.empty(0, device=device)
        # what torch raises for a name that it does not know, and for a device that is not there
        except (RuntimeError, TypeError, AssertionError, ImportError) as error:
            raise _unknown_device(device) from error
    if isinstance(generator, torch.Generator):
        where = torch.empty(0, device=device).device
        if where.type not in (generator.device.type, "meta"):
            raise ValueError(
                f"generator must be on the device of the noise ({where.type}), got one on {generator.device.type}; "
                "make it with torch.Generator(device)"
            )


def _unknown_device(value: object) -> ValueError | TypeError:
    kind = ValueError if isinstance(value, str | int | torch.device) and not isinstance(value, bool) else TypeError
    return kind(f'device must be one that torch finds here, got {_shown(value)}; for example "cpu"')


def rows(name: str, value: Any, batch_size: int) -> None:
    """Finite floating-point rows, enough for one batch; an unbiased MMD needs two of each."""
    tensor(name, value)
    if value.ndim < 2 or value[:1].numel() == 0:
        raise ValueError(
            f"{name} must have shape (rows, ...) with a number in each row, got {tuple(value.shape)}; "
            f"for one number per row use {name}.reshape(-1, 1)"
        )
    if value.is_meta:
        raise ValueError(f"{name} must hold numbers, got a tensor on the meta device; pass one that has data")
    if not value.isfinite().all():
        raise ValueError(f"{name} must hold finite numbers, got NaN or infinity; remove or clip them")
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


def same_data(path: Path, saved: list[list[float]] | None, now: list[list[float]]) -> None:
    """A checkpoint was trained on rows of this outline; one that has none is believed."""
    same = saved is None or (len(saved) == len(now) and all(map(_alike, saved, now)))
    if not same:
        raise ValueError(
            f"data must be the rows that {path} was trained on to resume from it, got others; "
            "give the same ones, or train into another folder"
        )


def _alike(a: list[float], b: list[float]) -> bool:
    """Two outlines (gkfast.gan.checkpoint.outline) of the same rows: their shapes agree, their means to rounding."""
    return a[4:] == b[4:] and all(
        math.isclose(p, q, rel_tol=_SAME, abs_tol=_SAME * a[0]) for p, q in zip(a[:4], b[:4], strict=True)
    )


def same_network(name: str, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """A network has the weights of a checkpoint."""
    shapes = [{key: tuple(w.shape) for key, w in s.items() if isinstance(w, Tensor)} for s in (saved, now)]
    for key in sorted({*shapes[0], *shapes[1]}):
        a, b = (shape.get(key) for shape in shapes)
        if a != b:
            raise ValueError(
                f"{name} must be the network of the checkpoint, {key} of shape {a}, got {b}; "
                "resume with the same network, or train into another folder"
            )


def same_run(path: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    for name in now:
        if saved.get(name) != now[name]:
            raise ValueError(
                f"{name} must be {saved.get(name)!r} to resume from {path}, got {now[name]!r}; "
                "resume with the same settings, or train into another folder"
            )


def generated(samples: Any, real: Tensor) -> None:
    """What the generator returns has the shape of real rows."""
    if not isinstance(samples, Tensor) or samples.shape[1:] != real.shape[1:]:
        got = tuple(samples.shape[1:]) if isinstance(samples, Tensor) else _shown(samples)
        raise ValueError(
            f"generator must return rows of the shape of y's, {tuple(real.shape[1:])}, "
            f"got {got}; change its last layer"
        )


def runs(name: str, rule: str, error: Exception, remedy: str) -> ValueError:
    said = " ".join(str(error).split())
    return ValueError(f"{name} must {rule}, got {type(error).__name__} ({said}); {remedy}")


def judged(d: Any, rows: int, features: bool) -> None:
    """What the discriminator returns is one number for each row, or as many features as it likes."""
    got = f"shape {tuple(d.shape)}" if isinstance(d, Tensor) else _shown(d)
    if features and not (isinstance(d, Tensor) and d.ndim > 1 and len(d) == rows):
        raise ValueError(
            f"discriminator must return features of shape (B, F) for this loss, got {got} for {rows} samples; "
            "change its last layer"
        )
    if not features and not (isinstance(d, Tensor) and d.numel() == rows):
        raise ValueError(
            f"discriminator must return one number per sample, got {got} for {rows}; change its last layer"
        )


def announced(least: float, greatest: float, where: str) -> None:
    """What the discriminator returned are the probabilities that were announced."""
    if least < -_ROUNDING or greatest > 1 + _ROUNDING:
        raise ValueError(
            f"discriminator must return probabilities in [0, 1], got values from {least:.4g} to {greatest:.4g} "
            f'{where}; end it with a sigmoid, or pass output="logit"'
        )


def minimised(name: str, value: Any) -> None:
    """A part of the objective returned one number that has a gradient."""
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        plain = isinstance(value, Tensor) and value.numel() == 1
        got = "one without a gradient" if plain else _shown(value)
        raise ValueError(
            f"{name} must return a scalar tensor that depends on the weights, got {got}; "
            "return a mean over rows, not detached"
        )


def finite(record: dict[str, float]) -> None:
    for name, value in record.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"training must keep {name} finite, got {value} at step {record['step']}; "
                "lower the learning rate, lam, r1 or r2"
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
_GREATEST = {"r1": _GREATEST_PENALTY, "r2": _GREATEST_PENALTY, "seed": _GREATEST_SEED}
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
        if value is not None and value > _GREATEST.get(name, math.inf):
            raise ValueError(f"{name} must be at most {_GREATEST[name]:g}, got {value!r}; correct it")
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
