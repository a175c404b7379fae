"""The kernel matrix and its gradients."""

import numpy as np

from .packed import pack
from .sums import sweep
from .sweep import rbf_rows
from .threads import run_rows


def rbf(x, y, sigma, weights, out=None):
    """K, (B, N, M). See gkfast.rbf."""
    packed = pack(x, y, sigma)
    rows, columns = packed.x.rows, packed.y.columns
    batch, n, dims = rows.shape
    if out is None:
        out = np.empty((batch, n, columns.shape[2]), x.dtype)
    weights = weights.astype(x.dtype)

    def task(start, stop):
        rbf_rows(rows, columns, packed.scale, weights, out, start, stop)

    run_rows(task, batch * n, columns.shape[2] * (dims + 10 * sigma.shape[1]))
    return out


def rbf_backward(g, x, y, sigma, weights, wants):
    """Gradients of sum_ij g_ij K_ij to (x, y, sigma, weights); those not wanted are None. y None: x is both.

    The gradient to y is the same sweep with rows and columns exchanged, over a transposed copy of g.
    """
    want_x, want_y, want_sigma, want_weights = wants
    packed = pack(x, y, sigma)

    def pull(rows, columns, pairs):
        return sweep(packed, rows, columns, weights, pairs=pairs, want_dx=True).dx.astype(x.dtype)

    dx = dy = dsigma = dweights = None
    if want_x and y is None:
        # x moves both ends of every pair
        dx = pull(packed.x, packed.x, g + g.transpose(0, 2, 1))
    elif want_x:
        dx = pull(packed.x, packed.y, g)
    if want_y:
        dy = pull(packed.y, packed.x, g.transpose(0, 2, 1))
    if want_sigma or want_weights:
        moments = sweep(packed, packed.x, packed.y, weights, pairs=g, want_parameters=True)
        dsigma = moments.dsigma if want_sigma else None
        dweights = moments.dweights if want_weights else None
    return dx, dy, dsigma, dweights
