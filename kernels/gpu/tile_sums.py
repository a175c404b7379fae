"""What a sweep does with a tile of pairs: distances and kernels, the sums that it adds to, and how these are stored.

The words are those of sweep.py.
"""

import triton
import triton.language as tl

from .bandwidths import LOG2_E
from .bf16_pieces import inner_products, less_own_points, weighted_points, zeros
from .distances import (
    cast,
    coordinates_of,
    differences,
    exp2m1,
    next_kernel,
    pulled_by_differences,
    squared_distances,
)

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
def distances(rows, cols, row_norms, row_points, unit, D, ASKED: tl.constexpr, VARIANT: tl.constexpr):
    """|p_i - q_j|^2 of a tile; and q_j - p_i, if registers hold the coordinates."""
    DIMS: tl.constexpr = ASKED.DIMS
    away = ()
    if DIMS > 0:
        away = differences(row_points, coordinates_of(cols, DIMS, VARIANT.ACC), unit, DIMS, VARIANT.SCALED)
        d2 = away[0] * away[0]
        for d in tl.static_range(1, DIMS):
            d2 = tl.fma(away[d], away[d], d2)
    else:
        d2 = squared_distances(rows, cols, row_norms, unit, D, VARIANT, False)
    return d2, away


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
    elif (ASKED.PULL > 0 or ASKED.MOMENTS) and VARIANT.DOT > 0:
        c = inner_products(rows.coefficients, cols.coefficients, rows, cols, ASKED.EP, 16, VARIANT, False)
    elif ASKED.PULL > 0 or ASKED.MOMENTS:
        # sum_e f_ie h_je
        for e0 in range(0, E, 16):
            e = tl.arange(0, 16)
            left = rows.coefficients + rows.at[:, None] * E + e0 + e[None, :]
            right = cols.coefficients + cols.at[None, :] * E + e0 + e[:, None]
            left = tl.load(left, mask=rows.inside[:, None] & (e < E - e0)[None, :], other=0.0).to(VARIANT.ACC)
            right = tl.load(right, mask=cols.inside[None, :] & (e < E - e0)[:, None], other=0.0).to(VARIANT.ACC)
            c = tl.dot(left, right, c, input_precision="ieee", out_dtype=VARIANT.ACC)
    return c, h


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
    value, total, h, cols, e, e_in, E, BY_TILE: tl.constexpr, ASKED: tl.constexpr, VARIANT: tl.constexpr
):  # fmt: skip
    """value + sum_j total_ij h_je, or its addends."""
    if ASKED.ONE_COLUMN and BY_TILE:
        value += tl.sum(total * h[None, :], 1)
    elif ASKED.ONE_COLUMN:
        value = tl.fma(total, h[None, :], value)
    elif VARIANT.DOT > 0:
        value = weighted_points(total, cols.coefficients, cols, e, value, ASKED.EP, VARIANT.DOT)
    else:
        inside = cols.inside[:, None] & e_in[None, :]
        right = tl.load(cols.coefficients + cols.at[:, None] * E + e[None, :], mask=inside, other=0.0)
        value = tl.dot(total, right.to(VARIANT.ACC), value, input_precision="ieee", out_dtype=VARIANT.ACC)
    return value


@triton.jit
def clear_pull(pull_ptr, rows, coordinates, D, width, BN: tl.constexpr, BD: tl.constexpr):
    """More coordinates than registers hold: the pull on these rows is summed in memory."""
    for d0 in range(0, D, BD):
        inside = rows.inside[:, None] & (d0 + coordinates < width)[None, :]
        own = pull_ptr + rows.at[:, None] * width + d0 + coordinates[None, :]
        tl.store(own, tl.zeros([BN, BD], tl.float64), mask=inside)
    tl.debug_barrier()


@triton.jit
def no_pull(ASKED: tl.constexpr, VARIANT: tl.constexpr):
    """By products the sum of a block of coordinates; of few coordinates the addends of each; else nothing."""
    if VARIANT.DOT > 0:
        return zeros(VARIANT.BN, VARIANT.BD, VARIANT.ACC)
    else:
        return _zeros(ASKED.DIMS, VARIANT)


@triton.jit
def _zeros(D: tl.constexpr, VARIANT: tl.constexpr):
    found = ()
    for _ in tl.static_range(D):
        found += (zeros(VARIANT.BN, VARIANT.BM, VARIANT.ACC),)
    return found


@triton.jit
def add_pull(
    pull, w_sum, w, away, pull_ptr, rows, cols, coordinates, unit, D, width,
    ASKED: tl.constexpr, VARIANT: tl.constexpr,
):  # fmt: skip
    """Adds sum_j w_ij (q_j - p_i); by products sum_j w_ij q_j, and sum_j w_ij apart."""
    if VARIANT.DOT > 0:
        pull = weighted_points(w, cols.points, cols, coordinates, pull, VARIANT.DP, VARIANT.DOT)
        w_sum += tl.sum(w, 1)
    elif ASKED.DIMS > 0:
        pull = _pulled(pull, w, away, ASKED.DIMS)
    else:
        # in memory, BD coordinates at a time; only this program touches these rows
        for d0 in range(0, D, VARIANT.BD):
            nothing = zeros(VARIANT.BN, VARIANT.BD, VARIANT.ACC)
            block = pulled_by_differences(nothing, w, rows, cols, d0, unit, D, VARIANT)
            own = pull_ptr + rows.at[:, None] * width + d0 + coordinates[None, :]
            inside = rows.inside[:, None] & (coordinates < D - d0)[None, :]
            tl.store(own, tl.load(own, mask=inside, other=0.0) + block, mask=inside)
        # for the next tile other threads may load what one thread stored
        tl.debug_barrier()
    return pull, w_sum


@triton.jit
def _pulled(pull, w, away, D: tl.constexpr):
    """pull + w away by coordinate; a kernel of 0 pulls nothing, from infinitely far either."""
    found = ()
    for d in tl.static_range(D):
        found += (pull[d] + tl.where(w == 0.0, 0.0, w * away[d]),)
    return found


@triton.jit
def keep_pull(pull, chunk, pull_ptr, rows, coordinates, width, DIMS: tl.constexpr, VARIANT: tl.constexpr):
    """Adds the pull of a chunk to that of all, in registers or, by products, in memory."""
    if VARIANT.DOT > 0:
        own = pull_ptr + rows.at[:, None] * width + coordinates[None, :]
        inside = rows.inside[:, None] & (coordinates < VARIANT.DP)[None, :]
        tl.store(own, tl.load(own, mask=inside, other=0.0) + chunk, mask=inside)
        tl.debug_barrier()
    else:
        for d in tl.static_range(DIMS):
            pull += tl.where(coordinates[None, :] == d, tl.sum(chunk[d], 1)[:, None], 0.0)
    return pull


@triton.jit
def store_sums(
    sums, row, f, value, sum_k, sum_kd2, i0, first, strips, more, S,
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
        sum_kd2 *= f[:, None]
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
def store_pull(pull_ptr, pull, rows, coordinates, factor, D, width, BD: tl.constexpr, DIMS: tl.constexpr):
    """Scales the pull, which is in registers or (DIMS = 0) in memory."""
    for d0 in range(0, D, BD):
        own = pull_ptr + rows.at[:, None] * width + d0 + coordinates[None, :]
        inside = rows.inside[:, None] & (coordinates < D - d0)[None, :]
        if DIMS == 0:
            pull = tl.load(own, mask=inside, other=0.0).to(tl.float64)
        tl.store(own, cast(pull * factor, pull_ptr), mask=inside)


@triton.jit
def store_pull_by_products(pull_ptr, rows, coordinates, w_sum, factor, VARIANT: tl.constexpr):
    """Makes of sum_j w_ij q_j, which is in memory, the pull: less p_i sum_j w_ij, and scaled."""
    inside = rows.inside[:, None] & (coordinates < VARIANT.DP)[None, :]
    own = pull_ptr + rows.at[:, None] * VARIANT.DP + coordinates[None, :]
    pull = tl.load(own, mask=inside, other=0.0)
    pull = less_own_points(pull, rows.points, rows, coordinates, inside, w_sum, VARIANT.DP, VARIANT.DOT)
    tl.store(own, pull * factor, mask=inside)


@triton.jit
def mix(
    d2, c, sum_k, sum_kd2, measured, row, rows, cols, kept,
    shift_ptr, first_row, first_col, pairing, baseline_ptr, b, S,
    TABLE: tl.constexpr, ASKED: tl.constexpr, VARIANT: tl.constexpr,
):  # fmt: skip
    """Of a tile: sum_s w_s k_s, or of k_s - baseline_s; sum_s w_s / sigma_s^2 k_s; sum_k, sum_kd2 with its share."""
    total = zeros(VARIANT.BN, VARIANT.BM, VARIANT.ACC)
    k_over_sigma2 = zeros(VARIANT.BN, VARIANT.BM, VARIANT.ACC)
    k, km1 = total, total
    for s in range(1 if TABLE.SP == 1 else S):
        if ASKED.SHIFT > 0:
            k, km1 = _shifted(
                d2, row, s, rows, cols, kept, shift_ptr, first_row, first_col, pairing, S, ASKED, VARIANT.ACC
            )
        else:
            k, km1 = next_kernel(k, km1, d2, row, s, TABLE.SP > 1, ASKED.LESS, VARIANT.ACC)
        summed = km1
        if ASKED.LESS:
            baseline = tl.load(baseline_ptr + b * S + tl.load(row.places + s).to(tl.int32))
            summed = tl.where(baseline > 0, km1, k)
        if ASKED.VALUE or ASKED.TOTAL:
            total = tl.fma(summed, tl.load(row.weights + s), total)
        if ASKED.PULL > 0:
            k_over_sigma2 = tl.fma(k, tl.load(row.weights_over_sigma2 + s), k_over_sigma2)
        if ASKED.MOMENTS and measured:
            own = tl.arange(0, TABLE.SP)[None, :] == s
            sum_k += tl.where(own, tl.sum(c * summed, 1)[:, None], 0.0)
            # an infinite distance has a kernel of 0 and no say
            ckd2 = tl.where(k == 0.0, 0.0, c * k * d2)
            sum_kd2 += tl.where(own, tl.sum(ckd2, 1)[:, None], 0.0)
    return total, k_over_sigma2, sum_k, sum_kd2


@triton.jit
def _shifted(
    d2, row, s, rows, cols, kept, shift_ptr, first_row, first_col, pairing, S,
    ASKED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The kernel of bandwidth s times exp(-shift), and that less 1, or again."""
    t = d2 * tl.load(row.scales + s)
    place = tl.load(row.places + s).to(tl.int32)
    if ASKED.SHIFT != 2:
        own = shift_ptr + first_row * S + rows.at * S + place
        shift = tl.load(own, mask=rows.inside & (pairing == 0), other=0.0).to(ACC)
        t -= (shift * LOG2_E)[:, None]
    if ASKED.SHIFT != 1:
        own = shift_ptr + first_col * S + cols.at * S + place
        shift = tl.load(own, mask=cols.inside & (pairing == ASKED.SHIFT - 2), other=0.0).to(ACC)
        t -= (shift * LOG2_E)[None, :]
    # a shift can make the kernel of a pair that does not count infinite, which times 0 would be NaN
    t = tl.where(cols.inside[None, :], t, float("-inf"))
    if ASKED.DROP > 0:
        t = tl.where(kept, t, float("-inf"))
    # and that of a row without weight, which counts for nothing and has a derivative
    most: tl.constexpr = 1000.0 if tl.float64 == ACC else 120.0
    t = tl.where(t > most, most, t)
    k = tl.exp2(t)
    km1 = k
    if ASKED.LESS:
        km1 = exp2m1(t, k, ACC)
    return k, km1
