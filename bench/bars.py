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


# ---- which form is taken


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


def limit_of(precision):
    """The extent up to which products are taken, as the kernels' own table says."""
    for name, module in sorted(sys.modules.items()):
        table = getattr(module, "PRODUCTS", None)
        if name.startswith("gkfast.kernels.gpu.") and isinstance(table, dict):
            return table[precision][1]
    return math.inf


def returns_at_once(launch, extent):
    """Of a kernel that is launched by products and by differences, the one whose turn it is not."""
    limit = getattr(launch.variant, "LIMIT", 0)
    return limit > 0 and (extent <= limit) != (launch.variant.DOT > 0)


# ---- predictions


@dataclass
class Kernel:
    """A compiled kernel among the launches of a bar."""

    name: str
    launch: object
    shape: object
    works: dict
    times: int = 0
    programs: int = 0
    seconds: float = 0.0
    form: str = ""


def compiled_and_read(launch):
    compiled = compile_for(HOPPER, launch)
    return model.read(launch, compiled)


def predict(bar, launches, keys, read, extent):
    """Kernels of a bar, with the time that they take; read: (shape, works) by key."""
    found, programs = {}, Counter()
    for launch, key in zip(launches, keys, strict=True):
        shape, works = read[key]
        kernel = found.setdefault(key, Kernel(launch.kernel.__name__, launch, shape, works))
        kernel.times += 1
        programs[key] += launch.programs
    for launch, key in zip(launches, keys, strict=True):
        kernel = found[key]
        shape = kernel.shape
        kernel.programs = max(kernel.programs, launch.programs)
        if shape is None:
            moved = sum(t.numel() * t.element_size() for t in launch.tensors())
            kernel.seconds += model.LAUNCH + moved / model.MEMORY
            kernel.form = "bytes"
        elif returns_at_once(launch, extent):
            places = model.MULTIPROCESSORS * shape.resident
            kernel.seconds += model.LAUNCH + launch.programs / places * model.LEAVES / model.CLOCK
            kernel.form = "returns at once"
        else:
            both = len(kernel.works) > 1
            kernel.form = next(iter(kernel.works))
            if both and extent > limit_of(bar.precision):
                kernel.form = "differences"
            work = kernel.works[kernel.form]
            pairs = bar.met_pairs * launch.programs / programs[key]
            if not work.counts["exp2"] and not work.counts["fp64"]:
                # weights that are stored are read again for each block of coordinates
                pairs *= math.ceil(shape.dims / launch.variant.BD)
            kernel.seconds += model.seconds(work, shape, launch.programs, pairs)
    return list(found.values())


def forms_of(found):
    """The forms that meet pairs, of predicted kernels."""
    return " and ".join(sorted({kernel.form for kernel in found if kernel.form in kernel.works})) or "none"


def lines_of(bar, found, of_bench, of_median):
    """of_...: the extent, and the forms that are taken."""
    total = sum(kernel.seconds for kernel in found)
    value = bar.in_unit(total)
    verdict = "target" if bar.met(value, bar.target) else "bar" if bar.met(value, bar.bar) else "MISSED"
    yield (
        f"{verdict:7} {bar.name}: predicted {value:.3g} {bar.unit}, bar {bar.bar:g}, target {bar.target:g}; "
        f"{sum(kernel.times for kernel in found)} launches; by {of_bench[1]} (greatest |x-c|^2/(2 sigma^2) "
        f"{of_bench[0]:.2f}), with the median distance by {of_median[1]} ({of_median[0]:.2f})"
    )
    for kernel in sorted(found, key=lambda kernel: -kernel.seconds):
        grid = "x".join(map(str, kernel.launch.grid))
        share = f"{100 * kernel.seconds / total:3.0f} %"
        yield f"    {share} {kernel.times} x {kernel.name} grid {grid}, {kernel.form}{details(kernel)}"


def details(kernel):
    """Of a kernel that meets pairs."""
    if kernel.form not in kernel.works:
        return ""
    shape, work = kernel.shape, kernel.works[kernel.form]
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
        extent, median = extents(bar)
        found, other = (predict(bar, launches, keys, read, of) for of in (extent, median))
        for line in lines_of(bar, found, (extent, forms_of(found)), (median, forms_of(other))):
            say(line)
        value = bar.in_unit(sum(kernel.seconds for kernel in found))
        launches_of = sum(kernel.times for kernel in found)
        rows.append(asdict(bar) | {"predicted": value, "launches": launches_of, "form": forms_of(found)})
    return rows
