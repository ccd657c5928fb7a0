"""Several rows of x at once: tuples of vectors, one for each row, as long as the tuple of offsets.

Four bits must be unpacked before they can be multiplied.  Rows that share this work are what makes
many samples faster than one after the other.  ``rows`` holds the byte where each row begins; its
length is known to the compiler, which writes each step out row by row and keeps the sums in
registers.
"""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from qbook.kernels.simd import bfloat, dot
from qbook.kernels.simd.types import address, constant, f32x16, i32x16, splat


@intrinsic
def zeros_f32(typing, rows):
    """-> f32x16 of zeros for each row"""
    kind = types.UniTuple(f32x16, len(rows))

    def generate(context, builder, signature, arguments):
        return context.make_tuple(builder, kind, [constant(f32x16.llvm, 0.0)] * len(rows))

    return kind(rows), generate


@intrinsic
def times_rows(typing, y, x, rows, offset):
    """y i32x16 times the int32 of each row -> i32x16 for each"""
    kind = types.UniTuple(i32x16, len(rows))

    def generate(context, builder, signature, arguments):
        y, *place = arguments
        words = _words(context, builder, signature.args[1], *place, i32x16)
        return context.make_tuple(builder, kind, [builder.mul(y, word) for word in words])

    return kind(y, x, rows, types.intp), generate


@intrinsic
def dot4_rows(typing, isa, sums, u, x, rows, offset):
    """sums + ``dot4`` of u, 4 unsigned bytes in each lane, and the 4 signed bytes of each row"""

    def generate(context, builder, signature, arguments):
        isa, kind, _, x = signature.args[:4]
        _, sums, u, *place = arguments
        words = _words(context, builder, x, *place, i32x16)
        pairs = zip(cgutils.unpack_tuple(builder, sums), words, strict=True)
        results = [dot.emit(builder, isa.isa, total, u, word) for total, word in pairs]
        return context.make_tuple(builder, kind, results)

    return sums(isa, sums, u, x, rows, types.intp), generate


@intrinsic
def dot2_rows(typing, sums, w, x, rows, offset):
    """sums + w, of ``bfloat.nibble_pairs``, times the two bfloat16 of each row"""

    def generate(context, builder, signature, arguments):
        kind, _, x = signature.args[:3]
        sums, w, *place = arguments
        words = _words(context, builder, x, *place, i32x16)
        pairs = zip(cgutils.unpack_tuple(builder, sums), words, strict=True)
        results = [bfloat.dot2(builder, total, w, word) for total, word in pairs]
        return context.make_tuple(builder, kind, results)

    return sums(sums, w, x, rows, types.intp), generate


@intrinsic
def muladd_rows(typing, sums, w, x, rows, offset):
    """sums + w times the float32 of each row, rounded once where the machine has such a step"""

    def generate(context, builder, signature, arguments):
        kind, _, x = signature.args[:3]
        sums, w, *place = arguments
        words = _words(context, builder, x, *place, f32x16)
        pairs = zip(cgutils.unpack_tuple(builder, sums), words, strict=True)
        results = [_muladd(builder, w, word, total) for total, word in pairs]
        return context.make_tuple(builder, kind, results)

    return sums(sums, w, x, rows, types.intp), generate


@intrinsic
def add_scaled_integers(typing, totals, sums, w_scale, x, rows, offset):
    """totals + float(sums) * (x_scale * w_scale), x_scale the float32 of each row, each rounded"""

    def generate(context, builder, signature, arguments):
        kind, _, _, x = signature.args[:4]
        totals, sums, w_scale, *place = arguments
        words = _words(context, builder, x, *place, f32x16)
        totals, sums = (cgutils.unpack_tuple(builder, t) for t in (totals, sums))
        results = []
        for total, integers, x_scale in zip(totals, sums, words, strict=True):
            scale = builder.fmul(x_scale, w_scale)
            value = builder.fmul(builder.sitofp(integers, f32x16.llvm), scale)
            results.append(builder.fadd(total, value))
        return context.make_tuple(builder, kind, results)

    return totals(totals, sums, w_scale, x, rows, types.intp), generate


@intrinsic
def add_scaled_floats(typing, totals, a, b, c, d, w_scale):
    """totals + ((a + b) + (c + d)) w_scale"""

    def generate(context, builder, signature, arguments):
        parts = [cgutils.unpack_tuple(builder, part) for part in arguments[:5]]
        results = []
        for total, a, b, c, d in zip(*parts, strict=True):
            value = builder.fadd(builder.fadd(a, b), builder.fadd(c, d))
            results.append(_muladd(builder, value, arguments[5], total))
        return context.make_tuple(builder, signature.args[0], results)

    return totals(totals, a, b, c, d, w_scale), generate


def _words(context, builder, kind, x, rows, offset, vector):
    """-> the word at ``offset`` behind each row's start, in every lane"""
    found = []
    for start in cgutils.unpack_tuple(builder, rows):
        element = vector.llvm.element
        pointer = address(context, builder, kind, x, builder.add(start, offset), element)
        found.append(splat(builder, builder.load(pointer, align=1), vector.llvm))
    return found


def _muladd(builder, x, y, z):
    kind = ir.FunctionType(z.type, [z.type] * 3)
    name = f"llvm.fmuladd.v{z.type.count}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [x, y, z])
