"""Arithmetic on the 64 unsigned bytes of an i32x16, modulo 256, and sums of products of bytes that
stay as wide as the processor makes them until the end.
"""

from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from qbook.kernels.simd import dot
from qbook.kernels.simd.types import F32, I8, Vector, constant, i32x16

BYTES, FLOATS = ir.VectorType(I8, 64), ir.VectorType(F32, 16)


@intrinsic
def whole_thirds(typing, x):
    """3 x // 256 of bytes x: how many of 256 / 3 and 512 / 3 each has reached, 0, 1 or 2"""

    def generate(context, builder, signature, arguments):
        byte = builder.bitcast(arguments[0], BYTES)
        # A byte that multiplies to 16 bits would cost twice the registers; two comparisons do not.
        first, second = (
            builder.zext(builder.icmp_unsigned(">=", byte, constant(BYTES, least)), BYTES)
            for least in (86, 171)
        )
        return builder.bitcast(builder.add(first, second), i32x16.llvm)

    return i32x16(i32x16), generate


@intrinsic
def triple_bytes(typing, x):
    """3 x, as two additions"""

    def generate(context, builder, signature, arguments):
        byte = builder.bitcast(arguments[0], BYTES)
        total = builder.add(builder.add(byte, byte), byte)
        # LLVM would make one multiplication by 9, 27, 81 of several, but no processor multiplies
        # bytes.  It has a fence against such reordering for floats: look at the bits as floats.
        kind, name = ir.FunctionType(FLOATS, [FLOATS]), "llvm.arithmetic.fence.v16f32"
        fence = cgutils.get_or_insert_function(builder.module, kind, name)
        total = builder.call(fence, [builder.bitcast(total, FLOATS)])
        return builder.bitcast(total, i32x16.llvm)

    return i32x16(i32x16), generate


@intrinsic
def no_products(typing, isa):
    """-> sums of products before the first, for ``add_products``"""
    kind = _wide(isa)

    def generate(context, builder, signature, arguments):
        return constant(kind.llvm, 0)

    return kind(isa), generate


@intrinsic
def add_products(typing, isa, sums, u, s):
    """sums + the products of ``dot.dot4``: u of 4 unsigned bytes a lane, s of 4 signed ones"""

    def generate(context, builder, signature, arguments):
        return dot.accumulate(builder, signature.args[0].isa, *arguments[1:])

    return sums(isa, sums, u, s), generate


@intrinsic
def total_products(typing, isa, sums):
    """-> i32x16"""

    def generate(context, builder, signature, arguments):
        return dot.total(builder, signature.args[0].isa, arguments[1])

    return i32x16(isa, sums), generate


def _wide(isa):
    kind = dot.accumulator(isa.isa)
    return Vector(kind.element, kind.count)
