"""The decomposition in NumPy, float64: which columns are outliers, and the two products.

Dettmers et al. 2022, arXiv:2208.07339, section 3.2, eq. 8.  Book: 5.1, 6.2
"""

import numpy as np

from qbook import affine


def outlier_columns(x, threshold):
    """x [samples, in] -> the columns with a magnitude of at least threshold, ascending"""
    return np.flatnonzero((np.abs(x) >= np.float32(threshold)).any(axis=0))


def matmul(x, w_codes, w_scale, w_float, threshold):
    """x float32 [samples, in] -> x w^T, float64 [samples, out]

    w_codes, w_scale:  int8 [out, in] and float32 [out]
    w_float:           [out, in], what outliers are multiplied with
    """
    columns = outlier_columns(x, threshold)
    rest = x.copy()
    rest[:, columns] = 0
    qparams = affine.choose_qparams(rest, 8, axis=1)
    codes = affine.quantize(rest, qparams).astype(np.int64)
    sums = codes @ w_codes.astype(np.int64).T
    outliers = x[:, columns].astype(np.float64) @ w_float[:, columns].astype(np.float64).T
    return sums * (qparams.scale.astype(np.float64) * w_scale) + outliers
