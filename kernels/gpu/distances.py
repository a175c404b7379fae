"""Squared distances of a tile of pairs, and functions of them, inside a kernel."""

import math

import triton
import triton.language as tl

from .bf16_pieces import inner_products

# 2**t - 1 = t sum_n log(2)**(n + 1) / (n + 1)! t**n; the terms left out are below an ulp for -1/2 < t < 1/2
_TAYLOR = tl.constexpr(tuple(math.log(2) ** (n + 1) / math.factorial(n + 1) for n in range(14)))

# coordinates of a distance that are summed apart; a multiple of every BD
_SPAN = tl.constexpr(64)


@triton.jit
def cast(x, ptr):
    """x in the dtype that is stored at ptr; to a half by way of float32, as the hardware converts."""
    if ptr.dtype.element_ty.primitive_bitwidth == 16:
        x = x.to(tl.float32)
    return x.to(ptr.dtype.element_ty)


@triton.jit
def exp2m1(t, k, ACC: tl.constexpr):
    """2**t - 1 to the last digits for small t too; k is 2**t."""
    TERMS: tl.constexpr = 14 if ACC.primitive_bitwidth == 64 else 7
    total = tl.full(t.shape, _TAYLOR[TERMS - 1], ACC)
    for n in tl.static_range(1, TERMS):
        total = tl.fma(total, t, tl.full(t.shape, _TAYLOR[TERMS - 1 - n], ACC))
    return tl.where(tl.abs(t) < 0.5, total * t, k - 1)


@triton.jit
def next_kernel(
    k, less, d2, table_ptr, s, S, LADDER: tl.constexpr, LESS: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """The kernel of bandwidth s, and what is summed: itself, or itself less 1 (LESS); k, less are the last ones.

    LADDER: squared from the last one's where the table says so. k^2 - 1 = (k - 1) k + (k - 1).
    """
    steps = 0.0
    if LADDER:
        steps = tl.load(table_ptr + 1 + 3 * S + s)
    if steps == 0.0:
        t = d2 * tl.load(table_ptr + 1 + s)
        k = tl.exp2(t)
        less = k
        if LESS:
            less = exp2m1(t, k, ACC)
    else:
        k, less = _squared(k, less, LESS)
        if steps == 2.0:
            k, less = _squared(k, less, LESS)
    return k, less


@triton.jit
def _squared(k, less, LESS: tl.constexpr):
    if LESS:
        return k * k, tl.fma(less, k, less)
    else:
        return k * k, k * k


@triton.jit
def distances_by_products(
    p_ptr, q_ptr, p_squares, q_squares, rows, cols, row_in, col_in,
    DP: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr,
    SYMMETRIC: tl.constexpr,
):  # fmt: skip
    """|p_i - q_j|^2, [BN, BM], from pieces of the points and their squared norms; see bf16_pieces.py."""
    pq = inner_products(p_ptr, q_ptr, rows, cols, row_in, col_in, DP, BN, BM, BK, DOT, SYMMETRIC)
    return tl.maximum(tl.fma(pq, -2.0, p_squares[:, None] + q_squares[None, :]), 0.0)


@triton.jit
def squared_distances(
    p_ptr, q_ptr, rows, cols, row_in, col_in, unit, D,
    BN: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, SCALED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """|p_i - q_j|^2 in units of 1 / unit, [BN, BM].

    Summed in blocks of BD, and these in blocks of _SPAN: where coordinates are alike, all roundings of a sum may go
    the same way.

    Pointers are those of the tile's first row and column, and rows and cols count from there in int32. Differences
    are scaled after they are taken, when they are exact for near points.
    """
    total = tl.zeros([BN, BM], ACC)
    for first in range(0, D, _SPAN):
        block = tl.zeros([BN, BM], ACC)
        for d0 in range(first, tl.minimum(first + _SPAN, D), BD):
            part = tl.zeros([BN, BM], ACC)
            for k in tl.static_range(BD):
                d = d0 + k
                p = tl.load(p_ptr + rows * D + d, mask=row_in & (d < D), other=0.0).to(ACC)
                q = tl.load(q_ptr + cols * D + d, mask=col_in & (d < D), other=0.0).to(ACC)
                e = p[:, None] - q[None, :]
                if SCALED:
                    e *= unit
                part = tl.fma(e, e, part)
            block += part
        total += block
    return total


@triton.jit
def coordinates_of(ptr, rows, inside, D: tl.constexpr, ACC: tl.constexpr):
    """The few coordinates of a tile of points, a tuple of vectors."""
    found = ()
    for d in tl.static_range(D):
        found += (tl.load(ptr + rows * D + d, mask=inside, other=0.0).to(ACC),)
    return found


@triton.jit
def differences(p, q, unit, D: tl.constexpr, SCALED: tl.constexpr):
    """q_j - p_i by coordinate, a tuple of [BN, BM]."""
    found = ()
    for d in tl.static_range(D):
        e = q[d][None, :] - p[d][:, None]
        if SCALED:
            e *= unit
        found += (e,)
    return found
