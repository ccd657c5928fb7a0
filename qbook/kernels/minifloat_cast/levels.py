"""NF4 in vectors: count the boundaries below a number, look its level up again.

The levels are uneven, so no arithmetic finds a code: a binary search does, sixteen at once, and a
choice by the bits of the code finds the level.  Two codes share a byte, the first one above.

``bounds`` and ``levels`` are the tables of ``nf4``.  Book: 2.5, 6.2
"""

import numpy as np
from numba import prange

from qbook.kernels.compiled import kernel
from qbook.kernels.minifloat_cast.vectors import AHEAD, LANES, part
from qbook.kernels.simd.arithmetic import (
    and_,
    mul,
    or_,
    shift_left,
    shift_right,
    splat_f32,
    splat_i32,
)
from qbook.kernels.simd.convert import (
    alternate_first,
    alternate_second,
    codes_at,
    count_below,
    evens,
    largest_lane,
    look_up,
    magnitude,
    maximum,
    odds,
    put_codes,
    put_values,
    values_at,
)
from qbook.kernels.simd.memory import prefetch


@kernel(parallel=True)
def encode(x, bounds, codes, worst, threads):
    """x float32 [n] contiguous -> fills codes uint8 [n]; worst: see ``vectors.encode``"""
    n = x.shape[0]
    if threads == 1:
        worst[0] = _encode(x, 0, n, bounds, codes)
    else:
        for t in prange(threads):
            worst[t] = _encode(x, part(n, t, threads), part(n, t + 1, threads), bounds, codes)


@kernel
def _encode(x, first, last, bounds, codes):
    worst = splat_i32(np.int32(0))
    for k in range(first, last, LANES):
        prefetch(x, 4 * k + AHEAD)
        values = values_at(x, k, last - k)
        worst = maximum(worst, magnitude(values))
        put_codes(codes, k, last - k, count_below(bounds, values))
    return largest_lane(worst)


@kernel(parallel=True)
def quantize(x, size, smallest, bounds, packed, absmax, worst, threads):
    """x float32 [n] in blocks of ``size`` -> fills packed uint8 [ceil(n / 2)], absmax [blocks]

    size:  a multiple of 32;  smallest: the least that a block is divided by
    """
    blocks = absmax.shape[0]
    if threads == 1:
        worst[0] = _quantize(x, size, smallest, 0, blocks, bounds, packed, absmax)
    else:
        for t in prange(threads):
            first, last = blocks * t // threads, blocks * (t + 1) // threads
            worst[t] = _quantize(x, size, smallest, first, last, bounds, packed, absmax)


@kernel
def _quantize(x, size, smallest, first, last, bounds, packed, absmax):
    worst = np.int32(0)
    for block in range(first, last):
        begin = block * size
        end = min(begin + size, x.shape[0])
        largest = splat_i32(np.int32(0))
        for k in range(begin, end, LANES):
            prefetch(x, 4 * k + AHEAD)
            largest = maximum(largest, magnitude(values_at(x, k, end - k)))
        found = np.int32(largest_lane(largest))
        worst, absmax[block] = max(worst, found), found.view(np.float32)
        inverse = splat_f32(np.float32(1) / max(absmax[block], smallest))
        for k in range(begin, end, 2 * LANES):
            codes = count_below(bounds, mul(values_at(x, k, end - k), inverse))
            behind = k + LANES
            others = count_below(bounds, mul(values_at(x, behind, max(end - behind, 0)), inverse))
            pairs = or_(shift_left(evens(codes, others), 4), odds(codes, others))
            put_codes(packed, k // 2, (end - k + 1) // 2, pairs)
    return worst


@kernel(parallel=True)
def dequantize(packed, levels, absmax, size, out, threads):
    """packed uint8 [ceil(n / 2)], absmax float32 [blocks] -> fills out float32 [n]"""
    blocks = absmax.shape[0]
    if threads == 1:
        _dequantize(packed, levels, absmax, size, 0, blocks, out)
    else:
        for t in prange(threads):
            first, last = blocks * t // threads, blocks * (t + 1) // threads
            _dequantize(packed, levels, absmax, size, first, last, out)


@kernel
def _dequantize(packed, levels, absmax, size, first, last, out):
    low = splat_i32(np.int32(15))
    for block in range(first, last):
        begin, factor = block * size, splat_f32(absmax[block])
        end = min(begin + size, out.shape[0])
        for k in range(begin, end, 2 * LANES):
            prefetch(packed, k // 2 + AHEAD)
            pairs = codes_at(packed, k // 2, (end - k + 1) // 2)
            above, below = shift_right(pairs, 4), and_(pairs, low)
            codes, others = alternate_first(above, below), alternate_second(above, below)
            put_values(out, k, end - k, mul(look_up(levels, codes), factor))
            if end - k > LANES:
                values = mul(look_up(levels, others), factor)
                put_values(out, k + LANES, end - k - LANES, values)


@kernel(parallel=True)
def decode(codes, levels, out, threads):
    """codes uint8 [n], 0 to 15 -> fills out float32 [n]"""
    n = codes.shape[0]
    if threads == 1:
        _decode(codes, levels, 0, n, out)
    else:
        for t in prange(threads):
            _decode(codes, levels, part(n, t, threads), part(n, t + 1, threads), out)


@kernel
def _decode(codes, levels, first, last, out):
    for k in range(first, last, LANES):
        prefetch(codes, k + AHEAD)
        put_values(out, k, last - k, look_up(levels, codes_at(codes, k, last - k)))
