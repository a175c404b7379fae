"""What follows a sweep, in one launch: sums of parts and splits in a fixed order, combined and scaled in float64.

    values      f_r0 sum_c value[c, first] + f_r1 sum_c value[c, second]       (B, R, rows, E)
    pulls       likewise                                                       (B, R, rows, D)
    totals      sum of every part's, and sum_k scale_rk total_k                (B, 3), (B, R)
    dsigma      sum_k scale_rk spread_ks w_s / sigma_s^3                       (B, R, S)
    dweights    sum_k scale_rk mass_ks                                         (B, R, S)

For MMD^2 the combinations of values and pulls are 2 scale_rk of the part within the set and scale_r2 of the part
between the sets: both ends of a pair within a set are its points. The parts of a product are taken as they are.
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
    swept_ptr, out_ptr, scale_ptr, block, b, part, count, height, length, width, R, B, SPLITS,
    PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of out (B, R, count, length) from a part of (SPLITS, PARTS, B, height, width), and the next but one."""
    at = block * BLOCK + tl.arange(0, BLOCK)
    i, d = at // length, at % length
    inside = i < count
    there = swept_ptr + (b * height + i) * width + d
    size = B * height * width  # of one part
    one, two = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    for split in range(SPLITS):
        of_split = there + split * PARTS * size
        one += tl.load(of_split + part * size, mask=inside, other=0.0).to(tl.float64)
        if PARTS > 2:
            two += tl.load(of_split + (part + 2) * size, mask=inside, other=0.0).to(tl.float64)
    for r in range(R):
        found = one
        if PARTS > 2:
            scale = scale_ptr + (b * R + r) * 3
            found = 2 * tl.load(scale + part).to(tl.float64) * one + tl.load(scale + 2).to(tl.float64) * two
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
    values_ptr, sums_ptr, dx_ptr, dy_ptr, da_ptr, db_ptr, dsigma_ptr, dweights_ptr,
    blocks, N, M, D, E, width, R, B, S, V_SPLITS, P_SPLITS, strips, m_strips, table_stride,
    PARTS: tl.constexpr, DX: tl.constexpr, DY: tl.constexpr, DA: tl.constexpr, DB: tl.constexpr,
    VALUES: tl.constexpr, TOTAL: tl.constexpr, MOMENTS: tl.constexpr, SP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    b, block = pid // blocks, pid % blocks
    height = tl.maximum(N, M) if PARTS > 1 else N
    # rows may be so many that their coordinates pass 2^31
    N, M, B = N.to(tl.int64), M.to(tl.int64), B.to(tl.int64)
    # the outputs one after another, each in as many blocks as it has
    if DX:
        if block < tl.cdiv(N * D, BLOCK):
            _combine(pull_ptr, dx_ptr, scale_ptr, block, b, 0, N, height, D, width, R, B, P_SPLITS, PARTS, BLOCK)
        block -= tl.cdiv(N * D, BLOCK)
    if DY:
        if (block >= 0) & (block < tl.cdiv(M * D, BLOCK)):
            _combine(pull_ptr, dy_ptr, scale_ptr, block, b, 1, M, height, D, width, R, B, P_SPLITS, PARTS, BLOCK)
        block -= tl.cdiv(M * D, BLOCK)
    if DA:
        if (block >= 0) & (block < tl.cdiv(N * E, BLOCK)):
            _combine(value_ptr, da_ptr, scale_ptr, block, b, 0, N, height, E, E, R, B, V_SPLITS, PARTS, BLOCK)
        block -= tl.cdiv(N * E, BLOCK)
    if DB:
        if (block >= 0) & (block < tl.cdiv(M * E, BLOCK)):
            _combine(value_ptr, db_ptr, scale_ptr, block, b, 1, M, height, E, E, R, B, V_SPLITS, PARTS, BLOCK)
        block -= tl.cdiv(M * E, BLOCK)
    if block == 0:
        if TOTAL:
            _finish_totals(scale_ptr, total_ptr, values_ptr, sums_ptr, b, R, B, strips, VALUES, BLOCK)
        if MOMENTS:
            finish_moments(
                scale_ptr, moments_ptr, table_ptr + b * table_stride, dsigma_ptr, dweights_ptr,
                b, R, B, S, m_strips, m_strips, PARTS, SP,
            )  # fmt: skip


@triton.jit
def _finish_totals(
    scale_ptr, total_ptr, values_ptr, sums_ptr, b, R, B, strips, VALUES: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    # one number, as a tensor
    one = tl.arange(0, 1)
    sums = ()
    for part in tl.static_range(3):
        found = _sum_of_rows(total_ptr + (part * B + b) * strips, strips, 1, 1, 1, BLOCK)
        tl.store(sums_ptr + b * 3 + part + one, found)
        sums += (found,)
    if VALUES:
        for r in range(R):
            value = tl.zeros([1], tl.float64)
            for part in tl.static_range(3):
                value += tl.load(scale_ptr + (b * R + r) * 3 + part + one).to(tl.float64) * sums[part]
            tl.store(values_ptr + b * R + r + one, cast(value, values_ptr))


@triton.jit
def finish_moments(
    scale_ptr, moments_ptr, table_ptr, dsigma_ptr, dweights_ptr, b, R, B, S, count, strips,
    PARTS: tl.constexpr, SP: tl.constexpr,
):  # fmt: skip
    """The gradients to bandwidths and weights, from the first `count` strips of each part."""
    USED: tl.constexpr = 3 if PARTS > 2 else 1
    k = tl.arange(0, SP)
    factor = tl.load(table_ptr + 1 + 5 * S + k, mask=k < S, other=0.0).to(tl.float64)
    for r in range(R):
        mass, spread = tl.zeros([SP], tl.float64), tl.zeros([SP], tl.float64)
        for part in tl.static_range(USED):
            scale = tl.full([1], 1.0, tl.float64)
            if PARTS > 2:
                scale = tl.load(scale_ptr + (b * R + r) * 3 + part + tl.arange(0, 1)).to(tl.float64)
            rows = moments_ptr + (part * B + b) * strips * 2 * S
            mass += scale * _sum_of_rows(rows, count, S, 2 * S, SP, 32)
            spread += scale * _sum_of_rows(rows + S, count, S, 2 * S, SP, 32)
        there = (b * R + r) * S + k
        tl.store(dweights_ptr + there, mass, mask=k < S)
        tl.store(dsigma_ptr + there, factor * spread, mask=k < S)


class Finished(NamedTuple):
    """None where it was not wanted."""

    values: torch.Tensor | None  # (B, R)
    sums: torch.Tensor | None  # (B, 3) float64
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
    """dtypes of (values, dx, dy, da, db), None where one is not wanted.

    Of the parts of a product dx and da are the pull and the value of the first one's rows, dy and db those of the
    second's, and there is no scale, but R = 1. No launch where a single part has already left what is wanted.
    """
    parts, batch = swept.parts, swept.batch
    combinations = 1 if scale is None else scale.shape[1]
    shapes = (rows, dims), (columns, dims), (rows, coefficients), (columns, coefficients)
    of_values, *of_points = dtypes
    # a second part's would be views into the middle of memory, which compiled graphs take for aligned
    if parts == 1 and swept.moments is None:
        wanted = list(zip((swept.pull, None, swept.value, None), shapes, of_points, strict=True))
        if all(
            dtype is None or (t.shape[0] == 1 and t.dtype == dtype and t.shape[-1] == shape[1])
            for t, shape, dtype in wanted
        ):
            found = (None if dtype is None else t[0, 0, :, None] for t, _, dtype in wanted)
            return Finished(None, None, *found, None, None)
    some = next(t for t in (swept.total, swept.pull, swept.value, swept.moments) if t is not None)
    outputs = [
        None if dtype is None else some.new_empty(batch, combinations, *shape, dtype=dtype)
        for dtype, shape in zip(of_points, shapes, strict=True)
    ]
    blocks = sum(
        triton.cdiv(shape[0] * shape[1], _BLOCK)
        for shape, out in zip(shapes, outputs, strict=True)
        if out is not None
    )
    values = sums = dsigma = dweights = None
    if of_values is not None:
        values = some.new_empty(batch, combinations, dtype=of_values)
    if swept.total is not None:
        sums = some.new_empty(batch, 3, dtype=torch.float64)
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
                *map(there, (values, sums, *outputs, dsigma, dweights)),
                blocks, rows, columns, dims, coefficients, dims if swept.pull is None else swept.pull.shape[-1],
                combinations, batch, count, splits_of(swept.value), splits_of(swept.pull),
                0 if swept.total is None else swept.total.shape[-1],
                0 if swept.moments is None else swept.moments.shape[2], swept.stride,
                PARTS=parts, DX=outputs[0] is not None, DY=outputs[1] is not None, DA=outputs[2] is not None,
                DB=outputs[3] is not None, VALUES=values is not None, TOTAL=sums is not None,
                MOMENTS=dsigma is not None,
                SP=triton.next_power_of_2(count), BLOCK=_BLOCK, num_warps=4, **FUSION,
            )  # fmt: skip
    return Finished(values, sums, *outputs, dsigma, dweights)
