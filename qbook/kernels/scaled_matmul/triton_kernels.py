"""Products of 8-bit codes, then scales and bias, on a GPU: compiled by Triton.

    matmul               a program computes a tile; threads copy, with masks: any shape, any stride
    matmul_descriptors   sm_90 and later: the copy engine fetches tiles and knows the borders; a
                         program computes tile after tile and loads the next while it stores one
    matmul_no_dot        sm_75, where Triton has no tensor cores: for a few rows, and for shapes
                         that torch's int8 product does not take

    y [m, n] = (x_codes [m, k] @ w_codes [n, k]^T) * (x_scale [m] * w_scale [n]) + bias [n]

One text for both types: int8 is summed in int32, exact, E4M3 in float32.  Without scales the sums
themselves are stored.  Scales and bias travel as one tuple, ``factors``; a stride of 0 is one scale
for all.  The order of tiles and the persistent loop are those of Triton's tutorials 03 and 09.
Book: 6.1
"""

import triton
import triton.language as tl

from qbook.kernels.gpu import casts, tiles


@triton.jit
def keep(codes):
    """DECODE for codes that the tensor cores know"""
    return codes


@triton.jit
def decode_e4m3(byte):
    """A byte of E4M3 -> float16, exact, NaN included: DECODE for tensor cores without FP8"""
    return tl.where((byte & 0x7F) == 0x7F, float("nan"), casts.from_e4m3(byte)).to(tl.float16)


@triton.jit
def _dot(left, right, sums, APART: tl.constexpr):
    """left [a, k], right [k, b] -> sums + left @ right

    APART: the product is summed from 0 and then added, in true float32, to sums; told to be
    imprecise, it is not merged with that addition.
    """
    if APART:
        sums += tl.dot(left, right, max_num_imprecise_acc=left.shape[1], out_dtype=sums.dtype)
    else:
        sums = tl.dot(left, right, sums, out_dtype=sums.dtype)
    return sums


@triton.jit
def _finish(sums, rows, columns, m, n, factors):
    """sums [rows, columns] -> y, float32: the product of the scales is rounded first"""
    x_scale_ptr, x_scale_stride, w_scale_ptr, w_scale_stride, bias_ptr = factors
    if x_scale_ptr is not None:
        x_scale = tl.load(x_scale_ptr + rows * x_scale_stride, mask=rows < m, other=0.0)
        w_scale = tl.load(w_scale_ptr + columns * w_scale_stride, mask=columns < n, other=0.0)
        sums = sums.to(tl.float32) * (x_scale[:, None] * w_scale[None, :])
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + columns, mask=columns < n, other=0.0)
        # A choice stands between product and sum: the assembler of sm_100 and sm_120 fuses pairs of
        # mul.rn.f32x2 and add.rn.f32x2 even where it is told not to (ptxas 12.9, --fmad=false).
        sums = tl.where((columns < n)[None, :], sums, 0)
        sums += bias.to(tl.float32)[None, :]
    return sums


@triton.jit
def _store(y_ptr, y, rows, columns, m, n):
    place = y_ptr + rows.to(tl.int64)[:, None] * n + columns[None, :]
    mask = (rows < m)[:, None] & (columns < n)[None, :]
    tl.store(place, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def matmul(
    x_ptr,
    w_ptr,
    y_ptr,
    x_scale_ptr,
    w_scale_ptr,
    bias_ptr,
    m,
    n,
    k,
    x_stride,
    w_stride,
    x_scale_stride,
    w_scale_stride,
    STEPS: tl.constexpr,
    EVEN_K: tl.constexpr,
    DECODE: tl.constexpr,
    APART: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile [BLOCK_M, BLOCK_N] of y, from STEPS blocks of columns; EVEN_K: none overruns"""
    row, column = tiles.place(tl.program_id(0), tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N), GROUP)
    rows = row * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = column * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    # Rows beyond the last read the last again and are not stored: no mask on them in the loop.
    x_place = x_ptr + tl.minimum(rows, m - 1).to(tl.int64)[:, None] * x_stride + depth[None, :]
    w_place = w_ptr + tl.minimum(columns, n - 1).to(tl.int64)[None, :] * w_stride + depth[:, None]
    SUM: tl.constexpr = tl.int32 if x_ptr.dtype.element_ty == tl.int8 else tl.float32
    sums = tl.zeros((BLOCK_M, BLOCK_N), SUM)
    for step in range(STEPS):
        if EVEN_K:
            x = tl.load(x_place)
            w = tl.load(w_place)
        else:
            inside = depth < k - step * BLOCK_K
            x = tl.load(x_place, mask=inside[None, :], other=0.0)
            w = tl.load(w_place, mask=inside[:, None], other=0.0)
        sums = _dot(DECODE(x), DECODE(w), sums, APART)
        x_place += BLOCK_K
        w_place += BLOCK_K
    factors = (x_scale_ptr, x_scale_stride, w_scale_ptr, w_scale_stride, bias_ptr)
    _store(y_ptr, _finish(sums, rows, columns, m, n, factors), rows, columns, m, n)


@triton.jit
def matmul_descriptors(
    x_desc,
    w_desc,
    y_desc,
    x_scale_ptr,
    w_scale_ptr,
    bias_ptr,
    m,
    n,
    x_scale_stride,
    w_scale_stride,
    programs,
    ROUNDS: tl.constexpr,
    STEPS: tl.constexpr,
    DECODE: tl.constexpr,
    APART: tl.constexpr,
    W_LEFT: tl.constexpr,
    PARTS: tl.constexpr,
    FLATTEN: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Tiles program, program + programs, ... of y

    ROUNDS:   how many tiles, or None: counted here.  Triton's interpreter needs a number, and
              computes the last tile again where a program has fewer
    W_LEFT:   y^T = w x^T, for few rows: wgmma takes 64 rows on the left, and 8 or more on the right
    PARTS:    a tile is stored in so many strips: a strip, not the tile, needs shared memory
    FLATTEN:  both loops become one, whose loads run ahead across tiles
    """
    tile_rows, tile_columns = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    last = tile_rows * tile_columns - 1
    SUM: tl.constexpr = tl.int32 if x_desc.dtype == tl.int8 else tl.float32
    factors = (x_scale_ptr, x_scale_stride, w_scale_ptr, w_scale_stride, bias_ptr)
    rounds = (last - tl.program_id(0)) // programs + 1
    for turn in tl.range(0, rounds if ROUNDS is None else ROUNDS, flatten=FLATTEN):
        tile = tl.minimum(tl.program_id(0) + turn * programs, last)
        row, column = tiles.place(tile, tile_rows, tile_columns, GROUP)
        first_row, first_column = row * BLOCK_M, column * BLOCK_N
        if W_LEFT:
            sums = tl.zeros((BLOCK_N, BLOCK_M), SUM)
        else:
            sums = tl.zeros((BLOCK_M, BLOCK_N), SUM)
        for step in range(STEPS):
            x = DECODE(x_desc.load([first_row, step * BLOCK_K]))
            w = DECODE(w_desc.load([first_column, step * BLOCK_K]))
            if W_LEFT:
                sums = _dot(w, x.T, sums, APART)
            else:
                sums = _dot(x, w.T, sums, APART)
        if W_LEFT:
            _store_strips(y_desc, sums.T, first_row, first_column, m, n, factors, PARTS)
        else:
            _store_strips(y_desc, sums, first_row, first_column, m, n, factors, PARTS)


@triton.jit
def _store_strips(y_desc, sums, first_row, first_column, m, n, factors, PARTS: tl.constexpr):
    """sums [rows, columns] of a tile -> y, in PARTS strips of columns"""
    ROWS: tl.constexpr = sums.shape[0]
    COLUMNS: tl.constexpr = sums.shape[1]
    if PARTS == 1:
        rows = first_row + tl.arange(0, ROWS)
        columns = first_column + tl.arange(0, COLUMNS)
        y = _finish(sums, rows, columns, m, n, factors)
        y_desc.store([first_row, first_column], y.to(y_desc.dtype))
    else:
        # Halves of the columns, without a move between threads.
        near, far = sums.reshape(ROWS, 2, COLUMNS // 2).permute(0, 2, 1).split()
        middle = first_column + COLUMNS // 2
        _store_strips(y_desc, near, first_row, first_column, m, n, factors, PARTS // 2)
        _store_strips(y_desc, far, first_row, middle, m, n, factors, PARTS // 2)


@triton.jit
def matmul_no_dot(
    x_ptr,
    w_ptr,
    y_ptr,
    x_scale_ptr,
    w_scale_ptr,
    bias_ptr,
    m,
    n,
    k,
    x_stride,
    w_stride,
    x_scale_stride,
    w_scale_stride,
    STEPS: tl.constexpr,
    DECODE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Without tensor cores: the products of a block at once, in int32 or float32, then their sum"""
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    x_place = x_ptr + rows.to(tl.int64)[:, None] * x_stride + depth[None, :]
    w_place = w_ptr + columns.to(tl.int64)[:, None] * w_stride + depth[None, :]
    SUM: tl.constexpr = tl.int32 if x_ptr.dtype.element_ty == tl.int8 else tl.float32
    sums = tl.zeros((BLOCK_M, BLOCK_N), SUM)
    for step in range(STEPS):
        inside = (depth < k - step * BLOCK_K)[None, :]
        x = tl.load(x_place, mask=inside & (rows < m)[:, None], other=0)
        w = tl.load(w_place, mask=inside & (columns < n)[:, None], other=0)
        sums += tl.sum(DECODE(x).to(SUM)[:, None, :] * DECODE(w).to(SUM)[None, :, :], axis=2)
        x_place += BLOCK_K
        w_place += BLOCK_K
    factors = (x_scale_ptr, x_scale_stride, w_scale_ptr, w_scale_stride, bias_ptr)
    _store(y_ptr, _finish(sums, rows, columns, m, n, factors), rows, columns, m, n)
