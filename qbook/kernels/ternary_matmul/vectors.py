"""Ternary products: few rows of x take the packed bytes as they are, many share digits written out.

Both take digits 0, 1, 2 for the codes -1, 0, 1, which adds sum_k x to a sum; ``finish`` takes it
off.  A sum is exact modulo 2^32 whatever happened on the way.

    packed      no more than one look at each byte: a product with one row waits for memory
    unpacked    fewer instructions a row once the digits are there: a tile of rows pays for that

Book: 6.2
"""

import numpy as np
from numba import prange

from qbook.kernels.compiled import kernel
from qbook.kernels.int8_matmul.vectors import row_sums
from qbook.kernels.simd import tile
from qbook.kernels.simd.arithmetic import add, mul, splat_f32, splat_i32, sub, to_f32
from qbook.kernels.simd.memory import load_f32, load_i32, store_first
from qbook.kernels.ternary_matmul import packed, unpacked


@kernel(parallel=True)
def multiply(isa, x, w, digits, x_sums, scales, out, threads):
    """x int8 [samples, 4 digits chunks], w uint8 of ``panels.Panels`` -> fills out [samples, out]

    digits:  in a byte of w;  x_sums: room for int32 [samples]
    out:     int32, or float32 seen as int32;  scales: see ``finish``
    """
    samples, panels = x.shape[0], w.shape[0]
    row_sums(isa, x, 0, samples, x_sums)
    if threads == 1:
        _part(isa, x, w, digits, x_sums, scales, out, 0, panels)
    else:
        for t in prange(threads):
            first, last = panels * t // threads, panels * (t + 1) // threads
            _part(isa, x, w, digits, x_sums, scales, out, first, last)


@kernel
def _part(isa, x, w, digits, x_sums, scales, out, first, last):
    # Measured: fewer rows than a whole tile have are faster one by one.
    if x.shape[0] < tile.shape_of(isa)[0]:
        _few_rows(isa, x, w, digits, x_sums, scales, out, first, last)
    else:
        _many_rows(isa, x, w, digits, x_sums, scales, out, first, last)


@kernel
def _few_rows(isa, x, w, digits, x_sums, scales, out, first, last):
    for panel in range(first, last):
        for row in range(x.shape[0]):
            if digits == 4:
                upper, lower = packed.two_bit_sums(isa, x, row, w, panel)
            else:
                upper, lower = packed.base_3_sums(isa, x, row, w, panel)
            finish(upper, row, 32 * panel, x_sums, scales, out)
            finish(lower, row, 32 * panel + 16, x_sums, scales, out)


@kernel
def _many_rows(isa, x, w, digits, x_sums, scales, out, first, last):
    _, width = tile.shape_of(isa)
    sums = np.empty((unpacked.BLOCK, 16 * width), np.int32)
    # Zeros, because a tile reads all of its vectors, those too that no row of w fills.
    codes = np.zeros((width, unpacked.DEPTH * digits, 64), np.uint8)
    for row in range(0, x.shape[0], unpacked.BLOCK):
        count = min(unpacked.BLOCK, x.shape[0] - row)
        for vector in range(2 * first, 2 * last, width):
            vectors = min(width, 2 * last - vector)
            sums[:count] = 0
            unpacked.add_sums(isa, x, row, count, w, digits, vector, vectors, codes, sums)
            for i in range(count):
                for v in range(vectors):
                    found = load_i32(sums, 4 * (i * sums.shape[1] + 16 * v))
                    finish(found, row + i, 16 * (vector + v), x_sums, scales, out)


@kernel
def finish(sums, row, column, x_sums, scales, out):
    """sums of digits times x, i32x16 of row, from column on -> sums of codes times x, in out

    Writes only the columns that out has: none where the filler of a panel begins.

    scales:  (x_scale [samples], w_scale, bias [32 panels]), float32.  All empty: out gets integers;
             else floats, whose bits an array of integers holds as well: one compilation for both
    """
    x_scale, w_scale, bias = scales
    at, width = 4 * (row * out.shape[1] + column), out.shape[1] - column
    total = sub(sums, splat_i32(x_sums[row]))
    if x_scale.size == 0:
        store_first(out, at, total, width)
    else:
        scale = mul(splat_f32(x_scale[row]), load_f32(w_scale, 4 * column))
        result = add(mul(to_f32(total), scale), load_f32(bias, 4 * column))
        store_first(out, at, result, width)
