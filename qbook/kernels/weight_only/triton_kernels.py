"""y = x w_hat^T with w_hat in packed codes, compiled by Triton: three ways, one result.

    multiply_row    one row of x: no tensor core, each thread 16 bytes of codes at a time
    multiply        a tile of the result on tensor cores; the inputs may be split among programs
    join            adds the parts of split inputs
    dequantize      w_hat itself, for a library's product: where there are many rows of x

The layout is that of ``packed``: byte r of a tile holds the codes of columns r, r + PLANE, ... of
the tile, so that a shift and a mask give PLANE neighbouring columns.  Scales lie in words of 32
bits [words, out], one for WORD columns: the least that a GPU copies to shared memory ahead of use.
Book: 6.1
"""

import triton
import triton.language as tl

from qbook.kernels.weight_only import decode


@triton.jit
def _word(scale_ptr, column, n, N, mask, WORD: tl.constexpr):
    """The word with the scale of a column, for rows n"""
    return tl.load(scale_ptr + column // WORD * N + n, mask=mask, other=0)


@triton.jit
def _weight(
    packed,
    word,
    column,
    table_ptr,
    field: tl.constexpr,
    BITS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    WORD: tl.constexpr,
    DECODE: tl.constexpr,
    SCALE: tl.constexpr,
    DTYPE: tl.constexpr,
    BFLOAT: tl.constexpr,
):
    """One field of packed bytes [..., PLANE] -> PLANE columns of w_hat, the first of them column

    word:  [..., 1], with the scale of these columns
    """
    scale, offset = SCALE(word, column // GROUP_SIZE % (WORD // GROUP_SIZE))
    value = DECODE(packed, field, BITS, offset, table_ptr)
    return decode.product(value, scale, DTYPE, BFLOAT)


@triton.jit
def _finish(total, n, N, tensor_scale_ptr, bias_ptr):
    """The scale of the whole tensor and the bias, where there are any"""
    if tensor_scale_ptr is not None:
        total *= tl.load(tensor_scale_ptr)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    return total


@triton.jit
def multiply(
    x_ptr,
    codes_ptr,
    scale_ptr,
    table_ptr,
    tensor_scale_ptr,
    bias_ptr,
    y_ptr,
    M,
    N,
    x_stride,
    K: tl.constexpr,
    TILES: tl.constexpr,
    PLANE: tl.constexpr,
    BITS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    WORD: tl.constexpr,
    DECODE: tl.constexpr,
    SCALE: tl.constexpr,
    BFLOAT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PARTS: tl.constexpr,
    STEPS: tl.constexpr,
    TILES_A_STEP: tl.constexpr,
):
    """x [M, K], codes [N, TILES * PLANE] -> y [M, N], or float32 [PARTS, M, N] for ``join``

    y^T = w_hat x^T: the weight is the left operand.  On sm_90 that one may come from registers,
    where it was just decoded, and the rows of x, few or many, are the side of the instruction that
    can be narrow.
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    part = tl.program_id(2)
    byte = tl.arange(0, PLANE)
    FIELDS: tl.constexpr = 8 // BITS
    TILE: tl.constexpr = PLANE * FIELDS
    WHOLE: tl.constexpr = TILES == PARTS * STEPS * TILES_A_STEP
    EVEN: tl.constexpr = WHOLE and K == TILES * TILE
    STEP: tl.constexpr = TILES_A_STEP * TILE
    ALIGNED: tl.constexpr = WORD % STEP == 0 or STEP % WORD == 0
    codes_place = codes_ptr + n[:, None].to(tl.int64) * (TILES * PLANE) + byte[None, :]
    x_place = x_ptr + m[None, :].to(tl.int64) * x_stride + byte[:, None]
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for step in range(STEPS):
        for inner in tl.static_range(TILES_A_STEP):
            tile = (part * STEPS + step) * TILES_A_STEP + inner
            mask = n < N
            if not WHOLE:
                mask = mask & (tile < TILES)
            packed = tl.load(codes_place + tile * PLANE, mask=mask[:, None], other=0)
            for field in tl.static_range(FIELDS):
                column = tile * TILE + field * PLANE
                # Once for all columns of this step that it serves.
                if not ALIGNED or (inner * TILE + field * PLANE) % WORD == 0:
                    word = _word(scale_ptr, column, n, N, mask, WORD)
                w = _weight(
                    packed,
                    word[:, None],
                    column,
                    table_ptr,
                    field,
                    BITS,
                    GROUP_SIZE,
                    WORD,
                    DECODE,
                    SCALE,
                    x_ptr.dtype.element_ty,
                    BFLOAT,
                )
                seen = (m < M)[None, :]
                if not EVEN:
                    seen = seen & (column + byte < K)[:, None]
                x = tl.load(x_place + column, mask=seen, other=0.0)
                total = tl.dot(w, x, total)
    y_place = y_ptr + (part.to(tl.int64) * M + m[None, :]) * N + n[:, None]
    if PARTS == 1:
        total = _finish(total, n[:, None], N, tensor_scale_ptr, bias_ptr)
    total = total.to(y_ptr.dtype.element_ty)
    tl.store(y_place, total, mask=(n < N)[:, None] & (m < M)[None, :])


@triton.jit
def join(
    parts_ptr,
    tensor_scale_ptr,
    bias_ptr,
    y_ptr,
    M,
    N,
    PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """float32 [PARTS, M, N] -> y [M, N]; parts are added in their order, the same in every run"""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1).to(tl.int64)
    total = tl.zeros((BLOCK_N,), tl.float32)
    for part in tl.static_range(PARTS):
        total += tl.load(parts_ptr + (part * M + m) * N + n, mask=n < N, other=0.0)
    total = _finish(total, n, N, tensor_scale_ptr, bias_ptr)
    tl.store(y_ptr + m * N + n, total.to(y_ptr.dtype.element_ty), mask=n < N)


@triton.jit
def multiply_row(
    x_ptr,
    codes_ptr,
    scale_ptr,
    table_ptr,
    tensor_scale_ptr,
    bias_ptr,
    y_ptr,
    N,
    x_stride,
    K: tl.constexpr,
    TILES: tl.constexpr,
    PLANE: tl.constexpr,
    BITS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    WORD: tl.constexpr,
    DECODE: tl.constexpr,
    SCALE: tl.constexpr,
    BFLOAT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
    STEPS: tl.constexpr,
):
    """x [rows, K] -> y [rows, N]: a program takes one row of x and BLOCK_N of w_hat

    A block is [BLOCK_N, BLOCK_TILES, PLANE]: a thread loads neighbouring bytes of one tile, and
    their scale once for all of them.
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1).to(tl.int64)
    byte = tl.arange(0, PLANE)
    FIELDS: tl.constexpr = 8 // BITS
    TILE: tl.constexpr = PLANE * FIELDS
    ALIGNED: tl.constexpr = WORD % TILE == 0 or TILE % WORD == 0
    EVEN: tl.constexpr = TILES == STEPS * BLOCK_TILES and K == TILES * TILE
    row = codes_ptr + n.to(tl.int64) * (TILES * PLANE)
    total = tl.zeros((BLOCK_N, BLOCK_TILES, PLANE), tl.float32)
    for step in range(STEPS):
        tile = step * BLOCK_TILES + tl.arange(0, BLOCK_TILES)
        mask = (n < N)[:, None] & (tile < TILES)[None, :]
        place = row[:, None, None] + (tile[:, None] * PLANE + byte[None, :])[None, :, :]
        packed = tl.load(place, mask=mask[:, :, None], other=0)
        for field in tl.static_range(FIELDS):
            start = (tile * FIELDS + field) * PLANE
            # Once for all fields that it serves.
            if not ALIGNED or field * PLANE % WORD == 0:
                word = _word(scale_ptr, start[None, :], n[:, None], N, mask, WORD)
            w = _weight(
                packed,
                word[:, :, None],
                start[None, :, None],
                table_ptr,
                field,
                BITS,
                GROUP_SIZE,
                WORD,
                DECODE,
                SCALE,
                x_ptr.dtype.element_ty,
                BFLOAT,
            )
            # Of the shape of the bytes, each thread then loads what it needs itself, from the L1
            # cache; [BLOCK_TILES, PLANE] would go through shared memory, with barriers.
            column = tl.broadcast_to((start[:, None] + byte[None, :])[None, :, :], packed.shape)
            x_place = x_ptr + m * x_stride + column
            x = tl.load(x_place) if EVEN else tl.load(x_place, mask=column < K, other=0.0)
            total += w.to(tl.float32) * x.to(tl.float32)
    y = _finish(tl.sum(tl.sum(total, axis=2), axis=1), n, N, tensor_scale_ptr, bias_ptr)
    tl.store(y_ptr + m * N + n, y.to(y_ptr.dtype.element_ty), mask=n < N)


@triton.jit
def dequantize(
    codes_ptr,
    scale_ptr,
    table_ptr,
    w_ptr,
    N,
    K: tl.constexpr,
    TILES: tl.constexpr,
    PLANE: tl.constexpr,
    BITS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    WORD: tl.constexpr,
    DECODE: tl.constexpr,
    SCALE: tl.constexpr,
    BFLOAT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
):
    """codes [N, TILES * PLANE] -> w_hat [N, K]"""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    tile = tl.program_id(1) * BLOCK_TILES + tl.arange(0, BLOCK_TILES)
    byte = tl.arange(0, PLANE)
    FIELDS: tl.constexpr = 8 // BITS
    ALIGNED: tl.constexpr = WORD % (PLANE * FIELDS) == 0 or PLANE * FIELDS % WORD == 0
    mask = (n < N)[:, None] & (tile < TILES)[None, :]
    rows = n.to(tl.int64)[:, None, None]
    place = (tile[:, None] * PLANE + byte[None, :])[None, :, :]
    packed = tl.load(codes_ptr + rows * (TILES * PLANE) + place, mask=mask[:, :, None], other=0)
    for field in tl.static_range(FIELDS):
        start = (tile * FIELDS + field) * PLANE
        if not ALIGNED or field * PLANE % WORD == 0:
            word = _word(scale_ptr, start[None, :], n[:, None], N, mask, WORD)
        w = _weight(
            packed,
            word[:, :, None],
            start[None, :, None],
            table_ptr,
            field,
            BITS,
            GROUP_SIZE,
            WORD,
            DECODE,
            SCALE,
            w_ptr.dtype.element_ty,
            BFLOAT,
        )
        column = (start[:, None] + byte[None, :])[None, :, :]
        tl.store(w_ptr + rows * K + column, w, mask=mask[:, :, None] & (column < K))
