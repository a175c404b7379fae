"""What a sweep does with a tile of pairs: distances and kernels, the sums that it adds to, and how these are stored.

The words are those of sweep.py.
"""

import triton
import triton.language as tl

from .bandwidths import LOG2_E
from .distances import (
    cast,
    coordinates_of,
    differences,
    exp2m1,
    exponents,
    less_own_points,
    next_kernel,
    pull_by_differences,
    pull_of_tile,
    split_distances,
    squared_distances,
    squared_length,
    steps_of,
)
from .points import dot, halves, weighted, zeros

# sums over a tile of rows are stored by strips of so many, whatever the tile
STRIP = 32
_STRIP = tl.constexpr(STRIP)


@triton.jit
def row_coefficients(rows, ASKED: tl.constexpr, VARIANT: tl.constexpr):
    """f_i where there is one column of them and a sum over rows or a pull wants it, else 1."""
    BN: tl.constexpr = VARIANT.BN
    if not (ASKED.ONE_COLUMN and (ASKED.PULL > 0 or ASKED.MOMENTS or ASKED.TOTAL)):
        return tl.full([BN], 1.0, VARIANT.ACC)
    elif ASKED.ONES:
        return tl.where(rows.inside, 1.0, 0.0).to(VARIANT.ACC)
    else:
        return tl.load(rows.coefficients + rows.at, mask=rows.inside, other=0.0).to(VARIANT.ACC)


@triton.jit
def distances(
    rows, cols, of_rows, of_cols, far, row_points, frame, D,
    TURN: tl.constexpr, ASKED: tl.constexpr, VARIANT: tl.constexpr,
):  # fmt: skip
    """|p_i - q_j|^2 of a tile; as a sum of two, for shifts; and q_j - p_i, if registers hold the coordinates."""
    DIMS: tl.constexpr = ASKED.DIMS
    away = ()
    if DIMS > 0:
        away = differences(row_points, coordinates_of(cols, DIMS, VARIANT.ACC), frame.per_unit, DIMS, VARIANT.SCALED)
        d2 = squared_length(away, DIMS)
        exact, rest = d2, zeros(VARIANT.BN, VARIANT.BM, VARIANT.ACC)
    elif ASKED.SHIFT > 0:
        exact, rest = split_distances(rows, cols, of_rows, of_cols, far, frame, D, TURN, VARIANT)
        d2 = tl.maximum(exact + rest, 0.0)
    else:
        d2 = squared_distances(rows, cols, of_rows, of_cols, far, frame, D, TURN, VARIANT)
        exact, rest = d2, d2
    return d2, exact, rest, away


@triton.jit
def pair_coefficients(rows, cols, twice, E, ASKED: tl.constexpr, VARIANT: tl.constexpr):
    """c_ij and h_j, both twice where a pair counts so, zero for columns beyond the last.

    Of one column c_ij is without f_i; of several there is no h_j, and c_ij only for pulls and moments.
    """
    BN: tl.constexpr = VARIANT.BN
    BM: tl.constexpr = VARIANT.BM
    c, h = tl.zeros([BN, BM], VARIANT.ACC), tl.zeros([BM], VARIANT.ACC)
    if ASKED.ONE_COLUMN:
        if ASKED.ONES:
            h = tl.where(cols.inside, 1.0, 0.0).to(VARIANT.ACC)
        else:
            h = tl.load(cols.coefficients + cols.at, mask=cols.inside, other=0.0).to(VARIANT.ACC)
        if ASKED.HALF > 0:
            h *= tl.where(twice, 2.0, 1.0).to(VARIANT.ACC)
        c = tl.broadcast_to(h[None, :], [BN, BM])
    elif ASKED.PULL > 0 or ASKED.MOMENTS:
        # sum_e f_ie h_je
        for e0 in range(0, E, 16):
            e = tl.arange(0, 16)
            left = rows.coefficients + rows.at[:, None] * E + e0 + e[None, :]
            right = cols.coefficients + cols.at[:, None] * E + e0 + e[None, :]
            left = tl.load(left, mask=rows.inside[:, None] & (e < E - e0)[None, :], other=0.0).to(VARIANT.ACC)
            right = tl.load(right, mask=cols.inside[:, None] & (e < E - e0)[None, :], other=0.0).to(VARIANT.ACC)
            c = _inner(left, right, c, VARIANT.ACC)
    return c, h


@triton.jit
def _inner(left, right, c, ACC: tl.constexpr):
    """c + left right^T, in float32 by halves of each row."""
    if ACC.primitive_bitwidth == 64:
        return tl.dot(left, tl.trans(right), c, input_precision="ieee", out_dtype=ACC)
    else:
        high, low, scale = halves(left)
        other_high, other_low, other_scale = halves(right)
        found = dot(high, tl.trans(other_high), tl.zeros(c.shape, ACC))
        found = dot(high, tl.trans(other_low), found)
        found = dot(low, tl.trans(other_high), found)
        return tl.fma(found * scale[:, None], other_scale[None, :], c)


@triton.jit
def no_value(BY_TILE: tl.constexpr, ASKED: tl.constexpr, VARIANT: tl.constexpr):
    """The value of one column is summed by pair, or BY_TILE, where registers are short."""
    BN: tl.constexpr = VARIANT.BN
    if not ASKED.ONE_COLUMN:
        return zeros(VARIANT.BN, ASKED.BE, VARIANT.ACC)
    elif BY_TILE:
        return tl.zeros([BN], VARIANT.ACC)
    else:
        return zeros(VARIANT.BN, VARIANT.BM, VARIANT.ACC)


@triton.jit
def add_value(
    value, total, h, cols, e, E, BY_TILE: tl.constexpr, ASKED: tl.constexpr, VARIANT: tl.constexpr
):  # fmt: skip
    """value + sum_j total_ij h_je, or its addends."""
    if ASKED.ONE_COLUMN and BY_TILE:
        value += tl.sum(total * h[None, :], 1)
    elif ASKED.ONE_COLUMN:
        value = tl.fma(total, h[None, :], value)
    else:
        inside = cols.inside[:, None] & (e < E)[None, :]
        right = tl.load(cols.coefficients + cols.at[:, None] * E + e[None, :], mask=inside, other=0.0)
        right = right.to(VARIANT.ACC)
        if VARIANT.ACC.primitive_bitwidth == 64:
            value = tl.dot(total, right, value, input_precision="ieee", out_dtype=VARIANT.ACC)
        else:
            high, low, scale = halves(right)
            value = weighted(value, total * scale[None, :], high, low, 1 if VARIANT.DOT == 1 else 3)
    return value


@triton.jit
def clear_pull(pull_ptr, rows, coordinates, D, BN: tl.constexpr, BD: tl.constexpr):
    """In float64, of more coordinates than registers hold, the pull on these rows is summed in memory."""
    for d0 in range(0, D, BD):
        inside = rows.inside[:, None] & (coordinates < D - d0)[None, :]
        own = pull_ptr + rows.at[:, None] * D + d0 + coordinates[None, :]
        tl.store(own, tl.zeros([BN, BD], tl.float64), mask=inside)
    tl.debug_barrier()


@triton.jit
def no_pull(ASKED: tl.constexpr, VARIANT: tl.constexpr):
    """Of few coordinates the addends of each; else nothing."""
    return _zeros(ASKED.DIMS, VARIANT)


@triton.jit
def _zeros(D: tl.constexpr, VARIANT: tl.constexpr):
    found = ()
    for _ in tl.static_range(D):
        found += (zeros(VARIANT.BN, VARIANT.BM, VARIANT.ACC),)
    return found


@triton.jit
def add_pull(
    pull, chunk, w_sum, w, away, of_cols, far, pull_ptr, rows, cols, coordinates, frame, D,
    TURN: tl.constexpr, ASKED: tl.constexpr, VARIANT: tl.constexpr,
):  # fmt: skip
    """Adds sum_j w_ij (q_j - p_i) of a tile: see pull_of_tile; of few coordinates to the chunk; or in memory."""
    if VARIANT.DOT > 0:
        high, middle = of_cols.high, of_cols.middle
        pull, w_sum = pull_of_tile(pull, w_sum, w, high, middle, far, rows, cols, 0, frame, D, TURN, VARIANT)
    elif ASKED.DIMS > 0:
        chunk = _pulled(chunk, w, away, ASKED.DIMS)
    else:
        # BD coordinates at a time; only this program touches these rows
        for d0 in range(0, D, VARIANT.BD):
            nothing = zeros(VARIANT.BN, VARIANT.BD, VARIANT.ACC)
            block = pull_by_differences(nothing, w, rows, cols, d0, frame.per_unit, D, VARIANT)
            own = pull_ptr + rows.at[:, None] * D + d0 + coordinates[None, :]
            inside = rows.inside[:, None] & (coordinates < D - d0)[None, :]
            tl.store(own, tl.load(own, mask=inside, other=0.0) + block, mask=inside)
        # for the next tile other threads may load what one thread stored
        tl.debug_barrier()
    return pull, chunk, w_sum


@triton.jit
def _pulled(pull, w, away, D: tl.constexpr):
    """pull + w away by coordinate; a kernel of 0 pulls nothing, from infinitely far either."""
    found = ()
    for d in tl.static_range(D):
        found += (pull[d] + tl.where(w == 0.0, 0.0, w * away[d]),)
    return found


@triton.jit
def keep_pull(pull, chunk, coordinates, DIMS: tl.constexpr):
    """Adds the chunk of few coordinates to the pull."""
    for d in tl.static_range(DIMS):
        pull += tl.where(coordinates[None, :] == d, tl.sum(chunk[d], 1)[:, None], 0.0)
    return pull


@triton.jit
def store_sums(
    sums, row, f, value, sum_k, sum_kd2, square, i0, first, strips, more, S,
    SP: tl.constexpr, ASKED: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Sums over the rows of a tile, to the strip that it begins with."""
    strip = i0 // _STRIP + tl.arange(0, BN // _STRIP)
    inside = strip < strips
    lead = strip * _STRIP == i0
    if ASKED.TOTAL:
        own = sums.total + first + strip
        _store_in_first(own, tl.sum(f.to(tl.float64) * value, 0), lead, inside, more, ASKED.PANEL)
    if ASKED.MOMENTS:
        sum_k *= f[:, None]
        sum_kd2 *= f[:, None] * square
        # in the caller's order of bandwidths
        bandwidths = tl.arange(0, SP)
        place = tl.load(row.places + bandwidths, mask=bandwidths < S, other=0.0).to(tl.int32)
        own = sums.moments + (first + strip)[:, None] * 2 * S + place[None, :]
        inside = inside[:, None] & (bandwidths < S)[None, :]
        _store_in_first(own, tl.sum(sum_k, 0)[None, :], lead[:, None], inside, more, ASKED.PANEL)
        _store_in_first(own + S, tl.sum(sum_kd2, 0)[None, :], lead[:, None], inside, more, ASKED.PANEL)


@triton.jit
def store_sum(ptr, sum, inside, more, PANEL: tl.constexpr):
    """Stores the sum, or adds it to the one in memory if there is more."""
    if PANEL:
        sum += tl.load(ptr, mask=inside & more, other=0.0)
    tl.store(ptr, cast(sum, ptr), mask=inside)


@triton.jit
def _store_in_first(ptr, sums, lead, inside, more, PANEL: tl.constexpr):
    """A tile of several strips puts its sums into the first of them, and zeros into the others."""
    store_sum(ptr, tl.where(lead, sums, 0.0), inside, more, PANEL)


@triton.jit
def store_pull(
    pull_ptr, pull, w_sum, rows, coordinates, factor, D, ASKED: tl.constexpr, VARIANT: tl.constexpr
):  # fmt: skip
    """Scales the pull, which is in registers or, in float64 and of many coordinates, in memory."""
    BD: tl.constexpr = VARIANT.BD
    if VARIANT.DOT > 0:
        pull = less_own_points(pull, w_sum, rows, coordinates, VARIANT)
        factor = factor.to(tl.float32)
    # neighbours are stored together
    D = D // ASKED.DIVISOR * ASKED.DIVISOR
    for d0 in range(0, 1 if VARIANT.DOT > 0 else D, BD):
        own = pull_ptr + rows.at[:, None] * D + d0 + coordinates[None, :]
        inside = rows.inside[:, None] & (coordinates < D - d0)[None, :]
        if VARIANT.DOT == 0 and ASKED.DIMS == 0:
            pull = tl.load(own, mask=inside, other=0.0).to(tl.float64)
        tl.store(own, cast(pull * factor, pull_ptr), mask=inside)


@triton.jit
def marks_of(row, baseline_ptr, b, S, TABLE: tl.constexpr, ASKED: tl.constexpr):
    """Of few bandwidths the steps, and 4 if a baseline is subtracted, three bits each: registers are short."""
    marks = 0
    COUNT: tl.constexpr = 0 if TABLE.STEPS >= 0 and not ASKED.LESS else TABLE.COUNT
    for s in tl.static_range(COUNT):
        marks |= _mark_of(row, s, baseline_ptr, b, S, ASKED) << (3 * s)
    return marks


@triton.jit
def _mark_of(row, s, baseline_ptr, b, S, ASKED: tl.constexpr):
    mark = steps_of(row, s)
    if ASKED.LESS:
        baseline = tl.load(baseline_ptr + b * S + tl.load(row.places + s).to(tl.int32))
        mark |= tl.where(baseline > 0, 4, 0)
    return mark


@triton.jit
def mix(
    d2, exact, rest, c, sum_k, sum_kd2, row, marks, rows, cols, counted, j1, m, met, memory, frame, S,
    TABLE: tl.constexpr, ASKED: tl.constexpr, VARIANT: tl.constexpr,
):  # fmt: skip
    """Of a tile: sum_s w_s k_s, or of k_s - baseline_s; sum_s w_s / sigma_s^2 k_s; sum_k, sum_kd2 with its share.

    Of a single bandwidth the first two are without its weight; panels have it.
    """
    total = zeros(VARIANT.BN, VARIANT.BM, VARIANT.ACC)
    k_over_sigma2 = zeros(VARIANT.BN, VARIANT.BM, VARIANT.ACC)
    k, km1 = total, total
    COUNT: tl.constexpr = TABLE.COUNT
    if COUNT > 0:
        for s in tl.static_range(COUNT):
            k, km1, total, k_over_sigma2, sum_k, sum_kd2 = _add_bandwidth(
                k, km1, total, k_over_sigma2, sum_k, sum_kd2, d2, exact, rest, c, s,
                (TABLE.STEPS >> (2 * s)) & 3 if TABLE.STEPS >= 0 else (marks >> (3 * s)) & 3,
                (marks >> (3 * s)) & 4,
                row, rows, cols, counted, j1, m, met, memory, frame, S, TABLE, ASKED, VARIANT,
            )  # fmt: skip
    else:
        for s in range(S):
            less = _mark_of(row, s, memory.baseline, met.b, S, ASKED) & 4
            k, km1, total, k_over_sigma2, sum_k, sum_kd2 = _add_bandwidth(
                k, km1, total, k_over_sigma2, sum_k, sum_kd2, d2, exact, rest, c, s, steps_of(row, s), less,
                row, rows, cols, counted, j1, m, met, memory, frame, S, TABLE, ASKED, VARIANT,
            )  # fmt: skip
    return total, k_over_sigma2, sum_k, sum_kd2


@triton.jit
def _add_bandwidth(
    k, km1, total, k_over_sigma2, sum_k, sum_kd2, d2, exact, rest, c, s, steps, less,
    row, rows, cols, counted, j1, m, met, memory, frame, S,
    TABLE: tl.constexpr, ASKED: tl.constexpr, VARIANT: tl.constexpr,
):  # fmt: skip
    if ASKED.SHIFT > 0:
        k, km1 = _shifted(exact, rest, row, s, rows, cols, counted, j1, m, met, memory, frame, S, ASKED, VARIANT)
    else:
        k, km1 = next_kernel(k, km1, d2, row, s, steps, frame.square, TABLE.SP > 1, ASKED.LESS, VARIANT.ACC)
    summed = km1
    if ASKED.LESS:
        summed = tl.where(less > 0, km1, k)
    # the weight of a single bandwidth is multiplied with the sums
    if TABLE.COUNT == 1:
        total = summed
    elif ASKED.VALUE or ASKED.TOTAL:
        total = tl.fma(summed, tl.load(row.weights + s).to(VARIANT.ACC), total)
    if TABLE.COUNT == 1 and not ASKED.PANEL:
        k_over_sigma2 = k
    elif ASKED.PULL > 0:
        k_over_sigma2 = tl.fma(k, tl.load(row.weights_over_sigma2 + s).to(VARIANT.ACC), k_over_sigma2)
    if ASKED.MOMENTS and met.measured:
        own = tl.arange(0, TABLE.SP)[None, :] == s
        sum_k += tl.where(own, tl.sum(c * summed, 1)[:, None], 0.0)
        # an infinite distance has a kernel of 0 and no say
        ckd2 = tl.where(k == 0.0, 0.0, c * k * d2)
        sum_kd2 += tl.where(own, tl.sum(ckd2, 1)[:, None], 0.0)
    return k, km1, total, k_over_sigma2, sum_k, sum_kd2


@triton.jit
def _shifted(
    exact, rest, row, s, rows, cols, counted, j1, m, met, memory, frame, S,
    ASKED: tl.constexpr, VARIANT: tl.constexpr,
):  # fmt: skip
    """The kernel of bandwidth s times exp(-shift), and that less 1, or again."""
    ACC: tl.constexpr = VARIANT.ACC
    t, less = exponents(exact, rest, row, s, frame.square, VARIANT)
    place = tl.load(row.places + s).to(tl.int32)
    if ASKED.SHIFT != 2:
        own = memory.shift + met.first_row * S + rows.at * S + place
        shift = tl.load(own, mask=rows.inside & (met.pairing == 0), other=0.0) * LOG2_E
        high = shift.to(ACC)
        t -= high[:, None]
        less -= (shift - high.to(shift.dtype)).to(ACC)[:, None]
    if ASKED.SHIFT != 1:
        own = memory.shift + (met.b * m + j1) * S + cols.at * S + place
        shift = tl.load(own, mask=cols.inside & (met.pairing == ASKED.SHIFT - 2), other=0.0) * LOG2_E
        high = shift.to(ACC)
        t -= high[None, :]
        less -= (shift - high.to(shift.dtype)).to(ACC)[None, :]
    t += less
    # a shift can make the kernel of a pair that does not count infinite, which times 0 would be NaN
    t = tl.where(cols.inside[None, :], t, float("-inf"))
    if ASKED.DROP > 0:
        t = tl.where(counted, t, float("-inf"))
    # and that of a row without weight, which counts for nothing and has a derivative
    most: tl.constexpr = 1000.0 if tl.float64 == ACC else 90.0
    t = tl.where(t > most, most, t)
    k = tl.exp2(t)
    km1 = k
    if ASKED.LESS:
        km1 = exp2m1(t, k, ACC)
    return k, km1
