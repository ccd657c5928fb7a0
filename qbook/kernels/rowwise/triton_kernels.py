"""Rows to int8 or E4M3 on a GPU: compiled by Triton.

    quantize_short   a row stays in registers between its two uses: memory is read once
    quantize_long    a row of any length, read twice

A program takes several rows: one alone would be too little work for the threads, and, in the
interpreter, one step of Python a row.  Book: 6.1
"""

import triton
import triton.language as tl

from qbook.kernels.gpu import casts

TINY = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def _scale(largest, LARGEST_CODE: tl.constexpr):
    """max |x| of rows -> scale: ``affine.choose_qparams``; 1 for a row of zeros"""
    # div_rn: plain division is approximate on a GPU, and a scale off by a bit moves codes.
    scale = tl.maximum(tl.div_rn(largest, LARGEST_CODE + tl.zeros_like(largest)), TINY)
    return tl.where(largest == 0, 1.0, scale)


@triton.jit
def _codes(x, scale, NATIVE: tl.constexpr, codes_ptr):
    """x of rows -> codes of the type that codes_ptr points to: x * (1 / scale), rounded"""
    steps = x * tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), scale)[:, None]
    if codes_ptr.dtype.element_ty == tl.int8:
        codes = casts.nearest(steps).to(tl.int8)
    elif NATIVE:
        # The instruction saturates beyond 448 and rounds ties to even.
        codes = steps.to(tl.float8e4nv)
    else:
        codes = casts.to_e4m3(steps)
    return codes


@triton.jit
def _load(x_ptr, multiplier_ptr, place, columns, mask, n, HAS_MULTIPLIER: tl.constexpr):
    x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
    if HAS_MULTIPLIER:
        x *= tl.load(multiplier_ptr + columns, mask=columns < n, other=0.0)[None, :]
    return x


@triton.jit
def quantize_short(
    x_ptr,
    multiplier_ptr,
    codes_ptr,
    scale_ptr,
    rows,
    n,
    stride,
    LARGEST_CODE: tl.constexpr,
    HAS_MULTIPLIER: tl.constexpr,
    NATIVE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """x [rows, n] -> codes [rows, n], scale [rows]; BLOCK >= n"""
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK)
    mask = (row < rows)[:, None] & (columns < n)[None, :]
    place = row[:, None] * stride + columns[None, :]
    x = _load(x_ptr, multiplier_ptr, place, columns, mask, n, HAS_MULTIPLIER)
    scale = _scale(tl.max(tl.abs(x), axis=1), LARGEST_CODE)
    codes = _codes(x, scale, NATIVE, codes_ptr)
    tl.store(codes_ptr + row[:, None] * n + columns[None, :], codes, mask=mask)
    tl.store(scale_ptr + row, scale, mask=row < rows)


@triton.jit
def quantize_long(
    x_ptr,
    multiplier_ptr,
    codes_ptr,
    scale_ptr,
    rows,
    n,
    stride,
    LARGEST_CODE: tl.constexpr,
    HAS_MULTIPLIER: tl.constexpr,
    NATIVE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    """The same in STEPS blocks of a row; the second pass finds most of them in the cache"""
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    largest = tl.zeros((BLOCK_ROWS, BLOCK), tl.float32)
    for step in range(STEPS):
        columns = step * BLOCK + tl.arange(0, BLOCK)
        mask = (row < rows)[:, None] & (columns < n)[None, :]
        place = row[:, None] * stride + columns[None, :]
        x = _load(x_ptr, multiplier_ptr, place, columns, mask, n, HAS_MULTIPLIER)
        largest = tl.maximum(largest, tl.abs(x))
    scale = _scale(tl.max(largest, axis=1), LARGEST_CODE)
    tl.store(scale_ptr + row, scale, mask=row < rows)
    for step in range(STEPS):
        columns = step * BLOCK + tl.arange(0, BLOCK)
        mask = (row < rows)[:, None] & (columns < n)[None, :]
        place = row[:, None] * stride + columns[None, :]
        x = _load(x_ptr, multiplier_ptr, place, columns, mask, n, HAS_MULTIPLIER)
        codes = _codes(x, scale, NATIVE, codes_ptr)
        tl.store(codes_ptr + row[:, None] * n + columns[None, :], codes, mask=mask)


@triton.jit
def encode_e4m3(x_ptr, codes_ptr, n, BLOCK: tl.constexpr):
    """x float32 [n] -> bytes of E4M3: the cast alone, for checks"""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + place, mask=place < n, other=0.0)
    tl.store(codes_ptr + place, casts.to_e4m3(x), mask=place < n)
