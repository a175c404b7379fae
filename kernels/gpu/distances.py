"""Squared distances of a tile of pairs, and functions of them, inside a kernel."""

import math
from typing import NamedTuple

import triton
import triton.language as tl

from .bf16_pieces import inner_products, zeros

# 2**t - 1 = t sum_n log(2)**(n + 1) / (n + 1)! t**n; the terms left out are below an ulp for -1/2 < t < 1/2
_TAYLOR = tl.constexpr(tuple(math.log(2) ** (n + 1) / math.factorial(n + 1) for n in range(14)))

# coordinates of a distance that are summed apart; a multiple of every BD
_SPAN = tl.constexpr(64)


class Side(NamedTuple):
    """The rows or the columns of a tile: pointers to the first one's numbers, and where the others are."""

    points: object
    # of points, as they are, or in pieces
    norms: object
    coefficients: object
    # 0, 1, 2 ...
    at: object
    # whether there are so many
    inside: object


@triton.jit
def point_length(D, VARIANT: tl.constexpr):
    """Numbers that a point has in memory: 1, 2 or 3 pieces for 1, 3 or 6 products."""
    if VARIANT.DOT > 0:
        return (VARIANT.DOT + 3) // 3 * VARIANT.DP
    else:
        return D


@triton.jit
def side_of(points, norms, coefficients, first, left, POINT, COEFFICIENTS, COUNT: tl.constexpr):
    """COUNT rows or columns from `first` on, of which `left` are left; POINT and COEFFICIENTS are numbers of each."""
    at = tl.arange(0, COUNT)
    inside = at < left
    points += first * POINT
    coefficients += first * COEFFICIENTS
    return Side(points, norms + first, coefficients, at, inside)


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
def next_kernel(k, km1, d2, row, s, LADDER: tl.constexpr, LESS: tl.constexpr, ACC: tl.constexpr):
    """The kernel k of bandwidth s, and k - 1 (LESS) or k again; from d2, or from the last bandwidth's k and km1.

    LADDER: squared from the last one's where the table says so. k^2 - 1 = (k - 1) k + (k - 1).
    """
    steps = 0.0
    if LADDER:
        steps = tl.load(row.steps + s)
    if steps == 0.0:
        t = d2 * tl.load(row.scales + s)
        k = tl.exp2(t)
        km1 = k
        if LESS:
            km1 = exp2m1(t, k, ACC)
    else:
        k, km1 = _squared(k, km1, LESS)
        if steps == 2.0:
            k, km1 = _squared(k, km1, LESS)
    return k, km1


@triton.jit
def _squared(k, km1, LESS: tl.constexpr):
    if LESS:
        return k * k, tl.fma(km1, k, km1)
    else:
        return k * k, k * k


@triton.jit
def squared_distances(rows, cols, row_norms, unit, D, VARIANT: tl.constexpr, SYMMETRIC: tl.constexpr):
    """|p_i - q_j|^2 in units of 1 / unit, [BN, BM], by products or by differences.

    row_norms are the rows' squared norms, which only products read; SYMMETRIC is explained at inner_products.
    """
    if VARIANT.DOT > 0:
        col_norms = tl.load(cols.norms + cols.at, mask=cols.inside, other=0.0)
        pq = inner_products(rows.points, cols.points, rows, cols, VARIANT.DP, VARIANT.BK, VARIANT, SYMMETRIC)
        return tl.maximum(tl.fma(pq, -2.0, row_norms[:, None] + col_norms[None, :]), 0.0)
    else:
        return _by_differences(rows, cols, unit, D, VARIANT)


@triton.jit
def norms_of(side, VARIANT: tl.constexpr):
    """Squared norms, which only products read."""
    if VARIANT.DOT > 0:
        return tl.load(side.norms + side.at, mask=side.inside, other=0.0)
    else:
        return 0.0


@triton.jit
def _by_differences(rows, cols, unit, D, VARIANT: tl.constexpr):
    """Summed in blocks of BD, and these in blocks of _SPAN: where coordinates are alike, all roundings of a sum may
    go the same way. Differences are scaled after they are taken, when they are exact for near points."""
    BD: tl.constexpr = VARIANT.BD
    total = zeros(VARIANT.BN, VARIANT.BM, VARIANT.ACC)
    for first in range(0, D, _SPAN):
        block = zeros(VARIANT.BN, VARIANT.BM, VARIANT.ACC)
        for d0 in range(first, tl.minimum(first + _SPAN, D), BD):
            part = zeros(VARIANT.BN, VARIANT.BM, VARIANT.ACC)
            for k in tl.static_range(BD):
                d = d0 + k
                p = tl.load(rows.points + rows.at * D + d, mask=rows.inside & (d < D), other=0.0).to(VARIANT.ACC)
                q = tl.load(cols.points + cols.at * D + d, mask=cols.inside & (d < D), other=0.0).to(VARIANT.ACC)
                e = p[:, None] - q[None, :]
                if VARIANT.SCALED:
                    e *= unit
                part = tl.fma(e, e, part)
            block += part
        total += block
    return total


@triton.jit
def coordinates_of(side, D: tl.constexpr, ACC: tl.constexpr):
    """The few coordinates of a tile of points, a tuple of vectors."""
    found = ()
    for d in tl.static_range(D):
        found += (tl.load(side.points + side.at * D + d, mask=side.inside, other=0.0).to(ACC),)
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


@triton.jit
def pulled_by_differences(pull, w, rows, cols, d0, unit, D, VARIANT: tl.constexpr):
    """pull + sum_j w_ij (q_j - p_i) in units, for up to BD coordinates from d0 on, [BN, BD]."""
    coordinates = tl.arange(0, VARIANT.BD)
    # a loop, not unrolled: each turn holds a reduction, and unrolled ones take long to compile and all registers
    for k in range(tl.minimum(VARIANT.BD, D - d0)):
        p = tl.load(rows.points + rows.at * D + d0 + k, mask=rows.inside, other=0.0).to(VARIANT.ACC)
        q = tl.load(cols.points + cols.at * D + d0 + k, mask=cols.inside, other=0.0).to(VARIANT.ACC)
        e = q[None, :] - p[:, None]
        if VARIANT.SCALED:
            e *= unit
        # a kernel of 0 pulls nothing, from infinitely far either
        own = tl.sum(tl.where(w == 0.0, 0.0, w * e), 1)
        pull += tl.where(coordinates[None, :] == k, own[:, None], 0.0)
    return pull
