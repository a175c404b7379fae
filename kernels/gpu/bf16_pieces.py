"""Points as tensor cores take them: centred, in the table's units, each coordinate a sum of one to three bfloat16.

    |x - y|^2 = |x|^2 + |y|^2 - 2 x.y,   x.y = xh.yh + (xh.ym + xm.yh) + (xm.ym + xh.yl + xl.yh) + ...

Three pieces hold every bit of a float32, and the six products named are what float32 could tell: "highest". Two
pieces and three products are "high", one is "medium". Pieces cost O((N + M) D) once; sweeps then only multiply.

The three terms cancel, so their rounding is an error of about 2**-24 of |x|^2 / (2 sigma^2) in the exponent. Only the
device knows how large that is. The kernel that makes the pieces leaves the greatest there, and every later kernel is
launched in two variants, by differences and by products, of which one returns at once: nobody waits for the device,
and neither variant costs the other registers. Small problems and few coordinates take differences alone.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .bandwidths import SLOTS, row_of_table, triton_dtype
from .launch import launch
from .tiles import FUSION, SIZES

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
SMALL = 2**28
# rows that a program cuts into pieces
_BN = 32


class Points(NamedTuple):
    """The argument of a kernel: points as they are, or their pieces and squared norms; the greatest of these norms.

    By differences norms are not read, and any pointer stands for them.
    """

    x: torch.Tensor
    y: torch.Tensor
    x_norms: torch.Tensor
    y_norms: torch.Tensor
    greatest: torch.Tensor


class Variant(NamedTuple):
    """Constants of a kernel: its tile, and how it finds distances."""

    BN: int
    BM: int
    BD: int
    # coordinates of a product at a time
    BK: int
    # products of pieces; 0: by differences
    DOT: int
    # numbers in a piece of a point
    DP: int
    # greatest norm up to which the variant by products runs; 0: there is no other variant
    LIMIT: float
    # differences are multiplied with the unit
    SCALED: bool
    ACC: tl.dtype


@triton.jit
def zeros(ROWS: tl.constexpr, COLUMNS: tl.constexpr, DTYPE: tl.constexpr):
    """A tile of zeros; the fields of a tuple cannot stand in the brackets of tl.zeros."""
    return tl.zeros([ROWS, COLUMNS], DTYPE)


@triton.jit
def is_other_variant(greatest_ptr, VARIANT: tl.constexpr):
    """Whether the other variant runs: products do where they are accurate."""
    other = False
    if VARIANT.LIMIT > 0:
        # as many at a time as a warp has threads, whose maximum it finds without the others
        some = greatest_ptr + tl.arange(0, 32)
        sizes = tl.load(some)
        for k in tl.static_range(32, _SLOTS, 32):
            sizes = tl.maximum(sizes, tl.load(some + k))
        greatest = tl.max(sizes, 0)
        other = (greatest.to(tl.float32, bitcast=True) <= VARIANT.LIMIT) != (VARIANT.DOT > 0)
    return other


@triton.jit
def dot(a, b, acc):
    if EMULATED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(a, b, acc)


@triton.jit
def pieces_of(x):
    """Three bfloat16 whose sum is x."""
    high = x.to(tl.bfloat16)
    rest = x - high.to(tl.float32)
    middle = rest.to(tl.bfloat16)
    return high, middle, (rest - middle.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def inner_products(
    p, q, rows, cols, LENGTH: tl.constexpr, BK: tl.constexpr, VARIANT: tl.constexpr, SYMMETRIC: tl.constexpr
):
    """p_i . q_j, [BN, BM], of pieces of that length; the pieces of a point stand one after another.

    SYMMETRIC: bitwise the same when p and q change places; products of unlike pieces are summed apart, then added.
    """
    DOT: tl.constexpr = VARIANT.DOT
    like = zeros(VARIANT.BN, VARIANT.BM, VARIANT.ACC)
    above = zeros(VARIANT.BN, VARIANT.BM, VARIANT.ACC)
    below = zeros(VARIANT.BN, VARIANT.BM, VARIANT.ACC)
    ROW: tl.constexpr = (DOT + 3) // 3 * LENGTH
    for d0 in range(0, LENGTH, BK):
        d = d0 + tl.arange(0, BK)
        x = p + rows.at[:, None] * ROW + d[None, :]
        y = q + cols.at[None, :] * ROW + d[:, None]
        xh = tl.load(x, mask=rows.inside[:, None], other=0.0)
        yh = tl.load(y, mask=cols.inside[None, :], other=0.0)
        like = dot(xh, yh, like)
        if DOT > 1:
            xm = tl.load(x + LENGTH, mask=rows.inside[:, None], other=0.0)
            ym = tl.load(y + LENGTH, mask=cols.inside[None, :], other=0.0)
            above = dot(xh, ym, above)
            if SYMMETRIC:
                below = dot(xm, yh, below)
            else:
                above = dot(xm, yh, above)
        if DOT > 3:
            xl = tl.load(x + 2 * LENGTH, mask=rows.inside[:, None], other=0.0)
            yl = tl.load(y + 2 * LENGTH, mask=cols.inside[None, :], other=0.0)
            like = dot(xm, ym, like)
            above = dot(xh, yl, above)
            if SYMMETRIC:
                below = dot(xl, yh, below)
            else:
                above = dot(xl, yh, above)
    return like + (above + below)


@triton.jit
def weighted_points(w, q, cols, d, total, LENGTH: tl.constexpr, DOT: tl.constexpr):
    """total + sum_j w_ij q_jd, [BN, coordinates], from pieces of the points or coefficients q."""
    y = q + cols.at[:, None] * ((DOT + 3) // 3 * LENGTH) + d[None, :]
    inside = cols.inside[:, None] & (d < LENGTH)[None, :]
    wh, wm, wl = pieces_of(w)
    yh = tl.load(y, mask=inside, other=0.0)
    total = dot(wh, yh, total)
    if DOT > 1:
        ym = tl.load(y + LENGTH, mask=inside, other=0.0)
        total = dot(wh, ym, total)
        total = dot(wm, yh, total)
    if DOT > 3:
        yl = tl.load(y + 2 * LENGTH, mask=inside, other=0.0)
        total = dot(wm, ym, total)
        total = dot(wh, yl, total)
        total = dot(wl, yh, total)
    return total


@triton.jit
def less_own_points(pull, p, rows, d, inside, w_sum, LENGTH: tl.constexpr, DOT: tl.constexpr):
    """pull - p_id sum_j w_ij in float64: of sum_j w_ij q_jd it makes sum_j w_ij (q_jd - p_id)."""
    piece = p + rows.at[:, None] * ((DOT + 3) // 3 * LENGTH) + d[None, :]
    for k in tl.static_range((DOT + 3) // 3):
        pull -= tl.load(piece + k * LENGTH, mask=inside, other=0.0).to(tl.float64) * w_sum[:, None]
    return pull


@triton.jit
def _store_pieces(x, ptr, kept, LENGTH: tl.constexpr, DOT: tl.constexpr):
    """Stores as many pieces of x as the products need at ptr, ptr + LENGTH ...; returns the first two."""
    high, middle, low = pieces_of(x)
    tl.store(ptr, high, mask=kept)
    if DOT > 1:
        tl.store(ptr + LENGTH, middle, mask=kept)
    if DOT > 3:
        tl.store(ptr + 2 * LENGTH, low, mask=kept)
    return high, middle


@triton.jit
def _sum_of_first(ptr, count, d, D, BN: tl.constexpr):
    """Sum and number of the finite coordinates d of the first rows."""
    rows = tl.arange(0, BN)
    inside = (rows < count)[:, None] & (d < D)[None, :]
    x = tl.load(ptr + rows[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
    x = tl.where(tl.abs(x) < 1e30, x, 0.0)
    return tl.sum(x, 0), tl.minimum(count, BN)


@triton.jit
def _tile_of(x_ptr, y_ptr, x_out, y_out, N, M, BN: tl.constexpr):
    """This program's batch, points, their pieces, number, and first row: tiles of x come first."""
    tiles_n, tiles_m = tl.cdiv(N, BN), tl.cdiv(M, BN)
    pid = tl.program_id(0).to(tl.int64)
    b, tile = pid // (tiles_n + tiles_m), (pid % (tiles_n + tiles_m)).to(tl.int32)
    p_ptr, out_ptr, n, i0, of_y = x_ptr, x_out, N, tile * BN, tile >= tiles_n
    if of_y:
        p_ptr, out_ptr, n, i0 = y_ptr, y_out, M, (tile - tiles_n) * BN
    return b, p_ptr, out_ptr, n, i0, of_y


@triton.jit
def _gather(greatest_ptr, sizes, ALONE: tl.constexpr):
    """The greatest of sizes, none negative, goes into this program's slot, which others use too unless ALONE."""
    # as integers, whose maximum does not depend on the order; a NaN is above infinity there
    greatest = tl.max(sizes.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0)
    slot = greatest_ptr + tl.program_id(0) % _SLOTS
    if ALONE:
        tl.store(slot, greatest)
    else:
        tl.atomic_max(slot, greatest)


@triton.jit(do_not_specialize=SIZES)
def _pieces_kernel(
    x_ptr, y_ptr, pieces, bandwidths, N, M, D, B, S, table_stride,
    TABLE: tl.constexpr, DP: tl.constexpr, DOT: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    b, p_ptr, pieces_ptr, n, i0, of_y = _tile_of(x_ptr, y_ptr, pieces.x, pieces.y, N, M, BN)
    # programs without a tile clear their slots
    if TABLE.OWN and b >= B:
        tl.store(pieces.greatest + tl.program_id(0), 0)
        return
    row = row_of_table(bandwidths, b, tl.program_id(0), S, table_stride, TABLE)
    norms_ptr = pieces.x_norms
    if of_y:
        norms_ptr = pieces.y_norms
    rows = tl.arange(0, BN)
    row_in = rows < n - i0
    p_ptr += (b * n + i0) * D
    ROW: tl.constexpr = (DOT + 3) // 3 * DP
    pieces_ptr += (b * n + i0) * ROW
    unit = tl.load(row.unit).to(tl.float32)
    norms = tl.zeros([BN], tl.float64)
    for d0 in range(0, DP, BK):
        d = d0 + tl.arange(0, BK)
        inside = row_in[:, None] & (d < D)[None, :]
        x = tl.load(p_ptr + rows[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
        # any common point will do as the centre: here the mean of the first rows, for all programs the same
        sum_x, count_x = _sum_of_first(x_ptr + b * N * D, N, d, D, BN)
        sum_y, count_y = _sum_of_first(y_ptr + b * M * D, M, d, D, BN)
        centre = (sum_x + sum_y) / (count_x + count_y)
        x = tl.where(inside, (x - centre[None, :]) * unit, 0.0)
        own = pieces_ptr + rows[:, None] * ROW + d[None, :]
        high, middle = _store_pieces(x, own, row_in[:, None] & (d < DP)[None, :], DP, DOT)
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
    k = tl.arange(0, TABLE.SP)
    scales = tl.load(row.scales + k, mask=k < S, other=0.0).to(tl.float32)
    _gather(pieces.greatest, tl.where(row_in, norms * (tl.max(-scales, 0) * _LOG_2), 0.0), TABLE.OWN)


@triton.jit(do_not_specialize=SIZES)
def _column_pieces_kernel(
    a_ptr, b_ptr, a_pieces_ptr, b_pieces_ptr, greatest_ptr, N, M, E,
    EP: tl.constexpr, DOT: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    batch, v_ptr, pieces_ptr, n, i0, _ = _tile_of(a_ptr, b_ptr, a_pieces_ptr, b_pieces_ptr, N, M, BN)
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
        _store_pieces(v, pieces_ptr + rows[:, None] * ROW + e[None, :], row_in & (e < EP)[None, :], EP, DOT)
        # differences are for all where products of pieces would be infinity less infinity
        odd = tl.where(tl.abs(v) < 1e38, 0.0, float("inf"))
        sizes = tl.maximum(sizes, tl.max(odd, 1))
    _gather(greatest_ptr, sizes, False)


class Pieces:
    """Pieces of the points x and y, their squared norms, and the greatest of these that chooses the variant.

    Also the pieces of coefficients a (B, N, E) and b (B, M, E) with several columns; a or b may be None.
    """

    def __init__(self, table, x, y, precision, a=None, b=None):
        self.products, limit = PRODUCTS[precision]
        (batch, n, dims), m = x.shape, y.shape[1]
        # coordinates that are multiplied at a time
        self.bk = 16 if dims <= 16 else 32
        self.dims = triton.cdiv(dims, self.bk) * self.bk
        self.limit = limit / (1 + self.dims / 8)
        tiles = triton.cdiv(n, _BN) + triton.cdiv(m, _BN)
        own = table.own(tiles, few=SLOTS)
        self.points = Points(
            *(self._empty(p, self.dims) for p in (x, y)),
            *(p.new_empty(p.shape[:2], dtype=torch.float32) for p in (x, y)),
            torch.empty(SLOTS, dtype=torch.int32, device=x.device) if own else table.greatest,
        )
        launch(_pieces_kernel, (SLOTS if own else batch * tiles,),
            x, y, self.points, table.arguments(), n, m, dims, batch, table.count, table.stride,
            TABLE=table.constants(own), DP=self.dims, DOT=self.products, BN=_BN, BK=self.bk,
            num_warps=8, **FUSION,
        )  # fmt: skip
        self.a = self.b = None
        columns = next((v.shape[2] for v in (a, b) if v is not None), 1)
        self.columns = 0
        if columns > 1:
            # columns of the value that one program holds
            self.columns = triton.cdiv(columns, block_of(columns)) * block_of(columns)
            # of one alone the other has no rows
            first, second = (a, b) if a is not None else (b, None)
            rows = [0 if v is None else v.shape[1] for v in (first, second)]
            # one alone stands for the other, which no kernel reads: Triton compiles a kernel for each dtype
            pieces = [self._empty(v, self.columns) for v in (first, second) if v is not None]
            self.a, self.b = pieces[0], pieces[-1]
            launch(_column_pieces_kernel, (batch * sum(triton.cdiv(r, _BN) for r in rows),),
                first, first if second is None else second, self.a, self.b, self.points.greatest, *rows, columns,
                EP=self.columns, DOT=self.products, BN=_BN, BK=min(32, self.columns), num_warps=8, **FUSION,
            )  # fmt: skip

    def _empty(self, points, length):
        return points.new_empty(*points.shape[:2], (self.products + 3) // 3 * length, dtype=torch.bfloat16)

    def swapped(self):
        """The same with x and y, and a and b, in each other's places."""
        other = object.__new__(Pieces)
        other.__dict__ |= self.__dict__
        x, y, x_norms, y_norms, greatest = self.points
        other.points, other.a, other.b = Points(y, x, y_norms, x_norms, greatest), self.b, self.a
        return other


def variants(pieces, table, x, y, tile_of):
    """(tile, points, constants) of each variant that is launched; tile_of gives the tile for a number of products."""
    limit, greatest = (0.0, x) if pieces is None else (pieces.limit, pieces.points.greatest)
    found = [(0, 0, Points(x, y, x, y, greatest))]
    if pieces is not None:
        found.append((pieces.products, pieces.dims, pieces.points))
    for products, length, points in found:
        tile, acc = tile_of(products), triton_dtype(table.dtype)
        bk = math.gcd(length, tile.bk) if products else 0
        yield tile, points, Variant(tile.bn, tile.bm, tile.bd, bk, products, length, limit, table.scaled, acc)


def block_of(columns):
    """How many columns of coefficients a program holds."""
    return min(64, max(16, triton.next_power_of_2(columns)))


def use_tensor_cores(x, y, columns=1):
    """Whether products of pieces may be taken: told from sizes alone."""
    (batch, n, dims), m = x.shape, y.shape[1]
    many = dims > 4 or columns >= 16
    return x.dtype != torch.float64 and many and batch * n * m * max(dims, columns) > SMALL
