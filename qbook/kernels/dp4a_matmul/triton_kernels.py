"""An int8 product by the instruction dp4a: compiled by Triton, no tensor core, no ``tl.dot``.

    dp4a_by_instruction   four products and their sum: one machine instruction
    dp4a_by_shifts        the same in plain operations, for the interpreter, which knows no assembly
    multiply              x w^T: outer products of words, every sum in a register

Triton gives no say in which thread computes what, but the shape of a tensor has one: the last axis
goes to the 32 lanes of a warp, the one before to the warps, what comes before those to registers of
one thread.  So a tile of the result has four axes,

    [row in the thread, column in the thread, row of warps, lane]

and each thread has ROWS x COLUMNS sums.  A two-dimensional tile would give a thread one column and
many rows, and a load for nearly every multiplication.  Book: 6.1
"""

import triton
import triton.language as tl

LANES = tl.constexpr(32)


@triton.jit
def dp4a_by_instruction(a, b, c):
    """Words of four codes a and b, sums c, int32 -> c + the four products"""
    return tl.inline_asm_elementwise(
        "dp4a.s32.s32 $0, $1, $2, $3;",
        "=r,r,r,r",
        [a, b, c],
        dtype=tl.int32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def dp4a_by_shifts(a, b, c):
    """The same: a code goes to the top of its word, and back down with its sign"""
    for byte in tl.static_range(4):
        c += ((a << (24 - 8 * byte)) >> 24) * ((b << (24 - 8 * byte)) >> 24)
    return c


@triton.jit
def multiply(
    x_ptr,
    w_ptr,
    x_scale_ptr,
    w_scale_ptr,
    c_ptr,
    m,
    n,
    stride,
    DP4A: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    STEPS: tl.constexpr,
    UNROLL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WARP_ROWS: tl.constexpr,
):
    """x int64 [m, stride], w int64 [words, n], eight codes each -> c [m, n]

    x lies as the layer before left it: all lanes of a warp want the same word.
    w lies with its outputs side by side: lanes want neighbours.
    STEPS * UNROLL words, filled up with zeros.
    """
    row = tl.program_id(0).to(tl.int64) * (ROWS * WARP_ROWS)
    row += (tl.arange(0, WARP_ROWS) * ROWS)[None, None, :, None]
    row += tl.arange(0, ROWS)[:, None, None, None]
    column = tl.program_id(1) * (COLUMNS * LANES)
    column += tl.arange(0, LANES)[None, None, None, :]
    column += (tl.arange(0, COLUMNS) * LANES)[None, :, None, None]
    # Beyond the edge the last row or column is read again, and not stored.
    x_at = x_ptr + tl.minimum(row, m - 1) * stride
    w_at = w_ptr + tl.minimum(column, n - 1)
    total = tl.zeros((ROWS, COLUMNS, WARP_ROWS, LANES), tl.int32)
    for _ in range(STEPS):
        for word in tl.static_range(UNROLL):
            x = tl.load(x_at + word)
            w = tl.load(w_at + word * n)
            total = DP4A(x.to(tl.int32), w.to(tl.int32), total)
            total = DP4A((x >> 32).to(tl.int32), (w >> 32).to(tl.int32), total)
        x_at += UNROLL
        w_at += UNROLL * n
    place = c_ptr + row * n + column
    mask = (row < m) & (column < n)
    if HAS_SCALES:
        x_scale = tl.load(x_scale_ptr + row, mask=row < m)
        w_scale = tl.load(w_scale_ptr + column, mask=column < n)
        scaled = total.to(tl.float32) * (x_scale * w_scale)
        tl.store(place, scaled, mask=mask)
    else:
        tl.store(place, total, mask=mask)
