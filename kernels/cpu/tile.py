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

Sums over k are restarted every RESTART_EVERY terms and added to a running total, so that rounding does not grow with
depth even where all terms are rounded the same way; of distances, the total is restarted every RESTART_TOTAL_EVERY
terms. The order is the same for every tile and every row, so an entry's bits do not depend on its place.

Matrices are arrays without gaps and places in them: where an operand begins, how far its rows are apart and, for the
left one, how far its terms are apart and how many there are.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .arrays import View
from .vector import (
    LANES,
    REAL,
    REGISTERS,
    address,
    constant,
    emit_add,
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
MOST_DIFFERENCES = 64
RESTART_EVERY, RESTART_TOTAL_EVERY = 16, 256

_INDEX = ir.IntType(64)
# for `distances`: no entry of the tile is that of a point and itself
NO_DIAGONAL = -(1 << 30)


def _emit_sums(builder, dtype, rows, a, b, step, finish, spans=(RESTART_EVERY,)):
    """Calls finish({(r, v): sum_k step(a[r a_row + k a_step], b[k b_step + v lanes:])}), which emits the rest.

    a is (pointer, a_row, a_step, depth), b is (pointer, b_step). finish is called twice: for sums of one block, and
    of several. Were the two joined, their registers would not suffice.
    """
    (a, a_row, a_step, depth), (b, b_step) = a, b
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
    with builder.if_else(builder.icmp_signed("<=", depth, span)) as (single, several):
        with single:
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


class _Pairs:
    """Emits the squared distances of one tile: rows i, i + 1, ... of x to panel p of y, in batch entry b.

    points is (x, y), tile (b, i, p), near (slope, offset). |x|^2 + |y|^2 - 2 x.y is right to e_x + e_y, where norms
    are summed in the order of the tile, so that equal points have distance 0 exactly. A pair is near if that sum
    comes out at most slope (e_x + e_y) + offset; an infinite offset means that all pairs are near.
    """

    def __init__(self, context, builder, kinds, points, tile, near):
        def arrays(kind, values):
            held = zip(kind.types[:3], cgutils.unpack_tuple(builder, values), strict=False)
            return [View(builder, array, value) for array, value in held]

        (x_rows, _, x_norms), (_, y_columns, y_norms) = map(arrays, kinds, cgutils.unpack_tuple(builder, points))
        b, i, p = cgutils.unpack_tuple(builder, tile)
        self.slope, self.offset = cgutils.unpack_tuple(builder, near)
        self.builder, self.dtype = builder, kinds[0].types[0].dtype
        self.lanes = LANES[self.dtype]
        self.zero, self.minus_two = (constant(ir.VectorType(REAL[self.dtype], self.lanes), c) for c in (0.0, -2.0))
        width = _INDEX(WIDTH[self.dtype])
        (_, count, row), (_, panels, depth, _) = x_rows.shape, y_columns.shape
        first, panel = builder.add(builder.mul(b, count), i), builder.add(builder.mul(b, panels), p)
        self.x = builder.gep(x_rows.data, [builder.mul(first, row)]), row, _INDEX(1), depth
        self.y = builder.gep(y_columns.data, [builder.mul(panel, builder.mul(depth, width))]), width
        self.x_norms, self.x_errors = self._norms(x_norms, b, i)
        self.y_norms, self.y_errors = self._norms(y_norms, b, builder.mul(p, width))
        self.some_near = cgutils.alloca_once_value(builder, ir.IntType(1)(0))
        self.all_near = builder.fcmp_ordered("==", self.offset, REAL[self.dtype](float("inf")))

    def _norms(self, norms, b, index):
        """Pointers to norms and, in the second half of the array, to their errors."""
        first = self.builder.gep(norms.data, [self.builder.add(self.builder.mul(b, norms.shape[1]), index)])
        return first, self.builder.gep(first, [self.builder.lshr(norms.size(), _INDEX(1))])

    def of_row(self, pointer, r):
        return emit_splat(self.builder, self.builder.load(self.builder.gep(pointer, [_INDEX(r)])), self.lanes)

    def of_columns(self, pointer):
        places = (self.builder.gep(pointer, [_INDEX(v * self.lanes)]) for v in range(VECTORS))
        return [emit_load(self.builder, place, self.dtype) for place in places]

    def splat(self, scalar):
        return emit_splat(self.builder, scalar, self.lanes)

    def none(self):
        return constant(ir.VectorType(ir.IntType(1), self.lanes), 0)

    def store_near(self, lanes):
        """Whether any of these lanes is set: some pair is near; returned as well."""
        bits = ir.IntType(self.lanes)
        near = self.builder.icmp_unsigned("!=", self.builder.bitcast(lanes, bits), bits(0))
        self.builder.store(near, self.some_near)
        return near

    def squared(self, product, both):
        """nx + ny - 2 x.y, at least 0"""
        value = emit_fma(self.builder, self.minus_two, product, both)
        return self.builder.select(self.builder.fcmp_ordered("<", value, self.zero), self.zero, value)

    def products(self, finish):
        self._sums(_multiply_add(self.builder), finish)

    def differences(self, finish):
        self._sums(_square_of_difference(self.builder), finish)

    def _sums(self, step, finish):
        spans = RESTART_EVERY, RESTART_TOTAL_EVERY
        _emit_sums(self.builder, self.dtype, ROWS, self.x, self.y, step, finish, spans)


@intrinsic
def distances(typing_context, points, tile, near, diagonal, out, at, out_row):
    """out[r, j] = |x_r - y_j|^2 for one tile; whether any pair was near. See `_Pairs`.

    Near pairs get sums of squared differences. Entries [r, diagonal + r], of a point and itself, are
    undefined and not near: the caller knows them.
    """

    def generate(context, builder, signature, arguments):
        *pairs, diagonal, out_, at, out_row = arguments
        pairs = _Pairs(context, builder, points.types, *pairs)
        dtype, lanes = pairs.dtype, pairs.lanes
        out_ = address(context, builder, out, out_, at)

        def slot(place):
            return _place(builder, dtype, out_, out_row, place)

        def norms():
            """[r, v] of nx + ny, and of the greatest distance that is near"""
            slopes, offsets = pairs.splat(pairs.slope), pairs.splat(pairs.offset)
            ys = pairs.of_columns(pairs.y_norms)
            limits = [emit_fma(builder, slopes, error, offsets) for error in pairs.of_columns(pairs.y_errors)]
            for r in range(ROWS):
                norm, limit = pairs.of_row(pairs.x_norms, r), builder.fmul(slopes, pairs.of_row(pairs.x_errors, r))
                for v in range(VECTORS):
                    yield (r, v), builder.fadd(norm, ys[v]), builder.fadd(limit, limits[v])

        def finish_product(tile):
            some = pairs.none()
            for place, both, limit in norms():
                value = pairs.squared(tile[place], both)
                some = builder.or_(some, builder.fcmp_ordered("<=", value, limit))
                emit_store(builder, value, slot(place))
            pairs.store_near(some)

        def look_again():
            """Whether any pair is near but points and themselves."""
            some, places = pairs.none(), ir.VectorType(_INDEX, lanes)
            for (r, v), _, limit in norms():
                column = emit_splat(builder, builder.add(diagonal, _INDEX(r - v * lanes)), lanes)
                others = builder.icmp_signed("!=", column, ir.Constant(places, list(range(lanes))))
                near = builder.fcmp_ordered("<=", emit_load(builder, slot((r, v)), dtype), limit)
                some = builder.or_(some, builder.and_(others, near))
            pairs.store_near(some)

        def finish_near(tile):
            for place, _, limit in norms():
                rough = emit_load(builder, slot(place), dtype)
                near = builder.fcmp_ordered("<=", rough, limit)
                emit_store(builder, builder.select(near, tile[place], rough), slot(place))

        builder.store(pairs.all_near, pairs.some_near)
        with builder.if_else(pairs.all_near) as (differences, product):
            with differences:
                pairs.differences(lambda tile: _emit_store_tile(builder, dtype, tile, out_, out_row))
            with product:
                pairs.products(finish_product)
                with builder.if_then(builder.load(pairs.some_near), likely=False):
                    meets = builder.icmp_signed(">", diagonal, _INDEX(-ROWS))
                    with builder.if_then(meets, likely=False):
                        look_again()
                with builder.if_then(builder.load(pairs.some_near), likely=False):
                    pairs.differences(finish_near)
        return builder.load(pairs.some_near)

    i = types.intp
    return types.boolean(points, tile, near, i, out, i, i), generate


@intrinsic
def gaussians(typing_context, points, tile, near, kernel, out, at, out_row):
    """out[r, j] = weight 2**(-scale |x_r - y_j|^2) for one tile, unless a pair is near; whether any is.

    kernel is (scale, weight). See `_emit_kernels`.
    """

    def generate(context, builder, signature, arguments):
        *pairs, kernel, out_, at, out_row = arguments
        pairs = _Pairs(context, builder, points.types, *pairs)
        scale, weight = cgutils.unpack_tuple(builder, kernel)
        out_ = address(context, builder, out, out_, at)
        weights = pairs.splat(weight)

        def finish_row(r, kernels):
            for v, kernel in enumerate(kernels):
                place = _place(builder, pairs.dtype, out_, out_row, (r, v))
                emit_store(builder, builder.fmul(kernel, weights), place)

        return _emit_kernels(pairs, scale, finish_row)

    i = types.intp
    return types.boolean(points, tile, near, kernel, out, i, i), generate


@intrinsic
def gaussian_sums(typing_context, points, tile, near, scale, v, v_at, sums):
    """sums[r, :] += 2**(-scale |x_r - y_j|^2) v_j in lanes for one tile, unless a pair is near; whether any is.

    See `_emit_kernels`.
    """

    def generate(context, builder, signature, arguments):
        *pairs, scale, v_, v_at, sums_ = arguments
        pairs = _Pairs(context, builder, points.types, *pairs)
        values = address(context, builder, v, v_, v_at)
        sums_ = address(context, builder, sums, sums_, _INDEX(0))

        def finish_row(r, kernels):
            place = builder.gep(sums_, [_INDEX(r * pairs.lanes)])
            total = emit_load(builder, place, pairs.dtype)
            for kernel, value in zip(kernels, pairs.of_columns(values), strict=True):
                total = emit_fma(builder, kernel, value, total)
            emit_store(builder, total, place)

        return _emit_kernels(pairs, scale, finish_row)

    return types.boolean(points, tile, near, v.dtype, v, types.intp, sums), generate


def _emit_kernels(pairs, scale, finish_row):
    """finish_row(r, registers of 2**(-scale |x_r - y_j|^2)) for each row, unless a pair is near; whether any is.

    By the product; or, with an infinite offset, by differences, for which callers have at most MOST_DIFFERENCES
    coordinates. The bits are those of exp2 after `distances`, which is for the tiles that have a near pair.
    """
    builder = pairs.builder
    scales = builder.fsub(pairs.zero, pairs.splat(scale))

    def finish(tile):
        for r in range(ROWS):
            squared = (tile[r, v] for v in range(VECTORS))
            finish_row(r, [emit_exp2(builder, builder.fmul(value, scales), pairs.dtype) for value in squared])

    def finish_product(tile):
        slopes, offsets = pairs.splat(pairs.slope), pairs.splat(pairs.offset)
        ys = pairs.of_columns(pairs.y_norms)
        # of each lane's columns the one with the widest neighbourhood
        limits = emit_fma(builder, slopes, _chosen(builder, ">", pairs.of_columns(pairs.y_errors)), offsets)
        some = pairs.none()
        squared = {}
        for r in range(ROWS):
            norm = pairs.of_row(pairs.x_norms, r)
            for v in range(VECTORS):
                squared[r, v] = pairs.squared(tile[r, v], builder.fadd(norm, ys[v]))
            least = _chosen(builder, "<", [squared[r, v] for v in range(VECTORS)])
            limit = emit_fma(builder, slopes, pairs.of_row(pairs.x_errors, r), limits)
            # a NaN counts as near: what it hides is looked at again
            some = builder.or_(some, builder.fcmp_unordered("<=", least, limit))
        near = pairs.store_near(some)
        with builder.if_then(builder.not_(near), likely=True):
            finish(squared)

    with builder.if_else(pairs.all_near) as (differences, product):
        with differences:
            pairs.differences(finish)
        with product:
            pairs.products(finish_product)
    return builder.load(pairs.some_near)


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
    for place, value in tile.items():
        emit_add(builder, value, _place(builder, dtype, out, out_row, place))


def _product(emit_finish):
    """product and add_product: sum_k a[r, k] b[k, :] for one tile, ROWS by WIDTH, to emit_finish.

    a_place is (begin, row, step, depth), b_place and out_place are (begin, row).
    """

    def intrinsic_(typing_context, a, a_place, b, b_place, out, out_place):
        def generate(context, builder, signature, arguments):
            places = (cgutils.unpack_tuple(builder, place) for place in arguments[1::2])
            (a_at, *a_steps), (b_at, b_row), (out_at, out_row) = places
            a_, b_, out_ = (
                address(context, builder, kind, array, at)
                for kind, array, at in zip((a, b, out), arguments[::2], (a_at, b_at, out_at), strict=True)
            )

            def finish(tile):
                emit_finish(builder, a.dtype, tile, out_, out_row)

            _emit_sums(builder, a.dtype, ROWS, (a_, *a_steps), (b_, b_row), _multiply_add(builder), finish)
            return context.get_dummy_value()

        return types.void(a, a_place, b, b_place, out, out_place), generate

    return intrinsic_


def _pull(emit_finish):
    """pull and add_pull: sum_k a[r, k] (b[k, :] - x[r, :]) for half a tile, since x needs registers too.

    points is (b, x), whose rows are equally long, points_place (begin in b, begin in x, row); the other places are as
    in `_product`.
    """

    def intrinsic_(typing_context, a, a_place, points, points_place, out, out_place):
        def generate(context, builder, signature, arguments):
            dtype, rows = a.dtype, ROWS // 2
            places = (cgutils.unpack_tuple(builder, place) for place in arguments[1::2])
            (a_at, *a_steps), (b_at, x_at, row), (out_at, out_row) = places
            a_ = address(context, builder, a, arguments[0], a_at)
            b_, x_ = (
                address(context, builder, points.dtype, array, at)
                for array, at in zip(cgutils.unpack_tuple(builder, arguments[2]), (b_at, x_at), strict=True)
            )
            out_ = address(context, builder, out, arguments[4], out_at)
            x_tile = {
                (r, v): emit_load(builder, _place(builder, dtype, x_, row, (r, v)), dtype)
                for r in range(rows)
                for v in range(VECTORS)
            }

            def step(a, b, acc, place):
                return emit_fma(builder, a, builder.fsub(b, x_tile[place]), acc)

            def finish(tile):
                emit_finish(builder, dtype, tile, out_, out_row)

            _emit_sums(builder, dtype, rows, (a_, *a_steps), (b_, row), step, finish)
            return context.get_dummy_value()

        return types.void(a, a_place, points, points_place, out, out_place), generate

    return intrinsic_


# out[r, :] = the tile, or out[r, :] += the tile with out in float64
product, add_product = (intrinsic(_product(emit)) for emit in (_emit_store_tile, _emit_add_tile))
pull, add_pull = (intrinsic(_pull(emit)) for emit in (_emit_store_tile, _emit_add_tile))
