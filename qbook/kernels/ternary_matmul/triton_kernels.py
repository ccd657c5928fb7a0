"""Ternary products on a GPU, x in int8 and w in 2 bits until it is multiplied: compiled by Triton.

    multiply   a tile of the result on int8 tensor cores; the inputs may be split among programs
    join       adds the parts of split inputs: integers, exact in any order

The layout is that of ``weight_only.packed``: a shift and a mask give 64 neighbouring columns of w,
digits 0, 1, 2, and 1 less is the code.  W2A16 takes the kernels of ``weight_only``.  Book: 6.1
"""

import triton
import triton.language as tl


@triton.jit
def codes_by_byte(packed, field: tl.constexpr):
    """uint8, digits of 2 bits -> int8 codes of one field: what is meant, for the interpreter"""
    return ((packed >> (2 * field)) & 3).to(tl.int8) - 1


@triton.constexpr_function
def _assembly(field):
    """Each byte has 128 added before 1 is taken off, so that no byte borrows of the next, and then
    its highest bit turned: 127, 128, 129 become -1, 0, 1."""
    return f"""{{
        .reg .b32 digits;
        shr.b32 digits, $1, {2 * field};
        and.b32 digits, digits, 0x03030303;
        or.b32 digits, digits, 0x80808080;
        sub.u32 digits, digits, 0x01010101;
        xor.b32 $0, digits, 0x80808080;
        }}"""


@triton.jit
def codes_by_word(packed, field: tl.constexpr):
    """The same, four bytes at a time in the register that holds them"""
    return tl.inline_asm_elementwise(
        _assembly(field), "=r,r", [packed], dtype=tl.int8, is_pure=True, pack=4
    )


@triton.jit
def _finish(sums, m, n, M, N, w_scale_ptr, tensor_scale_ptr, x_scale_ptr, bias_ptr):
    """sums int32 -> y float32: the product of the scales is rounded first, as on the CPU"""
    word = tl.load(w_scale_ptr + n, mask=n < N, other=0)
    w_scale = (word & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    if tensor_scale_ptr is not None:
        w_scale *= tl.load(tensor_scale_ptr)
    x_scale = tl.load(x_scale_ptr + m, mask=m < M, other=0.0)
    y = sums.to(tl.float32) * (x_scale * w_scale)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    return y


@triton.jit
def multiply(
    x_ptr,
    codes_ptr,
    w_scale_ptr,
    tensor_scale_ptr,
    x_scale_ptr,
    bias_ptr,
    y_ptr,
    M,
    N,
    x_stride,
    K: tl.constexpr,
    TILES: tl.constexpr,
    PLANE: tl.constexpr,
    CODES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PARTS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """x int8 [M, K], codes [N, TILES * PLANE] -> y [M, N], or int32 [PARTS, M, N] for ``join``

    y^T = w x^T, as in ``weight_only``: w comes from registers, where it was just made.
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    part = tl.program_id(2)
    byte = tl.arange(0, PLANE)
    WHOLE: tl.constexpr = TILES == PARTS * STEPS
    EVEN: tl.constexpr = WHOLE and K == TILES * 4 * PLANE
    codes_place = codes_ptr + n[:, None].to(tl.int64) * (TILES * PLANE) + byte[None, :]
    x_place = x_ptr + m[None, :].to(tl.int64) * x_stride + byte[:, None]
    sums = tl.zeros((BLOCK_N, BLOCK_M), tl.int32)
    for step in range(STEPS):
        tile = part * STEPS + step
        mask = n < N
        if not WHOLE:
            mask = mask & (tile < TILES)
        packed = tl.load(codes_place + tile * PLANE, mask=mask[:, None], other=0)
        for field in tl.static_range(4):
            column = (tile * 4 + field) * PLANE
            seen = (m < M)[None, :]
            # Behind the last column w has digits that mean -1: there x is 0.
            if not EVEN:
                seen = seen & (column + byte < K)[:, None]
            x = tl.load(x_place + column, mask=seen, other=0)
            sums = tl.dot(CODES(packed, field), x, sums, out_dtype=tl.int32)
    y_place = y_ptr + (part.to(tl.int64) * M + m[None, :]) * N + n[:, None]
    y = sums
    if PARTS == 1:
        scales = w_scale_ptr, tensor_scale_ptr, x_scale_ptr, bias_ptr
        y = _finish(sums, m[None, :], n[:, None], M, N, *scales)
    tl.store(y_place, y.to(y_ptr.dtype.element_ty), mask=(n < N)[:, None] & (m < M)[None, :])


@triton.jit
def join(
    parts_ptr,
    w_scale_ptr,
    tensor_scale_ptr,
    x_scale_ptr,
    bias_ptr,
    y_ptr,
    M,
    N,
    PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """int32 [PARTS, M, N] -> y [M, N]"""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1).to(tl.int64)
    sums = tl.zeros((BLOCK_N,), tl.int32)
    for part in tl.static_range(PARTS):
        sums += tl.load(parts_ptr + (part * M + m) * N + n, mask=n < N, other=0)
    y = _finish(sums, m, n, M, N, w_scale_ptr, tensor_scale_ptr, x_scale_ptr, bias_ptr)
    tl.store(y_ptr + m * N + n, y.to(y_ptr.dtype.element_ty), mask=n < N)
