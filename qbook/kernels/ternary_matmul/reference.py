"""The product without a multiplication, in 64-bit integers.  Book: 6.2"""

import numpy as np


def matmul(x_codes, w_codes):
    """x_codes [samples, in], w_codes [out, in] of -1, 0, 1 -> int64 [samples, out]

    For each output: the sum of the inputs whose weight is 1, less that of those whose weight is -1.
    """
    x, w = np.asarray(x_codes, np.int64), np.asarray(w_codes)
    sums = np.empty((len(x), len(w)), np.int64)
    for column, row in enumerate(w):
        sums[:, column] = x[:, row == 1].sum(axis=1) - x[:, row == -1].sum(axis=1)
    return sums
