"""The product: a panel of w stays in the cache while rows of x pass; four rows share each nibble.

    x of uint8    blocks of codes: four bytes at a time, sums exact, each group scaled
    x of float32  blocks of floats: a nibble becomes a float, multiply and add, each group scaled
    x of uint16   blocks of bfloat16: two nibbles become two of them, multiply in pairs and add

A product with one row reads every byte of w once and computes little with it: memory decides.  With
many rows the loop over them runs inside the one over panels, so that w comes from memory once for
each BLOCK of rows, and unpacking is shared by TILE of them.  See ``blocks`` for x.  Book: 6.2
"""

import numpy as np
from numba import prange, types
from numba.extending import overload, register_jitable

from qbook.kernels.compiled import kernel
from qbook.kernels.int4_matmul.rows import (
    add_scaled_floats,
    add_scaled_integers,
    dot2_rows,
    dot4_rows,
    muladd_rows,
    times_rows,
    zeros_f32,
)
from qbook.kernels.simd.arithmetic import add, and_, shift_right, splat_i32, sub, to_f32
from qbook.kernels.simd.bfloat import nibble_pairs
from qbook.kernels.simd.convert import load_codes
from qbook.kernels.simd.half import load_half
from qbook.kernels.simd.lookup import nibble_to_f32
from qbook.kernels.simd.memory import load_f32, load_i32, prefetch, store_first

BLOCK, TILE = 64, 4
AHEAD = 8192
MIDDLE = np.int32(8)


@kernel(parallel=True)
def multiply(isa, x, w, layout, bias, out, threads):
    """x blocks [samples, row], w of ``panels.Panels.data``, contiguous -> fills out [samples, out]

    layout:  (groups, steps of 8 inputs in a group, bytes of its scales, of its zero-points)
    bias:    float32 [16 panels];  out: float32
    """
    panels = w.shape[0]
    if threads == 1:
        _part(isa, x, w, layout, bias, out, 0, panels)
    else:
        for t in prange(threads):
            _part(isa, x, w, layout, bias, out, panels * t // threads, panels * (t + 1) // threads)


@kernel
def _part(isa, x, w, layout, bias, out, first_panel, last_panel):
    samples, stride = x.shape[0], x.shape[1] * x.itemsize
    panel_bytes = w.shape[1] * w.shape[2]
    for block in range(0, samples, BLOCK):
        end = min(block + BLOCK, samples)
        for panel in range(first_panel, last_panel):
            at, row = panel * panel_bytes, block
            while row + TILE <= end:
                start = row * stride
                rows = (start, start + stride, start + 2 * stride, start + 3 * stride)
                write(tile(isa, x, rows, w, at, layout), row, panel, bias, out)
                row += TILE
            while row < end:
                write(tile(isa, x, (row * stride,), w, at, layout), row, panel, bias, out)
                row += 1


@register_jitable
def write(totals, row, panel, bias, out):
    """totals, a f32x16 for each row from ``row`` on, plus bias -> out"""
    width, column = out.shape[1], 16 * panel
    for i in range(len(totals)):
        at = 4 * ((row + i) * width + column)
        store_first(out, at, add(totals[i], load_f32(bias, 4 * column)), width - column)


def tile(isa, x, rows, w, at, layout):
    """rows: the bytes where rows of x begin; at: where w's panel does -> f32x16 for each row"""


@overload(tile)
def _tile(isa, x, rows, w, at, layout):
    return {types.uint8: _codes, types.uint16: _pairs, types.float32: _floats}[x.dtype]


def _codes(isa, x, rows, w, at, layout):
    groups, steps, scale_bytes, zero_bytes = layout
    mask = splat_i32(np.int32(0x0F0F0F0F))
    totals = zeros_f32(rows)
    k = 0
    for _ in range(groups):
        zero_point = splat_i32(MIDDLE)
        if zero_bytes:
            zero_point = load_codes(w, at + 64 * steps + scale_bytes)
        sums = times_rows(zero_point, x, rows, k + 8 * steps + 4)
        for _ in range(steps):
            prefetch(w, at + AHEAD)
            both = load_i32(w, at)
            sums = dot4_rows(isa, sums, and_(both, mask), x, rows, k)
            sums = dot4_rows(isa, sums, and_(shift_right(both, 4), mask), x, rows, k + 4)
            at, k = at + 64, k + 8
        scale = load_scale(isa, w, at, scale_bytes)
        totals = add_scaled_integers(totals, sums, scale, x, rows, k)
        at, k = at + scale_bytes + zero_bytes, k + 8
    return totals


def _floats(isa, x, rows, w, at, layout):
    groups, steps, scale_bytes, zero_bytes = layout
    totals = zeros_f32(rows)
    k = 0
    for _ in range(groups):
        # A sum for each byte of a lane: four that need not wait for each other.
        a = b = c = d = zeros_f32(rows)
        for _ in range(steps):
            prefetch(w, at + AHEAD)
            both = load_i32(w, at)
            a = muladd_rows(a, nibble_to_f32(isa, both, 0), x, rows, k)
            b = muladd_rows(b, nibble_to_f32(isa, both, 8), x, rows, k + 4)
            c = muladd_rows(c, nibble_to_f32(isa, both, 16), x, rows, k + 8)
            d = muladd_rows(d, nibble_to_f32(isa, both, 24), x, rows, k + 12)
            a = muladd_rows(a, nibble_to_f32(isa, both, 4), x, rows, k + 16)
            b = muladd_rows(b, nibble_to_f32(isa, both, 12), x, rows, k + 20)
            c = muladd_rows(c, nibble_to_f32(isa, both, 20), x, rows, k + 24)
            d = muladd_rows(d, nibble_to_f32(isa, both, 28), x, rows, k + 28)
            at, k = at + 64, k + 32
        if zero_bytes:
            distance = sub(splat_i32(MIDDLE), load_codes(w, at + scale_bytes))
            a = muladd_rows(a, to_f32(distance), x, rows, k)
        scale = load_scale(isa, w, at, scale_bytes)
        totals = add_scaled_floats(totals, a, b, c, d, scale)
        at, k = at + scale_bytes + zero_bytes, k + 4
    return totals


# The end of a group stands in ``_floats`` and in ``_pairs``: in a function of its own the sums went
# through memory, several times slower (``python -m benchmarks.cpu --only int4_matmul``).
def _pairs(isa, x, rows, w, at, layout):
    groups, steps, scale_bytes, zero_bytes = layout
    totals = zeros_f32(rows)
    k = 0
    for _ in range(groups):
        a = b = c = d = zeros_f32(rows)
        for _ in range(steps):
            prefetch(w, at + AHEAD)
            both = load_i32(w, at)
            a = dot2_rows(a, nibble_pairs(isa, both, 0), x, rows, k)
            b = dot2_rows(b, nibble_pairs(isa, both, 8), x, rows, k + 4)
            c = dot2_rows(c, nibble_pairs(isa, both, 4), x, rows, k + 8)
            d = dot2_rows(d, nibble_pairs(isa, both, 12), x, rows, k + 12)
            at, k = at + 64, k + 16
        if zero_bytes:
            distance = sub(splat_i32(MIDDLE), load_codes(w, at + scale_bytes))
            a = muladd_rows(a, to_f32(distance), x, rows, k)
        scale = load_scale(isa, w, at, scale_bytes)
        totals = add_scaled_floats(totals, a, b, c, d, scale)
        at, k = at + scale_bytes + zero_bytes, k + 4
    return totals


@register_jitable
def load_scale(isa, w, at, scale_bytes):
    return load_half(isa, w, at) if scale_bytes == 32 else load_f32(w, at)
