"""Rows of x as blocks, one for each group of w, and in one row behind the other.

    codes   [8 steps int8, filled up with 0][scale float32][-sum of the codes int32]
    floats  [8 steps float32, filled up with 0][sum float32]
    pairs   [8 steps bfloat16, filled up with 0][sum float32], inputs 0 2, 1 3, 4 6, 5 7 of a step

The sum is what a zero-point of w is multiplied by.  Codes get a scale for each group: the product
converts the sum of a group to float32 at any rate, for the scales of w, so that a scale of x costs
one more multiplication, and an outlier spoils the codes of its group only, not of its row.
Book: 6.2
"""

import numpy as np
from numba import prange

from qbook.kernels.compiled import kernel

SAMPLES = 16
INFINITY = np.int32(0x7F800000)
TINY = np.float32(2.0**-126)
# Of a float32: its lower half, one less than half of what that counts, what makes a NaN stay one.
HALF, BELOW_HALF, QUIET = np.uint32(16), np.uint32(0x7FFF), np.uint32(0x40)
WITHOUT_SIGN = np.uint32(0x7FFFFFFF)
ONE, BOTH = np.uintp(1), np.uintp(3)


def quantize(x, groups, steps, threads):
    """x float32 [samples, in], contiguous -> uint8 [samples, groups (8 steps + 8)]

    Codes and scales are those of ``affine.choose_qparams`` and ``quantize`` for 8 bits.
    Raises ValueError where x holds NaN or infinity.
    """
    samples, size = x.shape[0], 8 * steps + 8
    blocks = np.zeros((samples, groups * size), np.uint8)
    if blocks.size:
        views = (blocks.view(np.int8), blocks.view(np.float32), blocks.view(np.int32))
        finite = np.empty(samples, np.bool_)
        count = threads if samples >= SAMPLES else 1
        _quantize(x, x.view(np.int32), size, views, finite, count)
        if not finite.all():
            raise ValueError("x holds NaN or infinity; quantize finite values only")
    return blocks


def copy(x, groups, steps):
    """x float32 [samples, in], contiguous -> float32 [samples, groups (8 steps + 1)]"""
    size = 8 * steps + 1
    blocks = np.zeros((x.shape[0], groups * size), np.float32)
    if blocks.size:
        _copy(x, size, blocks)
    return blocks


def round_to_bfloat16(x, groups, steps):
    """x float32 [samples, in], contiguous -> uint16 [samples, groups (8 steps + 2)]"""
    size = 8 * steps + 2
    blocks = np.zeros((x.shape[0], groups * size), np.uint16)
    if blocks.size:
        _round(x.view(np.uint32), size, blocks, blocks.view(np.float32))
    return blocks


@kernel(parallel=True)
def _quantize(x, bits, size, views, finite, threads):
    samples = x.shape[0]
    if threads == 1:
        _quantize_rows(x, bits, size, views, finite, 0, samples)
    else:
        for t in prange(threads):
            first, last = samples * t // threads, samples * (t + 1) // threads
            _quantize_rows(x, bits, size, views, finite, first, last)


@kernel(error_model="numpy")
def _quantize_rows(x, bits, size, views, finite, first, last):
    codes, scales, sums = views
    groups = codes.shape[1] // size
    group_size = np.uintp(x.shape[1] // groups)
    for row in range(first, last):
        largest_of_all = np.int32(0)
        for g in range(groups):
            # Unsigned: LLVM vectorizes no loop over an index that might be negative.
            source, target = np.uintp(g) * group_size, np.uintp(g * size)
            # The bits of |x| as integers have the order of the numbers, and a maximum of integers
            # is vectorized; NaN and infinity come last.
            largest = np.int32(0)
            for k in range(group_size):
                largest = max(largest, np.int32(bits[row, source + k] & np.int32(0x7FFFFFFF)))
            largest_of_all = max(largest_of_all, largest)
            scale = np.int32(largest).view(np.float32) / np.float32(127)
            scale = np.float32(1) if largest == 0 else max(scale, TINY)
            inverse = np.float32(1) / scale
            total = np.int32(0)
            for k in range(group_size):
                code = np.int32(np.rint(x[row, source + k] * inverse))
                codes[row, target + k] = np.int8(code)
                total = np.int32(total + code)
            end = (g + 1) * size // 4
            scales[row, end - 2] = scale
            sums[row, end - 1] = -total
        finite[row] = largest_of_all < INFINITY


@kernel
def _copy(x, size, blocks):
    groups = blocks.shape[1] // size
    group_size = np.uintp(x.shape[1] // groups)
    for row in range(x.shape[0]):
        for g in range(groups):
            source, target = np.uintp(g) * group_size, np.uintp(g * size)
            total = 0.0
            for k in range(group_size):
                value = x[row, source + k]
                blocks[row, target + k] = value
                total += value
            blocks[row, target + np.uintp(size - 1)] = total


@kernel
def _round(bits, size, blocks, sums):
    groups = blocks.shape[1] // size
    group_size = np.uintp(bits.shape[1] // groups)
    for row in range(bits.shape[0]):
        for g in range(groups):
            source, target = np.uintp(g) * group_size, np.uintp(g * size)
            total = 0.0
            for k in range(group_size):
                upper = _nearest(bits[row, source + k])
                # Of four inputs, the second and third change places.
                swapped = k ^ BOTH if (k ^ (k >> ONE)) & ONE else k
                blocks[row, target + swapped] = upper
                total += np.uint32(upper << HALF).view(np.float32)
            sums[row, (g + 1) * size // 2 - 1] = total


@kernel
def _nearest(bits):
    """The bits of a float32, uint32 -> those of the nearest bfloat16, uint32; ties to even"""
    upper = np.uint32(bits >> HALF)
    if np.uint32(bits & WITHOUT_SIGN) > np.uint32(INFINITY):
        return np.uint32(upper | QUIET)
    return np.uint32(np.uint32(bits + BELOW_HALF + np.uint32(upper & np.uint32(1))) >> HALF)
