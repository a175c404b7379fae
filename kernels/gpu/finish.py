"""What follows a sweep, in one launch: sums of parts and splits in a fixed order, combined and scaled in float64.

    values      f_r0 sum_c value[c, first] + f_r1 sum_c value[c, second]       (B, R, rows, E)
    pulls       likewise                                                       (B, R, rows, D)
    totals      sum of every part's                                            (B, 3)
    dsigma      sum_k scale_rk spread_ks w_s / sigma_s^3                       (B, R, S)
    dweights    sum_k scale_rk mass_ks                                         (B, R, S)

For MMD^2 the combinations of values and pulls are 2 scale_rk of the part within the set and scale_r2 of the part
between the sets: both ends of a pair within a set are its points. A single part is taken as it is.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .distances import cast
from .sweep import Swept
from .tiles import FUSION

# entries of an output that a program computes
_BLOCK = 256


@triton.jit
def _combine(
    swept_ptr, out_ptr, scale_ptr, block, b, first, second, count, height, length, width, R, B, SPLITS,
    PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of out (B, R, count, length) from the parts first and second of (SPLITS, PARTS, B, height, width)."""
    at = block * BLOCK + tl.arange(0, BLOCK)
    i, d = at // length, at % length
    inside = i < count
    there = swept_ptr + (b * height + i) * width + d
    size = B * height * width  # of one part
    one, two = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    for split in range(SPLITS):
        of_split = there + split * PARTS * size
        one += tl.load(of_split + first * size, mask=inside, other=0.0).to(tl.float64)
        if PARTS > 1:
            two += tl.load(of_split + second * size, mask=inside, other=0.0).to(tl.float64)
    for r in range(R):
        found = one
        if PARTS > 1:
            scale = scale_ptr + (b * R + r) * 3
            found = 2 * tl.load(scale + first).to(tl.float64) * one + tl.load(scale + 2).to(tl.float64) * two
        tl.store(out_ptr + (b * R + r) * count * length + at, cast(found, out_ptr), mask=inside)


@triton.jit
def _sum_of_rows(ptr, count, length, stride, SP: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of `count` rows of `length` numbers, [SP]."""
    columns = tl.arange(0, SP)
    total = tl.zeros([BLOCK, SP], tl.float64)
    for start in range(0, count, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        inside = (rows < count)[:, None] & (columns < length)[None, :]
        total += tl.load(ptr + rows[:, None].to(tl.int64) * stride + columns[None, :], mask=inside, other=0.0)
    return tl.sum(total, 0)


_SIZES = ["blocks", "N", "M", "D", "E", "width", "R", "B", "S", "V_SPLITS", "P_SPLITS", "strips", "m_strips"]


@triton.jit(do_not_specialize=[*_SIZES, "table_stride"])
def _finish_kernel(
    scale_ptr, value_ptr, total_ptr, pull_ptr, moments_ptr, table_ptr,
    sums_ptr, dx_ptr, dy_ptr, da_ptr, db_ptr, dsigma_ptr, dweights_ptr,
    blocks, N, M, D, E, width, R, B, S, V_SPLITS, P_SPLITS, strips, m_strips, table_stride,
    PARTS: tl.constexpr, DX: tl.constexpr, DY: tl.constexpr, DA: tl.constexpr, DB: tl.constexpr,
    TOTAL: tl.constexpr, MOMENTS: tl.constexpr, SP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    b, block = pid // blocks, pid % blocks
    height = tl.maximum(N, M) if PARTS > 1 else N
    # rows may be so many that their coordinates pass 2^31
    N, M, B = N.to(tl.int64), M.to(tl.int64), B.to(tl.int64)
    # the outputs one after another, each in as many blocks as it has
    if DX:
        if block < tl.cdiv(N * D, BLOCK):
            _combine(pull_ptr, dx_ptr, scale_ptr, block, b, 0, 2, N, height, D, width, R, B, P_SPLITS, PARTS, BLOCK)
        block -= tl.cdiv(N * D, BLOCK)
    if DY:
        if (block >= 0) & (block < tl.cdiv(M * D, BLOCK)):
            _combine(pull_ptr, dy_ptr, scale_ptr, block, b, 1, 3, M, height, D, width, R, B, P_SPLITS, PARTS, BLOCK)
        block -= tl.cdiv(M * D, BLOCK)
    if DA:
        if (block >= 0) & (block < tl.cdiv(N * E, BLOCK)):
            _combine(value_ptr, da_ptr, scale_ptr, block, b, 0, 2, N, height, E, E, R, B, V_SPLITS, PARTS, BLOCK)
        block -= tl.cdiv(N * E, BLOCK)
    if DB:
        if (block >= 0) & (block < tl.cdiv(M * E, BLOCK)):
            _combine(value_ptr, db_ptr, scale_ptr, block, b, 1, 3, M, height, E, E, R, B, V_SPLITS, PARTS, BLOCK)
        block -= tl.cdiv(M * E, BLOCK)
    if block == 0:
        _finish_sums(
            scale_ptr, total_ptr, moments_ptr, table_ptr + b * table_stride, sums_ptr, dsigma_ptr, dweights_ptr,
            b, R, B, S, strips, m_strips, PARTS, TOTAL, MOMENTS, SP, BLOCK,
        )  # fmt: skip


@triton.jit
def _finish_sums(
    scale_ptr, total_ptr, moments_ptr, table_ptr, sums_ptr, dsigma_ptr, dweights_ptr, b, R, B, S, strips, m_strips,
    PARTS: tl.constexpr, TOTAL: tl.constexpr, MOMENTS: tl.constexpr, SP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    USED: tl.constexpr = 3 if PARTS > 1 else 1
    if TOTAL:
        for part in tl.static_range(USED):
            found = _sum_of_rows(total_ptr + (part * B + b) * strips, strips, 1, 1, 1, BLOCK)
            tl.store(sums_ptr + b * USED + part + tl.arange(0, 1), found)
    if MOMENTS:
        k = tl.arange(0, SP)
        factor = tl.load(table_ptr + 1 + 5 * S + k, mask=k < S, other=0.0).to(tl.float64)
        for r in range(R):
            mass, spread = tl.zeros([SP], tl.float64), tl.zeros([SP], tl.float64)
            for part in tl.static_range(USED):
                scale = tl.full([1], 1.0, tl.float64)
                if PARTS > 1:
                    scale = tl.load(scale_ptr + (b * R + r) * 3 + part + tl.arange(0, 1)).to(tl.float64)
                rows = moments_ptr + (part * B + b) * m_strips * 2 * S
                mass += scale * _sum_of_rows(rows, m_strips, S, 2 * S, SP, 32)
                spread += scale * _sum_of_rows(rows + S, m_strips, S, 2 * S, SP, 32)
            there = (b * R + r) * S + k
            tl.store(dweights_ptr + there, mass, mask=k < S)
            tl.store(dsigma_ptr + there, factor * spread, mask=k < S)


class Finished(NamedTuple):
    """None where it was not wanted."""

    sums: torch.Tensor | None  # (B, parts that count) float64
    dx: torch.Tensor | None  # (B, R, N, D)
    dy: torch.Tensor | None  # (B, R, M, D)
    da: torch.Tensor | None  # (B, R, N, E)
    db: torch.Tensor | None  # (B, R, M, E)
    dsigma: torch.Tensor | None  # (B, R, S) float64
    dweights: torch.Tensor | None  # (B, R, S) float64


def finish(
    swept: Swept,
    rows: int,
    columns: int,
    dims: int,
    coefficients: int,
    dtypes: tuple[torch.dtype | None, ...],
    scale: torch.Tensor | None = None,
) -> Finished:
    """dtypes of (dx, dy, da, db), None where one is not wanted.

    Of a single part dx is the pull and da the value of its rows, and there is no scale, but R = 1.
    """
    some = next(t for t in (swept.total, swept.pull, swept.value, swept.moments) if t is not None)
    parts, batch = swept.parts, swept.batch
    combinations = 1 if scale is None else scale.shape[1]
    shapes = (rows, dims), (columns, dims), (rows, coefficients), (columns, coefficients)
    outputs = [
        None if dtype is None else some.new_empty(batch, combinations, *shape, dtype=dtype)
        for dtype, shape in zip(dtypes, shapes, strict=True)
    ]
    blocks = sum(
        triton.cdiv(shape[0] * shape[1], _BLOCK)
        for shape, out in zip(shapes, outputs, strict=True)
        if out is not None
    )
    sums = dsigma = dweights = None
    if swept.total is not None:
        sums = some.new_empty(batch, min(parts, 3), dtype=torch.float64)
    count = 1
    if swept.moments is not None:
        count = swept.moments.shape[-1]
        dsigma, dweights = (some.new_empty(batch, combinations, count, dtype=torch.float64) for _ in range(2))
    blocks += sums is not None or dsigma is not None

    def there(tensor):
        # a kernel that does not read it takes any pointer
        return swept.table if tensor is None else tensor

    def splits_of(tensor):
        return 1 if tensor is None else tensor.shape[0]

    if batch and blocks:
        with torch.cuda.device_of(some):
            _finish_kernel[(blocks * batch,)](
                *map(there, (scale, swept.value, swept.total, swept.pull, swept.moments, swept.table)),
                *map(there, (sums, *outputs, dsigma, dweights)),
                blocks, rows, columns, dims, coefficients, dims if swept.pull is None else swept.pull.shape[-1],
                combinations, batch, count, splits_of(swept.value), splits_of(swept.pull),
                0 if swept.total is None else swept.total.shape[-1],
                0 if swept.moments is None else swept.moments.shape[2], swept.stride,
                PARTS=parts, DX=outputs[0] is not None, DY=outputs[1] is not None, DA=outputs[2] is not None,
                DB=outputs[3] is not None, TOTAL=sums is not None, MOMENTS=dsigma is not None,
                SP=triton.next_power_of_2(count), BLOCK=_BLOCK, num_warps=4, **FUSION,
            )  # fmt: skip
    return Finished(sums, *outputs, dsigma, dweights)


def rows_only(swept: Swept, x: torch.Tensor, y: torch.Tensor, coefficients: int, value: bool, pull: bool) -> Finished:
    """The finish of a single part, whose pull and value are as x; without a launch where the sweep left nothing."""
    done = [
        t is None or (t.shape[0] == 1 and t.dtype == x.dtype and t.shape[-1] == width)
        for t, width in ((swept.value, coefficients), (swept.pull, x.shape[2]))
    ]
    if swept.moments is None and all(done):
        dx, da = (t[0, 0][:, None] if want else None for t, want in ((swept.pull, pull), (swept.value, value)))
        return Finished(None, dx, None, da, None, None, None)
    dtypes = (x.dtype if pull else None, None, x.dtype if value else None, None)
    return finish(swept, x.shape[1], y.shape[1], x.shape[2], coefficients, dtypes)
