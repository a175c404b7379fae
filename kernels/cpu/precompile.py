"""Everything compiled beforehand, so that no later call waits for it: `gkfast compile`."""

import gc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from .baselines import baselines
from .calls import only_compiling, pointers_of
from .drift import drift
from .gradients import adding, pulling
from .kernel_sums import kernel_sums_with_gradients
from .log_density import log_density, score
from .mixing import BY_BANDWIDTH, MIXING, make_coefficients, reading
from .rbf import rbf, rbf_backward
from .rbf_matmul import rbf_matmul, rbf_matmul_backward

DTYPES = np.dtype(np.float32), np.dtype(np.float64)


def parts() -> list[tuple[str, Callable[[], Any]]]:
    """All that there is to compile, or to load from disk: what it is for, and a function that does it."""
    return [(f"{name}, {dtype}", part) for dtype in DTYPES for name, part in _parts(dtype)]


def compile_everything() -> Iterator[str]:
    """Compiles part by part, and says which has been done."""
    # without the calls, Python goes on with results of undefined content
    with only_compiling(), np.errstate(all="ignore"):
        for number, (name, part) in enumerate(parts()):
            part()
            if number % 4 == 3:
                # `compiling` leaves the garbage: looking for it takes a quarter of a second
                gc.collect()
            yield name


def _parts(dtype: np.dtype) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield from _operations(dtype).items()
    steps = dict.fromkeys([pulling, adding, make_coefficients, reading, *MIXING.values(), BY_BANDWIDTH])
    yield "steps of sweeps", partial(pointers_of, dtype, *steps)


def _operations(dtype: np.dtype) -> dict[str, Callable[[], Any]]:
    x, u, v = np.zeros((1, 2, 1), dtype), np.ones((1, 2), dtype), np.ones((1, 2, 1), dtype)
    one, scale, row_weights, yes = np.ones((1, 1)), np.ones((1, 1, 3)), np.ones((1, 2)), (True,) * 6
    # many problems, small enough for one panel; those of any size are then compiled too
    z, ones, scales = np.zeros((8, 2, 1), dtype), np.ones((8, 1)), np.ones((8, 1, 3))
    some = (True, True, False, False, False, False)
    return {
        "rbf": lambda: rbf(x, None, one, one),
        "rbf_matmul": lambda: rbf_matmul(x, x, v, one, one),
        "baselines": lambda: baselines(x, x, one),
        "mmd2": lambda: kernel_sums_with_gradients(
            scale, x, x, u, u, one, one, drop=1, wants=yes, less_baselines=True
        ),
        "mmd2 of many problems": lambda: kernel_sums_with_gradients(
            scales, z, z, None, None, ones, ones, drop=1, wants=some, less_baselines=True
        ),
        "log_density": lambda: log_density(x, x, one, one, row_weights, leave_one_out=False, in_float64=False),
        "rbf gradient": lambda: rbf_backward(v @ v.mT, x, x, one, one, wants=yes[:4]),
        "rbf_matmul gradient": lambda: rbf_matmul_backward(v, x, x, v, one, one, wants=yes[:5]),
        "drift": lambda: drift(x, x, x, one, row_weights, row_weights, powers=(0.5, 0.5), skip_diagonal=True),
        "score": lambda: score(x, x, one, one, row_weights, leave_one_out=False),
    }
