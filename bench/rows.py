"""The rows of a run, as the table at its end shows them and bench/results/ keeps them.

A row without a rival is gkfast itself, with the share of its bound; the others have the ratio to their rival. What
a file lacks (an older run, a rival that is not installed) is None in a row that is read.
"""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]

# they bound what is possible and compute something else; they are shown beside rivals and are none
CEILINGS = ("torch.mm", "fill")
# gkfast itself: the ratio is the speed-up by threads
ONE_THREAD = "one thread"

_NUMBERS = {
    **dict.fromkeys(("N", "M", "D", "E", "threads"), int),
    **dict.fromkeys(("gkfast_ms", "rival_ms", "ratio", "best_ratio", "spread", "others", "load"), float),
    **dict.fromkeys(("gkfast_error", "rival_error", "gkfast_first_call_s", "rival_first_call_s"), float),
    **dict.fromkeys(("bound_ms", "bound_share"), float),
    **dict.fromkeys(("disturbed", "sweep"), "True".__eq__),
}
_TEXTS = ("case", "op", "dtype", "bandwidths", "rival", "bound", "wrong", "machine", "processor", "torch")


def read(lines: Iterable[str]) -> list[Row]:
    """The rows of an open file, or of its lines."""
    empty = dict.fromkeys((*_TEXTS, *_NUMBERS))
    return [empty | {name: _value(name, text) for name, text in row.items()} for row in csv.DictReader(lines)]


def _value(name: str, text: str | None) -> Any:
    if name == "rival":
        return text or ""
    if not text:
        return None
    return _NUMBERS[name](text) if name in _NUMBERS else text


def write(rows: list[Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        # four digits are more than the clock has
        writer.writerows({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def against_rival(row: Row) -> bool:
    return row["rival"] not in ("", ONE_THREAD, *CEILINGS)


def loses(row: Row) -> bool:
    return against_rival(row) and row["ratio"] is not None and row["ratio"] < 1
