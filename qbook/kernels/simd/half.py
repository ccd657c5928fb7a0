"""float16 in memory, float32 in registers: half the bytes for scales that need no more digits.

A processor with F16C converts in one instruction.  Elsewhere a few integer steps do: the fields of
a float16 are moved to where float32 has them, and the biases of the exponents, 15 and 127, are made
good by a product with 2^112, which sets subnormal numbers right as well.
"""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from qbook.kernels.simd.types import F16, I16, address, constant, f32x16, i32x16

HALVES, HALF_BITS = ir.VectorType(F16, 16), ir.VectorType(I16, 16)
SIGN, REST, MOVED = 0x8000, 0x7FFF, 2.0**112


@intrinsic
def load_half(typing, isa, array, offset):
    """isa, array, offset in bytes -> f32x16 of the sixteen float16 there, which must be finite"""

    def generate(context, builder, signature, arguments):
        direct = signature.args[0].isa == "avx512vnni"
        pointer = address(context, builder, array, *arguments[1:], HALVES if direct else HALF_BITS)
        loaded = builder.load(pointer, align=1)
        return builder.fpext(loaded, f32x16.llvm) if direct else _widen(builder, loaded)

    return f32x16(isa, array, types.intp), generate


def _widen(builder, halves):
    """<16 x i16>, the bits of finite float16 -> <16 x float>"""
    numbers = i32x16.llvm
    bits = builder.zext(halves, numbers)
    rest = builder.shl(builder.and_(bits, constant(numbers, REST)), constant(numbers, 13))
    sign = builder.shl(builder.and_(bits, constant(numbers, SIGN)), constant(numbers, 16))
    size = builder.fmul(builder.bitcast(rest, f32x16.llvm), constant(f32x16.llvm, MOVED))
    return builder.bitcast(builder.or_(builder.bitcast(size, numbers), sign), f32x16.llvm)
