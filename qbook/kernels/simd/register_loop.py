"""The loop inside every register tile: r rows by v vectors of sums, all of which stay in registers.

    sum[row][vector] <- combine(sum[row][vector], word[row](step), vector[vector](step))

Python that writes LLVM code: the lists here are unrolled in the machine code, only ``step`` loops.
"""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from qbook.kernels.simd.types import I8, I64, address, constant


def sums_over(builder, steps, shape, kind, load_vectors, load_word, combine, chains=1):
    """-> sums [rows][vectors], LLVM values of ``kind``, that begin at zero

    steps:         LLVM i64, at least 1;  shape: rows, vectors
    load_vectors:  step -> the vectors of this step;  load_word: row, step -> what its row adds
    combine:       sum, word, vector -> sum
    chains:        independent integer sums of each, which divide the number of steps: a loop of one
                   row and one vector would wait for its only sum
    """
    rows, vectors = shape
    before = builder.block
    body, end = builder.append_basic_block("tile"), builder.append_basic_block("end")
    builder.branch(body)
    builder.position_at_end(body)
    step = builder.phi(I64)
    sums = [[builder.phi(kind) for _ in range(rows * vectors)] for _ in range(chains)]
    following = []
    for chain, own in enumerate(sums):
        now = builder.add(step, ir.Constant(I64, chain))
        loaded, following_own = load_vectors(now), []
        for row in range(rows):
            word = load_word(row, now)
            pairs = zip(own[row * vectors : (row + 1) * vectors], loaded, strict=True)
            following_own += [combine(total, word, vector) for total, vector in pairs]
        following.append(following_own)
    following_step = builder.add(step, ir.Constant(I64, chains))
    _feed(step, before, ir.Constant(I64, 0), body, following_step)
    for own, following_own in zip(sums, following, strict=True):
        for total, value in zip(own, following_own, strict=True):
            _feed(total, before, constant(kind, 0), body, value)
    builder.cbranch(builder.icmp_signed("<", following_step, steps), body, end)
    builder.position_at_end(end)
    totals = following[0]
    for other in following[1:]:
        totals = [builder.add(total, more) for total, more in zip(totals, other, strict=True)]
    return [totals[row * vectors : (row + 1) * vectors] for row in range(rows)]


def shape_of(shapes):
    """shapes: name of an instruction set -> (rows, panels) of its whole tile -> the function

    shape_of(isa) -> the two numbers, constants of the compiled code
    """

    @intrinsic
    def found(typing, isa):
        kind = types.UniTuple(types.int64, 2)

        def generate(context, builder, signature, arguments):
            numbers = [ir.Constant(I64, n) for n in shapes[isa.isa]]
            return context.make_tuple(builder, kind, numbers)

        return kind(isa), generate

    return found


def pointer(context, builder, kind, array, offset):
    """-> LLVM pointer to the byte ``offset`` of an array of this Numba type"""
    return address(context, builder, kind, array, offset, I8)


def strided(builder, start, stride, count):
    """-> pointers to bytes, ``count`` of them, ``stride`` (an LLVM i64) apart"""
    found = [start]
    for _ in range(count - 1):
        found.append(builder.gep(found[-1], [stride]))
    return found


def at(builder, start, offset, llvm):
    """-> pointer to ``llvm``, offset bytes behind start; offset a number or an LLVM i64"""
    offset = ir.Constant(I64, offset) if isinstance(offset, int) else offset
    return builder.bitcast(builder.gep(start, [offset]), llvm.as_pointer())


def load_at(builder, start, offset, llvm):
    return builder.load(at(builder, start, offset, llvm), align=1)


def _feed(phi, before, first, body, later):
    phi.add_incoming(first, before)
    phi.add_incoming(later, body)
