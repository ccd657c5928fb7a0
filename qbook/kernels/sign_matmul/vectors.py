"""The blocked product of signs: four panels of w stay in the cache while rows of x pass.

A panel of 8 rows costs ``in`` bytes, so that the panels of one tile fit the first-level cache up to
in = 8192, and no loop over blocks of k is needed.  Sums are counted in registers, and each is
written once.  Book: 6.2
"""

import numpy as np
from numba import prange

from qbook.kernels.compiled import kernel
from qbook.kernels.simd import bit_tile
from qbook.kernels.simd.arithmetic import add, mul, splat_f32, to_f32
from qbook.kernels.simd.bit_tile import sign_bits
from qbook.kernels.simd.memory import load_f32, load_i32, store_first

BLOCK, PAIR, WORD = 96, 2, 64
whole_tile, edge_tile = bit_tile.bit_tile(), bit_tile.bit_tile(panels=1)
pair_tile, pair_edge = bit_tile.bit_tile(rows=PAIR), bit_tile.bit_tile(rows=PAIR, panels=1)
row_tile, row_edge = bit_tile.bit_tile(rows=1), bit_tile.bit_tile(rows=1, panels=1)


@kernel(parallel=True)
def multiply(isa, x, w, count, scales, out, threads):
    """x uint64 [samples, words], w of ``panels.Panels.data``, count bits a row, words >= 1
    -> fills out int32 [samples, out]

    scales:  (), or (x_scale [samples], w_scale, bias [16 ceil(out / 16)]) float32: out then ends as
             the bits of float32 (sum * (x_scale * w_scale) + bias); 15 numbers behind it are read
    """
    samples, panels = x.shape[0], w.shape[0]
    if threads == 1:
        _part(isa, x, w, count, scales, out, (0, samples, 0, panels))
    else:
        for t in prange(threads):
            part = _share(t, threads, samples, panels)
            _part(isa, x, w, count, scales, out, part)


@kernel
def _share(t, threads, samples, panels):
    """-> first and last row of x, first and last panel of w of a thread: rows where there are many

    Pairs of panels, because ``scaled`` takes 16 outputs at once.
    """
    if samples >= 16 * threads:
        return samples * t // threads, samples * (t + 1) // threads, 0, panels
    pairs = (panels + 1) // 2
    last = min(2 * (pairs * (t + 1) // threads), panels)
    return 0, samples, 2 * (pairs * t // threads), last


@kernel
def _part(isa, x, w, count, scales, out, part):
    first_row, last_row, first_panel, last_panel = part
    width = bit_tile.shape_of(isa)[1]
    # Panels whose 8 outputs all exist: their sums go straight to their place.
    full = min(last_panel, out.shape[1] // 8)
    for row in range(first_row, last_row, BLOCK):
        last = min(row + BLOCK, last_row)
        panel = first_panel
        while panel < full:
            panels = width if full - panel >= width else 1
            _columns(isa, x, row, last, w, panel, panels, count, out)
            panel += panels
        if full < last_panel:
            _ragged(isa, x, row, last, w, full, count, out)
        scaled(scales, out, row, last, 8 * first_panel, min(8 * last_panel, out.shape[1]))


@kernel
def _columns(isa, x, row, last, w, panel, panels, count, out):
    """Rows row .. last of the outputs of ``panels``: as many as the tile is wide, or one"""
    rows, width = bit_tile.shape_of(isa)
    steps = x.shape[1]
    x_stride, w_stride, out_stride = 8 * steps, 64 * steps, 4 * out.shape[1]
    b = panel * w_stride
    while row < last:
        left = last - row
        a, c = row * x_stride, row * out_stride + 32 * panel
        if panels == width:
            if left >= rows:
                whole_tile(isa, x, a, x_stride, w, b, w_stride, steps, count, out, c, out_stride)
            elif left >= PAIR:
                pair_tile(isa, x, a, x_stride, w, b, w_stride, steps, count, out, c, out_stride)
            else:
                row_tile(isa, x, a, x_stride, w, b, w_stride, steps, count, out, c, out_stride)
        else:
            if left >= rows:
                edge_tile(isa, x, a, x_stride, w, b, w_stride, steps, count, out, c, out_stride)
            elif left >= PAIR:
                pair_edge(isa, x, a, x_stride, w, b, w_stride, steps, count, out, c, out_stride)
            else:
                row_edge(isa, x, a, x_stride, w, b, w_stride, steps, count, out, c, out_stride)
        row += rows if left >= rows else (PAIR if left >= PAIR else 1)


@kernel
def _ragged(isa, x, row, last, w, panel, count, out):
    """The last panel, of fewer than 8 outputs: by way of a scratch"""
    sums = np.empty((BLOCK, 8), np.int32)
    x_stride, steps = 8 * x.shape[1], x.shape[1]
    b = 64 * panel * steps
    for i in range(last - row):
        a = (row + i) * x_stride
        row_edge(isa, x, a, x_stride, w, b, 0, steps, count, sums, 32 * i, 32)
    for i in range(last - row):
        for j in range(8 * panel, out.shape[1]):
            out[row + i, j] = sums[i, j - 8 * panel]


@kernel
def scaled(scales, out, row, last, first_column, last_column):
    """out int32 [row: last, first: last] -> in place the bits of float32; see ``multiply``"""
    if len(scales) == 3:
        x_scale, w_scale, bias = scales
        for i in range(row, last):
            for column in range(first_column, last_column, 16):
                at = 4 * (i * out.shape[1] + column)
                scale = mul(splat_f32(x_scale[i]), load_f32(w_scale, 4 * column))
                result = add(mul(to_f32(load_i32(out, at)), scale), load_f32(bias, 4 * column))
                store_first(out, at, result, last_column - column)


@kernel
def pack_rows(x, words):
    """x int8 or float32 [samples, in], contiguous -> fills words uint64 [samples, in / 64]

    -> whether a number was NaN
    """
    in_, size = x.shape[1], x.itemsize
    rest = np.full(WORD, -1, x.dtype)
    nan = np.uint64(0)
    for i in range(x.shape[0]):
        for k in range(in_ // WORD):
            bits, unordered = sign_bits(x, (i * in_ + WORD * k) * size)
            words[i, k] = bits
            nan |= unordered
        first = in_ // WORD * WORD
        if first < in_:
            for k in range(first, in_):
                rest[k - first] = x[i, k]
            bits, unordered = sign_bits(rest, 0)
            words[i, in_ // WORD] = bits
            nan |= unordered
    return nan != 0
