"""Sums over pairs: values K @ v, and the gradients of sum_ij c_ij K_ij, in one sweep that never stores K.

A block of pairs, some rows by _COLUMNS columns, stays in the cache nearest to the core and goes through the same
steps whatever is wanted; `sum_rows` reads from top to bottom:

    d2      the squared distances                                     a product of tiles, or differences
    c       g_i . v_j, or the given pairs                             a product of tiles
    mix     k_s = 2**(-scale_s d2); total = sum_s w_s k_s; weight = c sum_s w_s k_s / sigma_s^2
    value   total @ v to the rows, total.T @ g to the columns
    pull    sum_j weight_ij (y_j - x_i) to row i, and its opposite to column j: products of tiles again

Where the caller has kept K, and its digits suffice, its kernels are read: the first three steps are then one.

Sums are float32 within a block and float64 from block to block. Rows belong to one task each; what columns receive
is kept apart for every chunk of rows, and the chunks, whose number depends on the shapes alone, are added in their
order: any number of threads gives the same bits.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from .arrays import copy, empty, fill, part, reshaped, zeros
from .bandwidths import LOG2_E, NO_BASELINE, PACKING, example_plan, limits, pack
from .blocks import (
    Accumulators,
    Block,
    Chunks,
    Modes,
    Operands,
    Parts,
    Steps,
    Wants,
    block_size,
    chunk_bounds,
    leave_out,
    make_values,
)
from .calls import Step, operation, parallel_for, pointers_of
from .compiled import inner
from .gradients import FEW_VALUES, add_block_values, adding, pull_block, pulling, subtract_self
from .memory import as_contiguous
from .mixing import (
    BY_BANDWIDTH,
    MIXING,
    add_diagonal,
    block_distances,
    coefficients,
    kernel_values,
    make_coefficients,
    read_kernels,
    reading,
)
from .points import as_points, example_points
from .tile import ROWS

# memory for the gradients to columns, of which every chunk of rows has its own
_CHUNK_BYTES = 1 << 25
# multiply-adds and rows of a chunk at least; what columns receive is added up from all chunks
_CHUNK_WORK, _CHUNK_ROWS, _MOST_CHUNKS = 1 << 21, 512, 32


def _example(dtype):
    points, pairs = example_points(dtype), np.zeros((1, 1, 1), dtype)
    operands = Operands(*[points] * 4, *[pairs] * 3)
    sums = Accumulators(*[np.zeros((1,) * dims) for dims in (3, 4, 3, 4, 3)])
    chunks, modes, wants = Chunks(1, np.zeros(1, np.int64), 1, 1), Modes(*[False] * 4), Wants(*[False] * 5)
    return chunks, example_plan(dtype), operands, (pairs, pairs), (modes, wants, Parts(*[0] * 5)), sums


@parallel_for(_example, flush_subnormals=True)
def sum_rows(memory, first, last, chunks, plan, operands, finite, options, sums):
    """Chunks of rows, first to last, numbered through the batch, against all columns; fills in sums.

    finite are the rows of x and y with finite numbers, for pulls; options are Modes, Wants and Parts. If kernels has
    rows it is K, and nothing but pulls is wanted.

    With modes.symmetric only tiles that reach above the diagonal are visited. The pairs above it count for rows and
    columns, without per-row results (the value only to be summed up) twice; the diagonal's kernels are known.
    """
    modes, wants, parts = options
    skip_diagonal, symmetric = modes.skip_diagonal, modes.symmetric
    value, column_value, dx, dy, parameters = sums
    block_rows, block_columns = chunks.block_rows, chunks.block_columns
    x, y, v, g, pairs, kernels, shift = operands
    points = x, y
    m, width, columns = y.count, y.columns.shape[3], v.columns.shape[2]
    real = x.rows.dtype.type
    steps = make_steps(wants, columns, shift.shape[1] > 0, pairs.shape[1] > 0)
    twice = real(2 if symmetric and not wants.column_value else 1)
    # rows of a block do not fall on the same lines of the cache
    line = block_columns + 64 // x.rows.itemsize
    values = make_values(memory, chunks, line, steps, plan.scale.shape[1], width, x.rows.dtype)
    d2, weight, totals, row_sums, _ = values
    tile = empty(memory, ROWS * width, x.rows.dtype)
    near_tiles = zeros(memory, (block_rows // ROWS, block_columns // width), np.bool_)
    # sums over a chunk of what pulls each row, and each column
    row_weights = empty(memory, x.count if wants.dx else 0, np.float64)
    column_weights = empty(memory, y.columns.shape[1] * width if wants.dy else 0, np.float64)
    given, pulls, weight_sums = (g.rows, v.columns, shift), (dx, dy), (row_weights, column_weights)
    for number in range(first, last):
        b, chunk = number // chunks.count, number % chunks.count
        start, stop = chunks.bounds[chunk], chunks.bounds[chunk + 1]
        near, near_d2 = (real(plan.slope[b]), real(plan.offset[b])), plan.pull_near[b]
        differences = plan.offset[b] == np.inf
        by_reading = kernels.shape[1] > 0 and plan.reads_kernels[b]
        if by_reading:
            # -k in place of a squared distance
            near_d2 = -(2.0 ** -(plan.scale[b, 0] * near_d2))
        fill(part(value[b], start, stop), 0)
        fill(column_value[b, chunk], 0)
        fill(part(dx[b], start, stop), 0)
        fill(dy[b, chunk], 0)
        fill(parameters[b, chunk], 0)
        fill(row_weights, 0)
        fill(column_weights, 0)
        if symmetric and not skip_diagonal:
            rows = x.rows, g.rows, v.rows
            add_diagonal((b, chunk, start, stop), plan, rows, modes, steps, value, parameters)
        first_block = start // block_columns * block_columns if symmetric else 0
        for j0 in range(first_block, m, block_columns):
            wide = min(block_columns, m - j0)
            padded = (wide + width - 1) // width * width
            for i0 in range(start, stop, block_rows):
                if symmetric and j0 < i0 // block_columns * block_columns:
                    continue
                high = min(block_rows, stop - i0)
                diagonal = i0 - j0 if symmetric and j0 <= i0 else -1
                block = Block(b, chunk, i0, high, j0, wide, padded, line, diagonal)
                if by_reading:
                    read_kernels(parts.read, (block, plan, pairs, kernels, near_d2, weight, d2, near_tiles))
                else:
                    block_distances(block, points, near, symmetric or skip_diagonal, d2, near_tiles)
                    # a kernel of 0
                    leave_out(block, skip_diagonal, width, d2, real(np.inf))
                    if steps.coefficients and not steps.outer:
                        coefficients(parts.coefficients, (block, g.rows, v.columns, pairs, weight))
                        leave_out(block, skip_diagonal, width, weight, real(0))
                    mixed = block, plan, modes, steps, given, values, parameters[b, chunk]
                    kernel_values(parts.mix, mixed)
                if steps.keep_totals:
                    added = block, (totals, tile), v, g.rows, wants, twice, value, column_value[b, chunk]
                    add_block_values(parts.values, added)
                elif wants.value:
                    # one, or one for each bandwidth
                    each = value.shape[2]
                    for r in range(high):
                        for e in range(each):
                            value[b, i0 + r, e] += np.float64(twice * row_sums[r * each + e])
                if steps.pull:
                    leave_out(block, skip_diagonal, width, weight, real(0))
                    by_pairs = differences, near_d2
                    arrays = d2, weight, tile, near_tiles
                    pull_block(parts.pulls, (block, finite, wants, by_pairs, arrays, pulls, weight_sums))
        if not differences:
            if wants.dx:
                subtract_self(finite[0], b, start, stop, row_weights, dx[b])
            if wants.dy:
                subtract_self(finite[1], b, 0, m, column_weights, dy[b, chunk])


@inner
def make_steps(wants, columns, shifts, pairs):
    """Steps for so many columns of v, and whether there are shifts and pairs."""
    pull = wants.dx or wants.dy
    general = shifts or wants.parameters
    coefficients = pull or wants.parameters
    outer = coefficients and columns == 1 and not pairs and not general
    keep_totals = (wants.value and columns > 1) or wants.column_value
    return Steps(general, coefficients, outer, keep_totals, wants.value, pull, wants.parameters)


def steps_of(
    wants: Wants,
    less_baseline: bool,
    columns: int = 1,
    shifts: int = 0,
    pairs: Any = None,
    kernels: Any = None,
    by_bandwidth: bool = False,
) -> tuple[Step | None, ...]:
    """What a sweep with these Wants calls by a pointer, for each field of Parts."""
    some_pairs = pairs is not None and pairs.shape[1] > 0
    steps = make_steps.py_func(wants, columns, shifts > 0, some_pairs)
    return (
        BY_BANDWIDTH if by_bandwidth else MIXING[steps.general, less_baseline, steps.pull],
        make_coefficients if steps.coefficients and not steps.outer else None,
        reading if kernels is not None and kernels.shape[1] else None,
        adding if steps.keep_totals else None,
        pulling if steps.pull else None,
    )


@cache
def parts_of(dtype: np.dtype, *sweeps: tuple[Step | None, ...]) -> tuple[Parts, ...]:
    """For each sweep's `steps_of`: compiled or loaded if need be."""
    pointers = pointers_of(dtype, *(step for steps in sweeps for step in steps))
    count = len(Parts._fields)
    return tuple(Parts(*pointers[k * count : (k + 1) * count]) for k in range(len(sweeps)))


@inner
def _accumulator(memory, shape, some_pairs):
    """A new array, undefined if there are some pairs, whose chunks clear it; else zeros."""
    sums = empty(memory, shape, np.float64)
    if not some_pairs:
        fill(sums, 0)
    return sums


@inner
def _finite(memory, rows):
    """The rows, with 0 in place of numbers that are not finite."""
    flat = reshaped(rows, (rows.size,))
    finite = empty(memory, rows.size, rows.dtype)
    for k in range(finite.size):
        finite[k] = flat[k] if np.isfinite(flat[k]) else 0
    return reshaped(finite, rows.shape)


@inner
def make_task(memory, plan, operands, modes, wants, parts):
    """The arguments of `sum_rows` for a sweep, the last of which are its Accumulators, and its number of chunks."""
    x, y, count = operands.x, operands.y, plan.scale.shape[1]
    batch, n, m, dims, width = len(x.rows), x.count, y.count, y.columns.shape[2], y.columns.shape[3]
    columns = count if modes.by_bandwidth else operands.v.columns.shape[2]
    block_rows, block_columns = block_size(n, m, width, wants.dx or wants.dy or columns > FEW_VALUES)
    some_pairs = n > 0 and m > 0 and (wants.value or wants.column_value or wants.dx or wants.dy or wants.parameters)
    # in a single block all pairs are the rows' own
    want_dy = wants.dy and not (modes.symmetric and block_rows >= n)
    wants = Wants(wants.value, wants.column_value, wants.dx, want_dy, wants.parameters)
    least = max(_CHUNK_ROWS if wants.dy or wants.column_value else 0, 2 * block_rows)
    # at least two chunks, if there are rows for them: a second thread can then take part
    by_rows = max(n // least, 2 if n >= 2 * block_rows else 1)
    most = max(2, _CHUNK_BYTES // (8 * batch * m * (dims * wants.dy + columns * wants.column_value) + 1))
    work = n * m * (dims * (1 + wants.dx + wants.dy) + 10 * count + columns) // (1 + modes.symmetric)
    chunks = max(1, min(by_rows, most, work // _CHUNK_WORK, _MOST_CHUNKS))
    sums = Accumulators(
        _accumulator(memory, (batch, n, columns if wants.value else 0), some_pairs),
        _accumulator(memory, (batch, chunks, m if wants.column_value else 0, columns), some_pairs),
        _accumulator(memory, (batch, n, dims if wants.dx else 0), some_pairs),
        _accumulator(memory, (batch, chunks, m if wants.dy else 0, dims), some_pairs),
        zeros(memory, (batch, chunks, 2 * count if wants.parameters else 0), np.float64),
    )
    finite = x.rows, y.rows
    if not plan.finite:
        finite = _finite(memory, x.rows), _finite(memory, y.rows)
    bounds = chunk_bounds(memory, n, chunks, block_rows, modes.symmetric)
    task = Chunks(chunks, bounds, block_rows, block_columns), plan, operands, finite, (modes, wants, parts), sums
    return task, batch * chunks if some_pairs else 0


def _round_example(dtype):
    return np.zeros((1, 1, 1, 1)), np.ones(1), np.zeros((1, 1, 1), dtype)


@parallel_for(_round_example)
def round_rows(memory, start, stop, sums, unit, out):
    """Rows, numbered through the batch, of out (B, M, E): sums (B, chunks, M, E) over chunks, over unit (B,)."""
    chunks, m, count = sums.shape[1:]
    total = empty(memory, count, np.float64)
    for number in range(start, stop):
        b, j = number // m, number % m
        # a power of two
        inverse = 1 / unit[b]
        fill(total, 0)
        for chunk in range(chunks):
            # no view of a row: counting who refers to it would take longer than a short row
            for e in range(count):
                total[e] += sums[b, chunk, j, e]
        for e in range(count):
            out[b, j, e] = total[e] * inverse


@inner
def _round(run, sums, unit, out):
    pointers, team, _ = run
    batch, m, count = out.shape
    round_rows(pointers[3], team, (batch * m if count else 0,), ((sums, unit, out),))


@inner
def add_chunks(parameters, k, out):
    """out[:, k] (B, 2 S) += the sums over chunks of parameters (B, chunks, 2 S)."""
    for b in range(parameters.shape[0]):
        for chunk in range(parameters.shape[1]):
            for s in range(parameters.shape[2]):
                out[b, k, s] += parameters[b, chunk, s]


@inner
def _shifts(memory, plan, shift, like):
    """Shifts (B, N, S) in base 2, in the order of the bandwidths; without a row where there are none."""
    batch, n, count = shift.shape
    ordered = empty(memory, (batch, n, count), like.dtype)
    for b in range(batch):
        for i in range(n):
            for s in range(count):
                ordered[b, i, s] = shift[b, i, plan.order[b, s]] * LOG2_E
    return ordered


@operation(*PACKING, sum_rows, round_rows)
def _sweep(run, points, bandwidths, limit, given, options, wants, results):
    (same, skip_diagonal, parts), (v, g, pairs, kernels, shift) = options, given
    value, column_value, dx, dy, order, parameters = results
    plan, packed = pack(run, points, bandwidths, limit, (same, same, True))
    of_points, x, memory = packed[0], points[0], run[2]
    v_points, g_points = as_points(memory, v), as_points(memory, g)
    operands = Operands(of_points, packed[1], v_points, g_points, pairs, kernels, _shifts(memory, plan, shift, x))
    modes, wanted = Modes(skip_diagonal, bandwidths[2].shape[1] > 0, False, False), Wants(*wants)
    task, rows = make_task(memory, plan, operands, modes, wanted, parts)
    sum_rows(run[0][2], run[1], (rows,), (task,))
    sums, ones = task[-1], empty(memory, len(x), np.float64)
    fill(ones, 1)
    batch, n, dims = x.shape
    if same and wanted.dx:
        # x is at both ends of a pair
        for b in range(batch):
            for i in range(n):
                for k in range(dims):
                    sums.dy[b, 0, i, k] += sums.dx[b, i, k]
    of_rows = sums.dy if same else reshaped(sums.dx, (batch, 1, n, dims if wanted.dx else 0))
    _round(run, reshaped(sums.value, (batch, 1, n, v.shape[2] if wanted.value else 0)), ones, value)
    _round(run, sums.column_value, ones, column_value)
    _round(run, of_rows, plan.unit, dx)
    if not same:
        _round(run, sums.dy, plan.unit, dy)
    copy(plan.order, order)
    add_chunks(sums.parameters, 0, parameters)


class Sums(NamedTuple):
    """What one sweep returns, in the dtype of x, but float64 to the bandwidths; None if not wanted."""

    value: np.ndarray | None  # (B, N, E) sum_j total_ij v_j
    column_value: np.ndarray | None  # (B, M, E) sum_i total_ij g_i
    dx: np.ndarray | None  # (B, N, D)
    dy: np.ndarray | None  # (B, M, D)
    dsigma: np.ndarray | None  # (B, S)
    dweights: np.ndarray | None  # (B, S)


def sweep(
    x, y, sigma, weights, tolerances, wants, *, v=None, g=None, pairs=None, kernels=None, shift=None,
    skip_diagonal=False, baseline=None,
):  # fmt: skip
    """Sums over all pairs of x (B, N, D) and y (B, M, D), or None for x, whose gradient is then that of both ends.

    v (B, M, E), g (B, N, E), c_ij = g_i . v_j or pairs (B, N, M); kernels is K, if the caller has kept it; shift
    (B, N, S) is taken from the exponents, sum_s weights_s baseline_s from K where there is a baseline (B, S).
    tolerances are those of `limits`; wants are one for each field of Sums.
    """
    want_value, want_column_value, want_x, want_y, want_sigma, want_weights = wants
    same = y is None
    y = x if same else y
    (batch, n, dims), m, count = x.shape, y.shape[1], sigma.shape[1]
    none = np.empty((batch, 0, 1), x.dtype)
    given = v if v is not None else g
    columns = 1 if given is None else given.shape[2]
    unknown = np.empty((batch, 0, columns), x.dtype)
    if want_value or want_column_value or want_sigma or want_weights:
        kernels = None
    v, g, pairs, kernels, shift = (
        missing if array is None else array.astype(x.dtype, copy=False)
        for array, missing in ((v, unknown), (g, unknown), (pairs, none), (kernels, none), (shift, none))
    )
    pulls = (want_x, want_x if same else want_y)
    work = batch * n * m * (dims * (1 + sum(pulls)) + 10 * count + columns)
    baseline = NO_BASELINE if baseline is None else baseline
    points, bandwidths, given = (
        tuple(map(as_contiguous, arrays))
        for arrays in ((x, y), (sigma, weights, baseline), (v, g, pairs, kernels, shift))
    )
    if want_sigma or want_weights:
        tolerances = (*tolerances, "parameter")
    limit = limits(x.dtype, n * m, dims, *tolerances)
    shapes = ((n, columns * want_value), (m * want_column_value, columns), (n, dims * pulls[0]), (m, dims * pulls[1]))
    value, column_value, dx, dy = (np.empty((batch, *shape), x.dtype) for shape in shapes)
    want_parameters = want_sigma or want_weights
    order, parameters = np.zeros(sigma.shape, np.int64), np.zeros((batch, 1, 2 * count * want_parameters))
    wanted = (want_value, want_column_value, *pulls, want_parameters)
    results = (value, column_value, dx, dy, order, parameters)
    steps = steps_of(Wants(*wanted), baseline.shape[1] > 0, columns, shift.shape[1], pairs, kernels)
    (parts,) = parts_of(x.dtype, steps)
    options = (same, skip_diagonal, parts)
    _sweep(x.dtype, work, points, bandwidths, limit, given, options, wanted, results)
    if same:
        dy = dx
    dsigma = dweights = None
    if want_sigma or want_weights:
        dsigma, dweights = parameters_of(order, sigma, weights, parameters)
    results = (value, column_value, dx, dy, dsigma, dweights)
    return Sums(*(array if want else None for array, want in zip(results, wants, strict=True)))


def parameters_of(
    order: np.ndarray, sigma: np.ndarray, weights: np.ndarray, parameters: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """dsigma and dweights, (B, S), from the parameters of Accumulators, summed over chunks: (B, 2 S)."""
    sums = parameters.reshape(*order.shape, 2)
    dweights, dsigma = np.empty(order.shape), np.empty(order.shape)
    np.put_along_axis(dweights, order, sums[..., 0], 1)
    np.put_along_axis(dsigma, order, sums[..., 1], 1)
    # sum c k d2 / sigma^3, with d2 = -t sigma^2 2 / log2(e); 0 by a tiny sigma is 0
    dsigma *= -2 / LOG2_E * weights
    dsigma /= sigma
    return dsigma, dweights
