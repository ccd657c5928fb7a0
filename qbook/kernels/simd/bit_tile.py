"""The register tile for signs, one bit each: a logic gate multiplies, a count of ones adds.

    c[row, 8 panel + lane] = total - 2 sum_k popcount(a[row, k] xor w[8 panel + lane, k])

Words of 64 signs; panels are 8 rows of w side by side: [steps, 8 lanes], one vector of 512 bits a
step.  The count is ``llvm.ctpop``, which LLVM lowers on every processor: vpopcntq since Ice Lake
(2019) and Zen 4 (2022), else a table of 16 nibbles in a register (vpshufb; Mula, Kurz and Lemire
2018, arXiv:1611.07612), else shifts and masks.
"""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from qbook.kernels.simd import register_loop
from qbook.kernels.simd.register_loop import at, load_at, pointer, strided, sums_over
from qbook.kernels.simd.types import I32, I64, constant, splat

V8, V8_SHORT = ir.VectorType(I64, 8), ir.VectorType(I32, 8)
# 32 registers of 512 bits hold 24 sums, 4 vectors of w and what an addition needs; 16 of 256 bits
# hold 2 sums of two registers each beside the table of nibbles, its masks and what is in flight.
SHAPES = {"avx512vnni": (6, 4), "avxvnni": (2, 1), "portable": (2, 1)}
shape_of = register_loop.shape_of(SHAPES)


def bit_tile(rows=None, panels=None):
    """Build the tile: a, w 64-bit words, c int32.

    rows, panels:  of this tile; None: as many as fit the registers of the instruction set
    """

    @intrinsic
    def tile(
        typing,
        isa,
        a,
        a_offset,
        a_stride,
        w,
        w_offset,
        w_stride,
        steps,
        total,
        c,
        c_offset,
        c_stride,
    ):
        """Offsets and strides in bytes; a_stride and c_stride from row to row, w_stride from panel
        to panel; steps of 64 k, at least one.  Overwrites 8 numbers of c for each row and panel.
        """
        whole = SHAPES[isa.isa]
        shape = (rows or whole[0], panels or whole[1])

        def generate(context, builder, signature, arguments):
            _, a, a_offset, a_stride, w, w_offset, w_stride, steps, total, c, c_offset, c_stride = (
                arguments
            )
            kinds = signature.args
            a = pointer(context, builder, kinds[1], a, a_offset)
            w = pointer(context, builder, kinds[4], w, w_offset)
            c = pointer(context, builder, kinds[9], c, c_offset)
            a_rows = strided(builder, a, a_stride, shape[0])
            w_panels = strided(builder, w, w_stride, shape[1])
            c_rows = strided(builder, c, c_stride, shape[0])

            def load_vectors(step):
                offset = builder.mul(step, ir.Constant(I64, 64))
                return [load_at(builder, panel, offset, V8) for panel in w_panels]

            def load_word(row, step):
                offset = builder.mul(step, ir.Constant(I64, 8))
                return splat(builder, load_at(builder, a_rows[row], offset, I64), V8)

            def combine(count, word, vector):
                return builder.add(count, _count_ones(builder, builder.xor(word, vector)))

            counts = sums_over(builder, steps, shape, V8, load_vectors, load_word, combine)
            total = splat(builder, builder.trunc(total, I32), V8_SHORT)
            for row, row_counts in zip(c_rows, counts, strict=True):
                for p, count in enumerate(row_counts):
                    twice = builder.shl(builder.trunc(count, V8_SHORT), constant(V8_SHORT, 1))
                    place = at(builder, row, 32 * p, V8_SHORT)
                    builder.store(builder.sub(total, twice), place, align=1)
            return context.get_dummy_value()

        n = types.int64
        return types.void(isa, a, n, n, w, n, n, n, n, c, n, n), generate

    return tile


@intrinsic
def count_ones(typing, word):
    """uint64 -> number of ones, uint64: one instruction where there is one"""

    def generate(context, builder, signature, arguments):
        return _count_ones(builder, arguments[0])

    return types.uint64(types.uint64), generate


@intrinsic
def sign_bits(typing, array, offset):
    """The 64 numbers at an offset in bytes -> (bit k: number k is at least 0, bit k: it is NaN)"""
    floating = isinstance(array.dtype, types.Float)
    kind = types.UniTuple(types.uint64, 2)

    def generate(context, builder, signature, arguments):
        element = context.get_data_type(array.dtype)
        numbers = ir.VectorType(element, 64)
        start = pointer(context, builder, signature.args[0], *arguments)
        values = load_at(builder, start, 0, numbers)
        zero = constant(numbers, 0.0 if floating else 0)
        if floating:
            bits, nan = (
                builder.fcmp_ordered(">=", values, zero),
                builder.fcmp_unordered("uno", values, zero),
            )
        else:
            bits, nan = (
                builder.icmp_signed(">=", values, zero),
                constant(ir.VectorType(ir.IntType(1), 64), 0),
            )
        return context.make_tuple(builder, kind, [builder.bitcast(v, I64) for v in (bits, nan)])

    return kind(array, types.intp), generate


def _count_ones(builder, value):
    suffix = f"v{value.type.count}i64" if isinstance(value.type, ir.VectorType) else "i64"
    kind = ir.FunctionType(value.type, [value.type])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.ctpop.{suffix}")
    return builder.call(function, [value])
