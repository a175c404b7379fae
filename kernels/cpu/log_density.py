"""Log-sum-exp over kernels, and its gradient at x.

Exponents of a density reach thousands where those of a kernel matter only to about 100: their rounding in float32
would be an error of the density itself. So these two work in float64 whatever the input.
"""

import numpy as np

from .packed import LOG2_E, pack
from .rbf_matmul import rbf_matmul_backward
from .sweep import log_sum_exp_rows
from .threads import run_rows


def log_density(x, y, sigma, log_weights, data_weights, leave_one_out):
    """log sum_sj data_weights_j exp(log_weights_s + log k_sij), (B, N) float64. See gkfast.log_density."""
    packed = pack(x.astype(np.float64), y.astype(np.float64), sigma)
    rows, columns = packed.x.rows, packed.y.columns
    batch, n, dims = rows.shape
    out = np.empty((batch, n))
    # the greatest weight is taken out, so that large normalisers do not round the exponents
    greatest = log_weights.max(1, keepdims=True)
    bandwidth_log = (log_weights - greatest) * LOG2_E
    with np.errstate(divide="ignore"):
        # a row without weight has no share
        column_log = np.log2(np.ascontiguousarray(data_weights, np.float64))

    def task(start, stop):
        log_sum_exp_rows(rows, columns, packed.scale, bandwidth_log, column_log, leave_one_out, start, stop, out)

    run_rows(task, batch * n, columns.shape[2] * (dims + 20 * sigma.shape[1]))
    return out / LOG2_E + greatest


def score(x, y, sigma, log_weights, data_weights, leave_one_out):
    """The gradient of log_density at x, (B, N, D). See gkfast.score."""
    log_p = log_density(x, y, sigma, log_weights, data_weights, leave_one_out)
    return rbf_matmul_backward(
        np.ones((*log_p.shape, 1)),
        x.astype(np.float64),
        y.astype(np.float64),
        data_weights[..., None],
        sigma,
        np.ones_like(sigma),
        (True, False, False, False, False),
        shift=log_p[..., None] - log_weights[:, None, :],
        skip_diagonal=leave_one_out,
    )[0].astype(x.dtype)
