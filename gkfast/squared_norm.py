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
    values: Array, x: Array, y: Array, weights: Any, a: Array | None = None, b: Array | None = None
) -> Array:
    """values (...,) or (..., S) of the biased MMD^2 between x (..., N, D) and y (..., M, D), by kernel weights.

    a (..., N) and b (..., M) are the weights of the rows, by default equal. The gradient stays that of the values.
    """
    numbers = type(weights) is tuple
    if numbers and min(weights) < 0:
        return values
    xp: Any = sys.modules["torch"] if checks.is_tensor(values) else np
    seen, x, y, weights, a, b = (checks.detached(array) for array in (values, x, y, weights, a, b))
    if a is not None and b is not None:
        # a row's weight is one more coordinate of it
        x, y = xp.concatenate([x, a[..., None]], -1), xp.concatenate([y, b[..., None]], -1)
    found = xp.clip(seen, 0, None)
    if x.shape == y.shape and not (_visible(seen, weights) and _all_large(seen, weights)):
        found = _zero_where_equal(xp, found, x, y)
    if not numbers:
        positive = (weights >= 0).all(-1)
        found = xp.where(positive.to(seen.device) if xp is not np else positive, found, seen)
    return found if xp is np else values + (found - seen)


def _visible(*arrays: Any) -> bool:
    """Whether values may be looked at: nobody traces, and no device is waited for."""
    tensors = [array for array in arrays if checks.is_tensor(array)]
    if not tensors:
        return True
    from gkfast import ops

    return all(map(ops.visible, tensors))


def _all_large(values: Array, weights: Any) -> bool:
    """Whether all values are greater than rounding could make them."""
    total = sum(weights) if type(weights) is tuple else weights.sum(-1)
    return bool((values > _ROUNDING * total).all())


def _zero_where_equal(xp: Any, values: Array, x: Array, y: Array) -> Array:
    equal = _fingerprint(xp, x) == _fingerprint(xp, y)
    # the same for all bandwidths
    equal = equal.reshape(equal.shape + (1,) * (values.ndim - equal.ndim))
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
