"""The register tile: the innermost loop of every matrix product.

    c[row, 16 panel + lane] += sum_k a[row, k] w[16 panel + lane, k]

A block of c stays in registers while k runs; each step loads one vector of each panel of w, one
word of each row of a, and uses every pair.  With r rows and v panels that is r v multiplications
for r + v loads, which is why a tile beats a row.  Goto and van de Geijn 2008, ACM TOMS 34(3).

Panels are 16 rows of w side by side: [steps, 16 lanes, 4 bytes], one vector of 512 bits a step.
"""

import math

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from qbook.kernels.simd.dot import accumulate, accumulator, total
from qbook.kernels.simd.types import I8, I32, I64, address, constant, splat

V16 = ir.VectorType(I32, 16)
# What fits the registers: 32 of 512 bits hold 24 sums, 4 of w and one of a; 16 of 256 bits hold 12
# sums of half the width, or 8 of the portable ones, which take two registers each more.
SHAPES = {"avx512vnni": (6, 4), "avxvnni": (6, 1), "portable": (2, 1)}


def shape(isa):
    """-> rows, panels of the whole tile"""
    return SHAPES[isa]


def byte_tile(rows=None, panels=None, chains=1):
    """Build the tile for codes: a signed bytes, w unsigned bytes, c int32.

    rows, panels:  of this tile; None: as many as fit the registers of the instruction set
    chains:        independent sums of each c, which divide the number of steps: a tile of one row
                   and one panel would wait for its only sum
    """

    @intrinsic
    def tile(typing, isa, a, a_at, a_stride, w, w_at, w_stride, steps, c, c_at, c_stride):
        """Places (_at) and strides in bytes: of a and c from row to row, of w from panel
        to panel; steps of 4 k.  Adds to what c holds.
        """
        whole = shape(isa.isa)
        size = (rows or whole[0], panels or whole[1])

        def generate(context, builder, signature, arguments):
            _, a, a_at, a_stride, w, w_at, w_stride, steps, c, c_at, c_stride = arguments
            kinds = signature.args
            start = address(context, builder, kinds[1], a, a_at, I8)
            left = address(context, builder, kinds[4], w, w_at, I8)
            result = address(context, builder, kinds[8], c, c_at, I8)
            a_rows = _strided(builder, start, a_stride, size[0])
            w_panels = _strided(builder, left, w_stride, size[1])
            c_rows = _strided(builder, result, c_stride, size[0])
            _loop(builder, isa.isa, a_rows, w_panels, c_rows, steps, chains)
            return context.get_dummy_value()

        n = types.int64
        return types.void(isa, a, n, n, w, n, n, n, c, n, n), generate

    return tile


def _loop(builder, isa, a_rows, w_panels, c_rows, steps, chains):
    kind = accumulator(isa)
    shape = (chains, len(a_rows), len(w_panels))
    before = builder.block
    body, end = builder.append_basic_block("tile"), builder.append_basic_block("end")
    builder.branch(body)
    builder.position_at_end(body)
    step = builder.phi(I64)
    step.add_incoming(ir.Constant(I64, 0), before)
    sums = np.array([builder.phi(kind) for _ in range(math.prod(shape))], object).reshape(shape)
    following = np.empty(shape, object)
    for chain in range(chains):
        now = builder.add(step, ir.Constant(I64, chain))
        w_at, a_at = (builder.mul(now, ir.Constant(I64, size)) for size in (64, 4))
        vectors = [builder.load(_at(builder, panel, w_at, V16), align=1) for panel in w_panels]
        for i, row in enumerate(a_rows):
            word = splat(builder, builder.load(_at(builder, row, a_at, I32), align=1), V16)
            for j, vector in enumerate(vectors):
                acc = sums[chain, i, j]
                following[chain, i, j] = accumulate(builder, isa, acc, vector, word)
    following_step = builder.add(step, ir.Constant(I64, chains))
    step.add_incoming(following_step, body)
    for acc, value in zip(sums.flat, following.flat, strict=True):
        acc.add_incoming(constant(kind, 0), before)
        acc.add_incoming(value, body)
    builder.cbranch(builder.icmp_signed("<", following_step, steps), body, end)
    builder.position_at_end(end)
    for i, row in enumerate(c_rows):
        for j in range(len(w_panels)):
            value = following[0, i, j]
            for other in following[1:, i, j]:
                value = builder.add(value, other)
            pointer = _at(builder, row, ir.Constant(I64, 64 * j), V16)
            value = builder.add(builder.load(pointer, align=1), total(builder, isa, value))
            builder.store(value, pointer, align=1)


def _strided(builder, pointer, stride, count):
    """-> pointers to bytes, ``count`` of them, ``stride`` apart"""
    found = [pointer]
    for _ in range(count - 1):
        found.append(builder.gep(found[-1], [stride]))
    return found


def _at(builder, pointer, offset, llvm):
    return builder.bitcast(builder.gep(pointer, [offset]), llvm.as_pointer())


@intrinsic
def shape_of(typing, isa):
    """-> (rows, panels) of the whole tile, constants of the compiled code"""
    kind = types.UniTuple(types.int64, 2)

    def generate(context, builder, signature, arguments):
        numbers = [ir.Constant(I64, n) for n in shape(isa.isa)]
        return context.make_tuple(builder, kind, numbers)

    return kind(isa), generate
