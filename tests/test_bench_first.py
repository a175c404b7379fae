"""python bench/gpu.py --first without a GPU: its processes, its file, its stages, and what goes wrong in each."""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", minversion="3.6", reason="no Triton on this platform")

# bench/ is not installed, and plain `pytest` leaves the checkout off the path
sys.path.insert(0, str(Path(__file__).parent.parent))
from bench import gpu_checks, gpu_first, gpu_plan, gpu_pool
from bench.gpu_record import Record, latest, read, report

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="python bench/gpu.py --first runs on the GPU itself"
)

# a worker without torch: what a job says is what it does
DOING = """
import json, os, subprocess, sys, time
def say(message):
    print("@@ " + json.dumps(message), flush=True)
if os.environ.get("NEVER"):
    sys.exit("no driver")
say({"ready": True})
for line in sys.stdin:
    job = json.loads(line)
    print("working on", job["name"], flush=True)
    say({"at": "the " + job["name"]})
    if job["do"] == "hang":
        child = subprocess.Popen(["sleep", "60"])
        say({"row": {"child": child.pid}})
        time.sleep(60)
    if job["do"] == "die":
        print("illegal memory access", flush=True)
        os._exit(3)
    time.sleep(job.get("seconds", 0))
    say({"row": {"ok": True, "by": os.getpid()}})
    say({"done": True, "lost": job["do"] == "lose"})
    if job["do"] == "lose":
        break
"""


@pytest.fixture
def crew(tmp_path):
    (tmp_path / "worker.py").write_text(DOING)
    with gpu_pool.Crew((sys.executable, str(tmp_path / "worker.py"))) as crew:
        yield crew


def named(*jobs):
    return [{"name": name, "do": do, **more} for name, do, more in jobs]


def done(crew, groups, count=2, until=20.0, limit=1.0, **options):
    rows = crew.work(groups, count=count, until=time.monotonic() + until, limit=limit, **options)
    return [(job["name"], row) for found in rows for job, row in found]


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # one that has ended and that nobody has waited for
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_what_hangs_or_dies_costs_its_own_row(crew):
    first = named(("a", "row", {}), ("b", "hang", {}), ("c", "row", {}))
    second = named(("d", "die", {}), ("e", "lose", {}), ("f", "row", {}))
    found = done(crew, [first, second])
    rows = {}
    for name, row in found:
        rows.setdefault(name, []).append(row)
    assert sorted(rows) == ["a", "b", "c", "d", "e", "f"]
    assert all(rows[name][0]["ok"] for name in "acef")
    # first the row that it still gave, then that it was killed
    child, killed = rows["b"]
    assert killed["failed"].startswith("killed: no answer in 1 s at the b")
    assert killed["lost"]
    assert rows["d"][0]["failed"] == "died: exit status 3: working on d | illegal memory access"
    assert rows["e"][0]["by"] != rows["f"][0]["by"], "a process that has lost the GPU must not go on"
    # what it had started is ended too
    deadline = time.monotonic() + 5
    while is_running(child["child"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(child["child"])
    assert crew.left == 0


def test_jobs_that_nobody_wants_any_more_are_dropped(crew):
    group = named(("a", "row", {}), ("b", "row", {}), ("c", "row", {}))
    found = done(crew, [group], unless=lambda job: job["name"] == "b")
    assert [name for name, _ in found] == ["a", "c"]
    assert (crew.left, crew.dropped) == (0, 1)


def test_the_deadline_in_the_middle(crew):
    """Nothing new begins. A job under way is not lost: its row comes with the next work."""
    groups = [named(("a", "row", {})), named(("b", "row", {"seconds": 2.0})), named(("c", "row", {}))]
    crew.start(1)
    assert [name for name, _ in done(crew, groups[:1], count=1)] == ["a"]
    start = time.monotonic()
    assert not done(crew, groups[1:], count=1, until=0.5, limit=10.0)
    assert time.monotonic() - start < 1.5
    assert crew.left == 2
    found = done(crew, [named(("d", "row", {}))], count=1, limit=10.0)
    assert [name for name, _ in found] == ["b", "d"]


def test_who_was_ready_meanwhile_is_not_late(crew, monkeypatch):
    monkeypatch.setattr(gpu_pool, "START", 2.0)
    crew.start(2)
    first = [worker.process.pid for worker in crew.workers]
    time.sleep(2.5)
    assert [name for name, _ in done(crew, [named(("a", "row", {}))])] == ["a"]
    assert [worker.process.pid for worker in crew.workers] == first


def test_workers_that_cannot_start(crew, monkeypatch):
    monkeypatch.setenv("NEVER", "1")
    assert not done(crew, [named(("a", "row", {}))])
    assert crew.broken == "died: exit status 1: no driver"
    assert crew.left == 1


def test_the_file_goes_on_where_it_was_cut_off(tmp_path, monkeypatch):
    place = tmp_path / "gpu.jsonl"
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file, fsync=os.fsync: synced.append(place.stat().st_size) or fsync(file))

    def open_again(code="k", device="H200", **options):
        record = Record(place, code, device, **options)
        record.close()
        return record

    record = Record(place, "k", "H200")
    for k in range(3):
        record.add([{"stage": "accuracy", "name": f"check {k}", "ok": True}])
        # all of it is there before the disk is waited for
        assert synced[-1] == place.stat().st_size
    record.close()
    assert len(synced) == 4
    text = place.read_bytes()
    place.write_bytes(text[:-10])
    again = open_again()
    assert again.done == {("run", "run"), ("accuracy", "check 0"), ("accuracy", "check 1")}
    assert [row["run"] for row in read(place)] == [1, 1, 1, 2]
    # the line that was cut off is still there, and no other line
    assert place.read_bytes().startswith(text[:-10] + b"\n{")
    # other kernels, or another GPU: everything is checked anew
    assert open_again(code="l").done == open_again(device="A100").done == set()
    assert {row["name"] for row in latest(read(place))} == {"run"}
    assert len(open_again().done) == 3
    assert not open_again(over=True).done
    assert len(read(place)) == 1


def test_the_plan_has_every_check_once():
    jobs = [job for group in gpu_plan.checks(gpu_plan.Sizes(), set()) for job in group]
    assert len({job["name"] for job in jobs}) == len(jobs)
    for key, values in (("op", gpu_plan.OPS), ("form", gpu_plan.FORMS), ("precision", gpu_plan.PRECISIONS)):
        assert {job[key] for job in jobs} == set(values)
    assert {job["d"] for job in jobs} == {3, 5, 16, 17, 32, 33, 64, 128, 200}
    assert {job.get("data") for job in jobs} == {*gpu_plan.DATA, None}
    assert {job["s"] for job in jobs if "s" in job} == {1, 8, 16, 64}
    # all that is checked on usual data was compiled, and by one process of those of its kind
    groups = gpu_plan.compilations(gpu_plan.Sizes(), set())
    made = [job["name"] for group in groups for job in group if job["kind"] == "compile"]
    assert sorted(made) == sorted(job["name"].replace("normal ", "") for job in jobs if job.get("data") == "normal")
    assert all(len({(job.get("op"), job.get("precision")) for job in group}) == 1 for group in groups)
    assert not [job for job in jobs if job["form"] == "products" and job["data" if "data" in job else "s"] == "nan"]
    none = [job for group in gpu_plan.checks(gpu_plan.Sizes(), {"products"}) for job in group]
    assert {job["form"] for job in none} == {"own", "differences"}


def test_forms_are_forced_and_let_go():
    points = importlib.import_module("gkfast.kernels.gpu.points")
    before = points.LIMITS
    for form, limit in (("own", None), ("differences", -1), ("products", 3e38)):
        with contextlib.suppress(ZeroDivisionError), gpu_checks.forced(form):
            assert (before if limit is None else dict.fromkeys(before, limit)) == points.LIMITS
            raise ZeroDivisionError
        assert points.LIMITS is before


CHECK = {"op": "rbf", "d": 5, "n": 9, "form": "own", "precision": "highest"}


@pytest.mark.parametrize(
    ("data", "spoil", "wrong"),
    [
        ("normal", lambda k: k, None),
        ("normal", lambda k: k + 3e-5, "K: error 3.0e-05, allowed 1.0e-06"),
        ("normal", lambda k: torch.where(k == k.max(), torch.nan, k), "K: error nan, allowed 1.0e-06"),
        ("nan", lambda k: k, None),
        ("nan", lambda k: k.nan_to_num(0.5), "K lost 9 NaN"),
        ("nan", lambda k: torch.where(k.isnan().any(), torch.nan, k), "K: error nan, allowed 1.0e-06"),
    ],
)
def test_a_check_sees_what_is_wrong(data, spoil, wrong, monkeypatch):
    monkeypatch.setattr(gpu_checks.gpu_cases, "DEVICE", "cpu")
    exact = gpu_checks.truths("rbf", gpu_checks.inputs({**CHECK, "data": data}))[0].value
    monkeypatch.setattr(gpu_checks, "call", lambda *_: (spoil(exact.float()),))
    row = gpu_checks.run_check({**CHECK, "data": data})
    assert (row["ok"], row.get("wrong")) == (wrong is None, wrong)


def test_what_products_may_err_by():
    k = gpu_checks.Truth("K", None, 1.0, True, (1e-6, 2e-4, 4e-2))

    def allowed(s, **check):
        return gpu_checks.allowed_of(k, {**CHECK, **check}, s)

    # the contract, whatever the data, where the code chooses, and for differences in every precision
    assert allowed(1e5) == allowed(1e5, form="differences", precision="medium") == 1e-6
    assert allowed(16, form="products") == 1e-6
    # beyond that forced products have no bound, and of less precision are worse in proportion
    assert allowed(17, form="products") is None
    assert allowed(10, precision="high") == 2e-3
    assert allowed(0.1, precision="medium") == 4e-2


# the worker itself, with kernels that fail in each way
FAULTY = """
import os, sys, time
sys.path.insert(0, ROOT)
from bench import gpu_cases, gpu_worker
gpu_cases.load()
from gkfast.kernels import gpu

def raising(*_, **__):
    raise RuntimeError("ptxas fatal: out of registers")

def hanging(g, *rest, **options):
    if g.shape[2] == 10 and options["precision"] == "highest":
        time.sleep(600)
    return matmul_backward(g, *rest, **options)

def dying(*rest, precision, **options):
    if precision == "highest":
        os._exit(9)
    return backward(*rest, precision=precision, **options)

rbf, backward, matmul_backward = gpu.rbf, gpu.rbf_backward, gpu.rbf_matmul_backward
sums = gpu.kernel_sums_with_gradients

def wrong(x, y, *rest, precision="highest", **options):
    k = rbf(x, y, *rest, precision=precision, **options)
    return k + 0.5 if precision == "medium" else k

def watched(*rest, **options):
    if os.environ.get("WATCHED") == "memcheck":
        print("========= Invalid __global__ read of size 4 bytes", flush=True)
    return sums(*rest, **options)

gpu.rbf_matmul_backward, gpu.rbf_backward, gpu.log_density = hanging, dying, raising
gpu.rbf, gpu.kernel_sums_with_gradients = wrong, watched
gpu_worker.main()
"""
# as compute-sanitizer is called: options, then a command
TOOL = """#!/bin/sh
export WATCHED=$2
while [ "$1" != "$PYTHON" ]; do shift; done
"$@"
echo "========= ERROR SUMMARY: $([ $WATCHED = memcheck ] && echo 1 || echo 0) errors"
"""
TESTS = """
import os, pytest
pytestmark = pytest.mark.gpu
def test_passes(): pass
def test_fails(): assert 1 == 2
def test_dies(): os._exit(5)
@pytest.mark.skip
def test_is_skipped(): pass
def test_comes_last(): pass
"""
SMALL = gpu_plan.DRY._replace(
    dims=(3,),
    data=("normal",),
    repeat_dims=(3,),
    timings=(("mmd2 gradient", 9, 9, 3, "eager", True), ("density", 9, 9, 3, "chunked", False)),
    host=(),
)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """All stages, with kernels that raise, hang, die or are wrong: the file, and the seconds it took."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "worker.py").write_text(f"ROOT = {str(ROOT)!r}\n{FAULTY}")
    (folder / "test_of_gpu.py").write_text(TESTS)
    tool = folder / "compute-sanitizer"
    tool.write_text(TOOL)
    tool.chmod(0o755)
    place, start = folder / "rows.jsonl", time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(folder), prepend=os.pathsep)
        patch.setenv("PYTHON", sys.executable)
        # as in the worker
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setattr(gpu_plan, "DRY", SMALL._replace(tests=str(folder)))
        patch.setattr(gpu_first, "PYTHON", (sys.executable, str(folder / "worker.py")))
        patch.setattr(gpu_first, "LIMITS", dict.fromkeys(gpu_first.LIMITS, 8.0))
        options = type("Options", (), {"out": place, "over": False, "dry": True})
        status = gpu_first.run(options, start + 360)
    return place, status, time.monotonic() - start


def of(place, stage):
    return {row["name"]: row for row in latest(read(place)) if row["stage"] == stage}


def test_a_dry_run_comes_through_all_stages(faulty):
    place, status, _ = faulty
    assert status == 1
    ends = [row["stage"] for row in read(place) if row["name"] == "end"]
    assert [*dict.fromkeys(ends)] == [
        "versions",
        "forms",
        "compile",
        "accuracy",
        "sanitizer",
        "repeat",
        "timing",
        "tests",
    ]
    assert not any(row.get("left") for row in read(place))


def test_a_kernel_that_fails_is_not_tried_again(faulty):
    compiled, checked = of(faulty[0], "compile"), of(faulty[0], "accuracy")
    what = {
        "log_density": "RuntimeError: ptxas fatal",
        "rbf_matmul_backward 10": "killed: no answer in 8 s",
        "rbf_backward": "died: exit status 9",
    }
    for op, failed in what.items():
        assert compiled[f"{op} own highest d=3 n=9"]["failed"].startswith(failed)
        assert f"{op} own highest normal d=3 n=9" not in checked
    # and log_density in the other precision
    assert checked["end"]["dropped"] == 4
    assert checked["rbf_backward own medium normal d=3 n=9"]["ok"]
    # others are checked all the same
    assert checked["mmd2 own highest normal d=3 n=9"]["ok"]
    assert checked["rbf own highest normal d=3 n=9"]["ok"]
    spoilt = checked["rbf own medium normal d=3 n=9"]
    assert not spoilt["ok"]
    assert spoilt["wrong"] == "K: error 5.0e-01, allowed 1.0e-06"


def test_what_the_sanitizer_says_is_told_of_its_shape(faulty):
    rows = of(faulty[0], "sanitizer")
    assert rows["memcheck mmd2 own highest d=3 n=9"]["wrong"] == "========= Invalid __global__ read of size 4 bytes"
    assert rows["racecheck mmd2 own highest d=3 n=9"]["ok"]
    assert rows["memcheck summary"]["wrong"] == "ERROR SUMMARY: 1 errors"
    assert rows["racecheck summary"]["summary"] == "ERROR SUMMARY: 0 errors"
    assert "wrong" not in rows["racecheck summary"]


def test_what_is_wrong_has_no_time(faulty):
    rows = of(faulty[0], "timing")
    assert rows["density N=9 M=9 D=3 highest own"]["failed"].startswith("RuntimeError: ptxas fatal")
    timed = rows["mmd2 gradient N=9 M=9 D=3 highest own"]
    assert timed["ms"] > 0 < timed["rival_ms"]
    assert timed["ratio"] == pytest.approx(timed["rival_ms"] / timed["ms"])
    assert 0 < timed["share"] < 1


def test_a_test_that_ends_its_process_is_left_out_of_the_next(faulty):
    rows = {name.rpartition("::")[2]: row for name, row in of(faulty[0], "tests").items()}
    assert rows["test_fails"]["failed"] == "assert 1 == 2"
    assert rows["test_dies"]["failed"].startswith("died: exit status 5")
    assert [rows[f"test_{name}"]["outcome"] for name in ("passes", "is_skipped", "comes_last")] == [
        "passed",
        "skipped",
        "passed",
    ]
    assert rows["summary gpu"]["ok"]


def test_the_report_says_what_failed_first(faulty):
    text = report(faulty[0])
    lines = text.splitlines()
    first = lines[next(k for k, line in enumerate(lines) if line.startswith("failed first")) + 1]
    row = next(row for row in read(faulty[0]) if "failed" in row or "wrong" in row)
    assert first.startswith(f"  {row['stage']} {row['name']}")
    for part in ("sanitizer", "mmd2 gradient N=9 M=9 D=3 highest own", "2 passed", "own: rbf", "ceilings", "killed"):
        assert part in text


def test_a_report_of_a_file_that_is_cut_off_anywhere(faulty, tmp_path):
    data, place = faulty[0].read_bytes(), tmp_path / "cut.jsonl"
    before = 0
    for size in range(0, len(data), len(data) // 60):
        place.write_bytes(data[:size])
        text = report(place)
        assert (text == "no rows") == (size < data.index(b"\n"))
        # what is there is read
        assert len(read(place)) in (data[:size].count(b"\n"), data[:size].count(b"\n") + 1)
        assert len(read(place)) >= before
        before = len(read(place))
    # in the middle of a stage
    place.write_bytes(data[: data.index(b'"stage": "accuracy"') + 100])
    stages = {line.split()[0]: line for line in report(place).splitlines() if " rows, " in line}
    assert stages["compile"].endswith(" s")
    assert "accuracy" not in stages or stages["accuracy"].endswith("cut off")
    assert "tests" not in stages


def test_the_command_is_killed_and_run_again(tmp_path):
    """Whoever kills it leaves a file that is read, and no process; the next run goes on, and ends in time."""
    place = tmp_path / "rows.jsonl"
    command = [sys.executable, ROOT / "bench/gpu.py", "--first", "--dry", "--out", place]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as first:
        while sum(row["stage"] == "compile" for row in read(place)) < 3:
            assert first.poll() is None
            time.sleep(0.1)
        children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
        first.kill()
    assert len(children) == 2
    deadline = time.monotonic() + 20
    while any(is_running(int(child)) for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(is_running(int(child)) for child in children)
    before = len(read(place))
    assert all(json.loads(line) for line in place.read_text().splitlines())

    start = time.monotonic()
    found = subprocess.run([*command, "--minutes", "0.25"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert time.monotonic() - start < 0.25 * 60 + 2, found.stdout
    assert not found.stderr
    rows = read(place)
    assert {row["run"] for row in rows[:before]} == {1}
    assert {row["run"] for row in rows[before:]} == {2}
    # the time is too short for all of it; what was checked is not checked again
    assert "tests" not in {row["stage"] for row in rows}
    checks = [row["name"] for row in rows if row["stage"] in ("compile", "accuracy") and row["name"] != "end"]
    assert len(checks) == len(set(checks)) > 2
    printed = subprocess.run([*command[:2], "--report", place], capture_output=True, text=True, check=True).stdout
    assert found.stdout.endswith(printed)


def test_a_group_of_rows_is_on_the_disk_before_it_is_said(tmp_path, capsys):
    first = gpu_first.First(time.monotonic() + 60, SMALL)
    first.record = Record(tmp_path / "rows.jsonl", "k", "H200")
    bad = {"stage": "accuracy", "name": "check", "op": "rbf", "form": "own", "d": 3, "wrong": "K: error"}
    first.add([bad, {**bad, "name": "other", "lost": True}, {**bad, "name": "third", "lost": True}])
    assert [row["name"] for row in read(first.record.place)][1:] == ["check", "other", "third"]
    assert capsys.readouterr().out.splitlines()[0] == "accuracy check: K: error"
    # two that broke the GPU's context are enough, of one D
    job = {"stage": "accuracy", "op": "rbf", "form": "own", "d": 3, "precision": "high"}
    assert first.is_dropped(job)
    assert not first.is_dropped({**job, "d": 5})
    assert not first.is_dropped({**job, "form": "split"})
    first.record.close()


def test_a_stage_that_fails_itself_costs_no_other(tmp_path):
    first = gpu_first.First(time.monotonic() + 60, SMALL)
    first.record = Record(tmp_path / "rows.jsonl", "k", "H200")

    def timing():
        raise OSError("no such file")

    first.go_through(timing)
    first.record.close()
    assert read(first.record.place)[-1]["failed"] == "OSError: no such file"


def test_without_a_gpu_it_says_so(tmp_path):
    place = tmp_path / "rows.jsonl"
    command = [sys.executable, ROOT / "bench/gpu.py", "--first", "--minutes", "1", "--out", place]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=90)
    assert found.returncode == 2
    assert found.stderr.startswith("bench/gpu.py --first must have a CUDA device, got ")
    assert not place.exists()
