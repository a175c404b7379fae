"""The kernel mean of a large data set, as a sum of few kernels."""

import math
from typing import Any, Literal, NamedTuple

import numpy as np

from gkfast import checks, one_step_checks
from gkfast.arguments import under_autocast
from gkfast.checks import Array, Sigma
from gkfast.functional import rbf, rbf_matmul

# rows of the data that are float64 at a time
_ROWS = 1 << 16
# conditioning: the ridge over the kernel's value at 0 begins here, and is raised until the coefficients' absolute
# values add up to at most so much: float32 sums of kernels then keep their digits
_LEAST_RIDGE, _MOST_COEFFICIENTS = 1e-12, 4.0


class MeanEmbedding(NamedTuple):
    """sum_k coefficients_k K(., landmarks_k), close to the mean of K(., r) over the rows r of some data."""

    landmarks: Array  # (L, D), in the dtype of the data
    coefficients: Array  # (L,) float64
    square: float  # its squared norm, sum_kl coefficients_k coefficients_l K(landmarks_k, landmarks_l)
    error: float  # at held-out rows: root mean square of the difference, over that of the mean
    ridge: float  # what was added to the diagonal of the landmarks' kernel matrix, over its value


def mean_embedding(
    data: Array,
    sigma: Sigma,
    *,
    landmarks: int | Array = 4096,
    weights: Sigma | None = None,
    method: Literal["sample", "kmeans"] = "sample",
    held_out: int = 1000,
    seed: int = 0,
) -> MeanEmbedding:
    """Nystrom approximation of a data set's kernel mean by few landmarks.

    .. code-block:: text

        sum_k alpha_k K(., z_k) ~ mean_j K(., r_j)
        alpha = (K_zz + ridge K(0) I)^-1 mean_j K(z, r_j),  K(0) = sum_s weights_s

    alpha is the best of all sums of these kernels in the norm of the reproducing kernel Hilbert space.

    Parameters
    ----------
    data : array of shape (R, D)
        The whole data set, NumPy array or torch tensor; see `rbf` for sigma, weights, dtypes and errors.
    landmarks : int, or array of shape (L, D)
        How many, at most R, or which.
    method : {"sample", "kmeans"}
        Rows of the data without replacement, or the centres of scikit-learn's MiniBatchKMeans.
    held_out : int
        So many further rows measure the error; landmarks do, where there are no others.
    seed : int
        Of sampling and clustering.

    Returns
    -------
    MeanEmbedding
        Named tuple (landmarks, coefficients, square, error, ridge).

    Raises
    ------
    ImportError
        For method="kmeans" without scikit-learn.

    Notes
    -----
    In float64. Conditioning: the ridge is the least of 1e-12, 1e-11, ... for which sum_k |alpha_k| <= 4, so that
    float32 sums keep their digits. O(L R D + L^3) time, the L^3 for each ridge; O(L^2 + R) memory beside the data.

    References
    ----------
    A. Chatalic et al., "Nystrom kernel mean embeddings", ICML 2022.

    Examples
    --------
    >>> import numpy, gkfast
    >>> data = numpy.random.default_rng(0).normal(size=(500, 2))
    >>> gkfast.mean_embedding(data, 1.0, landmarks=50).error < 1e-3
    True
    """
    data = checks.detached(under_autocast(data)[0])
    one_step_checks.embedding(data, landmarks, method, held_out, seed)
    rng, count = np.random.default_rng(seed), len(data)
    order = rng.permutation(count)
    if not isinstance(landmarks, (int, np.integer)):
        z, others = landmarks, order
    else:
        number = min(int(landmarks), count)
        others = order[number:]
        z = _rows(data, order[:number]) if method == "sample" else _centres(data, number, seed)
    held = _rows(data, others[:held_out]) if len(others) and held_out else z
    z, held = _double(checks.detached(z)), _double(held)
    options = {"sigma": sigma, "weights": weights}
    k = checks.detached(rbf(z, **options))
    unit = float(k[0, 0])
    target = _mean(z, data, options)
    xp, ridge = np if isinstance(k, np.ndarray) else _torch(), _LEAST_RIDGE
    while True:
        one = xp.eye(len(z), dtype=xp.float64, **({} if xp is np else {"device": k.device}))
        alpha = xp.linalg.solve(k + ridge * unit * one, target)
        if float(abs(alpha).sum()) <= _MOST_COEFFICIENTS or ridge >= 1:
            break
        ridge *= 10
    truth = _mean(held, data, options)
    found = checks.detached(rbf_matmul(held, z, alpha, **options))
    error = math.sqrt(float(((found - truth) ** 2).mean()) / float((truth**2).mean()))
    own = z.astype(data.dtype) if xp is np else z.to(data.dtype)
    return MeanEmbedding(own, alpha, float(alpha @ k @ alpha), error, ridge)


def _torch() -> Any:
    import torch

    return torch


def _rows(data: Array, places: np.ndarray) -> Array:
    return data[places if isinstance(data, np.ndarray) else _torch().from_numpy(places).to(data.device)]


def _double(points: Array) -> Array:
    return points.astype(np.float64) if isinstance(points, np.ndarray) else points.double()


def _mean(points: Array, data: Array, options: dict[str, Any]) -> Array:
    """mean_j K(points, data_j), (P,)"""
    total: Any = 0.0
    for start in range(0, len(data), _ROWS):
        part = _double(data[start : start + _ROWS])
        ones = part[:, 0] * 0 + 1 if part.shape[1] else points.new_ones(len(part))
        total = total + checks.detached(rbf_matmul(points, part, ones, **options))
    return total / len(data)


def _centres(data: Array, count: int, seed: int) -> Array:
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError:
        raise ImportError(
            "method='kmeans' must have scikit-learn, got none; pip install scikit-learn, or pass method='sample'"
        ) from None
    array = data if isinstance(data, np.ndarray) else data.float().cpu().numpy()
    centres = MiniBatchKMeans(count, random_state=seed, n_init=1).fit(array).cluster_centers_
    return centres.astype(data.dtype) if isinstance(data, np.ndarray) else _torch().from_numpy(centres).to(data)
