"""Checks of what compares samples: parts of means, groups, tests; the messages are those of checks.py."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gkfast import checks
from gkfast.checks import Array


def parts(value: Any) -> tuple[str, ...]:
    """The wanted means of kernel_means."""
    known = ("xx", "yy", "xy")
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not names or not all(isinstance(n, str) and n in known for n in names):
        raise ValueError(f"parts must be some of xx, yy, xy, got {value!r}; for example ('xx', 'xy')")
    return tuple(name for name in known if name in names)


def groups(labels: Any, x: Array, estimator: object) -> tuple[np.ndarray, np.ndarray]:
    """Sorted labels of the groups, and the number of each row's group."""
    checks.points("x", x)
    checks.unbiased_or_biased("estimator", estimator)
    given = labels.detach().cpu().numpy() if checks.is_tensor(labels) else np.asarray(labels)
    rows = x.shape[-2]
    if given.shape != (rows,) or given.dtype.kind not in "biuUS":
        raise ValueError(
            f"labels must have one whole number or string for each of the {rows} rows of x, got {given.dtype} of "
            f"shape {given.shape}; pass the class or run of each row"
        )
    names, numbers, counts = np.unique(given, return_inverse=True, return_counts=True)
    least = 2 if estimator == "unbiased" else 1
    if len(names) < 2 or counts.min() < least:
        got = f"{len(names)} groups, the smallest of {counts.min() if len(names) else 0}"
        raise ValueError(
            f"labels must name two groups or more of at least {least} row{'s' * (least > 1)} for the {estimator} "
            f"estimator, got {got}; leave small groups out"
        )
    return names, numbers


def share(name: str, value: Any) -> None:
    """A number between 0 and 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)) or not 0 < value < 1:
        raise ValueError(f"{name} must be a number between 0 and 1, got {value!r}; 0.05 is usual")


def reference(value: Array) -> None:
    """Rows (N, D), finite where that can be seen, enough to be split."""
    checks.points("reference", value)
    if value.ndim != 2:
        raise ValueError(f"reference must have shape (N, D), got {tuple(value.shape)}; pass one sample, a row each")
    checks.some_rows("reference", value, 4, "a test", "pass more")


def window(value: Any, reference: Array) -> None:
    """The rows of each batch: enough of them, and of the reference beside them."""
    most = reference.shape[-2] // 2
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 2 <= value <= most:
        raise ValueError(
            f"window must be a whole number from 2 to {most}, half of the reference's rows, got {value!r}; "
            "pass a smaller one, or more reference rows"
        )


def fitted(value: object) -> None:
    if not hasattr(value, "reference_"):
        raise ValueError("fit must come before test, got a test without a reference; call fit(reference) first")


def parameter(name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise ValueError(f"set_params must get names among {', '.join(known)}, got {name!r}; correct it")


def spread(rule: str, distance: float) -> None:
    if not 0 < distance < math.inf:
        raise ValueError(
            f"sigma must be positive numbers for rows whose distance is {distance}, got {rule!r}; "
            "remove NaN, or give numbers"
        )


def step(value: Any, window: int | None) -> tuple[int, int]:
    """The rows of a stream's windows, and from one to the next."""
    if window is None:
        raise ValueError("windows must be called after fit with a window, got none; call fit(reference, window=100)")
    value = window if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 1 <= value <= window:
        raise ValueError(
            f"step must be a whole number from 1 to the window's {window} rows, got {value!r}; leave it out"
        )
    return window, int(value)


def batch(value: Array, reference: Array, rows: int | None, least: int = 2) -> None:
    """A batch (M, D) beside the reference; of so many rows, if thresholds are of such."""
    checks.two_point_sets("reference", reference, "batch", value)
    if value.ndim != 2:
        raise ValueError(f"batch must have shape (M, D), got {tuple(value.shape)}; pass one sample, a row each")
    if rows is not None and len(value) != rows:
        raise ValueError(
            f"batch must have the {rows} rows of the window that was fitted, got {len(value)}; "
            "pass as many, or fit without a window"
        )
    checks.some_rows("batch", value, least, "a test", "pass more")


def rule(sigma: Any, scales: Any) -> None:
    """A rule for the bandwidth, or bandwidths; and what a rule is multiplied with."""
    if isinstance(sigma, str) and sigma not in ("median", "mean"):
        raise ValueError(f"sigma must be median, mean or positive numbers, got {sigma!r}; median is usual")
    if not isinstance(sigma, str):
        checks.bandwidths(sigma, None)
    valid = isinstance(scales, (list, tuple, np.ndarray)) and len(scales) > 0
    if not valid or not all(isinstance(s, (int, float, np.floating)) and 0 < s < math.inf for s in scales):
        raise ValueError(f"scales must be positive finite numbers, got {scales!r}; for example (0.5, 1.0, 2.0)")


def updated(name: str, rows: Any) -> None:
    """A metric has rows of this sample."""
    if not len(rows):
        flag = name == "real"
        raise ValueError(
            f"features must hold rows of both samples, got none of the {name} one; call update(features, real={flag})"
        )


def whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}; correct it")


def kernel_of_kid(value: object) -> None:
    if not isinstance(value, str) or value not in ("polynomial", "gaussian"):
        raise ValueError(f"kernel must be polynomial or gaussian, got {value!r}; KID's own is polynomial")


def permutation_test(estimator: object, permutations: object, seed: object, x: Array, y: Array) -> None:
    """The arguments of a permutation test."""
    if not isinstance(estimator, str) or estimator not in ("unbiased", "biased"):
        raise ValueError(
            f"estimator must be unbiased or biased for a test, got {estimator!r}; the others pair rows by their "
            f"order, which a relabelling does not keep"
        )
    least = 1 if estimator == "biased" else 2
    checks.some_rows("x", x, least, f"the {estimator} estimator")
    checks.some_rows("y", y, least, f"the {estimator} estimator")
    if not isinstance(permutations, int) or isinstance(permutations, bool) or permutations < 1:
        raise ValueError(
            f"permutations must be a whole number of at least 1, got {permutations!r}; "
            f"1000 gives p-values down to 0.001"
        )
    whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool) and seed >= 0
    if not (seed is None or whole or isinstance(seed, np.random.Generator)):
        raise ValueError(
            f"seed must be a whole number not below 0, a numpy.random.Generator or None, got {seed!r}; "
            f"None draws a fresh one"
        )


def variance_of_mmd2(variance: object, estimator: object, x: Array, y: Array) -> None:
    """Which estimates of MMD^2 and of its variance, and samples that allow them."""
    for name, value in (("estimator", estimator), ("variance", variance)):
        checks.unbiased_or_biased(name, value)
    least = 4 if variance == "unbiased" else 2
    for name, sample in (("x", x), ("y", y)):
        checks.some_rows(name, sample, least, "the variance of MMD^2")
    if variance == "biased" and x.shape[-2] != y.shape[-2]:
        raise ValueError(
            f"x and y must have the same number of rows for the biased variance, got {x.shape[-2]} and "
            f"{y.shape[-2]}; use unbiased for samples of different sizes"
        )
