"""Points as tensor cores take them: each coordinate a sum of two or three float16, the first in fixed point.

    x = h + m + l,   |x - y|^2 = (|h|^2 + |h'|^2 - 2 h.h') + (c + c' - 2 (h.m' + m.h' + m.m' + h.l' + l.h')),
    c = |x|^2 - |h|^2

h is x rounded to a multiple of q, a power of two with |h| <= 4096 q and no coordinate above 2048 q. So float16 holds
h, and h.h' is a sum of whole numbers below 2^24 in units of q q', which tensor cores add exactly, however they
truncate. Near points have one q, and the first bracket cancels exactly. What is rounded is in the second, which is
2^-11 of it.

    products   pieces      named after
    1          h           "medium": distances of h, a point that is off by 2^-12 of its norm at most
    3          h, m        "high": without m.m'
    4          h, m        "highest": distances of h + m, a point that is off by 2^-24 of its norm at most
    6          h, m, l     log-densities at "highest": every bit of x

The last piece is rounded up or down by a share of its ulp that differs between coordinates: roundings of coordinates
that are all equal would add up. Points are taken about a centre that all share, the mean of the first ones, and in
units of a power of two near the greatest of their norms.

The error of products is about 2^-24 of |x|^2 / (2 sigma^2) in the exponent. Tiles of pairs whose rows and columns
both have points beyond LIMITS, or a point that float16 cannot hold, go by differences (distances.py).
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .bandwidths import Table, row_of_table, sigma_of, triton_dtype
from .baselines import COORDINATES, ROWS, baselines, baselines_of, clear
from .launch import launch
from .tiles import FUSION, SIZES, Tile, tile

# the interpreter has no float16 products: float32 holds them exactly, and sums as the hardware does
EMULATED = tl.constexpr(triton.knobs.runtime.interpret)
_LOG_2 = tl.constexpr(math.log(2))

# products by precision; and the greatest |x - centre|^2 / (2 sigma^2) for which they are taken: up to it a kernel by
# four products is off by at most 1e-6, a log-density by six by 2e-7 of its greatest exponent
PRODUCTS = {"highest": 4, "high": 3, "medium": 1, "log-density": 6}
LIMITS = {4: 16.0, 3: 3e38, 1: 3e38, 6: 256.0}
# coordinates of which a tile of points is held whole
WHOLE = 128
# coordinates that are split, or multiplied, at a time where there are more than WHOLE
_BLOCK = 64
# rows that a program splits
_BN = 32
# points of each set whose mean is the centre
_FIRST = tl.constexpr(16)
_ROWS, _COORDINATES = tl.constexpr(ROWS), tl.constexpr(COORDINATES)


class Points(NamedTuple):
    """The argument of a kernel: two sets of points as they are, and what `_split_kernel` leaves of them.

    columns (B, D, N) float32, the points as they are, by coordinate; pieces (B, N, pieces, DP) float16; norms
    (B, 2, N) float32, |h|^2, infinite where float16 cannot hold the point, and c; units (B,) float32, of the pieces
    in one of the table. Kernels that take differences alone read none of these, and any pointer stands for them.
    """

    x: torch.Tensor
    y: torch.Tensor
    x_columns: torch.Tensor
    y_columns: torch.Tensor
    x_pieces: torch.Tensor
    y_pieces: torch.Tensor
    x_norms: torch.Tensor
    y_norms: torch.Tensor
    units: torch.Tensor


class Variant(NamedTuple):
    """Constants of a kernel: its tile, and how it finds distances."""

    BN: int
    BM: int
    BD: int
    # coordinates of a product at a time
    BK: int
    # products of pieces; 0: differences alone
    DOT: int
    # pieces of a point in memory, and coordinates of each
    PIECES: int
    DP: int
    # greatest |x - centre|^2 / (2 sigma^2) of products
    LIMIT: float
    # differences are multiplied with the unit
    SCALED: bool
    ACC: tl.dtype


class Frame(NamedTuple):
    """The units of distances: of the pieces, or of differences alone those of the table."""

    # how many are in a unit of the points
    per_unit: object
    # a squared one in squared units of the table
    square: object
    # the greatest |h|^2 for which products are right, -1: none
    bound: object


class Pieces(NamedTuple):
    """Of a tile of points: pieces [ROWS, coordinates], a missing one stands for the first; |h|^2 and c."""

    high: object
    middle: object
    low: object
    lead: object
    rest: object


@triton.jit
def zeros(ROWS: tl.constexpr, COLUMNS: tl.constexpr, DTYPE: tl.constexpr):
    """A tile of zeros; the fields of a tuple cannot stand in the brackets of tl.zeros."""
    return tl.zeros([ROWS, COLUMNS], DTYPE)


@triton.jit
def dot(a, b, acc):
    if EMULATED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(a, b, acc)


@triton.jit
def _first_points(x_ptr, y_ptr, N, M, D, d):
    """Coordinates d of the first points of both sets about their mean, [2, FIRST, coordinates] as two; the mean."""
    at = tl.arange(0, _FIRST)
    place = at[:, None] * D + d[None, :]
    of_x, of_y = (at < N)[:, None] & (d < D)[None, :], (at < M)[:, None] & (d < D)[None, :]
    x = tl.load(x_ptr + place, mask=of_x, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + place, mask=of_y, other=0.0).to(tl.float32)
    of_x, of_y = of_x & (tl.abs(x) < 1e30), of_y & (tl.abs(y) < 1e30)
    total = tl.sum(tl.where(of_x, x, 0.0), 0) + tl.sum(tl.where(of_y, y, 0.0), 0)
    centre = total / (tl.minimum(N, _FIRST) + tl.minimum(M, _FIRST))
    return tl.where(of_x, x - centre[None, :], 0.0), tl.where(of_y, y - centre[None, :], 0.0), centre


@triton.jit
def _units(greatest):
    """Units of the pieces in one of the table: a power of two that makes a squared norm about 2^22.

    0 where there is none.
    """
    exponent = (((greatest.to(tl.int32, bitcast=True) >> 23) & 255) - 127) >> 1
    # where the first points are equal any unit will do
    exponent = tl.where(greatest == 0.0, 0, exponent)
    found = ((127 + 11 - exponent) << 23).to(tl.float32, bitcast=True)
    return tl.where((exponent < 50) & (exponent > -50), found, 0.0)


@triton.jit
def frame_of(points, row, b, S, TABLE: tl.constexpr, VARIANT: tl.constexpr):
    """The frame for b of the batch."""
    unit = tl.load(row.unit)
    if VARIANT.DOT == 0:
        return Frame(unit, unit * 0.0 + 1.0, unit)
    else:
        units = tl.load(points.units + b)
        square = 1.0 / (units * units)
        k = tl.arange(0, TABLE.SP)
        scales = -tl.load(row.scales + k, mask=k < S, other=float("-inf"))
        wide, narrow = square * tl.min(scales, 0), square * tl.max(tl.where(k < S, scales, 0.0), 0)
        # squares of all distances that matter are within the range of float32
        reached = (units > 0) & (wide > 2.0**-80) & (narrow < 2.0**80)
        bound = VARIANT.LIMIT
        if VARIANT.LIMIT < 1e30:
            bound = VARIANT.LIMIT / (narrow * _LOG_2)
        bound = tl.where(reached, bound, -1.0)
        return Frame(tl.where(units > 0, units, 1.0) * unit, tl.where(units > 0, square, 1.0), bound)


@triton.jit
def _grid(norm2, greatest):
    """q of each point, from its squared norm and its greatest coordinate; and whether float16 holds its multiples."""
    size = tl.maximum(greatest * (1 / 2048), tl.sqrt(norm2) * (1 / 2896))
    bits = (size.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000
    fits = size <= 16.0
    # 2^-24 is the least that float16 holds
    bits = tl.minimum(tl.maximum(bits, (127 - 24) << 23), (127 + 4) << 23)
    return bits.to(tl.float32, bitcast=True), ((254 << 23) - bits).to(tl.float32, bitcast=True), fits


@triton.jit
def _cut(x, grid, per_grid, d, DOT: tl.constexpr):
    """The pieces of x [ROWS, coordinates d], their first one's squares and the rest's, not yet summed."""
    # a share of 2^13, which differs between coordinates that are near
    share = (d * 5063) & 0x1FFF
    if DOT == 1:
        up = (share.to(tl.float32) * (1 / 8192))[None, :]
        high = tl.floor(tl.fma(x, per_grid[:, None], up)) * grid[:, None]
        middle, low, rest = high, high, high * 0.0
    else:
        high = tl.floor(tl.fma(x, per_grid[:, None], 0.5)) * grid[:, None]
        rest = x - high
        if DOT < 6:
            # float16 has 13 bits less
            bits = (rest.to(tl.int32, bitcast=True) + share[None, :]) & -8192
            middle = bits.to(tl.float32, bitcast=True).to(tl.float16).to(tl.float32)
            low, rest = high, middle
        else:
            middle = rest.to(tl.float16).to(tl.float32)
            low = (rest - middle).to(tl.float16).to(tl.float32)
            rest = middle + low
    return (
        high.to(tl.float16), middle.to(tl.float16), low.to(tl.float16),
        high * high, tl.fma(high, 2.0, rest) * rest,
    )  # fmt: skip


@triton.jit
def pieces_at(side, d, VARIANT: tl.constexpr):
    """Coordinates d of the pieces of a tile of points, from memory."""
    own = side.pieces + side.at[:, None] * (VARIANT.PIECES * VARIANT.DP) + d[None, :]
    inside = side.inside[:, None]
    high = tl.load(own, mask=inside, other=0.0)
    middle, low = high, high
    if VARIANT.PIECES > 1:
        middle = tl.load(own + VARIANT.DP, mask=inside, other=0.0)
    if VARIANT.PIECES > 2:
        low = tl.load(own + 2 * VARIANT.DP, mask=inside, other=0.0)
    return high, middle, low


@triton.jit
def inner_products(of_rows, of_cols, lead, rest, DOT: tl.constexpr):
    """lead + h.h', and rest + all other products of pieces."""
    if DOT > 1:
        right_high, right_middle = tl.trans(of_cols[0]), tl.trans(of_cols[1])
        if DOT > 3:
            rest = dot(of_rows[1], right_middle, rest)
        if DOT > 4:
            rest = dot(of_rows[2], right_high, rest)
            rest = dot(of_rows[0], tl.trans(of_cols[2]), rest)
        rest = dot(of_rows[1], right_high, rest)
        rest = dot(of_rows[0], right_middle, rest)
    return dot(of_rows[0], tl.trans(of_cols[0]), lead), rest


@triton.jit
def halves(w):
    """w [ROWS, COLUMNS] as (high + low) times a power of two for each row, near its greatest."""
    bits = tl.max(tl.abs(w), 1).to(tl.int32, bitcast=True) & 0x7F800000
    bits = tl.minimum(bits, 253 << 23)
    scaled = w * ((254 << 23) - bits).to(tl.float32, bitcast=True)[:, None]
    high = scaled.to(tl.float16)
    low = (scaled - high.to(tl.float32)).to(tl.float16)
    # an infinity has no rest
    low = tl.where(tl.abs(scaled) == float("inf"), 0.0, low)
    return high, low, bits.to(tl.float32, bitcast=True)


@triton.jit
def weighted(total, w, high, low, DOT: tl.constexpr):
    """total + sum_j w_ij q_j, of q_j = high + low: right to 2^-22 of the greatest w_ij of a row.

    Summed apart: tensor cores truncate, and their sums would drift.
    """
    w_high, w_low, scale = halves(w)
    found = dot(w_high, high, tl.zeros(total.shape, tl.float32))
    if DOT > 1:
        found = dot(w_high, low, found)
        found = dot(w_low, high, found)
    return tl.fma(found, scale[:, None], total)


@triton.jit(do_not_specialize=SIZES)
def _split_kernel(
    points, bandwidths, baseline_ptr, counters, N, M, D, S, table_stride, COUNT,
    TABLE: tl.constexpr, PIECES: tl.constexpr, DP: tl.constexpr, DOT: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """Pieces, norms and the frame; programs of x come first. The last one finds baselines and clears counters."""
    tiles_n, tiles_m = tl.cdiv(N, BN), tl.cdiv(M, BN)
    # whether each of the batch has a program that splits nothing
    MORE: tl.constexpr = counters is not None or baseline_ptr is not None
    tiles = tiles_n + tiles_m + MORE
    pid = tl.program_id(0).to(tl.int64)
    b, of = pid // tiles, (pid % tiles).to(tl.int32)
    row = row_of_table(bandwidths, b, pid, S, table_stride, TABLE)
    unit = tl.load(row.unit).to(tl.float32)
    x_ptr, y_ptr = points.x + b * N * D, points.y + b * M * D
    if MORE and of == tiles_n + tiles_m:
        if counters is not None:
            clear(counters + b * COUNT, COUNT, 128)
        if baseline_ptr is not None:
            k = tl.arange(0, TABLE.SP)
            sigma = sigma_of(bandwidths, b, k, S, TABLE)
            found = baselines_of(x_ptr, y_ptr, sigma, N, M, D, _ROWS, _COORDINATES)
            tl.store(baseline_ptr + b * S + k, found, mask=k < S)
        return
    ptr, columns, out, norms_ptr, n, i0 = x_ptr, points.x_columns, points.x_pieces, points.x_norms, N, of * BN
    if of >= tiles_n:
        ptr, columns, out, norms_ptr, n = y_ptr, points.y_columns, points.y_pieces, points.y_norms, M
        i0 = (of - tiles_n) * BN
    at = i0 + tl.arange(0, BN)
    inside = at < n

    # norms first: of the first points, for the unit, and of the program's own
    first_x, first_y = tl.zeros([_FIRST], tl.float32), tl.zeros([_FIRST], tl.float32)
    norm2, greatest = tl.zeros([BN], tl.float32), tl.zeros([BN], tl.float32)
    for d0 in range(0, DP, BK):
        d = d0 + tl.arange(0, BK)
        x, y, centre = _first_points(x_ptr, y_ptr, N, M, D, d)
        x *= unit
        y *= unit
        first_x += tl.sum(x * x, 1)
        first_y += tl.sum(y * y, 1)
        whole = inside[:, None] & (d < D)[None, :]
        own = tl.load(ptr + tl.cast(at, tl.int64)[:, None] * D + d[None, :], mask=whole, other=0.0).to(tl.float32)
        tl.store(columns + (b * D + d)[None, :] * n + at[:, None], own, mask=whole)
        own = tl.where(whole, (own - centre[None, :]) * unit, 0.0)
        norm2 += tl.sum(own * own, 1)
        greatest = tl.maximum(greatest, tl.max(tl.abs(own), 1))
    units = _units(tl.maximum(tl.max(first_x, 0), tl.max(first_y, 0)))
    grid, per_grid, fits = _grid(norm2 * (units * units), greatest * units)
    fits &= norm2 < 1e38

    lead, rest = tl.zeros([BN], tl.float32), tl.zeros([BN], tl.float32)
    out += b * n * (PIECES * DP)
    for d0 in range(0, DP, BK):
        d = d0 + tl.arange(0, BK)
        _, _, centre = _first_points(x_ptr, y_ptr, N, M, D, d)
        whole = inside[:, None] & (d < D)[None, :]
        x = tl.load(ptr + tl.cast(at, tl.int64)[:, None] * D + d[None, :], mask=whole, other=0.0).to(tl.float32)
        x = tl.where(whole & fits[:, None], (x - centre[None, :]) * (units * unit), 0.0)
        high, middle, low, high2, rest2 = _cut(x, grid, per_grid, d, DOT)
        lead += tl.sum(high2, 1)
        rest += tl.sum(rest2, 1)
        own = out + tl.cast(at, tl.int64)[:, None] * (PIECES * DP) + d[None, :]
        kept = inside[:, None] & (d < DP)[None, :]
        tl.store(own, high, mask=kept)
        if PIECES > 1:
            tl.store(own + DP, middle, mask=kept)
        if PIECES > 2:
            tl.store(own + 2 * DP, low, mask=kept)
    norms_ptr += b * 2 * n
    tl.store(norms_ptr + at, tl.where(fits, lead, float("inf")), mask=inside)
    tl.store(norms_ptr + n + at, rest, mask=inside)
    if of == 0:
        tl.store(points.units + b, units)


class Split:
    """Two sets of points, and how kernels take them: float64, and few coordinates, by differences.

    `points` is an argument of kernels. Others are split, in a launch, which can do two things more: find the
    baselines (less_baselines), and set so many counters to 0 for each of the batch. Without a split it is the
    baselines' launch; without that there are no counters.
    """

    def __init__(
        self, table: Table, x: torch.Tensor, y: torch.Tensor, precision: str, less_baselines=False, counters=0
    ):
        (batch, n, self.dims), m = x.shape, y.shape[1]
        self.table, self.device = table, x.device
        # log-densities have a table in float64 for points in float32
        wide = precision == "log-density"
        self.dtype = torch.float32 if wide and x.dtype != torch.float64 and self.dims > 4 else table.dtype
        self.dot = PRODUCTS[precision] if self.dims > 4 and self.dtype == torch.float32 else 0
        self.pieces = 1 if self.dot == 1 else 2 if self.dot < 6 else 3
        self.whole = self.dims <= WHOLE
        # pulls of more coordinates than a program holds go by panels (panel.py)
        self.panels = bool(self.dot) and not self.whole
        self.dp = max(16, triton.next_power_of_2(self.dims))
        if not self.whole:
            self.dp = triton.cdiv(self.dims, _BLOCK) * _BLOCK
        self.points = Points(x, y, x, y, x, y, x, x, x)
        split = self.dot and batch * (n + m)
        self.baseline = self.counters = None
        if counters and batch and (split or less_baselines):
            self.counters = x.new_empty(batch, counters, dtype=torch.int32)
        if split:
            if less_baselines:
                self.baseline = x.new_empty(batch, table.count, dtype=torch.float64)
            self._split(x, y)
        elif less_baselines:
            self.baseline = baselines(x, y, table.sigma, self.counters)

    def _split(self, x, y):
        (batch, n, dims), m = x.shape, y.shape[1]

        def empty(*shape, dtype=torch.float32):
            return x.new_empty(batch, *shape, dtype=dtype)

        self.points = Points(
            x, y, *(empty(dims, rows) for rows in (n, m)),
            *(empty(rows, self.pieces * self.dp, dtype=torch.float16) for rows in (n, m)),
            *(empty(2, rows) for rows in (n, m)), empty(),
        )  # fmt: skip
        tiles = triton.cdiv(n, _BN) + triton.cdiv(m, _BN)
        tiles += self.counters is not None or self.baseline is not None
        own = self.table.own(tiles)
        launch(_split_kernel, (batch * tiles,),
            self.points, self.table.arguments(), self.baseline, self.counters,
            n, m, dims, self.table.count, self.table.stride, 0 if self.counters is None else self.counters.shape[1],
            TABLE=self.table.constants(own), PIECES=self.pieces, DP=self.dp, DOT=self.dot, BN=_BN,
            BK=min(_BLOCK, self.dp), num_warps=4, **FUSION,
        )  # fmt: skip

    def swapped(self) -> "Split":
        """The same with x and y in each other's places."""
        other = object.__new__(Split)
        other.__dict__ |= self.__dict__
        x, y, x_columns, y_columns, x_pieces, y_pieces, x_norms, y_norms, units = self.points
        other.points = Points(y, x, y_columns, x_columns, y_pieces, x_pieces, y_norms, x_norms, units)
        return other

    def tile(self, kernel: str) -> Tile:
        return tile(kernel, self.dims, self.dtype, self.device, self.dot)

    def variant(self, of: Tile) -> Variant:
        bk = (self.dp if self.whole else min(of.bk, _BLOCK)) if self.dot else 0
        limit, acc = LIMITS.get(self.dot, 0.0), triton_dtype(self.dtype)
        return Variant(of.bn, of.bm, of.bd, bk, self.dot, self.pieces, self.dp, limit, self.table.scaled, acc)
