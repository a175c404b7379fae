"""What is subtracted from each bandwidth's kernel before it is summed."""

import numpy as np

from .compiled import compiled
from .memory import behaved


def baselines(x, y, sigma):
    """1 or 0 for each bandwidth, (B, S) float64. See gkfast.kernels.reference.baselines."""
    mean_square = np.empty(len(x))
    _mean_square_distance(behaved(x), behaved(y), mean_square)
    # a square beyond the range is infinite, which is as wide as it should be
    with np.errstate(over="ignore"):
        squares = np.square(sigma)
    return (mean_square[:, None] <= squares).astype(np.float64)


@compiled
def _mean_square_distance(x, y, out):
    """out (B,): the mean of |z_i - z_j|^2 over all i and j, z being x and y together; no digits are promised."""
    batch, dims = x.shape[0], x.shape[2]
    total = np.empty(dims)
    for b in range(batch):
        total[:] = 0
        squares = 0.0
        origin = x[b, 0] if x.shape[1] else y[b, 0]
        for points in (x[b], y[b]):
            for i in range(len(points)):
                row = points[i]
                for k in range(dims):
                    away = np.float64(row[k]) - np.float64(origin[k])
                    total[k] += away
                    squares += away * away
        count = x.shape[1] + y.shape[1]
        of_mean = 0.0
        for k in range(dims):
            of_mean += (total[k] / count) ** 2
        out[b] = 2 * (squares / count - of_mean)
