"""GPU kernels: torch tensors in and out, compiled by Triton.

    rbf   the kernel matrix and its gradients

Operations without a kernel here run the reference in torch. Without a GPU the same code runs under Triton's
interpreter (TRITON_INTERPRET=1, set before triton is imported), which is how the tests check it.
"""

from .rbf import rbf, rbf_backward

__all__ = ["rbf", "rbf_backward"]
