"""Plots and tables of a run: `python -m bench.report [ROWS.csv]`, by default this machine's file in bench/results/.

The plots are written beside the file; with --markdown the tables of docs/guides/rows.md are printed instead.
"""

import argparse
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from bench import machine, plots, rows
from bench.plots import LEGEND, label, title
from bench.rows import ONE_THREAD, Row

RESULTS = Path(__file__).parent / "results"

_COLUMNS = {name: rivals for name, rivals in LEGEND.items() if name != "NumPy"}


def markdown(measured: list[Row]) -> str:
    """The tables of docs/guides/rows.md: ratios, what a call costs, first calls, threads."""
    own = {row["case"]: row for row in measured if not row["rival"]}
    parts = [_source(measured), _ratios(measured, own), _losses(measured)]
    for table in (_calls, _first_calls, _threads):
        parts.append(table(measured, own))
    return "\n\n".join(filter(None, parts))


def _source(measured: list[Row]) -> str:
    row = measured[0]
    return (
        f"Time of the rival over gkfast's, from `bench/results/{row['machine']}.csv` ({row['processor']}, "
        f"{row['threads']} threads, torch {row['torch']}, load {row['load']:.1f} before the run). Above 1 gkfast is "
        "faster; **bold** where it is slower. Share: what the machine's multiply-adds (or stores) alone would take, "
        "over gkfast's time."
    )


def _ratios(measured: list[Row], own: dict[str, Row]) -> str:
    lines = []
    for case, of_case in groupby(measured, key=lambda row: row["case"]):
        ratios = {row["rival"]: row for row in of_case if row["rival"] and row["rival"] != ONE_THREAD}
        if not ratios or _is_call(own.get(case)) or next(iter(ratios.values()))["sweep"]:
            continue
        cells = [next((_ratio(ratios[r]) for r in rivals if r in ratios), "") for rivals in _COLUMNS.values()]
        lines.append([title(next(iter(ratios.values()))), *_own(own.get(case)), *cells])
    return _table(("case", "gkfast", "share", *_COLUMNS), lines)


def _own(row: Row | None) -> tuple[str, str]:
    if row is None or row["gkfast_ms"] is None:
        return "", ""
    return _time(row["gkfast_ms"]), f"{row['bound_share']:.0%}"


def _ratio(row: Row) -> str:
    if row["ratio"] is None:
        return "WRONG" if row["wrong"] else ""
    return f"**{row['ratio']:.2g}**" if row["ratio"] < 1 else _short(row["ratio"])


def _short(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _time(ms: float) -> str:
    return f"{1e3 * ms:.3g} µs" if ms < 1 else f"{ms:.3g} ms" if ms < 1e3 else f"{ms / 1e3:.3g} s"


def _losses(measured: list[Row]) -> str:
    counted = [row for row in measured if rows.against_rival(row) and row["ratio"] is not None]
    lost = [row for row in counted if rows.loses(row)]
    sentence = f"gkfast is slower in {len(lost)} of {len(counted)} rows"
    worst = sorted(lost, key=lambda row: row["ratio"])[:3]
    if worst:
        sentence += ", furthest in: "
        sentence += "; ".join(f"{title(row)} against {label(row['rival'])} ({row['ratio']:.2g})" for row in worst)
    return f"{sentence}."


def _is_call(row: Row | None) -> bool:
    return row is not None and row["N"] <= 8


def _calls(measured: list[Row], own: dict[str, Row]) -> str:
    lines = []
    for row in filter(_is_call, own.values()):
        rivals = [r for r in measured if r["case"] == row["case"] and r["rival"] and r["rival_ms"] is not None]
        if row["gkfast_ms"] is not None:
            others = ", ".join(f"{label(r['rival'])} {_time(r['rival_ms'])}" for r in rivals)
            lines.append([title(row), _time(row["gkfast_ms"]), others])
    return _table(("what a call costs", "gkfast", "others"), lines)


def _first_calls(measured: list[Row], own: dict[str, Row]) -> str:
    found: dict[str, dict[str, Row]] = {}
    for row in own.values():
        op, separator, cache = row["op"].partition(" first call, ")
        if separator and row["gkfast_ms"] is not None:
            found.setdefault(op, {})[cache] = row
    caches = ("warm cache", "empty cache")
    lines = [
        [op, *(f"{states[c]['gkfast_ms'] / 1e3:.2g} s" if c in states else "" for c in caches)]
        for op, states in found.items()
    ]
    return _table(("first call in a process", "compiled kernels on disk", "none on disk"), lines)


def _threads(measured: list[Row], own: dict[str, Row]) -> str:
    speed_up = [row for row in measured if row["rival"] == ONE_THREAD and row["ratio"] is not None]
    threads = measured[0]["threads"]
    return _table(
        (f"{threads} threads against one", "speed-up"), [[title(row), f"{row['ratio']:.2f}"] for row in speed_up]
    )


def _table(head: Sequence[str], lines: list[list[str]]) -> str:
    if not lines:
        return ""
    cells = [list(head), ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("rows", type=Path, nargs="?", metavar="ROWS.csv")
    parser.add_argument(
        "--markdown", action="store_true", help="print the tables of docs/guides/rows.md, plot nothing"
    )
    options = parser.parse_args(arguments)
    path = options.rows or RESULTS / f"{machine.name()}.csv"
    with path.open() as file:
        measured = rows.read(file)
    if options.markdown:
        print(markdown(measured))
        return
    for plot in plots.plot(measured, path.with_suffix("")):
        print(plot)


if __name__ == "__main__":
    main()
