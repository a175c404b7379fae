"""bench/gpu.py without a GPU: its cases, made small, are right against its own float64, whatever runs them."""

import csv
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", minversion="3.6", reason="no Triton on this platform")

# bench/ is not installed, and plain `pytest` leaves the checkout off the path
sys.path.insert(0, str(Path(__file__).parent.parent))
from bench import gpu as bench
from bench import gpu_cases, gpu_checks, gpu_clock, gpu_pool, gpu_worker
from gkfast.kernels import gpu

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="python bench/gpu.py runs on the GPU itself")
pytestmark = [pytest.mark.interpreter, no_gpu]


def small(case):
    d = case.d if case.d <= 4 else 20
    return replace(case, n=40, m=40 if case.n == case.m else 67, d=d, columns=min(case.columns, 3), graph=False)


# one of each kind
SMALL = {(c.op, c.d > 4, c.columns, c.ladder, c.runs): c for c in map(small, gpu_cases.cases())}


@pytest.fixture
def on_the_cpu(monkeypatch):
    """By products, as large cases are; nothing is compiled, and every time is a second."""
    monkeypatch.setattr(gpu_cases, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_cases, "compiled", lambda function: function)
    monkeypatch.setattr(gpu_clock, "seconds", lambda run: 1.0)
    with gpu_checks.forced("products"):
        yield


@pytest.mark.parametrize("case", SMALL.values(), ids=lambda case: f"{case.name} {len(case.runs)}")
def test_every_run_is_right(case, on_the_cpu):
    rows = list(bench.rows_of(case, gpu, (1e12, 1e12, 1e12)))
    assert not [(row["run"], row["wrong"]) for row in rows if "wrong" in row]
    # KeOps where it is installed
    assert {row["run"] for row in rows} >= {*case.runs} - {"keops"}
    assert all(0 < row["share"] < 1 for row in rows)


def test_what_is_wrong_has_no_time(on_the_cpu, monkeypatch):
    monkeypatch.setattr(gpu, "rbf", lambda x, *_, **by: torch.full((1, 40, 40), torch.nan))
    case = small(gpu_cases.Case("matrix", 1, 1, 3, ("highest", "eager")))
    ours, rival = bench.rows_of(case, gpu, (1e12, 1e12, 1e12))
    assert ours["wrong"].startswith("WRONG: error nan")
    assert "ms" not in ours
    assert rival["ms"] == 1000


def test_targets_are_held_against_the_largest_case_that_ran():
    def row(case, run, ms, rate=1.0):
        return {"case": case, "run": run, "ms": ms, "Tp/s": rate}

    large, small = "matmul N=1000000 M=1000000 D=3", "matmul N=10000 M=10000 D=3"
    assert not list(gpu_cases.targets([{"case": large, "run": "highest", "wrong": "WRONG"}]))
    found = list(gpu_cases.targets([row(small, "highest", 1.0, 9.0), row(large, "highest", 2.0, 2.0)]))
    assert found == [f"MISSED  {large} highest, Tp/s: 2, wanted 2.9"]
    found = list(gpu_cases.targets([row(large, "highest", 2.0, 3.0), row(large, "keops", 4.0)]))
    assert found == [
        f"met     {large} highest, Tp/s: 3, wanted 2.9",
        f"met     {large} highest, times as fast as keops: 2, wanted 1.4",
    ]
    value, both = (f"{op} N=16384 M=16384 D=64" for op in ("mmd2", "mmd2 gradient"))
    (found,) = gpu_cases.targets([row(value, "high", 1.0), row(both, "high", 3.0)])
    assert found.startswith("MISSED  mmd2 gradient")
    assert found.endswith("times as long as the value: 3, wanted 2.2")
    # every target names a case that there is
    names = {(case.op, case.d, run) for case in gpu_cases.cases() for run in case.runs}
    assert {*gpu_cases.TARGETS, *gpu_cases.FASTER} <= names


def test_rows_of_other_cases_stay(tmp_path):
    place = tmp_path / "results" / "gpu.csv"
    bench.write([{"case": "a", "run": "high", "ms": 1.0}, {"case": "b", "run": "high", "ms": 2.0}], place)
    bench.write([{"case": "b", "run": "high", "ms": 3.0}, {"case": "b", "run": "eager", "ms": 4.0}], place)
    with place.open(newline="") as file:
        found = [(row["case"], row["run"], row["ms"]) for row in csv.DictReader(file)]
    assert found == [("a", "high", "1.0"), ("b", "high", "3.0"), ("b", "eager", "4.0")]
    assert not list(place.parent.glob("*.new"))


def test_the_most_informative_come_first():
    found = gpu_cases.cases()
    assert tuple(case.name for case in found[: len(gpu_cases.HEADLINES)]) == gpu_cases.HEADLINES
    assert len({case.name for case in found}) == len(found)
    order = [(case.name, name) for case, runs in bench.in_order(found) for name in runs]
    # each once, and rivals that compile for long behind all others
    assert sorted(order) == sorted((case.name, name) for case in found for name in case.runs)
    slow = [name in gpu_cases.SLOW_TO_START for _, name in order]
    assert slow == sorted(slow)


def test_no_run_begins_that_would_outlast_the_deadline(on_the_cpu, monkeypatch):
    case = gpu_cases.Case("matrix", 9, 9, 3, ("highest", "eager", "compiled", "cdist"))
    now = [100.0]
    monkeypatch.setattr(bench.time, "monotonic", lambda: now[0])
    deadline = 100.0 + bench.longest(case, "eager") + 1
    assert bench.longest(case, "highest") > 5 < bench.longest(case, "compiled")
    rows = bench.rows_of(case, gpu, (1e12,) * 3, deadline=deadline)
    assert next(rows)["run"] == "eager"
    # time that the first rival took
    now[0] += 2
    assert not list(rows)


def test_a_slow_run_is_timed_once(monkeypatch):
    ran = []
    monkeypatch.setattr(gpu_clock, "once", lambda run: run())
    assert gpu_clock.seconds(lambda: ran.append(1) or 30.0) == 30
    assert len(ran) == 2
    ran.clear()
    assert gpu_clock.in_turn([lambda: ran.append("a") or 0.01, lambda: ran.append("b") or 0.03], 0.1) == [0.01, 0.03]
    # three to warm up, then three each
    assert "".join(ran) == "ab" * 6


class Event:
    """A GPU's, of runs whose seconds are added up in `clock`."""

    clock = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = Event.clock

    def elapsed_time(self, stop):
        return 1e3 * (stop.at - self.at)


class Graph:
    def __init__(self):
        self.runs = []

    def replay(self):
        for run in self.runs:
            run()


@pytest.fixture
def pretended_gpu(monkeypatch):
    """What bench/gpu_clock.py asks of torch.cuda; a graph replays what ran while it was captured."""
    capturing = []

    @contextmanager
    def graph(graph):
        capturing.append(graph)
        try:
            yield
        finally:
            capturing.pop()

    class Stream:
        def wait_stream(self, _):
            pass

    fakes = {"Event": Event, "CUDAGraph": Graph, "graph": graph, "Stream": Stream, "current_stream": Stream}
    fakes |= {"stream": lambda _: nullcontext(), "synchronize": lambda: None}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)

    def run_of(seconds, fails=False):
        def pass_time():
            Event.clock += seconds

        def run():
            if capturing and fails:
                raise RuntimeError("operation not permitted when stream is capturing")
            if capturing:
                capturing[-1].runs.append(pass_time)
            else:
                pass_time()
            return seconds

        return run

    return run_of


def test_short_runs_are_timed_by_the_dozen(pretended_gpu):
    for seconds, copies in ((2e-5, 20), (0.01, 1)):
        run, count, why = gpu_clock.replays(pretended_gpu(seconds))
        assert (count, why) == (copies, "")
        assert run() == seconds
        assert gpu_clock.seconds(run) == pytest.approx(copies * seconds)
    run = pretended_gpu(0.01, fails=True)
    assert gpu_clock.replays(run) == (run, 1, "RuntimeError: operation not permitted when stream is capturing")


def test_the_long_bench_from_end_to_end(on_the_cpu, monkeypatch, tmp_path, capsys):
    """All of it but the GPU: rows, the file after each case, targets, and the deadline."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(gpu_clock, "measured_ceilings", lambda: (1e12,) * 3)
    ahead = []
    monkeypatch.setattr(bench, "compile_ahead", lambda chosen, until: ahead.append((chosen, until)))
    chosen = [
        gpu_cases.Case("matrix", 9, 9, 3, ("highest", "eager", "compiled")),
        gpu_cases.Case("matmul", 9, 9, 3, ("highest", "chunked")),
    ]
    place = tmp_path / "gpu.csv"
    options = SimpleNamespace(minutes=None, out=place)
    before = torch.get_float32_matmul_precision()
    try:
        assert bench.long_bench(chosen, options) == 0
        with place.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(row["op"], row["run"]) for row in rows] == [
            ("matrix", "highest"),
            ("matrix", "eager"),
            ("matmul", "highest"),
            ("matmul", "chunked"),
            ("matrix", "compiled"),
        ]
        assert {(row["gpu"], row["ms"]) for row in rows} == {("NVIDIA H200", "1000.0")}
        assert "5 of 5 runs" in capsys.readouterr().out
        # no time left: nothing is run, and rows of the file stay
        monkeypatch.setattr(bench, "STARTED", time.monotonic() - 600)
        assert bench.long_bench(chosen, SimpleNamespace(minutes=9, out=place)) == 0
        assert "0 of 5 runs" in capsys.readouterr().out
        assert len(place.read_text().splitlines()) == 6
        assert [cases for cases, _ in ahead] == [chosen] * 2
        # a sixth of the time is for compilation, and none of it behind the deadline
        assert ahead[1][1] < time.monotonic()
    finally:
        torch.set_float32_matmul_precision(before)


def test_all_runs_of_gkfast_are_compiled_ahead(monkeypatch):
    asked = []

    class Crew(gpu_pool.Crew):
        def work(self, groups, **options):
            asked.extend(job for group in groups for job in group)
            # one of them as it is
            first = next(job for job in asked if job["case"]["op"] == "mmd2 gradient")
            first["case"] = asdict(small(gpu_worker.case_of(first)))
            found = [row for rows in super().work([[first]], **options) for _, row in rows]
            assert [row["ok"] for row in found] == [True]
            return found

    monkeypatch.setattr(gpu_pool, "Crew", Crew)
    monkeypatch.setattr(gpu_pool, "PYTHON", (*gpu_pool.PYTHON, "--dry"))
    chosen = gpu_cases.cases()
    bench.compile_ahead(chosen, time.monotonic() + 60)
    ours = [name for case in chosen for name in case.runs if name in gpu_cases.OURS]
    # a matrix of 10 GB in each of many processes is too much
    assert len(asked) == len(ours) - 1
    assert {job["run"] for job in asked} == set(gpu_cases.OURS)
