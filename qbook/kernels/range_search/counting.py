"""Counting into bins: arithmetic in vectors, increments one by one, in turns on four tables.

    nearest = round((x - low) / width)        the edge next to x, from 0 to bins
    bin     = nearest - (x < edges[nearest])  the edge itself decides, whatever was rounded before

An increment that reads what the last one has just written waits for it; values next to each other
are often of one bin, and with a table for each of four neighbours they do not meet.  Book: 6.2
"""

import numpy as np
from numba import prange

from qbook.kernels.compiled import kernel
from qbook.kernels.simd.arithmetic import and_, mul, splat_f32, splat_i32, sub
from qbook.kernels.simd.convert import (
    bits_of,
    float_of,
    load_first_f32,
    maximum,
    minimum,
    where_less,
)
from qbook.kernels.simd.memory import load_f32, store
from qbook.kernels.simd.search import round_even, to_i32

# Values whose nearest edges wait in the first-level cache to be counted.
BLOCK = 1024
TABLES = 4
# Counts are 32-bit numbers in the tables; so many values cannot overflow them.
PART = 1 << 30


@kernel(parallel=True)
def count(isa, x, mask, low, above, inverse, edges, counts, threads):
    """x float32 [n] contiguous -> fills counts int64 [threads, bins + 2]

    mask:     what the bits of x are masked with: -1, or 0x7fffffff for |x|
    low, above, inverse:  float32; NaN and what is outside [low, above) go to the last of the counts
    edges:    float32 [bins + 2]: the edges, infinity for the last and -infinity behind it
    """
    n = x.shape[0]
    if threads == 1:
        _count(isa, x, mask, low, above, inverse, edges, counts, 0, 0, n)
    else:
        for t in prange(threads):
            start, end = n * t // threads, n * (t + 1) // threads
            _count(isa, x, mask, low, above, inverse, edges, counts, t, start, end)


@kernel
def _count(isa, x, mask, low, above, inverse, edges, counts, row, start, end):
    bins = edges.shape[0]
    tables = np.zeros(TABLES * bins, np.uint32)
    values, nearest = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.uint32)
    counts[row] = 0
    for part in range(start, end, PART):
        tables[:] = 0
        last = min(part + PART, end)
        for at in range(part, last, BLOCK):
            length = min(BLOCK, last - at)
            _nearest(isa, x, at, length, mask, low, above, inverse, bins, values, nearest)
            _increment(values, nearest, length, edges, tables)
        for table in range(TABLES):
            for k in range(bins):
                counts[row, k] += tables[table * bins + k]


@kernel
def _nearest(isa, x, start, length, mask, low, above, inverse, bins, values, nearest):
    """The nearest edge of a block of x; that behind the last for a value that is not counted"""
    mask, low, above = splat_i32(mask), splat_f32(low), splat_f32(above)
    inverse, zero = splat_f32(inverse), splat_f32(np.float32(0))
    last, outside = splat_f32(np.float32(bins - 2)), splat_f32(np.float32(bins - 1))
    for k in range(0, length, 16):
        if k + 16 <= length:
            value = load_f32(x, 4 * (start + k))
        else:
            value = load_first_f32(x, 4 * (start + k), length - k)
        value = float_of(and_(bits_of(value), mask))
        edge = minimum(maximum(mul(sub(value, low), inverse), zero), last)
        edge = where_less(value, low, outside, edge)
        # NaN is less than nothing, and so outside.
        edge = where_less(value, above, edge, outside)
        store(values, 4 * k, value)
        store(nearest, 4 * k, to_i32(round_even(isa, edge)))


@kernel
def _increment(values, nearest, length, edges, tables):
    bins = np.uint32(edges.shape[0])
    whole = length // TABLES * TABLES
    for i in range(0, whole, TABLES):
        for table in range(TABLES):
            edge = nearest[i + table]
            edge = np.uint32(edge - np.uint32(values[i + table] < edges[edge]))
            tables[np.uint32(edge + np.uint32(table * bins))] += np.uint32(1)
    for i in range(whole, length):
        edge = nearest[i]
        tables[np.uint32(edge - np.uint32(values[i] < edges[edge]))] += np.uint32(1)
