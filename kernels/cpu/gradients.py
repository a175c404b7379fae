"""What a block adds to values and gradients: products of tiles of its totals or weights with v, g or points."""

import numpy as np

from .blocks import first_column, last_row
from .compiled import borrows
from .points import panel_width
from .tile import RESTART_EVERY, ROWS, add_product, add_pull, product, pull
from .vector import add_to, fma, load, splat, store, total

# up to here columns of v are taken one by one; more are a product
FEW_VALUES = 4


@borrows
def add_values(block, totals, v, twice, tile, value):
    """value += total @ v"""
    b, panels, columns, width = block.b, *v.columns.shape[1:]
    lanes = width // 2
    if columns <= FEW_VALUES:
        for r in range(block.high):
            for e in range(columns):
                sum_e = splat(totals.dtype.type(0))
                for j in range(first_column(block.diagonal, r, width), block.padded, lanes):
                    p = (block.j0 + j) // width
                    ve = load(v.columns, ((b * panels + p) * columns + e) * width + j % width)
                    sum_e = fma(load(totals, r * block.line + j), ve, sum_e)
                value[b, block.i0 + r, e] += np.float64(twice * total(sum_e))
        return
    row = v.rows.shape[2]
    begin = (b * v.rows.shape[1] + block.j0) * row
    for e0 in range(0, columns, width):
        for r in range(0, block.high, ROWS):
            _add_product(
                totals, (r * block.line, block.line, 1, block.wide), v.rows, (begin + e0, row),
                tile, value[b], (block.i0 + r, block.high - r, e0),
            )  # fmt: skip


@borrows
def add_column_values(block, totals, g, columns, tile, out):
    """out += total.T @ g"""
    b, width, lanes = block.b, panel_width(totals), panel_width(totals) // 2
    if columns <= FEW_VALUES:
        for e in range(columns):
            for j in range(0, block.padded, lanes):
                sum_e = splat(totals.dtype.type(0))
                stop = last_row(block.diagonal, j, width, block.high)
                for r0 in range(0, stop, RESTART_EVERY):
                    part = splat(totals.dtype.type(0))
                    for r in range(r0, min(r0 + RESTART_EVERY, stop)):
                        part = fma(load(totals, r * block.line + j), splat(g[b, block.i0 + r, e]), part)
                    sum_e = sum_e + part
                store(tile, 0, sum_e)
                for q in range(min(lanes, block.wide - j)):
                    out[block.j0 + j + q, e] += np.float64(tile[q])
        return
    row = g.shape[2]
    begin = (b * g.shape[1] + block.i0) * row
    for e0 in range(0, columns, width):
        for j in range(0, block.wide, ROWS):
            _add_product(
                totals, (j, 1, block.line, block.high), g, (begin + e0, row),
                tile, out, (block.j0 + j, block.wide - j, e0),
            )  # fmt: skip


@borrows
def pull_near(block, points, near, wants, d2, weight, near_tiles, pulls):
    """Near pairs pull one by one, by their difference: in a product it would cancel. Their weight is then 0."""
    (x, y), (dx, dy) = points, pulls
    b, width, dims = block.b, panel_width(weight), dy.shape[3]
    # where y is x: columns before this one are rows of the same block
    rows_stop = block.diagonal + block.high if block.diagonal >= 0 else 0
    for p in range(block.padded // width):
        for r0 in range(0, block.high, ROWS):
            if p * width < first_column(block.diagonal, r0, width) or not near_tiles[r0 // ROWS, p]:
                continue
            for r in range(r0, min(r0 + ROWS, block.high)):
                for q in range(p * width, min((p + 1) * width, block.wide)):
                    at = r * block.line + q
                    if not (d2[at] <= near and weight[at] != 0):
                        continue
                    i, j = block.i0 + r, block.j0 + q
                    for k in range(dims):
                        part = np.float64(weight[at]) * (np.float64(y[b, j, k]) - np.float64(x[b, i, k]))
                        if wants.dx:
                            dx[b, i, k] += part
                        if q < rows_stop:
                            dx[b, j, k] -= part
                        elif wants.dy:
                            dy[b, block.chunk, j, k] -= part
                    weight[at] = 0


@borrows
def pull_rows(block, points, differences, weight, tile, dx, row_weights):
    """dx_i += sum_j weight_ij (y_j - x_i); or without x_i, for which the sums of weights are kept."""
    x, y = points
    b, row, line, width, dims = block.b, x.shape[2], block.line, panel_width(x), dx.shape[1]
    first, lanes = max(block.diagonal, 0), width // 2
    x_at, y_at = (b * x.shape[1] + block.i0) * row, (b * y.shape[1] + block.j0 + first) * row
    for k0 in range(0, dims, width):
        if differences:
            for r in range(0, block.high, ROWS // 2):
                _add_pull(
                    weight, (r * line + first, line, 1, block.wide - first),
                    (y, x), (y_at + k0, x_at + r * row + k0, row),
                    tile, dx, (block.i0 + r, block.high - r, k0),
                )  # fmt: skip
        else:
            for r in range(0, block.high, ROWS):
                _add_product(
                    weight, (r * line + first, line, 1, block.wide - first), y, (y_at + k0, row),
                    tile, dx, (block.i0 + r, block.high - r, k0),
                )  # fmt: skip
    if not differences:
        for r in range(block.high):
            for j in range(block.wide, block.padded):
                weight[r * line + j] = 0
            sum_r = splat(weight.dtype.type(0))
            for j in range(first, block.padded, lanes):
                sum_r = sum_r + load(weight, r * line + j)
            row_weights[block.i0 + r] += np.float64(total(sum_r))


@borrows
def pull_columns(block, points, differences, weight, tile, dy, column_weights):
    """dy_j -= sum_i weight_ij (y_j - x_i), as `pull_rows`; the block's own rows have been pulled there."""
    x, y = points
    b, row, line, width, dims = block.b, x.shape[2], block.line, panel_width(x), dy.shape[1]
    first, lanes = block.diagonal + block.high if block.diagonal >= 0 else 0, width // 2
    x_at, y_at = (b * x.shape[1] + block.i0) * row, (b * y.shape[1] + block.j0) * row
    for k0 in range(0, dims, width):
        if differences:
            for j in range(first, block.wide, ROWS // 2):
                _add_pull(
                    weight, (j, 1, line, block.high), (x, y), (x_at + k0, y_at + j * row + k0, row),
                    tile, dy, (block.j0 + j, block.wide - j, k0),
                )  # fmt: skip
        else:
            for j in range(first, block.wide, ROWS):
                _add_product(
                    weight, (j, 1, line, block.high), x, (x_at + k0, row),
                    tile, dy, (block.j0 + j, block.wide - j, k0),
                )  # fmt: skip
    # rows that are not a full block are the last, and pull no more columns
    if not differences and first < block.wide:
        for j in range(first, block.padded, lanes):
            sum_j = splat(weight.dtype.type(0))
            for r0 in range(0, block.high, RESTART_EVERY):
                part = splat(weight.dtype.type(0))
                for r in range(r0, min(r0 + RESTART_EVERY, block.high)):
                    part = part + load(weight, r * line + j)
                sum_j = sum_j + part
            add_to(column_weights, block.j0 + j, sum_j)


@borrows
def subtract_self(points, b, first, stop, weights, out):
    """out_i -= weights_i points_i: of pulls, what the product with the other points lacks."""
    dims = out.shape[1]
    for i in range(first, stop):
        point, row, times = points[b, i], out[i], weights[i]
        for k in range(dims):
            row[k] -= times * np.float64(point[k])


@borrows
def _add_product(a, a_place, b, b_place, tile, out, at):
    """out[first + r, k0 + k] += sum_j a[r, j] b[j, k] for a tile, as far as out has rows and coordinates.

    at is (first, how many rows of out there are from it on, k0); places are those of tile.py.
    """
    (first, count, k0), dims, width = at, out.shape[1], panel_width(tile)
    if count >= ROWS and k0 + width <= dims:
        add_product(a, a_place, b, b_place, out, (first * dims + k0, dims))
    else:
        product(a, a_place, b, b_place, tile, (0, width))
        _add_tile(tile, out, first, min(ROWS, count), k0)


@borrows
def _add_pull(a, a_place, points, points_place, tile, out, at):
    """out[first + r, k0 + k] += sum_j a[r, j] (b[j, k] - x[r, k]) for half a tile, as `_add_product`."""
    (first, count, k0), dims, width = at, out.shape[1], panel_width(tile)
    if count >= ROWS // 2 and k0 + width <= dims:
        add_pull(a, a_place, points, points_place, out, (first * dims + k0, dims))
    else:
        pull(a, a_place, points, points_place, tile, (0, width))
        _add_tile(tile, out, first, min(ROWS // 2, count), k0)


@borrows
def _add_tile(tile, out, first, count, k0):
    """out[first + r, k0:] += tile[r], as far as out has coordinates."""
    width, dims = panel_width(tile), out.shape[1]
    lanes = width // 2
    whole = min(width, dims - k0) // lanes * lanes
    for r in range(count):
        at = (first + r) * dims + k0
        for k in range(0, whole, lanes):
            add_to(out, at + k, load(tile, r * width + k))
        for k in range(whole, min(width, dims - k0)):
            out[first + r, k0 + k] += np.float64(tile[r * width + k])
