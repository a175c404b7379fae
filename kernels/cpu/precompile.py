"""Every operation called once, so that no later call waits for compilation: `gkfast compile`."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .drift import drift
from .kernel_sums import kernel_sums_with_gradients
from .log_density import log_density, score
from .rbf import rbf, rbf_backward
from .rbf_matmul import rbf_matmul, rbf_matmul_backward


def compile_everything() -> Iterator[tuple[str, float]]:
    """What has been compiled, or loaded from disk, and the seconds that it took."""
    for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        for name, call in _operations(dtype).items():
            start = time.perf_counter()
            call()
            yield f"{name}, {dtype}", time.perf_counter() - start


def _operations(dtype: np.dtype) -> dict[str, Callable[[], Any]]:
    x, u, v = np.zeros((1, 2, 1), dtype), np.ones((1, 2), dtype), np.ones((1, 2, 1), dtype)
    one, scale, row_weights, yes = np.ones((1, 1)), np.ones((1, 1, 3)), np.ones((1, 2)), (True,) * 6
    return {
        "rbf": lambda: rbf(x, None, one, one),
        "rbf_matmul": lambda: rbf_matmul(x, x, v, one, one),
        "mmd2": lambda: kernel_sums_with_gradients(scale, x, x, u, u, one, one, one, drop=1, wants=yes),
        "rbf gradient": lambda: rbf_backward(v @ v.mT, x, x, one, one, wants=yes[:4]),
        "rbf_matmul gradient": lambda: rbf_matmul_backward(v, x, x, v, one, one, wants=yes[:5]),
        "log_density": lambda: log_density(x, x, one, one, row_weights, leave_one_out=False, in_float64=False),
        "drift": lambda: drift(x, x, x, one, row_weights, row_weights, powers=(0.5, 0.5), skip_diagonal=True),
        "score": lambda: score(x, x, one, one, row_weights, leave_one_out=False),
    }
