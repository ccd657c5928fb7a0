"""Squared errors of many candidate scales: a block of x stays in the cache for all of them.

    d = x - scale * round(clamp(x / scale, lowest, highest))     sum of d^2 for each candidate

One pass over x in memory, whatever the number of candidates.  Sums of a block are float32, lane by
lane; from block to block, float64.  Book: 2.7, 6.2
"""

import numpy as np
from numba import prange

from qbook.kernels.compiled import kernel
from qbook.kernels.simd.arithmetic import add, and_, mul, multiply_add, splat_f32, splat_i32, sub
from qbook.kernels.simd.convert import (
    bits_of,
    largest_lane,
    load_first_f32,
    maximum,
    minimum,
)
from qbook.kernels.simd.memory import load_f32, store
from qbook.kernels.simd.search import round_even, wide_sum

# 8 KiB, a quarter of the smallest first-level caches.
BLOCK = 2048
# Sums that grow side by side, because an addition takes as long as four can be started in.
VECTORS = 4
# Additions that a float32 sum of a block passes through: a lane's own, then those of the vectors.
DEPTH = BLOCK // (16 * VECTORS) + 2


@kernel(parallel=True)
def extrema(x, low, high, top, threads):
    """x float32 [rows, n] contiguous -> fills low, high [rows, parts] and top, int32, alike

    top:  the bits of the largest |x|, which are ordered as the numbers are; NaN is above infinity
    A part of a row is n / parts values long, at least one.
    """
    tasks = low.size
    if threads == 1:
        _extrema(x, low, high, top, 0, tasks)
    else:
        for t in prange(threads):
            _extrema(x, low, high, top, tasks * t // threads, tasks * (t + 1) // threads)


@kernel
def _extrema(x, low, high, top, first, last):
    n, parts = x.shape[1], low.shape[1]
    lanes = np.empty(16, np.float32)
    for task in range(first, last):
        row, part = task // parts, task % parts
        start, end = n * part // parts, n * (part + 1) // parts
        least = most = splat_f32(x[row, start])
        bits = splat_i32(np.int32(0))
        body = start + (end - start) // 16 * 16
        for k in range(start, body, 16):
            value = load_f32(x, 4 * (row * n + k))
            least, most = minimum(least, value), maximum(most, value)
            bits = maximum(bits, and_(bits_of(value), splat_i32(np.int32(0x7FFFFFFF))))
        if body < end:
            value = load_first_f32(x, 4 * (row * n + body), end - body)
            bits = maximum(bits, and_(bits_of(value), splat_i32(np.int32(0x7FFFFFFF))))
        store(lanes, 0, least)
        low[row, part] = lanes.min()
        store(lanes, 0, most)
        high[row, part] = lanes.max()
        for k in range(body, end):
            low[row, part] = min(low[row, part], x[row, k])
            high[row, part] = max(high[row, part], x[row, k])
        top[row, part] = largest_lane(bits)


@kernel(parallel=True)
def squared(isa, x, grid, wanted, first, stride, sums, threads):
    """x float32 [rows, n] contiguous -> fills sums float64 [rows, blocks, candidates]

    grid:    float32 [rows, 4, candidates]: 1 / scale, lowest and highest code, scale; a code is
             counted from that of 0
    wanted:  uint8 [rows, candidates]; the sums of the others are not touched
    sums:    of blocks first, first + stride, ... of each row
    """
    tasks = sums.shape[0] * sums.shape[1]
    if threads == 1:
        _squared(isa, x, grid, wanted, first, stride, sums, 0, tasks)
    else:
        for t in prange(threads):
            start, end = tasks * t // threads, tasks * (t + 1) // threads
            _squared(isa, x, grid, wanted, first, stride, sums, start, end)


@kernel
def _squared(isa, x, grid, wanted, first, stride, sums, start, end):
    n, blocks, candidates = x.shape[1], sums.shape[1], sums.shape[2]
    # For the last blocks, all of one length.  The zeros behind have a code, and no error.
    padded = np.zeros(BLOCK, np.float32)
    for task in range(start, end):
        row, block = task // blocks, task % blocks
        at = BLOCK * (first + stride * block)
        count = min(BLOCK, n - at)
        if count < BLOCK:
            for k in range(count):
                padded[k] = x[row, at + k]
        for c in range(candidates):
            if wanted[row, c]:
                inverse, scale = grid[row, 0, c], grid[row, 3, c]
                lowest, highest = grid[row, 1, c], grid[row, 2, c]
                if count < BLOCK:
                    total = _block(isa, padded, 0, count, inverse, lowest, highest, scale)
                else:
                    offset = 4 * (row * n + at)
                    total = _block(isa, x, offset, count, inverse, lowest, highest, scale)
                sums[row, block, c] = total


@kernel
def _block(isa, x, offset, count, inverse, lowest, highest, scale):
    """The sum of one block for one candidate, float64"""
    inverse, scale = splat_f32(inverse), splat_f32(scale)
    lowest, highest = splat_f32(lowest), splat_f32(highest)
    a = b = c = d = splat_f32(np.float32(0))
    for at in range(offset, offset + 4 * count, 256):
        a = _add_square(isa, load_f32(x, at), inverse, lowest, highest, scale, a)
        b = _add_square(isa, load_f32(x, at + 64), inverse, lowest, highest, scale, b)
        c = _add_square(isa, load_f32(x, at + 128), inverse, lowest, highest, scale, c)
        d = _add_square(isa, load_f32(x, at + 192), inverse, lowest, highest, scale, d)
    return wide_sum(add(add(a, b), add(c, d)))


@kernel
def _add_square(isa, x, inverse, lowest, highest, scale, total):
    # Clamped before it is rounded: the bounds are integers, so that the order makes no difference.
    code = round_even(isa, minimum(maximum(mul(x, inverse), lowest), highest))
    error = sub(x, mul(code, scale))
    return multiply_add(error, error, total)
