"""The drifting field, in two sweeps: logarithms of the row and column sums of the kernels, then the pulls."""

import numpy as np

from .arrays import empty, fill
from .arrays import part as part_of
from .bandwidths import LOG2_E, NO_BASELINE, PACKING, example_plan, limits, pack
from .calls import operation, parallel_for
from .compiled import inner
from .gradients import _add_product, _add_pull
from .memory import as_contiguous
from .points import example_points, panel_width
from .small_drift import applies, small_drift
from .sweep import _finite
from .tile import NO_DIAGONAL, ROWS, distances
from .vector import at_least, cleared, exp2, fma, lane_of, load, splat, store, total

# rows and columns of a block, whose points and pulls stay in the second-level cache
_BLOCK_ROWS, _COLUMNS = 8 * ROWS, 256
# rows whose column sums are kept apart, at least, and how many such chunks there are at most
_CHUNK_ROWS, _MOST_CHUNKS = 128, 32
# the greatest exponent, |x_i - z_j|^2 / (2 sigma^2) of a point and those nearest to it, that float32 is enough for
_MOST_EXPONENT = 64
# below every exponent, and finite, lest the difference of two be NaN
_LOWEST = -3e38


@inner
def _block(points, b, i0, j0, near, first_self, d2):
    """The squared distances of ROWS rows and _COLUMNS columns, infinite of a row and its own column."""
    n, m, width = points[0].count, points[1].count, points[1].columns.shape[3]
    wide = min(_COLUMNS, m - j0)
    for at in range(0, wide, width):
        diagonal = NO_DIAGONAL if first_self < 0 else first_self + i0 - j0 - at
        distances(points, (b, i0, (j0 + at) // width), near, diagonal, d2, at, _COLUMNS)
    if first_self >= 0:
        for r in range(min(ROWS, n - i0)):
            own = first_self + i0 + r - j0
            if 0 <= own < wide:
                d2[r * _COLUMNS + own] = np.inf
    return wide


def _sums_example(dtype):
    points, sums = example_points(dtype), np.zeros((1, 1, 1), dtype)
    return (points, points), example_plan(dtype), points.norms, (1, 1, 1), (np.zeros((1, 1)), sums, sums)


@parallel_for(_sums_example, flush_subnormals=True)
def _log_sums(memory, start, stop, points, plan, column_log, places, sums):
    """Logarithms to the base 2 of the row sums, (B, N), and for each chunk of rows column sums over 2**tops.

    rows_i = log2 sum_j 2**(column_log_j - scale d2_ij), columns_j = sum_i 2**(-scale d2_ij - tops_j); for chunks
    numbered through the batch. places are how many chunks there are, of how many rows, and row 0's own column or -1.
    """
    (count, step, first_self), (rows, tops, columns) = places, sums
    n, m, width = points[0].count, points[1].count, points[1].columns.shape[3]
    lanes, size = width // 2, tops.shape[2]
    d2, t = empty(memory, ROWS * _COLUMNS, column_log.dtype), empty(memory, _COLUMNS, column_log.dtype)
    greatest, row_sums = empty(memory, step, np.float64), empty(memory, step, np.float64)
    real = column_log.dtype.type
    lowest = splat(real(-np.inf))
    for number in range(start, stop):
        b, chunk = number // count, number % count
        c, near = splat(-plan.scale[b, 0]), (real(plan.slope[b]), real(plan.offset[b]))
        fill(tops[b, chunk], _LOWEST)
        fill(columns[b, chunk], 0)
        fill(greatest, -np.inf)
        fill(row_sums, 0)
        first, stop_row = chunk * step, min(n, (chunk + 1) * step)
        # a block of columns stays in the second-level cache while the rows pass
        for j0 in range(0, m, _COLUMNS):
            for i0 in range(first, stop_row, ROWS):
                height = min(ROWS, n - i0)
                wide = _block(points, b, i0, j0, near, first_self, d2)
                for r in range(height):
                    top_lanes = lowest
                    for j in range(0, wide, lanes):
                        exponent = fma(load(d2, r * _COLUMNS + j), c, load(column_log, b * size + j0 + j))
                        store(t, j, exponent)
                        top_lanes = at_least(exponent, top_lanes)
                    top = -np.inf
                    for lane in range(lanes):
                        value = np.float64(lane_of(top_lanes, lane))
                        top = value if value > top or value != value else top
                    if top == -np.inf:
                        continue
                    own = i0 - first + r
                    if top > greatest[own] or top != top:
                        row_sums[own] *= 2.0 ** (greatest[own] - top) if greatest[own] > -np.inf else 1.0
                        greatest[own] = top
                    reference, part = splat(real(greatest[own])), splat(real(0))
                    for j in range(0, wide, lanes):
                        part = part + exp2(load(t, j) - reference)
                    row_sums[own] += np.float64(total(part))
                for j in range(0, wide, lanes):
                    at = (b * count + chunk) * size + j0 + j
                    before = load(tops, at)
                    top = before
                    for r in range(height):
                        top = at_least(load(d2, r * _COLUMNS + j) * c, top)
                    part = load(columns, at) * exp2(before - top)
                    for r in range(height):
                        part = part + exp2(load(d2, r * _COLUMNS + j) * c - top)
                    store(tops, at, top)
                    store(columns, at, part)
        for i in range(first, stop_row):
            rows[b, i] = greatest[i - first] + np.log2(row_sums[i - first])


def _pulls_example(dtype):
    points, wide = example_points(dtype), np.zeros((1, 1))
    arrays = (points.norms, wide, np.zeros((1, 1, 1)))
    return (points, points), (points.rows, points.rows), example_plan(dtype), (1, 1, 1.0), arrays


@parallel_for(_pulls_example, flush_subnormals=True)
def _pulls(memory, start, stop, points, finite, plan, places, arrays):
    """The field of blocks of _BLOCK_ROWS rows, numbered through the batch.

    With w_ij = 2**(column_log_j - scale d2_ij - power rows_i), for the real columns and for the others: the sum of w,
    and of w (z_j - x_i). places are how many columns are real, row 0's own column or -1, and power.
    """
    (split, first_self, power), (column_log, rows, out) = places, arrays
    (x, z), n, m, width = finite, points[0].count, points[1].count, points[1].columns.shape[3]
    row, dims = x.shape[2], out.shape[2]
    size, kind = ROWS * _COLUMNS, column_log.dtype
    d2, weight, tile = empty(memory, size, kind), empty(memory, size, kind), empty(memory, ROWS * width, kind)
    block_rows = min(_BLOCK_ROWS, (n + ROWS - 1) // ROWS * ROWS)
    pulls = empty(memory, (2, block_rows, dims), np.float64)
    # sums of all weights, and of those that pulled without x_i
    sums, less = empty(memory, (2, block_rows), np.float64), empty(memory, (2, block_rows), np.float64)
    real = column_log.dtype.type
    blocks = (n + block_rows - 1) // block_rows
    for number in range(start, stop):
        b, first_row = number // blocks, number % blocks * block_rows
        near = real(plan.slope[b]), real(plan.offset[b])
        fill(pulls, 0)
        fill(sums, 0)
        fill(less, 0)
        for j0 in range(0, m, _COLUMNS):
            middle = min(max(split - j0, 0), min(_COLUMNS, m - j0))
            for i0 in range(first_row, min(first_row + block_rows, n), ROWS):
                height, at = min(ROWS, n - i0), i0 - first_row
                wide = _block(points, b, i0, j0, near, first_self, d2)
                nearest = _weights((b, i0, j0, height, wide), plan, power, column_log, rows, d2, weight)
                # a product would cancel
                differences = plan.offset[b] == np.inf or nearest <= plan.pull_near[b]
                for side in range(2):
                    first, last = (0, middle) if side == 0 else (middle, wide)
                    if first == last:
                        continue
                    _add_sums(weight, height, first, last, part_of(sums[side], at, block_rows))
                    if not differences:
                        _add_sums(weight, height, first, last, part_of(less[side], at, block_rows))
                    depth, z_at = last - first, (b * z.shape[1] + j0 + first) * row
                    x_at = (b * x.shape[1] + i0) * row
                    for k0 in range(0, dims, width):
                        if differences:
                            for r in range(0, height, ROWS // 2):
                                _add_pull(
                                    weight, (r * _COLUMNS + first, _COLUMNS, 1, depth),
                                    (z, x), (z_at + k0, x_at + r * row + k0, row),
                                    tile, pulls[side], (at + r, height - r, k0),
                                )  # fmt: skip
                        else:
                            _add_product(
                                weight, (first, _COLUMNS, 1, depth), z, (z_at + k0, row),
                                tile, pulls[side], (at, height, k0),
                            )  # fmt: skip
        for r in range(min(block_rows, n - first_row)):
            point, field = x[b, first_row + r], out[b, first_row + r]
            for k in range(dims):
                at_k = np.float64(point[k])
                to_real, to_other = pulls[0, r, k] - less[0, r] * at_k, pulls[1, r, k] - less[1, r] * at_k
                field[k] = (sums[1, r] * to_real - sums[0, r] * to_other) * plan.unit[b]


@inner
def _weights(place, plan, power, column_log, rows, d2, weight):
    """weight = 2**(column_log_j - scale d2_ij - power rows_i) of one block; the least d2."""
    b, i0, j0, height, wide = place
    lanes, real = panel_width(d2) // 2, d2.dtype.type
    zero, c, nearest = splat(real(0)), splat(-plan.scale[b, 0]), splat(real(-np.inf))
    logs_at = b * column_log.shape[1] + j0
    for r in range(height):
        shift = splat(real(-power * rows[b, i0 + r]))
        for j in range(0, wide, lanes):
            distance = load(d2, r * _COLUMNS + j)
            nearest = at_least(zero - distance, nearest)
            exponent = fma(distance, c, load(column_log, logs_at + j) + shift)
            store(weight, r * _COLUMNS + j, exp2(exponent))
    least = np.inf
    for lane in range(lanes):
        least = min(least, -np.float64(lane_of(nearest, lane)))
    return least


@inner
def _add_sums(weight, height, first, last, sums):
    """sums_r += sum of weight_rj over columns from first to before last."""
    lanes, real = panel_width(weight) // 2, weight.dtype.type
    for r in range(height):
        part = splat(real(0))
        for j in range(first // lanes * lanes, last, lanes):
            w = load(weight, r * _COLUMNS + j)
            if j < first:
                w = cleared(w, 0, first - j)
            if j + lanes > last:
                w = cleared(w, last - j, lanes)
            part = part + w
        sums[r] += np.float64(total(part))


@inner
def _column_logs(chunk_tops, chunk_sums, logs, power, out):
    """out = logs - power log2 sum over chunks of sums 2**tops, (B, M); the greatest of -log2, of finite ones."""
    greatest = 0.0
    for b in range(logs.shape[0]):
        for j in range(logs.shape[1]):
            top = -np.inf
            for chunk in range(chunk_tops.shape[1]):
                top = max(top, np.float64(chunk_tops[b, chunk, j]))
            part = 0.0
            for chunk in range(chunk_tops.shape[1]):
                part += np.float64(chunk_sums[b, chunk, j]) * 2.0 ** (np.float64(chunk_tops[b, chunk, j]) - top)
            # a column that meets no row has no share
            value = top + np.log2(part) if part != 0 else -np.inf
            out[b, j] = logs[b, j] - (power * value if power > 0 else 0.0) if part != 0 else -np.inf
            if part > 0 and logs[b, j] > -np.inf:
                greatest = max(greatest, -value)
    return greatest


@operation(*PACKING, _log_sums, _pulls)
def _drift(run, points, bandwidths, limit, logs, places, powers, greatest, out):
    """The field of one bandwidth, (B, N, D); logs (B, M) are those of the columns' weights.

    places are how many columns are real and row 0's own column or -1; greatest receives the greatest exponent.
    """
    plan, packed = pack(run, points, bandwidths, limit, (False, False, True))
    (batch, n, _), m, columns = points[0].shape, points[1].shape[1], packed[1].columns
    size = columns.shape[1] * columns.shape[3]
    # padding has no share
    column_log = empty(run[2], (batch, size), columns.dtype)
    fill(column_log, -np.inf)
    for b in range(batch):
        for j in range(m):
            column_log[b, j] = logs[b, j]
    count = max(1, min(n // _CHUNK_ROWS, _MOST_CHUNKS))
    step = ((n + count - 1) // count + ROWS - 1) // ROWS * ROWS
    count = (n + step - 1) // step
    rows, shape = empty(run[2], (batch, n), np.float64), (batch, count, size)
    tops, sums = empty(run[2], shape, columns.dtype), empty(run[2], shape, columns.dtype)
    task = packed, plan, column_log, (count, step, places[1]), (rows, tops, sums)
    _log_sums(run[0][2], run[1], (batch * count,), (task,))
    found = _column_logs(tops, sums, logs, powers[1], column_log)
    for b in range(batch):
        for i in range(n):
            if rows[b, i] > -np.inf:
                found = max(found, -rows[b, i])
    greatest[0] = found / LOG2_E
    finite = packed[0].rows, packed[1].rows
    if not plan.finite:
        finite = _finite(run[2], finite[0]), _finite(run[2], finite[1])
    task = packed, finite, plan, (places[0], places[1], powers[0]), (column_log, rows, out)
    block_rows = min(_BLOCK_ROWS, (n + ROWS - 1) // ROWS * ROWS)
    blocks = batch * ((n + block_rows - 1) // block_rows) if n else 0
    _pulls(run[0][3], run[1], (blocks,), (task,))


def drift(x, y, z, sigma, y_weights, z_weights, *, powers, skip_diagonal, in_float64=False):
    """The drifting field of one bandwidth, (B, N, D). See gkfast.drift.

    float32 data are computed in float32 as far as that is right.
    """
    (batch, n, dims), real = x.shape, y.shape[1]
    if x.size == 0:
        return np.zeros(x.shape, x.dtype)
    weights = np.concatenate([y_weights, z_weights], 1)
    bandwidths = as_contiguous(sigma), np.ones((batch, 1)), NO_BASELINE
    places, greatest, powers = (real, real if skip_diagonal else -1), np.zeros(1), tuple(map(float, powers))
    for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        if dtype == np.float32 and (x.dtype == np.float64 or in_float64):
            continue
        points = tuple(as_contiguous(p.astype(dtype, copy=False)) for p in (x, y, z))
        pairs, accuracy = n * weights.shape[1], "exponent" if dtype == np.float32 else "density64"
        work, limit = batch * pairs * (4 * dims + 60), limits(dtype, pairs, dims, accuracy, "gradient")
        if applies(points[0], weights.shape[1]):
            field = small_drift(points, bandwidths, limit, weights, places, powers, work)
            if field is not None:
                return field.astype(x.dtype, copy=False)
        arrays = points[0], np.concatenate(points[1:], 1)
        with np.errstate(divide="ignore"):
            # a row without weight has no share
            logs = np.log2(weights)
        out = np.empty((batch, n, dims))
        _drift(dtype, work, arrays, bandwidths, limit, logs, places, powers, greatest, out)
        if greatest[0] <= _MOST_EXPONENT:
            break
    return out.astype(x.dtype)
