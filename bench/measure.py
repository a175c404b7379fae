"""How a row is measured: its case, its check against the reference, its first call, its alternating rounds."""

import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

Outputs = dict[str, Tensor]
Run = Callable[[], Outputs]

# how many squarings make all kernels of a ladder from that of its widest bandwidth
SQUARINGS = {"one": 0, "variance x2": 4, "sigma x2": 8}


@dataclass(frozen=True)
class Case:
    """One operation at one size."""

    op: str
    n: int
    d: int
    _: KW_ONLY
    rows_of_y: int | None = None
    columns: int = 1
    bandwidths: str = "one"
    dtype: str = "float32"
    # measured for a plot against N or D only
    sweep: bool = False

    @property
    def m(self) -> int:
        return self.n if self.rows_of_y is None else self.rows_of_y

    def __str__(self) -> str:
        size = f"N=M={self.n}" if self.n == self.m else f"N={self.n} M={self.m}"
        columns = f" E={self.columns}" if self.columns > 1 else ""
        several = f" S={len(self.sigma)} {self.bandwidths}" if len(self.sigma) > 1 else ""
        return f"{self.op} {self.dtype} {size} D={self.d}{columns}{several}"

    @property
    def sigma(self) -> list[float]:
        """One bandwidth at the data's scale, or five.

        At the data's scale (K about exp(-1)) no rival's exp underflows. "sigma x2" is 1, 2, 4, 8, 16, as MMD-GAN code
        has it: at sigma 1 and D = 128 nearly every exp underflows. "variance x2" is the ladder of multi-kernel MMD
        code, 2 sigma_i^2 = (mean squared distance) 2^(i - 2), with the 2 D that it is for normal data.
        """
        return {
            "one": [math.sqrt(self.d)],
            "sigma x2": [2.0**s for s in range(5)],
            "variance x2": [math.sqrt(self.d * 2.0 ** (s - 2)) for s in range(5)],
        }[self.bandwidths]

    @property
    def sigma_rows(self) -> Tensor:
        """(1, S) float64, as the reference takes it."""
        return torch.tensor([self.sigma], dtype=torch.float64)


@lru_cache(maxsize=1)
def points(case: Case) -> tuple[Tensor, Tensor]:
    """x (N, D) and y (M, D), normal with means half a unit apart."""
    rng = torch.Generator().manual_seed(20)
    dtype = getattr(torch, case.dtype)
    x = torch.randn(case.n, case.d, generator=rng, dtype=dtype)
    return x, torch.randn(case.m, case.d, generator=rng, dtype=dtype) + 0.5


@lru_cache(maxsize=1)
def right_hand_side(case: Case) -> Tensor:
    """v (M, E) of rbf_matmul, or the incoming gradient g (N, M) of a kernel matrix; normal."""
    rng = torch.Generator().manual_seed(21)
    shape = (case.m, case.columns) if case.op.startswith("rbf_matmul") else (case.n, case.m)
    return torch.randn(*shape, generator=rng, dtype=getattr(torch, case.dtype))


# the greatest error against the reference in float64; "kernel" absolute, the others relative in norm
TOLERANCE = {
    # gkfast's contract
    ("gkfast", "float32", "kernel"): 1e-6,
    ("gkfast", "float64", "kernel"): 1e-14,
    ("gkfast", "float32", "gradient"): 1e-5,
    # sums of float32 terms of one sign, rounded once more at the end
    ("gkfast", "float32", "value"): 1e-5,
    ("gkfast", "float32", "product"): 1e-5,
    # the kernel's error times the square root of the number of terms, whose signs are random
    ("gkfast", "float64", "product"): 1e-13,
    # a logarithm: the absolute error of the exponent over its size
    ("gkfast", "float32", "density"): 1e-6,
    # |x|^2 + |y|^2 - 2 xy cancels: eps D / sigma^2 in the exponent where sigma^2 = D, times the order of the sums
    ("rival", "float32", "kernel"): 1e-5,
    ("rival", "float64", "kernel"): 1e-13,
    # the same error in every weight, over sums whose terms cancel
    ("rival", "float32", "gradient"): 1e-3,
    # a difference of nearly equal float32 means; and at sigma 1 only the error in the diagonal's exponent remains
    ("rival", "float32", "value"): 1e-3,
    ("rival", "float32", "product"): 1e-4,
    ("rival", "float64", "product"): 1e-12,
    ("rival", "float32", "density"): 1e-5,
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
    """All rows, or as many evenly spaced ones as the reference does in a second: 2^26 coordinates of pairs."""
    count = max(2, min(case.n, 2**26 // (max(case.n, case.m) * case.d)))
    return torch.linspace(0, case.n - 1, count).round().long()


def blocks(rows: Tensor, case: Case) -> tuple[Tensor, ...]:
    """`rows` in pieces of 2^17 pairs: the reference's matrices then stay in the cache, and autograd's in memory."""
    return rows.split(max(1, 2**17 // max(case.n, case.m)))


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


# a turn that is timed lasts so long, or one call
_TURN = 2e-3
# OpenMP's threads wait in a loop for some milliseconds after their work is done, on cores that the next turn needs
_SETTLE = 5e-3
# seconds for each run of a row; at least three rounds whatever they take, but one where a call is long
_BUDGET = 0.5
_LONG = 3.0
_MOST_ROUNDS = 50


def others_seconds() -> float:
    """Seconds that other processes have spent on the cores since the machine started; NaN where it does not tell."""
    if not _STAT.exists():
        return math.nan
    user, nice, system, _, _, interrupts, *more = map(int, _STAT.read_text().split(maxsplit=10)[1:10])
    busy = (user + nice + system + interrupts + sum(more[:2])) / os.sysconf("SC_CLK_TCK")
    return busy - sum(os.times()[:4])


_STAT = Path("/proc/stat")
# with more than this of a core in other hands a row counts as disturbed; NaN is never more
MUCH = 0.1


@dataclass(frozen=True)
class Times:
    """Seconds per call, round by round, and the calls of one round."""

    seconds: list[float]
    calls: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        return min(self.seconds)


@dataclass(frozen=True)
class Turns:
    """Two runs, timed in turns, and how many cores other processes had meanwhile."""

    ours: Times
    theirs: Times
    others: float

    @property
    def ratio(self) -> float:
        """The median over rounds of theirs / ours."""
        return statistics.median(self._ratios)

    @property
    def best_ratio(self) -> float:
        """The same of the fastest turns."""
        return self.theirs.best / self.ours.best

    @property
    def spread(self) -> float | None:
        """Half the distance between the quartiles of the rounds' ratios, relative to the median."""
        if len(self._ratios) < 4:
            return None
        low, _, high = statistics.quantiles(self._ratios, n=4)
        return (high - low) / 2 / self.ratio

    @property
    def disturbed(self) -> bool:
        """Whether other processes took the cores; the two ratios then tell different stories."""
        if math.isnan(self.others):
            return not 2 / 3 < self.ratio / self.best_ratio < 3 / 2
        return self.others > MUCH

    @property
    def _ratios(self) -> list[float]:
        return [t / o for o, t in zip(self.ours.seconds, self.theirs.seconds, strict=True)]


def alternate(ours: Run, theirs: Run) -> Turns:
    """Both in turns, so that drift hits both; who begins changes from round to round."""
    times, others = rounds([ours, theirs])
    return Turns(*times, others)


def rounds(runs: list[Run]) -> tuple[list[Times], float]:
    """Each run's times, and how many cores other processes had meanwhile."""
    # outputs are dropped before the next call, or it could not have their memory
    guess = [first_call(run)[0] for run in runs]
    calls = [
        1 if g > _TURN else math.ceil(_TURN / min(g, first_call(run)[0])) for g, run in zip(guess, runs, strict=True)
    ]
    settling = [math.ceil(_SETTLE / _TURN) * k if g < _SETTLE else 0 for g, k in zip(guess, calls, strict=True)]
    least, most = (1, 1) if max(guess) > _LONG else (3, _MOST_ROUNDS)
    seconds: list[list[float]] = [[] for _ in runs]
    start, others = time.perf_counter(), others_seconds()
    while len(seconds[0]) < least or (len(seconds[0]) < most and time.perf_counter() < start + _BUDGET * len(runs)):
        order = range(len(runs)) if len(seconds[0]) % 2 == 0 else reversed(range(len(runs)))
        for k in order:
            for _ in range(settling[k]):
                runs[k]()
            begin = time.perf_counter()
            for _ in range(calls[k]):
                runs[k]()
            seconds[k].append((time.perf_counter() - begin) / calls[k])
    # NaN first: max then keeps it
    others = max(others_seconds() - others, 0.0) / (time.perf_counter() - start)
    return [Times(s, k) for s, k in zip(seconds, calls, strict=True)], others


def on_one_thread(run: Callable[[], Any]) -> Callable[[], Any]:
    """The same run with torch's number of threads, which gkfast follows, at one."""

    def single() -> Any:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return run()
        finally:
            torch.set_num_threads(threads)

    return single


def identifier(value: object) -> str:
    """A test's id that -k can name: rbf-gradient-float32-N64-D64-eager."""
    return str(value).replace("N=M=", "N").replace("=", "").replace(" ", "-")


MARKS = [
    # rivals' own: what torch deprecates is used by torch's compiler and by gpytorch's linear_operator
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch._prims_common.check` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    # a wrong row is not timed, and says so itself
    pytest.mark.filterwarnings("ignore:Benchmark fixture was not used"),
]
