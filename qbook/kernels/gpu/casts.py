"""Device functions: rounding and conversions, the same on a GPU and in the interpreter.

Triton's interpreter rounds ``.to(tl.float8e4nv)`` wrongly at ties and knows neither libdevice nor
inline assembly; integers are exact everywhere.  Book: 2.5, 6.1
"""

import triton
import triton.language as tl

from qbook.kernels.gpu import device

# Known when this module is loaded: a process compiles, or it interprets.
PTX = tl.constexpr(not device.interpreted())


@triton.jit
def nearest(x):
    """float32, |x| < 2^22 -> the nearest integer, ties to even, int32

    An instruction, and not an addition: the assembler of sm_100 and sm_120 fuses a product with
    the sum behind it even where it is told not to (ptxas 12.9, --fmad=false), and rounds once.
    In the interpreter: 1.5 * 2^23 has a unit in the last place of 1, so that the addition rounds.
    """
    if PTX:
        rounded = tl.inline_asm_elementwise(
            "cvt.rni.s32.f32 $0, $1;", "=r,f", [x], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        rounded = ((x + 12582912.0) - 12582912.0).to(tl.int32)
    return rounded


@triton.jit
def to_e4m3(x):
    """float32 -> the byte of E4M3, ties to even; beyond 448 saturates, NaN stays NaN"""
    bits = x.to(tl.uint32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    # Normal: 20 of 23 bits of the mantissa go, and the bias falls from 127 to 7.
    rounded = magnitude + 0x7FFFF + ((magnitude >> 20) & 1)
    normal = (rounded >> 20) - (127 - 7) * 8
    # Subnormal: 2^14 has a unit in the last place of 2^-9, the step of E4M3 below 2^-6.
    shifted = magnitude.to(tl.float32, bitcast=True) + 16384.0
    subnormal = shifted.to(tl.uint32, bitcast=True) - 0x46800000
    code = tl.where(magnitude < 0x3C800000, subnormal, normal)
    # 0x43E00000 is 448, code 0x7E; its mantissa's dropped bits may be anything up to the tie.
    code = tl.where(rounded > 0x43EFFFFF, 0x7E, code)
    code = tl.where(magnitude > 0x7F800000, 0x7F, code)
    return (((bits >> 24) & 0x80) | code).to(tl.uint8)


@triton.jit
def from_e4m3(byte):
    """A byte of E4M3 that is no NaN -> float16, exact: its bits in place, times 2^8"""
    code = byte.to(tl.uint16)
    bits = ((code & 0x80) << 8) | ((code & 0x7F) << 7)
    return bits.to(tl.float16, bitcast=True) * 256.0


@triton.jit
def from_e2m1(code):
    """A code of E2M1, 0 to 15 -> float16, exact: its bits in place, times 2^14"""
    bits = ((code.to(tl.uint16) & 8) << 12) | ((code.to(tl.uint16) & 7) << 9)
    return bits.to(tl.float16, bitcast=True) * 16384.0


@triton.jit
def from_e8m0(byte):
    """A byte of E8M0 that is no NaN -> float32, 2^(byte - 127), exact; byte 0 is subnormal"""
    bits = tl.where(byte == 0, 0x400000, byte.to(tl.uint32) << 23)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def plus_1024(code):
    """An integer from 0 to 1023 -> float16, 1024 + code, exact, without a conversion

    1024 has a unit in the last place of 1: the code is the mantissa.
    """
    return (code.to(tl.uint16) | 0x6400).to(tl.float16, bitcast=True)


@triton.jit
def to_bfloat16_bits(x):
    """float32, finite -> the nearest float32 whose lower sixteen bits are 0, ties to even"""
    bits = x.to(tl.uint32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.to(tl.float32, bitcast=True)
