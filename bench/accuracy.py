"""Worst errors of gkfast, and of what people use instead, on data made to break kernels.

    python -m bench.accuracy

writes bench/results/accuracy.csv and accuracy.png, and ends with status 1 where gkfast breaks its contract. Every
library gets the same rounded inputs; the truth is computed from these in float64, with distances as sums of squared
differences, and is itself checked against `backend="reference"`. bfloat16 and float16 results are held to float32's
contract plus twice the rounding of the result; what rounding the inputs alone does to the truth stands beside them.
GPyTorch and GeomLoss take part where installed.
"""

import argparse
import csv
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import gkfast
from bench import datasets
from bench.rivals import squared_distance

RESULTS = Path(__file__).parent / "results"
DIMS = (1, 2, 3, 16, 17, 33, 64, 513, 784, 3072)
DTYPES = ("float64", "float32", "bfloat16", "float16")


class Inputs(NamedTuple):
    """What every operation takes: points, cotangents and directions, all of one dtype, and the bandwidth."""

    x: Tensor  # (N, D)
    y: Tensor  # (M, D); a quarter of its rows are rows of x
    v: Tensor  # (M,) positive
    g: Tensor  # (N, M)
    u: Tensor  # (N, D)
    sigma: float

    def to(self, dtype: torch.dtype) -> "Inputs":
        """Rounded; only the points are data, so only they carry a gradient."""
        x, y, v, g, u = (t.to(dtype) for t in self[:5])
        return Inputs(x.requires_grad_(), y.requires_grad_(), v, g, u, self.sigma)

    @property
    def scale(self) -> float:
        """The power of two next to sigma: multiplying with it rounds nothing."""
        return 2.0 ** round(math.log2(self.sigma))

    @property
    def representable(self) -> bool:
        """Whether the points and the cotangents, which carry the scale, are numbers of the dtype of x."""
        limits = torch.finfo(self.x.dtype)
        largest = max(float(t.detach().double().abs().max()) for t in (self.x, self.y))
        finite = all(t.isfinite().all() for t in (self.x, self.y, self.g * self.scale, self.u * self.scale))
        return finite and min(largest, self.sigma) >= limits.tiny and self.sigma <= limits.max


DATASETS = {
    f.__name__: f
    for f in (
        datasets.plain,
        datasets.offset,
        datasets.far_clusters,
        datasets.duplicates,
        datasets.narrow,
        datasets.sigma_200,
        datasets.sigma_1000,
        datasets.tiny,
        datasets.huge,
        datasets.grey,
    )
}


def drawn(dataset: str, dims: int) -> Inputs:
    """In float64. The truth stores N M D numbers a few times over, so there are fewer rows where D is large."""
    rng = np.random.default_rng(20)
    rows = 150 if dims <= 64 else 45
    points, sigma = DATASETS[dataset](rng, rows, dims)
    # neighbours stay together, so that near pairs lie between the two sets as well
    x, y = points[: rows // 2], points[rows // 3 :]
    v, g, u = rng.uniform(0.1, 1, len(y)), rng.normal(size=(len(x), len(y))), rng.normal(size=x.shape)
    return Inputs(*(torch.from_numpy(a) for a in (x, y, v, g, u)), sigma)


class Library(NamedTuple):
    """Functions of x, y and sigma (matmul: of v as well); None where the library has no such thing."""

    rbf: Callable[..., Tensor] | None = None
    matmul: Callable[..., Tensor] | None = None
    log_density: Callable[..., Tensor] | None = None
    score: Callable[..., Tensor] | None = None
    means: Callable[..., Tensor] | None = None
    mmd2: Callable[..., Tensor] | None = None


def from_kernel(rbf: Callable[..., Tensor], **others: Callable[..., Tensor]) -> Library:
    """Products and means of the stored matrix, as people write them."""

    def means(x: Tensor, y: Tensor, sigma: float) -> Tensor:
        return torch.stack([rbf(p, q, sigma).mean() for p, q in ((x, x), (y, y), (x, y))])

    def mmd2(x: Tensor, y: Tensor, sigma: float) -> Tensor:
        xx, yy, xy = means(x, y, sigma)
        return xx + yy - 2 * xy

    complete = {"means": means, "mmd2": mmd2} | others
    return Library(rbf, lambda x, y, v, sigma: rbf(x, y, sigma) @ v, **complete)


def from_distance(distance: Callable[[Tensor, Tensor], Tensor], **others: Callable[..., Tensor]) -> Library:
    """Everything from squared distances, as people write it."""

    def exponents(x: Tensor, y: Tensor, sigma: float) -> Tensor:
        return distance(x, y) / (-2 * sigma * sigma)

    def rbf(x: Tensor, y: Tensor, sigma: float) -> Tensor:
        return exponents(x, y, sigma).exp()

    def log_density(x: Tensor, y: Tensor, sigma: float) -> Tensor:
        normaliser = math.log(len(y)) + x.shape[1] * (math.log(sigma) + 0.5 * math.log(2 * math.pi))
        return exponents(x, y, sigma).logsumexp(1) - normaliser

    def score(x: Tensor, y: Tensor, sigma: float) -> Tensor:
        return (exponents(x, y, sigma).softmax(1) @ y - x) / sigma**2

    return from_kernel(rbf, **({"log_density": log_density, "score": score} | others))


def _differences(x: Tensor, y: Tensor) -> Tensor:
    return (x[:, None] - y[None]).square().sum(-1)


def _exact_score(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    p = (_differences(x, y) / (-2 * sigma * sigma)).softmax(1)
    return torch.einsum("nm,nmd->nd", p, y[None] - x[:, None]) / sigma**2


def _exact_mmd2(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    # of k - 1, whose weights sum to zero: otherwise the truth would lose digits too
    xx, yy, xy = (torch.expm1(_differences(p, q) / (-2 * sigma * sigma)).mean() for p, q in ((x, x), (y, y), (x, y)))
    return xx + yy - 2 * xy


EXACT = from_distance(_differences, score=_exact_score, mmd2=_exact_mmd2)


def _of_gkfast(**options: str) -> Library:
    return Library(
        rbf=lambda x, y, sigma: gkfast.rbf(x, y, sigma, **options),
        matmul=lambda x, y, v, sigma: gkfast.rbf_matmul(x, y, v, sigma, **options),
        log_density=lambda x, y, sigma: gkfast.log_density(x, y, sigma, **options),
        score=lambda x, y, sigma: gkfast.score(x, y, sigma, **options),
        means=lambda x, y, sigma: torch.stack(gkfast.kernel_means(x, y, sigma, estimator="biased", **options)),
        mmd2=lambda x, y, sigma: gkfast.mmd2(x, y, sigma, estimator="biased", **options),
    )


def libraries() -> dict[str, Library]:
    found = {
        "gkfast": _of_gkfast(),
        "torch.cdist": from_distance(lambda x, y: torch.cdist(x, y) ** 2),
        "torch GEMM form": from_distance(squared_distance),
    }
    try:
        from gpytorch.kernels import RBFKernel

        def rbf(x: Tensor, y: Tensor, sigma: float | Tensor) -> Tensor:
            kernel = RBFKernel().to(x.dtype).requires_grad_(False)
            if isinstance(sigma, Tensor):
                # in place of the parameter, which would be a copy: so the derivative at sigma arrives
                raw = kernel.raw_lengthscale_constraint.inverse_transform(sigma.to(x.dtype)).reshape(1, 1)
                del kernel.raw_lengthscale
                kernel.raw_lengthscale = raw
            else:
                kernel.lengthscale = sigma
            return kernel.forward(x, y)

        found["GPyTorch"] = from_kernel(rbf)
    except ImportError:
        print("GPyTorch is not installed: no rows of it")
    try:
        from geomloss import SamplesLoss

        # half of MMD^2
        found["GeomLoss"] = Library(
            mmd2=lambda x, y, sigma: 2 * SamplesLoss("gaussian", blur=sigma, backend="tensorized")(x, y)
        )
    except ImportError:
        print("GeomLoss is not installed: no rows of it")
    return found


# Cotangents carry a factor sigma for each derivative, so that results are of order one for data of every magnitude.


def _first(value: Tensor, p: Inputs, cotangent: Tensor, keep: bool = False) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, (p.x, p.y), cotangent.to(value.dtype) * p.scale, create_graph=keep)


def _second(value: Tensor, p: Inputs, cotangent: Tensor) -> Tensor:
    """Derivative of the gradient at x along u: a Hessian-vector product."""
    dx, _ = _first(value, p, cotangent, keep=True)
    return _flat(torch.autograd.grad(dx, (p.x, p.y), p.u * p.scale))


def _through_sigma(function: Callable[..., Tensor], p: Inputs) -> Tensor:
    """Gradient at x and y of the derivative at sigma."""
    sigma = torch.tensor(p.sigma, dtype=torch.float64, requires_grad=True)
    value = function(p.x, p.y, sigma)
    (slope,) = torch.autograd.grad(value, sigma, MEAN.to(value.dtype) * p.scale, create_graph=True)
    return _flat(torch.autograd.grad(slope, (p.x, p.y), torch.full_like(slope, p.scale)))


def _flat(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


# cotangent of a mean over rows: about their number, so that no row's gradient is near where float16 ends
MEAN = torch.tensor(64.0)


class Operation(NamedTuple):
    needs: str  # the field of Library
    measure: str  # of errors: "absolute" or "of largest" (greatest entry), or "in norm" (relative)
    contract: dict[str, float]
    run: Callable[[Library, Inputs], Tensor]


# as in tests/conftest.py
GRADIENT = {"float32": 1e-5, "float64": 1e-11}
SUM = {"float32": 2e-6, "float64": 1e-13}
# each order of derivative loses a digit
SECOND = {
    "float32": 1e-4,
    # products of coordinates cancel: eps times the square of what the points are apart, 1000 sigma at most here
    "float64": 1e-9,
}
# a difference of means; as plain code has it, no digit of it need be right
DIFFERENCE = {"float32": 1e-4, "float64": 1e-11}

OPERATIONS = {
    "rbf": Operation(
        "rbf",
        "absolute",
        {"float32": 1e-6, "float64": 1e-14},
        lambda lib, p: lib.rbf(p.x, p.y, p.sigma),
    ),
    "rbf gradient": Operation(
        "rbf", "in norm", GRADIENT, lambda lib, p: _flat(_first(lib.rbf(p.x, p.y, p.sigma), p, p.g))
    ),
    "rbf second derivative": Operation(
        "rbf", "in norm", SECOND, lambda lib, p: _second(lib.rbf(p.x, p.y, p.sigma), p, p.g)
    ),
    "rbf_matmul": Operation("matmul", "of largest", SUM, lambda lib, p: lib.matmul(p.x, p.y, p.v, p.sigma)),
    "rbf_matmul gradient": Operation(
        "matmul", "in norm", GRADIENT, lambda lib, p: _flat(_first(lib.matmul(p.x, p.y, p.v, p.sigma), p, p.g[:, 0]))
    ),
    "log_density": Operation(
        "log_density",
        "of largest",
        {"float32": 2e-6, "float64": 1e-13},
        # a value alone, which float32 data get in float32
        lambda lib, p: lib.log_density(p.x.detach(), p.y.detach(), p.sigma),
    ),
    "score": Operation("score", "in norm", GRADIENT, lambda lib, p: lib.score(p.x, p.y, p.sigma)),
    "kernel_means": Operation("means", "of largest", SUM, lambda lib, p: lib.means(p.x, p.y, p.sigma)),
    "mmd2": Operation("mmd2", "in norm", DIFFERENCE, lambda lib, p: lib.mmd2(p.x, p.y, p.sigma)),
    "mmd2 gradient": Operation(
        "mmd2", "in norm", GRADIENT, lambda lib, p: _flat(_first(lib.mmd2(p.x, p.y, p.sigma), p, MEAN))
    ),
    "mmd2 second derivative": Operation(
        "mmd2", "in norm", SECOND, lambda lib, p: _second(lib.mmd2(p.x, p.y, p.sigma), p, MEAN)
    ),
    "mmd2 derivative at x and sigma": Operation(
        "mmd2", "in norm", SECOND, lambda lib, p: _through_sigma(lib.mmd2, p)
    ),
}


def error_of(found: Tensor, truth: Tensor, measure: str) -> float:
    """NaN where the result has a NaN."""
    difference = found.detach().double() - truth
    if difference.isnan().any():
        return math.nan
    if measure == "in norm":
        error, scale = difference.norm().item(), truth.norm().item()
    else:
        error, scale = difference.abs().max().item(), truth.abs().max().item()
    # where all points are one, derivatives are zero, and their scale that of the cotangents
    return error if measure == "absolute" or scale == 0 else error / scale


@dataclass(frozen=True)
class Row:
    """The worst result over dimensions of one library, and what it is held against."""

    op: str
    dtype: str
    dataset: str
    library: str
    D: int
    measure: str
    error: float | str
    bound: float
    rounding_of_inputs: float  # what rounding the points to the dtype does to the exact result
    rounding_of_result: float  # what rounding the exact result to the dtype of the answer does

    @property
    def holds(self) -> bool:
        return not isinstance(self.error, str) and self.error <= self.bound

    @property
    def badness(self) -> float:
        """For the worst: errors and NaN beat numbers, which are compared in units of their bounds."""
        return math.inf if isinstance(self.error, str) or math.isnan(self.error) else self.error / self.bound


def attempt(op: Operation, library: Library, p: Inputs) -> Tensor | str:
    """The result, or what went wrong."""
    try:
        with warnings.catch_warnings():
            # rivals' own: deprecations, and casts of complex code paths
            warnings.simplefilter("ignore")
            return op.run(library, p).detach()
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as problem:
        return f"error: {str(problem).splitlines()[0]}"


def _bound(op: str, dtype: str, log_density: Tensor, rounding_of_result: float) -> float:
    contract = OPERATIONS[op].contract
    if dtype not in contract:
        # computed in float32, and rounded: an entry at the edge of two numbers may go to the farther one
        return contract["float32"] + 2 * rounding_of_result
    # a softmax over exponents of this size is known to their rounding, by the truth as well
    exponents = log_density.abs().max().item() * 1e-15 if op == "score" else 0.0
    return contract[dtype] + exponents


def rows_of(dataset: str, dims: int, found: dict[str, Library]) -> Iterator[Row]:
    original = drawn(dataset, dims)
    unrounded = {name: op.run(EXACT, original.to(torch.float64)).detach() for name, op in OPERATIONS.items()}
    for dtype in DTYPES:
        p = original.to(getattr(torch, dtype))
        if not p.representable:
            continue
        exact = unrounded
        if dtype != "float64":
            wide = Inputs(*(t.detach() for t in p[:5]), p.sigma).to(torch.float64)
            exact = {name: op.run(EXACT, wide).detach() for name, op in OPERATIONS.items()}
        for name, op in OPERATIONS.items():
            truth = exact[name]
            for whose, library in found.items():
                if getattr(library, op.needs) is None:
                    continue
                result = attempt(op, library, p)
                of_result = 0.0 if isinstance(result, str) else error_of(truth.to(result.dtype), truth, op.measure)
                if not math.isfinite(of_result):
                    # a truth beyond float16 is nobody's error
                    continue
                yield Row(
                    op=name,
                    dtype=dtype,
                    dataset=dataset,
                    library=whose,
                    D=dims,
                    measure=op.measure,
                    error=result if isinstance(result, str) else error_of(result, truth, op.measure),
                    bound=_bound(name, dtype, exact["log_density"], of_result),
                    rounding_of_inputs=error_of(truth, unrounded[name], op.measure),
                    rounding_of_result=of_result,
                )


def check_truth() -> None:
    """The truth of this file is the reference's, which cannot store second derivatives of many coordinates."""
    for dataset in ("plain", "duplicates", "far_clusters"):
        p = drawn(dataset, 3).to(torch.float64)
        for name, op in OPERATIONS.items():
            error = error_of(op.run(EXACT, p), op.run(_of_gkfast(backend="reference"), p).detach(), op.measure)
            if not error <= 1e-11:
                sys.exit(f"the truth of {name} on {dataset} is not the reference's: {error:.1e}")


def cmmd_rows(found: dict[str, Library]) -> Iterator[Row]:
    """CMMD's setting: 5000 embeddings of 768 coordinates and norm one, sigma 10, two populations that are close."""
    rng = np.random.default_rng(20)
    common, shift = 1.5 * rng.normal(size=768), 0.03 * rng.normal(size=768)
    x, y = (rng.normal(size=(5000, 768)) + centre for centre in (common, common + shift))
    x, y = (torch.from_numpy((a / np.linalg.norm(a, axis=1, keepdims=True)).astype(np.float32)) for a in (x, y))
    nothing = x.new_zeros(0)
    p = Inputs(x.requires_grad_(), y.requires_grad_(), nothing, nothing, nothing, 10.0)
    value, *gradient = _exact_cmmd(x.detach().double(), y.detach().double(), p.sigma)
    truths = {"mmd2": value, "mmd2 gradient": _flat(gradient) * p.scale * float(MEAN)}
    for whose, library in found.items():
        for name, truth in truths.items():
            op = OPERATIONS[name]
            result = attempt(op, library, p)
            yield Row(
                op=name,
                dtype="float32",
                dataset="cmmd",
                library=whose,
                D=768,
                measure=op.measure,
                error=result if isinstance(result, str) else error_of(result, truth, op.measure),
                bound=op.contract["float32"],
                rounding_of_inputs=math.nan,
                rounding_of_result=0.0,
            )


def _exact_cmmd(x: Tensor, y: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """MMD^2 (biased) and its gradients in float64, in blocks of rows.

    Rows have norm one, so squared distances from products are right to 1e-15, and exponents to 1e-17.
    """
    value = x.new_zeros(())
    gradients = [torch.zeros_like(x), torch.zeros_like(y)]
    for mine, points in enumerate((x, y)):
        for other, others in enumerate((x, y)):
            share = (1.0 if mine == other else -1.0) / (len(points) * len(others))
            for begin in range(0, len(points), 500):
                rows = points[begin : begin + 500]
                k_minus_one = torch.expm1(squared_distance(rows, others) / (-2 * sigma**2))
                value = value + share * k_minus_one.sum()
                k = k_minus_one + 1
                pull = k @ others - k.sum(1, keepdim=True) * rows
                gradients[mine][begin : begin + 500] += 2 * share / sigma**2 * pull
    return value, *gradients


def worst_of(rows: Iterable[Row]) -> list[Row]:
    """One row for each operation, dtype, dataset and library."""
    worst: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = (row.op, row.dtype, row.dataset, row.library)
        if key not in worst or row.badness > worst[key].badness:
            worst[key] = row
    return list(worst.values())


def save(rows: list[Row], path: Path) -> None:
    def text(value: object) -> object:
        return f"{value:.2e}" if isinstance(value, float) else value

    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        fields = [*Row.__dataclass_fields__, "holds"]
        writer.writerow(fields)
        writer.writerows([text(getattr(row, field)) for field in fields] for row in rows)


MARKS = {
    "gkfast": ("o", "#0b6e4f"),
    "torch GEMM form": ("v", "#d1495b"),
    "torch.cdist": ("^", "#edae49"),
    "GPyTorch": ("s", "#5b7db1"),
    "GeomLoss": ("D", "#8d6a9f"),
}
MEASURED = {"absolute": "absolute", "of largest": "relative to the largest", "in norm": "relative, in norm"}
# results without a digit, and no results at all, are drawn on these lines
WRONG, FAILED = 30.0, 3000.0


def draw(rows: list[Row], dtype: str, path: Path) -> None:
    """One panel for each operation: datasets along it, and for each library the worst error over dimensions."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    datasets = [*DATASETS, "cmmd"]
    figure, axes = plt.subplots(
        len(OPERATIONS) // 2, 2, figsize=(10, 12), sharex=True, sharey=True, layout="constrained"
    )
    for axis, (name, op) in zip(axes.T.flat, OPERATIONS.items(), strict=True):
        for k, (library, (mark, colour)) in enumerate(MARKS.items()):
            mine = [row for row in rows if (row.op, row.dtype, row.library) == (name, dtype, library)]
            at = [datasets.index(row.dataset) + 0.14 * (k - 2) for row in mine]
            axis.plot(at, [_height(row) for row in mine], mark, color=colour, ms=6 if k == 0 else 5, label=library)
        axis.axhline(op.contract[dtype], color="#0b6e4f", lw=1, ls="--")
        axis.axhspan(WRONG / 5, FAILED * 10, color="0.93", lw=0)
        axis.set_title(f"{name} ({MEASURED[op.measure]})", fontsize=10, loc="left", pad=3)
        axis.set(yscale="log", ylim=(1e-9, FAILED * 10), xlim=(-0.6, len(datasets) - 0.4))
        axis.set_yticks(
            [1e-8, 1e-6, 1e-4, 1e-2, 1, WRONG, FAILED], ["1e-8", "1e-6", "1e-4", "1e-2", "1", "> 1", "fails"]
        )
        axis.minorticks_off()
        for k in range(1, len(datasets)):
            axis.axvline(k - 0.5, color="0.85", lw=0.6)
        axis.tick_params(labelsize=8)
    for axis in axes[-1]:
        axis.set_xticks(range(len(datasets)), datasets, rotation=35, ha="right", fontsize=9)
    handles, labels = axes[-1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5, frameon=False)
    label = (
        f"worst error in {dtype}, D from {DIMS[0]} to {DIMS[-1]} (dashed: gkfast's contract; fails: NaN, or raises)"
    )
    figure.supylabel(label, fontsize=9)
    figure.savefig(path, dpi=100)


def _height(row: Row) -> float:
    if isinstance(row.error, str) or not math.isfinite(row.error):
        return FAILED
    return WRONG if row.error > 2 else max(row.error, 2e-9)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("--dims", type=int, nargs="+", default=DIMS, help="numbers of coordinates")
    parser.add_argument("--no-cmmd", action="store_true", help="leave out the 5000 embeddings, which take a minute")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    check_truth()
    found = libraries()
    rows: list[Row] = []
    threads = torch.get_num_threads()
    for dataset in [*DATASETS, *([] if options.no_cmmd else ["cmmd"])]:
        start = time.perf_counter()
        # small problems only wait for a second thread
        torch.set_num_threads(threads if dataset == "cmmd" else 1)
        if dataset == "cmmd":
            new = worst_of(cmmd_rows(found))
        else:
            new = worst_of(row for dims in options.dims for row in rows_of(dataset, dims, found))
        rows += new
        print(f"{dataset:13}{time.perf_counter() - start:6.1f} s  {_summary(new)}", flush=True)
    rows.sort(key=lambda row: (list(OPERATIONS).index(row.op), DTYPES.index(row.dtype)))
    options.out.mkdir(parents=True, exist_ok=True)
    save(rows, options.out / "accuracy.csv")
    draw(rows, "float32", options.out / "accuracy.png")
    halves = [row for row in rows if row.library == "gkfast" and row.dtype in ("bfloat16", "float16")]
    within = [row for row in halves if row.holds and row.error <= 2 * row.rounding_of_inputs]
    print(f"halves: {len(within)} of {len(halves)} rows within twice the error of rounding the inputs")
    broken = [row for row in rows if row.library == "gkfast" and not row.holds]
    for row in broken:
        error = row.error if isinstance(row.error, str) else f"{row.error:.1e}"
        print(f"BROKEN: {row.op}, {row.dtype}, {row.dataset}, D = {row.D}: {error}, allowed {row.bound:.1e}")
    print(f"rows in {options.out / 'accuracy.csv'}, picture in {options.out / 'accuracy.png'}")
    return 1 if broken else 0


def _summary(rows: list[Row]) -> str:
    """In how many rows each library keeps gkfast's contract."""
    counts = []
    for library in MARKS:
        mine = [row for row in rows if row.library == library]
        if mine:
            counts.append(f"{library} {sum(row.holds for row in mine)}/{len(mine)}")
    return "contract held: " + ", ".join(counts)


if __name__ == "__main__":
    sys.exit(main())
