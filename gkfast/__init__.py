"""gkfast: the Gaussian kernel of a kernel GAN, fast and right for every input.

    K[i, j] = sum_s w_s exp(-|x_i - y_j|^2 / (2 sigma_s^2))

Importing gkfast loads neither torch nor numba; each public name loads what it needs when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = [
    "kernel_means",
    "log_density",
    "mean_sigma",
    "median_sigma",
    "mmd2",
    "mmd2_and_variance",
    "mmd_test",
    "rbf",
    "rbf_matmul",
    "score",
    "witness",
]

if TYPE_CHECKING:
    from gkfast.bandwidth import mean_sigma, median_sigma
    from gkfast.functional import kernel_means, log_density, mmd2, rbf, rbf_matmul, score, witness
    from gkfast.two_sample import mmd2_and_variance, mmd_test

_HOME = {
    "kernel_means": "functional",
    "log_density": "functional",
    "mean_sigma": "bandwidth",
    "median_sigma": "bandwidth",
    "mmd2": "functional",
    "mmd2_and_variance": "two_sample",
    "mmd_test": "two_sample",
    "rbf": "functional",
    "rbf_matmul": "functional",
    "score": "functional",
    "witness": "functional",
}
_MODULES = ("bandwidth", "distributed", "functional", "gan", "kernels", "nn", "ops", "two_sample")


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"gkfast.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return import_module(f"gkfast.{name}")
    if name == "__version__":
        from importlib.metadata import version

        return version("gkfast")
    raise AttributeError(f"module 'gkfast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES, "__version__"])
