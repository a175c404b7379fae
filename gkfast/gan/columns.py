"""The columns of a table: scaled for networks and metrics, and given back as they were, in range and in kind."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# whole numbers of so few different values are categories or counts
_CATEGORIES = 20
# of float32, in standard deviations
_ROUNDING = 1e-6
# samples of a bootstrap
_RESAMPLES = 20


@dataclass(frozen=True)
class Columns:
    """Names, scales and kinds of columns; from_rows finds them.

    Networks and metrics see (value - mean) / scale. What a generator gives is scaled back by `restore`: no number
    below 0 where there is none, none above 1 where all lie in [0, 1], whole numbers where all are whole, and the
    nearest value that occurs in columns of at most 20 whole ones.
    """

    names: list[str]
    mean: list[float]
    # the standard deviation, or 1 for a constant column
    scale: list[float]
    # None where no bound is evident
    low: list[float | None]
    high: list[float | None]
    whole: list[bool]
    # all values of a column, where they are whole and few, or one; else none
    values: list[list[float]]

    @classmethod
    def from_rows(cls, rows: np.ndarray[Any, Any], names: Sequence[str] = ()) -> "Columns":
        """Those of rows (N, D) to train on; columns without names are numbered from 1."""
        least, most, deviation = rows.min(0), rows.max(0), rows.std(0)
        whole = (rows == np.rint(rows)).all(0)
        distinct = [np.unique(column).tolist() for column in rows.T]
        return cls(
            names=list(names) or [f"column {k}" for k in range(1, rows.shape[1] + 1)],
            mean=rows.mean(0).tolist(),
            scale=np.where(least == most, 1.0, deviation).tolist(),
            low=[0.0 if value >= 0 else None for value in least],
            high=[1.0 if a >= 0 and b <= 1 else None for a, b in zip(least, most, strict=True)],
            whole=whole.tolist(),
            values=[v if len(v) <= (_CATEGORIES if w else 1) else [] for v, w in zip(distinct, whole, strict=True)],
        )

    def standard(self, rows: np.ndarray[Any, Any]) -> Tensor:
        """Rows (N, D) as networks and metrics see them, float32."""
        return torch.from_numpy(((rows - np.array(self.mean)) / np.array(self.scale)).astype(np.float32))

    def restore(self, samples: Tensor) -> np.ndarray[Any, Any]:
        """Rows (N, D) in the units and the kinds of the table, float64."""
        rows = samples.double().cpu().numpy() * np.array(self.scale) + np.array(self.mean)
        low = np.array([-np.inf if bound is None else bound for bound in self.low])
        high = np.array([np.inf if bound is None else bound for bound in self.high])
        # rounding may leave float32 beside a bound
        near = _ROUNDING * np.array(self.scale)
        rows = np.where(rows < low + near, low, np.where(rows > high - near, high, rows))
        for k, (whole, values) in enumerate(zip(self.whole, self.values, strict=True)):
            if values:
                between = (np.array(values[1:]) + np.array(values[:-1])) / 2
                rows[:, k] = np.array(values)[np.searchsorted(between, rows[:, k])]
            elif whole:
                rows[:, k] = np.rint(rows[:, k])
        return rows

    def as_given(self, samples: Tensor) -> Tensor:
        """Samples as a user gets them, scaled again: what is measured."""
        return self.standard(self.restore(samples))

    def kind(self, k: int) -> str:
        """What `restore` holds to in a column."""
        if self.values[k]:
            few = self.values[k]
            return f"always {few[0]:g}" if len(few) == 1 else f"one of {len(few)} whole numbers"
        bounds = "" if self.low[k] is None else "0 to 1" if self.high[k] is not None else "at least 0"
        return ", ".join(filter(None, ("whole" if self.whole[k] else "", bounds))) or "any number"

    def note(self) -> str:
        """What is done to the columns, in a sentence."""
        plain = [k for k, values in enumerate(self.values) if not values]
        counts = {
            "get no negatives": sum(self.low[k] is not None and self.high[k] is None for k in plain),
            "stay in [0, 1]": sum(self.high[k] is not None for k in plain),
            "are rounded to whole numbers": sum(self.whole[k] for k in plain),
            f"go to the nearest of their (at most {_CATEGORIES}) values": len(self.values) - len(plain),
        }
        found = [f"{count} {words}" for words, count in counts.items() if count]
        text = f"{len(self.names)} columns, each scaled to mean 0 and deviation 1 for the networks and the metrics"
        return f"{text}; of what is generated {', '.join(found)}" if found else text

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; Columns(**as_dict) has them back."""
        return asdict(self)

    def alike(self, other: "Columns") -> bool:
        """Whether they are those of the same rows, but for the rounding of another precision."""
        if self.names != other.names:
            return False
        scale, mean, theirs = np.array(self.scale), np.array(self.mean), np.array(other.mean)
        return bool((abs(mean - theirs) <= 1e-5 * scale).all() and np.allclose(scale, other.scale, rtol=1e-5))


def saved(path: Path) -> Columns | None:
    """Those of a table, in the config.json of a run."""
    found = json.loads(path.read_text()).get("columns")
    return None if found is None else Columns(**found)


def compare(columns: Columns, real: np.ndarray[Any, Any], fake: np.ndarray[Any, Any]) -> list[Mapping[str, Any]]:
    """Of each column: moments and range of real and generated rows (N, D), and its worst correlation.

    `correlation_error` is the greatest difference between a correlation of this column and the real one, and `with`
    the other column; constant columns have correlation 0.
    """
    scale = np.array(columns.scale)
    errors = np.abs(_correlations(fake, columns) - _correlations(real, columns))
    worst = errors.argmax(1)
    return [
        {
            "name": name,
            "kind": columns.kind(k),
            "mean": float(fake[:, k].mean()),
            "deviation": float(fake[:, k].std()),
            "least": float(fake[:, k].min()),
            "greatest": float(fake[:, k].max()),
            # in real deviations
            "mean_error": float(abs(fake[:, k].mean() - real[:, k].mean()) / scale[k]),
            "correlation_error": float(errors[k, worst[k]]),
            "with": columns.names[worst[k]],
        }
        for k, name in enumerate(columns.names)
    ]


def worst(found: Sequence[Mapping[str, Any]], real: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of all columns, in compare's results: the worst mean, the worst ratio of deviations, and their correlations.

    `mean_error` is in real deviations, `deviation_ratio` is the wider by the narrower deviation, of columns that are
    not constant, and `correlation_error` is the mean over the columns of each one's worst.
    """
    ratios = [_ratio(a["deviation"], b["deviation"]) for a, b in zip(found, real, strict=True) if b["deviation"] > 0]
    return {
        "mean_error": max(column["mean_error"] for column in found),
        "deviation_ratio": max(ratios, default=1.0),
        "correlation_error": sum(column["correlation_error"] for column in found) / len(found),
    }


def errors(columns: Columns, real: np.ndarray[Any, Any], fake: np.ndarray[Any, Any], seed: int) -> dict[str, float]:
    """Standard errors of `worst`, from samples of both sets with replacement."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(_RESAMPLES):
        x, y = (rows[rng.integers(len(rows), size=len(rows))] for rows in (real, fake))
        found.append(worst(compare(columns, x, y), compare(columns, x, x)))
    return {name: float(np.std([each[name] for each in found], ddof=1)) for name in found[0]}


def _ratio(a: float, b: float) -> float:
    # JSON has no infinity
    return max(a / b, b / max(a, 1e-9 * b))


def _correlations(rows: np.ndarray[Any, Any], columns: Columns) -> np.ndarray[Any, Any]:
    z = rows - rows.mean(0)
    deviation = z.std(0)
    # rounding leaves a constant column with a deviation of nearly 0
    z = z / np.where(deviation > 1e-9 * np.array(columns.scale), deviation, np.inf)
    return z.T @ z / len(z)
