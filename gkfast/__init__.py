"""gkfast: the Gaussian kernel of a kernel GAN, fast and right for every input.

    K[i, j] = sum_s w_s exp(-|x_i - y_j|^2 / (2 sigma_s^2))

Importing gkfast loads neither torch nor numba; each public name loads what it needs when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gkfast.bandwidth import mean_sigma as mean_sigma
    from gkfast.bandwidth import median_sigma as median_sigma
    from gkfast.density import log_density as log_density
    from gkfast.density import score as score
    from gkfast.detection import TwoSampleTest as TwoSampleTest
    from gkfast.drifting import drift as drift
    from gkfast.embedding import mean_embedding as mean_embedding
    from gkfast.functional import mmd2 as mmd2
    from gkfast.functional import rbf as rbf
    from gkfast.functional import rbf_matmul as rbf_matmul
    from gkfast.functional import witness as witness
    from gkfast.groups import pairwise_mmd2 as pairwise_mmd2
    from gkfast.independence import hsic as hsic
    from gkfast.means import kernel_means as kernel_means
    from gkfast.means import row_means as row_means
    from gkfast.two_sample import mmd2_and_variance as mmd2_and_variance
    from gkfast.two_sample import mmd_test as mmd_test

_PUBLIC = {
    "bandwidth": "mean_sigma median_sigma",
    "density": "log_density score",
    "detection": "TwoSampleTest",
    "drifting": "drift",
    "embedding": "mean_embedding",
    "functional": "mmd2 rbf rbf_matmul witness",
    "groups": "pairwise_mmd2",
    "independence": "hsic",
    "means": "kernel_means row_means",
    "two_sample": "mmd2_and_variance mmd_test",
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names.split()}
__all__ = sorted(_MODULE_OF)
_MODULES = (
    "bandwidth",
    "density",
    "detection",
    "distributed",
    "drifting",
    "embedding",
    "functional",
    "gan",
    "groups",
    "independence",
    "kernels",
    "means",
    "metrics",
    "nn",
    "ops",
    "two_sample",
)


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        value = getattr(import_module(f"gkfast.{_MODULE_OF[name]}"), name)
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
