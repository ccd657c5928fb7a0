"""The product of signs, unpacked and multiplied in 64-bit integers.  Book: 1.2, 6.2"""

import numpy as np


def multiply(x_words, w_words, count):
    """x_words [samples, words], w_words [out, words] uint64 -> int64 [samples, out]

    The first ``count`` bits of a row stand for signs, lowest bit first, bit 1 for +1.
    """
    return unpack_signs(x_words, count) @ unpack_signs(w_words, count).T


def unpack_signs(words, count):
    """words [rows, words] uint64 -> -1 and +1, int64 [rows, count]"""
    # Bit 0 of the word is bit 0 of its first byte, on machines of either byte order.
    octets = np.ascontiguousarray(words, "<u8").view(np.uint8)
    bits = np.unpackbits(octets, axis=1, count=count, bitorder="little")
    return 2 * bits.astype(np.int64) - 1
