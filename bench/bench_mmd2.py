"""Unbiased MMD^2: its value, and its value with the gradient to x; and those of every bandwidth.

What is timed is a generator's step of an MMD-GAN: x requires a gradient, y does not. By bandwidth the rival is gkfast
itself, called for one bandwidth after another, and the loss a sum of the values with other weights each.
"""

import pytest
import torch

import gkfast
from bench import rivals
from bench.measure import MARKS, Case, Exact, blocks, checked_rows, identifier, on_one_thread, points
from bench.rows import ONE_THREAD
from gkfast.kernels import reference

pytestmark = MARKS

_SIZES = ((64, 128), (256, 128), (1024, 128), (4096, 64))
_CASES = [
    (Case("mmd2 gradient", n, d, bandwidths=ladder), ("gkfast", "eager", "torch.compile"))
    for ladder in ("sigma x2", "variance x2")
    for n, d in _SIZES
] + [(Case("mmd2", 1024, 128, bandwidths="sigma x2"), ("gkfast", "eager"))]
_CASES += [
    (Case(op, n, 64, bandwidths="sigma x2"), ("gkfast", "one by one"))
    for op in ("mmd2 by bandwidth", "mmd2 by bandwidth gradient")
    for n in (256, 1024, 4096)
]
_FACTORS = (1.0, 0.5, 2.0, 0.3, 1.5)
# at D = 16 even the reference has an answer for 8192 rows
_THREADS = [
    (Case("mmd2 gradient", n, 16, bandwidths="variance x2"), ("gkfast", ONE_THREAD)) for n in (2048, 4096, 8192)
]
# for the plot of time against N
_SWEEP = [
    (Case("mmd2 gradient", n, 128, bandwidths="sigma x2", sweep=True), ("gkfast", "eager", "torch.compile"))
    for n in (128, 512, 2048)
]


def make(case, name):
    """The function to time, which returns the outputs that are checked."""
    if name == ONE_THREAD:
        return on_one_thread(make(case, "gkfast"))
    x, y = points(case)
    sigma = case.sigma
    loss = _by_bandwidth(name) if "by bandwidth" in case.op else _loss(name)
    if "gradient" not in case.op:
        return lambda: {"value": loss(x, y, sigma)}
    x = x.clone().requires_grad_()

    def value_and_gradient():
        value = loss(x, y, sigma)
        return {"value": value, "gradient to x": torch.autograd.grad(value, x)[0]}

    return value_and_gradient


def _loss(name):
    if name == "gkfast":
        return gkfast.mmd2

    def loss(x, y, sigma):
        return rivals.mmd2(rivals.eager, x, y, sigma)

    return rivals.compiled(loss) if name == "torch.compile" else loss


def _by_bandwidth(name):
    factors = torch.tensor(_FACTORS)

    def loss(x, y, sigma):
        if name == "gkfast":
            return gkfast.mmd2(x, y, sigma, by_bandwidth=True) @ factors
        return torch.stack([gkfast.mmd2(x, y, s) for s in sigma]) @ factors

    return loss


def exact(case):
    """The value and the gradient to x, by the reference in float64."""
    x, y = (a.double() for a in points(case))
    n, sigma, ones = case.n, case.sigma_rows, torch.ones_like(case.sigma_rows)
    weights = torch.tensor([_FACTORS], dtype=torch.float64) if "by bandwidth" in case.op else ones
    within, between = 1 / (n * (n - 1)), 1 / n**2

    def total(p, q):
        # of K - S, which is 0 on the diagonal; the weights of all pairs sum to zero, so S drops out
        return sum(
            reference.rbf_less(p[None, b], q[None], sigma, weights, ones).sum() for b in blocks(torch.arange(n), case)
        )

    outputs = {"value": within * (total(x, x) + total(y, y)) - 2 * between * total(x, y)}
    rows = checked_rows(case)
    if "gradient" in case.op:

        def block(own):
            # a row of x stands in xx twice; beside itself (i = j) it adds no gradient
            own = own.clone().requires_grad_()
            xx = reference.rbf(own[None], x[None], sigma, weights).sum()
            xy = reference.rbf(own[None], y[None], sigma, weights).sum()
            return torch.autograd.grad(2 * within * xx - 2 * between * xy, own)[0]

        outputs["gradient to x"] = torch.cat([block(x[b]) for b in blocks(rows, case)])
    return Exact(rows, outputs)


_ROWS = [(case, name) for case, names in _CASES + _THREADS + _SWEEP for name in names]


@pytest.mark.parametrize(("case", "name"), _ROWS, ids=identifier)
def test_mmd2(case, name, row):
    row(case, name, make, exact)
