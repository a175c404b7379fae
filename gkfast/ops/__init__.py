"""The torch operators `gkfast::*`: each a declaration, from which operator.py makes kernels' calls and derivatives.

One algebra gives all derivatives. With S = sum_ij K_ij g_i . v_j, every first derivative of an operator here is a
first derivative of S, with fused kernels (`*_backward`, and `kernel_sums`, which computes its gradients in the
forward sweep). Forward mode asks for the change of S along a direction, and that is again a product with the kernel
matrix (`RbfMatmul.change`); a second derivative, in either mode, is a derivative of that change. So these need no
kernels of their own and O(N) memory.
"""

from gkfast.ops.drift import drift
from gkfast.ops.kernel_sums import baselines, kernel_sums, kernel_sums_with_gradients, mmd2, mmd2_by_bandwidth
from gkfast.ops.log_density import log_density, log_density_by_bandwidth, score
from gkfast.ops.operator import default_precision, differentiated, torch_precision, visible
from gkfast.ops.rbf import rbf, rbf_backward, rbf_out
from gkfast.ops.rbf_matmul import rbf_matmul, rbf_matmul_backward

__all__ = [
    "baselines",
    "default_precision",
    "differentiated",
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
    "rbf_out",
    "score",
    "torch_precision",
    "visible",
]
