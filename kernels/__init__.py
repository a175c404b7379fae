"""The kernels of gkfast: one op, one name, in every backend (reference, cpu, gpu).

This folder is the import package ``gkfast.kernels``. Kernels trust their arguments: the public functions in
``gkfast.functional`` check. Shapes here always carry one batch dimension: x (B, N, D), y (B, M, D).
"""

if __name__ != "gkfast.kernels":
    raise ImportError(
        "this folder is the package gkfast.kernels, not a top-level package; "
        "install gkfast (pip install -e .) and import gkfast.kernels"
    )
