"""The loop inside every register tile: r rows by v vectors of sums, all of which stay in registers.

    sum[row][vector] <- combine(sum[row][vector], word[row](step), vector[vector](step))

Python that writes LLVM code: the lists here are unrolled in the machine code, only ``step`` loops.
"""

from llvmlite import ir

from qbook.kernels.simd.types import I8, I64, address, constant


def sums_over(builder, steps, shape, kind, load_vectors, load_word, combine):
    """-> sums [rows][vectors], LLVM values of ``kind``, that begin at zero

    steps:         LLVM i64, at least 1;  shape: rows, vectors
    load_vectors:  step -> the vectors of this step;  load_word: row, step -> what its row adds
    combine:       sum, word, vector -> sum
    """
    rows, vectors = shape
    before = builder.block
    body, end = builder.append_basic_block("tile"), builder.append_basic_block("end")
    builder.branch(body)
    builder.position_at_end(body)
    step = builder.phi(I64)
    sums = [[builder.phi(kind) for _ in range(vectors)] for _ in range(rows)]
    loaded = load_vectors(step)
    following = []
    for row, row_sums in enumerate(sums):
        word = load_word(row, step)
        pairs = zip(row_sums, loaded, strict=True)
        following.append([combine(total, word, vector) for total, vector in pairs])
    following_step = builder.add(step, ir.Constant(I64, 1))
    _feed(step, before, ir.Constant(I64, 0), body, following_step)
    for row_sums, row_following in zip(sums, following, strict=True):
        for total, value in zip(row_sums, row_following, strict=True):
            _feed(total, before, constant(kind, 0), body, value)
    builder.cbranch(builder.icmp_signed("<", following_step, steps), body, end)
    builder.position_at_end(end)
    return following


def pointer(context, builder, kind, array, offset):
    """-> LLVM pointer to the byte ``offset`` of an array of this Numba type"""
    return address(context, builder, kind, array, offset, I8)


def at(builder, start, offset, llvm):
    """-> pointer to ``llvm``, offset bytes behind start; offset a number or an LLVM i64"""
    offset = ir.Constant(I64, offset) if isinstance(offset, int) else offset
    return builder.bitcast(builder.gep(start, [offset]), llvm.as_pointer())


def load_at(builder, start, offset, llvm):
    return builder.load(at(builder, start, offset, llvm), align=1)


def _feed(phi, before, first, body, later):
    phi.add_incoming(first, before)
    phi.add_incoming(later, body)
