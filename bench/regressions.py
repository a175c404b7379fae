"""What got slower: `python -m bench.regressions NEW.csv [OLD.csv]`; OLD is by default the machine's committed file.

Compared are ratios to rivals and shares of bounds, since seconds drift with the machine. The exit status is 1 where
something got slower or wrong, 2 where there is nothing to compare with.
"""

import argparse
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from bench import rows
from bench.rows import Row

# three times what separated repeated runs where other processes left a row alone: the ratios of calls on one thread
# agreed within 5 %. With most of two cores in other hands one ratio in five falls by a fifth, so such rows only
# raise a doubt
TOLERANCE = 0.15


@dataclass
class Changes:
    """Sentences, each about one row."""

    slower: list[str] = field(default_factory=list)
    # as much slower, but other processes had the cores in one of the runs
    doubtful: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    compared: int = 0


def compare(new: list[Row], old: list[Row], tolerance: float = TOLERANCE) -> Changes:
    """Of each row of `old`, what became of it in `new`."""
    changes = Changes()
    now = {(row["case"], row["rival"]): row for row in new}
    for before in old:
        name = f"{before['case']} against {before['rival']}" if before["rival"] else before["case"]
        row = now.get((before["case"], before["rival"]))
        if row is None:
            changes.gone.append(name)
            continue
        if row["wrong"] and not before["wrong"]:
            changes.wrong.append(f"{name}: {row['wrong']}")
            continue
        what, pairs = _figures(before, row)
        if not pairs:
            continue
        changes.compared += 1
        # both figures of a row must agree: what hits one of them alone is a disturbance
        kept = max(now / then for then, now in pairs)
        # a row whose own rounds scatter (half the distance between quartiles) gets twice that
        if kept < 1 - max(tolerance, 2 * (row["spread"] or 0), 2 * (before["spread"] or 0)):
            disturbed = row["disturbed"] or before["disturbed"]
            (changes.doubtful if disturbed else changes.slower).append(
                f"{name}: {what} {pairs[0][0]:.3g} to {pairs[0][1]:.3g}, {1 / kept - 1:.0%} slower"
            )
        if rows.loses(row) and not rows.loses(before):
            changes.losses.append(f"{name}: ratio {before['ratio']:.3g} to {row['ratio']:.3g}")
    return changes


def _figures(before: Row, row: Row) -> tuple[str, list[tuple[float, float]]]:
    """What is compared, and its values then and now."""
    what, names = ("ratio", ("ratio", "best_ratio")) if before["rival"] else ("share of bound", ("bound_share",))
    return what, [(before[name], row[name]) for name in names if before[name] and row[name] is not None]


def committed(machine: str) -> list[Row] | None:
    """The rows of a machine's file as last committed; None where there is none."""
    file = f"HEAD:bench/results/{machine}.csv"
    result = subprocess.run(["git", "show", file], capture_output=True, text=True, check=False)
    return rows.read(result.stdout.splitlines()) if result.returncode == 0 else None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.regressions", description=__doc__)
    parser.add_argument("new", type=Path, metavar="NEW.csv")
    parser.add_argument("old", type=Path, nargs="?", metavar="OLD.csv")
    files = parser.parse_args(arguments)
    with files.new.open() as file:
        new = rows.read(file)
    machine = new[0]["machine"] if new else None
    if files.old is None:
        old = committed(machine)
    else:
        with files.old.open() as file:
            old = rows.read(file)
    if not new or not old:
        print(f"nothing to compare: {files.new if not new else files.old or f'committed rows of {machine}'}: no rows")
        return 2
    if old[0]["machine"] != machine:
        print(f"nothing to compare: {files.new} is from {machine}, the older rows are from {old[0]['machine']}")
        return 2
    changes = compare(new, old)
    for title, sentences in (
        ("slower", changes.slower),
        ("wrong", changes.wrong),
        ("slower while other processes had the cores: measure again", changes.doubtful),
        ("new losses", changes.losses),
        ("rows gone", changes.gone),
    ):
        if sentences:
            print(f"{title}:", *sentences, sep="\n    ")
    slower, wrong = len(changes.slower), len(changes.wrong)
    print(f"{changes.compared} rows compared; {slower} slower by more than {TOLERANCE:.0%}, {wrong} wrong")
    return 1 if changes.slower or changes.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
