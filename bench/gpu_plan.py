"""What `python bench/gpu.py --first` does: groups of jobs for gpu_worker.py, the most informative first."""

from typing import NamedTuple

OPS = (
    "rbf",
    "rbf_matmul",
    "mmd2",
    "log_density",
    "rbf_matmul_backward",
    "rbf_backward",
    "mmd2 ladder",
    "rbf_matmul 10",
    "rbf_matmul_backward 10",
)
# "own" is what the code chooses for each tile, the others are forced for all. Differences come before products, whose
# bits are held against theirs
FORMS = ("own", "differences", "products")
DATA = ("normal", "offset", "equal", "far", "outlier", "nan")
PRECISIONS = ("highest", "high", "medium")


class Sizes(NamedTuple):
    """What a plan covers."""

    n: int = 257
    # the middle of each class of kernels first
    dims: tuple = (64, 3, 16, 128, 200, 33, 5, 17, 32)
    forms: tuple = FORMS
    precisions: tuple = PRECISIONS
    data: tuple = DATA
    # greatest |x - centre|^2 / (2 sigma^2), for K alone
    s: tuple = (1, 8, 16, 64)
    repeat_n: int = 1000
    repeat_dims: tuple = (3, 17, 64, 200)
    ceilings: tuple = ((), (), ())
    # (op, n, m, d, rival, whether each form)
    timings: tuple = (
        ("mmd2 gradient", 1024, 1024, 128, "eager", True),
        ("matmul", 100_000, 100_000, 3, "chunked", False),
        ("matmul", 20_000, 20_000, 64, "eager", True),
        ("mmd2 gradient", 256, 256, 128, "eager", True),
        ("mmd2 gradient", 4096, 4096, 128, "eager", True),
        ("mmd2 gradient", 64, 64, 128, "eager", True),
        ("matrix", 16384, 16384, 64, "eager", False),
        ("matrix", 16384, 16384, 3, "eager", False),
        ("density", 10_000, 100_000, 16, "chunked", False),
    )
    budget: float = 0.4
    host: tuple = ((64, 200), (1024, 200))
    host_d: int = 128
    workers: int = 16
    tests: str = "tests"
    marks: tuple = ("gpu", "interpreter and not gpu")


DRY = Sizes(
    n=9,
    dims=(3, 17),
    precisions=("highest", "medium"),
    data=("normal", "nan"),
    s=(8,),
    repeat_n=9,
    repeat_dims=(17,),
    ceilings=((1, 16, 2), (16,), (1024,)),
    timings=(
        ("mmd2 gradient", 9, 9, 5, "eager", True),
        ("matmul", 20, 9, 3, "chunked", False),
        ("matrix", 9, 9, 17, "eager", False),
        ("density", 9, 20, 5, "chunked", False),
    ),
    budget=0.05,
    host=((9, 3),),
    host_d=5,
    workers=2,
    marks=("gpu",),
)


def checks(sizes, missing):
    """Groups of the checks of one truth."""
    groups = {}
    hard = [("data", data) for data in sizes.data]
    # K alone has a bandwidth for each s
    for kind, value in [*hard[:1], *(("s", s) for s in sizes.s), *hard[1:]]:
        for precision in sizes.precisions:
            for d in sizes.dims:
                for op in OPS if kind == "data" else ("rbf",):
                    for form in forms_of(sizes, d, missing):
                        # what is not finite is never met by products
                        if value == "nan" and form == "products":
                            continue
                        check = {"op": op, "d": d, "n": sizes.n, "form": form, "precision": precision, kind: value}
                        groups.setdefault((kind, value, d, op), []).append(check)
    for group in groups.values():
        yield [{"stage": "accuracy", "kind": "check", "name": name_of(job), **job} for job in group]


def forms_of(sizes, d, missing):
    """Few coordinates have one form."""
    return ["own"] if d <= 4 else [form for form in sizes.forms if form not in missing]


def name_of(job):
    what = [f"{key}={job[key]}" for key in ("d", "n", "s") if key in job]
    return " ".join([job["op"], job["form"], job["precision"], job.get("data", ""), *what]).replace("  ", " ")


def compilations(sizes, missing):
    """Groups whose kernels are much the same: of one op, one precision, and as many blocks of coordinates."""
    groups = {}
    for precision in sizes.precisions:
        for d in sizes.dims:
            for op in OPS:
                for form in forms_of(sizes, d, missing):
                    job = {"op": op, "d": d, "n": sizes.n, "form": form, "precision": precision}
                    blocks = d if d <= 4 else 8 if d <= 16 else (d + 31) // 32 * 32
                    job = {"stage": "compile", "kind": "compile", "name": name_of(job), **job}
                    groups.setdefault((precision, blocks, op), []).append(job)
    return [*timing_compilations(sizes, missing), *groups.values()]


def timing_compilations(sizes, missing):
    """The timed runs have other sizes, and so other ranges and tables."""
    for job in timings(sizes, missing, None):
        if job["form"] == "own":
            yield [{"stage": "compile", "kind": "case", "name": job["name"], "case": job["case"], "run": job["run"]}]


def sanitizings(sizes, missing):
    """A dozen tiny shapes, with rows and coordinates that no tile divides."""
    found = []
    for d in [d for d in (64, 3, 17, 200) if d in sizes.dims]:
        for op in ("mmd2", "rbf_matmul_backward", "rbf_backward", "log_density"):
            form = "own" if d <= 4 else ("differences", "products")[len(found) % 2]
            job = {"op": op, "d": d, "n": min(67, sizes.n), "form": form, "precision": "highest"}
            found.append({"stage": "sanitizer", "kind": "sanitize", "name": name_of(job), **job})
    return found[:14]


def repeats(sizes, missing):
    for d in sizes.repeat_dims:
        for op in OPS:
            for precision in sizes.precisions[:1] + sizes.precisions[2:]:
                for form in [form for form in forms_of(sizes, d, missing) if form != "differences"]:
                    job = {"op": op, "d": d, "n": sizes.repeat_n, "form": form, "precision": precision}
                    yield [{"stage": "repeat", "kind": "repeat", "name": name_of(job), **job}]
        for form in forms_of(sizes, d, missing):
            job = {"op": "rbf", "d": d, "n": sizes.repeat_n, "form": form, "precision": "highest"}
            yield [{"stage": "repeat", "kind": "symmetric", "name": f"symmetric {name_of(job)}", **job}]


def timings(sizes, missing, ceilings):
    """First all shapes as the code takes them, then other forms, then other precisions."""
    found = []
    for op, n, m, d, rival, each in sizes.timings:
        forms = [form for form in forms_of(sizes, d, missing) if each or form == "own"]
        several = d > 4
        for form in forms:
            for precision in sizes.precisions if form == "own" and several else sizes.precisions[:1]:
                case = {"op": op, "n": n, "m": m, "d": d, "runs": [precision]}
                name = f"{op} N={n} M={m} D={d} {precision} {form}"
                job = {"stage": "timing", "kind": "timing", "name": name, "case": case, "run": precision}
                job |= {"form": form, "rival": rival, "ceilings": ceilings, "budget": sizes.budget}
                found.append(job)
    return sorted(found, key=lambda job: (job["form"] != "own") + 2 * (job["run"] != "highest"))


def host_times(sizes):
    for n, count in sizes.host:
        name = f"mmd2 call N=M={n} D={sizes.host_d}"
        yield {"stage": "timing", "kind": "host", "name": name, "n": n, "d": sizes.host_d, "count": count}
