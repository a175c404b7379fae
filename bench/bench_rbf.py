"""The kernel matrix: fresh, into a given output, and with the gradients to x and y of sum_ij g_ij K_ij."""

import pytest
import torch

import gkfast
from bench import rivals
from bench.measure import (
    MARKS,
    Case,
    Exact,
    blocks,
    checked_rows,
    identifier,
    on_one_thread,
    points,
    right_hand_side,
)
from bench.rows import CEILINGS, ONE_THREAD
from gkfast.kernels import reference

pytestmark = MARKS

_DIMENSIONS = (2, 8, 16, 64, 256, 784)
_OURS = ("gkfast",)
_TORCH = ("eager", "torch.compile", "gpytorch")

_CASES = [
    *[(Case("rbf out", 4096, d), (*_OURS, *CEILINGS, *([ONE_THREAD] if d == 64 else []))) for d in _DIMENSIONS],
    *[(Case("rbf", 4096, d), (*_OURS, "eager in place", *_TORCH, "scikit-learn")) for d in _DIMENSIONS],
    *[(Case("rbf gradient", n, 64), (*_OURS, "torch.mm", *_TORCH)) for n in (64, 256, 1024, 4096)],
    *[(Case("rbf out", 4096, d, dtype="float64"), (*_OURS, "torch.mm")) for d in (16, 64, 256)],
    # the same number of entries in few and in many rows, with ends that fill no vector
    *[
        (Case("rbf", n, 64, rows_of_y=m), (*_OURS, "eager in place", "scikit-learn"))
        for n, m in ((130, 129_057), (129_057, 130))
    ],
]
# nothing to compute: what a call costs
_CALLS = [
    (Case("rbf numpy", 8, 2), (*_OURS, "numpy", "scikit-learn")),
    (Case("rbf gradient", 8, 2), (*_OURS, "eager", "gpytorch")),
]
_THREADS = [(Case("rbf out", n, 64), (*_OURS, ONE_THREAD, "torch.mm")) for n in (2048, 8192)]
# for the plots of time against N
_SWEEP = [
    *[(Case("rbf out", n, 64, sweep=True), (*_OURS, "torch.mm")) for n in (128, 512)],
    *[(Case("rbf", n, 64, sweep=True), (*_OURS, "eager in place", "torch.compile")) for n in (128, 512, 2048)],
]


def make(case, name):
    """The function to time, which returns the outputs that are checked."""
    x, y = points(case)
    sigma = case.sigma
    if name == ONE_THREAD:
        return on_one_thread(make(case, "gkfast"))
    if name in CEILINGS or case.op == "rbf out":
        out = torch.empty(case.n, case.m, dtype=x.dtype)
        return {
            "fill": lambda: {"kernel": out.fill_(1.0)},
            "torch.mm": lambda: {"kernel": torch.mm(x, y.T, out=out)},
            "gkfast": lambda: {"kernel": gkfast.rbf(x, y, sigma, out=out)},
        }[name]
    if name in ("numpy", "scikit-learn"):
        run = (rivals.numpy if name == "numpy" else rivals.scikit_learn)(x, y, sigma)
        return lambda: {"kernel": run()}
    if case.op == "rbf numpy":
        a, b = x.numpy(), y.numpy()
        return lambda: {"kernel": torch.from_numpy(gkfast.rbf(a, b, sigma))}
    kernel = _kernel(name, sigma, x.dtype)
    if case.op == "rbf":
        return lambda: {"kernel": kernel(x, y)}
    x, y, g = x.clone().requires_grad_(), y.clone().requires_grad_(), right_hand_side(case)

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
        "eager in place": rivals.eager_in_place,
        "torch.compile": rivals.eager,
    }[name]
    if name == "torch.compile":
        function = rivals.compiled(function)
    return lambda x, y: function(x, y, sigma)


def exact(case):
    """K and both gradients at the checked rows, by the reference in float64."""
    x, y = (a.double() for a in points(case))
    sigma, ones = case.sigma_rows, torch.ones_like(case.sigma_rows)
    rows = checked_rows(case)

    def block(own, other, weight):
        own = own.clone().requires_grad_(weight is not None)
        k = reference.rbf(own[None], other[None], sigma, ones)[0]
        return k.detach(), None if weight is None else torch.autograd.grad(k, own, weight)[0]

    if case.op != "rbf gradient":
        return Exact(rows, {"kernel": torch.cat([block(x[b], y, None)[0] for b in blocks(rows, case)])})
    g = right_hand_side(case).double()
    k, dx = zip(*(block(x[b], y, g[b]) for b in blocks(rows, case)), strict=True)
    _, dy = zip(*(block(y[b], x, g[:, b].T) for b in blocks(rows, case)), strict=True)
    return Exact(rows, {"kernel": torch.cat(k), "gradient to x": torch.cat(dx), "gradient to y": torch.cat(dy)})


_ROWS = [(case, name) for case, names in _CASES + _CALLS + _THREADS + _SWEEP for name in names]


@pytest.mark.parametrize(("case", "name"), _ROWS, ids=identifier)
def test_rbf(case, name, row):
    row(case, name, make, exact)
