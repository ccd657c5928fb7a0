"""The register tile: the innermost loop of every matrix product.

    c[row, 16 panel + lane] += sum_k a[row, k] w[16 panel + lane, k]

A block of c stays in registers while k runs; each step loads one vector of each panel of w, one
word of each row of a, and uses every pair.  With r rows and v panels that is r v multiplications
for r + v loads, which is why a tile beats a row.  Goto and van de Geijn 2008, ACM TOMS 34(3).

Panels are 16 rows of w side by side: [steps, 16 lanes, 4 bytes], one vector of 512 bits a step.
"""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from qbook.kernels.simd import register_loop
from qbook.kernels.simd.dot import accumulate, accumulator, total
from qbook.kernels.simd.register_loop import at, load_at, pointer, strided, sums_over
from qbook.kernels.simd.types import I32, I64, splat

V16 = ir.VectorType(I32, 16)
# What fits the registers: 32 of 512 bits hold 24 sums, 4 of w and one of a; 16 of 256 bits hold 12
# sums of half the width, or 8 of the portable ones, which take two registers each more.
SHAPES = {"avx512vnni": (6, 4), "avxvnni": (6, 1), "portable": (2, 1)}


shape_of = register_loop.shape_of(SHAPES)


def byte_tile(rows=None, panels=None, chains=1):
    """Build the tile for codes: a signed bytes, w unsigned bytes, c int32.

    rows, panels:  of this tile; None: as many as fit the registers of the instruction set
    chains:        as in ``register_loop.sums_over``
    """

    @intrinsic
    def tile(typing, isa, a, a_at, a_stride, w, w_at, w_stride, steps, c, c_at, c_stride):
        """Places (_at) and strides in bytes: of a and c from row to row, of w from panel
        to panel; steps of 4 k.  Adds to what c holds.
        """
        whole = SHAPES[isa.isa]
        shape = (rows or whole[0], panels or whole[1])

        def generate(context, builder, signature, arguments):
            _, a, a_at, a_stride, w, w_at, w_stride, steps, c, c_at, c_stride = arguments
            kinds = signature.args
            a = pointer(context, builder, kinds[1], a, a_at)
            w = pointer(context, builder, kinds[4], w, w_at)
            c = pointer(context, builder, kinds[8], c, c_at)
            a_rows = strided(builder, a, a_stride, shape[0])
            w_panels = strided(builder, w, w_stride, shape[1])
            c_rows = strided(builder, c, c_stride, shape[0])

            def load_vectors(step):
                offset = builder.mul(step, ir.Constant(I64, 64))
                return [load_at(builder, panel, offset, V16) for panel in w_panels]

            def load_word(row, step):
                offset = builder.mul(step, ir.Constant(I64, 4))
                return splat(builder, load_at(builder, a_rows[row], offset, I32), V16)

            def combine(acc, word, vector):
                return accumulate(builder, isa.isa, acc, vector, word)

            kind = accumulator(isa.isa)
            sums = sums_over(builder, steps, shape, kind, load_vectors, load_word, combine, chains)
            for row, row_sums in zip(c_rows, sums, strict=True):
                for p, value in enumerate(row_sums):
                    place = at(builder, row, 64 * p, V16)
                    own = total(builder, isa.isa, value)
                    builder.store(builder.add(builder.load(place, align=1), own), place, align=1)
            return context.get_dummy_value()

        n = types.int64
        return types.void(isa, a, n, n, w, n, n, n, c, n, n), generate

    return tile
