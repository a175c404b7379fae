"""Points as tensor cores take them: centred, in the table's units, each coordinate a sum of one to three bfloat16.

    |x - y|^2 = |x|^2 + |y|^2 - 2 x.y,   x.y = xh.yh + (xh.ym + xm.yh) + (xm.ym + xh.yl + xl.yh) + ...

Three pieces hold every bit of a float32, and the six products named are what float32 could tell: "highest". Two
pieces and three products are "high", one is "medium". Splitting costs O((N + M) D) once; sweeps then only multiply.

The three terms cancel, so their rounding is an error of about 2**-24 of |x|^2 / (2 sigma^2) in the exponent. How
large that is only the device knows. The kernel that splits leaves the greatest there, every sweep is launched in
both forms, and the one whose turn it is not returns at once: nobody waits for the device, and neither form costs the
other registers. Small problems and few coordinates take differences alone.
"""

import copy
import math

import torch
import triton
import triton.language as tl

from .bandwidths import NUMBERS, SLOTS, row_of_table
from .tiles import FUSION

# the interpreter has no bfloat16 products: float32 holds them exactly, and sums as the hardware does
EMULATED = tl.constexpr(triton.knobs.runtime.interpret)
_LOG_2 = tl.constexpr(math.log(2))
_SLOTS = tl.constexpr(SLOTS)

# products by precision, and the greatest |x|^2 / (2 sigma^2) for which they are taken. At 4 the rounding of the three
# terms, 16 halves of an ulp of 1, reaches the 1e-6 that a kernel may be off by, and there is as much again for every
# 8 coordinates: tensor cores cut off what a float32 sum cannot hold, up to an ulp of x.y for each of two additions
# for 16 coordinates. Elsewhere every finite value will do.
PRODUCTS = {"highest": (6, 4.0), "high": (3, 3e38), "medium": (1, 3e38)}
# pairs times coordinates up to which differences cost less than the launches that products add: at 2e13 multiply-adds
# a second about 13 us
_SMALL = 2**28


@triton.jit
def other_form(limit_ptr, DOT: tl.constexpr, LIMIT: tl.constexpr):
    """Whether it is the other form's turn: both are launched, that by products runs where these are accurate."""
    other = False
    if LIMIT > 0:
        # as many at a time as a warp has threads, whose maximum it finds without the others
        some = limit_ptr + tl.arange(0, 32)
        sizes = tl.load(some)
        for k in tl.static_range(32, _SLOTS, 32):
            sizes = tl.maximum(sizes, tl.load(some + k))
        greatest = tl.max(sizes, 0)
        other = (greatest.to(tl.float32, bitcast=True) <= LIMIT) != (DOT > 0)
    return other


@triton.jit
def dot(a, b, acc):
    if EMULATED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(a, b, acc)


@triton.jit
def pieces(x):
    """Three bfloat16 whose sum is x."""
    high = x.to(tl.bfloat16)
    rest = x - high.to(tl.float32)
    middle = rest.to(tl.bfloat16)
    return high, middle, (rest - middle.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def inner_products(
    x_ptr, y_ptr, rows, cols, row_in, col_in,
    DP: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr,
    SYMMETRIC: tl.constexpr,
):  # fmt: skip
    """x_i . y_j, [BN, BM]; a point's pieces are in one row of memory.

    SYMMETRIC: bitwise the same when x and y change places; products of unlike pieces are summed apart, then added.
    """
    like = tl.zeros([BN, BM], tl.float32)
    above = tl.zeros([BN, BM], tl.float32)
    below = tl.zeros([BN, BM], tl.float32)
    # 1, 2 or 3 pieces for 1, 3 or 6 products
    ROW: tl.constexpr = (DOT + 3) // 3 * DP
    for d0 in range(0, DP, BK):
        d = d0 + tl.arange(0, BK)
        x = x_ptr + rows[:, None] * ROW + d[None, :]
        y = y_ptr + cols[None, :] * ROW + d[:, None]
        xh = tl.load(x, mask=row_in[:, None], other=0.0)
        yh = tl.load(y, mask=col_in[None, :], other=0.0)
        like = dot(xh, yh, like)
        if DOT > 1:
            xm = tl.load(x + DP, mask=row_in[:, None], other=0.0)
            ym = tl.load(y + DP, mask=col_in[None, :], other=0.0)
            above = dot(xh, ym, above)
            if SYMMETRIC:
                below = dot(xm, yh, below)
            else:
                above = dot(xm, yh, above)
        if DOT > 3:
            xl = tl.load(x + 2 * DP, mask=row_in[:, None], other=0.0)
            yl = tl.load(y + 2 * DP, mask=col_in[None, :], other=0.0)
            like = dot(xm, ym, like)
            above = dot(xh, yl, above)
            if SYMMETRIC:
                below = dot(xl, yh, below)
            else:
                above = dot(xl, yh, above)
    return like + (above + below)


@triton.jit
def weighted_points(weights, y_ptr, cols, col_in, d, total, DP: tl.constexpr, DOT: tl.constexpr):
    """total + sum_j weights_ij y_jd, [BN, coordinates], from pieces of the points or coefficients y."""
    y = y_ptr + cols[:, None] * ((DOT + 3) // 3 * DP) + d[None, :]
    inside = col_in[:, None] & (d < DP)[None, :]
    wh, wm, wl = pieces(weights)
    yh = tl.load(y, mask=inside, other=0.0)
    total = dot(wh, yh, total)
    if DOT > 1:
        ym = tl.load(y + DP, mask=inside, other=0.0)
        total = dot(wh, ym, total)
        total = dot(wm, yh, total)
    if DOT > 3:
        yl = tl.load(y + 2 * DP, mask=inside, other=0.0)
        total = dot(wm, ym, total)
        total = dot(wh, yl, total)
        total = dot(wl, yh, total)
    return total


@triton.jit
def split_pieces(x, ptr, kept, DP: tl.constexpr, DOT: tl.constexpr):
    """Stores as many pieces of x as the products need at ptr, ptr + DP ...; returns the first two."""
    high, middle, low = pieces(x)
    tl.store(ptr, high, mask=kept)
    if DOT > 1:
        tl.store(ptr + DP, middle, mask=kept)
    if DOT > 3:
        tl.store(ptr + 2 * DP, low, mask=kept)
    return high, middle


@triton.jit
def _sum_of_some(ptr, count, d, D, BN: tl.constexpr):
    """Sum and number of the finite coordinates d of the first rows."""
    rows = tl.arange(0, BN)
    inside = (rows < count)[:, None] & (d < D)[None, :]
    x = tl.load(ptr + rows[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
    x = tl.where(tl.abs(x) < 1e30, x, 0.0)
    return tl.sum(x, 0), tl.minimum(count, BN)


@triton.jit
def _own_tile(x_ptr, y_ptr, x_out, y_out, N, M, BN: tl.constexpr):
    """This program's batch, points, their pieces, number, and first row: tiles of x come first."""
    tiles_n, tiles_m = tl.cdiv(N, BN), tl.cdiv(M, BN)
    pid = tl.program_id(0).to(tl.int64)
    b, tile = pid // (tiles_n + tiles_m), (pid % (tiles_n + tiles_m)).to(tl.int32)
    p_ptr, out_ptr, n, i0, of_y = x_ptr, x_out, N, tile * BN, tile >= tiles_n
    if of_y:
        p_ptr, out_ptr, n, i0 = y_ptr, y_out, M, (tile - tiles_n) * BN
    return b, p_ptr, out_ptr, n, i0, of_y


@triton.jit
def _gather(limit_ptr, sizes, ALONE: tl.constexpr):
    """Adds sizes, none negative, to those whose greatest is in this program's slot, which may be its own."""
    # as integers, whose maximum does not depend on the order; a NaN is above infinity there
    greatest = tl.max(sizes.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0)
    slot = limit_ptr + tl.program_id(0) % _SLOTS
    if ALONE:
        tl.store(slot, greatest)
    else:
        tl.atomic_max(slot, greatest)


@triton.jit(do_not_specialize=["N", "M", "D", "B", "S", "table_stride", "sigma_stride", "weights_stride", *NUMBERS])
def _split_kernel(
    x_ptr, y_ptr, table_ptr, x_pieces_ptr, y_pieces_ptr, x_norms_ptr, y_norms_ptr, limit_ptr, sigma_ptr, weights_ptr,
    N, M, D, B, S, table_stride, sigma_stride, weights_stride,
    s0: tl.int64, s1: tl.int64, s2: tl.int64, s3: tl.int64, s4: tl.int64, s5: tl.int64, s6: tl.int64, s7: tl.int64,
    w0: tl.int64, w1: tl.int64, w2: tl.int64, w3: tl.int64, w4: tl.int64, w5: tl.int64, w6: tl.int64, w7: tl.int64,
    OWN_TABLE: tl.constexpr, HOST: tl.constexpr, SP: tl.constexpr, MODERATE: tl.constexpr, SQUARES: tl.constexpr,
    DP: tl.constexpr, DOT: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    b, p_ptr, pieces_ptr, n, i0, of_y = _own_tile(x_ptr, y_ptr, x_pieces_ptr, y_pieces_ptr, N, M, BN)
    # programs without a tile are there for their slots
    if OWN_TABLE and b >= B:
        tl.store(limit_ptr + tl.program_id(0), 0)
        return
    table_ptr = row_of_table(
        table_ptr, b, tl.program_id(0), table_stride, sigma_ptr, weights_ptr, S, sigma_stride, weights_stride,
        s0, s1, s2, s3, s4, s5, s6, s7, w0, w1, w2, w3, w4, w5, w6, w7, OWN_TABLE, HOST, SP, MODERATE, SQUARES,
    )  # fmt: skip
    norms_ptr = x_norms_ptr
    if of_y:
        norms_ptr = y_norms_ptr
    rows = tl.arange(0, BN)
    row_in = rows < n - i0
    p_ptr += (b * n + i0) * D
    ROW: tl.constexpr = (DOT + 3) // 3 * DP
    pieces_ptr += (b * n + i0) * ROW
    unit = tl.load(table_ptr).to(tl.float32)
    norms = tl.zeros([BN], tl.float64)
    for d0 in range(0, DP, BK):
        d = d0 + tl.arange(0, BK)
        inside = row_in[:, None] & (d < D)[None, :]
        x = tl.load(p_ptr + rows[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
        # any common point will do as the centre: here the mean of the first rows, for all programs the same
        sum_x, count_x = _sum_of_some(x_ptr + b * N * D, N, d, D, BN)
        sum_y, count_y = _sum_of_some(y_ptr + b * M * D, M, d, D, BN)
        centre = (sum_x + sum_y) / (count_x + count_y)
        x = tl.where(inside, (x - centre[None, :]) * unit, 0.0)
        there = pieces_ptr + rows[:, None] * ROW + d[None, :]
        high, middle = split_pieces(x, there, row_in[:, None] & (d < DP)[None, :], DP, DOT)
        # the norm of what the products see
        h, m = high.to(tl.float64), middle.to(tl.float64)
        if DOT > 3:
            wide = x.to(tl.float64)
            square = wide * wide
        elif DOT > 1:
            square = h * (h + 2 * m)
        else:
            square = h * h
        norms += tl.sum(square, 1)
    norms = norms.to(tl.float32)
    tl.store(norms_ptr + b * n + i0 + rows, norms, mask=row_in)
    scales = tl.load(table_ptr + 1 + tl.arange(0, SP), mask=tl.arange(0, SP) < S, other=0.0).to(tl.float32)
    _gather(limit_ptr, tl.where(row_in, norms * (tl.max(-scales, 0) * _LOG_2), 0.0), OWN_TABLE)


@triton.jit(do_not_specialize=["N", "M", "E"])
def _split_columns_kernel(
    a_ptr, b_ptr, a_pieces_ptr, b_pieces_ptr, limit_ptr, N, M, E,
    EP: tl.constexpr, DOT: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    batch, v_ptr, pieces_ptr, n, i0, _ = _own_tile(a_ptr, b_ptr, a_pieces_ptr, b_pieces_ptr, N, M, BN)
    rows = tl.arange(0, BN)
    row_in = (rows < n - i0)[:, None]
    ROW: tl.constexpr = (DOT + 3) // 3 * EP
    v_ptr += (batch * n + i0) * E
    pieces_ptr += (batch * n + i0) * ROW
    sizes = tl.zeros([BN], tl.float32)
    for e0 in range(0, EP, BK):
        e = e0 + tl.arange(0, BK)
        inside = row_in & (e < E)[None, :]
        v = tl.load(v_ptr + rows[:, None] * E + e[None, :], mask=inside, other=0.0).to(tl.float32)
        split_pieces(v, pieces_ptr + rows[:, None] * ROW + e[None, :], row_in & (e < EP)[None, :], EP, DOT)
        # differences are for all where products of pieces would be infinity less infinity
        odd = tl.where(tl.abs(v) < 1e38, 0.0, float("inf"))
        sizes = tl.maximum(sizes, tl.max(odd, 1))
    _gather(limit_ptr, sizes, False)


class Split:
    """Pieces of the points x and y, their squared norms, and the greatest of these that the form is chosen by.

    Of coefficients a (B, N, E) and b (B, M, E) with several columns the pieces too; a or b may be None.
    """

    def __init__(self, table, x, y, precision, a=None, b=None):
        self.products, limit = PRODUCTS[precision]
        (batch, n, dims), m = x.shape, y.shape[1]
        # coordinates that are multiplied at a time
        self.bk = 16 if dims <= 16 else 32
        self.dims = triton.cdiv(dims, self.bk) * self.bk
        self.limit = limit / (1 + self.dims / 8)
        self.x, self.y = self._room(x, self.dims), self._room(y, self.dims)
        self.x_norms, self.y_norms = (p.new_empty(p.shape[:2], dtype=torch.float32) for p in (x, y))
        bn = 32
        tiles = triton.cdiv(n, bn) + triton.cdiv(m, bn)
        own = table.own(tiles, few=SLOTS)
        self.greatest = torch.empty(SLOTS, dtype=torch.int32, device=x.device) if own else table.limit
        with torch.cuda.device_of(x):
            _split_kernel[(SLOTS if own else batch * tiles,)](
                x, y, table.rows, self.x, self.y, self.x_norms, self.y_norms, self.greatest, *table.pointers,
                n, m, dims, batch, table.count, table.stride, *table.numbers, OWN_TABLE=own, **table.constants,
                DP=self.dims, DOT=self.products, BN=bn, BK=self.bk, num_warps=8, **FUSION,
            )  # fmt: skip
        self.a = self.b = None
        columns = next((v.shape[2] for v in (a, b) if v is not None), 1)
        self.columns = 0
        if columns > 1:
            # columns of the value that one program holds
            self.columns = triton.cdiv(columns, block_of(columns)) * block_of(columns)
            # one of them alone is split as if it were both, the other without rows
            first, second = (a, b) if a is not None else (b, None)
            bk = min(32, self.columns)
            rows = [0 if v is None else v.shape[1] for v in (first, second)]
            # and stands for the other, that no kernel reads: kernels take pointers of one kind
            there = [self._room(v, self.columns) for v in (first, second) if v is not None]
            self.a, self.b = there[0], there[-1]
            with torch.cuda.device_of(x):
                _split_columns_kernel[(batch * sum(triton.cdiv(r, bn) for r in rows),)](
                    first, first if second is None else second, there[0], there[-1], self.greatest, *rows, columns,
                    EP=self.columns, DOT=self.products, BN=bn, BK=bk, num_warps=8, **FUSION,
                )  # fmt: skip

    def _room(self, points, length):
        return points.new_empty(*points.shape[:2], (self.products + 3) // 3 * length, dtype=torch.bfloat16)


def forms(split, nothing):
    """What to launch: the products of a form (0: by differences), their limit, and pointers to the points' pieces,
    squared norms and the greatest of these; nothing stands for those that no kernel reads."""
    if split is None:
        return [(0, 0.0, (nothing,) * 5)]
    operands = split.x, split.y, split.x_norms, split.y_norms, split.greatest
    return [(0, split.limit, operands), (split.products, split.limit, operands)]


def exchanged(split):
    """The same with x and y, and a and b, in each other's places."""
    if split is None:
        return None
    other = copy.copy(split)
    other.x, other.y, other.x_norms, other.y_norms = split.y, split.x, split.y_norms, split.x_norms
    other.a, other.b = split.b, split.a
    return other


def block_of(columns):
    """How many columns of coefficients a program holds."""
    return min(64, max(16, triton.next_power_of_2(columns)))


def worth_splitting(x, y, columns=1):
    """Whether products of pieces may be taken: told from sizes alone."""
    (batch, n, dims), m = x.shape, y.shape[1]
    many = dims > 4 or columns >= 16
    return x.dtype != torch.float64 and many and batch * n * m * max(dims, columns) > _SMALL
