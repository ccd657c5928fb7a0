"""LLM.int8() on a GPU, compiled by Triton.

    column_tops   the largest magnitude of each column of x, read once
    multiply      both products in one pass: int8 over all columns, 16 bits over those with outliers

Fused, because apart (three launches) the int32 sums and the float product would each be written
and read again.  The columns with outliers are taken from where they lie: a gather fetches 32 bytes
for each number of 2, which is cheap for tens of columns and dear for hundreds.  Book: 5.1, 6.1
"""

import triton
import triton.language as tl

from qbook.kernels.gpu import tiles


@triton.jit
def column_tops(
    x_ptr,
    tops_ptr,
    samples,
    n,
    stride,
    STEPS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """x [samples, n], tops int32 [n], all 0 -> tops: the bits of the largest |x| of each column

    A program reads STEPS blocks of rows.  Bits of magnitudes are ordered as the numbers are, so
    that programs combine theirs by an integer maximum, in whatever order they end.
    """
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    first = tl.program_id(1).to(tl.int64) * STEPS * BLOCK_ROWS
    tops = tl.zeros((BLOCK_ROWS, BLOCK), tl.int32)
    for step in range(STEPS):
        row = first + step * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        mask = (row < samples)[:, None] & (columns < n)[None, :]
        x = tl.load(x_ptr + row[:, None] * stride + columns[None, :], mask=mask, other=0.0)
        bits = x.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF
        tops = tl.maximum(tops, bits)
    tl.atomic_max(tops_ptr + columns, tl.max(tops, axis=0), mask=columns < n, sem="relaxed")


@triton.jit
def _integer_sums(
    codes_ptr,
    w_codes_ptr,
    first_row,
    first_output,
    samples,
    outputs,
    n,
    w_stride,
    STEPS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
    BULK: tl.constexpr,
):
    """codes [samples, n], w_codes [outputs, n] -> their product, int32 [BLOCK_OUTPUTS, BLOCK_ROWS]

    BULK: both are descriptors, of which the copy engine fetches tiles, zeros beyond the edges
    """
    row = first_row + tl.arange(0, BLOCK_ROWS)
    output = first_output + tl.arange(0, BLOCK_OUTPUTS)
    sums = tl.zeros((BLOCK_OUTPUTS, BLOCK_ROWS), tl.int32)
    for step in range(STEPS):
        if BULK:
            x = codes_ptr.load([first_row, step * BLOCK]).T
            w = w_codes_ptr.load([first_output, step * BLOCK])
        else:
            column = step * BLOCK + tl.arange(0, BLOCK)
            x_at = codes_ptr + row.to(tl.int64)[None, :] * n + column[:, None]
            x = tl.load(x_at, mask=(column < n)[:, None] & (row < samples)[None, :], other=0)
            w_at = w_codes_ptr + output.to(tl.int64)[:, None] * w_stride + column[None, :]
            w = tl.load(w_at, mask=(output < outputs)[:, None] & (column < n)[None, :], other=0)
        sums = tl.dot(w, x, sums, out_dtype=tl.int32)
    return sums


@triton.jit
def multiply(
    codes_ptr,
    scale_ptr,
    x_ptr,
    columns_ptr,
    w_codes_ptr,
    w_scale_ptr,
    w_float_ptr,
    bias_ptr,
    out_ptr,
    samples,
    outputs,
    n,
    outliers,
    x_stride,
    w_stride,
    w_float_stride,
    HAS_BIAS: tl.constexpr,
    STEPS: tl.constexpr,
    OUTLIER_STEPS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_OUTLIERS: tl.constexpr,
    GROUP: tl.constexpr,
    BULK: tl.constexpr,
):
    """codes int8 [samples, n] and scale [samples] of the rest, x [samples, n], columns [outliers]
    -> out [samples, outputs]

    The weight is the left operand, so that a tile is the transpose of its part of the result: a
    tensor core wants 64 rows on the left and is content with 16 columns on the right, and a batch
    may be small where a weight never is.
    """
    across, down = tl.cdiv(outputs, BLOCK_OUTPUTS), tl.cdiv(samples, BLOCK_ROWS)
    tile = tiles.place(tl.program_id(0), across, down, GROUP)
    first_output, first_row = tile[0] * BLOCK_OUTPUTS, tile[1] * BLOCK_ROWS
    sums = _integer_sums(
        codes_ptr,
        w_codes_ptr,
        first_row,
        first_output,
        samples,
        outputs,
        n,
        w_stride,
        STEPS,
        BLOCK_ROWS,
        BLOCK_OUTPUTS,
        BLOCK,
        BULK,
    )
    row = first_row + tl.arange(0, BLOCK_ROWS)
    output = first_output + tl.arange(0, BLOCK_OUTPUTS)
    in_rows, in_outputs = row < samples, output < outputs
    x_scale = tl.load(scale_ptr + row, mask=in_rows, other=0.0)
    w_scale = tl.load(w_scale_ptr + output, mask=in_outputs, other=0.0)
    # The order of ``integer_product.linear``: its bits.
    total = sums.to(tl.float32) * (x_scale[None, :] * w_scale[:, None])
    if HAS_BIAS:
        bias = tl.load(bias_ptr + output, mask=in_outputs, other=0.0)
        total += bias.to(tl.float32)[:, None]
    x_at = x_ptr + row.to(tl.int64)[None, :] * x_stride
    w_at = w_float_ptr + output.to(tl.int64)[:, None] * w_float_stride
    # No load ahead: an address must be loaded first, and there are few steps.
    for step in tl.range(OUTLIER_STEPS, num_stages=1):
        which = step * BLOCK_OUTLIERS + tl.arange(0, BLOCK_OUTLIERS)
        there = which < outliers
        column = tl.load(columns_ptr + which, mask=there, other=0)
        x = tl.load(x_at + column[:, None], mask=there[:, None] & in_rows[None, :], other=0.0)
        w = tl.load(w_at + column[None, :], mask=in_outputs[:, None] & there[None, :], other=0.0)
        # "ieee": float32 is not to be rounded to the 10 bits of TF32.
        total = tl.dot(w, x, total, input_precision="ieee")
    out_at = out_ptr + row.to(tl.int64)[None, :] * outputs + output[:, None]
    mask = in_outputs[:, None] & in_rows[None, :]
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=mask)
