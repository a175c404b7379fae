"""The register tile: ROWS rows by VECTORS registers of columns, whose sums over k stay in registers.

              columns of B: VECTORS registers at k
              +----------------+----------------+
    A[r, k] ->| acc[r][0]      | acc[r][1]      |   for k in range(depth):
     one      |                |                |       b = B[k, :]
     scalar   |  step(a, b, acc) for each r, v  |       for r in rows: acc[r] = step(A[r, k], b, acc[r])
     a row    |                |                |
              +----------------+----------------+   then finish(acc), and the tile is stored

Everything quadratic in this library is this loop with another step: a b + acc is a product of matrices (distances by
|x|^2 + |y|^2 - 2 x.y, weights g.v, gradient moments K @ Y); acc + (b - a)^2 is a distance without cancellation;
acc + a (b - x) pulls rows towards columns without cancellation. A step is one or two instructions for a whole
register of pairs, and 8 x 2 of them are independent: enough to hide the latency of two units.

Sums over k are restarted every SPANS[0] terms and added to a running total, so that rounding does not grow with depth
even where all terms are rounded the same way; of distances, the total is restarted every SPANS[1] terms. The order is
the same for every tile and every row, so an entry's bits do not depend on its place.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .vector import (
    LANES,
    REAL,
    REGISTERS,
    address,
    constant,
    emit_exp2,
    emit_fma,
    emit_load,
    emit_splat,
    emit_store,
)

# with 16 registers 6 x 2 sums leave four for a row of B, a scalar of A and a difference
ROWS = 8 if REGISTERS == 32 else 6
VECTORS = 2
WIDTH = {dtype: VECTORS * lanes for dtype, lanes in LANES.items()}
# coordinates up to which `gaussians` takes differences
DEPTH = 64
SPANS = (16, 256)

_INDEX = ir.IntType(64)
# for `distances`: no entry of the tile is that of a point and itself, as far as the caller knows
NOWHERE = -(1 << 30)
_SCALAR = types.intp


def _emit_sums(builder, dtype, rows, a, a_row, a_step, b, b_step, depth, step, finish, spans=SPANS):
    """Calls finish({(r, v): sum_k step(a[r a_row + k a_step], b[k b_step + v lanes:])}), which emits the rest.

    It is called twice: for sums of one block, and of several. Were the two joined, their registers would not suffice.
    """
    lanes = LANES[dtype]
    vector = ir.VectorType(REAL[dtype], lanes)
    places = [(r, v) for r in range(rows) for v in range(VECTORS)]
    starts = [builder.gep(a, [builder.mul(a_row, _INDEX(r))]) for r in range(rows)]

    def slots():
        # LLVM turns these places on the stack into registers
        return {place: cgutils.alloca_once(builder, vector) for place in places}

    def fill(slots, value):
        for slot in slots.values():
            builder.store(constant(vector, value), slot)

    def add(acc, total):
        for place in places:
            builder.store(builder.fadd(builder.load(total[place]), builder.load(acc[place])), total[place])

    def block(acc, first, stop):
        fill(acc, 0.0)
        with cgutils.for_range_slice(builder, first, stop, _INDEX(1), _INDEX) as (k, _):
            row = builder.gep(b, [builder.mul(k, b_step)])
            bs = [emit_load(builder, builder.gep(row, [_INDEX(v * lanes)]), dtype) for v in range(VECTORS)]
            at = builder.mul(k, a_step)
            for r in range(rows):
                scalar = emit_splat(builder, builder.load(builder.gep(starts[r], [at])), lanes)
                for v in range(VECTORS):
                    builder.store(step(scalar, bs[v], builder.load(acc[r, v]), (r, v)), acc[r, v])

    span = _INDEX(spans[0])
    with builder.if_else(builder.icmp_signed("<=", depth, span)) as (one, several):
        with one:
            acc = slots()
            block(acc, _INDEX(0), depth)
            finish({place: builder.load(acc[place]) for place in places})
        with several:
            acc, sums = slots(), slots()
            fill(sums, 0.0)
            if len(spans) > 1:
                # totals do not fit in registers: they are touched only where there are several
                totals, deep = slots(), builder.icmp_signed(">", depth, _INDEX(spans[1]))
                with builder.if_then(deep, likely=False):
                    fill(totals, 0.0)
            last = builder.mul(builder.sdiv(builder.sub(depth, _INDEX(1)), span), span)
            with cgutils.for_range_slice(builder, _INDEX(0), last, span, _INDEX) as (first, _):
                stop = builder.add(first, span)
                block(acc, first, stop)
                add(acc, sums)
                if len(spans) > 1:
                    whole = builder.icmp_signed("==", builder.srem(stop, _INDEX(spans[1])), _INDEX(0))
                    with builder.if_then(whole, likely=False):
                        add(sums, totals)
                        fill(sums, 0.0)
            block(acc, last, depth)
            add(sums, acc)
            if len(spans) > 1:
                with builder.if_then(deep, likely=False):
                    add(totals, acc)
            finish({place: builder.load(acc[place]) for place in places})


def _emit_store_tile(builder, dtype, tile, out, out_row):
    for place, value in tile.items():
        emit_store(builder, value, _place(builder, dtype, out, out_row, place))


def _place(builder, dtype, base, row, place):
    r, v = place
    return builder.gep(base, [builder.add(builder.mul(row, _INDEX(r)), _INDEX(v * LANES[dtype]))])


@intrinsic
def distances(
    typing_context, x, x_at, x_row, y, y_at, depth, nx, nx_at, ny, ny_at, slope, offset, own, out, at, out_row
):  # fmt: skip
    """out[r, j] = |x_r - y_j|^2 for one tile; whether any of them was near.

    x holds points as rows, x_row apart; y holds WIDTH points as columns. nx and ny are their squared norms, summed
    in the order of the tile, so that equal points have distance 0 exactly; their second halves are e_x and e_y. The
    sum of both norms less twice the product is right to e_x + e_y: entries that come out at most
    slope (e_x + e_y) + offset, which are those whom that would harm, are replaced by sums of squared differences. An
    infinite offset means all.

    The caller knows entries [r, own + r], of a point and itself, and may find anything there: they are not near.
    """
    dtype = x.dtype

    def generate(context, builder, signature, arguments):
        x_, x_at, x_row, y_, y_at, depth, nx_, nx_at, ny_, ny_at, slope, offset, own, out_, at, out_row = arguments
        x_ = address(context, builder, x, x_, x_at)
        y_ = address(context, builder, y, y_, y_at)
        nx_, ex_ = _norms(context, builder, nx, nx_, nx_at)
        ny_, ey_ = _norms(context, builder, ny, ny_, ny_at)
        out_ = address(context, builder, out, out_, at)
        lanes = LANES[dtype]
        bits = ir.IntType(lanes)
        vector = ir.VectorType(REAL[dtype], lanes)
        zero, minus_two = constant(vector, 0.0), constant(vector, -2.0)
        found = cgutils.alloca_once_value(builder, ir.IntType(1)(0))

        def sums(step, finish):
            columns = _INDEX(WIDTH[dtype])
            _emit_sums(builder, dtype, ROWS, x_, x_row, _INDEX(1), y_, columns, depth, step, finish)

        def slot(place):
            return _place(builder, dtype, out_, out_row, place)

        def norms():
            """[r, v] of nx + ny, and of the greatest distance that is near"""
            slopes, offsets = emit_splat(builder, slope, lanes), emit_splat(builder, offset, lanes)
            ys = [emit_load(builder, builder.gep(ny_, [_INDEX(v * lanes)]), dtype) for v in range(VECTORS)]
            errors = [emit_load(builder, builder.gep(ey_, [_INDEX(v * lanes)]), dtype) for v in range(VECTORS)]
            limits = [emit_fma(builder, slopes, error, offsets) for error in errors]
            for r in range(ROWS):
                own = emit_splat(builder, builder.load(builder.gep(nx_, [_INDEX(r)])), lanes)
                own_error = emit_splat(builder, builder.load(builder.gep(ex_, [_INDEX(r)])), lanes)
                own_limit = builder.fmul(slopes, own_error)
                for v in range(VECTORS):
                    yield (r, v), builder.fadd(own, ys[v]), builder.fadd(own_limit, limits[v])

        def finish_product(tile):
            some = constant(ir.VectorType(ir.IntType(1), lanes), 0)
            for place, both, limit in norms():
                value = emit_fma(builder, minus_two, tile[place], both)
                value = builder.select(builder.fcmp_ordered("<", value, zero), zero, value)
                some = builder.or_(some, builder.fcmp_ordered("<=", value, limit))
                emit_store(builder, value, slot(place))
            builder.store(builder.icmp_unsigned("!=", builder.bitcast(some, bits), bits(0)), found)

        def look_again():
            """What was found, but for the points themselves."""
            some = constant(ir.VectorType(ir.IntType(1), lanes), 0)
            places = ir.VectorType(_INDEX, lanes)
            for (r, v), _, limit in norms():
                column = emit_splat(builder, builder.add(own, _INDEX(r - v * lanes)), lanes)
                others = builder.icmp_signed("!=", column, ir.Constant(places, list(range(lanes))))
                near = builder.fcmp_ordered("<=", emit_load(builder, slot((r, v)), dtype), limit)
                some = builder.or_(some, builder.and_(others, near))
            builder.store(builder.icmp_unsigned("!=", builder.bitcast(some, bits), bits(0)), found)

        def finish_near(tile):
            for place, _, limit in norms():
                rough = emit_load(builder, slot(place), dtype)
                near = builder.fcmp_ordered("<=", rough, limit)
                emit_store(builder, builder.select(near, tile[place], rough), slot(place))

        all_near = builder.fcmp_ordered("==", offset, REAL[dtype](float("inf")))
        builder.store(all_near, found)
        with builder.if_else(all_near) as (differences, product):
            with differences:
                sums(
                    _square_of_difference(builder), lambda tile: _emit_store_tile(builder, dtype, tile, out_, out_row)
                )
            with product:
                sums(_multiply_add(builder), finish_product)
                with builder.if_then(builder.load(found), likely=False):
                    here = builder.icmp_signed(">", own, _INDEX(-ROWS))
                    with builder.if_then(here, likely=False):
                        look_again()
                with builder.if_then(builder.load(found), likely=False):
                    sums(_square_of_difference(builder), finish_near)
        return builder.load(found)

    i = _SCALAR
    return types.boolean(x, i, i, y, i, i, nx, i, ny, i, dtype, dtype, i, out, i, i), generate


@intrinsic
def gaussians(
    typing_context,
    x, x_at, x_row, y, y_at, depth, nx, nx_at, ny, ny_at, slope, offset, scale, weight, out, at, out_row,
):  # fmt: skip
    """out[r, j] = weight 2**(-scale |x_r - y_j|^2) for one tile, unless a pair is near; whether any is.

    See `_emit_kernels`.
    """
    dtype = x.dtype

    def generate(context, builder, signature, arguments):
        *tile, scale, weight, out_, at, out_row = arguments
        out_ = address(context, builder, out, out_, at)
        weights = emit_splat(builder, weight, LANES[dtype])

        def finish_row(r, kernels):
            for v, kernel in enumerate(kernels):
                place = _place(builder, dtype, out_, out_row, (r, v))
                emit_store(builder, builder.fmul(kernel, weights), place)

        return _emit_kernels(context, builder, (x, y, nx, ny), tile, scale, finish_row)

    i = _SCALAR
    return types.boolean(x, i, i, y, i, i, nx, i, ny, i, dtype, dtype, dtype, dtype, out, i, i), generate


@intrinsic
def gaussian_sums(
    typing_context,
    x, x_at, x_row, y, y_at, depth, nx, nx_at, ny, ny_at, slope, offset, scale, v, v_at, sums,
):  # fmt: skip
    """sums[r, :] += 2**(-scale |x_r - y_j|^2) v_j in lanes for one tile, unless a pair is near; whether any is.

    See `_emit_kernels`.
    """
    dtype = x.dtype

    def generate(context, builder, signature, arguments):
        *tile, scale, v_, v_at, sums_ = arguments
        v_ = address(context, builder, v, v_, v_at)
        sums_ = address(context, builder, sums, sums_, _INDEX(0))

        def finish_row(r, kernels):
            place = builder.gep(sums_, [_INDEX(r * LANES[dtype])])
            total = emit_load(builder, place, dtype)
            for k, kernel in enumerate(kernels):
                value = emit_load(builder, builder.gep(v_, [_INDEX(k * LANES[dtype])]), dtype)
                total = emit_fma(builder, kernel, value, total)
            emit_store(builder, total, place)

        return _emit_kernels(context, builder, (x, y, nx, ny), tile, scale, finish_row)

    i = _SCALAR
    return types.boolean(x, i, i, y, i, i, nx, i, ny, i, dtype, dtype, dtype, v, i, sums), generate


def _emit_kernels(context, builder, arrays, tile, scale, finish_row):
    """finish_row(r, registers of 2**(-scale |x_r - y_j|^2)) for each row, unless a pair is near; whether any is.

    By the product; or, with an infinite offset, by differences, for which callers have at most DEPTH coordinates. The
    bits are those of exp2 after `distances`, which is for the tiles that have a near pair.
    """
    x, y, nx, ny = arrays
    x_, x_at, x_row, y_, y_at, depth, nx_, nx_at, ny_, ny_at, slope, offset = tile
    dtype = x.dtype
    x_ = address(context, builder, x, x_, x_at)
    y_ = address(context, builder, y, y_, y_at)
    nx_, ex_ = _norms(context, builder, nx, nx_, nx_at)
    ny_, ey_ = _norms(context, builder, ny, ny_, ny_at)
    lanes = LANES[dtype]
    bits = ir.IntType(lanes)
    vector = ir.VectorType(REAL[dtype], lanes)
    zero, minus_two = constant(vector, 0.0), constant(vector, -2.0)
    found = cgutils.alloca_once_value(builder, ir.IntType(1)(0))
    scales = builder.fsub(zero, emit_splat(builder, scale, lanes))

    def finish(tile):
        for r in range(ROWS):
            squared = (tile[r, v] for v in range(VECTORS))
            finish_row(r, [emit_exp2(builder, builder.fmul(value, scales), dtype) for value in squared])

    def finish_product(tile):
        slopes, offsets = emit_splat(builder, slope, lanes), emit_splat(builder, offset, lanes)
        ys = [emit_load(builder, builder.gep(ny_, [_INDEX(v * lanes)]), dtype) for v in range(VECTORS)]
        errors = [emit_load(builder, builder.gep(ey_, [_INDEX(v * lanes)]), dtype) for v in range(VECTORS)]
        # of each lane's columns the one with the widest neighbourhood
        limits = emit_fma(builder, slopes, _chosen(builder, ">", errors), offsets)
        some = constant(ir.VectorType(ir.IntType(1), lanes), 0)
        squared = {}
        for r in range(ROWS):
            own = emit_splat(builder, builder.load(builder.gep(nx_, [_INDEX(r)])), lanes)
            for v in range(VECTORS):
                value = emit_fma(builder, minus_two, tile[r, v], builder.fadd(own, ys[v]))
                squared[r, v] = builder.select(builder.fcmp_ordered("<", value, zero), zero, value)
            least = _chosen(builder, "<", [squared[r, v] for v in range(VECTORS)])
            own_error = emit_splat(builder, builder.load(builder.gep(ex_, [_INDEX(r)])), lanes)
            # a NaN counts as near: what it hides is looked at again
            near = builder.fcmp_unordered("<=", least, emit_fma(builder, slopes, own_error, limits))
            some = builder.or_(some, near)
        near = builder.icmp_unsigned("!=", builder.bitcast(some, bits), bits(0))
        builder.store(near, found)
        with builder.if_then(builder.not_(near), likely=True):
            finish(squared)

    def sums(step, finish):
        columns = _INDEX(WIDTH[dtype])
        _emit_sums(builder, dtype, ROWS, x_, x_row, _INDEX(1), y_, columns, depth, step, finish)

    with builder.if_else(builder.fcmp_ordered("==", offset, REAL[dtype](float("inf")))) as (differences, product):
        with differences:
            sums(_square_of_difference(builder), finish)
        with product:
            sums(_multiply_add(builder), finish_product)
    return builder.load(found)


def _norms(context, builder, array_type, array, index):
    """Pointers to element `index` of an array without gaps, and of its second half."""
    held = context.make_array(array_type)(context, builder, array)
    first = builder.gep(held.data, [index])
    return first, builder.gep(first, [builder.lshr(held.nitems, _INDEX(1))])


def _chosen(builder, relation, values):
    """Of each lane the greatest (">") or the least ("<")."""
    first, *others = values
    for other in others:
        first = builder.select(builder.fcmp_ordered(relation, other, first), other, first)
    return first


def _multiply_add(builder):
    return lambda a, b, acc, _: emit_fma(builder, a, b, acc)


def _square_of_difference(builder):
    def step(a, b, acc, _):
        difference = builder.fsub(b, a)
        return emit_fma(builder, difference, difference, acc)

    return step


def _emit_add_tile(builder, dtype, tile, out, out_row):
    """out += tile, out float64."""
    wide = ir.VectorType(ir.DoubleType(), LANES[dtype])
    for place, value in tile.items():
        pointer = builder.bitcast(_place(builder, dtype, out, out_row, place), wide.as_pointer())
        old = builder.load(pointer)
        old.align = 8
        value = value if dtype == types.float64 else builder.fpext(value, wide)
        builder.store(builder.fadd(old, value), pointer, align=8)


def _product(emit_finish):
    """product and add_product: sum_k a[r, k] b[k, :] for one tile, ROWS by WIDTH, to emit_finish."""

    def intrinsic_(typing_context, a, a_at, a_row, a_step, b, b_at, b_row, depth, out, at, out_row):
        dtype = a.dtype

        def generate(context, builder, signature, arguments):
            a_, a_at, a_row, a_step, b_, b_at, b_row, depth, out_, at, out_row = arguments
            a_ = address(context, builder, a, a_, a_at)
            b_ = address(context, builder, b, b_, b_at)
            out_ = address(context, builder, out, out_, at)

            def finish(tile):
                emit_finish(builder, dtype, tile, out_, out_row)

            step = _multiply_add(builder)
            _emit_sums(builder, dtype, ROWS, a_, a_row, a_step, b_, b_row, depth, step, finish, SPANS[:1])
            return context.get_dummy_value()

        i = _SCALAR
        return types.void(a, i, i, i, b, i, i, i, out, i, i), generate

    return intrinsic_


def _pull(emit_finish):
    """pull and add_pull: sum_k a[r, k] (b[k, :] - x[r, :]) for half a tile, since x needs registers too."""

    def intrinsic_(typing_context, a, a_at, a_row, a_step, b, b_at, b_row, depth, x, x_at, x_row, out, at, out_row):
        dtype = a.dtype

        def generate(context, builder, signature, arguments):
            a_, a_at, a_row, a_step, b_, b_at, b_row, depth, x_, x_at, x_row, out_, at, out_row = arguments
            a_ = address(context, builder, a, a_, a_at)
            b_ = address(context, builder, b, b_, b_at)
            x_ = address(context, builder, x, x_, x_at)
            out_ = address(context, builder, out, out_, at)
            rows = ROWS // 2
            own = {
                (r, v): emit_load(builder, _place(builder, dtype, x_, x_row, (r, v)), dtype)
                for r in range(rows)
                for v in range(VECTORS)
            }

            def step(a, b, acc, place):
                return emit_fma(builder, a, builder.fsub(b, own[place]), acc)

            def finish(tile):
                emit_finish(builder, dtype, tile, out_, out_row)

            _emit_sums(builder, dtype, rows, a_, a_row, a_step, b_, b_row, depth, step, finish, SPANS[:1])
            return context.get_dummy_value()

        i = _SCALAR
        return types.void(a, i, i, i, b, i, i, i, x, i, i, out, i, i), generate

    return intrinsic_


# out[r, :] = the tile, or out[r, :] += the tile with out in float64
product, add_product = (intrinsic(_product(emit)) for emit in (_emit_store_tile, _emit_add_tile))
pull, add_pull = (intrinsic(_pull(emit)) for emit in (_emit_store_tile, _emit_add_tile))
