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

# the interpreter has no bfloat16 products: float32 holds them exactly, and sums as the hardware does
EMULATED = tl.constexpr(triton.knobs.runtime.interpret)
_LOG_2 = tl.constexpr(math.log(2))

# products by precision, and the greatest |x|^2 / (2 sigma^2) for which they are taken. At 4 the rounding of the three
# terms, 16 halves of an ulp of 1, reaches the 1e-6 that a kernel may be off by. Elsewhere every finite value will do.
PRODUCTS = {"highest": (6, 4.0), "high": (3, 3e38), "medium": (1, 3e38)}
# pairs times coordinates below which four launches cost more than differences
_SMALL = 2**26


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
    """total + sum_j weights_ij y_jd, [BN, coordinates]."""
    y = y_ptr + cols[:, None] * ((DOT + 3) // 3 * DP) + d[None, :]
    inside = col_in[:, None]
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
def _sum_of_some(ptr, count, d, D, BN: tl.constexpr):
    """Sum and number of the finite coordinates d of the first rows."""
    rows = tl.arange(0, BN)
    inside = (rows < count)[:, None] & (d < D)[None, :]
    x = tl.load(ptr + rows[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
    x = tl.where(tl.abs(x) < 1e30, x, 0.0)
    return tl.sum(x, 0), tl.minimum(count, BN)


@triton.jit(do_not_specialize=["N", "M", "D", "S", "table_stride"])
def _split_kernel(
    x_ptr, y_ptr, table_ptr, x_pieces_ptr, y_pieces_ptr, x_norms_ptr, y_norms_ptr, limit_ptr,
    N, M, D, S, table_stride,
    DP: tl.constexpr, DOT: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SP: tl.constexpr,
):  # fmt: skip
    tiles_n, tiles_m = tl.cdiv(N, BN), tl.cdiv(M, BN)
    pid = tl.program_id(0).to(tl.int64)
    b, tile = pid // (tiles_n + tiles_m), (pid % (tiles_n + tiles_m)).to(tl.int32)
    p_ptr, pieces_ptr, norms_ptr, n, i0 = x_ptr, x_pieces_ptr, x_norms_ptr, N, tile * BN
    if tile >= tiles_n:
        p_ptr, pieces_ptr, norms_ptr, n, i0 = y_ptr, y_pieces_ptr, y_norms_ptr, M, (tile - tiles_n) * BN
    rows = tl.arange(0, BN)
    row_in = rows < n - i0
    p_ptr += (b * n + i0) * D
    ROW: tl.constexpr = (DOT + 3) // 3 * DP
    pieces_ptr += (b * n + i0) * ROW
    table_ptr += b * table_stride
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
        high, middle, low = pieces(x)
        there = pieces_ptr + rows[:, None] * ROW + d[None, :]
        kept = row_in[:, None] & (d < DP)[None, :]
        tl.store(there, high, mask=kept)
        # the norm of what the products see
        h, m = high.to(tl.float64), middle.to(tl.float64)
        if DOT > 3:
            tl.store(there + DP, middle, mask=kept)
            tl.store(there + 2 * DP, low, mask=kept)
            wide = x.to(tl.float64)
            square = wide * wide
        elif DOT > 1:
            tl.store(there + DP, middle, mask=kept)
            square = h * (h + 2 * m)
        else:
            square = h * h
        norms += tl.sum(square, 1)
    norms = norms.to(tl.float32)
    tl.store(norms_ptr + b * n + i0 + rows, norms, mask=row_in)
    scales = tl.load(table_ptr + 1 + tl.arange(0, SP), mask=tl.arange(0, SP) < S, other=0.0).to(tl.float32)
    sizes = norms * (tl.max(-scales, 0) * _LOG_2)
    # as integers, whose maximum does not depend on the order; a NaN is above infinity there
    tl.atomic_max(limit_ptr, tl.max(tl.where(row_in, sizes, 0.0).to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0))


class Split:
    """Pieces of x and y, their squared norms, and the greatest of these that the form is chosen by."""

    def __init__(self, table, x, y, precision):
        self.products, self.limit = PRODUCTS[precision]
        (batch, n, dims), m = x.shape, y.shape[1]
        # coordinates that are multiplied at a time
        self.bk = 16 if dims <= 16 else 32
        self.dims = triton.cdiv(dims, self.bk) * self.bk
        row = (self.products + 3) // 3 * self.dims
        self.x = x.new_empty(batch, n, row, dtype=torch.bfloat16)
        self.y = x.new_empty(batch, m, row, dtype=torch.bfloat16)
        self.x_norms = x.new_empty(batch, n, dtype=torch.float32)
        self.y_norms = x.new_empty(batch, m, dtype=torch.float32)
        self.greatest = table.limit
        bn = 32
        with torch.cuda.device_of(x):
            _split_kernel[(batch * (triton.cdiv(n, bn) + triton.cdiv(m, bn)),)](
                x, y, table.rows, self.x, self.y, self.x_norms, self.y_norms, self.greatest,
                n, m, dims, table.count, table.stride,
                DP=self.dims, DOT=self.products, BN=bn, BK=self.bk, SP=triton.next_power_of_2(table.count),
                num_warps=8,
            )  # fmt: skip


def exchanged(split):
    """The same with x and y in each other's places."""
    if split is None:
        return None
    other = copy.copy(split)
    other.x, other.y, other.x_norms, other.y_norms = split.y, split.x, split.y_norms, split.x_norms
    return other


def worth_splitting(x, y):
    """Whether products of pieces may be taken: told from sizes alone."""
    (batch, n, dims), m = x.shape, y.shape[1]
    return x.dtype != torch.float64 and dims > 4 and batch * n * m * dims > _SMALL
