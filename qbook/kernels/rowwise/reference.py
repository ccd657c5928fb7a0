"""Rows and columns to codes as the affine quantizer does it: what the kernels must equal.

Book: 2.1, 6.2
"""

import numpy as np

from qbook import affine


def quantize(x, axis=1, *, symmetric=True, signed=True):
    """x [rows, n] -> codes [rows, n], scale, zero_point, both [rows, 1] for axis 1, [1, n] for 0"""
    qparams = affine.choose_qparams(x, 8, axis=axis, symmetric=symmetric, signed=signed)
    return affine.quantize(x, qparams), qparams.scale, qparams.zero_point


def quantize_with(x, scale, zero_point, qmin, qmax):
    """x [rows, n], scale and zero_point of two axes that broadcast to it -> codes [rows, n]"""
    # Infinity is a step too: it saturates.
    with np.errstate(over="ignore"):
        return affine.quantize(x, affine.QParams(scale, zero_point, qmin, qmax))


def dequantize(codes, scale, zero_point):
    """codes [rows, n] -> float32 [rows, n]"""
    codes = np.asarray(codes)
    info = np.iinfo(codes.dtype)
    return affine.dequantize(codes, affine.QParams(scale, zero_point, info.min, info.max))
