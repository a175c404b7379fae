"""What follows a sweep that does not finish its own sums (combine.py), in one launch."""

import torch
import triton
import triton.language as tl

from .bandwidths import row_at
from .combine import Reduced, add_totals, as_scale, combine, outputs, scaled, sum_of_rows
from .launch import launch
from .numbers import Numbers
from .pairings import height_of
from .sweep import Swept
from .tiles import FUSION, SIZES

# entries of an output that a program computes
_BLOCK = 256


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
                combine(
                    sums.pull if k < 2 else sums.value, reduced[2 + k], scale,
                    block * BLOCK + tl.arange(0, BLOCK), count * length, b, k % 2, count, height, length, R, B,
                    PULL_RANGES if k < 2 else VALUE_RANGES, PAIRINGS, BLOCK, tl.float64, 4,
                )  # fmt: skip
            block -= tl.cdiv(count * length, BLOCK)
    if block == 0:
        if reduced.sums is not None:
            add_totals(scale, sums.total, reduced, b, R, B, COUNT, BLOCK)
        if reduced.dsigma is not None:
            row = row_at(table_ptr + b * table_stride, S)
            reduce_moments(scale, sums.moments, row, reduced, b, R, B, S, STRIPS, STRIPS, PAIRINGS, SP)


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
            own_k = sum_of_rows(rows, count, S, 2 * S, SP, 32)
            own_kd2 = sum_of_rows(rows + S, count, S, 2 * S, SP, 32)
            if PAIRINGS > 2:
                of = pairing + tl.arange(0, 1)
                own_k, own_kd2 = scaled(scale, b, r, R, of, own_k), scaled(scale, b, r, R, of, own_kd2)
            sum_k += own_k
            sum_kd2 += own_kd2
        at = (b * R + r) * S + k
        tl.store(gradients.dweights + at, sum_k, mask=k < S)
        tl.store(gradients.dsigma + at, factor * sum_kd2, mask=k < S)


def reduce(
    swept: Swept,
    sizes: tuple[int, int, int, int],
    dtypes: tuple[torch.dtype | None, ...],
    scale: torch.Tensor | Numbers | None = None,
) -> Reduced:
    """sizes N, M, D, E; dtypes of (values, dx, dy, da, db), None where one is not wanted.

    Of a product dx and da are the pull and the value of the first pairing's rows, dy and db those of the second's,
    and there is no scale, but R = 1. No launch where a single pairing has already left what is wanted.
    """
    sums, table, pairings, like = swept
    batch = like.shape[0]
    # the second pairing's would be views into the middle of memory, which compiled graphs take for aligned
    if pairings == 1 and sums.moments is None:
        wanted = list(zip((sums.pull, None, sums.value, None), dtypes[1:], strict=True))
        if all(dtype is None or (t.shape[0] == 1 and t.dtype == dtype) for t, dtype in wanted):
            return Reduced(None, None, *(None if dtype is None else t[0, 0, :, None] for t, dtype in wanted))
    scale, combinations = as_scale(scale)
    measured = 0 if sums.moments is None else table.count
    reduced = outputs(like, sizes, combinations, dtypes, sums.total is not None, measured)
    of_points = (reduced.dx, reduced.dy, reduced.da, reduced.db)
    blocks = sum(triton.cdiv(out[0, 0].numel(), _BLOCK) for out in of_points if out is not None and batch)
    blocks += reduced.sums is not None or reduced.dsigma is not None

    def size(tensor, axis, otherwise):
        return otherwise if tensor is None else tensor.shape[axis]

    if batch and blocks:
        launch(_reduce_kernel, (blocks * batch,),
            sums, reduced, scale, table.rows,
            blocks, *sizes, combinations, batch,
            table.count, size(sums.value, 0, 1), size(sums.pull, 0, 1), size(sums.total, -1, 0),
            size(sums.moments, 2, 0), table.stride,
            PAIRINGS=pairings, SP=table.sp, BLOCK=_BLOCK, num_warps=4, **FUSION,
        )  # fmt: skip
    return reduced
