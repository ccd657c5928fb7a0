"""The product as plain loops: what a reader would write, and what LLVM makes of it.

    naive    i, j, k over w [in, out]: each step of k jumps a whole row of w
    dot      rows of x against rows of w, in 32 bits: LLVM vectorizes the sum
    lanes    rows of w side by side: LLVM vectorizes over outputs

Versions to be slower than ``vectors``, and to be read.  Book: 6.2
"""

import numpy as np

from qbook.kernels.compiled import kernel


@kernel
def naive(x, w_transposed, out):
    """x int8 [samples, in], w_transposed int8 [in, out] -> fills out int32 [samples, out]"""
    samples, in_ = x.shape
    for i in range(samples):
        for j in range(w_transposed.shape[1]):
            total = np.int32(0)
            for k in range(in_):
                total += np.int32(x[i, k]) * np.int32(w_transposed[k, j])
            out[i, j] = total


@kernel
def dot(x, w, out):
    """x int8 [samples, in], w int8 [out, in] -> fills out int32 [samples, out]"""
    samples, in_ = x.shape
    for i in range(samples):
        row = x[i]
        for j in range(w.shape[0]):
            other = w[j]
            total = np.int32(0)
            for k in range(in_):
                # Each step cast: int8 * int8 is int64 in Numba, and eight lanes fewer a register.
                total = np.int32(total + np.int32(np.int32(row[k]) * np.int32(other[k])))
            out[i, j] = total


@kernel
def lanes(x, w_transposed, out):
    """x int8 [samples, in], w_transposed int8 [in, out] -> fills out int32 [samples, out]"""
    samples, in_ = x.shape
    for i in range(samples):
        sums = out[i]
        sums[:] = 0
        for k in range(in_):
            value, row = np.int32(x[i, k]), w_transposed[k]
            for j in range(row.shape[0]):
                sums[j] = np.int32(sums[j] + np.int32(value * np.int32(row[j])))
