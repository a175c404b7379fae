"""The drifting field of problems whose kernels stay in the second-level cache, so that each is made once.

With k_ij = 2**(-scale |x_i - z_j|^2), row sums R_i, column sums C_j, and c_j = a_j / C_j^q, the two sides of
`drift` are one product: the terms with x_i cancel in

    V_i = sum_j W_ij z_j,  W_ij = k_ij c_j R_i^-2p S-_i for real columns, -k_ij c_j R_i^-2p S+_i for others

where S+_i and S-_i sum k_ij c_j over real and other columns. Sums are not relative to a greatest exponent: rows and
columns that are far from all others are for `drift`, which says so of each problem.
"""

from typing import NamedTuple

import numpy as np

from .arrays import copy, empty, fill, part
from .bandwidths import PACKING, example_plan, pack
from .calls import operation, parallel_for
from .compiled import inner
from .points import example_points, panel_width
from .tile import MOST_DIFFERENCES, NO_DIAGONAL, ROWS, distances, gaussians, product, pull
from .vector import at_least, exp2, fma, lane_of, load, splat, store, total

# rows, columns, and bytes of the kernels of a problem, at most
_MOST_ROWS, _MOST_COLUMNS, _MOST_BYTES = 256, 2048, 1 << 18
# sums are at least this, and weights that are not 0 between 1 / _WEIGHT and _WEIGHT: no term that counts is subnormal
_LEAST_SUM, _WEIGHT = 2.0**-60, 2.0**20
# bytes of points that a thread has at hand at a time
_CACHE = 1 << 19


class _Columns(NamedTuple):
    """Numbers of the columns; `real` is 0 of the others, `other` of the real ones."""

    real: np.ndarray
    other: np.ndarray
    sums: np.ndarray


def applies(x: np.ndarray, columns: int) -> bool:
    """Whether problems of x (B, N, D) and so many columns are small."""
    n = x.shape[1]
    return n <= _MOST_ROWS and columns <= _MOST_COLUMNS and n * columns * x.itemsize <= _MOST_BYTES


def _example(dtype):
    points, wide = example_points(dtype), np.zeros((1, 1))
    return (points, points), example_plan(dtype), (1, 1), (1.0, 1.0), wide, points.rows, np.zeros(1, np.bool_)


@parallel_for(_example, flush_subnormals=True)
def _fields(memory, start, stop, points, plan, places, powers, weights, out, done):
    """The fields of problems start to stop; done[b] is false if `drift` must do it.

    places are how many columns are real and row 0's own column or -1; weights (B, M) are those of the columns.
    """
    (split, first_self), n = places, points[0].count
    _, panels, _, width = points[1].columns.shape
    line, strips, kind = panels * width, (n + ROWS - 1) // ROWS, out.dtype
    k, tile = empty(memory, strips * ROWS * line, kind), empty(memory, ROWS * width, kind)
    of_columns = empty(memory, (3, line), kind)
    columns = _Columns(of_columns[0], of_columns[1], of_columns[2])
    # R_i^-2p, and whether a row's strip has pairs so near that they are pulled by differences
    factors, near = empty(memory, n, np.float64), empty(memory, strips, np.bool_)
    for b in range(start, stop):
        done[b] = _split_weights(weights, b, split, columns)
        if done[b]:
            _make_kernels(points, plan, b, first_self, k, line)
            done[b] = _sum_rows(k, n, line, columns, powers[0], factors)
        if done[b]:
            done[b] = _sum_columns(k, n, line, columns, points[1].count, powers[1])
        if done[b]:
            _find_near(k, n, line, plan, b, near)
            _make_pairs(k, n, line, columns, factors)
            _pull(k, line, points, b, near, tile, out)


@inner
def _split_weights(weights, b, split, columns):
    """The weights in the columns' two arrays, 0 in padding; whether all are moderate."""
    fill(columns.real, 0)
    fill(columns.other, 0)
    moderate = True
    for j in range(weights.shape[1]):
        w = weights[b, j]
        moderate &= w == 0 or 1 / _WEIGHT <= w <= _WEIGHT
        side = columns.real if j < split else columns.other
        side[j] = w
    return moderate


@inner
def _make_kernels(points, plan, b, first_self, k, line):
    """k_ij, 0 of a row and its own column."""
    n, real = points[0].count, k.dtype.type
    _, _, dims, width = points[1].columns.shape
    lanes, near, c = width // 2, (real(plan.slope[b]), real(plan.offset[b])), splat(-plan.scale[b, 0])
    kernel = plan.scale[b, 0], real(1)
    in_registers = plan.offset[b] < np.inf or dims <= MOST_DIFFERENCES
    for i in range(0, n, ROWS):
        for j in range(0, line, width):
            at, own = i * line + j, first_self + i - j
            meets = first_self >= 0 and -ROWS < own < width
            if in_registers and not meets and not gaussians(points, (b, i, j // width), near, kernel, k, at, line):
                continue
            distances(points, (b, i, j // width), near, own if meets else NO_DIAGONAL, k, at, line)
            for r in range(ROWS):
                for v in range(0, width, lanes):
                    store(k, at + r * line + v, exp2(load(k, at + r * line + v) * c))
                if meets and 0 <= own + r < width:
                    k[at + r * line + own + r] = 0


@inner
def _side_sums(k, at, columns):
    """sum_j k_ij times the numbers of the real columns, and of the others, for the row that begins at `at`."""
    lanes, zero = panel_width(k) // 2, splat(k.dtype.type(0))
    to_real = to_other = zero
    for j in range(0, columns.real.shape[0], lanes):
        value = load(k, at + j)
        to_real = fma(value, load(columns.real, j), to_real)
        to_other = fma(value, load(columns.other, j), to_other)
    return np.float64(total(to_real)), np.float64(total(to_other))


@inner
def _sum_rows(k, n, line, columns, power, factors):
    """factors_i = R_i^-2p; whether no row is far from either side."""
    enough = True
    for i in range(n):
        to_real, to_other = _side_sums(k, i * line, columns)
        # not so of a NaN either
        enough &= min(to_real, to_other) >= _LEAST_SUM
        factors[i] = _inverse_power(to_real + to_other, 2 * power)
    return enough


@inner
def _inverse_power(value, power):
    """value**-power; the usual powers take no logarithm."""
    if power == 0:
        return 1.0
    if power == 1:
        return 1 / value
    if power == 0.5:
        return 1 / np.sqrt(value)
    return value**-power


@inner
def _sum_columns(k, n, line, columns, m, power):
    """Turns the numbers of the columns from a_j into c_j = a_j / C_j^q; whether no column is far from all rows."""
    lanes, zero = panel_width(k) // 2, splat(k.dtype.type(0))
    for j in range(0, line, lanes):
        sums = zero
        for i0 in range(0, n, ROWS):
            part = zero
            for i in range(i0, min(n, i0 + ROWS)):
                part = part + load(k, i * line + j)
            sums = sums + part
        store(columns.sums, j, sums)
    enough = True
    for j in range(m):
        of_column = np.float64(columns.sums[j])
        enough &= of_column >= _LEAST_SUM
        factor = _inverse_power(of_column, power)
        columns.real[j] *= factor
        columns.other[j] *= factor
    return enough


@inner
def _find_near(k, n, line, plan, b, near):
    """Which strips of rows have pairs that are pulled by differences: a product would cancel."""
    lanes, real = panel_width(k) // 2, k.dtype.type
    least = 2.0 ** -(np.float64(plan.scale[b, 0]) * plan.pull_near[b])
    for strip in range(near.shape[0]):
        greatest = splat(real(0))
        for i in range(strip * ROWS, min(n, (strip + 1) * ROWS)):
            for j in range(0, line, lanes):
                greatest = at_least(load(k, i * line + j), greatest)
        near[strip] = plan.offset[b] == np.inf
        for lane in range(lanes):
            near[strip] |= np.float64(lane_of(greatest, lane)) >= least


@inner
def _make_pairs(k, n, line, columns, factors):
    """Turns k_ij into W_ij."""
    lanes, real = panel_width(k) // 2, k.dtype.type
    for i in range(n):
        to_real, to_other = _side_sums(k, i * line, columns)
        of_real, of_other = splat(real(factors[i] * to_other)), splat(real(-factors[i] * to_real))
        for j in range(0, line, lanes):
            factor = fma(load(columns.real, j), of_real, load(columns.other, j) * of_other)
            store(k, i * line + j, load(k, i * line + j) * factor)


@inner
def _pull(w, line, points, b, near, tile, out):
    """out_i = sum_j W_ij z_j, or W_ij (z_j - x_i)."""
    (x, z), (_, n, dims), width, m = (points[0].rows, points[1].rows), out.shape, panel_width(tile), points[1].count
    row, half = x.shape[2], ROWS // 2
    x_at, z_at = b * x.shape[1] * row, b * z.shape[1] * row
    for k0 in range(0, dims, width):
        for i in range(0, n, ROWS):
            if near[i // ROWS]:
                for r in range(0, ROWS, half):
                    pull(
                        w, ((i + r) * line, line, 1, m), (z, x), (z_at + k0, x_at + (i + r) * row + k0, row),
                        tile, (r * width, width),
                    )  # fmt: skip
            elif i + ROWS <= n and k0 + width <= dims:
                product(w, (i * line, line, 1, m), z, (z_at + k0, row), out, ((b * n + i) * dims + k0, dims))
                continue
            else:
                product(w, (i * line, line, 1, m), z, (z_at + k0, row), tile, (0, width))
            for r in range(min(ROWS, n - i)):
                for c in range(min(width, dims - k0)):
                    out[b, i + r, k0 + c] = tile[r * width + c]


@inner
def _joined(memory, points, first, last):
    """x, and y and z together, of problems from first to before last."""
    x, y, z = points
    middle, m = y.shape[1], y.shape[1] + z.shape[1]
    both = empty(memory, (last - first, m, x.shape[2]), x.dtype)
    for b in range(first, last):
        copy(y[b], part(both[b - first], 0, middle))
        copy(z[b], part(both[b - first], middle, m))
    return part(x, first, last), both


@operation(*PACKING, _fields)
def _small_drift(run, points, bandwidths, limit, weights, places, powers, out):
    """Fills in out (B, N, D); false if `drift` must do it."""
    (_, team, memory), (batch, n, dims), m = run, out.shape, weights.shape[1]
    # some problems at a time, whose points stay in the second-level cache
    step = max(1, _CACHE // (out.itemsize * (n + 2 * m) * max(1, dims))) * team[1]
    begin = memory[1][0]
    for first in range(0, batch, step):
        # in the memory of those before
        memory[1][0] = begin
        last = min(batch, first + step)
        given = _joined(memory, points, first, last)
        own = part(bandwidths[0], first, last), part(bandwidths[1], first, last), bandwidths[2]
        plan, packed = pack(run, given, own, limit, (False, False, True))
        task = packed, plan, places, powers, part(weights, first, last), part(out, first, last)
        done, failed = empty(memory, last - first, np.bool_), np.int64(not plan.finite)
        for b in range(last - first):
            failed += np.int64(plan.unit[b] != 1)
        if failed == 0:
            _fields(run[0][2], team, (last - first,), ((*task, done),))
            for b in range(last - first):
                failed += np.int64(not done[b])
        if failed:
            return False
    return True


def small_drift(points, bandwidths, limit, weights, places, powers, work):
    """The field of points x, y and z, (B, N, D), or None where `drift` must do it."""
    x = points[0]
    out = np.empty(x.shape, x.dtype)
    return out if _small_drift(x.dtype, work, points, bandwidths, limit, weights, places, powers, out) else None
