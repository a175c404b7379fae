"""How a row is measured: its case, its check against the reference, its first call, its alternating rounds."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import pytest
import torch
from torch import Tensor

Outputs = dict[str, Tensor]
Run = Callable[[], Outputs]


@dataclass(frozen=True)
class Case:
    """One operation at one size; M = N throughout."""

    op: str
    n: int
    d: int
    bandwidths: int = 1
    dtype: str = "float32"

    def __str__(self) -> str:
        several = f" S={self.bandwidths}" if self.bandwidths > 1 else ""
        return f"{self.op} {self.dtype} N=M={self.n} D={self.d}{several}"

    @property
    def sigma(self) -> list[float]:
        """One bandwidth at the data's scale; or 1, 2, 4, 8, 16, as MMD-GAN code has them.

        At the data's scale (K about exp(-1)) no rival's exp underflows; at sigma 1 and D = 128 nearly every one does.
        """
        return [math.sqrt(self.d)] if self.bandwidths == 1 else [2.0**s for s in range(self.bandwidths)]


@lru_cache(maxsize=1)
def inputs(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """x (N, D) and y (M, D), normal with means half a unit apart, and an incoming gradient g (N, M)."""
    rng = torch.Generator().manual_seed(20)
    dtype = getattr(torch, case.dtype)
    x, y = torch.randn(2, case.n, case.d, generator=rng, dtype=dtype)
    return x, y + 0.5, torch.randn(case.n, case.n, generator=rng, dtype=dtype)


# the greatest error against the reference in float64; "kernel" absolute, the others relative in norm
TOLERANCE = {
    # gkfast's contract
    ("gkfast", "float32", "kernel"): 1e-6,
    ("gkfast", "float64", "kernel"): 1e-14,
    ("gkfast", "float32", "gradient"): 1e-5,
    # sums of float32 terms of one sign, rounded once more at the end
    ("gkfast", "float32", "value"): 1e-5,
    ("gkfast", "float32", "product"): 1e-5,
    # |x|^2 + |y|^2 - 2 xy cancels: eps D / sigma^2 in the exponent where sigma^2 = D, times the order of the sums
    ("rival", "float32", "kernel"): 1e-5,
    ("rival", "float64", "kernel"): 1e-13,
    # the same error in every weight, over sums whose terms cancel
    ("rival", "float32", "gradient"): 1e-3,
    # a difference of nearly equal float32 means; and at sigma 1 only the error in the diagonal's exponent remains
    ("rival", "float32", "value"): 1e-3,
    ("rival", "float32", "product"): 1e-4,
}


@dataclass(frozen=True)
class Exact:
    """The reference's outputs; those with a row per point hold the checked rows only (see `checked_rows`)."""

    rows: Tensor
    outputs: Outputs

    def errors(self, outputs: Outputs) -> dict[str, float]:
        return {name: self._error(name, outputs[name].detach()) for name in self.outputs}

    def _error(self, name: str, found: Tensor) -> float:
        exact = self.outputs[name]
        found = found.double() if found.ndim == 0 else found[self.rows].double()
        if name == "kernel":
            return (found - exact).abs().max().item()
        return ((found - exact).norm() / exact.norm()).item()


def checked_rows(case: Case) -> Tensor:
    """All rows, or as many evenly spaced ones as the reference does in seconds: 2^28 coordinates of pairs."""
    count = min(case.n, 2**28 // (case.n * case.d))
    return torch.linspace(0, case.n - 1, count).round().long()


def wrong(case: Case, whose: str, errors: dict[str, float]) -> str | None:
    """What is outside its tolerance, or None. NaN is."""
    for name, error in errors.items():
        tolerance = TOLERANCE[whose, case.dtype, name.split()[0]]
        if not error <= tolerance:
            return f"WRONG: error of {name} {error:.1e}, allowed {tolerance:.0e}"
    return None


def first_call(run: Run) -> tuple[float, Outputs]:
    """Seconds of one call, and its outputs."""
    start = time.perf_counter()
    outputs = run()
    return time.perf_counter() - start, outputs


@dataclass(frozen=True)
class Turns:
    """Median seconds of both, the median over rounds of theirs / ours, and the same of their fastest turns."""

    ours: float
    theirs: float
    ratio: float
    best_ratio: float

    @property
    def disturbed(self) -> bool:
        """Whether the two ratios tell different stories, as they do where other processes take the cores."""
        return not 2 / 3 < self.ratio / self.best_ratio < 3 / 2


def alternate(ours: Run, theirs: Run) -> Turns:
    """Both in turns, so that drift hits both.

    A turn lasts a millisecond or one call; who begins changes from round to round; as many rounds as
    fit in 0.4 seconds, but at least three and at most fifty.
    """
    runs = (ours, theirs)
    loops = [max(1, math.ceil(1e-3 / min(first_call(run)[0] for _ in range(2)))) for run in runs]
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + 0.4
    while len(times[0]) < 3 or (time.perf_counter() < end and len(times[0]) < 50):
        for k in (0, 1) if len(times[0]) % 2 == 0 else (1, 0):
            start = time.perf_counter()
            for _ in range(loops[k]):
                runs[k]()
            times[k].append((time.perf_counter() - start) / loops[k])
    a, b = times
    ratio = statistics.median(t / o for o, t in zip(a, b, strict=True))
    return Turns(statistics.median(a), statistics.median(b), ratio, min(b) / min(a))


def identifier(value: object) -> str:
    """A test's id that -k can name: rbf-gradient-float32-N64-D64-eager."""
    return str(value).replace("N=M=", "N").replace("=", "").replace(" ", "-")


# pytest-benchmark's own table: three rounds, or a tenth of a second
MARKS = [
    pytest.mark.benchmark(max_time=0.1, min_rounds=3, warmup=False),
    # a wrong row is not timed, and says so itself
    pytest.mark.filterwarnings("ignore:Benchmark fixture was not used"),
    # rivals' own: what torch deprecates is used by torch's compiler and by gpytorch's linear_operator
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch._prims_common.check` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]
