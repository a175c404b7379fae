"""Bandwidths from the data: the mean and the median pair distance.

Multiply by a ladder for a mixture, for example ``[gkfast.median_sigma(x, y) * r for r in (1/8, 1/4, 1/2, 1, 2)]``. Of
a batch each problem has its own bandwidth; one alone is passed as ``gkfast.median_sigma(x, y)[..., None]``.
"""

import math
import sys
from contextlib import nullcontext
from typing import Any

import numpy as np

from gkfast import checks
from gkfast.checks import Array


def _given(x: Array, found: Array) -> Array:
    """In float64 for float64 data, else in float32; a length beyond the range is infinite."""
    xp = sys.modules["torch"] if checks.is_tensor(x) else np
    dtype = xp.float64 if x.dtype == xp.float64 else xp.float32
    if checks.is_tensor(x):
        return found.to(dtype)
    with np.errstate(over="ignore"):
        return found.astype(dtype)


def _pooled(x: Array, y: Array | None) -> tuple[Any, Array, Array]:
    """The library, x and y as one (..., N + M, D) in the dtype that is computed in, in units, and these units (...,).

    The unit is a power of two, which rounds nothing; squares of the numbers then stay in range.
    """
    if y is None:
        checks.points("x", x)
    else:
        checks.two_point_sets("x", x, "y", y)
    xp = sys.modules["torch"] if checks.is_tensor(x) else np
    # squares of float32 may leave its range; a device that has no float64 takes the risk
    compute = xp.float32 if checks.is_tensor(x) and x.device.type == "mps" else xp.float64
    arrays = [x] if y is None else [x, y]
    batch = checks.batch_shape([("x" if a is x else "y", tuple(a.shape[:-2])) for a in arrays])
    arrays = [a.to(compute) if checks.is_tensor(x) else a.astype(compute) for a in arrays]
    wide = [xp.broadcast_to(a, (*batch, *a.shape[-2:])) for a in arrays]
    pooled = xp.concatenate(wide, axis=-2)
    checks.some_rows("x" if y is None else "x and y together", pooled, 2, "a pair distance")
    if pooled.shape[-1] == 0:
        return xp, pooled, pooled.sum(-1).sum(-1) + 1
    greatest = xp.amax(abs(checks.detached(pooled)), (-2, -1))
    moderate = (greatest > 0) & (greatest < math.inf)
    unit = xp.exp2(xp.floor(xp.log2(xp.where(moderate, greatest, 1.0))))
    return xp, pooled / unit[..., None, None], unit


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
    xp, z, unit = _pooled(x, y)
    # centred first: the squares of coordinates far from the origin would cancel; from one of the rows, whose
    # differences from equal rows are 0, where a mean is rounded
    with np.errstate(invalid="ignore", over="ignore") if xp is np else nullcontext():
        apart = z - z[..., :1, :]
        centred = apart - apart.mean(-2)[..., None, :]
        squares = (centred * centred).sum(-1).sum(-1)
    return _given(x, xp.sqrt(2 * squares / (z.shape[-2] - 1)) * unit)


def median_sigma(x: Array, y: Array | None = None, *, max_points: int = 2000) -> Array:
    """Median distance over pairs of different rows (the median heuristic).

    .. code-block:: text

        sigma = median of |z_i - z_j|, i < j

    where z is x, or x and y together; of an even number of distances the mean of the two in the middle. Of more than
    max_points rows, that many are taken at even spacing, so the answer is deterministic; shuffle sorted data first.

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
        A length in the units of x; float32 for half-precision input. 0 where more than half of the distances are 0:
        not a bandwidth.

    Raises
    ------
    ValueError
        With fewer than two rows.

    Notes
    -----
    O(max_points^2 D) time, for each of a batch, O(max_points^2) memory. Right to 1e-11 up to max_points rows; beyond,
    an estimate whose error falls as 1 / sqrt(max_points). Differentiable: the gradient is that of the distances in
    the middle; detach it where the bandwidth is to be a constant.

    References
    ----------
    A. Gretton et al., "A kernel two-sample test", JMLR 2012, section 8.

    Examples
    --------
    >>> import numpy, gkfast
    >>> float(gkfast.median_sigma(numpy.array([[0.0], [1.0], [3.0]])))
    2.0
    """
    if not isinstance(max_points, int) or isinstance(max_points, bool) or max_points < 2:
        raise ValueError(f"max_points must be a whole number of at least 2, got {max_points!r}; 2000 is the default")
    xp, z, unit = _pooled(x, y)
    if z.shape[-2] > max_points:
        rows = xp.arange(max_points, **({"device": z.device} if checks.is_tensor(z) else {}))
        rows = rows * z.shape[-2] // max_points
        z = z.index_select(-2, rows) if checks.is_tensor(z) else z[..., rows, :]
    if checks.is_tensor(z):
        return _given(x, _median_of_tensor(z) * unit)
    flat = z.reshape(math.prod(z.shape[:-2]), *z.shape[-2:])
    medians = [_median_of_rows(part) for part in flat]
    return _given(x, np.array(medians, dtype=z.dtype).reshape(z.shape[:-2]) * unit)[()]


def _median_of_rows(z: np.ndarray) -> Any:
    count = len(z) * (len(z) - 1) // 2
    with np.errstate(invalid="ignore", over="ignore"):
        pairs = _middle_pairs_by_products(z)
        if pairs is not None:
            return np.linalg.norm(z[pairs // len(z)] - z[pairs % len(z)], axis=1).mean()
        squares = np.zeros((len(z), len(z)), z.dtype)
        for column in z.T:
            squares += np.square(column[:, None] - column[None, :])
        ordered = np.sort(np.sqrt(squares[np.triu_indices(len(z), 1)]))
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2


def _middle_pairs_by_products(z: np.ndarray) -> np.ndarray | None:
    """The places in a matrix (n, n) of the two distances in the middle; None where |a|^2 + |b|^2 - 2 a.b may not do.

    Its rounding may give a pair whose distance is off by 1e-11 of itself; the caller computes that distance anew.
    """
    n, dims = z.shape
    count = n * (n - 1) // 2
    centred = z - z.mean(0)
    norms = np.einsum("nd,nd->n", centred, centred)
    squares = centred @ (-2 * centred.T)
    squares += norms[:, None]
    squares += norms
    np.fill_diagonal(squares, math.inf)
    # each pair stands in the matrix twice
    places = [2 * ((count - 1) // 2), 2 * (count // 2)]
    flat = squares.reshape(-1)
    middle = np.partition(flat, places)[places]
    # of a sum of so many products, whatever their order
    rounding = 4 * (dims + 4) * np.finfo(z.dtype).eps * norms.max()
    if not rounding <= 2e-11 * middle[0]:
        return None
    return np.array([np.flatnonzero(flat == value)[0] for value in middle])


def _median_of_tensor(z: Any) -> Any:
    torch = sys.modules["torch"]
    batch, (n, dims) = tuple(z.shape[:-2]), z.shape[-2:]
    flat = z.reshape(math.prod(batch), n, dims)
    if len(flat) == 0:
        # empty, and still made of z
        return z.sum((-2, -1))
    values, pairs = zip(*(_middle_pairs(part) for part in flat.detach().unbind()), strict=True)
    # their distances anew, so that they have their gradients
    places = torch.stack(pairs)
    first, second = (flat.gather(1, k[..., None].expand(-1, -1, dims)) for k in (places // n, places % n))
    distances = torch.linalg.vector_norm(first - second, dim=-1)
    medians = torch.stack(values)
    return torch.where(medians.isnan(), medians, distances).mean(-1).reshape(batch)


def _middle_pairs(z: Any) -> tuple[Any, Any]:
    """The two distances in the middle, and the places of their pairs in a matrix (n, n)."""
    torch = sys.modules["torch"]
    from gkfast.ops.torch_private import eager_place

    n = len(z)
    count = n * (n - 1) // 2
    if eager_place([z]) == "cpu" and z.dtype == torch.float64:
        with np.errstate(invalid="ignore", over="ignore"):
            by_products = _middle_pairs_by_products(z.numpy())
        if by_products is not None:
            pairs = torch.from_numpy(by_products)
            return torch.linalg.vector_norm(z[pairs // n] - z[pairs % n], dim=-1), pairs
    # differences, not the matrix-product form, which loses far-away neighbours; NaN, which is the last in order,
    # where a pair would count twice
    distances = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist")
    upper = distances.masked_fill(torch.ones_like(distances, dtype=torch.bool).tril(), math.nan).flatten()
    found = [torch.kthvalue(upper, k + 1) for k in sorted({(count - 1) // 2, count // 2})]
    found = found * 2 if len(found) == 1 else found
    return torch.stack([f.values for f in found]), torch.stack([f.indices for f in found])
