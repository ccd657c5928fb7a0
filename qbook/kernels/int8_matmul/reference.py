"""The product of codes in 64-bit integers.  Book: 2.1.3, 6.2"""

import numpy as np


def accumulate(x_codes, w_codes, x_zero_point=0, w_zero_point=0):
    """x_codes [samples, in], w_codes [out, in] -> sum_k (x - z_x)(w - z_w), int64 [samples, out]

    x_zero_point: an integer or [samples];  w_zero_point: an integer or [out]
    """
    x = np.asarray(x_codes, np.int64) - np.reshape(x_zero_point, (-1, 1))
    w = np.asarray(w_codes, np.int64) - np.reshape(w_zero_point, (-1, 1))
    return x @ w.T
