"""Every check on what the GAN side is given, and every message: *name must rule, got value; do this*.

The kernels' own arguments are checked by gkfast.checks, the command line's by gkfast.__main__.
"""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

# of fewer rows the held-out fifth is too small for any figure
_MIN_ROWS = 20


def missing(purpose: str, module: str) -> ImportError:
    return ImportError(f'{purpose} needs {module}, which is not installed; run pip install "gkfast[train]"')


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


def one_process(count: int) -> None:
    if count > 1:
        raise RuntimeError(
            f"training must run in one process, got {count}; start it without torchrun or accelerate launch"
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


def existing(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f'--data must be "digits", "ring" or an existing .npy file, got {str(path)!r}; check the path'
        )


def array(path: Path, value: Any) -> None:
    """What a .npy file held is an array (N, D...) of real numbers."""
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{path} must be a .npy file, got an .npz archive; save one array with numpy.save")
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


def plain_numbers(path: Path) -> ValueError:
    return ValueError(
        f"{path} must be a .npy file of plain numbers, got what NumPy cannot load without pickle; "
        "save it with numpy.save"
    )


def float32_rows(path: Path, value: Any) -> None:
    """Rows (N, D) are finite and not all the same."""
    bad = int((~np.isfinite(value)).sum())
    if bad:
        raise ValueError(f"{path} must hold finite float32 numbers, got {bad} that are not; remove or clip them")
    if (value == value[0]).all():
        raise ValueError(f"{path} must hold rows that differ, got {len(value)} equal ones; check how it was saved")


def sigma_rule(value: str, numbers: list[float]) -> None:
    if not numbers or not all(0 < s < math.inf for s in numbers):
        raise ValueError(
            f"--sigma must be median, mean, or positive numbers with commas between, got {value!r}; "
            "for example --sigma 0.5,1,2"
        )
