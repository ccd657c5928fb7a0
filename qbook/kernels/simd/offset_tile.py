"""The register tile over words at listed offsets: the rows it multiplies need not exist.

    c[row, 16 panel + lane] = sum_k x[row_at[row] + step_at[k]] w[16 panel + lane, k]

A convolution's patches overlap: their matrix would repeat each pixel as often as the kernel is
large.  Two short lists say where its elements lie instead: a row (an output pixel) begins at
``row_at``, and ``step_at`` leads from there to each of its words.  After Dukhan 2019, The Indirect
Convolution Algorithm, arXiv:1907.02129, section 3.

Panels are 16 rows of w side by side: [steps, 16 lanes, 4 bytes], one vector of 512 bits a step.
"""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from qbook.kernels.simd.dot import accumulate, accumulator, total
from qbook.kernels.simd.register_loop import at, load_at, pointer, sums_over
from qbook.kernels.simd.types import I32, I64, splat

V16 = ir.VectorType(I32, 16)
# Rows for each number of panels, as many as there are sums to hide the time of an instruction, and
# no more than there are registers for the addresses of rows: 12 x 1 took three times as long.
ROWS = {"avx512vnni": {4: 6, 2: 6, 1: 8}, "avxvnni": {1: 6}, "portable": {1: 2}}


def offset_tile(panels):
    """Build the tile for a number of panels: x unsigned bytes, w signed bytes, c int32."""

    @intrinsic
    def tile(
        typing, isa, x, x_offset, row_at, row, step_at, steps, w, w_offset, c, c_offset, c_stride
    ):
        """row_at, step_at int64, in bytes; rows from index ``row`` on; steps of 4 bytes, at least
        one.  Offsets in bytes, c_stride from row to row; panels lie one behind the other.
        Overwrites 16 numbers of c for each row and panel.
        """
        rows = ROWS[isa.isa].get(panels, 1)

        def generate(context, builder, signature, arguments):
            _, x, x_offset, row_at, row, step_at, steps, w, w_offset, c, c_offset, c_stride = (
                arguments
            )
            kinds, word = signature.args, ir.Constant(I64, 8)
            x = pointer(context, builder, kinds[1], x, x_offset)
            row_at = pointer(context, builder, kinds[3], row_at, builder.mul(row, word))
            step_at = pointer(context, builder, kinds[5], step_at, ir.Constant(I64, 0))
            w = pointer(context, builder, kinds[7], w, w_offset)
            c = pointer(context, builder, kinds[9], c, c_offset)
            x_rows = [builder.gep(x, [load_at(builder, row_at, 8 * i, I64)]) for i in range(rows)]
            w_stride = builder.mul(steps, ir.Constant(I64, 64))
            w_panels = [
                builder.gep(w, [builder.mul(w_stride, ir.Constant(I64, p))]) for p in range(panels)
            ]

            def load_vectors(step):
                offset = builder.mul(step, ir.Constant(I64, 64))
                return [load_at(builder, panel, offset, V16) for panel in w_panels]

            def load_word(i, step):
                offset = load_at(builder, step_at, builder.mul(step, word), I64)
                return splat(builder, load_at(builder, x_rows[i], offset, I32), V16)

            def combine(acc, u, s):
                return accumulate(builder, isa.isa, acc, u, s)

            kind = accumulator(isa.isa)
            shape = rows, panels
            sums = sums_over(builder, steps, shape, kind, load_vectors, load_word, combine)
            for i, row_sums in enumerate(sums):
                start = builder.gep(c, [builder.mul(c_stride, ir.Constant(I64, i))])
                for p, value in enumerate(row_sums):
                    place = at(builder, start, 64 * p, V16)
                    builder.store(total(builder, isa.isa, value), place, align=1)
            return context.get_dummy_value()

        n = types.int64
        return types.void(isa, x, n, row_at, n, step_at, n, w, n, c, n, n), generate

    return tile


@intrinsic
def rows_of(typing, isa, panels):
    """-> rows of the tile for a number of panels; 0 where there is no such tile"""

    def generate(context, builder, signature, arguments):
        found = ir.Constant(I64, 0)
        for width, rows in ROWS[isa.isa].items():
            same = builder.icmp_signed("==", arguments[1], ir.Constant(I64, width))
            found = builder.select(same, ir.Constant(I64, rows), found)
        return found

    return types.int64(isa, types.int64), generate
