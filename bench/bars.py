"""The speeds that are wanted of an H200, and those that the model of gpu_model.py predicts at real sizes.

Every launch is recorded on a pretended H200, each distinct kernel is compiled for it and read. Times are of the
device alone.
"""

import math
import sys
from collections import Counter
from dataclasses import asdict, dataclass

import torch

from bench import gpu_model as model
from bench.launches import TARGETS, compile_for, empty, in_parallel, kernels, key_of, recorded

HOPPER = TARGETS["90"]
_UNITS = {"us": 1e6, "ms": 1e3, "s": 1.0}


@dataclass(frozen=True)
class Bar:
    op: str
    n: int
    m: int
    d: int
    precision: str
    # of "us", "ms", "s" less is better, of "Tp/s", 10^12 kernel values a second, more
    unit: str
    bar: float
    target: float

    @property
    def name(self):
        return f"{self.op} N={self.n} M={self.m} D={self.d} {self.precision}"

    @property
    def met_pairs(self):
        """Pairs that a kernel over all of them meets: gradients of MMD^2 meet both ends of each."""
        return self.n * self.m * (4 if self.op == "mmd2 gradient" else 1)

    def in_unit(self, seconds):
        return self.n * self.m / seconds / 1e12 if self.unit == "Tp/s" else seconds * _UNITS[self.unit]

    def met(self, value, wanted):
        return value >= wanted if self.unit == "Tp/s" else value <= wanted


def _square(op, n, d, precision, *wanted):
    return Bar(op, n, n, d, precision, *wanted)


BARS = [
    _square("mmd2 gradient", 64, 128, "highest", "us", 20, 12),
    _square("mmd2 gradient", 256, 128, "highest", "us", 25, 15),
    _square("mmd2 gradient", 1024, 128, "highest", "us", 60, 30),
    _square("mmd2 gradient", 4096, 128, "highest", "ms", 0.8, 0.4),
    _square("mmd2 gradient", 65_536, 128, "highest", "s", 0.2, 0.08),
    _square("matmul", 100_000, 64, "highest", "Tp/s", 0.5, 0.75),
    _square("matmul", 100_000, 64, "high", "Tp/s", 0.9, 1.35),
    _square("matmul", 100_000, 64, "medium", "Tp/s", 1.6, 2.5),
    _square("matmul", 100_000, 16, "highest", "Tp/s", 1.4, 2.0),
    _square("matmul", 100_000, 16, "high", "Tp/s", 1.8, 2.6),
    _square("matmul", 100_000, 3, "highest", "Tp/s", 2.6, 2.9),
    _square("matrix", 16_384, 3, "highest", "Tp/s", 0.8, 0.92),
    _square("matrix", 16_384, 64, "highest", "Tp/s", 0.5, 0.92),
    _square("matrix", 16_384, 784, "high", "Tp/s", 0.12, 0.13),
    Bar("density", 10_000, 1_000_000, 16, "highest", "Tp/s", 1.4, 2.0),
]


def call(bar):
    """The public launcher, on tensors of the pretended GPU whose memory nobody touches."""
    of, by = kernels(), {"precision": bar.precision}
    one = torch.ones(1, 1, dtype=torch.float64)
    x, y = empty(1, bar.n, bar.d), empty(1, bar.m, bar.d)
    if bar.op == "matrix":
        of.rbf(x, y, one, one, **by)
    elif bar.op == "matmul":
        of.rbf_matmul(x, y, empty(1, bar.m, 1), one, one, **by)
    elif bar.op == "density":
        of.log_density(x, y, one, one, empty(1, bar.m), leave_one_out=False, **by)
    elif bar.op == "mmd2 gradient":
        scale = empty(1, 1, 3, dtype=torch.float64)
        wants = (True, True, False, False, False, False)
        of.kernel_sums_with_gradients(scale, x, y, None, None, one, one, drop=1, wants=wants, **by)
    else:
        raise ValueError(bar.op)


# ---- how many tiles are far


def extents(bar):
    """The greatest |x - centre|^2 / (2 sigma^2): of the inputs of bench/gpu.py, and with the median distance."""
    generator = torch.Generator().manual_seed(20)
    rows = min(bar.n + bar.m, 2 * 10**7 // bar.d) // 2
    x, y = (torch.randn(rows, bar.d, generator=generator) + shift for shift in (0.0, 0.3))
    points = torch.cat([x, y])
    greatest = (points - points.mean(0)).square().sum(1).max().item() / 2
    some = points[torch.randperm(len(points), generator=generator)[:1000]]
    median = torch.pdist(some).median().item()
    return greatest / bar.d, greatest / median**2


def limit_of(bar):
    """The extent up to which no tile is far, as the kernels' own table says."""
    kernels()
    points = sys.modules["gkfast.kernels.gpu.points"]
    log_density = bar.op == "density" and bar.precision == "highest"
    return points.LIMITS[points.PRODUCTS["log-density" if log_density else bar.precision]]


# ---- predictions


@dataclass
class Kernel:
    """A compiled kernel among the launches of a bar."""

    name: str
    launch: object
    shape: object
    work: object
    times: int = 0
    programs: int = 0
    seconds: float = 0.0
    form: str = ""


def compiled_and_read(launch):
    compiled = compile_for(HOPPER, launch)
    return model.read(launch, compiled)


def predict(bar, launches, keys, read):
    """Kernels of a bar, with the time that they take, where no tile is far; read: (shape, work) by key."""
    found, programs = {}, Counter()
    for launch, key in zip(launches, keys, strict=True):
        kernel = found.setdefault(key, Kernel(launch.kernel.__name__, launch, *read[key]))
        kernel.times += 1
        programs[key] += launch.programs
    for launch, key in zip(launches, keys, strict=True):
        kernel = found[key]
        shape, work = kernel.shape, kernel.work
        kernel.programs = max(kernel.programs, launch.programs)
        if shape is None:
            moved = sum(t.numel() * t.element_size() for t in launch.tensors())
            kernel.seconds += model.LAUNCH + moved / model.MEMORY
            kernel.form = "bytes"
        else:
            kernel.form = work.form
            pairs = bar.met_pairs * launch.programs / programs[key]
            if not work.counts["exp2"] and not work.counts["fp64"]:
                # weights that are stored are read again for each block of coordinates
                pairs *= math.ceil(shape.dims / launch.variant.BD)
            kernel.seconds += model.seconds(work, shape, launch.programs, pairs)
    return list(found.values())


def forms_of(found):
    """The forms that meet pairs, of predicted kernels."""
    return " and ".join(sorted({kernel.form for kernel in found if kernel.shape is not None})) or "none"


def lines_of(bar, found):
    total = sum(kernel.seconds for kernel in found)
    value = bar.in_unit(total)
    verdict = "target" if bar.met(value, bar.target) else "bar" if bar.met(value, bar.bar) else "MISSED"
    line = (
        f"{verdict:7} {bar.name}: predicted {value:.3g} {bar.unit}, bar {bar.bar:g}, target {bar.target:g}; "
        f"{sum(kernel.times for kernel in found)} launches; by {forms_of(found)}"
    )
    if forms_of(found) == "products":
        of_bench, of_median = extents(bar)
        line += f", {of_bench:.2f} of at most {limit_of(bar):g} (with the median distance {of_median:.2f})"
    yield line
    for kernel in sorted(found, key=lambda kernel: -kernel.seconds):
        grid = "x".join(map(str, kernel.launch.grid))
        share = f"{100 * kernel.seconds / total:3.0f} %"
        yield f"    {share} {kernel.times} x {kernel.name} grid {grid}, {kernel.form}{details(kernel)}"


def details(kernel):
    """Of a kernel that meets pairs."""
    if kernel.shape is None:
        return ""
    shape, work = kernel.shape, kernel.work
    each, of = model.per_pair(work, shape), model.bounds(work, shape)
    waves = kernel.programs / model.MULTIPROCESSORS / shape.resident
    parts = [
        f"tile {shape.bn}x{shape.bm}, {shape.warps} warps, {shape.registers} registers, {shape.resident} programs a "
        f"multiprocessor, {waves:.2f} waves",
        f"a pair: {each['instructions']:.1f} instructions, {each['global_loads']:.2f} loads",
    ]
    if each["multiply_adds"]:
        parts[-1] += f", {each['multiply_adds']:.0f} multiply-adds"
        parts[-1] += f" (distances need {shape.products * shape.length})"
    if each["exp2"] > 1.2:
        parts[-1] += f", {each['exp2']:.1f} exponentials"
    parts.append(
        f"Tp/s of pairs met: {of.overlapped:.3g} overlapped, {of.serial:.3g} serial, {of.predicted:.3g} predicted"
    )
    return "; ".join(["", *parts, of.binding, *work.notes])


def table(only="", say=print):
    """Predicted and wanted, line by line; returns a row for each bar."""
    plans, work = [], {}
    for bar in BARS:
        if only in bar.name:
            launches = recorded(HOPPER, lambda bar=bar: call(bar))
            keys = [key_of(HOPPER, launch) for launch in launches]
            work |= {key: launch for key, launch in zip(keys, launches, strict=True) if key not in work}
            plans.append((bar, launches, keys))
    print(f"{len(work)} kernels to compile", file=sys.stderr, flush=True)
    found = in_parallel(
        compiled_and_read,
        list(work.values()),
        lambda done, _: print(f"\r{done}", end="", file=sys.stderr, flush=True),
    )
    print(file=sys.stderr)
    read = dict(zip(work, found, strict=True))
    rows = []
    for bar, launches, keys in plans:
        found = predict(bar, launches, keys, read)
        for line in lines_of(bar, found):
            say(line)
        value = bar.in_unit(sum(kernel.seconds for kernel in found))
        launches_of = sum(kernel.times for kernel in found)
        rows.append(asdict(bar) | {"predicted": value, "launches": launches_of, "form": forms_of(found)})
    return rows
