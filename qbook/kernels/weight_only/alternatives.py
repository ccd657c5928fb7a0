"""Device functions that the products do without, kept so that what they cost can be counted.

    converted     a code becomes a number by the instruction that is there for it
    half_scale    scales lie in memory as float16, two bytes each, and not in words of four

Each takes the place of one of ``decode``, see ``instructions``.  Book: 6.1
"""

import triton
import triton.language as tl


@triton.jit
def converted(codes, offset, table_ptr):
    """code - zero_point as ``decode.integer``, from integers"""
    return codes.to(tl.float16) - (offset - 1024.0)


@triton.jit
def half_scale(word, index):
    """word: the scale, float16; the zero-point is 8"""
    return word, tl.full(word.shape, 1024.0 + 8, tl.float16)
