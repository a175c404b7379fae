"""The cases of bench/gpu.py: what gkfast and rivals compute, its error against float64, and its targets."""

import importlib.util
import math
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


def load():
    """gkfast of this checkout, whose folder kernels/ is the package gkfast.kernels."""
    sys.path.insert(0, str(ROOT))
    import gkfast

    if importlib.util.find_spec("gkfast.kernels") is None:
        place = ROOT / "kernels/__init__.py"
        spec = importlib.util.spec_from_file_location(
            "gkfast.kernels", place, submodule_search_locations=[str(place.parent)]
        )
        package = importlib.util.module_from_spec(spec)
        sys.modules["gkfast.kernels"] = package
        spec.loader.exec_module(package)
        gkfast.kernels = package


DEVICE = "cuda"
# against float64, where sigma is of the data's scale, for "highest", "high" and "medium": kernels/gpu/README.md. What
# an error is a share of is in reference_outputs
TOLERANCE = {
    "matrix": (1e-6, 2e-4, 4e-2),
    "matrix gradient": (1e-5, 1e-4, 2e-2),
    "matmul": (2e-6, 1e-4, 2e-2),
    "matmul gradient": (1e-5, 1e-4, 2e-2),
    "signs": (2e-6, 1e-4, 2e-2),
    "density": (2e-7, 2**-14, 2**-6),
    "score": (1e-5, 2**-13, 2**-5),
    "mmd2": (2e-6, 1e-4, 2e-2),
    # a difference of two sums
    "mmd2 gradient": (1e-5, 5e-4, 1e-1),
    "mmd2 call": (1e-5, 5e-4, 1e-1),
}
# a rival's is float32 with the cancellation of |x|^2 + |y|^2 - 2 x.y
RIVAL_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Case:
    op: str
    n: int
    m: int
    d: int
    # gkfast's precisions, and rivals
    runs: tuple[str, ...]
    graph: bool = False
    # of v
    columns: int = 1
    # five bandwidths, each twice the one before
    ladder: bool = False

    @property
    def name(self):
        columns = f" E={self.columns}" if self.columns > 1 else ""
        return (
            f"{self.op} N={self.n} M={self.m} D={self.d}{columns}"
            f"{' ladder' if self.ladder else ''}{' graph' if self.graph else ''}"
        )

    @property
    def pairs(self):
        """Kernel values that the answer needs: half of those of a set with itself."""
        own = (self.n**2 + self.m**2) // 2 if self.op.startswith("mmd2") else 0
        return own + self.n * self.m

    def ceilings(self, products):
        """exp2 values, multiply-adds of tensor cores, bytes."""
        # distances; then what the kernel is multiplied with: for MMD^2 and a matrix at both ends of a pair
        lengths = self.d * {"matrix gradient": 3, "mmd2 gradient": 3, "mmd2 call": 3}.get(
            self.op, 2 if self.op in ("matmul gradient", "score") else 1
        )
        lengths += self.columns if self.columns > 1 else 0
        # the gradient of a matrix reads g, writes the weights of the pulls, and reads these for x and for y
        stored = {"matrix": 1, "matrix gradient": 4}.get(self.op, 0)
        moved = 4 * (self.n + self.m) * self.d + 4 * stored * self.n * self.m
        # by differences, where there are few coordinates
        few = self.d <= 4 and self.columns == 1
        # a ladder of five takes two, the others are squares
        return self.pairs * (2 if self.ladder else 1), 0 if few else self.pairs * lengths * products, moved


OURS = ("highest", "high", "medium")
SMALL_RIVALS = ("eager", "compiled", "cdist")
# they compile for tens of seconds, so they run when all others have run
SLOW_TO_START = ("compiled", "keops")


def products_of(gpu, case, name):
    """Products of pieces that a precision takes; of a rival one."""
    if name not in OURS:
        return 1
    return gpu.points.PRODUCTS["log-density" if (name, case.op) in _BY_BITS else name]


# log-densities, in which every bit of a point counts
_BY_BITS = {("highest", "density"), ("highest", "score")}


def rivals(n, m, *others):
    """Those that store the matrix, where a few copies of it are no more than 10 GB; and others."""
    return (*(SMALL_RIVALS if n * m <= 4 * 10**8 else ()), *others)


# these come first: a GAN batch, then K @ v, matrices and densities
HEADLINES = (
    "mmd2 call N=1024 M=1024 D=128 graph",
    "mmd2 call N=1024 M=1024 D=128",
    "mmd2 gradient N=1024 M=1024 D=128 graph",
    "mmd2 gradient N=4096 M=4096 D=64",
    "mmd2 gradient N=1024 M=1024 D=64 ladder",
    "mmd2 gradient N=65536 M=65536 D=64",
    "matmul N=100000 M=100000 D=3",
    "matmul N=50000 M=50000 D=64",
    "matmul N=8192 M=65536 D=16",
    "matrix N=16384 M=16384 D=3",
    "matrix N=16384 M=16384 D=64",
    "matrix N=16384 M=16384 D=784",
    "density N=8192 M=65536 D=16",
    "score N=8192 M=65536 D=16",
    "matmul gradient N=20000 M=20000 D=64",
    "mmd2 gradient N=16384 M=16384 D=64",
    "mmd2 N=16384 M=16384 D=64",
)


def cases():
    """The most informative first."""
    return sorted(_cases(), key=lambda case: HEADLINES.index(case.name) if case.name in HEADLINES else len(HEADLINES))


def _cases():
    # KeOps's README
    sizes = (10_000, 100_000, 1_000_000)
    found = [Case("matmul", n, n, 3, ("highest", *rivals(n, n, "chunked", "keops"))) for n in sizes]
    # the sizes of Flash-SD-KDE's appendix A: N training rows, N / 8 queries
    sizes = (2048, 4096, 8192, 16384, 32768, 65536)
    found += [Case("density", n // 8, n, 16, (*OURS, "compiled", "chunked", "keops")) for n in sizes]
    found += [Case("score", n // 8, n, 16, (*OURS, "compiled", "chunked")) for n in (2048, 8192, 32768, 65536)]
    for n in (32768, 65536, 1_048_576):
        found.append(Case("matmul", n // 8, n, 16, (*OURS, *rivals(n // 8, n, "chunked", "keops"))))
    # FlashSinkhorn's
    for n in (5_000, 10_000, 20_000, 50_000):
        found.append(Case("matmul", n, n, 64, (*OURS, *rivals(n, n, "chunked", "keops"))))
    for n in (5_000, 20_000, 50_000):
        found.append(Case("matmul gradient", n, n, 64, (*OURS, "chunked", "checkpoint", "keops")))
    # relabellings of a permutation test
    found += [Case("signs", n, n, 16, (*OURS, "chunked"), columns=512) for n in (2048, 16384)]
    found += [Case("matrix", 16384, 16384, d, (*OURS, *SMALL_RIVALS)) for d in (3, 16, 64, 256, 784)]
    # more than 2^31 entries
    found.append(Case("matrix", 50_000, 50_000, 3, ("highest",)))
    found += [Case("matrix gradient", n, n, d, (*OURS, "eager")) for n, d in ((4096, 3), (8192, 64), (8192, 784))]
    # an attention's shape
    found += [
        Case("matmul", 16384, 16384, d, (*OURS, "chunked"), columns=e) for d, e in ((3, 64), (64, 64), (64, 512))
    ]
    found += [Case("matmul gradient", 8192, 8192, 64, (*OURS, "chunked"), columns=16)]
    found += [Case("mmd2 gradient", n, n, 64, (*OURS, "eager"), ladder=True) for n in (256, 1024, 8192)]
    found += [Case("mmd2", n, n, 64, (*OURS, "eager"), ladder=True) for n in (1024, 16384)]
    found += [
        Case("mmd2 gradient", n, n, 64, (*OURS, *(SMALL_RIVALS if n <= 16384 else ()), "checkpoint"))
        for n in (64, 256, 1024, 4096, 16384, 65536)
    ]
    found += [Case("mmd2", n, n, 64, (*OURS, "eager")) for n in (1024, 16384)]
    # latency of a GAN's batch: the kernels, and the public function as a training step calls it
    for op, graph in (("mmd2 gradient", False), ("mmd2 gradient", True), ("mmd2 call", False), ("mmd2 call", True)):
        runs = ("highest", "eager") if graph else ("highest", "eager", "compiled")
        found += [Case(op, n, n, 128, runs, graph) for n in (64, 256, 1024)]
    return found


# Tp/s wanted of an H200 at the largest size of an operation, by columns 1 and no ladder: 62 to 85 % of what its
# exp2, bfloat16 and store rates allow
TARGETS = {
    ("matmul", 3, "highest"): 2.9,
    ("matmul", 16, "highest"): 2.0,
    ("matmul", 16, "high"): 2.6,
    ("matmul", 64, "highest"): 0.75,
    ("matmul", 64, "high"): 1.35,
    ("matmul", 64, "medium"): 2.5,
    ("matrix", 3, "highest"): 0.92,
    ("matrix", 16, "highest"): 0.92,
    ("matrix", 64, "highest"): 0.92,
    ("matrix", 784, "high"): 0.13,
    ("matrix", 784, "medium"): 0.38,
    ("score", 16, "high"): 1.9,
    ("matmul gradient", 64, "high"): 0.75,
    ("matmul gradient", 64, "medium"): 1.6,
}
# how many times as fast as this rival, where both ran
FASTER = {("matmul", 3, "keops"): 1.4, ("matmul", 16, "keops"): 5.0, ("matmul", 64, "keops"): 5.0}
# MMD^2 with both gradients takes at most so many times as long as its value alone
GRADIENT_OVER_VALUE = 2.2
# milliseconds of a batch of 1024, the public function, replayed as a graph
LATENCY = 0.025


def targets(rows):
    """Lines: each target, what was measured, whether it is met. Of what was not run none is met or missed."""
    timed = {(row["case"], row["run"]): row for row in rows if "ms" in row}
    plain = [case for case in cases() if case.columns == 1 and not case.ladder and not case.graph]

    def largest(op, d, run):
        found = [case for case in plain if (case.op, case.d) == (op, d) and (case.name, run) in timed]
        return max(found, key=lambda case: case.pairs, default=None)

    def line(what, measured, wanted, met):
        return f"{'met' if met else 'MISSED':7} {what}: {measured:.3g}, wanted {wanted:g}"

    for (op, d, run), wanted in TARGETS.items():
        case = largest(op, d, run)
        if case is not None:
            reached = timed[case.name, run]["Tp/s"]
            yield line(f"{case.name} {run}, Tp/s", reached, wanted, reached >= wanted)
    for (op, d, rival), wanted in FASTER.items():
        case = largest(op, d, rival)
        if case is not None and (case.name, "highest") in timed:
            ratio = timed[case.name, rival]["ms"] / timed[case.name, "highest"]["ms"]
            yield line(f"{case.name} highest, times as fast as {rival}", ratio, wanted, ratio >= wanted)
    value, gradient = (f"{op} N=16384 M=16384 D=64" for op in ("mmd2", "mmd2 gradient"))
    for run in OURS:
        if (value, run) in timed and (gradient, run) in timed:
            ratio = timed[gradient, run]["ms"] / timed[value, run]["ms"]
            what = f"{gradient} {run}, times as long as the value"
            yield line(what, ratio, GRADIENT_OVER_VALUE, ratio <= GRADIENT_OVER_VALUE)
    call = "mmd2 call N=1024 M=1024 D=128 graph"
    if (call, "highest") in timed:
        took = timed[call, "highest"]["ms"]
        yield line(f"{call} highest, ms", took, LATENCY, took <= LATENCY)


def sigmas_of(case):
    return [float(case.d) ** 0.5 * step for step in ((0.25, 0.5, 1.0, 2.0, 4.0) if case.ladder else (1.0,))]


def inputs(case):
    generator = torch.Generator(device=DEVICE).manual_seed(20)
    x, y = (
        torch.randn(1, rows, case.d, device=DEVICE, generator=generator) + shift
        for rows, shift in ((case.n, 0.0), (case.m, 0.3))
    )
    v = torch.rand(1, case.m, case.columns, device=DEVICE, generator=generator)
    return x, y, v


def coefficients(case):
    """g (1, N, M) of the gradient of a matrix, (1, N, E) of that of a product."""
    generator = torch.Generator(device=DEVICE).manual_seed(21)
    width = case.m if case.op == "matrix gradient" else case.columns
    return torch.rand(1, case.n, width, device=DEVICE, generator=generator)


def mixture(squares, sigmas):
    return sum(torch.exp(squares / (-2 * sigma * sigma)) for sigma in sigmas)


def pulling(squares, sigmas):
    return sum(torch.exp(squares / (-2 * sigma * sigma)) / sigma**2 for sigma in sigmas)


def dot_squares(x, y):
    """|x|^2 + |y|^2 - 2 x.y, as people write it."""
    return x.square().sum(-1)[..., :, None] + y.square().sum(-1)[..., None, :] - 2 * x @ y.mT


def kernel_matrix(x, y, sigmas):
    return mixture(dot_squares(x, y), sigmas)


def cdist_matrix(x, y, sigmas):
    return mixture(torch.cdist(x, y).square(), sigmas)


def pull_of(weights, p, y):
    """sum_j weights_ij (y_j - p_i)"""
    return weights @ y - p * weights.sum(-1, keepdim=True)


def mmd2_of(x, y, sigmas, matrix=kernel_matrix):
    """The matrix may be summed already."""
    n, m, own = x.shape[-2], y.shape[-2], len(sigmas)
    xx, yy, xy = (matrix(p, q, sigmas).sum() for p, q in ((x, x), (y, y), (x, y)))
    return (xx - own * n) / (n * (n - 1)) + (yy - own * m) / (m * (m - 1)) - 2 * xy / (n * m)


def with_gradient(function, *points):
    """The value, and its gradients to the points."""
    points = [p.detach().clone().requires_grad_() for p in points]

    def run():
        value = function(*points)
        return value.detach(), *torch.autograd.grad(value, points)

    return run


def in_chunks(function, x, rows):
    return torch.cat([function(part) for part in x.split(rows, 1)], 1)


def checkpointed(function):
    """Its inner values are computed again for the gradient."""
    from torch.utils.checkpoint import checkpoint

    return partial(checkpoint, function, use_reentrant=False)


def kernel_sum(x, y, sigmas):
    """Of the matrix, by rows of which a gradient keeps nothing."""
    block = checkpointed(lambda p, q: kernel_matrix(p, q, sigmas).sum())
    return torch.stack([block(p, y) for p in x.split(2**28 // y.shape[1], 1)]).sum()


def reference_outputs(case, x, y, v):
    """In float64, at up to 512 rows of x, as the runs return them; each with what its error is a share of.

    An error is the greatest of a matrix or a density, else the norm.
    """
    chosen = chosen_rows(case)
    sigmas, some, y, v = sigmas_of(case), x[:, chosen].double(), y.double(), v.double()
    sigma = sigmas[0]

    def squared(p):
        return torch.stack([(p[:, i : i + 1] - y).square().sum(-1) for i in range(p.shape[1])], 1)

    if case.op == "matrix":
        return [(in_chunks(lambda p: mixture(squared(p), sigmas), some, 64), 1.0)]
    if case.op == "matmul":
        return [of_norm(in_chunks(lambda p: mixture(squared(p), sigmas) @ v, some, 64))]
    if case.op == "signs":
        y = x.double()
        # a point is 0 from itself, where K - 1 is 0
        return [of_norm(in_chunks(lambda p: torch.expm1(squared(p) / (-2 * sigma**2)) @ v, some, 64))]
    if "gradient" in case.op and case.op != "mmd2 gradient":
        g = coefficients(case)[:, chosen].double()
        weights = g if case.op == "matrix gradient" else g @ v.mT
        parts = zip(some.split(64, 1), weights.split(64, 1), strict=True)
        return [of_norm(torch.cat([pull_of(w * pulling(squared(p), sigmas), p, y) for p, w in parts], 1))]
    if case.op in ("density", "score"):
        constant = math.log(y.shape[1]) + case.d / 2 * math.log(2 * math.pi * sigma**2)

        def log_p(p):
            return (squared(p) / (-2 * sigma**2)).logsumexp(-1) - constant

        if case.op == "density":
            centre = y.mean(1, keepdim=True)
            squares = [(t.double() - centre).square().sum(-1).max().item() for t in (x, y)]
            return [(in_chunks(log_p, some, 64), max(squares) / (2 * sigma**2))]

        def score(p):
            share = torch.softmax(squared(p) / (-2 * sigma**2), -1)
            return (share @ y - p) / sigma**2

        return [of_norm(in_chunks(score, some, 64))]
    # the sums of MMD^2 in chunks; gradients at the chosen rows of x
    x = x.double()

    def kernels(p, q):
        distances = torch.cdist(p, q, compute_mode="donot_use_mm_for_euclid_dist")
        return mixture(distances.square(), sigmas)

    def total(p, q):
        """Of K less what it is at a distance of 0, so that a point and itself count for nothing."""
        return sum((kernels(part, q) - len(sigmas)).sum() for part in p.split(256, 1))

    n, m = case.n, case.m
    terms = total(x, x) / (n * (n - 1)), total(y, y) / (m * (m - 1)), -2 * total(x, y) / (n * m)
    value = sum(terms), max(term.abs().item() for term in terms)
    if case.op == "mmd2":
        return [value]

    def pull(p, q):
        distances = torch.cdist(p, q, compute_mode="donot_use_mm_for_euclid_dist")
        return pull_of(pulling(distances.square(), sigmas), p, q)

    gradient = in_chunks(lambda p: 2 * pull(p, x) / (n * (n - 1)) - 2 * pull(p, y) / (n * m), some, 64)
    return [value, of_norm(gradient)]


def of_norm(truth):
    return truth, truth.norm().item()


def chosen_rows(case):
    return torch.linspace(0, case.n - 1, min(case.n, 512)).round().long()


def score(gpu, x, y, sigma, log_weights, data_weights, precision):
    """The gradient of a log-density at x, of the kernels that the operators call for it."""
    by = {"precision": precision}
    log_p = gpu.log_density(x, y, sigma, log_weights, data_weights, leave_one_out=False, **by)
    wide = torch.float64 if precision == "highest" else torch.float32
    arguments = (torch.ones_like(log_p)[..., None], x, y, data_weights[..., None])
    shift = log_p[..., None] - log_weights.to(log_p)[:, None]
    of_x = (True, False, False, False, False)
    g, x, y, v = (t.to(wide) for t in arguments)
    one = torch.ones_like(sigma)
    return gpu.rbf_matmul_backward(g, x, y, v, sigma, one, shift.to(wide), wants=of_x, **by)[0].to(x.dtype)


def make(case, name, gpu):
    """The run, whose outputs are a tuple."""
    x, y, v = inputs(case)
    sigmas = sigmas_of(case)
    sigma = sigmas[0]
    s = torch.tensor([sigmas], dtype=torch.float64)
    one, wide = torch.ones_like(s), 2**28 // max(1, case.m)
    log_weight = -case.d / 2 * math.log(2 * math.pi * sigma**2) * one
    share = torch.full((1, case.m), 1 / case.m, dtype=torch.float64, device=DEVICE)
    if name in OURS:
        by = {"precision": name}
        if case.op == "matrix":
            out = torch.full((1, case.n, case.m), torch.nan, device=DEVICE)
            return lambda: (gpu.rbf(x, y, s, one, out=out, **by),)
        if case.op == "matmul":
            return lambda: (gpu.rbf_matmul(x, y, v, s, one, **by),)
        if case.op == "signs":
            return lambda: (gpu.rbf_matmul(x, x, v, s, one, baseline=one.expand_as(s), skip_diagonal=True, **by),)
        if case.op == "matmul gradient":
            g = coefficients(case)
            wants = (True, False, False, False, False)
            return lambda: (gpu.rbf_matmul_backward(g, x, y, v, s, one, wants=wants, **by)[0],)
        if case.op == "matrix gradient":
            g = coefficients(case)
            return lambda: gpu.rbf_backward(g, x, y, s, one, wants=(True, True, False, False), **by)[:1]
        if case.op == "density":
            return lambda: (gpu.log_density(x, y, s, log_weight, share, leave_one_out=False, **by),)
        if case.op == "score":
            return lambda: (score(gpu, x, y, s, log_weight, share, name),)
        if case.op == "mmd2 call":
            import gkfast

            call = with_gradient(lambda p, q: gkfast.mmd2(p, q, sigmas, **by), x[0], y[0])
            return lambda: tuple(t if t.ndim == 0 else t[None] for t in call()[:2])
        n, m = case.n, case.m
        scale = torch.tensor(
            [[[1 / (n * (n - 1)), 1 / (m * (m - 1)), -2 / (n * m)]]], dtype=torch.float64, device=DEVICE
        )
        wants = ("gradient" in case.op, "gradient" in case.op, False, False, False, False)

        def run():
            values, _, dx, *_ = gpu.kernel_sums_with_gradients(
                scale, x, y, None, None, s, one, one.expand_as(s), drop=1, wants=wants, **by
            )
            return (values[0, 0],) if dx is None else (values[0, 0], dx[:, 0])

        return run
    if name == "keops":
        return keops(case, x[0], y[0], v[0], sigma)
    matrix = cdist_matrix if name == "cdist" else kernel_matrix
    wrap = compiled if name == "compiled" else lambda f: f
    if case.op == "matrix":
        run = wrap(lambda p, q: matrix(p, q, sigmas))
        return lambda: (run(x, y),)
    if case.op == "matrix gradient":
        g = coefficients(case)
        run = with_gradient(lambda p, q: (matrix(p, q, sigmas) * g).sum(), x, y)
        return lambda: run()[1:2]
    if case.op == "matmul":
        product = wrap(lambda p: matrix(p, y, sigmas) @ v)
        return lambda: (in_chunks(product, x, wide if name == "chunked" else case.n),)
    if case.op == "signs":
        return lambda: (in_chunks(lambda p: (kernel_matrix(p, x, sigmas) - 1) @ v, x, wide),)
    if case.op == "matmul gradient" and name == "checkpoint":
        g = coefficients(case)
        block = checkpointed(lambda p: kernel_matrix(p, y, sigmas) @ v)
        run = with_gradient(lambda p: (in_chunks(block, p, wide) * g).sum(), x)
        return lambda: run()[1:]
    if case.op == "matmul gradient":
        g = coefficients(case)

        def gradient(p, of):
            return pull_of(pulling(dot_squares(p, y), sigmas) * (of @ v.mT), p, y)

        return lambda: (
            torch.cat([gradient(*rows) for rows in zip(x.split(wide, 1), g.split(wide, 1), strict=True)], 1),
        )
    if case.op in ("density", "score"):
        constant = math.log(case.m) + case.d / 2 * math.log(2 * math.pi * sigma**2)

        def exponents(p):
            return -torch.cdist(p, y).square() / (2 * sigma**2)

        if case.op == "density":
            part = wrap(lambda p: exponents(p).logsumexp(-1) - constant)
        else:
            part = wrap(lambda p: (torch.softmax(exponents(p), -1) @ y - p) / sigma**2)
        return lambda: (in_chunks(part, x, wide),)
    function = wrap(lambda p, q: mmd2_of(p, q, sigmas, kernel_sum if name == "checkpoint" else matrix))
    if case.op == "mmd2":
        return lambda: (function(x, y),)
    run = with_gradient(function, x, y)
    return lambda: run()[:2]


def compiled(function):
    """For fixed shapes, as they are timed; the sizes before would count against the limit on recompilations."""
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)


def keops(case, x, y, v, sigma):
    """None where KeOps is not installed."""
    if importlib.util.find_spec("pykeops") is None:
        return None
    from pykeops.torch import LazyTensor

    def exponents(x):
        x_i, y_j = LazyTensor((x / (2**0.5 * sigma))[:, None]), LazyTensor((y / (2**0.5 * sigma))[None])
        return -((x_i - y_j) ** 2).sum(-1)

    if case.op == "density":
        constant = math.log(case.m) + case.d / 2 * math.log(2 * math.pi * sigma**2)
        return lambda: ((exponents(x).logsumexp(dim=1)[:, 0] - constant)[None],)
    if case.op == "matmul gradient":
        g = coefficients(case)[0]
        # dx has 1 / sigma^2, as ours
        run = with_gradient(lambda p: ((exponents(p).exp() @ v) * g).sum(), x)
        return lambda: (run()[1][None],)
    return lambda: ((exponents(x).exp() @ v)[None],)


def error(case, outputs, exact):
    worst = 0.0
    for found, (truth, size) in zip(outputs, exact, strict=True):
        found = found.detach()
        if found.ndim > 1 and found.shape[1] == case.n:
            found = found[:, chosen_rows(case).to(found.device)]
        apart = found.double().reshape(truth.shape) - truth
        share = (apart.abs().max() if case.op in ("matrix", "density") else apart.norm()).item() / size
        # a NaN is never the greater
        worst = share if share != share else max(worst, share)
    return worst


def tolerance(case, name):
    return TOLERANCE[case.op][OURS.index(name)] if name in OURS else RIVAL_TOLERANCE


def bounds(case, products, ceilings):
    """The greatest of the seconds that the GPU's ceilings allow, and which ceiling it is."""
    found = [c / r for c, r in zip(case.ceilings(products), ceilings, strict=True)]
    return max(found), ("exp2", "products", "bytes")[found.index(max(found))]
