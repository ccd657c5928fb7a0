"""Add, subtract, skip: what "no multiplications" suggests, and why it is slow.

A branch on each weight.  Without mask registers LLVM leaves it one, and a processor that must guess
among three outcomes of random weights guesses wrong much of the time, each time at the cost of
dozens of multiplications.  With AVX-512, LLVM makes masks of the branches and adds 16 inputs at a
time; that loop still reads a whole byte for each weight, four or five times what ``packed`` reads,
and widens each x to 32 bits.  A version to be slower, and to be read.  Book: 6.2
"""

import numpy as np

from qbook.kernels.compiled import kernel


@kernel
def naive(x, w, out):
    """x int8 [samples, in], w int8 [out, in] of -1, 0, 1 -> fills out int32 [samples, out]"""
    samples, in_ = x.shape
    for i in range(samples):
        for j in range(w.shape[0]):
            total = np.int32(0)
            for k in range(in_):
                if w[j, k] > 0:
                    total = np.int32(total + np.int32(x[i, k]))
                elif w[j, k] < 0:
                    total = np.int32(total - np.int32(x[i, k]))
            out[i, j] = total
