"""CPU kernels: NumPy arrays in and out, float32 or float64, compiled by Numba. README.md shows how they work.

points, bandwidths   what the tiles read, and which pairs are near
tile     the register tile: products, distances, pulls
vector   vector registers as values in Numba code, and 2**t
blocks, mixing, gradients, sweep   one sweep over all pairs: values and gradients
arrays   arrays within compiled code, and memory for them
calls, threads, pool, memory   who runs which rows, in what memory
compiled, passes, library      how code is compiled
processor, disk, precompile    for which processors, where it is kept, all of it beforehand
rbf, rbf_matmul, log_density, kernel_sums, drift   the operations; small_sets: kernel_sums of many tiny problems;
    small_drift: drift of those whose kernels stay in the cache; baselines: where some of their sums take k - 1

Shapes: x (B, N, D), y (B, M, D), v (B, M, E), sigma and weights (B, S) float64, a (B, N), b (B, M).
"""

from .baselines import baselines
from .drift import drift
from .kernel_sums import kernel_sums, kernel_sums_with_gradients, mmd2, mmd2_by_bandwidth
from .log_density import log_density, log_density_by_bandwidth, score
from .rbf import rbf, rbf_backward
from .rbf_matmul import rbf_matmul, rbf_matmul_backward

__all__ = [
    "baselines",
    "drift",
    "kernel_sums",
    "kernel_sums_with_gradients",
    "log_density",
    "log_density_by_bandwidth",
    "mmd2",
    "mmd2_by_bandwidth",
    "rbf",
    "rbf_backward",
    "rbf_matmul",
    "rbf_matmul_backward",
    "score",
]
