"""Benchmarks: `pytest --benchmark-only` runs them and nothing else; plain `pytest` does not collect them.

Each test measures one row: its output is checked against the reference, then it is timed by pytest-benchmark (its
tables compare the rows of one size), then in turns with gkfast (the table at the end compares these). With
`--save-rows=PATH` that table is also written as CSV.
"""

import csv
import math
import os
import platform
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import pytest
import torch

from bench import ceilings, measure

_ROWS = pytest.StashKey[list]()
# processes that wanted a core in the minute before the run; NaN where the system does not tell
_LOAD = pytest.StashKey[float]()
# rivals that only bound what is possible compute something else, and are not checked
CEILINGS = ("torch.mm", "fill")


def pytest_addoption(parser):
    parser.addoption("--save-rows", metavar="PATH", help="benchmarks: write the table at the end as CSV")


def pytest_configure(config):
    config.stash[_ROWS] = []
    config.stash[_LOAD] = os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan
    if config.getoption("benchmark_only", default=False):
        # tests/conftest.py is loaded too and puts torch on one thread, which would go unnoticed here
        torch.set_num_threads(_threads())


def _threads():
    """OMP_NUM_THREADS where it is set, else the processors at hand."""
    at_hand = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return int(os.environ.get("OMP_NUM_THREADS", 0)) or at_hand


def pytest_ignore_collect(collection_path, config):
    return None if config.getoption("benchmark_only", default=False) else True


@dataclass(frozen=True)
class _Checked:
    """A run, what its first call took, and its errors (None for a ceiling)."""

    run: measure.Run
    first_call: float
    errors: dict[str, float] | None
    wrong: str | None

    @property
    def error(self):
        return max(self.errors.values()) if self.errors else None


def _checked(case, name, make, exact):
    run = make(case, name)
    first_call, outputs = measure.first_call(run)
    if name in CEILINGS:
        return _Checked(run, first_call, None, None)
    errors = exact.errors(outputs)
    whose = "gkfast" if name == "gkfast" else "rival"
    return _Checked(run, first_call, errors, measure.wrong(case, whose, errors))


@lru_cache(maxsize=1)
def _ours(case, make, reference):
    """gkfast and the exact answer, kept while the rows of one case run."""
    exact = reference(case)
    return _checked(case, "gkfast", make, exact), exact


@pytest.fixture
def row(benchmark, pytestconfig):
    """row(case, name, make, reference): check and time one row.

    make(case, name) returns the function to time, reference(case) the exact answer.
    """

    def measure_row(case, name, make, reference):
        ours, exact = _ours(case, make, reference)
        theirs = ours if name == "gkfast" else _checked(case, name, make, exact)
        bound, bound_seconds = ceilings.bound(case)
        result = {
            "case": str(case),
            **{"op": case.op, "dtype": case.dtype, "N": case.n, "M": case.n, "D": case.d},
            "bandwidths": case.bandwidths,
            "rival": name,
            "gkfast_ms": None,
            "rival_ms": None,
            "ratio": None,
            "best_ratio": None,
            "disturbed": None,
            "gkfast_error": ours.error,
            "rival_error": theirs.error,
            "gkfast_first_call_s": ours.first_call,
            "rival_first_call_s": theirs.first_call,
            "bound": bound,
            "bound_ms": bound_seconds * 1e3,
            "bound_share": None,
            "wrong": theirs.wrong,
        }
        if name != "gkfast":
            pytestconfig.stash[_ROWS].append(result)
        if ours.wrong:
            result["wrong"] = f"gkfast is {ours.wrong}"
            (pytest.fail if name == "gkfast" else pytest.skip)(result["wrong"])
        if theirs.wrong:
            pytest.skip(theirs.wrong)
        benchmark.group = str(case)
        benchmark(theirs.run)
        if benchmark.enabled and name != "gkfast":
            turns = measure.alternate(ours.run, theirs.run)
            result |= {
                "gkfast_ms": turns.ours * 1e3,
                "rival_ms": turns.theirs * 1e3,
                "ratio": turns.ratio,
                "best_ratio": turns.best_ratio,
                "disturbed": turns.disturbed,
                "bound_share": bound_seconds / turns.ours,
            }
        elif benchmark.enabled:
            seconds = benchmark.stats.stats.median
            result |= {"gkfast_ms": seconds * 1e3, "bound_share": bound_seconds / seconds}
        benchmark.extra_info.update(result)

    return measure_row


# after pytest-benchmark's tables
@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash[_ROWS]
    if not rows:
        return
    write = terminalreporter.write_line
    terminalreporter.section("gkfast and its rivals, in turns")
    write(_EXPLANATION)
    rates = ", ".join(f"{ceilings.fma_rate(dtype) / 1e9:.0f} G/s {dtype}" for dtype in ("float32", "float64"))
    write(f"{torch.get_num_threads()} threads; multiply-adds {rates}; load before the run {config.stash[_LOAD]:.1f}.")
    if config.stash[_LOAD] > 0.5:
        write("BUSY: other processes had the cores; quote ratios with the load beside them, and no times.")
    write("")
    write(
        f"{'case':42} {'gkfast ms':>9} {'first s':>7} {'error':>6} {'share of bound':>14}"
        f"  {'rival':14} {'ms':>9} {'error':>6} {'ratio':>7} {'best':>7}"
    )
    for _, of_case in groupby(rows, key=lambda row: row["case"]):
        for row in of_case:
            write(_line(row))
        write("")
    rivals = [row for row in rows if row["rival"] not in CEILINGS]
    write(f"gkfast is slower than its rival in {sum(map(_loses, rivals))} of {len(rivals)} rows.")
    if path := config.getoption("--save-rows"):
        _save(rows, path, config.stash[_LOAD])
        write(f"rows saved to {path}")


_EXPLANATION = """\
ratio   rival / gkfast, median over rounds (best: of the fastest turns); above 1 gkfast is faster, < marks where not
~       the two ratios differ by half: other processes had the cores, and OpenMP rivals suffer more from that
error   the greatest of the outputs, against the reference in float64
share   the bound named, as measured in this run (bench/ceilings.py), over gkfast's time
torch.mm, fill: no rivals, but what rivals begin with (output given) and what storing the result alone costs
first   gkfast's first call of this case in this process, compiling included
"""


def _line(row):
    ours = f"{row['case']:42} {_number(row['gkfast_ms'], '9.3f')} {row['gkfast_first_call_s']:7.2f}"
    ours += f" {row['gkfast_error']:6.0e} {row['bound']:>9} {_number(row['bound_share'], '4.0%')}"
    theirs = f"  {row['rival']:14} {_number(row['rival_ms'], '9.3f')} {_number(row['rival_error'], '6.0e')}"
    if row["wrong"]:
        return f"{ours}{theirs} {row['wrong']}"
    marks = (" <" if _loses(row) else "") + (" ~" if row["disturbed"] else "")
    return f"{ours}{theirs} {_number(row['ratio'], '7.2f')} {_number(row['best_ratio'], '7.2f')}{marks}"


def _loses(row):
    return row["rival"] not in CEILINGS and row["ratio"] is not None and row["ratio"] < 1


def _number(value, form):
    return "-".rjust(int(form.split(".")[0])) if value is None else format(value, form)


def _save(rows, path, load):
    machine = {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "load": load,
        "torch": torch.__version__,
    }
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *machine])
        writer.writeheader()
        # four digits are more than the clock has
        writer.writerows(
            {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in (r | machine).items()} for r in rows
        )


def _processor():
    # pytest-benchmark's dependency
    import cpuinfo

    return cpuinfo.get_cpu_info().get("brand_raw") or platform.machine()
