"""Each GPU kernel, in each form and precision, against float64, on data that are hard for it.

A check is a dictionary: op, d, n, form, precision, and data or s. With s the bandwidth is such that the greatest
|x - centre|^2 / (2 sigma^2) is s.
"""

import importlib
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import torch

from bench import gpu_cases
from bench.gpu_cases import OURS, TOLERANCE
from bench.gpu_plan import DATA

# the greatest |x - centre|^2 / (2 sigma^2) for which products are meant
PRODUCTS_UP_TO = {"highest": 16, "high": 64, "medium": 64}
# of differences, and of log p by them in float32
_DENSITY_BY_DIFFERENCES = 2**-20


# greatest |x - centre|^2 / (2 sigma^2) of products, by form: none, and any
_LIMITS = {"differences": -1.0, "products": 3e38}


@contextmanager
def forced(form):
    """All calls inside take this form: their own, differences or products."""
    points = importlib.import_module("gkfast.kernels.gpu.points")
    before = points.LIMITS
    if form != "own":
        points.LIMITS = dict.fromkeys(before, _LIMITS[form])
    try:
        yield
    finally:
        points.LIMITS = before


class Inputs(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor
    # (1, M, 10) and (1, N, 10), of which an op may take the first column
    v: torch.Tensor
    g: torch.Tensor
    # (1, N, M)
    g_matrix: torch.Tensor
    # (1, S) float64, on the CPU as bandwidths that are numbers are
    sigma: torch.Tensor
    # the greatest |x - centre|^2 / (2 sigma^2) of finite rows
    s: float


def columns_of(op):
    return 10 if op.endswith("10") else 1


def inputs(check):
    n, d, data = check["n"], check["d"], check.get("data", "normal")
    generator = torch.Generator().manual_seed(1000 * d + DATA.index(data))
    x, y = (torch.randn(1, n, 1 if data == "equal" else d, generator=generator) for _ in range(2))
    x, y = x.expand(1, n, d).clone(), y.expand(1, n, d) + 0.3
    if data == "offset":
        x, y = x + 1000, y + 1000
    elif data == "far":
        x[:, ::2] += 100
        y[:, ::2] += 100
    elif data == "outlier":
        x[:, n // 2] += 1000
    elif data == "nan":
        x[:, n // 3, 0] = torch.nan
        x[:, 2 * n // 3, 0] = torch.inf
    v, g = (torch.rand(1, n, 10, generator=generator) for _ in range(2))
    g_matrix = torch.rand(1, n, n, generator=generator)
    sigma = torch.full((1, 1), d**0.5, dtype=torch.float64)
    if check["op"].endswith("ladder"):
        sigma = sigma * torch.tensor([[0.25, 0.5, 1.0, 2.0, 4.0]], dtype=torch.float64)
    greatest = greatest_norm(x, y)
    if "s" in check:
        sigma = torch.full((1, 1), (greatest / (2 * check["s"])) ** 0.5, dtype=torch.float64)
    device = gpu_cases.DEVICE
    return Inputs(*(t.to(device) for t in (x, y, v, g, g_matrix)), sigma, greatest / (2 * sigma.min().item() ** 2))


def greatest_norm(x, y):
    """The greatest |x - centre|^2 of finite rows."""
    z = torch.cat([x, y], 1)[0].double()
    z = z[z.isfinite().all(-1)]
    return (z - z.mean(0)).square().sum(-1).max().item()


def scale_of(n):
    """Of an unbiased MMD^2, (1, 1, 3)."""
    own = 1 / (n * (n - 1))
    return torch.tensor([[[own, own, -2 / n**2]]], dtype=torch.float64, device=gpu_cases.DEVICE)


def call(op, given, precision):
    """What the public kernel returns, a tuple."""
    from gkfast.kernels import gpu, reference

    x, y, v, g, g_matrix, sigma, _ = given
    one, by = torch.ones_like(sigma), {"precision": precision}
    v, g = (t[..., : columns_of(op)].contiguous() for t in (v, g))
    name = op.split()[0]
    if name == "rbf":
        return (gpu.rbf(x, y, sigma, one, **by),)
    if name == "rbf_backward":
        return gpu.rbf_backward(g_matrix, x, y, sigma, one, wants=(True,) * 4, **by)
    if name == "rbf_matmul":
        return (gpu.rbf_matmul(x, y, v, sigma, one, **by),)
    if name == "rbf_matmul_backward":
        return gpu.rbf_matmul_backward(g, x, y, v, sigma, one, wants=(True,) * 5, **by)
    if name == "mmd2":
        baseline, wants = reference.baselines(x, y, sigma), (True, True, False, False, False, False)
        scale = scale_of(x.shape[1])
        found = gpu.kernel_sums_with_gradients(
            scale, x, y, None, None, sigma, one, baseline, drop=1, wants=wants, **by
        )
        return found[0], found[2], found[3]
    return (gpu.log_density(x, y, sigma, one, v[..., 0].contiguous(), leave_one_out=False, **by),)


class Truth(NamedTuple):
    name: str
    value: torch.Tensor
    # what the error is a share of
    size: float
    # whether the error is the greatest, else the norm
    greatest: bool
    # by precision
    tolerance: tuple[float, ...]


def truths(op, given):
    """The outputs of call() in float64."""
    from gkfast.kernels import reference

    names = ("x", "y", "v", "sigma", "weights")
    x, y, v, sigma = (t.to(given.x.device).double() for t in (given.x, given.y, given.v, given.sigma))
    one = torch.ones_like(sigma)
    v, g = (t[..., : columns_of(op)].double() for t in (v, given.g))
    name = op.split()[0]
    wide = {"x": x, "y": y, "v": v, "sigma": sigma, "weights": one}
    if name == "rbf":
        return [Truth("K", reference.rbf(x, y, sigma, one), 1.0, True, TOLERANCE["matrix"])]
    if name == "rbf_matmul":
        product = reference.rbf_matmul(x, y, v, sigma, one)
        return [Truth("K v", product, finite_norm(product), False, TOLERANCE["matmul"])]
    if name == "log_density":
        log_p = reference.log_density(x, y, sigma, one, v[..., 0], leave_one_out=False)
        return [Truth("log p", log_p, max(1.0, given.s), True, TOLERANCE["density"])]
    if name == "mmd2":
        return mmd2_truths(given, x, y, sigma, one)
    wanted = [k for k in names if k != "v" or name == "rbf_matmul_backward"]
    leaves = {k: t.clone().requires_grad_(k in wanted) for k, t in wide.items()}
    if name == "rbf_backward":
        k = reference.rbf(leaves["x"], leaves["y"], leaves["sigma"], leaves["weights"])
        total = (k * given.g_matrix.double()).sum()
    else:
        total = (reference.rbf_matmul(*leaves.values()) * g).sum()
    gradients = torch.autograd.grad(total, [leaves[k] for k in wanted])
    allowed = TOLERANCE["matmul gradient"]
    return [Truth(f"d{k}", t, finite_norm(t), False, allowed) for k, t in zip(wanted, gradients, strict=True)]


def mmd2_truths(given, x, y, sigma, one):
    """The value, of the greatest of its three terms; gradients, of the greater of the two that each is made of."""
    from gkfast.kernels import reference

    baseline = reference.baselines(given.x, given.y, given.sigma)
    scale = scale_of(x.shape[1])[:, 0]
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    values, of_x, of_y = [], [], []
    for k in range(3):
        part = torch.zeros_like(scale)
        part[:, k] = scale[:, k]
        value = reference.mmd2(part, x, y, None, None, sigma, one, baseline, drop=1)
        dx, dy = torch.autograd.grad(value.sum(), (x, y), allow_unused=True, materialize_grads=True)
        for found, own in ((values, value.detach()), (of_x, dx), (of_y, dy)):
            found.append(own)
    names = (("value", values, TOLERANCE["mmd2"]), ("dx", of_x, TOLERANCE["matmul gradient"]))
    names += (("dy", of_y, TOLERANCE["matmul gradient"]),)
    return [Truth(k, sum(parts), max(map(finite_norm, parts)), False, allowed) for k, parts, allowed in names]


def finite_norm(t):
    return t[t.isfinite()].norm().item()


@lru_cache(2)
def _given(key):
    check = dict(key)
    given = inputs(check)
    return given, truths(check["op"], given)


def allowed_of(truth, check, s):
    """The error that the contract allows, or None where it says nothing about this form."""
    precision, form = check["precision"], check["form"]
    at = OURS.index(precision)
    by_differences = form == "differences" or check["d"] <= 4
    if truth.name == "log p":
        return _DENSITY_BY_DIFFERENCES if by_differences and at else truth.tolerance[at]
    if by_differences:
        return truth.tolerance[0 if truth.name == "K" else at]
    if precision == "highest":
        return truth.tolerance[0] if form == "own" or s <= PRODUCTS_UP_TO[precision] else None
    return truth.tolerance[at] * max(1.0, s) if s <= PRODUCTS_UP_TO[precision] else None


def error_of(truth, found):
    """The error where the truth is finite, or what is wrong in words."""
    found = found.detach().double().reshape(truth.value.shape)
    kept = truth.value.isfinite()
    apart = (found - truth.value)[kept]
    share = (apart.abs().max() if truth.greatest else apart.norm()).item() if apart.numel() else 0.0
    lost = truth.value.isnan() & ~found.isnan()
    # a gradient of an infinite row is 0 times infinity, of which a kernel may make 0
    if truth.name[0] != "d" and lost.any():
        return share / (truth.size or 1.0), f"{truth.name} lost {int(lost.sum())} NaN"
    return share / (truth.size or 1.0), ""


def run_check(check):
    """The row of a check."""
    key = tuple((k, check[k]) for k in ("op", "d", "n", "data", "s") if k in check)
    given, exact = _given(key)
    with forced(check["form"]):
        outputs = call(check["op"], given, check["precision"])
    row = {"s": round(given.s, 3), "errors": {}, "ok": True, "over": -1.0}
    for truth, found in zip(exact, outputs, strict=True):
        error, wrong = error_of(truth, found)
        allowed = allowed_of(truth, check, given.s)
        row["errors"][truth.name] = float(f"{error:.3g}")
        # where nothing is promised it must be a number
        over = error / allowed if allowed else 0.0 if error == error else error
        if wrong or not over <= 1:
            row["ok"] = False
            row.setdefault("wrong", wrong or f"{truth.name}: error {error:.1e}, allowed {allowed or 0:.1e}")
        # of the output that is nearest to what is allowed, or beyond; a NaN is beyond all
        if over != over or (over > row["over"] and row["over"] == row["over"]):
            row |= {"output": truth.name, "error": error, "tolerance": allowed, "over": over}
    return row
