"""Requantization of sixteen sums at once, in 64-bit lanes: bit for bit ``qbook.requantize``.

    high = floor((sum 2^-shift m0 + 2^30) / 2^31)        the nearest, ties up
    code = clamp(zero_point + round(high / 2^shift))     the nearest, ties away from zero

The first line is gemmlowp's nudge and truncation in one: for a negative product p,
-floor((-p + 2^30 - 1) / 2^31) = floor((p + 2^30) / 2^31).
"""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from qbook.kernels.simd.types import I32, I64, constant, i8x16, i32x16, splat

WIDE = ir.VectorType(I64, 16)
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


@intrinsic
def requantize(typing, sums, m0, shift, zero_point, qmin, qmax):
    """sums, m0, shift i32x16; zero_point, qmin, qmax int32 -> codes i8x16, signed or not

    m0, shift as of ``requantize.quantize_multiplier``: a negative shift is a multiplier above 1.
    """

    def generate(context, builder, signature, arguments):
        sums, m0, shift, *limits = arguments
        sums, m0, shift = (builder.sext(v, WIDE) for v in (sums, m0, shift))
        zero_point, qmin, qmax = (
            builder.sext(splat(builder, v, ir.VectorType(I32, 16)), WIDE) for v in limits
        )
        zero, one = constant(WIDE, 0), constant(WIDE, 1)
        left = _largest(builder, builder.sub(zero, shift), zero)
        right = _largest(builder, shift, zero)
        sums = _clamp(
            builder, builder.shl(sums, left), constant(WIDE, INT32_MIN), constant(WIDE, INT32_MAX)
        )
        product = builder.add(builder.mul(sums, m0), constant(WIDE, 2**30))
        high = builder.ashr(product, constant(WIDE, 31))
        high = _smallest(builder, high, constant(WIDE, INT32_MAX))
        mask = builder.sub(builder.shl(one, right), one)
        negative = builder.zext(builder.icmp_signed("<", high, zero), WIDE)
        threshold = builder.add(builder.ashr(mask, one), negative)
        up = builder.zext(builder.icmp_signed(">", builder.and_(high, mask), threshold), WIDE)
        steps = builder.add(builder.ashr(high, right), up)
        codes = _clamp(builder, builder.add(steps, zero_point), qmin, qmax)
        return builder.trunc(codes, i8x16.llvm)

    n = types.int32
    return i8x16(i32x16, i32x16, i32x16, n, n, n), generate


def _clamp(builder, x, low, high):
    return _smallest(builder, _largest(builder, x, low), high)


def _largest(builder, x, y):
    return builder.select(builder.icmp_signed(">", x, y), x, y)


def _smallest(builder, x, y):
    return builder.select(builder.icmp_signed("<", x, y), x, y)
