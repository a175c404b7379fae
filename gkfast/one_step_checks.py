"""Checks of the functions and losses for one-step generators: as in checks.py, one sentence for each."""

import numpy as np

from gkfast import checks
from gkfast.checks import Array


def drifting(fake: Array, sets: dict[str, Array], powers: object, skip_self: bool, unit_rms: bool) -> None:
    """What a drifting field is made of."""
    for name, value in sets.items():
        checks.two_point_sets("fake", fake, name, value)
        if fake.shape[-2]:
            checks.some_rows(name, value, 1, "a drifting field", "pass some")
    checks.flag("skip_self", skip_self)
    checks.flag("unit_rms", unit_rms)
    rows = sets["negative"].shape[-2]
    if skip_self and rows < fake.shape[-2]:
        raise ValueError(
            f"negative must have a row for each of fake ({fake.shape[-2]}) with skip_self, got {rows}; row i of fake "
            f"does not meet row i of negative"
        )
    if powers is None and skip_self and fake.shape[-2]:
        checks.some_rows(
            "negative", sets["negative"], 2, "a field with powers=None", "the only one is the sample itself"
        )
    powers_of_sums(powers)


def powers_of_sums(powers: object) -> None:
    """Of the sums of rows and columns that a drifting field's kernels are divided by."""
    if powers is None:
        return
    numbers = list(powers) if isinstance(powers, (list, tuple)) else []
    real = [
        isinstance(p, (int, float, np.integer, np.floating)) and not isinstance(p, bool) and p >= 0 for p in numbers
    ]
    if len(real) != 2 or not all(real) or not sum(numbers) <= 1:
        raise ValueError(
            f"powers must be None or two numbers that are not negative, with a sum of at most 1, got {powers!r}; "
            f"(0.5, 0.5) is usual"
        )


def embedding(data: Array, landmarks: object, method: object, held_out: object, seed: object) -> None:
    """The arguments of a mean embedding."""
    checks.points("data", data)
    if data.ndim != 2:
        raise ValueError(f"data must be one set of points, (R, D), got {tuple(data.shape)}; call once for each set")
    checks.some_rows("data", data, 1, "a mean")
    if checks.is_tensor(landmarks) or isinstance(landmarks, np.ndarray):
        checks.two_point_sets("data", data, "landmarks", landmarks)
        checks.some_rows("landmarks", landmarks, 1, "an embedding", "pass some, or how many")
    else:
        whole("landmarks", landmarks, 1)
    if not isinstance(method, str) or method not in ("sample", "kmeans"):
        raise ValueError(f"method must be sample or kmeans, got {method!r}; sample needs no other package")
    whole("held_out", held_out, 0)
    whole("seed", seed, 0)


def pieces(values: object) -> None:
    if not isinstance(values, (list, tuple)) or not values or not all(map(checks.is_tensor, values)):
        raise TypeError(
            f"pieces must be a list or tuple of tensors, got {type(values).__name__}; for example z.split(256)"
        )


def whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}; pass one")
