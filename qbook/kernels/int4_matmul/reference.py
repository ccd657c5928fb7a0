"""The same arithmetic in NumPy, an operation at a time.  Book: 6.2"""

import numpy as np

from qbook import affine
from qbook.kernels.int8_matmul.reference import accumulate

X_BITS = 8


def w4a8(x, w_codes, w_qparams, bias=None):
    """x float32 [samples, in], w_codes [out, in] and their QParams -> float32 [samples, out]

    Each group of a row of x gets a scale of its own, max |x| / 127, and codes of 8 bits; then

        y = sum over groups: (x_scale w_scale) * sum_k x_code (w_code - w_zero_point)   + bias

    The sum over k is of integers, exact.  Everything else is float32, rounded after each operation,
    groups in their order.
    """
    samples, in_ = x.shape
    out, groups = w_qparams.scale.shape[:2]
    group_size = in_ // groups if groups > 1 else None
    x_qparams = affine.choose_qparams(x, X_BITS, axis=1, group_size=group_size)
    x_codes = affine.quantize(x, x_qparams)
    x_scale = x_qparams.scale.reshape(samples, max(groups, 1))
    w_scale = w_qparams.scale.reshape(out, groups)
    w_zero_point = w_qparams.zero_point.reshape(out, groups)
    total = np.zeros((samples, out), np.float32)
    for g in range(groups):
        inputs = slice(g * (group_size or in_), (g + 1) * (group_size or in_))
        sums = accumulate(x_codes[:, inputs], w_codes[:, inputs], 0, w_zero_point[:, g])
        total += sums.astype(np.float32) * (x_scale[:, [g]] * w_scale[:, g])
    return total if bias is None else total + bias


def w4a32(x, w_codes, w_qparams, bias=None):
    """x float32 [samples, in] -> x times the dequantized weight in float64, rounded to float32"""
    w_hat = affine.dequantize(w_codes, w_qparams).astype(np.float64)
    total = x.astype(np.float64) @ w_hat.T
    return (total if bias is None else total + bias).astype(np.float32)


def w4a16(x, w_codes, w_qparams, bias=None):
    """``w4a32`` of x float32 rounded to bfloat16: products and sums in float64, rounded once"""
    return w4a32(round_to_bfloat16(x), w_codes, w_qparams, bias)


def round_to_bfloat16(x):
    """x float32 -> float32, the nearest numbers whose lower sixteen bits are 0, ties to even"""
    bits = x.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return np.where(np.isnan(x), x, rounded.astype(np.uint32).view(np.float32))
