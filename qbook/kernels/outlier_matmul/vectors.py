"""The part that stays in float: find the columns, fetch theirs of w, add their products.

A panel's columns are fetched into [columns, 16], which the first-level cache keeps while all rows
of x pass.  Book: 5.1, 6.2
"""

import numpy as np
from numba import prange

from qbook.kernels.compiled import kernel
from qbook.kernels.simd.arithmetic import (
    add,
    and_,
    mul,
    multiply_add,
    shift_right,
    splat_f32,
    splat_i32,
    sub,
    to_f32,
)
from qbook.kernels.simd.convert import bits_of, load_first_f32, maximum
from qbook.kernels.simd.memory import (
    broadcast_f32,
    load_f32,
    load_i32,
    store,
    store_first,
)

LANES = 16
# Rows of x that share a load of w.
ROWS = 4


@kernel(parallel=True)
def column_tops(x, tops, threads):
    """x float32 [samples, in] contiguous -> fills tops int32 [in]: the bits of the largest |x|

    Bits of magnitudes are ordered as the numbers are; those of infinity and NaN are above all.
    """
    vectors = -(-x.shape[1] // LANES)
    if threads == 1:
        _column_tops(x, tops, 0, vectors)
    else:
        for t in prange(threads):
            _column_tops(x, tops, vectors * t // threads, vectors * (t + 1) // threads)


@kernel
def _column_tops(x, tops, first, last):
    samples, in_ = x.shape
    magnitude = splat_i32(np.int32(0x7FFFFFFF))
    end = min(LANES * last, in_)
    tops[LANES * first : end] = 0
    for row in range(samples):
        for column in range(LANES * first, end, LANES):
            at, left = 4 * (row * in_ + column), in_ - column
            if left >= LANES:
                bits = and_(bits_of(load_f32(x, at)), magnitude)
                store(tops, 4 * column, maximum(bits, load_i32(tops, 4 * column)))
            else:
                bits = and_(bits_of(load_first_f32(x, at, left)), magnitude)
                so_far = bits_of(load_first_f32(tops, 4 * column, left))
                store_first(tops, 4 * column, maximum(bits, so_far), left)


@kernel(parallel=True)
def add_products(x, columns, codes, scale, floats, out, threads):
    """Adds x w^T over the columns alone to out float32 [samples, out].

    x:       float32 [samples, columns], contiguous: these columns of x;  columns: int64
    codes:   of ``int8_matmul.panels.Panels.data``;  scale: float32 [16 panels]
    floats:  float32 [panels, in, 16], or [panels, 0, 16] where the codes are to be used
    """
    panels = codes.shape[0]
    if threads == 1:
        _add_products(x, columns, codes, scale, floats, out, 0, panels)
    else:
        for t in prange(threads):
            first, last = panels * t // threads, panels * (t + 1) // threads
            _add_products(x, columns, codes, scale, floats, out, first, last)


@kernel
def _add_products(x, columns, codes, scale, floats, out, first, last):
    samples, count = x.shape
    fetched = np.empty((count, LANES), np.float32)
    for panel in range(first, last):
        if floats.shape[1] > 0:
            _fetch_floats(floats, panel, columns, fetched)
        else:
            _fetch_codes(codes, scale, panel, columns, fetched)
        row = 0
        while row < samples:
            if row + ROWS <= samples:
                _add_rows(x, row, fetched, panel, out)
                row += ROWS
            else:
                _add_row(x, row, fetched, panel, out)
                row += 1


@kernel
def _fetch_codes(codes, scale, panel, columns, fetched):
    steps = codes.shape[1]
    lanes, low_byte = load_f32(scale, 4 * LANES * panel), splat_i32(np.int32(0xFF))
    for c in range(columns.shape[0]):
        step, byte = columns[c] // 4, columns[c] % 4
        words = load_i32(codes, 64 * (panel * steps + step))
        code = sub(and_(shift_right(words, 8 * byte), low_byte), splat_i32(np.int32(128)))
        store(fetched, 64 * c, mul(to_f32(code), lanes))


@kernel
def _fetch_floats(floats, panel, columns, fetched):
    in_ = floats.shape[1]
    for c in range(columns.shape[0]):
        store(fetched, 64 * c, load_f32(floats, 64 * (panel * in_ + columns[c])))


@kernel
def _add_rows(x, row, fetched, panel, out):
    count = fetched.shape[0]
    a = b = c = d = splat_f32(np.float32(0))
    at, stride = 4 * row * count, 4 * count
    for k in range(count):
        w = load_f32(fetched, 64 * k)
        a = multiply_add(broadcast_f32(x, at + 4 * k), w, a)
        b = multiply_add(broadcast_f32(x, at + stride + 4 * k), w, b)
        c = multiply_add(broadcast_f32(x, at + 2 * stride + 4 * k), w, c)
        d = multiply_add(broadcast_f32(x, at + 3 * stride + 4 * k), w, d)
    _add_to(out, row, panel, a)
    _add_to(out, row + 1, panel, b)
    _add_to(out, row + 2, panel, c)
    _add_to(out, row + 3, panel, d)


@kernel
def _add_row(x, row, fetched, panel, out):
    count = fetched.shape[0]
    total = splat_f32(np.float32(0))
    for k in range(count):
        total = multiply_add(
            broadcast_f32(x, 4 * (row * count + k)), load_f32(fetched, 64 * k), total
        )
    _add_to(out, row, panel, total)


@kernel
def _add_to(out, row, panel, total):
    column = LANES * panel
    at, left = 4 * (row * out.shape[1] + column), out.shape[1] - column
    if left >= LANES:
        store(out, at, add(load_f32(out, at), total))
    else:
        store_first(out, at, add(load_first_f32(out, at, left), total), left)
