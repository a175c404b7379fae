"""The public functions of two point sets, each called as function(x, y, sigma, weights, ...).

Points are (..., N, D) and (..., M, D). v is multiplied with K, by default y; a witness is evaluated at z, by default
x; a and b are the weights of the rows of x and y. A function ignores those of v, z, a and b that it does not take.
"""

from typing import Any, NamedTuple

import numpy as np
import torch

import gkfast


class _Arrays(NamedTuple):
    x: Any
    y: Any
    v: Any
    z: Any
    a: Any
    b: Any


def _of_equal_size(p):
    n = min(p.x.shape[-2], p.y.shape[-2])
    return p.x[..., :n, :], p.y[..., :n, :]


def _weights(p):
    return {
        "x_weights": abs(p.x[..., 0]) if p.a is None else p.a,
        "y_weights": abs(p.y[..., 0]) if p.b is None else p.b,
    }


_CALLS = {
    "rbf": lambda p, **k: gkfast.rbf(p.x, p.y, **k),
    "rbf of x with itself": lambda p, **k: gkfast.rbf(p.x, **k),
    "rbf_matmul": lambda p, **k: gkfast.rbf_matmul(p.x, p.y, p.v, **k),
    "rbf_matmul of x with itself": lambda p, **k: gkfast.rbf_matmul(p.x, None, p.x[..., 0], **k),
    "log_density": lambda p, **k: gkfast.log_density(p.x, p.y, data_weights=p.b, **k),
    "log_density, weighted": lambda p, **k: gkfast.log_density(p.x, p.y, data_weights=_weights(p)["y_weights"], **k),
    "log_density, leave one out": lambda p, **k: gkfast.log_density(p.x, p.x, leave_one_out=True, **k),
    # each bandwidth has a density of its own, without a weight
    "log_density, by bandwidth": lambda p, weights, **k: gkfast.log_density(
        p.x, p.y, data_weights=p.b, by_bandwidth=True, **k
    ),
    "score": lambda p, **k: gkfast.score(p.x, p.y, data_weights=p.b, **k),
    "kernel_means": lambda p, **k: gkfast.kernel_means(p.x, p.y, x_weights=p.a, y_weights=p.b, **k),
    "mmd2": lambda p, **k: gkfast.mmd2(p.x, p.y, x_weights=p.a, y_weights=p.b, **k),
    "mmd2, weighted": lambda p, **k: gkfast.mmd2(p.x, p.y, **_weights(p), **k),
    "mmd2, by bandwidth": lambda p, **k: gkfast.mmd2(p.x, p.y, x_weights=p.a, y_weights=p.b, by_bandwidth=True, **k),
    "mmd2, biased": lambda p, **k: gkfast.mmd2(p.x, p.y, estimator="biased", x_weights=p.a, y_weights=p.b, **k),
    "mmd2, u_statistic": lambda p, **k: gkfast.mmd2(*_of_equal_size(p), estimator="u_statistic", **k),
    "mmd2, linear": lambda p, **k: gkfast.mmd2(*_of_equal_size(p), estimator="linear", **k),
    "witness": lambda p, **k: gkfast.witness(p.z, p.x, p.y, x_weights=p.a, y_weights=p.b, **k),
    "drift": lambda p, **k: gkfast.drift(p.x, p.y, real_weights=p.b, **k),
    "mmd2_and_variance": lambda p, **k: gkfast.mmd2_and_variance(p.x, p.y, **k),
    "mmd_test": lambda p, **k: gkfast.mmd_test(p.x, p.y, permutations=9, seed=0, **k),
}


def _with_one_signature(call):
    def function(x, y, sigma, weights=None, *, v=None, z=None, a=None, b=None, **options):
        arrays = _Arrays(x, y, y if v is None else v, x if z is None else z, a, b)
        result = call(arrays, sigma=sigma, weights=weights, **options)
        if not isinstance(result, tuple):
            return result
        # several results: along the last axis
        return (torch.stack if isinstance(result[0], torch.Tensor) else np.stack)(result, -1)

    return function


FUNCTIONS = {name: _with_one_signature(call) for name, call in _CALLS.items()}
WITHOUT_GRADIENT = ("drift", "mmd_test")
# one for each public function of gkfast.functional but witness
BASIC = ("rbf", "rbf_matmul", "log_density", "score", "kernel_means", "mmd2")


def selected(*names, **options):
    """The functions of these names, called with these options besides."""
    return {name: _with_options(FUNCTIONS[name], options) for name in names}


def _with_options(function, options):
    return lambda *arguments, **more: function(*arguments, **options, **more)
