"""A process of gpu_pool.py: reads jobs as lines of JSON, does them on the GPU, and writes their rows.

python bench/gpu_worker.py [--dry]       --dry: on the CPU, by Triton's interpreter
"""

import gc
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
if "--dry" in sys.argv:
    # read when Triton is loaded
    os.environ["TRITON_INTERPRET"] = "1"

import torch  # noqa: E402

from bench import gpu_cases, gpu_checks, gpu_clock, gpu_plan  # noqa: E402
from bench.gpu_pool import MARK  # noqa: E402


def one_line(failure):
    """What went wrong, with the beginning and the end of a long text."""
    text = " ".join(str(failure).split())
    if len(text) > 400:
        text = f"{text[:200]} ... {text[-200:]}"
    return f"{type(failure).__name__}: {text}"


def is_lost():
    """Whether the GPU answers this process no longer, as after an illegal access."""
    try:
        gpu_clock.synchronize()
    except Exception:
        return True
    return False


# each kind of job: a generator of rows; `at` says where a long one is


def versions(job, at):
    import triton

    row = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "processors": os.cpu_count(),
    }
    for name in ("numba", "pytest", "hypothesis"):
        try:
            row[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            row[name] = "missing"
    if gpu_cases.DEVICE == "cpu":
        yield row | {"gpu": "cpu", "capability": "interpreted"}
        return
    of = torch.cuda.get_device_properties(0)
    row |= {"gpu": of.name, "capability": f"{of.major}.{of.minor}", "multiprocessors": of.multi_processor_count}
    row |= {"memory_GiB": round(of.total_memory / 2**30, 1), "cuda": torch.version.cuda}
    yield row


def clocks(job, at):
    """The driver's word; settings are only read."""
    asked = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
    # the driver's own folder may not be on the PATH
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/nvidia/bin", "/usr/bin"])
    command[0] = shutil.which(command[0], path=places) or command[0]
    found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()[0]
    yield dict(zip(asked.split(","), (part.strip() for part in found.split(",")), strict=True))


def ceiling(job, at):
    measure = {
        "exp2": gpu_clock.exponentials_per_second,
        "products": gpu_clock.products_per_second,
        "bytes": gpu_clock.bytes_per_second,
    }[job["of"]]
    yield {"per_second": measure(*job.get("sizes", ()))}


def forms(job, at):
    """Whether each form can be forced, and is another one: its K has other bits than that by differences."""
    check = {"op": "rbf", "d": job["d"], "n": job["n"]}
    given, found = gpu_checks.inputs(check), {}
    for form in gpu_plan.FORMS:
        row = {"name": form, "form": form}
        try:
            with gpu_checks.forced(form):
                found[form] = gpu_checks.call("rbf", given, "highest")[0].cpu()
            if form == "products":
                same = torch.equal(found[form], found["differences"])
                row |= {"ok": not same} | ({"wrong": "the same bits as by differences: not forced"} if same else {})
        except Exception as failure:
            row["failed"] = one_line(failure)
        yield row


def compiled(job, at):
    """A check's kernels on its tensors, for what they leave in Triton's cache."""
    start = time.perf_counter()
    with gpu_checks.forced(job["form"]):
        gpu_checks.call(job["op"], gpu_checks.inputs(job), job["precision"])
    gpu_clock.synchronize()
    yield {"ok": True, "seconds": round(time.perf_counter() - start, 2)}


def case(job, at):
    """One run of a case."""
    start = time.perf_counter()
    gpu_cases.make(case_of(job), job["run"], kernels())()
    gpu_clock.synchronize()
    yield {"ok": True, "seconds": round(time.perf_counter() - start, 2)}
    gc.collect()
    torch.cuda.empty_cache()


def check(job, at):
    yield gpu_checks.run_check(job)


def sanitized(job, at):
    """A check's kernels, for the tool that watches them."""
    with gpu_checks.forced(job["form"]):
        gpu_checks.call(job["op"], gpu_checks.inputs(job), job["precision"])
    gpu_clock.synchronize()
    yield {"ok": True}


def repeated(job, at):
    """The same bits twice, with memory in between that the second run finds filled with NaN."""
    given = gpu_checks.inputs(job)
    with gpu_checks.forced(job["form"]):
        first = gpu_checks.call(job["op"], given, job["precision"])
        junk = [torch.full((2**k,), torch.nan, device=gpu_cases.DEVICE) for k in range(8, 20)]
        del junk
        second = gpu_checks.call(job["op"], given, job["precision"])
    differ = sum(int((a != b).sum()) for a, b in zip(first, second, strict=True))
    lost = sum(int(a.isnan().sum()) for a in (*first, *second))
    row = {"ok": not differ and not lost, "differ": differ, "nan": lost}
    yield row if row["ok"] else row | {"wrong": f"{differ} numbers differ, {lost} are NaN"}


def symmetric(job, at):
    """K of one set: the same bits on both sides, and 1 on the diagonal."""
    from gkfast.kernels import gpu

    given = gpu_checks.inputs(job)
    with gpu_checks.forced(job["form"]):
        k = gpu.rbf(given.x, None, given.sigma, torch.ones_like(given.sigma), precision=job["precision"])[0]
    row = {"differ": int((k != k.mT).sum()), "diagonal": int((k.diagonal() != 1).sum())}
    row["ok"] = not any(row.values())
    yield row if row["ok"] else row | {"wrong": f"{row['differ']} unlike pairs, {row['diagonal']} not 1"}


def kernels():
    from gkfast.kernels import gpu

    return gpu


def case_of(job):
    return gpu_cases.Case(**job["case"] | {"runs": tuple(job["case"]["runs"])})


@lru_cache(16)
def exact_of(of):
    return gpu_cases.reference_outputs(of, *gpu_cases.inputs(of))


def timing(job, at):
    """gkfast and a rival in turn, each as a graph; no time is given for what is wrong."""
    of, precision, rival = replace(case_of(job), runs=()), job["run"], job["rival"]
    row, runs = {}, []
    for name, form in ((precision, job["form"]), (rival, "own")):
        at(name)
        try:
            with gpu_checks.forced(form):
                run = gpu_cases.make(of, name, kernels())
                error = gpu_cases.error(of, run(), exact_of(of))
                allowed = gpu_cases.tolerance(of, name)
                if not error <= allowed:
                    raise ArithmeticError(f"error {error:.1e}, allowed {allowed:.0e}")
                runs.append(gpu_clock.replays(run))
            row["error" if name == precision else "rival_error"] = error
        except Exception as failure:
            if name == precision:
                raise
            row["rival_failed"] = one_line(failure)
    at("clock")
    times = gpu_clock.in_turn([run for run, *_ in runs], job["budget"])
    times = [took / copies for took, (_, copies, _) in zip(times, runs, strict=True)]
    row |= {"ok": True, "ms": 1e3 * times[0], "Tp/s": of.pairs / times[0] / 1e12}
    row |= {"copies": [copies for _, copies, _ in runs], "no_graph": [why for *_, why in runs]}
    if len(times) > 1:
        row |= {"rival_ms": 1e3 * times[1], "ratio": times[1] / times[0]}
    if job.get("ceilings"):
        products = gpu_cases.products_of(kernels(), of, precision) if job["form"] != "differences" else 0
        bound, row["bound"] = gpu_cases.bounds(of, products, job["ceilings"])
        row["share"] = bound / times[0]
    yield row
    if gpu_cases.DEVICE != "cpu":
        # the memory of the graphs
        del runs, run
        gc.collect()
        torch.cuda.empty_cache()


def host(job, at):
    """Microseconds of the host in a call of gkfast.mmd2 with its gradients, and of plain torch; nobody waits."""
    import gkfast

    n, d, count = job["n"], job["d"], job["count"]
    generator = torch.Generator().manual_seed(5)
    x, y = (torch.randn(n, d, generator=generator).to(gpu_cases.DEVICE) for _ in range(2))
    sigma = [float(d) ** 0.5]
    ours = gpu_cases.with_gradient(partial(gkfast.mmd2, sigma=sigma, precision="highest"), x, y)
    eager = gpu_cases.with_gradient(lambda p, q: gpu_cases.mmd2_of(p, q, sigma), x, y)
    row = {"ok": True}
    for name, call in (("us", ours), ("rival_us", eager)):
        for _ in range(min(10, count)):
            call()
        gpu_clock.synchronize()
        times = []
        for k in range(count):
            start = time.perf_counter()
            call()
            times.append(1e6 * (time.perf_counter() - start))
            if k % 20 == 19:
                # the queue of launches never fills
                gpu_clock.synchronize()
        row |= {name: statistics.median(times), name.replace("us", "least_us"): min(times)}
    yield row


KINDS = {
    "versions": versions,
    "clocks": clocks,
    "ceiling": ceiling,
    "forms": forms,
    "compile": compiled,
    "case": case,
    "check": check,
    "sanitize": sanitized,
    "repeat": repeated,
    "symmetric": symmetric,
    "timing": timing,
    "host": host,
}


class Told:
    """A plugin of pytest that writes a row for each test."""

    def __init__(self, say):
        self.say, self.session, self.counts = say, None, {}

    def pytest_sessionstart(self, session):
        self.session = session

    def pytest_runtest_logstart(self, nodeid):
        self.say({"at": nodeid})

    def pytest_collectreport(self, report):
        if report.failed:
            text = str(report.longrepr).strip().splitlines()
            self.say({"row": {"name": f"collect {report.nodeid}", "failed": " | ".join(text[-3:])[-400:]}})

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.passed:
            return
        outcome = "xfailed" if hasattr(report, "wasxfail") else report.outcome
        self.counts[outcome] = self.counts.get(outcome, 0) + 1
        row = {"name": report.nodeid, "outcome": outcome, "seconds": round(report.duration, 2)}
        if report.failed:
            # the lines that pytest marks with an E
            lines = [line[1:].strip() for line in report.longreprtext.splitlines() if line.startswith("E ")]
            row["failed"] = " | ".join(lines or report.longreprtext.strip().splitlines()[-3:])[:400]
            if is_lost():
                # all other tests would fail too; another process runs them
                self.session.shouldstop = "the GPU no longer answers this process"
        else:
            row["ok"] = True
        self.say({"row": row})


def tests(job, say):
    import pytest

    told = Told(say)
    options = ["-W", "default", "-q", "-p", "no:cacheprovider", "-m", job["marks"], *job["files"]]
    for name in job.get("skip", ()):
        options += ["--deselect", name]
    status = pytest.main(options, plugins=[told])
    summary = ", ".join(f"{count} {outcome}" for outcome, count in sorted(told.counts.items())) or "no tests ran"
    if told.session and told.session.shouldstop:
        # others are left, for another process
        return
    # 5: all were left out
    ok = status in (0, 5)
    row = {"name": f"summary {job['marks']}", "summary": summary, "exit": int(status), "ok": ok}
    say({"row": row if ok else row | {"wrong": f"pytest ended with {status!r}: {summary}"}})


def end_with_parent():
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def do(job, say):
    """The rows of a job. Whether the process may go on."""
    try:
        if job["kind"] == "tests":
            tests(job, say)
        else:
            for row in KINDS[job["kind"]](job, lambda place: say({"at": place})):
                say({"row": row})
    except Exception as failure:
        say({"row": {"failed": one_line(failure)} | ({"lost": True} if is_lost() else {})})
    lost = is_lost()
    say({"done": True, "lost": lost})
    return not lost


def main():
    # pytest takes the first descriptor for itself
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")

    def say(message):
        # a line of its own, whatever stands there
        out.write(f"\n{MARK}{json.dumps(message)}\n")
        out.flush()

    end_with_parent()
    if "--dry" in sys.argv:
        gpu_cases.DEVICE = "cpu"
    # there are as many of these processes as processors
    torch.set_num_threads(1)
    gpu_cases.load()
    torch.set_float32_matmul_precision("highest")
    say({"ready": True})
    for line in sys.stdin:
        if not do(json.loads(line), say):
            return


if __name__ == "__main__":
    main()
