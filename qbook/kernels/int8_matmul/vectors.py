"""The blocked product: panels of w stay in the cache while rows of x pass, sums stay in registers.

Blocks as in Goto and van de Geijn 2008, ACM TOMS 34(3): DEPTH steps of the panels of one tile, 256
KiB, stay in the second-level cache while BLOCK rows of x pass.  Tiles add to a scratch of 32-bit
sums in the first-level cache; the ``finish`` of the result's type reads each sum once.  Book: 6.2
"""

import numpy as np
from numba import prange, types
from numba.extending import overload

from qbook.kernels.compiled import kernel
from qbook.kernels.simd import tile
from qbook.kernels.simd.arithmetic import add, mul, splat_f32, splat_i32, sum_lanes, to_f32
from qbook.kernels.simd.dot import dot4
from qbook.kernels.simd.memory import load_f32, load_i32, store_first
from qbook.kernels.simd.requantize import requantize

BLOCK, DEPTH = 96, 1024
PAIR = 2
# Steps of a panel that are summed apart when x has one row: ``panels.pack`` fills up to as many.
CHAINS = 4
whole_tile, edge_tile = tile.byte_tile(), tile.byte_tile(panels=1)
pair_tile, pair_edge = tile.byte_tile(rows=PAIR), tile.byte_tile(rows=PAIR, panels=1)
row_tile = tile.byte_tile(rows=1, panels=1, chains=CHAINS)


@kernel(parallel=True)
def multiply(isa, x, w, terms, extras, out, threads):
    """x int8 [samples, 4 steps], w ``panels.Panels.data``, contiguous: fills out [samples, out]

    terms, extras:  see ``finish``
    """
    if threads == 1:
        for t in range(threads):
            _share(isa, x, w, terms, extras, out, t, threads)
    else:
        for t in prange(threads):
            _share(isa, x, w, terms, extras, out, t, threads)


@kernel
def _share(isa, x, w, terms, extras, out, t, threads):
    """The part of thread t: rows of x where there are many, else panels of w."""
    samples, panels = x.shape[0], w.shape[0]
    rows = (0, samples)
    columns = (panels * t // threads, panels * (t + 1) // threads)
    if samples >= 16 * threads:
        rows, columns = (samples * t // threads, samples * (t + 1) // threads), (0, panels)
    # Where threads share rows each sums all of them: to the same numbers, and cheaper than waiting.
    row_sums(isa, x, rows[0], rows[1], terms[0])
    _part(isa, x, w, terms, extras, out, rows[0], rows[1], columns[0], columns[1])


@kernel
def row_sums(isa, x, first, last, sums):
    """x int8 [samples, 4 steps] -> sums [first: last] int32: a dot product with ones"""
    in_ = x.shape[1]
    ones = splat_i32(np.int32(0x01010101))
    for row in range(first, last):
        total = splat_i32(np.int32(0))
        for k in range(0, in_ - 63, 64):
            total = dot4(isa, total, ones, load_i32(x, row * in_ + k))
        rest = np.int32(0)
        for k in range(in_ // 64 * 64, in_):
            rest += np.int32(x[row, k])
        sums[row] = sum_lanes(total) + rest


@kernel
def _part(isa, x, w, terms, extras, out, first_row, last_row, first_panel, last_panel):
    _, width = tile.shape_of(isa)
    sums = np.empty((BLOCK, 16 * width), np.int32)
    for row in range(first_row, last_row, BLOCK):
        count = min(BLOCK, last_row - row)
        for panel in range(first_panel, last_panel, width):
            sums[:count] = 0
            panels = min(width, last_panel - panel)
            for step in range(0, w.shape[1], DEPTH):
                steps = min(DEPTH, w.shape[1] - step)
                _block(isa, x, row, count, w, panel, panels, step, steps, sums)
            first = 16 * panel
            last = min(first + 16 * panels, out.shape[1])
            finish(sums, row, count, first, last, terms, extras, out)


@kernel
def _block(isa, x, row, count, w, panel, panels, step, steps, sums):
    rows, width = tile.shape_of(isa)
    in_, stride, c_stride = x.shape[1], 64 * w.shape[1], 4 * sums.shape[1]
    b = panel * stride + 64 * step
    i = 0
    while i < count:
        left = count - i
        a, c = (row + i) * in_ + 4 * step, i * c_stride
        if left >= PAIR and panels == width:
            if left >= rows:
                whole_tile(isa, x, a, in_, w, b, stride, steps, sums, c, c_stride)
            else:
                pair_tile(isa, x, a, in_, w, b, stride, steps, sums, c, c_stride)
        else:
            for p in range(panels):
                bp, cp = b + p * stride, c + 64 * p
                if left >= rows:
                    edge_tile(isa, x, a, in_, w, bp, stride, steps, sums, cp, c_stride)
                elif left >= PAIR:
                    pair_edge(isa, x, a, in_, w, bp, stride, steps, sums, cp, c_stride)
                else:
                    row_tile(isa, x, a, in_, w, bp, stride, steps, sums, cp, c_stride)
        i += rows if left >= rows else (PAIR if left >= PAIR else 1)


def finish(sums, row, count, first, last, terms, extras, out):
    """sums int32 [count, n] -> out [row: row + count, first: last], by the type of out

    terms:   (x_sums, x_zero_point [samples], row_factor, column_term [16 panels]), int32; the
             products with the zero-points are x_sums row_factor + x_zero_point column_term
    int32:   the corrected sums.  extras: ()
    float32: sums * (x_scale * w_scale) + bias.  extras: (x_scale [samples], w_scale, bias
             [16 panels])
    int8, uint8:  requantized codes.  extras: (m0, shift, bias [16 panels], limits: zero_point,
             qmin, qmax), int32
    """


@overload(finish)
def _finish(sums, row, count, first, last, terms, extras, out):
    if out.dtype == types.int32:

        def integers(sums, row, count, first, last, terms, extras, out):
            x_sums, x_zero_point, row_factor, column_term = terms
            width = out.shape[1]
            for i in range(row, row + count):
                sum_i, zero_i = splat_i32(x_sums[i]), splat_i32(x_zero_point[i])
                for j in range(first, last, 16):
                    total = load_i32(sums, 4 * ((i - row) * sums.shape[1] + j - first))
                    total = corrected(total, sum_i, zero_i, row_factor, column_term, j)
                    store_first(out, 4 * (i * width + j), total, width - j)

        return integers
    if out.dtype == types.float32:

        def floats(sums, row, count, first, last, terms, extras, out):
            x_sums, x_zero_point, row_factor, column_term = terms
            x_scale, w_scale, bias = extras
            width = out.shape[1]
            for i in range(row, row + count):
                sum_i, zero_i = splat_i32(x_sums[i]), splat_i32(x_zero_point[i])
                scale_i = splat_f32(x_scale[i])
                for j in range(first, last, 16):
                    total = load_i32(sums, 4 * ((i - row) * sums.shape[1] + j - first))
                    total = corrected(total, sum_i, zero_i, row_factor, column_term, j)
                    scale = mul(scale_i, load_f32(w_scale, 4 * j))
                    result = add(mul(to_f32(total), scale), load_f32(bias, 4 * j))
                    store_first(out, 4 * (i * width + j), result, width - j)

        return floats
    if out.dtype in (types.int8, types.uint8):

        def codes(sums, row, count, first, last, terms, extras, out):
            x_sums, x_zero_point, row_factor, column_term = terms
            m0, shift, bias, limits = extras
            zero_point, qmin, qmax = limits[0], limits[1], limits[2]
            width = out.shape[1]
            for i in range(row, row + count):
                sum_i, zero_i = splat_i32(x_sums[i]), splat_i32(x_zero_point[i])
                for j in range(first, last, 16):
                    total = load_i32(sums, 4 * ((i - row) * sums.shape[1] + j - first))
                    total = corrected(total, sum_i, zero_i, row_factor, column_term, j)
                    total = add(total, load_i32(bias, 4 * j))
                    result = requantize(
                        total, load_i32(m0, 4 * j), load_i32(shift, 4 * j), zero_point, qmin, qmax
                    )
                    store_first(out, i * width + j, result, width - j)

        return codes


@kernel
def corrected(total, x_sum, x_zero_point, row_factor, column_term, column):
    """sums i32x16 from column on + the terms of the zero-points"""
    by_row = mul(x_sum, load_i32(row_factor, 4 * column))
    by_column = mul(x_zero_point, load_i32(column_term, 4 * column))
    return add(add(total, by_row), by_column)
