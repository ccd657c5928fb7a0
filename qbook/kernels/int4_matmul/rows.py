"""Several rows of x at once: tuples of vectors, one for each row, as long as the tuple of offsets.

Four bits must be unpacked before they can be multiplied.  Rows that share this work are what makes
many samples faster than one after the other.  ``rows`` holds the byte where each row begins; its
length is known to the compiler, which writes each step out row by row and keeps the sums in
registers.
"""

from numba.core import cgutils, types
from numba.extending import intrinsic

from qbook.kernels.simd import bfloat, dot
from qbook.kernels.simd.arithmetic import emit_multiply_add
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
        def step(total, word):
            return dot.emit(builder, signature.args[0].isa, total, arguments[2], word)

        place = signature.args[3], *arguments[3:]
        return _each_row(context, builder, signature.args[1], arguments[1], place, i32x16, step)

    return sums(isa, sums, u, x, rows, types.intp), generate


@intrinsic
def dot2_rows(typing, sums, w, x, rows, offset):
    """sums + w, of ``bfloat.nibble_pairs``, times the two bfloat16 of each row"""

    def generate(context, builder, signature, arguments):
        def step(total, word):
            return bfloat.dot2(builder, total, arguments[1], word)

        place = signature.args[2], *arguments[2:]
        return _each_row(context, builder, signature.args[0], arguments[0], place, i32x16, step)

    return sums(sums, w, x, rows, types.intp), generate


@intrinsic
def muladd_rows(typing, sums, w, x, rows, offset):
    """sums + w times the float32 of each row, rounded once where the machine has such a step"""

    def generate(context, builder, signature, arguments):
        def step(total, word):
            return emit_multiply_add(builder, arguments[1], word, total)

        place = signature.args[2], *arguments[2:]
        return _each_row(context, builder, signature.args[0], arguments[0], place, f32x16, step)

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
            results.append(emit_multiply_add(builder, value, arguments[5], total))
        return context.make_tuple(builder, signature.args[0], results)

    return totals(totals, a, b, c, d, w_scale), generate


def _each_row(context, builder, kind, sums, place, vector, step):
    """-> step(sum, word of the row in every lane) of each row; place: x's type, x, rows, offset"""
    words = _words(context, builder, *place, vector)
    pairs = zip(cgutils.unpack_tuple(builder, sums), words, strict=True)
    return context.make_tuple(builder, kind, [step(total, word) for total, word in pairs])


def _words(context, builder, kind, x, rows, offset, vector):
    """-> the word at ``offset`` behind each row's start, in every lane"""
    found = []
    for start in cgutils.unpack_tuple(builder, rows):
        element = vector.llvm.element
        pointer = address(context, builder, kind, x, builder.add(start, offset), element)
        found.append(splat(builder, builder.load(pointer, align=1), vector.llvm))
    return found
