"""CPU kernels: NumPy arrays in and out, float32 or float64, compiled by Numba.

packed   the data in units and order fit for the sweeps
exp2     2**t as vector code
sweep    the compiled loops over all pairs
sums     one call of the sum sweep
threads  who runs which rows
rbf, rbf_matmul, log_density, kernel_sums   the operations
"""

from .kernel_sums import kernel_sums, kernel_sums_with_gradients, mmd2
from .log_density import log_density, score
from .rbf import rbf, rbf_backward
from .rbf_matmul import rbf_matmul, rbf_matmul_backward

__all__ = [
    "kernel_sums",
    "kernel_sums_with_gradients",
    "log_density",
    "mmd2",
    "rbf",
    "rbf_backward",
    "rbf_matmul",
    "rbf_matmul_backward",
    "score",
]
