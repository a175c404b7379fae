"""2**t and 2**t - 1 as straight-line LLVM code, so that loops over them become vector code.

Numba calls the scalar libm exp, which no loop can vectorise, and its integer promotion would halve the vector width
of the bit arithmetic; both are avoided by emitting the LLVM instructions here.

    t = i + f,  i = round(t),  f in [-1/2, 1/2]:   2**t = 2**i (1 + f q(f)),   2**t - 1 = 2**i f q(f) + (2**i - 1)

The second form loses no digits near t = 0. q interpolates (2**f - 1) / f at Chebyshev nodes; the relative error of
1 + f q(f) is 5e-9 (float32) and 1e-19 (float64) before rounding.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_Q = {
    32: (
        0.69314718802622878106,
        0.24022650760568126945,
        0.055503571142190778186,
        0.0096180825572778514913,
        0.0013390863364671234381,
        0.00015453162945120690177,
    ),
    64: (
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
_MANTISSA = {32: 23, 64: 52}
_LEAST = {32: -126.0, 64: -1022.0}


def _emit(builder, t, bits):
    """The pieces of 2**t for a finite t: (f, q, i shifted into the exponent's place)."""
    real = t.type
    integer = ir.IntType(bits)
    # adding 1.5 * 2**mantissa rounds to an integer and leaves it in the low bits
    magic = ir.Constant(real, 1.5 * 2.0 ** _MANTISSA[bits])
    least = ir.Constant(real, _LEAST[bits])
    # an ordered "less than" lets NaN through
    t = builder.select(builder.fcmp_ordered("<", t, least), least, t)
    rounded = builder.fadd(t, magic)
    f = builder.fsub(t, builder.fsub(rounded, magic))
    q = ir.Constant(real, _Q[bits][-1])
    for coefficient in _Q[bits][-2::-1]:
        q = builder.fma(q, f, ir.Constant(real, coefficient))
    exponent = builder.shl(builder.bitcast(rounded, integer), ir.Constant(integer, _MANTISSA[bits]))
    return f, q, exponent


def _width(t):
    return t.bitwidth if t in (types.float32, types.float64) else None


@intrinsic
def exp2(typingctx, t):
    """2**t for t <= 127 (1023); 0 below the least normal number; NaN for NaN."""
    bits = _width(t)
    if bits is None:
        return None

    def codegen(context, builder, signature, arguments):
        (t,) = arguments
        integer = ir.IntType(bits)
        f, q, exponent = _emit(builder, t, bits)
        p = builder.fma(f, q, ir.Constant(t.type, 1.0))
        result = builder.bitcast(builder.add(builder.bitcast(p, integer), exponent), t.type)
        least = ir.Constant(t.type, _LEAST[bits])
        result = builder.select(builder.fcmp_ordered("<", t, least), cgutils.get_null_value(t.type), result)
        return builder.select(builder.fcmp_unordered("uno", t, t), t, result)

    return t(t), codegen


@intrinsic
def exp2m1(typingctx, t):
    """2**t - 1 for t <= 127 (1023), with full relative accuracy near 0; NaN for NaN."""
    bits = _width(t)
    if bits is None:
        return None

    def codegen(context, builder, signature, arguments):
        (t,) = arguments
        integer = ir.IntType(bits)
        one = ir.Constant(t.type, 1.0)
        f, q, exponent = _emit(builder, t, bits)
        power = builder.bitcast(builder.add(builder.bitcast(one, integer), exponent), t.type)
        result = builder.fma(builder.fmul(power, f), q, builder.fsub(power, one))
        return builder.select(builder.fcmp_unordered("uno", t, t), t, result)

    return t(t), codegen
