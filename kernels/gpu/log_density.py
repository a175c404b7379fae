"""Log-sum-exp over kernels.

Exponents of a density reach thousands where those of a kernel matter only to about 100: rounding them in float32
(1e-7 of each) would already be the whole error that is allowed of the density (2e-7), before anything is summed. So
"highest" takes pieces that hold every bit of a point, six products of them, and each exponent as a sum of two
float32; tiles that are far, and few coordinates, are in float64. With "high" and "medium" exponents have the error of
their products: log p is off by at most 2**-14 and 2**-6 of the greatest |x|^2 / (2 sigma^2) about the common centre.
"""

import math

import torch
import triton
import triton.language as tl

from .bandwidths import LOG2_E, Table, one_for_each, row_of_table
from .distances import columns_of_turn, exponents, pieces_of, side_of, split_distances
from .launch import launch
from .pairings import Set
from .points import Split, frame_of
from .tiles import FUSION, SIZES, column_ranges


@triton.jit(do_not_specialize=SIZES)
def _log_sum_exp_kernel(
    points, a_ptr, out_ptr, bandwidths, N, M, D, S, B, table_stride, RANGES,
    SKIP_DIAGONAL: tl.constexpr, EACH: tl.constexpr, STAGES: tl.constexpr,
    TABLE: tl.constexpr, VARIANT: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    SP: tl.constexpr = TABLE.SP
    BN: tl.constexpr = VARIANT.BN
    BM: tl.constexpr = VARIANT.BM
    ACC: tl.constexpr = VARIANT.ACC
    column_range = tl.program_id(1)
    tiles = tl.cdiv(N, BN)
    pid = tl.program_id(0).to(tl.int64)
    b, i0 = pid // tiles, (pid % tiles).to(tl.int32) * BN
    width = tl.cdiv(tl.cdiv(M, BM), RANGES) * BM
    start = column_range * width
    stop = tl.minimum(start + width, M)
    row = row_of_table(bandwidths, b, pid + tl.num_programs(0) * column_range, S, table_stride, TABLE)
    frame = frame_of(points, row, b, S, TABLE, VARIANT)
    p = Set(points.x, points.x_columns, points.x_pieces, points.x_norms, a_ptr, N)
    q = Set(points.y, points.y_columns, points.y_pieces, points.y_norms, a_ptr, M)
    rows = side_of(p, b, i0, D, 0, BN, VARIANT)
    of_rows = pieces_of(rows, VARIANT)
    # the greatest weight is taken out, so that large normalisers do not round the exponents
    bandwidth = tl.arange(0, SP)
    weights = tl.load(row.weights + bandwidth, mask=bandwidth < S, other=float("-inf"))
    greatest = tl.max(tl.where(bandwidth < S, weights, float("-inf")), 0)

    # of each bandwidth, or of all
    top, total = tl.full([BN], float("-inf"), ACC), tl.zeros([BN], tl.float64)
    if EACH:
        top, total = tl.full([BN, SP], float("-inf"), ACC), tl.zeros([BN, SP], tl.float64)
    # tiles whose pairs products serve, then the others, as in the sweep
    top, total, first_far, after_far = _add_columns(
        top, total, rows, of_rows, q, b, i0, start, stop, row, greatest, frame, D, S,
        0, BM, STAGES, SKIP_DIAGONAL, EACH, TABLE, VARIANT,
    )  # fmt: skip
    if VARIANT.DOT > 0:
        top, total, _, _ = _add_columns(
            top, total, rows, of_rows, q, b, i0, first_far, after_far, row, greatest, frame, D, S,
            1, BM, 1, SKIP_DIAGONAL, EACH, TABLE, FAR,
        )  # fmt: skip
    log_p = _log_of(top.to(tl.float64), total) + greatest.to(tl.float64)
    place = (column_range.to(tl.int64) * B + b) * N + i0 + rows.at
    if EACH:
        # in the caller's order of bandwidths
        own = tl.load(row.places + bandwidth, mask=bandwidth < S, other=0.0).to(tl.int32)
        inside = rows.inside[:, None] & (bandwidth < S)[None, :]
        tl.store(out_ptr + place[:, None] * S + own[None, :], log_p, mask=inside)
    else:
        tl.store(out_ptr + place, log_p, mask=rows.inside)


@triton.jit
def _add_columns(
    top, total, rows, of_rows, q, b, i0, start, stop, row, greatest, frame, D, S,
    TURN: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr, SKIP_DIAGONAL: tl.constexpr, EACH: tl.constexpr,
    TABLE: tl.constexpr, VARIANT: tl.constexpr,
):  # fmt: skip
    """Adds 2**exponents of columns from start to stop to total 2**top; see _meet_columns of the sweep."""
    BM: tl.constexpr = VARIANT.BM
    ACC: tl.constexpr = VARIANT.ACC
    COUNT: tl.constexpr = TABLE.COUNT
    first_far, after_far = stop, start
    for j0 in tl.range(start, stop, BM, num_stages=STAGES):
        cols, of_cols, far, first_far, after_far = columns_of_turn(
            q, b, j0, j0, start, first_far, after_far, of_rows, frame, D, 1, TURN, TILE, VARIANT
        )
        exact, rest = split_distances(rows, cols, of_rows, of_cols, far, frame, D, TURN, VARIANT)
        a = tl.load(cols.coefficients + cols.at, mask=cols.inside, other=0.0).to(ACC)
        if COUNT > 0:
            for s in tl.static_range(COUNT):
                top, total = _add_bandwidth(
                    top, total, exact, rest, a, s, row, greatest, frame, rows, cols, j0 - i0,
                    SKIP_DIAGONAL, EACH, TABLE, VARIANT,
                )  # fmt: skip
        else:
            for s in range(S):
                top, total = _add_bandwidth(
                    top, total, exact, rest, a, s, row, greatest, frame, rows, cols, j0 - i0,
                    SKIP_DIAGONAL, EACH, TABLE, VARIANT,
                )  # fmt: skip
    return top, total, first_far, after_far


@triton.jit
def _add_bandwidth(
    top, total, exact, rest, a, s, row, greatest, frame, rows, cols, away,
    SKIP_DIAGONAL: tl.constexpr, EACH: tl.constexpr, TABLE: tl.constexpr, VARIANT: tl.constexpr,
):  # fmt: skip
    log_w = ((tl.load(row.weights + s) - greatest) * LOG2_E).to(VARIANT.ACC)
    t, less = exponents(exact, rest, row, s, frame.square, VARIANT)
    # a point without weight counts for nothing, however near it is
    less += (tl.where(a == 0.0, float("-inf"), 0.0).to(VARIANT.ACC) + log_w)[None, :]
    if SKIP_DIAGONAL and (away < VARIANT.BN) & (away + VARIANT.BM > 0):
        less = tl.where(rows.at[:, None] != (cols.at + away)[None, :], less, float("-inf"))
    # whole numbers, powers of which are exact
    own_top, own_total = top, total
    if EACH:
        own = tl.arange(0, TABLE.SP)[None, :] == s
        own_top, own_total = tl.max(tl.where(own, top, float("-inf")), 1), tl.sum(tl.where(own, total, 0.0), 1)
    higher = tl.maximum(own_top, tl.ceil(tl.max(t + less, 1)))
    # nothing yet: no exponent to refer to
    base = tl.where(higher == float("-inf"), 0.0, higher)
    share = tl.sum(tl.exp2((t - base[:, None]) + less) * a[None, :], 1).to(tl.float64)
    added = tl.fma(own_total, tl.exp2(own_top - base).to(tl.float64), share)
    if EACH:
        higher, added = tl.where(own, higher[:, None], top), tl.where(own, added[:, None], total)
    return higher, added


@triton.jit
def _log_of(top, total):
    """log(2**top total); the total is 0 where nothing was added."""
    return (top + tl.log2(tl.where(total == 0.0, 1.0, total))) / LOG2_E


@triton.jit(do_not_specialize=SIZES)
def _add_logs_kernel(partial_ptr, out_ptr, COUNT, RANGES, BLOCK: tl.constexpr):
    """log sum_c exp(partial_c), of (RANGES, COUNT)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < COUNT
    top = tl.full([BLOCK], float("-inf"), tl.float64)
    total = tl.zeros([BLOCK], tl.float64)
    for _ in range(RANGES):
        t = tl.load(partial_ptr + at, mask=inside, other=0.0) * LOG2_E
        partial_ptr += COUNT
        higher = tl.maximum(top, t)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp2(top - base) + tl.exp2(t - base)
        top = higher
    tl.store(out_ptr + at, _log_of(top, total), mask=inside)


def log_density(x, y, sigma, log_weights, data_weights, *, leave_one_out, precision="highest"):
    """log sum_sj data_weights_j exp(log_weights_s + log k_sij), (B, N) float64. See gkfast.log_density."""
    return _log_sums(x, y, sigma, log_weights, data_weights, leave_one_out, precision, False)


def log_density_by_bandwidth(x, y, sigma, data_weights, *, leave_one_out, precision="highest"):
    """log sum_j data_weights_j k_sij, (B, N, S) float64. See gkfast.log_density."""
    return _log_sums(x, y, sigma, one_for_each(0.0, sigma, x), data_weights, leave_one_out, precision, True)


def _log_sums(x, y, sigma, log_weights, data_weights, leave_one_out, precision, each):
    (batch, n, dims), m = x.shape, y.shape[1]
    wide = torch.float64 if precision == "highest" or x.dtype == torch.float64 else torch.float32
    table = Table(sigma, log_weights, x, wide)
    split = Split(table, x, y, "log-density" if precision == "highest" else precision)
    found = split.tile("logs" if each else "log")
    tiles = triton.cdiv(n, found.bn)
    ranges = column_ranges(found, batch * tiles, m, x.device)
    shape = (batch, n, table.count) if each else (batch, n)
    logs = x.new_empty(ranges, *shape, dtype=torch.float64)
    if batch * n:
        own = table.own(tiles, ranges, math.inf)
        launch(_log_sum_exp_kernel, (batch * tiles, ranges),
            split.points, data_weights, logs, table.arguments(),
            n, m, dims, table.count, batch, table.stride, ranges,
            SKIP_DIAGONAL=leave_one_out, EACH=each, STAGES=found.stages, TABLE=table.constants(own),
            VARIANT=split.variant(found), FAR=split.variant(found._replace(bm=16)), **found.options,
        )  # fmt: skip
    if ranges == 1 or not batch * n:
        return logs[0]
    out, block, count = x.new_empty(*shape, dtype=torch.float64), 256, math.prod(shape)
    launch(_add_logs_kernel, (triton.cdiv(count, block),), logs, out, count, ranges, BLOCK=block, **FUSION)
    return out
