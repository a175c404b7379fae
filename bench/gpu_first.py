"""First contact with a GPU: what runs there, what is right, how fast it is. In minutes; nothing is lost when cut off.

    python bench/gpu.py --first [--minutes 6] [--out FILE.jsonl] [--over] [--dry]

    versions     what is installed, clocks, and the GPU's own ceilings
    compile      every check's kernels, by all processors, for Triton's cache
    accuracy     each kernel in each form and precision against float64, on data that are hard for it
    sanitizer    compute-sanitizer's memcheck and racecheck on tiny shapes, where it is installed
    repeat       the same bits twice; K of one set symmetric
    timing       a dozen shapes against eager torch, as CUDA graphs; the host's time
    tests        pytest -m gpu, then -m interpreter, which a GPU runs compiled

Every row is appended and synced as soon as it is known. This process touches no GPU: its workers do (gpu_pool.py), so
that a kernel that hangs, or that breaks the GPU's context, costs one row. --dry comes through all stages at tiny
sizes, by Triton's interpreter.
"""

import glob
import importlib.util
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from bench import gpu_plan
from bench.gpu_pool import PYTHON, ROOT, Crew
from bench.gpu_record import Record, code_of, has_failed, is_bad, report, what_is_wrong

# seconds that a stage may take of six minutes; the tests have what is left
SECONDS = {"versions": 35, "compile": 95, "accuracy": 80, "sanitizer": 45, "repeat": 15, "timing": 60}
# of the whole, for the last rows and the report
MARGIN = 4.0
# seconds that a job, or its next row, may take
LIMITS = {
    "versions": 30,
    "forms": 60,
    "compile": 60,
    "accuracy": 20,
    "sanitizer": 40,
    "repeat": 20,
    "timing": 30,
    # torch.compile takes its time
    "tests": 90,
}
# after so many of one op, form and D that hung or died the others are left out
PATIENCE = 2
# what a row has of its job
_KEPT = ("stage", "name", "op", "d", "n", "form", "precision", "data", "s", "of", "tool", "case", "rival")
# the first line of what compute-sanitizer finds
_FOUND = re.compile(r"=+ (Invalid|Misaligned|Error|Warning|Uninitialized|Race|Divergent|Barrier|.*hazard)")
_SUMMARY = re.compile(r"SUMMARY: (\d+)")


class First:
    """The stages, until the deadline."""

    def __init__(self, deadline, sizes, command=PYTHON, limits=None):
        self.deadline, self.sizes, self.command, self.limits = deadline, sizes, command, limits or LIMITS
        self.crews = [Crew(command)]
        self.share = max(0.0, deadline - time.monotonic()) / 360
        self.workers = min(sizes.workers, os.cpu_count() or 1)
        self.record, self.missing, self.watched = None, set(), {}
        self.broken, self.uncompiled = Counter(), set()

    def until(self, stage):
        return min(self.deadline - MARGIN, time.monotonic() + SECONDS.get(stage, 1e9) * self.share)

    def note(self, row):
        """What later jobs learn from a row."""
        if row.get("lost"):
            self.broken[row.get("op"), row.get("form"), row.get("d")] += 1
        if row["stage"] == "compile" and "failed" in row:
            self.uncompiled.add(tuple(row.get(key) for key in ("op", "form", "d", "precision")))

    def is_dropped(self, job):
        if "op" not in job:
            return False
        of = tuple(job.get(key) for key in ("op", "form", "d", "precision"))
        return self.broken[of[:3]] >= PATIENCE or (of in self.uncompiled and job["stage"] != "compile")

    def add(self, rows):
        for row in rows:
            self.note(row)
        self.record.add(rows)
        for row in filter(is_bad, rows):
            print(f"{row['stage']} {row['name']}: {what_is_wrong(row)[:160]}", flush=True)

    def work(self, stage, groups, count, until, crew=None):
        """Have the jobs done that have no row yet; their rows."""
        crew = crew or self.crews[0]
        start, rows, left = time.monotonic(), [], {"left": 0, "dropped": 0}
        groups = [[job for job in group if (stage, job["name"]) not in self.record.done] for group in groups]
        if any(groups):
            limit = self.limits[stage]
            for found in crew.work(groups, count=count, until=until, limit=limit, unless=self.is_dropped):
                # a job of the stage before may still have been under way
                new = [{key: job[key] for key in _KEPT if key in job} | row for job, row in found]
                for row in new:
                    # a test that ended its process has not told its name
                    row["name"] = row.pop("at", row["name"]) if stage == "tests" else row["name"]
                self.add(new)
                rows += new
            left = {"left": crew.left, "dropped": crew.dropped}
            if crew.broken:
                self.add([{"stage": stage, "name": "workers", "failed": f"none starts: {crew.broken}"}])
                crew.broken = ""
        if stage != "sanitizer":
            self.end(stage, start, rows, left)
        return rows

    def end(self, stage, start, rows, left):
        took = round(time.monotonic() - start, 1)
        self.record.add([{"stage": stage, "name": "end", "rows": len(rows), "seconds": took, **left}])
        bad = sum(map(is_bad, rows))
        print(f"-- {stage}: {len(rows)} rows, {bad} bad, {left['left']} left, {took} s", flush=True)

    def go_through(self, stage):
        """A stage, whose own fault costs no other stage."""
        try:
            stage()
        except Exception as failure:
            self.add([{"stage": stage.__name__, "name": "stage", "failed": f"{type(failure).__name__}: {failure}"}])

    # the stages

    def versions(self, place_of, over):
        """Opens the record, which has the device's name. Whether there is a device."""
        self.crews[0].start(self.workers)
        row = {"failed": "no answer"}
        for found in self.crews[0].work([[{"kind": "versions"}]], count=1, until=self.deadline - MARGIN, limit=60):
            row = found[-1][1]
        if "failed" in row:
            print(f"bench/gpu.py --first must have a CUDA device, got {row['failed']}", file=sys.stderr)
            return False
        device = row["gpu"]
        self.record = Record(place_of(device), code_of(ROOT / "kernels"), device, over)
        for old in self.record.rows:
            self.note(old)
        self.add([{"stage": "versions", "name": "versions", **row}])
        print(f"{device}: rows go to {self.record.place}", flush=True)
        jobs = []
        if device != "cpu":
            jobs.append({"kind": "clocks", "name": "clocks"})
        for of, sizes in zip(("exp2", "products", "bytes"), self.sizes.ceilings, strict=True):
            jobs.append({"kind": "ceiling", "name": f"ceiling {of}", "of": of, "sizes": sizes})
        if device != "cpu":
            jobs.append({"kind": "clocks", "name": "clocks after"})
        jobs = [{"stage": "versions", **job} for job in jobs]
        self.work("versions", [jobs], 1, self.until("versions"))
        return True

    def compile(self):
        until = self.until("compile")
        forms = [{"stage": "forms", "kind": "forms", "name": "forms", "n": self.sizes.n, "d": 64}]
        self.missing = {row["form"] for row in self.work("forms", [forms], 1, until) if is_bad(row) and "form" in row}
        groups = gpu_plan.compilations(self.sizes, self.missing)
        self.work("compile", groups, self.workers, until)

    def accuracy(self):
        """Half of the processes: a check is short, and each waits for its result."""
        count = max(1, self.workers // 2)
        # what is watched takes long to load
        self.start_watched()
        self.work("accuracy", gpu_plan.checks(self.sizes, self.missing), count, self.until("accuracy"))

    def start_watched(self):
        """A process under each of the sanitizer's tools, where it is installed."""
        tool = find_tool()
        for name in ("memcheck", "racecheck") if tool else ():
            options = ("--tool", name, "--report-api-errors", "no", "--print-limit", "20")
            self.watched[name] = Crew((tool, *options, *self.command), said=True)
            self.watched[name].start(1)
            self.crews.append(self.watched[name])

    def sanitizer(self):
        start, until = time.monotonic(), self.until("sanitizer")
        if not self.watched:
            self.add([{"stage": "sanitizer", "name": "compute-sanitizer", "summary": "not there"}])
            self.end("sanitizer", start, [], {"left": 0})
            return
        jobs, rows, left = gpu_plan.sanitizings(self.sizes, self.missing), [], {"left": 0}

        def watch(name):
            own = [{**job, "name": f"{name} {job['name']}", "tool": name} for job in jobs]
            with self.watched[name] as crew:
                for row in self.work("sanitizer", [own], 1, until, Watched(crew)):
                    rows.append(row)
                left["left"] += crew.left
                said = crew.finish(min(self.deadline - MARGIN, until + 5))
            row = {"stage": "sanitizer", "name": f"{name} summary", "summary": "none", "said": said[-8:]}
            for line in filter(_SUMMARY.search, said):
                row["summary"] = line.strip("= ")
                if int(_SUMMARY.search(line)[1]):
                    row["wrong"] = row["summary"]
            self.add([row])

        threads = [threading.Thread(target=watch, args=(name,), daemon=True) for name in self.watched]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.end("sanitizer", start, rows, left)

    def repeat(self):
        groups = gpu_plan.repeats(self.sizes, self.missing)
        self.work("repeat", groups, max(1, self.workers // 4), self.until("repeat"))

    def timing(self):
        # nothing else may run on the GPU meanwhile
        self.crews[0].keep(1)
        found = {row.get("of"): row["per_second"] for row in self.record.rows if "per_second" in row}
        ceilings = [found.get(of) for of in ("exp2", "products", "bytes")]
        jobs = gpu_plan.timings(self.sizes, self.missing, ceilings if all(ceilings) else None)
        jobs = [*jobs[:3], *gpu_plan.host_times(self.sizes), *jobs[3:]]
        self.work("timing", [jobs], 1, self.until("timing"))

    def tests(self):
        """One process after another, until no test is left that has no row."""
        for marks in self.sizes.marks:
            files = files_with(marks.split()[0], self.sizes.tests)
            name = f"tests {marks}"
            job = {"stage": "tests", "kind": "tests", "name": name, "marks": marks, "files": files}
            tried = 0
            while files and time.monotonic() < self.until("tests") - 5 and tried < 20:
                # what killed the process has no outcome, only the place where it was
                rows = [row for row in self.record.rows if row["stage"] == "tests"]
                skip = [row["name"] for row in rows if "::" in row["name"]]
                if f"summary {marks}" in {row["name"] for row in rows}:
                    break
                self.crews[0].keep(0)
                found = self.work("tests", [[{**job, "skip": skip}]], 1, self.until("tests"))
                if not any("::" in row["name"] for row in found):
                    break
                tried += 1


class Watched:
    """A crew whose rows tell what compute-sanitizer said during their job."""

    def __init__(self, crew):
        self.crew = crew

    def __getattr__(self, name):
        return getattr(self.crew, name)

    def work(self, *arguments, **options):
        for found in self.crew.work(*arguments, **options):
            yield [(job, self.judged(row)) for job, row in found]

    def judged(self, row):
        said = row.pop("said", [])
        errors = [line for line in said if _FOUND.match(line)]
        return row | {"ok": False, "wrong": " | ".join(errors)[:300], "said": said[:12]} if errors else row


def find_tool():
    """compute-sanitizer, of the PATH, of CUDA's toolkit, or of Triton's folder."""
    places = sorted(glob.glob("/usr/local/cuda*/bin"), reverse=True)
    triton = importlib.util.find_spec("triton")
    if triton and triton.origin:
        places.append(str(Path(triton.origin).parent / "backends/nvidia/bin"))
    return shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), *places]))


def files_with(mark, folder):
    """The files of tests that name a mark: others need not be imported."""
    paths = sorted((ROOT / folder).rglob("test_*.py"))
    return [str(path) for path in paths if re.search(rf"\bmark\.{mark}\b", path.read_text())]


def run(options, deadline):
    """All stages; the exit status is 0 where nothing failed."""

    def place_of(device):
        return options.out or ROOT / "bench/results/first" / f"{device.lower().replace(' ', '-')}.jsonl"

    def stop(*_):
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, stop)
    sizes = gpu_plan.DRY if options.dry else gpu_plan.Sizes()
    first = First(deadline, sizes, (*PYTHON, "--dry") if options.dry else PYTHON)
    try:
        if not first.versions(place_of, options.over):
            return 2
        for stage in (first.compile, first.accuracy, first.sanitizer, first.repeat, first.timing, first.tests):
            if time.monotonic() < deadline - MARGIN:
                first.go_through(stage)
    finally:
        signal.signal(signal.SIGTERM, before)
        for crew in first.crews:
            crew.keep(0)
        if first.record:
            print("\n" + report(first.record.place), flush=True)
    return int(has_failed(first.record.rows))
