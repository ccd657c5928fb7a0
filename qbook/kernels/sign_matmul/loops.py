"""The product of signs as plain loops over words of 64: three ways to count ones.

    swar     shifts and masks: sums of 2, 4, 8 neighbouring bits side by side in one word
    ctpop    LLVM's own count: one instruction a word, and vectors where the machine has them
    lanes    rows of w side by side: LLVM vectorizes over outputs, and no sum crosses lanes

Versions to be slower than ``vectors``, and to be read.  LLVM knows the idiom of ``swar`` and may
put an instruction in its place.  Book: 6.2
"""

import numpy as np

from qbook.kernels.compiled import kernel
from qbook.kernels.simd.bit_tile import count_ones


@kernel
def count_ones_swar(word):
    """uint64 -> number of ones, uint64.  Warren 2012, Hacker's Delight, section 5-1."""
    pairs = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    low, high = np.uint64(0x3333333333333333), np.uint64(0x3333333333333333) << np.uint64(2)
    fours = (pairs & low) + ((pairs & high) >> np.uint64(2))
    octets = (fours + (fours >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    # The top byte of this product is the sum of all eight.
    return (octets * np.uint64(0x0101010101010101)) >> np.uint64(56)


@kernel
def swar(x, w, count, out):
    """x [samples, words], w [out, words] uint64, count bits a row -> fills out int32"""
    for i in range(x.shape[0]):
        for j in range(w.shape[0]):
            ones = np.uint64(0)
            for k in range(x.shape[1]):
                ones += count_ones_swar(x[i, k] ^ w[j, k])
            out[i, j] = count - 2 * np.int64(ones)


@kernel
def ctpop(x, w, count, out):
    """x [samples, words], w [out, words] uint64, count bits a row -> fills out int32"""
    for i in range(x.shape[0]):
        for j in range(w.shape[0]):
            ones = np.uint64(0)
            for k in range(x.shape[1]):
                ones += count_ones(x[i, k] ^ w[j, k])
            out[i, j] = count - 2 * np.int64(ones)


@kernel
def lanes(x, w_transposed, count, out):
    """x [samples, words], w_transposed [words, out] uint64, count bits a row -> fills out int32"""
    ones = np.empty(w_transposed.shape[1], np.uint64)
    for i in range(x.shape[0]):
        ones[:] = 0
        for k in range(x.shape[1]):
            word, row = x[i, k], w_transposed[k]
            for j in range(row.shape[0]):
                ones[j] += count_ones(word ^ row[j])
        for j in range(ones.shape[0]):
            out[i, j] = count - 2 * np.int64(ones[j])
