"""What follows a sweep, in one launch: its sums, added in a fixed order, then combined and scaled in float64.

    values      f_r0 sum_c value[c, first] + f_r1 sum_c value[c, second]       (B, R, rows, E)
    pulls       likewise                                                       (B, R, rows, D)
    totals      sum of every pairing's, and sum_k scale_rk total_k             (B, 3), (B, R)
    dsigma      sum_k scale_rk sum_kd2_ks w_s / sigma_s^3                      (B, R, S)
    dweights    sum_k scale_rk sum_k_ks                                        (B, R, S)

For MMD^2 the combinations of values and pulls are 2 scale_rk of the pairing within the set and scale_r2 of the
pairing between the sets: both ends of a pair within a set are its points. The pairings of a product are taken as they
are. A scale of 0 takes nothing, so that a NaN reaches only the combinations that ask for it.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .bandwidths import row_at
from .distances import cast
from .launch import launch
from .numbers import Encoded, Numbers, number, numbers
from .pairings import height_of
from .sweep import Swept
from .tiles import FUSION, SIZES

# entries of an output that a program computes
_BLOCK = 256


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


@triton.jit
def _scaled(scale, b, r, R, pairing, x):
    """x multiplied with the scale of combination r and a pairing, an integer or a tensor of one."""
    if scale.tensor is not None:
        factor = tl.load(scale.tensor + (b * R + r) * 3 + pairing).to(tl.float64)
    else:
        factor = number(r * 3 + pairing, scale.numbers)
    return tl.where(factor == 0.0, 0.0, factor * x)


@triton.jit
def _combine(
    swept_ptr, out_ptr, scale, block, b, pairing, count, height, length, R, B, RANGES,
    PAIRINGS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of out (B, R, count, length), from a pairing of (RANGES, PAIRINGS, B, height, length) and the next but
    one."""
    at = block * BLOCK + tl.arange(0, BLOCK)
    i, d = at // length, at % length
    inside = i < count
    size = B * height * length  # of one pairing
    entry = swept_ptr + pairing * size + (b * height + i) * length + d
    first, second = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    for k in range(RANGES):
        of_range = entry + k * PAIRINGS * size
        first += tl.load(of_range, mask=inside, other=0.0).to(tl.float64)
        if PAIRINGS > 2:
            second += tl.load(of_range + 2 * size, mask=inside, other=0.0).to(tl.float64)
    for r in range(R):
        combined = first
        if PAIRINGS > 2:
            combined = _scaled(scale, b, r, R, pairing, 2 * first) + _scaled(scale, b, r, R, 2, second)
        tl.store(out_ptr + (b * R + r) * count * length + at, cast(combined, out_ptr), mask=inside)


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


@triton.jit(do_not_specialize=SIZES)
def _reduce_kernel(
    sums, reduced, scale, table_ptr,
    BLOCKS, N, M, D, E, R, B, S, VALUE_RANGES, PULL_RANGES, COUNT, STRIPS, table_stride,
    PAIRINGS: tl.constexpr, SP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    b, block = pid // BLOCKS, pid % BLOCKS
    height = height_of(N, M, PAIRINGS)
    # rows may be so many that their coordinates pass 2^31
    N, M, B = N.to(tl.int64), M.to(tl.int64), B.to(tl.int64)
    # dx, dy, da, db one after another, each in as many blocks as it has
    for k in tl.static_range(4):
        if reduced[2 + k] is not None:
            count = N if k % 2 == 0 else M
            length = D if k < 2 else E
            if (block >= 0) & (block < tl.cdiv(count * length, BLOCK)):
                _combine(
                    sums.pull if k < 2 else sums.value, reduced[2 + k], scale,
                    block, b, k % 2, count, height, length, R, B,
                    PULL_RANGES if k < 2 else VALUE_RANGES, PAIRINGS, BLOCK,
                )  # fmt: skip
            block -= tl.cdiv(count * length, BLOCK)
    if block == 0:
        if reduced.sums is not None:
            _reduce_totals(scale, sums.total, reduced, b, R, B, COUNT, BLOCK)
        if reduced.dsigma is not None:
            row = row_at(table_ptr + b * table_stride, S)
            reduce_moments(scale, sums.moments, row, reduced, b, R, B, S, STRIPS, STRIPS, PAIRINGS, SP)


@triton.jit
def _reduce_totals(scale, total_ptr, reduced, b, R, B, COUNT, BLOCK: tl.constexpr):
    # one number, as a tensor
    one = tl.arange(0, 1)
    sums = ()
    for pairing in tl.static_range(3):
        total = _sum_of_rows(total_ptr + (pairing * B + b) * COUNT, COUNT, 1, 1, 1, BLOCK)
        tl.store(reduced.sums + b * 3 + pairing + one, total)
        sums += (total,)
    if reduced.value is not None:
        for r in range(R):
            value = tl.zeros([1], tl.float64)
            for pairing in tl.static_range(3):
                value += _scaled(scale, b, r, R, pairing + one, sums[pairing])
            tl.store(reduced.value + b * R + r + one, cast(value, reduced.value))


@triton.jit
def reduce_moments(
    scale, moments_ptr, row, gradients, b, R, B, S, count, stride, PAIRINGS: tl.constexpr, SP: tl.constexpr
):
    """The gradients to bandwidths and weights, from the first `count` strips of each pairing, `stride` apart."""
    k = tl.arange(0, SP)
    factor = tl.load(row.weights_over_sigma3 + k, mask=k < S, other=0.0).to(tl.float64)
    for r in range(R):
        sum_k, sum_kd2 = tl.zeros([SP], tl.float64), tl.zeros([SP], tl.float64)
        for pairing in tl.static_range(3 if PAIRINGS > 2 else 1):
            rows = moments_ptr + (pairing * B + b) * stride * 2 * S
            own_k = _sum_of_rows(rows, count, S, 2 * S, SP, 32)
            own_kd2 = _sum_of_rows(rows + S, count, S, 2 * S, SP, 32)
            if PAIRINGS > 2:
                of = pairing + tl.arange(0, 1)
                own_k, own_kd2 = _scaled(scale, b, r, R, of, own_k), _scaled(scale, b, r, R, of, own_kd2)
            sum_k += own_k
            sum_kd2 += own_kd2
        at = (b * R + r) * S + k
        tl.store(gradients.dweights + at, sum_k, mask=k < S)
        tl.store(gradients.dsigma + at, factor * sum_kd2, mask=k < S)


def reduce(
    swept: Swept,
    rows: int,
    columns: int,
    dims: int,
    coefficients: int,
    dtypes: tuple[torch.dtype | None, ...],
    scale: torch.Tensor | Numbers | None = None,
) -> Reduced:
    """dtypes of (values, dx, dy, da, db), None where one is not wanted.

    Of a product dx and da are the pull and the value of the first pairing's rows, dy and db those of the second's,
    and there is no scale, but R = 1. No launch where a single pairing has already left what is wanted.
    """
    sums, table, pairings, batch = swept
    shapes = (rows, dims), (columns, dims), (rows, coefficients), (columns, coefficients)
    of_values, *of_points = dtypes
    # the second pairing's would be views into the middle of memory, which compiled graphs take for aligned
    if pairings == 1 and sums.moments is None:
        wanted = list(zip((sums.pull, None, sums.value, None), of_points, strict=True))
        if all(dtype is None or (t.shape[0] == 1 and t.dtype == dtype) for t, dtype in wanted):
            return Reduced(None, None, *(None if dtype is None else t[0, 0, :, None] for t, dtype in wanted))
    if type(scale) is Numbers:
        combinations, scale = len(scale.floats) // 3, Scale(None, scale.encoded)
    else:
        combinations, scale = (1 if scale is None else scale.shape[1]), Scale(scale, numbers(()).encoded)

    def empty(*shape, dtype=torch.float64):
        return None if dtype is None else table.rows.new_empty(batch, *shape, dtype=dtype)

    outputs = [empty(combinations, *shape, dtype=dtype) for dtype, shape in zip(of_points, shapes, strict=True)]
    reduced = Reduced(
        empty(combinations, dtype=of_values),
        None if sums.total is None else empty(3),
        *outputs,
        *((None, None) if sums.moments is None else (empty(combinations, table.count) for _ in range(2))),
    )
    blocks = sum(triton.cdiv(n * d, _BLOCK) for (n, d), out in zip(shapes, outputs, strict=True) if out is not None)
    blocks += reduced.sums is not None or reduced.dsigma is not None

    def size(tensor, axis, otherwise):
        return otherwise if tensor is None else tensor.shape[axis]

    if batch and blocks:
        launch(_reduce_kernel, (blocks * batch,),
            sums, reduced, scale, table.rows,
            blocks, rows, columns, dims, coefficients, combinations, batch,
            table.count, size(sums.value, 0, 1), size(sums.pull, 0, 1), size(sums.total, -1, 0),
            size(sums.moments, 2, 0), table.stride,
            PAIRINGS=pairings, SP=table.sp, BLOCK=_BLOCK, num_warps=4, **FUSION,
        )  # fmt: skip
    return reduced
