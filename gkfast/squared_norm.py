"""The biased MMD^2 as the squared norm that it is: never negative, and 0 between a set and its permutation.

Its three sums are added in different orders, so where they cancel, rounding decides the sign. For kernel weights of
both signs it is no norm, and nothing is changed.
"""

import sys
from typing import Any

import numpy as np

from gkfast import checks
from gkfast.checks import Array

# of the sum of the kernel weights: what is greater is no rounding, and the sets need not be compared
_ROUNDING = 1e-4
# odd numbers whose bits have no pattern: two's complement of 0x9E3779B97F4A7C15 and 0xBF58476D1CE4E5B9
_MIX = -7046029254386353131, -4658895280553007687


def squared_norm(
    values: Array, x: Array, y: Array, weights: Array, a: Array | None = None, b: Array | None = None
) -> Array:
    """values (B,) of the biased MMD^2 between x (B, N, D) and y (B, M, D), for kernel weights (B, S).

    a (B, N) and b (B, M) are the weights of the rows, by default equal. The gradient stays that of the values.
    """
    if a is not None and b is not None:
        xp: Any = sys.modules["torch"] if checks.is_tensor(values) else np
        # a row's weight is one more coordinate of it
        x, y = xp.concatenate([x, a[..., None]], -1), xp.concatenate([y, b[..., None]], -1)
    if checks.is_tensor(values):
        return _of_tensors(values, x, y, weights)
    found = np.maximum(values, 0)
    if _may_be_equal(found, x, y, weights):
        found = _zero_where_equal(found, x, y)
    return np.where((weights >= 0).all(-1), found, values)


def _of_tensors(values: Array, x: Array, y: Array, weights: Array) -> Array:
    from gkfast import ops

    torch = sys.modules["torch"]
    with torch.no_grad():
        seen, x, y, weights = (t.detach() for t in (values, x, y, weights))
        found = seen.clamp(min=0)
        # numbers may be looked at where nobody traces and no device is waited for
        visible = ops.visible(weights)
        if visible and not bool((weights >= 0).all(-1).any()):
            return values
        if x.shape == y.shape and not (
            visible and ops.visible(seen) and not _may_be_equal(found.numpy(), x, y, weights.numpy())
        ):
            found = _zero_where_equal(found, x, y)
        if not visible or not bool((weights >= 0).all()):
            found = torch.where((weights >= 0).all(-1).to(seen.device), found, seen)
        change = found - seen
    return values + change


def _may_be_equal(values: np.ndarray, x: Array, y: Array, weights: np.ndarray) -> bool:
    """Whether some values are so small that rounding could have made them, of two sets of one size."""
    return x.shape == y.shape and not bool((values > _ROUNDING * weights.sum(-1)).all())


def _zero_where_equal(values: Array, x: Array, y: Array) -> Array:
    xp: Any = sys.modules["torch"] if checks.is_tensor(values) else np
    equal = _fingerprint(xp, x) == _fingerprint(xp, y)
    # a NaN stays
    return xp.where(equal, abs(values) * 0, values)


def _fingerprint(xp: Any, x: Array) -> Array:
    """An integer for each of a batch of sets, the same for any order of the rows.

    Other sets have it with a probability of 2^-64.
    """
    # bits as integers; 0 and -0 are one number
    rows = x + 0.0
    bits = rows.view(xp.int32 if rows.dtype == xp.float32 else xp.int64)
    bits = bits.long() if checks.is_tensor(bits) else bits.astype(np.int64)
    place = xp.arange(1, bits.shape[-1] + 1, **({"device": x.device} if checks.is_tensor(x) else {}))
    factors = place * _MIX[0]
    factors = (factors ^ (factors >> 31)) * _MIX[1] | 1
    # products and sums modulo 2^64: linear in the coordinates of a row, then not linear in the row
    row = (bits * factors).sum(-1)
    row = (row ^ (row >> 29)) * _MIX[1]
    row = row ^ (row >> 32)
    return (row * row * row + row).sum(-1)
