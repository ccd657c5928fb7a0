"""The decomposition with exact sums: ``qbook.llm.llm_int8``, its two products in float64.

Dettmers et al. 2022, arXiv:2208.07339, section 3.2, eq. 8.  Book: 5.1, 6.2
"""

import numpy as np

from qbook.llm import llm_int8


def outlier_columns(x, threshold):
    """x [samples, in] -> the columns with a magnitude of at least threshold, ascending"""
    return llm_int8.outlier_columns(x, np.float32(threshold))


def matmul(x, w_codes, w_scale, w_float, threshold):
    """x float32 [samples, in] -> x w^T, float64 [samples, out]

    w_codes, w_scale:  int8 [out, in] and float32 [out]
    w_float:           [out, in], what outliers are multiplied with
    """
    codes, qparams, columns = llm_int8.quantize_inputs(x, np.float32(threshold))
    sums = codes.astype(np.int64) @ w_codes.astype(np.int64).T
    outliers = x[:, columns].astype(np.float64) @ w_float[:, columns].astype(np.float64).T
    return sums * (qparams.scale.astype(np.float64) * w_scale) + outliers
