"""The GPU kernels on a GPU: checked in every precision, then timed against rivals and against the GPU's own ceilings.

    python bench/gpu.py                    everything
    python bench/gpu.py --only mmd2        cases whose name holds this
    python bench/gpu.py --list             names the cases; needs no GPU

Needs torch and triton, and this checkout as working directory or on PYTHONPATH; gkfast need not be installed. No time
is printed for what is wrong. Rows are written to bench/results/<gpu>.csv. Tp/s are 10^12 kernel values a second; the
share is that of the greatest of three measured bounds: exp2 of every pair, bfloat16 products, bytes of the result.
"""

import argparse
import csv
import importlib.util
import math
import statistics
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
PRODUCTS = {"highest": 6, "high": 3, "medium": 1}
# relative in norm to float64, where sigma is of the data's scale; matrices absolute
TOLERANCE = {"highest": 1e-5, "high": 2e-4, "medium": 3e-2, "rival": 1e-2}


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
        return {"mmd2": 3, "mmd2 gradient": 3}.get(self.op, 1) * self.n * self.m

    def ceilings(self, products):
        """exp2 values, bfloat16 multiply-adds, bytes."""
        # distances; then what the kernel is multiplied with
        lengths = self.d * (3 if self.op == "matrix gradient" else 2 if "gradient" in self.op else 1)
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


def cases():
    found = [Case("matmul", n, n, 3, ("highest", "chunked", "keops")) for n in (10_000, 100_000, 1_000_000)]
    # the sizes of Flash-SD-KDE's appendix A: N training rows, N / 8 queries
    found += [Case("density", n // 8, n, 16, (*OURS, "chunked")) for n in (2048, 4096, 8192, 16384, 32768, 65536)]
    found += [Case("score", n // 8, n, 16, (*OURS, "chunked")) for n in (2048, 8192, 32768, 65536)]
    found += [Case("matmul", n // 8, n, 16, (*OURS, "chunked", "keops")) for n in (32768, 65536, 1_048_576)]
    # FlashSinkhorn's
    found += [Case("matmul", n, n, 64, (*OURS, "chunked", "keops")) for n in (5_000, 10_000, 20_000, 50_000)]
    found += [Case("matmul gradient", n, n, 64, (*OURS, "chunked")) for n in (5_000, 20_000, 50_000)]
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
        Case("mmd2 gradient", n, n, 64, (*OURS, *(SMALL_RIVALS[:2] if n <= 16384 else ())))
        for n in (64, 256, 1024, 4096, 16384, 65536)
    ]
    found += [Case("mmd2", n, n, 64, (*OURS, "eager")) for n in (1024, 16384)]
    # latency of a GAN's batch
    found += [Case("mmd2 gradient", n, n, 128, ("highest", "eager"), graph=True) for n in (64, 256, 1024)]
    return found


# ---- what is timed


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


def mmd2_of(x, y, sigmas):
    n, m = x.shape[-2], y.shape[-2]
    xx, yy, xy = kernel_matrix(x, x, sigmas), kernel_matrix(y, y, sigmas), kernel_matrix(x, y, sigmas)
    own = len(sigmas)
    return (xx.sum() - own * n) / (n * (n - 1)) + (yy.sum() - own * m) / (m * (m - 1)) - 2 * xy.mean()


def with_gradient(function, *points):
    """The value, and its gradients to the points."""
    points = [p.detach().clone().requires_grad_() for p in points]

    def run():
        value = function(*points)
        return value.detach(), *torch.autograd.grad(value, points)

    return run


def in_chunks(function, x, rows):
    return torch.cat([function(part) for part in x.split(rows, 1)], 1)


def reference_outputs(case, x, y, v):
    """In float64, at up to 512 rows of x; tuples as the runs return them."""
    chosen = chosen_rows(case)
    sigmas, some, y, v = sigmas_of(case), x[:, chosen].double(), y.double(), v.double()
    sigma = sigmas[0]

    def squared(p):
        return torch.stack([(p[:, i : i + 1] - y).square().sum(-1) for i in range(p.shape[1])], 1)

    if case.op == "matrix":
        return (in_chunks(lambda p: mixture(squared(p), sigmas), some, 64),)
    if case.op == "matmul":
        return (in_chunks(lambda p: mixture(squared(p), sigmas) @ v, some, 64),)
    if "gradient" in case.op and case.op != "mmd2 gradient":
        g = coefficients(case)[:, chosen].double()
        weights = g if case.op == "matrix gradient" else g @ v.mT
        parts = zip(some.split(64, 1), weights.split(64, 1), strict=True)
        return (torch.cat([pull_of(w * pulling(squared(p), sigmas), p, y) for p, w in parts], 1),)
    if case.op in ("density", "score"):
        constant = math.log(y.shape[1]) + case.d / 2 * math.log(2 * math.pi * sigma**2)

        def log_p(p):
            return (squared(p) / (-2 * sigma**2)).logsumexp(-1) - constant

        if case.op == "density":
            return (in_chunks(log_p, some, 64),)

        def score(p):
            share = torch.softmax(squared(p) / (-2 * sigma**2), -1)
            return (share @ y - p) / sigma**2

        return (in_chunks(score, some, 64),)
    # the sums of MMD^2 in chunks; gradients at the chosen rows of x
    x = x.double()

    def kernels(p, q):
        distances = torch.cdist(p, q, compute_mode="donot_use_mm_for_euclid_dist")
        return mixture(distances.square(), sigmas)

    def total(p, q, skip):
        found = torch.zeros((), dtype=torch.float64, device=p.device)
        for part in p.split(256, 1):
            found += kernels(part, q).sum()
        return found - (len(sigmas) * p.shape[1] if skip else 0)

    n, m = case.n, case.m
    value = total(x, x, True) / (n * (n - 1)) + total(y, y, True) / (m * (m - 1)) - 2 * total(x, y, False) / (n * m)
    if case.op == "mmd2":
        return (value,)

    def pull(p, q):
        distances = torch.cdist(p, q, compute_mode="donot_use_mm_for_euclid_dist")
        return pull_of(pulling(distances.square(), sigmas), p, q)

    gradient = in_chunks(lambda p: 2 * pull(p, x) / (n * (n - 1)) - 2 * pull(p, y) / (n * m), some, 64)
    return value, gradient


def chosen_rows(case):
    return torch.linspace(0, case.n - 1, min(case.n, 512)).round().long()


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
            return lambda: (gpu.rbf(x, y, s, one, out, **by),)
        if case.op == "matmul":
            return lambda: (gpu.rbf_matmul(x, y, v, s, one, **by),)
        if case.op == "matmul gradient":
            g = coefficients(case)
            wants = (True, False, False, False, False)
            return lambda: (gpu.rbf_matmul_backward(g, x, y, v, s, one, wants, **by)[0],)
        if case.op == "matrix gradient":
            g = coefficients(case)
            return lambda: gpu.rbf_backward(g, x, y, s, one, (True, True, False, False), **by)[:1]
        if case.op == "density":
            return lambda: (gpu.log_density(x, y, s, log_weight, share, False, **by),)
        if case.op == "score":
            return lambda: (gpu.score(x, y, s, log_weight, share, False, **by),)
        n, m = case.n, case.m
        scale = torch.tensor(
            [[[1 / (n * (n - 1)), 1 / (m * (m - 1)), -2 / (n * m)]]], dtype=torch.float64, device=DEVICE
        )
        a, b = torch.ones(1, n, device=DEVICE), torch.ones(1, m, device=DEVICE)
        wants = ("gradient" in case.op, "gradient" in case.op, False, False, False, False)

        def run():
            sums, dx, *_ = gpu.kernel_sums_with_gradients(scale, x, y, a, b, s, one, 1, True, wants, **by)
            value = (scale[:, 0] * sums).sum()
            return (value,) if dx is None else (value, dx[:, 0])

        return run
    if name == "keops":
        return keops(case, x[0], y[0], v[0], sigma)
    matrix = cdist_matrix if name == "cdist" else kernel_matrix
    wrap = torch.compile if name == "compiled" else lambda f: f
    if case.op == "matrix":
        run = wrap(lambda p, q: matrix(p, q, sigmas))
        return lambda: (run(x, y),)
    if case.op == "matrix gradient":
        g = coefficients(case)
        run = with_gradient(lambda p, q: (matrix(p, q, sigmas) * g).sum(), x, y)
        return lambda: run()[1:2]
    if case.op == "matmul":
        return lambda: (in_chunks(lambda p: kernel_matrix(p, y, sigmas) @ v, x, wide),)
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
            return lambda: (in_chunks(lambda p: exponents(p).logsumexp(-1) - constant, x, wide),)
        return lambda: (in_chunks(lambda p: (torch.softmax(exponents(p), -1) @ y - p) / sigma**2, x, wide),)
    function = wrap(lambda p, q: mmd2_of(p, q, sigmas))
    if case.op == "mmd2":
        return lambda: (function(x, y),)
    run = with_gradient(function, x, y)
    return lambda: run()[:2]


def keops(case, x, y, v, sigma):
    """None where KeOps is not installed."""
    if importlib.util.find_spec("pykeops") is None:
        return None
    from pykeops.torch import LazyTensor

    x_i, y_j = LazyTensor((x / (2**0.5 * sigma))[:, None]), LazyTensor((y / (2**0.5 * sigma))[None])
    return lambda: (((-((x_i - y_j) ** 2).sum(-1)).exp() @ v)[None],)


# ---- how it is timed


def once(run):
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / 1e3


def seconds(run, budget=0.5):
    """Median of CUDA events around single runs; warm before, and three runs at least."""
    for _ in range(3):
        if once(run) > budget:
            break
    times = []
    while len(times) < 3 or (sum(times) < budget and len(times) < 200):
        times.append(once(run))
    return statistics.median(times)


def captured(run):
    """The run as a CUDA graph, and what it returns."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()

    def replay():
        graph.replay()
        return outputs

    return replay


def measured_ceilings():
    """exp2 a second, bfloat16 multiply-adds a second, bytes a second."""
    import triton
    import triton.language as tl

    @triton.jit
    def exponentials(out_ptr, ROUNDS: tl.constexpr, BLOCK: tl.constexpr):
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        # chains that neither grow nor vanish: -2^x stays between -1 and 0
        x = at.to(tl.float32) * -1e-9
        for _ in range(ROUNDS):
            x = -tl.exp2(x)
        tl.store(out_ptr + at, x)

    big = torch.randn(2**30, device=DEVICE)
    other = torch.empty_like(big)
    moved = 2 * 4 * big.numel() / seconds(partial(other.copy_, big))
    del big, other
    a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    products = 8192**3 / seconds(lambda: a @ b)
    blocks, block, rounds = 132 * 64, 1024, 2000
    out = torch.empty(blocks * block, device=DEVICE)
    values = blocks * block * rounds / seconds(lambda: exponentials[(blocks,)](out, ROUNDS=rounds, BLOCK=block))
    return values, products, moved


def error(case, outputs, exact):
    worst = 0.0
    for found, truth in zip(outputs, exact, strict=True):
        found = found.detach().double()
        if found.ndim > 1 and found.shape[1] == case.n:
            found = found[:, chosen_rows(case).to(found.device)]
        found = found.reshape(truth.shape)
        if case.op == "matrix":
            worst = max(worst, (found - truth).abs().max().item())
        else:
            worst = max(worst, ((found - truth).norm() / truth.norm()).item())
    return worst


def rows_of(case, gpu, ceilings):
    exact = reference_outputs(case, *inputs(case))
    for name in case.runs:
        row = {"case": case.name, "op": case.op, "N": case.n, "M": case.m, "D": case.d, "run": name}
        try:
            run = make(case, name, gpu)
            if run is None:
                continue
            if case.graph:
                run = captured(run)
            outputs = run()
            torch.cuda.synchronize()
            row["error"] = error(case, outputs, exact)
            allowed = TOLERANCE[name if name in OURS else "rival"]
            del outputs
            if not row["error"] <= allowed:
                row["wrong"] = f"WRONG: error {row['error']:.1e}, allowed {allowed:.0e}"
            else:
                time = seconds(run)
                bounds = [c / r for c, r in zip(case.ceilings(PRODUCTS.get(name, 1)), ceilings, strict=True)]
                row |= {"ms": 1e3 * time, "Tp/s": case.pairs / time / 1e12, "share": max(bounds) / time}
                row["bound"] = ("exp2", "products", "bytes")[bounds.index(max(bounds))]
        except Exception as failure:
            # a rival that cannot run, or lacks memory, must not end the others' runs; the row says what it was
            row["wrong"] = f"{type(failure).__name__}: {str(failure).splitlines()[0][:80]}"
        torch.cuda.empty_cache()
        yield row


FIELDS = ["case", "op", "N", "M", "D", "run", "ms", "Tp/s", "share", "bound", "error", "wrong"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    parser.add_argument("--only", default="", metavar="NAME", help="cases whose name holds this")
    options = parser.parse_args()
    chosen = [case for case in cases() if options.only in case.name]
    if options.list:
        for case in chosen:
            print(f"{case.name:40} {' '.join(case.runs)}")
        return 0
    if not torch.cuda.is_available():
        print("bench/gpu.py must have a CUDA device, got none; --list shows the cases", file=sys.stderr)
        return 2
    load()
    from gkfast.kernels import gpu

    # rivals at full float32, as gkfast's "highest" is
    torch.set_float32_matmul_precision("highest")
    device = torch.cuda.get_device_name()
    ceilings = measured_ceilings()
    print(device, "torch", torch.__version__)
    exponentials, products, moved = (c / 1e12 for c in ceilings)
    print(f"ceilings: {exponentials:.2f} T exp2/s, {products:.0f} T bfloat16 multiply-adds/s, {moved:.2f} TB/s")
    found = []
    for case in chosen:
        for row in rows_of(case, gpu, ceilings):
            found.append({"gpu": device, "torch": torch.__version__} | row)
            if "ms" in row:
                print(
                    f"{row['case']:36} {row['run']:9} {row['ms']:10.3f} ms {row['Tp/s']:8.3f} Tp/s"
                    f" {row['share']:5.0%} of {row['bound']:8} error {row['error']:.0e}",
                    flush=True,
                )
            else:
                print(f"{row['case']:36} {row['run']:9} {row['wrong']}", flush=True)
    place = ROOT / "bench/results" / f"{device.lower().replace(' ', '-')}.csv"
    with open(place, "w", newline="") as file:
        writer = csv.DictWriter(file, ["gpu", "torch", *FIELDS])
        writer.writeheader()
        writer.writerows(found)
    return int(any("wrong" in row for row in found if row["run"] in OURS))


if __name__ == "__main__":
    sys.exit(main())
