"""Rows and columns to int8 and back: the public calls.  They check, allocate and launch.

    quantize              a scale for each row, or column, from its largest magnitude
    quantize_asymmetric   scale and zero-point from its lowest and highest value
    quantize_with         scales that are given: static quantization
    dequantize            back to float32

Bit for bit what ``affine`` gives; columns that share a scale cost a second pass over memory.
Activations have a scale per row (a token), weights [out, in] too.  Book: 2.1, 6.2
"""

import numpy as np

from qbook import affine
from qbook.kernels import aligned, isa, threads
from qbook.kernels.arguments import result
from qbook.kernels.rowwise import reference, vectors
from qbook.kernels.simd.convert import INFINITY


def quantize(x, axis=1, *, out=None, use=None, num_threads=None):
    """x [rows, n] float32, any strides -> codes int8 [rows, n] from -127 to 127, scale float32

    axis:  of x that shares a scale: 1 -> scale [rows, 1], 0 -> scale [1, n]
    out:   int8 [rows, n], contiguous, to be filled; None: a new array
    use:   an instruction set, see ``isa``;  num_threads: see ``threads``
    A row of zeros, or an empty one, gets scale 1.  Raises ValueError for NaN or infinity in x (out
    is then undefined), for another type, number of axes, axis or out.
    """
    codes, scale, _ = _dynamic(x, axis, True, True, out, use, num_threads)
    return codes, scale


def quantize_asymmetric(x, axis=1, *, signed=True, out=None, use=None, num_threads=None):
    """x [rows, n] float32 -> codes [rows, n], scale float32, zero_point int32 of scale's shape

    signed:  codes int8 from -128 to 127; else uint8 from 0 to 255
    Other arguments and errors as in ``quantize``.
    """
    return _dynamic(x, axis, False, signed, out, use, num_threads)


def quantize_with(
    x, scale, zero_point=0, qmin=-127, qmax=127, *, out=None, use=None, num_threads=None
):
    """x [rows, n] float32 -> codes [rows, n], int8 if that holds qmin to qmax, else uint8

    scale:       float32 [rows, 1], [1, n] or a number; at least the smallest normal number
    zero_point:  integers from qmin to qmax, of scale's shape or one
    Values outside the range saturate.  Other arguments and errors as in ``quantize``.
    """
    x = _checked(x)
    dtype = _code_dtype(qmin, qmax)
    scale, zero_point = _qparams(x.shape, scale, zero_point, qmin, qmax)
    codes = result(out, x.shape, dtype)
    chosen = isa.choose(use)
    if chosen == isa.REFERENCE:
        codes[...] = reference.quantize_with(x, scale, zero_point, qmin, qmax)
    elif codes.size:
        _launch_with(x, scale, zero_point, (qmin, qmax), codes, threads.count(num_threads))
    return codes


def dequantize(codes, scale, zero_point=0, *, out=None, use=None, num_threads=None):
    """codes [rows, n] int8 or uint8 -> scale * (codes - zero_point), float32 [rows, n]

    scale, zero_point:  as in ``quantize_with``;  out: float32 [rows, n], contiguous, or None
    """
    codes = np.asarray(codes)
    if codes.dtype not in (np.int8, np.uint8) or codes.ndim != 2:
        raise ValueError(
            f"codes are of type {codes.dtype} and shape {codes.shape}; pass int8 or uint8 [rows, n]"
        )
    info = np.iinfo(codes.dtype)
    scale, zero_point = _qparams(codes.shape, scale, zero_point, info.min, info.max)
    values = result(out, codes.shape, np.float32)
    chosen = isa.choose(use)
    if chosen == isa.REFERENCE:
        values[...] = reference.dequantize(codes, scale, zero_point)
    elif codes.size:
        given = _spread(codes.shape, scale, zero_point, codes.dtype)
        codes = np.ascontiguousarray(codes).view(np.int8)
        vectors.dequantize(codes, *given, values, threads.count(num_threads))
    return values


def _dynamic(x, axis, symmetric, signed, out, use, num_threads):
    x = _checked(x)
    if axis not in (0, 1):
        raise ValueError(f"axis={axis!r} is no axis of [rows, n]; choose 1 or 0")
    qmin, qmax, middle = affine.code_range(8, symmetric=symmetric, signed=signed)
    codes = result(out, x.shape, np.int8 if signed else np.uint8)
    chosen = isa.choose(use)
    if chosen == isa.REFERENCE or not codes.size:
        codes[...], scale, zero_point = reference.quantize(
            x, axis, symmetric=symmetric, signed=signed
        )
        return codes, scale, zero_point
    count = threads.count(num_threads)
    if axis == 1:
        return _by_rows(x, symmetric, (qmin, qmax), middle, codes, count)
    low, high = _column_ranges(x, count)
    qparams = affine.qparams_from_range(low, high, 8, symmetric=symmetric, signed=signed)
    _launch_with(x, qparams.scale, qparams.zero_point, (qmin, qmax), codes, count)
    return codes, qparams.scale, qparams.zero_point


def _by_rows(x, symmetric, limits, middle, codes, count):
    rows, worst = x.shape[0], np.zeros(count, np.int32)
    scale = np.empty((rows, 1), np.float32)
    zero_point = np.full((rows, 1), middle, np.int32)
    vectors.quantize_rows(
        x,
        symmetric,
        (np.float32(limits[0]), np.float32(limits[1])),
        codes.view(np.int8),
        scale.reshape(-1),
        zero_point.reshape(-1),
        worst,
        count,
    )
    _refuse(worst)
    return codes, scale, zero_point


def _column_ranges(x, count):
    """-> the lowest and highest value of each column and 0, float32 [1, n]"""
    n = x.shape[1]
    low, high = np.zeros((2, count, n + -n % vectors.LANES), np.float32)
    vectors.column_ranges(x, low, high, count)
    return low.min(axis=0, keepdims=True)[:, :n], high.max(axis=0, keepdims=True)[:, :n]


def _launch_with(x, scale, zero_point, limits, codes, count):
    given = _spread(x.shape, np.float32(1) / scale, zero_point, codes.dtype)
    worst = np.zeros(count, np.int32)
    limits = np.float32(limits[0]), np.float32(limits[1])
    vectors.quantize_with(x, *given, limits, codes.view(np.int8), worst, count)
    _refuse(worst)


def _refuse(worst):
    if not worst.max() < INFINITY:
        raise ValueError("x holds NaN or infinity; quantize finite values only")


def _checked(x):
    """-> x contiguous"""
    x = np.asarray(x)
    if x.dtype != np.float32 or x.ndim != 2:
        raise ValueError(
            f"x is of type {x.dtype} and shape {x.shape}; pass float32 [rows, n], "
            "or use qbook.affine for other types"
        )
    return np.ascontiguousarray(x)


def _code_dtype(qmin, qmax):
    for dtype in (np.int8, np.uint8):
        info = np.iinfo(dtype)
        if info.min <= qmin <= qmax <= info.max:
            return dtype
    raise ValueError(f"qmin={qmin} to qmax={qmax} fits neither int8 nor uint8")


def _qparams(shape, scale, zero_point, qmin, qmax):
    """-> scale float32 and zero_point int32, both [rows, 1] or both [1, n] or [1, 1]"""
    scale, zero_point = np.asarray(scale), np.asarray(zero_point)
    rows, n = shape
    if scale.ndim == 0:
        scale = scale.reshape(1, 1)
    if scale.dtype.kind != "f" or scale.shape not in ((rows, 1), (1, n), (1, 1)):
        raise ValueError(
            f"scale is of type {scale.dtype} and shape {scale.shape}; "
            f"pass floats of shape ({rows}, 1) or (1, {n}), or one number"
        )
    scale = scale.astype(np.float32)
    if scale.size and not (scale.min() >= vectors.SMALLEST_NORMAL and scale.max() < np.inf):
        raise ValueError(
            f"scale from {scale.min()} to {scale.max()} has no use; "
            f"pass finite numbers of at least {vectors.SMALLEST_NORMAL}"
        )
    if zero_point.dtype.kind not in "iu" or zero_point.size not in (1, scale.size):
        raise ValueError(
            f"zero_point is of type {zero_point.dtype} and shape {zero_point.shape}; "
            f"pass integers of scale's shape {scale.shape}"
        )
    if zero_point.size and not (zero_point.min() >= qmin and zero_point.max() <= qmax):
        raise ValueError(
            f"zero_point from {zero_point.min()} to {zero_point.max()} is no code; "
            f"choose {qmin} to {qmax}"
        )
    if zero_point.size == 1:
        return scale, np.full(scale.shape, zero_point.item(), np.int32)
    return scale, zero_point.reshape(scale.shape).astype(np.int32)


def _spread(shape, factor, zero_point, dtype):
    """[rows, 1] or [1, n] -> factor, zero_point, by_column, sign of ``vectors.quantize_with``"""
    rows, n = shape
    zero_point = zero_point.astype(dtype).view(np.int8)
    sign = np.int32(-1 if dtype == np.int8 else 255)
    by_column = factor.shape != (rows, 1) and factor.shape == (1, n)
    count = n + -n % vectors.LANES if by_column else rows
    spread = []
    for values in (factor, zero_point):
        spread.append(aligned.zeros(count, values.dtype))
        spread[-1][: n if by_column else rows] = values.reshape(-1)
    return *spread, by_column, sign
