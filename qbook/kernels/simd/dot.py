"""Four products of bytes at once, summed into 32 bits: the instruction that makes int8 fast.

    acc[lane] += u[4 lane] s[4 lane] + ... + u[4 lane + 3] s[4 lane + 3]     u unsigned, s signed

vpdpbusd does it in one step, and LLVM never finds it in plain loops.  Without it the bytes are
widened to 16 bits, and pairs of products summed in 32 (vpmaddwd): exact, where the shorter
vpmaddubsw would saturate at 16 bits.
"""

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from qbook.kernels.simd.types import I8, I16, I32, i32x16, lanes

BYTES = ir.VectorType(I8, 64)
HALF, HALF_BYTES = ir.VectorType(I32, 8), ir.VectorType(I8, 32)


@intrinsic
def dot4(typing, isa, acc, u, s):
    """isa, acc i32x16, u i32x16 of 4 unsigned bytes, s i32x16 of 4 signed ones -> i32x16

    Wraps modulo 2^32: a sum whose final value fits is right, whatever happened on the way.
    """

    def generate(context, builder, signature, arguments):
        return emit(builder, signature.args[0].isa, *arguments[1:])

    return i32x16(isa, i32x16, i32x16, i32x16), generate


def emit(builder, isa, acc, u, s):
    """LLVM code for ``dot4`` on values <16 x i32>."""
    if isa == "portable":
        return builder.add(acc, add_pairs(builder, _pairs(builder, u, s)))
    return accumulate(builder, isa, acc, u, s)


def accumulator(isa):
    """-> the LLVM type of the sums that ``accumulate`` adds to: a lane for each sum, or two"""
    return ir.VectorType(I32, 32 if isa == "portable" else 16)


def accumulate(builder, isa, acc, u, s):
    """acc + products of u, s <16 x i32>, in the type of ``accumulator``; ``total`` ends the sum."""
    if isa == "avx512vnni":
        return _vpdpbusd(builder, 512, acc, u, s)
    if isa == "avxvnni":
        halves = [
            _vpdpbusd(builder, 256, *(lanes(builder, v, range(i, i + 8)) for v in (acc, u, s)))
            for i in (0, 8)
        ]
        return builder.shuffle_vector(*halves, ir.Constant(ir.VectorType(I32, 16), list(range(16))))
    return builder.add(acc, _pairs(builder, u, s))


def total(builder, isa, acc):
    """-> <16 x i32>"""
    return add_pairs(builder, acc) if isa == "portable" else acc


def _pairs(builder, u, s):
    """u, s <16 x i32> of bytes -> <32 x i32>: two products each, exact"""
    wide = ir.VectorType(I16, 64)
    return multiply_add_pairs(
        builder,
        builder.zext(builder.bitcast(u, BYTES), wide),
        builder.sext(builder.bitcast(s, BYTES), wide),
    )


def multiply_add_pairs(builder, x, y):
    """x, y <2n x i16> -> <n x i32>: x[2i] y[2i] + x[2i + 1] y[2i + 1], the pattern of vpmaddwd"""
    double = ir.VectorType(I32, x.type.count)
    return add_pairs(builder, builder.mul(builder.sext(x, double), builder.sext(y, double)))


def add_pairs(builder, x):
    """x <2n x i32> -> <n x i32>: sums of neighbours"""
    count = x.type.count
    return builder.add(lanes(builder, x, range(0, count, 2)), lanes(builder, x, range(1, count, 2)))


def _vpdpbusd(builder, width, acc, u, s):
    name = f"llvm.x86.avx512.vpdpbusd.{width}"
    # From LLVM 22 on the bytes are typed as bytes.
    operand = acc.type
    if llvm.llvm_version_info[0] >= 22:
        operand = BYTES if width == 512 else HALF_BYTES
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(acc.type, [acc.type, operand, operand]), name
    )
    return builder.call(function, [acc, builder.bitcast(u, operand), builder.bitcast(s, operand)])
