"""bfloat16, the upper half of a float32: two in each lane, multiplied and summed into a float32.

    acc[lane] += w[2 lane + 1] x[2 lane + 1], then acc[lane] += w[2 lane] x[2 lane]

vdpbf16ps (AVX512_BF16: Intel since Cooper Lake, 2020, AMD since Zen 4, 2022) does both steps at
once: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2.  Sums are rounded to
the nearest, one step after the other; subnormal numbers count as 0, read or written.  Elsewhere a
mask and a shift widen the halves of x, and two multiplications and additions follow in the same
order.  A product of two bfloat16 has 16 digits and float32 holds 24: here, too, only sums are
rounded, and only subnormal numbers tell the two apart.

Codes of 4 bits less their middle, 8, are exact, for bfloat16 has 8 digits.  vpermw looks two of
them up at once, in a table of 32: twice the sixteen, because it reads 5 bits.
"""

import numpy as np
from llvmlite import ir
from numba.core import cgutils, errors, types
from numba.extending import intrinsic, overload

from qbook.kernels.isa import features
from qbook.kernels.simd.arithmetic import emit_multiply_add, shift_right
from qbook.kernels.simd.lookup import CODES, MIDDLE, nibble_to_f32
from qbook.kernels.simd.types import I16, constant, f32x16, i32x16

FEATURE, PLACES = "avx512bf16", (0, 4, 8, 12)
NUMBERS, FLOATS, HALVES = i32x16.llvm, f32x16.llvm, ir.VectorType(I16, 32)
UPPER = -(2**16)


def has_products(isa):
    """The name of an instruction set -> whether code for it may hold vdpbf16ps"""
    return isa == "avx512vnni" and FEATURE in features()


def nibble_pairs(isa, x, place):
    """isa, x i32x16, place a constant: 0, 4, 8 or 12 -> w for ``dot2``

    Bits place ... place + 3 of both halves of each lane, minus 8: an i32x16 of two bfloat16 in a
    lane where ``has_products``, else two f32x16, those of the upper halves first.
    """


@overload(nibble_pairs, prefer_literal=True)
def _nibble_pairs(isa, x, place):
    if not isinstance(place, types.IntegerLiteral) or place.literal_value not in PLACES:
        raise errors.TypingError(f"place={place} is not one of the constants {PLACES}")
    if has_products(isa.isa):
        return lambda isa, x, place: _looked_up(x, place)
    return lambda isa, x, place: (
        nibble_to_f32(isa, shift_right(x, 16), place),
        nibble_to_f32(isa, x, place),
    )


@intrinsic(prefer_literal=True)
def _looked_up(typing, x, place):
    def generate(context, builder, signature, arguments):
        integers = np.arange(2 * CODES) % CODES - MIDDLE
        bits = integers.astype(np.float32).view(np.int32) >> 16
        shifted = builder.lshr(arguments[0], constant(NUMBERS, place.literal_value))
        table, index = constant(HALVES, bits.tolist()), builder.bitcast(shifted, HALVES)
        kind = ir.FunctionType(HALVES, [HALVES, HALVES])
        found = _call(builder, kind, "llvm.x86.avx512.permvar.hi.512", [table, index])
        return builder.bitcast(found, NUMBERS)

    return i32x16(i32x16, place), generate


def dot2(builder, acc, w, x):
    """LLVM code: acc <16 x float>, w of ``nibble_pairs``, x <16 x i32> of two bfloat16 -> the sums

    The type of w says whether there is vdpbf16ps.
    """
    if w.type == NUMBERS:
        # LLVM types its operands as bfloat since 16 and takes the older form as well.
        kind = ir.FunctionType(FLOATS, [FLOATS, NUMBERS, NUMBERS])
        return _call(builder, kind, "llvm.x86.avx512bf16.dpbf16ps.512", [acc, w, x])
    upper = builder.and_(x, constant(NUMBERS, UPPER))
    lower = builder.shl(x, constant(NUMBERS, 16))
    for factor, half in zip(cgutils.unpack_tuple(builder, w), (upper, lower), strict=True):
        acc = emit_multiply_add(builder, factor, builder.bitcast(half, FLOATS), acc)
    return acc


def _call(builder, kind, name, arguments):
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)
