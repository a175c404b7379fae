"""The kernel matrix: fresh, into a given output, and with the gradients to x and y of sum_ij g_ij K_ij."""

import pytest
import torch

import gkfast
from bench import rivals
from bench.measure import MARKS, Case, Exact, checked_rows, identifier, inputs
from gkfast.kernels import reference

pytestmark = MARKS

_SMALL = [Case(op, n, 64) for op in ("rbf", "rbf gradient") for n in (64, 256, 1024)]
_LARGE = [Case("rbf", 4096, d) for d in (2, 64, 784)] + [Case("rbf gradient", 4096, 64)]
_FLOAT64 = [Case("rbf", 1024, 64, dtype="float64")]
_OUT = [Case("rbf out", 4096, d) for d in (2, 64, 784)]


def _names(case):
    if case.op == "rbf out":
        # at D = 784 a fill is no measure of anything
        return ("gkfast", "fill", "torch.mm") if case.d < 100 else ("gkfast", "torch.mm")
    # torch.compile takes its time: at the large sizes only. torch.mm stands with "rbf out" there
    more = ("torch.compile",) if case.n == 4096 else ()
    if case.op == "rbf gradient" or case.n < 4096:
        more = ("torch.mm", *more)
    if case.op == "rbf":
        more = (*more, "scikit-learn")
    return ("gkfast", "eager", "eager clamped", "gpytorch", *more)


def make(case, name):
    """The function to time, which returns the outputs that are checked."""
    x, y, g = inputs(case)
    sigma = case.sigma
    out = torch.empty_like(g)
    if name == "fill":
        return lambda: {"kernel": out.fill_(1.0)}
    if name == "torch.mm":
        return lambda: {"kernel": torch.mm(x, y.T, out=out)}
    if case.op == "rbf out":
        return lambda: {"kernel": gkfast.rbf(x, y, sigma, out=out)}
    if name == "scikit-learn":
        run = rivals.scikit_learn(x, y, sigma)
        return lambda: {"kernel": run()}
    kernel = _kernel(name, sigma, x.dtype)
    if case.op == "rbf":
        return lambda: {"kernel": kernel(x, y)}
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()

    def forward_backward():
        k = kernel(x, y)
        dx, dy = torch.autograd.grad(k, (x, y), g)
        return {"kernel": k, "gradient to x": dx, "gradient to y": dy}

    return forward_backward


def _kernel(name, sigma, dtype):
    if name == "gpytorch":
        return rivals.gpytorch(sigma, dtype)
    function = {
        "gkfast": gkfast.rbf,
        "eager": rivals.eager,
        "eager clamped": rivals.eager_clamped,
        "torch.compile": rivals.eager_clamped,
    }[name]
    if name == "torch.compile":
        function = rivals.compiled(function)
    return lambda x, y: function(x, y, sigma)


def exact(case):
    """K and both gradients at the checked rows. A block of rows at a time: autograd keeps every difference."""
    x, y, g = (a.double() for a in inputs(case))
    sigma = torch.tensor(case.sigma, dtype=torch.float64)
    rows = checked_rows(case)

    def block(own, other, weight):
        own = own.clone().requires_grad_(case.op == "rbf gradient")
        k = reference.rbf(own[None], other[None], sigma, torch.ones_like(sigma))[0]
        return k.detach(), torch.autograd.grad(k, own, weight)[0] if own.requires_grad else None

    blocks = rows.split(64)
    k, dx = zip(*(block(x[b], y, g[b]) for b in blocks), strict=True)
    if case.op != "rbf gradient":
        return Exact(rows, {"kernel": torch.cat(k)})
    _, dy = zip(*(block(y[b], x, g[:, b].T) for b in blocks), strict=True)
    return Exact(rows, {"kernel": torch.cat(k), "gradient to x": torch.cat(dx), "gradient to y": torch.cat(dy)})


_ROWS = [(case, name) for case in _SMALL + _FLOAT64 + _LARGE + _OUT for name in _names(case)]


@pytest.mark.parametrize(("case", "name"), _ROWS, ids=identifier)
def test_rbf(case, name, row):
    row(case, name, make, exact)
