"""The GPU kernels on a GPU: checked in every precision, then timed against rivals and against the GPU's own ceilings.

    python bench/gpu.py --first            first contact: what runs, what is right, a dozen timings, in six minutes
    python bench/gpu.py --minutes 9        the long bench, as much of it as nine minutes hold
    python bench/gpu.py --only mmd2        of the long bench the cases whose name holds this
    python bench/gpu.py --list             names the cases; needs no GPU
    python bench/gpu.py --report FILE      what a file of --first says

Needs torch and triton, and this checkout as working directory or on PYTHONPATH; gkfast need not be installed.

--first writes a row after each check to bench/results/first/<gpu>.jsonl, or --out: see gpu_first.py. Started again,
it goes on where it was cut off, unless kernels/ has changed; --over starts over.

The long bench prints no time for what is wrong. Rows are written to bench/results/<gpu>.csv, or --out, after every
case, and those of other cases stay there. The most informative cases come first, and rivals that compile for long
last. Tp/s are 10^12 kernel values a second; the share is that of the greatest of three measured bounds: exp2 of every
pair, float16 products, bytes of the result. Last come the targets, met and missed.
"""

import argparse
import csv
import math
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

STARTED = time.monotonic()
ROOT = Path(__file__).resolve().parent.parent
# bench/ is not installed
sys.path.insert(0, str(ROOT))

FIELDS = [
    "gpu",
    "torch",
    "triton",
    "case",
    "op",
    "N",
    "M",
    "D",
    "run",
    "ms",
    "Tp/s",
    "share",
    "bound",
    "error",
    "wrong",
]


def rows_of(case, gpu, ceilings, runs=None, deadline=math.inf):
    """A row for each run of the case, or each of those named; none is begun that may end after the deadline."""
    import torch

    from bench import gpu_cases, gpu_clock

    exact = None
    for name in case.runs if runs is None else runs:
        if time.monotonic() + longest(case, name) > deadline:
            continue
        row = {"case": case.name, "op": case.op, "N": case.n, "M": case.m, "D": case.d, "run": name}
        try:
            exact = gpu_cases.reference_outputs(case, *gpu_cases.inputs(case)) if exact is None else exact
            run = gpu_cases.make(case, name, gpu)
            if run is None:
                continue
            if case.graph:
                run = gpu_clock.captured(run)
            outputs = run()
            gpu_clock.synchronize()
            row["error"] = gpu_cases.error(case, outputs, exact)
            allowed = gpu_cases.tolerance(case, name)
            del outputs
            if not row["error"] <= allowed:
                row["wrong"] = f"WRONG: error {row['error']:.1e}, allowed {allowed:.0e}"
            else:
                took = gpu_clock.seconds(run)
                products = gpu_cases.products_of(gpu, case, name)
                bound, row["bound"] = gpu_cases.bounds(case, products, ceilings)
                row |= {"ms": 1e3 * took, "Tp/s": case.pairs / took / 1e12, "share": bound / took}
        except Exception as failure:
            # a rival that cannot run, or lacks memory, must not end the others' runs; the row says what it was
            row["wrong"] = f"{type(failure).__name__}: {str(failure).partition(chr(10))[0][:80]}"
        run = None
        torch.cuda.empty_cache()
        yield row


def longest(case, name):
    """Seconds that a run may take, at worst, with what it compiles and repeats."""
    from bench import gpu_cases

    if name in gpu_cases.OURS:
        # six runs, at a tenth of what the kernels are meant to do
        return 10 + 6 * case.pairs * (1 + case.d / 64) / 0.1e12
    # three runs that go through memory a dozen times
    return (45 if name in gpu_cases.SLOW_TO_START else 1) + 3 * case.pairs * (1 + case.columns / 64) / 0.03e12


def in_order(chosen):
    """(case, its runs) of all cases, and once more with the rivals that are slow to start."""
    from bench.gpu_cases import SLOW_TO_START

    for slow in (False, True):
        for case in chosen:
            runs = [name for name in case.runs if (name in SLOW_TO_START) == slow]
            if runs:
                yield case, runs


def compile_ahead(chosen, until):
    """Fill Triton's cache: gkfast's runs, each once, in as many processes as there are processors."""
    from bench.gpu_cases import OURS
    from bench.gpu_pool import PYTHON, Crew

    # together the processes hold no more matrices than the memory of a large GPU
    small = [case for case in chosen if "matrix" not in case.op or case.pairs <= 3e8]
    groups = [[{"kind": "case", "case": asdict(case), "run": n} for n in case.runs if n in OURS] for case in small]
    with Crew(PYTHON) as crew:
        for _ in crew.work(groups, count=min(16, os.cpu_count() or 1), until=until, limit=60):
            # a failure shows again where the run is timed
            pass


def write(rows, place):
    """These rows into the file, in the place of those of the same runs; others that it has stay."""
    kept = {}
    if place.exists():
        with open(place, newline="") as file:
            kept = {(row["case"], row["run"]): row for row in csv.DictReader(file)}
    kept |= {(row["case"], row["run"]): row for row in rows}
    place.parent.mkdir(parents=True, exist_ok=True)
    # whoever is killed meanwhile leaves the file as it was
    new = place.with_name(place.name + ".new")
    with open(new, "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(kept.values())
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, place)


def said_of(row):
    if "ms" not in row:
        return f"{row['case']:36} {row['run']:10} {row['wrong']}"
    return (
        f"{row['case']:36} {row['run']:10} {row['ms']:10.3f} ms {row['Tp/s']:8.3f} Tp/s"
        f" {row['share']:5.0%} of {row['bound']:8} error {row['error']:.0e}"
    )


def long_bench(chosen, options):
    import torch

    from bench import gpu_cases, gpu_clock

    if not torch.cuda.is_available():
        print("bench/gpu.py must have a CUDA device, got none; --list shows the cases", file=sys.stderr)
        return 2
    gpu_cases.load()
    import triton

    from gkfast.kernels import gpu

    deadline = STARTED + 60 * (options.minutes or math.inf)
    # rivals at full float32, as gkfast's "highest" is
    torch.set_float32_matmul_precision("highest")
    device = torch.cuda.get_device_name()
    place = options.out or ROOT / "bench/results" / f"{device.lower().replace(' ', '-')}.csv"
    versions = {"gpu": device, "torch": torch.__version__, "triton": triton.__version__}
    print(*versions.values(), flush=True)
    # a sixth of the time at most: what is not compiled then is compiled when it runs
    compile_ahead(chosen, min(deadline, time.monotonic() + 10 * (options.minutes or 60)))
    ceilings = gpu_clock.measured_ceilings()
    exponentials, products, moved = (c / 1e12 for c in ceilings)
    print(f"ceilings: {exponentials:.2f} T exp2/s, {products:.0f} T float16 multiply-adds/s, {moved:.2f} TB/s")
    found, asked = [], 0
    for case, runs in in_order(chosen):
        asked += len(runs)
        for row in rows_of(case, gpu, ceilings, runs, deadline):
            found.append(versions | row)
            print(said_of(row), flush=True)
        # what is measured is kept, however the next case ends
        write(found, place)
    print(f"{len(found)} of {asked} runs in {time.monotonic() - STARTED:.0f} s; targets of an H200:")
    print(*gpu_cases.targets(found), sep="\n")
    return int(any("wrong" in row for row in found if row["run"] in gpu_cases.OURS))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    parser.add_argument("--only", default="", metavar="NAME", help="cases whose name holds this")
    parser.add_argument("--minutes", type=float, help="when to stop: --first after 6 by default, else when all ran")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where rows go, by default in bench/results")
    parser.add_argument("--first", action="store_true", help="first contact")
    parser.add_argument("--over", action="store_true", help="--first: start over, and forget the rows of the file")
    parser.add_argument(
        "--dry", action="store_true", help="--first: its stages at tiny sizes, interpreted on the CPU"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="say what a file of --first holds, and stop")
    options = parser.parse_args()
    if options.report:
        from bench.gpu_record import report

        print(report(options.report))
        return 0
    if options.first:
        # without torch: its processes load it
        from bench import gpu_first

        return gpu_first.run(options, STARTED + 60 * (options.minutes or 6))
    from bench.gpu_cases import cases

    chosen = [case for case in cases() if options.only in case.name]
    if options.list:
        for case in chosen:
            print(f"{case.name:40} {' '.join(case.runs)}")
        return 0
    return long_bench(chosen, options)


if __name__ == "__main__":
    sys.exit(main())
