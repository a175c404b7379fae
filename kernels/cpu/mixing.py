"""A block's squared distances, and the kernels of all bandwidths mixed into what sums and gradients need."""

import numpy as np

from .arrays import fill, part
from .bandwidths import example_plan
from .blocks import Block, Modes, Steps, Values, first_column, left_out
from .calls import Step, call_of_step
from .compiled import inner
from .tile import NO_DIAGONAL, ROWS, distances, product
from .vector import BYTES, at_least, cleared, exp2, exp2m1, fma, lane_of, load, splat, store, total


@inner
def block_distances(block, points, near, known_diagonal, d2, near_tiles):
    """d2 of a block, and which of its tiles have near pairs."""
    width = points[1].columns.shape[3]
    for p in range(0, block.padded // width):
        for r in range(0, block.high, ROWS):
            if p * width < first_column(block.diagonal, r, width):
                continue
            i, j = block.i0 + r, block.j0 + p * width
            near_tiles[r // ROWS, p] = distances(
                points, (block.b, i, j // width), near, i - j if known_diagonal else NO_DIAGONAL,
                d2, r * block.line + p * width, block.line,
            )  # fmt: skip


def _block_example(dtype):
    numbers = np.zeros(1, dtype)
    return Block(*[0] * 9), numbers, numbers.reshape(1, 1, 1), numbers.reshape(1, 1, 1, 1)


def _coefficients_example(dtype):
    block, weight, rows, columns = _block_example(dtype)
    return block, rows, columns, rows, weight


coefficients = call_of_step(_coefficients_example)


def _coefficients(block, g, v, pairs, weight):
    """c of a block: pairs, if there are any, or g_i . v_j."""
    b, panels, columns, width = block.b, *v.shape[1:]
    lanes = width // 2
    if pairs.shape[1]:
        whole = block.wide // lanes * lanes
        for r in range(block.high):
            at, i = r * block.line, block.i0 + r
            for j in range(0, whole, lanes):
                store(weight, at + j, load(pairs, (b * pairs.shape[1] + i) * pairs.shape[2] + block.j0 + j))
            for j in range(whole, block.padded):
                weight[at + j] = pairs[b, i, block.j0 + j] if j < block.wide else 0
    else:
        row = g.shape[2]
        for j in range(0, block.padded, width):
            for r in range(0, block.high, ROWS):
                product(
                    g, ((b * g.shape[1] + block.i0 + r) * row, row, 1, columns),
                    v, ((b * panels + (block.j0 + j) // width) * columns * width, width),
                    weight, (r * block.line + j, block.line),
                )  # fmt: skip


make_coefficients = Step(_coefficients_example, _coefficients)


def _reading_example(dtype):
    block, numbers, rows, _ = _block_example(dtype)
    return block, example_plan(dtype), rows, rows, 0.0, numbers, numbers, np.zeros((1, 1), np.bool_)


read_kernels = call_of_step(_reading_example)


def _read_kernels(block, plan, pairs, kernels, near, weight, minus_k, near_tiles):
    """From a stored K: weight = c w k / sigma^2, and -k; all tiles are flagged if any -k is at most `near`."""
    b, n, m, lanes = block.b, kernels.shape[1], kernels.shape[2], BYTES // weight.itemsize
    real = weight.dtype.type
    inverse = real(1) / plan.weights[b, 0]
    pull = plan.weights_over_sigma2[b, 0]
    zero, inverses, pulls = splat(real(0)), splat(inverse), splat(pull)
    top, greatest = zero, real(0)
    whole = block.wide // lanes * lanes
    for r in range(block.high):
        at, place = r * block.line, (b * n + block.i0 + r) * m + block.j0
        for j in range(0, whole, lanes):
            k = load(kernels, place + j) * inverses
            top = at_least(top, k)
            store(weight, at + j, k * pulls * load(pairs, place + j))
            store(minus_k, at + j, zero - k)
        for j in range(whole, block.padded):
            k = c = real(0)
            if j < block.wide:
                k, c = kernels[b, block.i0 + r, block.j0 + j] * inverse, pairs[b, block.i0 + r, block.j0 + j]
            greatest = max(greatest, k)
            weight[at + j], minus_k[at + j] = k * pull * c, -k
    for lane in range(lanes):
        greatest = max(greatest, lane_of(top, lane))
    fill(near_tiles, -greatest <= near)


reading = Step(_reading_example, _read_kernels)


def _mixing_example(dtype):
    block, numbers, rows, columns = _block_example(dtype)
    modes, steps, values = Modes(*[False] * 4), Steps(*[False] * 7), Values(*[numbers] * 5)
    return block, example_plan(dtype), modes, steps, (rows, columns, rows), values, np.zeros(1)


# the other Values of a block from d2, where c = g_r v_j or in weight; adds moments to parameters; given are g as
# rows, v as columns, and shifts
kernel_values = call_of_step(_mixing_example)


def _make_kernel_values(less_baseline, pulls):
    """`kernel_values` without moments and shifts, compiled for each pair of flags: it is the inmost loop."""

    def kernel_values_for(block, plan, modes, steps, given, values, parameters):
        skip_diagonal, (g, v, _) = modes.skip_diagonal, given
        b, line, scale, squarings, baseline = block.b, block.line, plan.scale, plan.squarings, plan.baseline
        weights, weights_over_sigma2 = plan.weights, plan.weights_over_sigma2
        d2, weight, totals, row_sums = values.d2, values.weight, values.totals, values.row_sums
        keep, add, outer = steps.keep_totals, steps.value, steps.outer
        count = scale.shape[1]
        lanes = BYTES // d2.itemsize
        zero = splat(d2.dtype.type(0))
        v_at = b * v.shape[1] * v.shape[3] + block.j0
        c0, w0, p0 = splat(-scale[b, 0]), splat(weights[b, 0]), splat(weights_over_sigma2[b, 0])
        for r in range(block.high):
            row_total = zero
            gr = splat(g[b, block.i0 + r, 0]) if outer else zero
            first, stop = left_out(block, skip_diagonal, r)
            # two registers at a time share what a bandwidth costs besides arithmetic
            for j in range(first_column(block.diagonal, r, 2 * lanes), block.padded, 2 * lanes):
                at, other = r * line + j, r * line + j + lanes
                q, q_ = load(d2, at), load(d2, other)
                t, t_ = q * c0, q_ * c0
                k, k_ = exp2(t), exp2(t_)
                km1, km1_ = k, k_
                if less_baseline:
                    km1, km1_ = exp2m1(t), exp2m1(t_)
                mixed, mixed_ = k * w0, k_ * w0
                if less_baseline and baseline[b, 0]:
                    mixed, mixed_ = km1 * w0, km1_ * w0
                over_sigma2, over_sigma2_ = k * p0, k_ * p0
                for s in range(1, count):
                    if squarings[b, s] == 0:
                        c = splat(-scale[b, s])
                        t, t_ = q * c, q_ * c
                        k, k_ = exp2(t), exp2(t_)
                        if less_baseline:
                            km1, km1_ = exp2m1(t), exp2m1(t_)
                    else:
                        # k^2 - 1 = (k - 1) k + (k - 1)
                        if less_baseline:
                            km1, km1_ = fma(km1, k, km1), fma(km1_, k_, km1_)
                        k, k_ = k * k, k_ * k_
                        if squarings[b, s] == 2:
                            if less_baseline:
                                km1, km1_ = fma(km1, k, km1), fma(km1_, k_, km1_)
                            k, k_ = k * k, k_ * k_
                    w = splat(weights[b, s])
                    if less_baseline and baseline[b, s]:
                        mixed, mixed_ = fma(w, km1, mixed), fma(w, km1_, mixed_)
                    else:
                        mixed, mixed_ = fma(w, k, mixed), fma(w, k_, mixed_)
                    if pulls:
                        p = splat(weights_over_sigma2[b, s])
                        over_sigma2, over_sigma2_ = fma(p, k, over_sigma2), fma(p, k_, over_sigma2_)
                if less_baseline and first < j + 2 * lanes and j < stop:
                    mixed = cleared(mixed, first - j, stop - j)
                    mixed_ = cleared(mixed_, first - j - lanes, stop - j - lanes)
                if keep:
                    store(totals, at, mixed)
                    store(totals, other, mixed_)
                elif add:
                    row_total = fma(mixed, load(v, v_at + j), row_total)
                    row_total = fma(mixed_, load(v, v_at + j + lanes), row_total)
                if pulls:
                    c, c_ = load(weight, at), load(weight, other)
                    if outer:
                        c, c_ = gr * load(v, v_at + j), gr * load(v, v_at + j + lanes)
                    store(weight, at, over_sigma2 * c)
                    store(weight, other, over_sigma2_ * c_)
            row_sums[r] = total(row_total)

    return Step(_mixing_example, kernel_values_for)


def _values_by_bandwidth(block, plan, modes, steps, given, values, parameters):
    """`kernel_values` without a sum over bandwidths: row_sums = sum_j w_s (k_sij - baseline_s) v_j of each."""
    skip_diagonal, v = modes.skip_diagonal, given[1]
    b, line, scale, squarings, baseline = block.b, block.line, plan.scale, plan.squarings, plan.baseline
    d2, row_sums, sums = values.d2, values.row_sums, values.moments
    count = scale.shape[1]
    lanes = BYTES // d2.itemsize
    zero = splat(d2.dtype.type(0))
    v_at = b * v.shape[1] * v.shape[3] + block.j0
    for r in range(block.high):
        fill(part(sums, 0, count * lanes), 0)
        first, stop = left_out(block, skip_diagonal, r)
        for j in range(first_column(block.diagonal, r, 2 * lanes), block.padded, lanes):
            q, vj = load(d2, r * line + j), load(v, v_at + j)
            if first < j + lanes and j < stop:
                vj = cleared(vj, first - j, stop - j)
            k = km1 = zero
            for s in range(count):
                if squarings[b, s] == 0:
                    t = zero - q * splat(scale[b, s])
                    k, km1 = exp2(t), exp2m1(t)
                else:
                    # k^2 - 1 = (k - 1) k + (k - 1)
                    km1 = fma(km1, k, km1)
                    k = k * k
                    if squarings[b, s] == 2:
                        km1 = fma(km1, k, km1)
                        k = k * k
                store(sums, s * lanes, fma(km1 if baseline[b, s] else k, vj, load(sums, s * lanes)))
        for s in range(count):
            row_sums[r * count + s] = plan.weights[b, s] * total(load(sums, s * lanes))


@inner
def _headroom(weights, weights_over_sigma2):
    """log2 of the greatest sum of weights, rounded up, or 0."""
    total = other_total = 0.0
    for s in range(len(weights)):
        total += abs(np.float64(weights[s]))
        other_total += abs(np.float64(weights_over_sigma2[s]))
    return np.ceil(np.log2(max(1.0, total, other_total)))


def _values_general(block, plan, modes, steps, given, values, parameters):
    """`kernel_values` with shifts, or with the moments of the bandwidths."""
    _, v, shift = given
    b, line, scale, squarings, baseline = block.b, block.line, plan.scale, plan.squarings, plan.baseline
    less_baseline, times = modes.less_baseline, 2.0 if modes.symmetric else 1.0
    weights, weights_over_sigma2 = plan.weights, plan.weights_over_sigma2
    d2, weight, totals, row_sums, moments = values
    keep, want_value, want_pull, want_parameters = steps.keep_totals, steps.value, steps.pull, steps.parameters
    real = d2.dtype.type
    count = scale.shape[1]
    lanes = BYTES // d2.itemsize
    limit = 127 if d2.itemsize == 4 else 1023
    # so that no weighted sum leaves the range: padding, and points of weight 0, are multiplied by 0
    most = splat(real(max(0.0, limit - _headroom(weights[b], weights_over_sigma2[b]))))
    least = splat(real(-limit))
    zero = splat(real(0))
    v_at = b * v.shape[1] * v.shape[3] + block.j0
    shifted = shift.shape[1] > 0
    for r in range(block.high):
        if r % ROWS == 0:
            fill(moments, 0)
        row_total = zero
        first, stop = left_out(block, modes.skip_diagonal, r)
        for j in range(first_column(block.diagonal, r, 2 * lanes), block.padded, lanes):
            at = r * line + j
            q = load(d2, at)
            c = zero
            if want_pull or want_parameters:
                c = load(weight, at)
            mixed = k_over_sigma2 = k = km1 = zero
            for s in range(count):
                scaled = zero - q * splat(scale[b, s])
                if shifted:
                    t = scaled - splat(shift[b, block.i0 + r, s])
                    t = zero - at_least(zero - t, zero - most)
                    k = exp2(t)
                    km1 = exp2m1(t) if less_baseline else k
                elif squarings[b, s] == 0:
                    k = exp2(scaled)
                    km1 = exp2m1(scaled) if less_baseline else k
                else:
                    old = k
                    k = k * k
                    km1 = fma(km1, old, km1) if less_baseline else k
                    if squarings[b, s] == 2:
                        old = k
                        k = k * k
                        km1 = fma(km1, old, km1) if less_baseline else k
                summed = km1 if baseline[b, s] else k
                mixed = fma(splat(weights[b, s]), summed, mixed)
                k_over_sigma2 = fma(splat(weights_over_sigma2[b, s]), k, k_over_sigma2)
                if want_parameters:
                    at_s = 2 * s * lanes
                    store(moments, at_s, fma(c, summed, load(moments, at_s)))
                    # clamped, so that an infinite distance times its kernel is 0
                    store(moments, at_s + lanes, fma(c * k, at_least(scaled, least), load(moments, at_s + lanes)))
            if less_baseline and first < j + lanes and j < stop:
                mixed = cleared(mixed, first - j, stop - j)
            if keep:
                store(totals, at, mixed)
            elif want_value:
                row_total = fma(mixed, load(v, v_at + j), row_total)
            if want_pull:
                store(weight, at, k_over_sigma2 * c)
        row_sums[r] = total(row_total)
        if want_parameters and (r % ROWS == ROWS - 1 or r == block.high - 1):
            for s in range(2 * count):
                parameters[s] += times * np.float64(total(load(moments, s * lanes)))


_general = Step(_mixing_example, _values_general)
# by (general, less_baseline, pulls)
MIXING = {(True, less_baseline, pulls): _general for less_baseline in (False, True) for pulls in (False, True)} | {
    (False, less_baseline, pulls): _make_kernel_values(less_baseline, pulls)
    for less_baseline in (False, True)
    for pulls in (False, True)
}
BY_BANDWIDTH = Step(_mixing_example, _values_by_bandwidth)


@inner
def add_diagonal(chunk, plan, rows, modes, steps, value, parameters):
    """The pairs (i, i) of a symmetric sweep: the distance of a point to itself is 0, or NaN.

    chunk is (b, number, start, stop), rows are those of x, g and v.
    """
    (b, number, start, stop), (x, g, v) = chunk, rows
    real = x.dtype.type
    for i in range(start, stop):
        nothing = real(0)
        if not plan.finite:
            for k in range(x.shape[2]):
                nothing += real(0) * x[b, i, k]
        for s in range(plan.scale.shape[1]):
            kernel = nothing if modes.less_baseline and plan.baseline[b, s] else nothing + real(1)
            if steps.value:
                value[b, i, s if modes.by_bandwidth else 0] += np.float64(kernel * plan.weights[b, s] * v[b, i, 0])
            if steps.parameters:
                parameters[b, number, 2 * s] += np.float64(kernel * g[b, i, 0] * v[b, i, 0])
