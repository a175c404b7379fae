"""What gkfast is timed against, each at its best setting that needs no rewriting of its algorithm.

Kernels take x (N, D), y (M, D) and the bandwidths, and return K (N, M); `mmd2` builds the unbiased estimate from one.
A rival that is not installed skips its row and says what is missing.
"""

import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import reduce

import pytest
import torch
from torch import Tensor

Kernel = Callable[[Tensor, Tensor, Sequence[float]], Tensor]


def squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """|x|^2 + |y|^2 - 2 x.y, as people write it."""
    return x.square().sum(1)[:, None] + y.square().sum(1) - 2 * (x @ y.T)


def _sum(terms: Iterable[Tensor]) -> Tensor:
    # Python's sum begins with 0, which is one pass over a matrix too many
    return reduce(torch.add, terms)


def eager(x: Tensor, y: Tensor, sigma: Sequence[float]) -> Tensor:
    d = squared_distance(x, y)
    return _sum(torch.exp(d / (-2 * s * s)) for s in sigma)


def eager_clamped(x: Tensor, y: Tensor, sigma: Sequence[float]) -> Tensor:
    # torch.exp is 10 to 150 times slower where float32 underflows (pytorch#48388): a rival's best setting avoids it
    d = squared_distance(x, y)
    return _sum(torch.exp((d / (-2 * s * s)).clamp(min=-87)) for s in sigma)


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


def scikit_learn(x: Tensor, y: Tensor, sigma: Sequence[float]) -> Callable[[], Tensor]:
    pairwise = pytest.importorskip("sklearn.metrics.pairwise", reason="scikit-learn is not installed")
    a, b, gamma = x.numpy(), y.numpy(), 1 / (2 * sigma[0] ** 2)
    return lambda: torch.from_numpy(pairwise.rbf_kernel(a, b, gamma=gamma))


def gpytorch(sigma: Sequence[float], dtype: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
    kernels = pytest.importorskip("gpytorch.kernels", reason="gpytorch is not installed")
    kernel = kernels.RBFKernel().to(dtype).requires_grad_(False)
    kernel.lengthscale = sigma[0]
    # not kernel(x, y): the lazy wrapper costs time and gives nothing where the whole matrix is wanted
    return kernel.forward
