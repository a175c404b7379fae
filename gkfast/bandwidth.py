"""Bandwidths from the data: the mean and the median pair distance.

Multiply by a ladder for a mixture, for example ``[gkfast.median_sigma(x, y) * r for r in (1/8, 1/4, 1/2, 1, 2)]``.
"""

import sys
from typing import Any

import numpy as np

from gkfast import checks
from gkfast.checks import Array


def _given(x: Array, found: Array) -> Array:
    """In float64 for float64 data, else in float32."""
    xp = sys.modules["torch"] if checks.is_tensor(x) else np
    dtype = xp.float64 if x.dtype == xp.float64 else xp.float32
    return found.to(dtype) if checks.is_tensor(x) else found.astype(dtype)


def _pooled(x: Array, y: Array | None) -> tuple[Any, Array]:
    """The library, and x and y as one (..., N + M, D) in the dtype that is computed in."""
    if y is None:
        checks.points("x", x)
    else:
        checks.two_point_sets("x", x, "y", y)
    xp = sys.modules["torch"] if checks.is_tensor(x) else np
    # squares of float32 may leave its range; a device that has no float64 takes the risk
    compute = xp.float32 if checks.is_tensor(x) and x.device.type == "mps" else xp.float64
    arrays = [x] if y is None else [x, y]
    batch = checks.batch_shape([("x" if a is x else "y", tuple(a.shape[:-2])) for a in arrays])
    wide = [xp.broadcast_to(a, (*batch, *a.shape[-2:])) for a in arrays]
    pooled = xp.concatenate(wide, axis=-2)
    pooled = pooled.to(compute) if checks.is_tensor(x) else pooled.astype(compute)
    checks.some_rows("x" if y is None else "x and y together", pooled, 2, "a pair distance")
    return xp, pooled


def mean_sigma(x: Array, y: Array | None = None) -> Array:
    """Root mean squared distance over all pairs of different rows.

    .. code-block:: text

        sigma^2 = sum_{i != j} |z_i - z_j|^2 / (n (n - 1)) = 2 sum_i |z_i - mean z|^2 / (n - 1)

    where z is x, or x and y together with n = N + M rows.

    Parameters
    ----------
    x : array of shape (..., N, D)
        Points; NumPy array or torch tensor of a floating dtype.
    y : array of shape (..., M, D), optional
        More points, pooled with x.

    Returns
    -------
    array of shape (...,)
        A length in the units of x; float32 for half-precision input. 0 where all rows are equal: not a bandwidth.

    Raises
    ------
    ValueError
        With fewer than two rows.

    Notes
    -----
    Closed form, O(N D) time and no pairs. Differentiable; detach it where the bandwidth is to be a constant. Widely
    copied multi-kernel MMD code uses bandwidth = sigma^2 with exp(-d^2 / bandwidth): that is sigma / sqrt(2) here.

    Examples
    --------
    >>> import numpy, gkfast
    >>> float(gkfast.mean_sigma(numpy.array([[0.0], [2.0]])))
    2.0
    """
    xp, z = _pooled(x, y)
    # centred first: the squares of coordinates far from the origin would cancel
    centred = z - z.mean(-2)[..., None, :]
    return _given(x, xp.sqrt(2 * (centred * centred).sum(-1).sum(-1) / (z.shape[-2] - 1)))


def median_sigma(x: Array, y: Array | None = None, *, max_points: int = 2000) -> Array:
    """Median distance over pairs of different rows (the median heuristic).

    .. code-block:: text

        sigma = median of |z_i - z_j|, i < j

    where z is x, or x and y together. Of more than max_points rows, that many are taken at even spacing, so the
    answer is deterministic; shuffle sorted data first.

    Parameters
    ----------
    x : array of shape (..., N, D)
        Points; NumPy array or torch tensor of a floating dtype.
    y : array of shape (..., M, D), optional
        More points, pooled with x.
    max_points : int
        How many rows are used at most; at least 2.

    Returns
    -------
    array of shape (...,)
        A length in the units of x, with no gradient; float32 for half-precision input. 0 where at least half of the
        distances are 0: not a bandwidth.

    Raises
    ------
    ValueError
        With fewer than two rows.

    Notes
    -----
    O(max_points^2 D) time, O(max_points^2) memory at most. Exact up to max_points rows; beyond, an estimate whose
    error falls as 1 / sqrt(max_points).

    References
    ----------
    A. Gretton et al., "A kernel two-sample test", JMLR 2012, section 8.

    Examples
    --------
    >>> import numpy, gkfast
    >>> float(gkfast.median_sigma(numpy.array([[0.0], [1.0], [3.0]])))
    2.0
    """
    checks.max_points(max_points)
    _, z = _pooled(x, y)
    if z.shape[-2] > max_points:
        rows = (np.arange(max_points) * z.shape[-2]) // max_points
        z = z[..., rows.tolist(), :]
    if checks.is_tensor(z):
        import torch

        z = z.detach()
        flat = z.reshape(-1, *z.shape[-2:])
        # differences, not the matrix-product form, which loses far-away neighbours
        distances = torch.stack([torch.nn.functional.pdist(part) for part in flat])
        middle = _middle(torch.sort(distances, -1).values)
        return _given(x, middle.reshape(z.shape[:-2]))
    flat = z.reshape(-1, *z.shape[-2:])
    upper = np.triu_indices(z.shape[-2], 1)
    medians = []
    for part in flat:
        squares = np.zeros((len(part), len(part)), z.dtype)
        for column in part.T:
            squares += np.square(column[:, None] - column[None, :])
        medians.append(_middle(np.sort(np.sqrt(squares[upper]))))
    return _given(x, np.array(medians, dtype=z.dtype).reshape(z.shape[:-2]))[()]


def _middle(ordered: Array) -> Array:
    count = ordered.shape[-1]
    return (ordered[..., (count - 1) // 2] + ordered[..., count // 2]) / 2
