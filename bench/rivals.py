"""What gkfast is timed against, each at its best setting that needs no rewriting of its algorithm.

Kernels take x (N, D), y (M, D) and the bandwidths, and return K (N, M); `mmd2` builds the unbiased estimate from one.
Everything in plain torch has its exponent clamped: torch.exp is 10 to 150 times slower where float32 underflows
(pytorch#48388). A rival that is not installed skips its row and says what is missing.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce

import numpy as np
import pytest
import torch
from torch import Tensor

Kernel = Callable[[Tensor, Tensor, Sequence[float]], Tensor]

# exp of less is no normal float32
_LEAST_EXPONENT = -87


def squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """|x|^2 + |y|^2 - 2 x.y, as people write it."""
    return x.square().sum(1)[:, None] + y.square().sum(1) - 2 * (x @ y.T)


def add_up(terms: Iterable[Tensor]) -> Tensor:
    # Python's sum begins with 0, which is one pass over a matrix too many
    return reduce(torch.add, terms)


def eager(x: Tensor, y: Tensor, sigma: Sequence[float]) -> Tensor:
    d = squared_distance(x, y)
    return add_up(torch.exp((d / (-2 * s * s)).clamp(min=_LEAST_EXPONENT)) for s in sigma)


def eager_in_place(x: Tensor, y: Tensor, sigma: Sequence[float]) -> Tensor:
    """One bandwidth and no gradient: the only new memory is K's."""
    a, b = _factors(x, y, sigma[0])
    return (a @ b).clamp_(min=_LEAST_EXPONENT).exp_()


def _factors(x: Tensor, y: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """a (N, D + 2) and b (D + 2, M) whose product is the exponent: two more columns spare two passes over K."""
    a, b = x / sigma, y / sigma
    half_x, half_y = a.square().sum(1, keepdim=True) / -2, b.square().sum(1, keepdim=True) / -2
    a = torch.cat([a, half_x, torch.ones_like(half_x)], 1)
    return a, torch.cat([b, torch.ones_like(half_y), half_y], 1).T


def chunked_matmul(x: Tensor, y: Tensor, v: Tensor, sigma: Sequence[float]) -> Callable[[], Tensor]:
    """K @ v by blocks of rows in one buffer."""

    def run(rows: int) -> Tensor:
        a, b = _factors(x, y, sigma[0])
        out = x.new_empty(len(x), v.shape[1])
        for k, part in _blocks(a, b, rows):
            torch.mm(k.clamp_(min=_LEAST_EXPONENT).exp_(), v, out=out[part])
        return out

    return _at_best_rows(run)


def chunked_log_density(x: Tensor, y: Tensor, sigma: Sequence[float]) -> Callable[[], Tensor]:
    """torch.logsumexp by blocks of rows in one buffer."""
    s, d = sigma[0], x.shape[1]
    log_normaliser = math.log(len(y)) + d * math.log(s) + 0.5 * d * math.log(2 * math.pi)

    def run(rows: int) -> Tensor:
        a, b = _factors(x, y, s)
        out = x.new_empty(len(x))
        for k, part in _blocks(a, b, rows):
            torch.logsumexp(k, 1, out=out[part])
        return out.sub_(log_normaliser)

    return _at_best_rows(run)


def _blocks(a: Tensor, b: Tensor, rows: int) -> Iterator[tuple[Tensor, slice]]:
    buffer = a.new_empty(rows, b.shape[1])
    for start in range(0, len(a), rows):
        part = slice(start, min(start + rows, len(a)))
        yield torch.mm(a[part], b, out=buffer[: part.stop - start]), part


def _at_best_rows(run: Callable[[int], Tensor]) -> Callable[[], Tensor]:
    def seconds(rows: int) -> float:
        start = time.perf_counter()
        run(rows)
        return time.perf_counter() - start

    run(64)
    best = min((64, 256, 1024), key=seconds)
    return lambda: run(best)


def mmd2(kernel: Kernel, x: Tensor, y: Tensor, sigma: Sequence[float]) -> Tensor:
    """The unbiased estimate from three stored matrices, as MMD-GAN code has it."""
    n, m = len(x), len(y)
    xx, yy, xy = kernel(x, x, sigma), kernel(y, y, sigma), kernel(x, y, sigma)
    within_x = (xx.sum() - xx.diagonal().sum()) / (n * (n - 1))
    within_y = (yy.sum() - yy.diagonal().sum()) / (m * (m - 1))
    return within_x + within_y - 2 * xy.mean()


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.compile for fixed shapes; the first call compiles."""
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    # the sizes before would count against the limit on recompilations
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, dynamic=False)


def numpy(x: Tensor, y: Tensor, sigma: Sequence[float]) -> Callable[[], Tensor]:
    """The same formula on arrays."""
    a, b, scale = x.numpy(), y.numpy(), np.float32(-1 / (2 * sigma[0] ** 2))

    def run() -> Tensor:
        d = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * (a @ b.T)
        return torch.from_numpy(np.exp(scale * d))

    return run


def scikit_learn(x: Tensor, y: Tensor, sigma: Sequence[float]) -> Callable[[], Tensor]:
    pairwise = pytest.importorskip("sklearn.metrics.pairwise", reason="scikit-learn is not installed")
    a, b, gamma = x.numpy(), y.numpy(), 1 / (2 * sigma[0] ** 2)
    return lambda: torch.from_numpy(pairwise.rbf_kernel(a, b, gamma=gamma))


def scikit_learn_density(x: Tensor, y: Tensor, sigma: Sequence[float]) -> Callable[[], Tensor]:
    """Exact, as its tolerances are by default; the tree is built before the clock starts."""
    neighbors = pytest.importorskip("sklearn.neighbors", reason="scikit-learn is not installed")
    # long leaves: where D is high a tree finds nothing to leave out
    tree = neighbors.KernelDensity(bandwidth=sigma[0], algorithm="ball_tree", leaf_size=1000).fit(y.numpy())
    a = x.numpy()
    return lambda: torch.from_numpy(tree.score_samples(a))


def gpytorch(sigma: Sequence[float], dtype: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
    kernels = pytest.importorskip("gpytorch.kernels", reason="gpytorch is not installed")
    kernel = kernels.RBFKernel().to(dtype).requires_grad_(False)
    kernel.lengthscale = sigma[0]
    # not kernel(x, y): the lazy wrapper costs time and gives nothing where the whole matrix is wanted
    return kernel.forward
