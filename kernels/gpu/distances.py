"""Squared distances of a tile of pairs, the kernels of them, and the pulls that they make, inside a kernel."""

import math
from typing import NamedTuple

import triton
import triton.language as tl

from .points import WHOLE, Pieces, inner_products, pieces_at, weighted, zeros

# 2**t - 1 = t sum_n log(2)**(n + 1) / (n + 1)! t**n; the terms left out are below an ulp for -1/2 < t < 1/2
_TAYLOR = tl.constexpr(tuple(math.log(2) ** (n + 1) / math.factorial(n + 1) for n in range(14)))

# coordinates of a distance that are loaded at a time, and that are summed apart
_STEP = tl.constexpr(4)
_SPAN = tl.constexpr(64)
_WHOLE = tl.constexpr(WHOLE)


class Side(NamedTuple):
    """The rows or the columns of a tile: pointers to the first one's numbers, and where the others are."""

    # as they are, numbers from a point to the next, and from a coordinate to the next
    points: object
    point_stride: object
    stride: object
    pieces: object
    # |h|^2, and `size` numbers on c
    norms: object
    size: object
    coefficients: object
    # 0, 1, 2 ...
    at: object
    # whether there are so many
    inside: object


@triton.jit
def side_of(of, b, first, D, E, COUNT: tl.constexpr, VARIANT: tl.constexpr):
    """COUNT points of a set from `first` on, with E coefficients each."""
    at = tl.arange(0, COUNT)
    place = b * of.size + first
    points, point_stride, stride = of.points + place * D, D, 1
    if VARIANT.DOT > 0:
        points, point_stride, stride = of.columns + b * of.size * D + first, 1, of.size
    return Side(
        points, point_stride, stride, of.pieces + place * (VARIANT.PIECES * VARIANT.DP),
        of.norms + b * of.size + place, of.size, of.coefficients + place * E, at, at < of.size - first,
    )  # fmt: skip


@triton.jit
def pieces_of(side, VARIANT: tl.constexpr):
    """The pieces of a tile of points, of which those of many coordinates stay in memory, and their norms."""
    if VARIANT.DOT == 0:
        return Pieces(0.0, 0.0, 0.0, 0.0, 0.0)
    else:
        lead = tl.load(side.norms + side.at, mask=side.inside, other=0.0)
        rest = tl.load(side.norms + side.size + side.at, mask=side.inside, other=0.0)
        high, middle, low = 0.0, 0.0, 0.0
        if VARIANT.DP <= _WHOLE:
            high, middle, low = pieces_at(side, tl.arange(0, VARIANT.DP), VARIANT)
        return Pieces(high, middle, low, lead, rest)


@triton.jit
def is_far(of_rows, lead, frame, VARIANT: tl.constexpr):
    """Whether products are not right for a tile: its rows and its columns, of which lead is that of the pieces, are
    beyond the bound, or float16 cannot hold some of them."""
    far = False
    if VARIANT.DOT > 0:
        of_row, of_col = tl.max(of_rows.lead, 0), tl.max(lead, 0)
        far = (tl.minimum(of_row, of_col) > frame.bound) | (tl.maximum(of_row, of_col) == float("inf"))
    return far


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
def next_kernel(k, km1, d2, row, s, steps, square, LADDER: tl.constexpr, LESS: tl.constexpr, ACC: tl.constexpr):
    """The kernel k of bandwidth s, and k - 1 (LESS) or k again; from d2, or from the last bandwidth's k and km1.

    LADDER: squared from the last one's so many steps; at 0 steps not. k^2 - 1 = (k - 1) k + (k - 1).
    """
    if not LADDER or steps == 0:
        t = d2 * scale_of(row, s, square)
        k = tl.exp2(t)
        km1 = k
        if LESS:
            km1 = exp2m1(t, k, ACC)
    else:
        k, km1 = _squared(k, km1, LESS)
        if steps == 2:
            k, km1 = _squared(k, km1, LESS)
    return k, km1


@triton.jit
def steps_of(row, s):
    """Squarings that lead to bandwidth s from the one before, 0 of none."""
    return tl.load(row.steps + s).to(tl.int32)


@triton.jit
def scale_of(row, s, square):
    """-log2(e) / (2 sigma_s^2) in the units of a distance."""
    return tl.load(row.scales + s) * square


@triton.jit
def _squared(k, km1, LESS: tl.constexpr):
    if LESS:
        return k * k, tl.fma(km1, k, km1)
    else:
        return k * k, k * k


@triton.jit
def columns_of_turn(
    q, b, first, j, start, first_far, after_far, of_rows, frame, D, E,
    TURN: tl.constexpr, TILE: tl.constexpr, VARIANT: tl.constexpr,
):  # fmt: skip
    """The tile of columns from `first` on, met at place j from start on; empty in the turn that is not its own.

    With its pieces, whether it is far, and where the tiles that are far begin and end so far. The second turn's tiles
    are parts of the first one's, of TILE columns, and far as a whole.
    """
    cols = side_of(q, b, first, D, E, VARIANT.BM, VARIANT)
    of_cols = pieces_of(cols, VARIANT)
    far = is_far(of_rows, of_cols.lead, frame, VARIANT)
    if TURN == 1 and TILE > VARIANT.BM:
        whole = side_of(q, b, first - (j - start) % TILE, D, E, TILE, VARIANT)
        far = is_far(of_rows, pieces_of(whole, VARIANT).lead, frame, VARIANT)
    if VARIANT.DOT > 0:
        cols = some_of(cols, far.to(tl.int32) == TURN)
        first_far = tl.where(far, tl.minimum(first_far, j), first_far)
        after_far = tl.where(far, j + VARIANT.BM, after_far)
    return cols, of_cols, far, first_far, after_far


@triton.jit
def some_of(cols, now):
    """The columns where `now`."""
    return Side(
        cols.points, cols.point_stride, cols.stride, cols.pieces, cols.norms, cols.size, cols.coefficients, cols.at,
        cols.inside & now,
    )  # fmt: skip


@triton.jit
def squared_distances(rows, cols, of_rows, of_cols, far, frame, D, TURN: tl.constexpr, VARIANT: tl.constexpr):
    """|p_i - q_j|^2, [BN, BM], in the units of the frame: in the second turn of a tile that is far, by differences.

    A loop with another inside, such as that of differences, is not scheduled with its loads: hence two turns.
    """
    if VARIANT.DOT == 0:
        nothing = zeros(VARIANT.BN, VARIANT.BM, VARIANT.ACC)
        return _by_differences(nothing, rows, cols, frame.per_unit, D, VARIANT)
    else:
        exact, rest = _by_products(rows, cols, of_rows, of_cols, VARIANT)
        d2 = tl.maximum(exact + rest, 0.0)
        if TURN == 1 and far:
            # zeros that are spread over the threads as products are
            nothing = tl.where(frame.square > 0, 0.0, d2)
            d2 = _by_differences(nothing, rows, cols, frame.per_unit, D, VARIANT)
        return d2


@triton.jit
def split_distances(rows, cols, of_rows, of_cols, far, frame, D, TURN: tl.constexpr, VARIANT: tl.constexpr):
    """|p_i - q_j|^2 as a sum of two, in which the digits are that float32 has not; differences are in float64."""
    if VARIANT.DOT == 0:
        nothing = zeros(VARIANT.BN, VARIANT.BM, VARIANT.ACC)
        return _by_differences(nothing, rows, cols, frame.per_unit, D, VARIANT), nothing
    else:
        exact, rest = _by_products(rows, cols, of_rows, of_cols, VARIANT)
        if TURN == 1 and far:
            nothing = tl.where(frame.square > 0, 0.0, exact).to(tl.float64)
            d2 = _by_differences(nothing, rows, cols, frame.per_unit, D, VARIANT)
            exact = d2.to(tl.float32)
            rest = (d2 - exact.to(tl.float64)).to(tl.float32)
        return exact, rest


@triton.jit
def exponents(exact, rest, row, s, square, VARIANT: tl.constexpr):
    """log2 of the kernels of bandwidth s, as a sum of two, of which the second is small, and 0 in float64."""
    if VARIANT.ACC.primitive_bitwidth == 64:
        return exact * scale_of(row, s, square), rest
    else:
        wide = scale_of(row, s, square)
        scale = wide.to(tl.float32)
        t = exact * scale
        less = tl.fma(exact, scale, -t) + rest * scale
        return t, tl.fma(exact, (wide - scale.to(wide.dtype)).to(tl.float32), less)


@triton.jit
def _by_products(rows, cols, of_rows, of_cols, VARIANT: tl.constexpr):
    """|p_i - q_j|^2 as the sum of two: a number without error, where points are near, and a small one."""
    exact, rest = zeros(VARIANT.BN, VARIANT.BM, VARIANT.ACC), zeros(VARIANT.BN, VARIANT.BM, VARIANT.ACC)
    if VARIANT.DP <= _WHOLE:
        left, right = (of_rows.high, of_rows.middle, of_rows.low), (of_cols.high, of_cols.middle, of_cols.low)
        exact, rest = inner_products(left, right, exact, rest, VARIANT.DOT)
    else:
        for d0 in range(0, VARIANT.DP, VARIANT.BK):
            d = d0 + tl.arange(0, VARIANT.BK)
            left, right = pieces_at(rows, d, VARIANT), pieces_at(cols, d, VARIANT)
            # tensor cores truncate: their sums are kept short, but for the exact one
            part = zeros(VARIANT.BN, VARIANT.BM, VARIANT.ACC)
            exact, part = inner_products(left, right, exact, part, VARIANT.DOT)
            rest += part
    exact = tl.fma(exact, -2.0, of_rows.lead[:, None]) + of_cols.lead[None, :]
    if VARIANT.DOT > 1:
        rest = tl.fma(rest, -2.0, of_rows.rest[:, None]) + of_cols.rest[None, :]
    return exact, rest


@triton.jit
def _by_differences(nothing, rows, cols, unit, D, VARIANT: tl.constexpr):
    """Summed in blocks of _STEP, and these in blocks of _SPAN: where coordinates are alike, all roundings of a sum
    may go the same way. Differences are scaled after they are taken, when they are exact for near points."""
    total = nothing
    for first in range(0, D, _SPAN):
        block = nothing
        for d0 in range(first, tl.minimum(first + _SPAN, D), _STEP):
            part = nothing
            for d in range(d0, tl.minimum(d0 + _STEP, D)):
                e = _difference(rows, cols, d, unit, nothing, VARIANT)
                part = tl.fma(e, e, part)
            block += part
        total += block
    return total


@triton.jit
def _difference(rows, cols, d, unit, like, VARIANT: tl.constexpr):
    """p_i - q_j of a coordinate, [BN, BM], in the dtype of like."""
    p = tl.load(rows.points + rows.at * rows.point_stride + d * rows.stride, mask=rows.inside, other=0.0)
    q = tl.load(cols.points + cols.at * cols.point_stride + d * cols.stride, mask=cols.inside, other=0.0)
    e = p.to(like.dtype)[:, None] - q.to(like.dtype)[None, :]
    if VARIANT.SCALED or VARIANT.DOT > 0:
        e *= unit.to(like.dtype)
    return e


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
def squared_length(away, D: tl.constexpr):
    """|q_j - p_i|^2 of differences by coordinate."""
    d2 = away[0] * away[0]
    for d in tl.static_range(1, D):
        d2 = tl.fma(away[d], away[d], d2)
    return d2


@triton.jit
def pull_of_tile(
    total, w_sum, w, high, middle, far, rows, cols, d0, frame, D, TURN: tl.constexpr, VARIANT: tl.constexpr
):  # fmt: skip
    """Adds to total, [BN, coordinates from d0 on], sum_j w_ij q_j, and to w_sum sum_j w_ij.

    `less_own_points` makes of both sum_j w_ij (q_j - p_i), which the second turn of a tile that is far adds to total.
    """
    if TURN == 0:
        return weighted(total, w, high, middle, VARIANT.DOT), w_sum + tl.sum(w, 1)
    else:
        if far:
            total = pull_by_differences(total, w, rows, cols, d0, frame.per_unit, D, VARIANT)
        return total, w_sum


@triton.jit
def less_own_points(total, w_sum, rows, d, VARIANT: tl.constexpr):
    """total - p_i w_sum_i of coordinates d: of sum_j w_ij q_j it makes sum_j w_ij (q_j - p_i).

    Pieces are loaded again, since registers that held them all along would be missed. Beyond D they are 0.
    """
    # a 0 that the compiler does not know, or it would keep the places from before the loop over columns
    at = rows.at + tl.minimum(rows.size, 0)
    own = rows.pieces + at[:, None] * (VARIANT.PIECES * VARIANT.DP) + d[None, :]
    # not d < D: two neighbours are loaded together
    inside = rows.inside[:, None] & (d < VARIANT.DP)[None, :]
    p = tl.load(own, mask=inside, other=0.0).to(tl.float32)
    if VARIANT.PIECES > 1:
        p += tl.load(own + VARIANT.DP, mask=inside, other=0.0).to(tl.float32)
    return tl.fma(p, -w_sum.to(tl.float32)[:, None], total)


@triton.jit
def pull_by_differences(pull, w, rows, cols, d0, unit, D, VARIANT: tl.constexpr):
    """pull + sum_j w_ij (q_j - p_i), for as many coordinates from d0 on as the pull has."""
    coordinates = tl.arange(0, pull.shape[1])
    # a loop, not unrolled: each turn holds a reduction, and unrolled ones take long to compile and all registers
    for k in range(tl.minimum(pull.shape[1], D - d0)):
        e = _difference(rows, cols, d0 + k, unit, w, VARIANT)
        # a kernel of 0 pulls nothing, from infinitely far either
        own = tl.sum(tl.where(w == 0.0, 0.0, -w * e), 1)
        pull += tl.where(coordinates[None, :] == k, own[:, None], 0.0)
    return pull
