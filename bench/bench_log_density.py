"""The log-density of a Gaussian kernel estimate, as a Parzen score of a generator asks for it: few x, much data."""

import pytest
import torch

import gkfast
from bench import rivals
from bench.measure import MARKS, Case, Exact, blocks, checked_rows, identifier, points

pytestmark = MARKS

_CASES = [
    # scikit-learn takes minutes for ten thousand rows
    (Case("log_density", 100, 64, rows_of_y=50_000), ("gkfast", "chunked torch", "scikit-learn")),
    (Case("log_density", 10_000, 64, rows_of_y=50_000), ("gkfast", "chunked torch")),
]


def make(case, name):
    """The function to time, which returns the output that is checked."""
    x, y = points(case)
    sigma = case.sigma
    if name == "gkfast":
        return lambda: {"density": gkfast.log_density(x, y, sigma)}
    rival = rivals.chunked_log_density if name == "chunked torch" else rivals.scikit_learn_density
    run = rival(x, y, sigma)
    return lambda: {"density": run()}


def exact(case):
    """The checked rows, by the reference in float64."""
    x, y = (a.double() for a in points(case))
    rows = checked_rows(case)
    densities = [gkfast.log_density(x[b], y, case.sigma, backend="reference") for b in blocks(rows, case)]
    return Exact(rows, {"density": torch.cat(densities)})


_ROWS = [(case, name) for case, names in _CASES for name in names]


@pytest.mark.parametrize(("case", "name"), _ROWS, ids=identifier)
def test_log_density(case, name, row):
    row(case, name, make, exact)
