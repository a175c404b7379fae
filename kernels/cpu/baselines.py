"""Which bandwidths are summed as k - 1."""

import numpy as np

from .arrays import empty, fill
from .calls import operation
from .compiled import inner
from .memory import as_contiguous


def baselines(x, y, sigma):
    """1 or 0 for each bandwidth, (B, S) float64. See gkfast.kernels.reference.baselines."""
    out = np.empty(sigma.shape)
    _baselines(x.dtype, 0, as_contiguous(x), as_contiguous(y), as_contiguous(sigma), out)
    return out


@operation()
def _baselines(run, x, y, sigma, out):
    find_baselines(run[2], x, y, sigma, out)


@inner
def find_baselines(memory, x, y, sigma, out):
    """Fills out as `baselines` does, for compiled code."""
    batch, dims = x.shape[0], x.shape[2]
    # by coordinate, so that the loop becomes vector code
    sums, squares = empty(memory, dims, np.float64), empty(memory, dims, np.float64)
    for b in range(batch):
        fill(sums, 0)
        fill(squares, 0)
        origin = x[b, 0] if x.shape[1] else y[b, 0]
        for points in (x[b], y[b]):
            for i in range(len(points)):
                row = points[i]
                for k in range(dims):
                    away = np.float64(row[k]) - np.float64(origin[k])
                    sums[k] += away
                    squares[k] += away * away
        count = x.shape[1] + y.shape[1]
        mean_square = 0.0
        for k in range(dims):
            mean = sums[k] / count
            mean_square += 2 * (squares[k] / count - mean * mean)
        for s in range(sigma.shape[1]):
            out[b, s] = 1.0 if mean_square <= sigma[b, s] * sigma[b, s] else 0.0
