"""Sixteen values at a time: the range of a row, then its codes while it is still in the cache.

A row is read twice.  The second time it comes from the first- or second-level cache, if it is not
longer than that; rows of up to LONG bytes are fetched while the one before is quantized, or the
memory would idle.  Longer rows come from the third level or from memory twice, and so does x where
columns share a scale.

The arithmetic is that of ``affine``, operation for operation.  Book: 6.2
"""

import numpy as np
from numba import prange

from qbook.kernels.compiled import kernel
from qbook.kernels.simd.arithmetic import add, and_, mul, splat_f32, splat_i32, sub, to_f32
from qbook.kernels.simd.convert import (
    bits_of,
    codes_at,
    largest_lane,
    load_codes,
    magnitude,
    maximum,
    minimum,
    put_codes,
    put_values,
    smallest_lane,
    values_at,
)
from qbook.kernels.simd.memory import load_f32, prefetch, store

LANES, STEP = 16, 64
# Rows that share a load and a store of what they add to.
BAND = 4
# Bytes: how far a stream is fetched ahead, and the longest row that is fetched during another.
AHEAD, LONG = 8192, 1 << 19
# 2^23 + 2^22: numbers from 2^23 to 2^24 have no digits behind the point, so that adding it rounds,
# ties to even, and leaves the integer in the low bits.
ROUNDER = np.float32(12582912)
ROUNDER_BITS = np.int32(0x4B400000)
SMALLEST_NORMAL = np.finfo(np.float32).smallest_normal


@kernel
def codes_of(x, inverse, zero_point, low, high):
    """x f32x16 -> i32x16, codes in the low bytes; low, high: ``bound`` of qmin and qmax

    The clamp is one of integers: far from ROUNDER the bits are no codes any more, but still in the
    order of the numbers, and negative numbers have negative bits.
    """
    shifted = add(bits_of(add(mul(x, inverse), splat_f32(ROUNDER))), zero_point)
    return minimum(maximum(shifted, low), high)


@kernel
def bound(limit):
    return splat_i32(np.int32(ROUNDER_BITS + np.int32(limit)))


@kernel(parallel=True)
def quantize_rows(x, symmetric, limits, codes, scale, zero_point, worst, threads):
    """x float32 [rows, n] -> fills codes int8 [rows, n], scale [rows], zero_point int32 [rows]

    symmetric:  zero_point stays, scale from the largest |x|; else both from the range
    limits:     (qmin, qmax), float32
    worst:      int32 [threads], ``magnitude`` of the largest |x| each has seen
    All arrays are contiguous; unsigned codes are written as the same bits.
    """
    rows = x.shape[0]
    if threads == 1:
        worst[0] = _rows(x, 0, rows, symmetric, limits, codes, scale, zero_point)
    else:
        for t in prange(threads):
            first, last = rows * t // threads, rows * (t + 1) // threads
            worst[t] = _rows(x, first, last, symmetric, limits, codes, scale, zero_point)


@kernel
def _rows(x, first, last, symmetric, limits, codes, scale, zero_point):
    (qmin, qmax), worst = limits, splat_i32(np.int32(0))
    length = 4 * x.shape[1]
    ahead = AHEAD + length if length <= LONG else AHEAD
    for row in range(first, last):
        low, high = _range(x, row * x.shape[1], x.shape[1])
        step = np.float32(1)
        if low != high and symmetric:
            step = max(max(-low, high) / (qmax - np.float32(zero_point[row])), SMALLEST_NORMAL)
        elif low != high:
            half = (qmax - qmin) / np.float32(2)
            step = max((high / np.float32(2) - low / np.float32(2)) / half, SMALLEST_NORMAL)
        if not symmetric:
            steps = np.float32(np.float32(low / step + ROUNDER) - ROUNDER)
            zero_point[row] = np.int32(min(max(qmin - steps, qmin), qmax))
        scale[row] = step
        found = _quantize_row(x, row, np.float32(1) / step, zero_point[row], limits, codes, ahead)
        worst = maximum(worst, found)
    return largest_lane(worst)


@kernel
def _range(x, at, n):
    """-> the lowest and highest of 0 and x[at: at + n], NaN left out"""
    # Two of each at once: one alone would wait for itself.
    low = other_low = high = other_high = splat_f32(np.float32(0))
    whole = n // STEP * STEP
    for k in range(4 * at, 4 * (at + whole), 4 * STEP):
        prefetch(x, k + AHEAD)
        prefetch(x, k + AHEAD + 64)
        prefetch(x, k + AHEAD + 128)
        prefetch(x, k + AHEAD + 192)
        a, b, c, d = load_f32(x, k), load_f32(x, k + 64), load_f32(x, k + 128), load_f32(x, k + 192)
        low, high = minimum(b, minimum(a, low)), maximum(b, maximum(a, high))
        other_low = minimum(d, minimum(c, other_low))
        other_high = maximum(d, maximum(c, other_high))
    for k in range(whole, n, LANES):
        a = values_at(x, at + k, n - k)
        low, high = minimum(a, low), maximum(a, high)
    return smallest_lane(minimum(low, other_low)), largest_lane(maximum(high, other_high))


@kernel
def _quantize_row(x, row, inverse, zero_point, limits, codes, ahead):
    """Fills codes[row] -> i32x16, magnitudes of the largest"""
    n, worst = x.shape[1], splat_i32(np.int32(0))
    factor, zero = splat_f32(inverse), splat_i32(zero_point)
    low, high = bound(limits[0]), bound(limits[1])
    for k in range(0, n, LANES):
        at = row * n + k
        prefetch(x, 4 * at + ahead)
        values = values_at(x, at, n - k)
        worst = maximum(worst, magnitude(values))
        put_codes(codes, at, n - k, codes_of(values, factor, zero, low, high))
    return worst


@kernel
def _quantize_columns(x, row, inverse, zero_point, sign, limits, codes):
    """As ``_quantize_row``, inverse and zero_point by column; sign: see ``quantize_with``"""
    n, worst = x.shape[1], splat_i32(np.int32(0))
    low, high, used = bound(limits[0]), bound(limits[1]), splat_i32(sign)
    for k in range(0, n, LANES):
        at = row * n + k
        prefetch(x, 4 * at + AHEAD)
        values = values_at(x, at, n - k)
        worst = maximum(worst, magnitude(values))
        factor, zero = load_f32(inverse, 4 * k), and_(load_codes(zero_point, k), used)
        put_codes(codes, at, n - k, codes_of(values, factor, zero, low, high))
    return worst


@kernel(parallel=True)
def quantize_with(x, inverse, zero_point, by_column, sign, limits, codes, worst, threads):
    """x [rows, n], inverse and zero_point int8 -> fills codes int8 [rows, n]

    by_column:  inverse and zero_point are [n], filled up to whole vectors; else [rows]
    sign:       int32, the bits of a code that count: -1 for int8, 255 for uint8 read as int8
    """
    rows = x.shape[0]
    if threads == 1:
        worst[0] = _with(x, 0, rows, inverse, zero_point, by_column, sign, limits, codes)
    else:
        for t in prange(threads):
            first, last = rows * t // threads, rows * (t + 1) // threads
            worst[t] = _with(x, first, last, inverse, zero_point, by_column, sign, limits, codes)


@kernel
def _with(x, first, last, inverse, zero_point, by_column, sign, limits, codes):
    worst = splat_i32(np.int32(0))
    for row in range(first, last):
        if by_column:
            found = _quantize_columns(x, row, inverse, zero_point, sign, limits, codes)
        else:
            zero = np.int32(zero_point[row] & sign)
            found = _quantize_row(x, row, inverse[row], zero, limits, codes, AHEAD)
        worst = maximum(worst, found)
    return largest_lane(worst)


@kernel(parallel=True)
def column_ranges(x, low, high, threads):
    """x [rows, n] -> lowers low and raises high, float32 [threads, n filled up], NaN left out"""
    rows = x.shape[0]
    if threads == 1:
        _column_ranges(x, 0, rows, low, high, 0)
    else:
        for t in prange(threads):
            _column_ranges(x, rows * t // threads, rows * (t + 1) // threads, low, high, t)


@kernel
def _column_ranges(x, first, last, low, high, t):
    n = x.shape[1]
    for start in range(first, last, BAND):
        for k in range(0, n, LANES):
            to = 4 * (t * low.shape[1] + k)
            lowest, highest = load_f32(low, to), load_f32(high, to)
            for i in range(BAND):
                # The last row once more where the band overruns: a range does not mind.
                at = min(start + i, last - 1) * n + k
                prefetch(x, 4 * at + AHEAD // BAND)
                values = values_at(x, at, n - k)
                lowest, highest = minimum(values, lowest), maximum(values, highest)
            store(low, to, lowest)
            store(high, to, highest)


@kernel(parallel=True)
def dequantize(codes, scale, zero_point, by_column, sign, out, threads):
    """codes int8 [rows, n]; scale, zero_point, sign as in ``quantize_with`` -> fills out float32"""
    rows = codes.shape[0]
    if threads == 1:
        _dequantize(codes, 0, rows, scale, zero_point, by_column, sign, out)
    else:
        for t in prange(threads):
            first, last = rows * t // threads, rows * (t + 1) // threads
            _dequantize(codes, first, last, scale, zero_point, by_column, sign, out)


@kernel
def _dequantize(codes, first, last, scale, zero_point, by_column, sign, out):
    n, used = codes.shape[1], splat_i32(sign)
    for row in range(first, last):
        own = 0 if by_column else row
        factor, zero = splat_f32(scale[own]), splat_i32(np.int32(zero_point[own] & sign))
        for k in range(0, n, LANES):
            at = row * n + k
            prefetch(codes, at + AHEAD)
            if by_column:
                factor, zero = load_f32(scale, 4 * k), and_(load_codes(zero_point, k), used)
            steps = to_f32(sub(and_(codes_at(codes, at, n - k), used), zero))
            put_values(out, at, n - k, mul(steps, factor))
