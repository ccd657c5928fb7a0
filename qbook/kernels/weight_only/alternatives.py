"""Device functions that the products do without, kept so that what they cost can be counted.

    converted     a code becomes a number by the instruction that is there for it
    byte_by_byte  the magic number without assembly
    half_scale    scales lie in memory as float16, two bytes each, and not in words of four

Each takes the place of one of ``decode``, see ``instructions``.  Book: 6.1
"""

import triton
import triton.language as tl

from qbook.kernels.gpu import casts, fields


@triton.jit
def converted(packed, field: tl.constexpr, BITS: tl.constexpr, offset, table_ptr):
    """code - zero_point as ``decode.integer``, from integers"""
    return fields.cut(packed, field, BITS).to(tl.float16) - (offset - 1024.0)


@triton.jit
def byte_by_byte(packed, field: tl.constexpr, BITS: tl.constexpr, offset, table_ptr):
    """The same, by the magic number, as Triton compiles it from bytes one at a time"""
    return casts.plus_1024(fields.cut(packed, field, BITS)) - offset


@triton.jit
def half_scale(word, index):
    """word: the scale, float16; the zero-point is 8"""
    return word, tl.full(word.shape, 1024.0 + 8, tl.float16)
