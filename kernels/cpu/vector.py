"""Vector registers as values in Numba code: load, store, arithmetic, 2**t.

LLVM's loop vectoriser does not keep a sum over bandwidths, or a block of a product, in registers. Code written with
these values does: `a * b + c` on them is one instruction each for all lanes, `fma(a, b, c)` one for both. They live
in registers only and are never passed to or from Python.

The width is that of the machine at hand, from LLVM: 512 bits with AVX-512, 256 with AVX2, else 128.
"""

import operator

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from .arrays import View
from .processor import FEATURES

BYTES = (
    64
    if FEATURES.get("avx512f") and FEATURES.get("avx512dq")
    else 32
    if FEATURES.get("avx2") and FEATURES.get("fma")
    else 16
)
_ARCHITECTURE = binding.get_process_triple().partition("-")[0]
# AVX-512 and NEON have 32 vector registers, AVX2 and SSE have 16
REGISTERS = 32 if BYTES == 64 or FEATURES.get("neon") else 16
LANES = {types.float32: BYTES // 4, types.float64: BYTES // 8}
REAL = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}


class Vector(types.Type):
    """One register of float32 or float64 lanes."""

    def __init__(self, dtype):
        self.dtype, self.lanes = dtype, LANES[dtype]
        super().__init__(f"Vector({dtype} x {self.lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, ir.VectorType(REAL[vector.dtype], vector.lanes))


def _same(*vectors):
    """The common type of vectors, or None where they are not vectors of one type."""
    return vectors[0] if isinstance(vectors[0], Vector) and len(set(vectors)) == 1 else None


def address(context, builder, array_type, array, index):
    """The pointer to element `index` of an array that has no gaps."""
    return builder.gep(View(builder, array_type, array).data, [index])


def emit_load(builder, pointer, dtype, lanes=None):
    vector = ir.VectorType(REAL[dtype], lanes or LANES[dtype])
    value = builder.load(builder.bitcast(pointer, vector.as_pointer()))
    value.align = dtype.bitwidth // 8
    return value


def emit_store(builder, value, pointer):
    alignment = {"f32": 4, "f64": 8}[value.type.element.intrinsic_name]
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=alignment)


def emit_add(builder, value, pointer):
    """Adds lanes to float64 numbers in memory."""
    wide = ir.VectorType(ir.DoubleType(), value.type.count)
    if value.type != wide:
        value = builder.fpext(value, wide)
    old = emit_load(builder, pointer, types.float64, wide.count)
    emit_store(builder, builder.fadd(old, value), pointer)


def emit_splat(builder, scalar, lanes):
    vector = ir.VectorType(scalar.type, lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)


def emit_fma(builder, a, b, c):
    vector = a.type
    name = f"llvm.fma.v{vector.count}{vector.element.intrinsic_name}"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
    return builder.call(function, [a, b, c])


def constant(vector, value):
    return ir.Constant(vector, [value] * vector.count)


def emit_flush_subnormals(builder):
    """From here on this thread takes subnormal numbers for 0; returns a function that emits the way back.

    Arithmetic on them takes up to 100 times as long, and a kernel below 1e-38 (float32) changes no result.
    """
    if _ARCHITECTURE in ("x86_64", "i386", "i686", "amd64"):
        # results below the range become 0, and so do arguments: bits 15 and 6 of the control register
        word, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        saved, changed = cgutils.alloca_once(builder, word), cgutils.alloca_once(builder, word)

        def call(name, place):
            kind = ir.FunctionType(ir.VoidType(), [pointer])
            function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.sse.{name}")
            builder.call(function, [builder.bitcast(place, pointer)])

        call("stmxcsr", saved)
        builder.store(builder.or_(builder.load(saved), word(0x8040)), changed)
        call("ldmxcsr", changed)
        return lambda: call("ldmxcsr", saved)
    if _ARCHITECTURE in ("aarch64", "arm64"):
        # bit 24 of the control register
        word = ir.IntType(64)
        read = ir.FunctionType(word, []), "llvm.aarch64.get.fpcr"
        write = ir.FunctionType(ir.VoidType(), [word]), "llvm.aarch64.set.fpcr"
        read, write = (cgutils.get_or_insert_function(builder.module, *function) for function in (read, write))
        saved = builder.call(read, [])
        builder.call(write, [builder.or_(saved, word(1 << 24))])
        return lambda: builder.call(write, [saved])
    return lambda: None


@intrinsic
def load(typing_context, array, index):
    """The lanes at array.ravel()[index:], of an array without gaps."""

    def generate(context, builder, signature, arguments):
        return emit_load(builder, address(context, builder, array, *arguments), array.dtype)

    return Vector(array.dtype)(array, types.intp), generate


@intrinsic
def store(typing_context, array, index, vector):
    """array.ravel()[index:] = vector, in an array without gaps."""
    if vector != Vector(array.dtype):
        return None

    def generate(context, builder, signature, arguments):
        values, index, vector = arguments
        emit_store(builder, vector, address(context, builder, array, values, index))
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@intrinsic
def splat(typing_context, scalar):
    """The scalar in every lane."""
    if scalar not in LANES:
        return None

    def generate(context, builder, signature, arguments):
        return emit_splat(builder, arguments[0], LANES[scalar])

    return Vector(scalar)(scalar), generate


@intrinsic
def fma(typing_context, a, b, c):
    """a b + c, rounded once."""
    vector = _same(a, b, c)

    def generate(context, builder, signature, arguments):
        return emit_fma(builder, *arguments)

    return vector and (vector(a, b, c), generate)


@intrinsic
def at_least(typing_context, a, b):
    """max(a, b), and NaN where a is NaN."""
    vector = _same(a, b)

    def generate(context, builder, signature, arguments):
        a, b = arguments
        return builder.select(builder.fcmp_ordered("<", a, b), b, a)

    return vector and (vector(a, b), generate)


@intrinsic
def cleared(typing_context, a, first, stop):
    """a with 0 in lanes first to before stop."""
    vector = _same(a)

    def generate(context, builder, signature, arguments):
        a_, first, stop = arguments
        places = ir.VectorType(ir.IntType(64), a.lanes)
        lanes = ir.Constant(places, list(range(a.lanes)))
        begin, end = (emit_splat(builder, place, a.lanes) for place in (first, stop))
        inside = builder.and_(builder.icmp_signed(">=", lanes, begin), builder.icmp_signed("<", lanes, end))
        return builder.select(inside, constant(a_.type, 0.0), a_)

    return vector and (a(a, types.intp, types.intp), generate)


@intrinsic
def total(typing_context, a):
    """The sum of the lanes, halves added to halves."""
    vector = _same(a)

    def generate(context, builder, signature, arguments):
        value, lanes = arguments[0], a.lanes
        while lanes > 1:
            lanes //= 2
            both = [ir.Constant(ir.VectorType(ir.IntType(32), lanes), list(range(k, k + lanes))) for k in (0, lanes)]
            value = builder.fadd(*(builder.shuffle_vector(value, value, half) for half in both))
        return builder.extract_element(value, ir.IntType(32)(0))

    return vector and (a.dtype(a), generate)


@intrinsic
def lane_of(typing_context, a, lane):
    """One lane, as a scalar."""
    vector = _same(a)

    def generate(context, builder, signature, arguments):
        return builder.extract_element(arguments[0], builder.trunc(arguments[1], ir.IntType(32)))

    return vector and (a.dtype(a, types.intp), generate)


@intrinsic
def add_to(typing_context, array, index, vector):
    """array.ravel()[index:] += vector, in a float64 array without gaps."""
    if not isinstance(vector, Vector) or array.dtype != types.float64:
        return None

    def generate(context, builder, signature, arguments):
        values, index, value = arguments
        emit_add(builder, value, address(context, builder, array, values, index))
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@intrinsic
def transpose(typing_context, array, at, row, out, out_at, out_row):
    """out[out_at + k out_row + i] = array[at + i row + k] for a square of lanes by lanes, in arrays without gaps."""
    dtype = array.dtype

    def generate(context, builder, signature, arguments):
        values, at, row, out_values, out_at, out_row = arguments
        source = address(context, builder, array, values, at)
        target = address(context, builder, out, out_values, out_at)
        lanes = LANES[dtype]

        def place(base, step, k):
            return builder.gep(base, [builder.mul(step, ir.IntType(64)(k))])

        lines = [emit_load(builder, place(source, row, i), dtype) for i in range(lanes)]
        # a perfect shuffle of all entries, lanes times: each halves the distance at which a line's entries stand
        masks = [
            ir.Constant(ir.VectorType(ir.IntType(32), lanes), [half + k // 2 + k % 2 * lanes for k in range(lanes)])
            for half in (0, lanes // 2)
        ]
        for _ in range(lanes.bit_length() - 1):
            pairs = zip(lines[: lanes // 2], lines[lanes // 2 :], strict=True)
            lines = [builder.shuffle_vector(a, b, mask) for a, b in pairs for mask in masks]
        for k, line in enumerate(lines):
            emit_store(builder, line, place(target, out_row, k))
        return context.get_dummy_value()

    i = types.intp
    return types.void(array, i, i, out, i, i), generate


def _arithmetic(function, emit):
    @infer_global(function)
    class _Template(AbstractTemplate):
        def generic(self, arguments, keywords):
            if len(arguments) == 2 and isinstance(arguments[0], Vector) and arguments[0] == arguments[1]:
                return signature(arguments[0], *arguments)
            return None

    @lower_builtin(function, Vector, Vector)
    def _generate(context, builder, signature, arguments):
        return emit(builder, *arguments)


_arithmetic(operator.add, lambda builder, a, b: builder.fadd(a, b))
_arithmetic(operator.sub, lambda builder, a, b: builder.fsub(a, b))
_arithmetic(operator.mul, lambda builder, a, b: builder.fmul(a, b))


# q(f) interpolates (2**f - 1) / f on [-1/2, 1/2] at Chebyshev nodes; the relative error of 1 + f q(f) before rounding
# is 5e-9 (float32) and 1e-19 (float64)
_Q = {
    types.float32: (
        0.69314718802622878106,
        0.24022650760568126945,
        0.055503571142190778186,
        0.0096180825572778514913,
        0.0013390863364671234381,
        0.00015453162945120690177,
    ),
    types.float64: (
        0.69314718055994530925,
        0.24022650695910071233,
        0.055504108664821627039,
        0.0096181291076284794928,
        0.0013333558146406470697,
        0.00015403530393370733411,
        0.000015252733841556772589,
        1.321548680870556279e-6,
        1.0178057087733941105e-7,
        7.0548973041554992774e-9,
        4.455817908336064493e-10,
        2.5729324177362304214e-11,
    ),
}
_MANTISSA = {types.float32: 23, types.float64: 52}
# here and below 2**t is taken to be 0: the exponent's bits are then all zero
LEAST = {types.float32: -127.0, types.float64: -1023.0}


def _emit_parts(builder, t, dtype):
    """(i, power, f, q) with t = i + f and 2**t = power (1 + f q), power = 2**i. i is given with AVX-512 only."""
    vector = t.type
    if BYTES == 64:
        # f = t - round(t), in one instruction, and 0 for an infinite t
        f = _avx512(builder, "reduce", t, ir.IntType(32)(8))
        i = builder.fsub(t, f)
        power = _avx512(builder, "scalef", constant(vector, 1.0), i)
    else:
        bits = ir.VectorType(ir.IntType(dtype.bitwidth), vector.count)
        # ordered, so that a NaN passes
        least = constant(vector, LEAST[dtype])
        t = builder.select(builder.fcmp_ordered("<", t, least), least, t)
        # adding 1.5 * 2**mantissa rounds to an integer and leaves it in the low bits
        magic = constant(vector, 1.5 * 2.0 ** _MANTISSA[dtype])
        i, rounded = None, builder.fadd(t, magic)
        f = builder.fsub(t, builder.fsub(rounded, magic))
        bits_of_1 = builder.bitcast(constant(vector, 1.0), bits)
        exponent = builder.shl(builder.bitcast(rounded, bits), constant(bits, _MANTISSA[dtype]))
        power = builder.bitcast(builder.add(exponent, bits_of_1), vector)
    q = constant(vector, _Q[dtype][-1])
    for coefficient in _Q[dtype][-2::-1]:
        q = emit_fma(builder, q, f, constant(vector, coefficient))
    return i, power, f, q


def _avx512(builder, name, value, *arguments):
    """One instruction of AVX-512, without a mask, in the current rounding."""
    vector = value.type
    mask, mode = ir.IntType(max(8, vector.count)), ir.IntType(32)
    kind = {16: "ps", 8: "pd"}[vector.count]
    arguments = [value, *arguments, constant(vector, 0.0), mask(-1), mode(4)]
    function_type = ir.FunctionType(vector, [a.type for a in arguments])
    name = f"llvm.x86.avx512.mask.{name}.{kind}.512"
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments)


def emit_exp2(builder, t, dtype):
    i, power, f, q = _emit_parts(builder, t, dtype)
    p = emit_fma(builder, f, q, constant(power.type, 1.0))
    # a product, not a sum of bits: NaN stays NaN whatever its bits have become
    return builder.fmul(power, p) if i is None else _avx512(builder, "scalef", p, i)


@intrinsic
def exp2(typing_context, t):
    """2**t for t <= 127 (1023); 0 from LEAST down; NaN for NaN."""
    vector = _same(t)

    def generate(context, builder, signature, arguments):
        return emit_exp2(builder, arguments[0], t.dtype)

    return vector and (vector(t), generate)


@intrinsic
def exp2m1(typing_context, t):
    """2**t - 1 for t <= 127 (1023), with full relative accuracy near 0; NaN for NaN."""
    vector = _same(t)

    def generate(context, builder, signature, arguments):
        _, power, f, q = _emit_parts(builder, arguments[0], t.dtype)
        return emit_fma(builder, builder.fmul(power, f), q, builder.fsub(power, constant(power.type, 1.0)))

    return vector and (vector(t), generate)
