"""Device functions: from codes and scales as they are stored to numbers.

A code decoder takes packed bytes, which field of them is meant, an offset (float16) and a table.
A scale decoder takes a word of 32 bits and which of its scales is meant, and gives a scale and an
offset.  None converts an integer to a floating-point number, which would cost more than the
product: the bits of a code are put where they mean what they should.  Book: 6.1
"""

import triton
import triton.language as tl

from qbook.kernels.gpu import casts, fields


@triton.jit
def integer(packed, field: tl.constexpr, BITS: tl.constexpr, offset, table_ptr):
    """code - zero_point, exact; offset = 1024 + zero_point"""
    return fields.plus_1024(packed, field, BITS) - offset


@triton.jit
def e2m1(packed, field: tl.constexpr, BITS: tl.constexpr, offset, table_ptr):
    return fields.e2m1(packed, field)


@triton.jit
def lookup(packed, field: tl.constexpr, BITS: tl.constexpr, offset, table_ptr):
    """table [16] float32; 64 bytes, which lie in 16 banks: no two threads wait for each other"""
    return tl.load(table_ptr + fields.cut(packed, field, BITS).to(tl.int32))


@triton.jit
def scale_and_offset(word, index):
    """Low half: scale, float16; high half: 1024 + zero_point, float16"""
    scale = (word & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True)
    offset = ((word >> 16) & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True)
    return scale, offset


@triton.jit
def one_float32(word, index):
    return word.to(tl.float32, bitcast=True), 0.0


@triton.jit
def four_e8m0(word, index):
    return casts.from_e8m0(((word >> (8 * index)) & 0xFF).to(tl.uint8)), 0.0


@triton.jit
def four_e4m3(word, index):
    return casts.from_e4m3(((word >> (8 * index)) & 0xFF).to(tl.uint8)), 0.0


@triton.jit
def product(value, scale, DTYPE: tl.constexpr, BFLOAT: tl.constexpr):
    """value * scale, rounded to DTYPE: the reconstructed weight

    Once, because the product is exact in float32, of two factors of 11 bits; that of NF4, of two
    factors of 24 bits, is rounded to float32 first.
    In the interpreter bfloat16 is wrong: there DTYPE is float32, and BFLOAT rounds by bits.
    """
    if value.dtype == tl.float16 and scale.dtype == tl.float16 and DTYPE == tl.float16:
        w = value * scale
    else:
        w = value.to(tl.float32) * scale.to(tl.float32)
        w = casts.to_bfloat16_bits(w) if BFLOAT else w
    return w.to(DTYPE)
