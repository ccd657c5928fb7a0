"""Device functions: codes out of four packed bytes at a time, as PTX, and plain twins.

Triton's compiler takes bytes one by one: a shift, a mask, a widening and an "or" for each code.  A
register holds four of them.  One mask cuts four codes out, and ``prmt``, which puts any bytes of
two registers into a third, makes two float16 of two codes at once.  The interpreter knows no
assembly and takes the twins in ``casts``.  Book: 6.1
"""

import triton
import triton.language as tl

from qbook.kernels.gpu import casts


@triton.jit
def cut(packed, field: tl.constexpr, BITS: tl.constexpr):
    """Bytes -> the codes of one field, uint8"""
    return (packed >> (BITS * field)) & ((1 << BITS) - 1)


@triton.constexpr_function
def plus_1024_assembly(field, bits):
    """A code and the byte 0x64 above it are the float16 1024 + code."""
    return f"""{{
        .reg .b32 codes;
        shr.b32 codes, $2, {bits * field};
        and.b32 codes, codes, {(2**bits - 1) * 0x01010101:#x};
        prmt.b32 $0, codes, 0x64646464, 0x4140;
        prmt.b32 $1, codes, 0x64646464, 0x4342;
        }}"""


@triton.constexpr_function
def e2m1_assembly(field):
    """Sign to bit 7 of a byte, magnitude to bits 3 to 1, a byte of zeros below: float16 / 2^14."""
    shift, far, near = ("shl", 4, 1) if field == 0 else ("shr", 0, 3)
    return f"""{{
        .reg .b32 sign, magnitude;
        {shift}.b32 sign, $2, {far};
        {shift}.b32 magnitude, $2, {near};
        and.b32 sign, sign, 0x80808080;
        and.b32 magnitude, magnitude, 0x0e0e0e0e;
        or.b32 sign, sign, magnitude;
        prmt.b32 $0, sign, 0, 0x1404;
        prmt.b32 $1, sign, 0, 0x3424;
        }}"""


@triton.jit
def plus_1024(packed, field: tl.constexpr, BITS: tl.constexpr):
    """Bytes -> 1024 + the code of one field, float16, exact"""
    if casts.PTX:
        value = tl.inline_asm_elementwise(
            plus_1024_assembly(field, BITS),
            "=r,=r,r",
            [packed],
            dtype=tl.float16,
            is_pure=True,
            pack=4,
        )
    else:
        value = casts.plus_1024(cut(packed, field, BITS))
    return value


@triton.jit
def e2m1(packed, field: tl.constexpr):
    """Bytes -> the E2M1 number of one nibble, float16, exact"""
    if casts.PTX:
        value = tl.inline_asm_elementwise(
            e2m1_assembly(field), "=r,=r,r", [packed], dtype=tl.float16, is_pure=True, pack=4
        )
        value = value * 16384.0
    else:
        value = casts.from_e2m1(cut(packed, field, 4))
    return value
