"""K @ v. gkfast never stores K; rivals store it, whole or a block of rows at a time, and multiply."""

import pytest
import torch

import gkfast
from bench import rivals
from bench.measure import MARKS, Case, Exact, blocks, checked_rows, identifier, on_one_thread, points, right_hand_side
from bench.rows import ONE_THREAD
from gkfast.kernels import reference

pytestmark = MARKS

_RIVALS = ("gkfast", "chunked torch", "torch.compile")
_CASES = [
    *[(Case("rbf_matmul", 8192, d), (*_RIVALS, "eager")) for d in (3, 16)],
    (Case("rbf_matmul", 8192, 64), (*_RIVALS, "eager", ONE_THREAD)),
    (Case("rbf_matmul", 8192, 256), (*_RIVALS, "eager")),
    *[(Case("rbf_matmul", 8192, d, columns=16), _RIVALS) for d in (3, 64)],
    *[(Case("rbf_matmul", 4096, d, dtype="float64"), ("gkfast", "chunked torch")) for d in (16, 64, 256)],
]
_THREADS = [(Case("rbf_matmul", n, 64), (*_RIVALS, ONE_THREAD)) for n in (2048, 4096)]
# for the plots of time against N and D
_SWEEP = [
    *[(Case("rbf_matmul", n, 64, sweep=True), _RIVALS) for n in (256, 512, 1024)],
    (Case("rbf_matmul", 16384, 64, sweep=True), ("gkfast", "chunked torch")),
    *[(Case("rbf_matmul", 8192, d, sweep=True), ("gkfast", "chunked torch")) for d in (8, 32, 128)],
]


def make(case, name):
    """The function to time, which returns the output that is checked."""
    x, y = points(case)
    v, sigma = right_hand_side(case), case.sigma
    if name == ONE_THREAD:
        return on_one_thread(make(case, "gkfast"))
    if name == "gkfast":
        return lambda: {"product": gkfast.rbf_matmul(x, y, v, sigma)}
    if name == "chunked torch":
        run = rivals.chunked_matmul(x, y, v, sigma)
        return lambda: {"product": run()}

    def product(x, y, v):
        return rivals.eager(x, y, sigma) @ v

    if name == "torch.compile":
        product = rivals.compiled(product)
    return lambda: {"product": product(x, y, v)}


def exact(case):
    """The checked rows of K @ v, by the reference in float64."""
    x, y = (a.double() for a in points(case))
    v, sigma = right_hand_side(case).double(), case.sigma_rows
    rows = checked_rows(case)
    products = [
        reference.rbf_matmul(x[None, b], y[None], v[None], sigma, torch.ones_like(sigma))[0]
        for b in blocks(rows, case)
    ]
    return Exact(rows, {"product": torch.cat(products)})


_ROWS = [(case, name) for case, names in _CASES + _THREADS + _SWEEP for name in names]


@pytest.mark.parametrize(("case", "name"), _ROWS, ids=identifier)
def test_rbf_matmul(case, name, row):
    row(case, name, make, exact)
