"""Sums of products straight from packed bytes: no digit is moved to a place of its own.

Reading w is what a product with one row of x waits for; what is done to a byte must be cheaper than
bringing it.  Sums being linear, the bytes are multiplied as they are, and the sums set right once:

    2-bit    a digit stays in its place, worth 1, 4, 16 or 64: one sum for each, shifted at the end
    base-3   digit = (3 byte - next) / 256, where next = 3 byte mod 256 (see ``panels``):
             256 sum(digit x) = 3 sum(byte x) - sum(next x)

The larger sums fit 32 bits for a while only: 2^31 / (64 * 2 * 128 * 4) chunks of 16 inputs, or
2^31 / (256 * 2 * 128 * 20) of 20.  Book: 6.2
"""

import numpy as np

from qbook.kernels.compiled import kernel
from qbook.kernels.simd.arithmetic import add, and_, shift_right_signed, splat_i32, sub
from qbook.kernels.simd.bytes import add_products, no_products, total_products, triple_bytes
from qbook.kernels.simd.memory import broadcast_i32, load_i32, prefetch

TWO_BIT_CHUNKS, BASE_3_CHUNKS = 32767, 1638
# Bytes before they are needed: where w comes from memory, 1.1 to 1.25 times the speed.
AHEAD = 8192
# 3, 12, 48 and 192 in each byte.
ONES, FOURS, SIXTEENS, SIXTY_FOURS = (
    np.int32(n) for n in (0x03030303, 0x0C0C0C0C, 0x30303030, 0xC0C0C0C0 - 2**32)
)


@kernel
def two_bit_sums(isa, x, row, w, panel):
    """-> two i32x16, the sums of a row of x times the 32 rows of digits of a panel"""
    chunks = w.shape[1]
    start, k = panel * 128 * chunks, row * x.shape[1]
    upper = lower = splat_i32(np.int32(0))
    for block in range(0, chunks, TWO_BIT_CHUNKS):
        zero = no_products(isa)
        a = b = (zero, zero, zero, zero)
        for chunk in range(block, min(block + TWO_BIT_CHUNKS, chunks)):
            at = start + 128 * chunk
            prefetch(w, at + AHEAD)
            prefetch(w, at + AHEAD + 64)
            a = _add_four(isa, a, load_i32(w, at), x, k + 16 * chunk)
            b = _add_four(isa, b, load_i32(w, at + 64), x, k + 16 * chunk)
        upper, lower = add(upper, _total_four(isa, a)), add(lower, _total_four(isa, b))
    return upper, lower


@kernel
def _add_four(isa, sums, byte, x, k):
    a, b, c, d = sums
    return (
        add_products(isa, a, and_(byte, splat_i32(ONES)), broadcast_i32(x, k)),
        add_products(isa, b, and_(byte, splat_i32(FOURS)), broadcast_i32(x, k + 4)),
        add_products(isa, c, and_(byte, splat_i32(SIXTEENS)), broadcast_i32(x, k + 8)),
        add_products(isa, d, and_(byte, splat_i32(SIXTY_FOURS)), broadcast_i32(x, k + 12)),
    )


@kernel
def _total_four(isa, sums):
    a, b, c, d = sums
    rest = add(total_products(isa, c), shift_right_signed(total_products(isa, d), 2))
    rest = add(total_products(isa, b), shift_right_signed(rest, 2))
    return add(total_products(isa, a), shift_right_signed(rest, 2))


@kernel
def base_3_sums(isa, x, row, w, panel):
    """-> two i32x16, as ``two_bit_sums``"""
    chunks = w.shape[1]
    start, k = panel * 128 * chunks, row * x.shape[1]
    upper = lower = splat_i32(np.int32(0))
    for block in range(0, chunks, BASE_3_CHUNKS):
        zero = no_products(isa)
        a = b = c = d = (zero, zero, zero, zero, zero)
        for chunk in range(block, min(block + BASE_3_CHUNKS, chunks)):
            at = start + 128 * chunk
            prefetch(w, at + AHEAD)
            prefetch(w, at + AHEAD + 64)
            a, b = _add_five(isa, a, b, load_i32(w, at), x, k + 20 * chunk)
            c, d = _add_five(isa, c, d, load_i32(w, at + 64), x, k + 20 * chunk)
        upper, lower = add(upper, _total_five(isa, a, b)), add(lower, _total_five(isa, c, d))
    return upper, lower


@kernel
def _add_five(isa, byte_sums, next_sums, byte, x, k):
    a, b, c, d, e = byte_sums
    f, g, h, i, j = next_sums
    a, f, byte = _add_digit(isa, a, f, byte, broadcast_i32(x, k))
    b, g, byte = _add_digit(isa, b, g, byte, broadcast_i32(x, k + 4))
    c, h, byte = _add_digit(isa, c, h, byte, broadcast_i32(x, k + 8))
    d, i, byte = _add_digit(isa, d, i, byte, broadcast_i32(x, k + 12))
    e, j, byte = _add_digit(isa, e, j, byte, broadcast_i32(x, k + 16))
    return (a, b, c, d, e), (f, g, h, i, j)


@kernel
def _add_digit(isa, byte_sum, next_sum, byte, x):
    following = triple_bytes(byte)
    byte_sum = add_products(isa, byte_sum, byte, x)
    return byte_sum, add_products(isa, next_sum, following, x), following


@kernel
def _total_five(isa, byte_sums, next_sums):
    once = _sum_of_five(isa, byte_sums)
    three = add(add(once, once), once)
    return shift_right_signed(sub(three, _sum_of_five(isa, next_sums)), 8)


@kernel
def _sum_of_five(isa, sums):
    a, b, c, d, e = sums
    total = add(total_products(isa, a), total_products(isa, b))
    total = add(total, add(total_products(isa, c), total_products(isa, d)))
    return add(total, total_products(isa, e))
