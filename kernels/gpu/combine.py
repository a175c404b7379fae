"""What becomes of a sweep's sums: added in a fixed order, then combined and scaled in float64.

    values      f_r0 sum_c value[c, first] + f_r1 sum_c value[c, second]       (B, R, rows, E)
    pulls       likewise                                                       (B, R, rows, D)
    totals      sum of every pairing's, and sum_k scale_rk total_k             (B, 3), (B, R)
    dsigma      sum_k scale_rk sum_kd2_ks w_s / sigma_s^3                      (B, R, S)
    dweights    sum_k scale_rk sum_k_ks                                        (B, R, S)

For MMD^2 the combinations of values and pulls are 2 scale_rk of the pairing within the set and scale_r2 of the
pairing between the sets: both ends of a pair within a set are its points. The pairings of a product are taken as they
are. A scale of 0 takes nothing, so that a NaN reaches only the combinations that ask for it.

A launch of its own does it (reduce.py), or, of totals and pulls, the sweep itself: each program counts itself when
its sums are in memory. The last one of a tile of rows combines that tile, and the last one of all adds the totals.
Which one is last differs between runs; what it adds, and in which order, does not.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .distances import cast
from .numbers import Encoded, Numbers, number, numbers
from .tile_sums import STRIP

# entries that a sweep combines at a time, by four warps
BLOCK = 4096


class Scale(NamedTuple):
    """The argument of a kernel: (B, R, 3) in memory, or 3 R numbers."""

    tensor: torch.Tensor | None
    numbers: Encoded


class Reduced(NamedTuple):
    """None where it is not wanted. No field is called values, which Triton's own tuples have."""

    value: torch.Tensor | None = None  # (B, R)
    sums: torch.Tensor | None = None  # (B, 3) float64
    dx: torch.Tensor | None = None  # (B, R, N, D)
    dy: torch.Tensor | None = None  # (B, R, M, D)
    da: torch.Tensor | None = None  # (B, R, N, E)
    db: torch.Tensor | None = None  # (B, R, M, E)
    dsigma: torch.Tensor | None = None  # (B, R, S) float64
    dweights: torch.Tensor | None = None  # (B, R, S) float64


class Finish(NamedTuple):
    """The argument of a sweep that combines its own sums."""

    counters: torch.Tensor  # (B, counters_of) int32, 0 before the sweep: of x's tiles, y's tiles, and of all
    scale: Scale
    reduced: Reduced


def counters_of(rows: int, columns: int) -> int:
    # a tile has a strip at least
    return 2 * triton.cdiv(max(rows, columns), STRIP) + 1


def outputs(
    like: torch.Tensor,
    sizes: tuple[int, int, int, int],
    combinations: int,
    dtypes: tuple[torch.dtype | None, ...],
    totals: bool,
    bandwidths: int = 0,
) -> Reduced:
    """Memory for results on the device of `like`, which has the batch.

    sizes are N, M, D, E; dtypes those of (values, dx, dy, da, db), None where one is not wanted; bandwidths how many
    have gradients.
    """
    (rows, columns, dims, coefficients), batch = sizes, like.shape[0]

    def empty(*shape, dtype=torch.float64):
        return None if dtype is None else like.new_empty(batch, combinations, *shape, dtype=dtype)

    shapes = (), (rows, dims), (columns, dims), (rows, coefficients), (columns, coefficients)
    values, *of_points = (empty(*shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True))
    sums = like.new_empty(batch, 3, dtype=torch.float64) if totals else None
    of_bandwidths = (empty(bandwidths), empty(bandwidths)) if bandwidths else (None, None)
    return Reduced(values, sums, *of_points, *of_bandwidths)


def as_scale(scale: torch.Tensor | Numbers | None) -> tuple[Scale, int]:
    """The argument of a kernel, and how many combinations there are; no scale is that of a single one."""
    if type(scale) is Numbers:
        return Scale(None, scale.encoded), len(scale.floats) // 3
    return Scale(scale, numbers(()).encoded), 1 if scale is None else scale.shape[1]


@triton.jit
def scaled(scale, b, r, R, pairing, x):
    """x multiplied with the scale of combination r and a pairing, an integer or a tensor of one."""
    if scale.tensor is not None:
        factor = tl.load(scale.tensor + (b * R + r) * 3 + pairing).to(tl.float64)
    else:
        factor = number(r * 3 + pairing, scale.numbers)
    return tl.where(factor == 0.0, 0.0, factor.to(x.dtype) * x)


@triton.jit
def combine(
    swept_ptr, out_ptr, scale, at, stop, b, pairing, count, height, length, R, B, RANGES,
    PAIRINGS: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """Entries `at` [BLOCK], below stop, of out (B, R, count, length), from a pairing of (RANGES, PAIRINGS, B, height,
    length) and the next but one; added in ACC. The loads of TOGETHER ranges are under way at once."""
    inside = at < stop
    size = B * height * length  # of one pairing
    entry = swept_ptr + pairing * size + b * height * length + at
    first, second = tl.zeros([BLOCK], ACC), tl.zeros([BLOCK], ACC)
    for k0 in range(0, RANGES, TOGETHER):
        for turn in tl.static_range(TOGETHER):
            k = k0 + turn
            of_range = entry + k * PAIRINGS * size
            first += tl.load(of_range, mask=inside & (k < RANGES), other=0.0).to(ACC)
            if PAIRINGS > 2:
                second += tl.load(of_range + 2 * size, mask=inside & (k < RANGES), other=0.0).to(ACC)
    for r in range(R):
        combined = first
        if PAIRINGS > 2:
            combined = scaled(scale, b, r, R, pairing, 2 * first) + scaled(scale, b, r, R, 2, second)
        tl.store(out_ptr + (b * R + r) * count * length + at, cast(combined, out_ptr), mask=inside)


@triton.jit
def sum_of_rows(ptr, count, length, stride, SP: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of `count` rows of `length` numbers, [SP]."""
    columns = tl.arange(0, SP)
    total = tl.zeros([BLOCK, SP], tl.float64)
    for start in range(0, count, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        inside = (rows < count)[:, None] & (columns < length)[None, :]
        total += tl.load(ptr + rows[:, None].to(tl.int64) * stride + columns[None, :], mask=inside, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def add_totals(scale, total_ptr, reduced, b, R, B, COUNT, BLOCK: tl.constexpr):
    """The three sums and their combinations, from (3, B, COUNT)."""
    # one number, as a tensor
    one = tl.arange(0, 1)
    sums = ()
    for pairing in tl.static_range(3):
        total = sum_of_rows(total_ptr + (pairing * B + b) * COUNT, COUNT, 1, 1, 1, BLOCK)
        tl.store(reduced.sums + b * 3 + pairing + one, total)
        sums += (total,)
    if reduced.value is not None:
        for r in range(R):
            value = tl.zeros([1], tl.float64)
            for pairing in tl.static_range(3):
                value += scaled(scale, b, r, R, pairing + one, sums[pairing])
            tl.store(reduced.value + b * R + r + one, cast(value, reduced.value))


@triton.jit
def finish_sweep(
    finish, sums, pairing, b, i0, N, M, D, R, B, RANGES, STRIPS,
    ASKED: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Counts this program. The last of a tile combines the pulls of those rows, the last of all the totals."""
    PAIRINGS: tl.constexpr = ASKED.PAIRINGS
    PULL: tl.constexpr = ASKED.PULL
    BLOCK: tl.constexpr = ASKED.COMBINED
    height = tl.maximum(N, M)
    tiles = tl.cdiv(height, BN)
    own = finish.counters + b * (2 * STRIPS + 1)
    # pairings 0 and 2 have rows of x, the others rows of y
    of_y = pairing % 2
    programs = RANGES * (2 if PAIRINGS == 4 else 2 - of_y)
    # an atomic operation is done by one thread, after all have stored
    tl.debug_barrier()
    if tl.atomic_add(own + of_y * tiles + i0 // BN, 1, sem="acq_rel") == programs - 1:
        if PULL > 0:
            count = (tl.where(of_y == 1, M, N)).to(tl.int64)
            out_ptr = finish.reduced.dx if PULL != 2 else finish.reduced.dy
            if PULL == 3:
                out_ptr = finish.reduced.dy if of_y == 1 else finish.reduced.dx
            # as the pulls are, whose own error is greater than that of adding a few
            ACC: tl.constexpr = sums.pull.dtype.element_ty
            D = D // ASKED.DIVISOR * ASKED.DIVISOR
            first, stop = i0.to(tl.int64) * D, tl.minimum(i0.to(tl.int64) + BN, count) * D
            if PULL < 3:
                stop = tl.where(of_y == PULL - 1, stop, first)
            for start in range(first, stop, BLOCK):
                combine(
                    sums.pull, out_ptr, finish.scale, start + tl.arange(0, BLOCK), stop, b, of_y, count,
                    height.to(tl.int64), D, R, B.to(tl.int64), RANGES, PAIRINGS, BLOCK, ACC, ASKED.TOGETHER,
                )  # fmt: skip
        if ASKED.TOTAL and tl.atomic_add(own + 2 * tiles, 1, sem="acq_rel") == 2 * tiles - 1:
            add_totals(finish.scale, sums.total, finish.reduced, b, R, B, RANGES * STRIPS, 256)
