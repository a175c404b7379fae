"""Checks of the functions and losses for one-step generators: as in checks.py, one sentence for each."""

import numpy as np

from gkfast import checks
from gkfast.checks import Array


def drifting(fake: Array, sets: dict[str, Array], powers: object, skip_self: object, unit_rms: object) -> None:
    """What a drifting field is made of."""
    for name, value in sets.items():
        checks.two_point_sets("fake", fake, name, value)
        if fake.shape[-2]:
            checks.some_rows(name, value, 1, "a drifting field", "pass some")
    for name, switch in (("skip_self", skip_self), ("unit_rms", unit_rms)):
        if not isinstance(switch, (bool, np.bool_)):
            raise TypeError(f"{name} must be True or False, got {switch!r}; pass a bool")
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
            f"(0.5, 0.5) is the paper's"
        )
