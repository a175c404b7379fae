"""K @ v with one column. gkfast never stores K; rivals store it and multiply."""

import pytest
import torch

import gkfast
from bench import rivals
from bench.measure import MARKS, Case, Exact, checked_rows, identifier, inputs
from gkfast.kernels import reference

pytestmark = MARKS

_CASES = [Case("rbf_matmul", n, d) for n, d in ((1024, 64), (4096, 3), (4096, 64))]


def make(case, name):
    """The function to time, which returns the output that is checked."""
    x, y, g = inputs(case)
    v, sigma = g[0].contiguous(), case.sigma
    if name == "gkfast":
        return lambda: {"product": gkfast.rbf_matmul(x, y, v, sigma)}
    kernel = rivals.eager if name == "eager" else rivals.eager_clamped
    return lambda: {"product": kernel(x, y, sigma) @ v}


def exact(case):
    """The checked rows of K @ v, by the reference in float64."""
    x, y, g = (a.double() for a in inputs(case))
    sigma = torch.tensor(case.sigma, dtype=torch.float64)
    rows = checked_rows(case)
    product = reference.rbf_matmul(x[None, rows], y[None], g[None, 0, :, None], sigma, torch.ones_like(sigma))
    return Exact(rows, {"product": product[0, :, 0]})


_ROWS = [(case, name) for case in _CASES for name in ("gkfast", "eager", "eager clamped")]


@pytest.mark.parametrize(("case", "name"), _ROWS, ids=identifier)
def test_rbf_matmul(case, name, row):
    row(case, name, make, exact)
