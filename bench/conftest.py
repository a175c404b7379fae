"""Benchmarks: `pytest --benchmark-only` runs them and nothing else; plain `pytest` does not collect them.

Each test measures one row: its output is checked against the reference, then it is timed in turns with gkfast (the
table at the end compares these), then a few rounds more by pytest-benchmark, whose tables and files have these. With
`--save-rows=PATH` the table at the end is also written as CSV.
"""

import math
import os
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import pytest
import torch

from bench import ceilings, machine, measure, rows

_ROWS = pytest.StashKey[list]()
# processes that wanted a core in the minute before the run; NaN where the system does not tell
_LOAD = pytest.StashKey[float]()


def pytest_addoption(parser):
    parser.addoption(
        "--save-rows",
        metavar="PATH",
        help="benchmarks: write the table at the end as CSV; into a folder, as MACHINE.csv",
    )


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
    if name in rows.CEILINGS:
        return _Checked(run, first_call, None, None)
    errors = exact.errors(outputs)
    whose = "gkfast" if name == "gkfast" else "rival"
    return _Checked(run, first_call, errors, measure.wrong(case, whose, errors))


@lru_cache(maxsize=1)
def _ours(case, make, reference):
    """gkfast and the exact answer, kept while the rows of one case run."""
    # matrices of a megabyte: a second thread would mostly wait for the first
    exact = measure.on_one_thread(lambda: reference(case))()
    return _checked(case, "gkfast", make, exact), exact


def _result(case, name, ours, theirs):
    """A row of the table and of the file, its times still missing."""
    bound, bound_seconds = ceilings.bound(case)
    return {
        "case": str(case),
        **{"op": case.op, "dtype": case.dtype, "N": case.n, "M": case.m, "D": case.d, "E": case.columns},
        "bandwidths": case.bandwidths,
        "sweep": case.sweep,
        "rival": "" if name == "gkfast" else name,
        "gkfast_ms": None,
        "rival_ms": None,
        "ratio": None,
        "best_ratio": None,
        "spread": None,
        "others": None,
        "disturbed": None,
        "gkfast_error": ours.error,
        "rival_error": None if name == "gkfast" else theirs.error,
        "gkfast_first_call_s": ours.first_call,
        "rival_first_call_s": None if name == "gkfast" else theirs.first_call,
        "bound": bound,
        "bound_ms": bound_seconds * 1e3,
        "bound_share": None,
        "wrong": theirs.wrong,
    }


@pytest.fixture
def row(benchmark, pytestconfig):
    """row(case, name, make, reference): check and time one row.

    make(case, name) returns the function to time, reference(case) the exact answer.
    """

    def measure_row(case, name, make, reference):
        ours, exact = _ours(case, make, reference)
        theirs = ours if name == "gkfast" else _checked(case, name, make, exact)
        result = _result(case, name, ours, theirs)
        pytestconfig.stash[_ROWS].append(result)
        if ours.wrong:
            result["wrong"] = ours.wrong if name == "gkfast" else f"gkfast is {ours.wrong}"
            (pytest.fail if name == "gkfast" else pytest.skip)(result["wrong"])
        if theirs.wrong:
            pytest.skip(theirs.wrong)
        if benchmark.disabled:
            return
        if name == "gkfast":
            (times,), others = measure.rounds([ours.run])
            result |= {
                "gkfast_ms": times.median * 1e3,
                "bound_share": result["bound_ms"] / times.best / 1e3,
                "others": others,
                "disturbed": others > measure.MUCH,
            }
        else:
            turns = measure.alternate(ours.run, theirs.run)
            times = turns.theirs
            result |= {
                "gkfast_ms": turns.ours.median * 1e3,
                "rival_ms": turns.theirs.median * 1e3,
                "ratio": turns.ratio,
                "best_ratio": turns.best_ratio,
                "spread": turns.spread,
                "others": turns.others,
                "disturbed": turns.disturbed,
            }
        benchmark.group = str(case)
        # for pytest-benchmark's own table and files: a few rounds suffice, the rows above are what counts
        benchmark.pedantic(theirs.run, rounds=3 if times.best < 0.1 else 1, iterations=times.calls)
        benchmark.extra_info.update(result)

    return measure_row


@pytest.fixture
def first_call_row(pytestconfig):
    """first_call_row(case, seconds, errors, bound_seconds): a row that was measured in a process of its own."""

    def record(case, seconds, errors, bound_seconds):
        wrong = measure.wrong(case, "gkfast", errors)
        ours = _Checked(None, seconds, errors, wrong)
        times = {"bound": "import numba", "bound_ms": bound_seconds * 1e3}
        if not wrong:
            times |= {"gkfast_ms": seconds * 1e3, "bound_share": bound_seconds / seconds}
        pytestconfig.stash[_ROWS].append(_result(case, "gkfast", ours, ours) | times)
        if wrong:
            pytest.fail(wrong)

    return record


# after pytest-benchmark's tables
@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    measured = config.stash[_ROWS]
    if not measured:
        return
    write = terminalreporter.write_line
    terminalreporter.section("gkfast and its rivals, in turns")
    write(_EXPLANATION)
    rates = ", ".join(f"{ceilings.fma_rate(dtype) / 1e9:.0f} G/s {dtype}" for dtype in ("float32", "float64"))
    write(f"{machine.name()}; multiply-adds {rates}; load before the run {config.stash[_LOAD]:.1f}.")
    if config.stash[_LOAD] > 0.5:
        write("BUSY: other processes had the cores; quote ratios with the load beside them, and no times.")
    for _, of_case in groupby(measured, key=lambda row: row["case"]):
        write("")
        for row in of_case:
            write(_rival_line(row) if row["rival"] else _own_line(row))
    write("")
    rivals = [row for row in measured if rows.against_rival(row)]
    write(f"gkfast is slower than its rival in {sum(map(rows.loses, rivals))} of {len(rivals)} rows.")
    if path := config.getoption("--save-rows"):
        write(f"rows saved to {_save(measured, Path(path), config.stash[_LOAD])}")


_EXPLANATION = """\
ratio   rival / gkfast, median over rounds (best: of the fastest turns); above 1 gkfast is faster, < marks where not
~       other processes had more than a tenth of a core; OpenMP rivals suffer more from that than gkfast
error   the greatest of the outputs, against the reference in float64
share   the bound named, as measured in this run (bench/ceilings.py), over gkfast's fastest turn
first   the first call of this case in this process, compiling included
torch.mm, fill: no rivals, but what rivals begin with (output given) and what storing the result alone costs
one thread: gkfast itself, so that the ratio is the speed-up by threads"""


def _own_line(row):
    line = f"{row['case']:58} {_number(row['gkfast_ms'], '10.4g')} ms, error {_number(row['gkfast_error'], '5.0e')}, "
    line += f"{_number(row['bound_share'], '5.1%')} of {row['bound']}, first {row['gkfast_first_call_s']:.2f} s"
    return f"{line} {row['wrong'] or ''}".rstrip()


def _rival_line(row):
    error = "" if row["rival_error"] is None else f", error {row['rival_error']:5.0e}"
    line = f"    {row['rival']:15} {_number(row['rival_ms'], '10.4g')} ms{error:13}"
    if row["wrong"]:
        return f"{line}  {row['wrong']}"
    marks = (" <" if rows.loses(row) else "") + (" ~" if row["disturbed"] else "")
    return f"{line}  ratio {_number(row['ratio'], '7.2f')}  best {_number(row['best_ratio'], '7.2f')}{marks}"


def _number(value, form):
    return "-".rjust(int(form.split(".")[0])) if value is None else format(value, form)


def _save(measured, path, load):
    """A folder gets a file with the machine's name."""
    path = path / f"{machine.name()}.csv" if path.is_dir() else path
    where = {
        "machine": machine.name(),
        "processor": machine.processor(),
        "threads": torch.get_num_threads(),
        "load": load,
        "torch": torch.__version__,
    }
    rows.write([row | where for row in measured], path)
    return path
