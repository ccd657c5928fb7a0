"""Sums of products of digits that were written out: the register tile of INT8 runs over them.

Rows of x that share the digits share the work of taking them out of their bytes, a few KiB at a
time, so that they are in the first-level cache when the tile reads them.  Book: 6.2
"""

import numpy as np

from qbook.kernels.compiled import kernel
from qbook.kernels.simd import tile
from qbook.kernels.simd.arithmetic import and_, shift_right, splat_i32
from qbook.kernels.simd.bytes import triple_bytes, whole_thirds
from qbook.kernels.simd.memory import load_i32, store

# Chunks that are written out at once, and rows of x for which they are not written out again.
DEPTH, BLOCK = 32, 96
PAIR = 2
DIGIT = np.int32(0x03030303)
whole_tile, pair_tile, row_tile = (
    tile.byte_tile(),
    tile.byte_tile(rows=PAIR),
    tile.byte_tile(rows=1),
)


@kernel
def add_sums(isa, x, row, count, w, digits, vector, vectors, codes, sums):
    """Add count rows of x times the digits of ``vectors`` times 16 rows of w to sums.

    vector:  the first, two in a panel;  codes: uint8 [vectors of a tile, DEPTH digits, 64], scratch
    sums:    int32 [>= count, 16 vectors of a tile]
    """
    for chunk in range(0, w.shape[1], DEPTH):
        chunks = min(DEPTH, w.shape[1] - chunk)
        for v in range(vectors):
            panel, half = (vector + v) // 2, (vector + v) % 2
            start = 64 * (2 * (panel * w.shape[1] + chunk) + half)
            unpack(w, start, chunks, digits, codes, v * 64 * codes.shape[1])
        _multiply(isa, x, row, count, codes, chunk * digits, chunks * digits, sums)


@kernel
def unpack(w, start, chunks, digits, codes, to):
    """The bytes of every other vector of w from byte start on -> digits 0, 1, 2 from byte to on"""
    for chunk in range(chunks):
        byte, at = load_i32(w, start + 128 * chunk), to + 64 * digits * chunk
        if digits == 4:
            mask = splat_i32(DIGIT)
            store(codes, at, and_(byte, mask))
            store(codes, at + 64, and_(shift_right(byte, 2), mask))
            store(codes, at + 128, and_(shift_right(byte, 4), mask))
            store(codes, at + 192, and_(shift_right(byte, 6), mask))
        else:
            for i in range(5):
                store(codes, at + 64 * i, whole_thirds(byte))
                byte = triple_bytes(byte)


@kernel
def _multiply(isa, x, row, count, codes, step, steps, sums):
    rows, _ = tile.shape_of(isa)
    in_, stride, c_stride = x.shape[1], 64 * codes.shape[1], 4 * sums.shape[1]
    i = 0
    while i < count:
        a, c = (row + i) * in_ + 4 * step, i * c_stride
        if count - i >= rows:
            whole_tile(isa, x, a, in_, codes, 0, stride, steps, sums, c, c_stride)
            i += rows
        elif count - i >= PAIR:
            pair_tile(isa, x, a, in_, codes, 0, stride, steps, sums, c, c_stride)
            i += PAIR
        else:
            row_tile(isa, x, a, in_, codes, 0, stride, steps, sums, c, c_stride)
            i += 1
