"""Unbiased MMD^2: its value, and its value with the gradient to x, with one and with five bandwidths.

What is timed is a generator's step of an MMD-GAN: x requires a gradient, y does not.
"""

import pytest
import torch

import gkfast
from bench import rivals
from bench.measure import MARKS, Case, Exact, checked_rows, identifier, inputs
from gkfast.kernels import reference

pytestmark = MARKS

_CASES = [Case(op, n, 128, s) for op in ("mmd2", "mmd2 gradient") for s in (1, 5) for n in (64, 256, 1024)]


def _names(case):
    # torch.compile takes its time: only where training spends it
    compiled = ("torch.compile",) if case.op == "mmd2 gradient" and case.bandwidths == 5 else ()
    return ("gkfast", "eager", "eager clamped", *compiled)


def make(case, name):
    """The function to time, which returns the outputs that are checked."""
    x, y, _ = inputs(case)
    sigma = case.sigma
    loss = _loss(name)
    if case.op == "mmd2":
        return lambda: {"value": loss(x, y, sigma)}
    x = x.clone().requires_grad_()

    def value_and_gradient():
        value = loss(x, y, sigma)
        return {"value": value, "gradient to x": torch.autograd.grad(value, x)[0]}

    return value_and_gradient


def _loss(name):
    if name == "gkfast":
        return gkfast.mmd2
    kernel = rivals.eager if name == "eager" else rivals.eager_clamped

    def loss(x, y, sigma):
        return rivals.mmd2(kernel, x, y, sigma)

    return rivals.compiled(loss) if name == "torch.compile" else loss


def exact(case):
    """The value and the gradient to x, by the reference in float64."""
    x, y, _ = (a.double() for a in inputs(case))
    n, sigma = case.n, torch.tensor(case.sigma, dtype=torch.float64)
    ones = torch.ones_like(sigma)
    within, between = 1 / (n * (n - 1)), 1 / n**2
    unit = torch.ones(1, n, dtype=torch.float64)
    scale = torch.tensor([[within, within, -2 * between]], dtype=torch.float64)
    outputs = {"value": reference.mmd2(x[None], y[None], unit, unit, scale, sigma, ones, drop=1)[0]}
    rows = checked_rows(case)
    if case.op == "mmd2 gradient":

        def block(own):
            # a row of x stands in xx twice; beside itself (i = j) it adds no gradient. In blocks, since autograd
            # keeps every difference
            own = own.clone().requires_grad_()
            xx = reference.rbf(own[None], x[None], sigma, ones).sum()
            xy = reference.rbf(own[None], y[None], sigma, ones).sum()
            return torch.autograd.grad(2 * within * xx - 2 * between * xy, own)[0]

        outputs["gradient to x"] = torch.cat([block(x[b]) for b in rows.split(64)])
    return Exact(rows, outputs)


_ROWS = [(case, name) for case in _CASES for name in _names(case)]


@pytest.mark.parametrize(("case", "name"), _ROWS, ids=identifier)
def test_mmd2(case, name, row):
    row(case, name, make, exact)
