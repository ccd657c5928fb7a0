"""NF4, the sixteen levels of QLoRA: the public calls.

    encode, decode            numbers in [-1, 1] to codes, a code a byte, and back
    quantize, dequantize      blocks divided by their largest magnitude, two codes a byte

The levels and their boundaries are those of ``formats.NF4``; blocks, bytes and scales those of
bitsandbytes.  One thing differs: it rounds the boundaries to float32, so that up to fifteen numbers
in [-1, 1], each the float32 nearest to a midpoint, may get the other neighbour.  Dettmers et al.
2023, arXiv:2305.14314, section 3.  Book: 2.5, 6.2
"""

import numpy as np

from qbook.formats import NF4
from qbook.kernels import isa, threads
from qbook.kernels.arguments import result
from qbook.kernels.minifloat_cast import levels, reference
from qbook.kernels.simd.convert import INFINITY

# Codes are made 32 at a time.
UNIT = 32


def boundaries():
    """-> [15] float32: x has the code of how many of them lie below x

    The largest float32 that still goes to the lower of two neighbours.
    """
    values = NF4.levels.astype(np.float64)
    nearest = ((values[:-1] + values[1:]) / 2).astype(np.float32)
    lower = np.arange(len(nearest))
    return np.where(
        NF4.encode(nearest) == lower, nearest, np.nextafter(nearest, np.float32(-2))
    ).astype(np.float32)


BOUNDARIES = boundaries()
LEVELS = np.array(NF4.levels)


def encode(x, *, out=None, use=None, num_threads=None):
    """x float32, any shape and strides -> codes uint8 of its shape, bit for bit ``NF4.encode``

    What lies beyond [-1, 1] saturates.
    out:  uint8 of x's shape, contiguous, to be filled; None: a new array
    use:  an instruction set, see ``isa``;  num_threads: see ``threads``
    Raises ValueError for NaN in x (out is then undefined), another type, another shape of out.
    """
    x = _floats(x)
    codes = result(out, x.shape, np.uint8)
    chosen = isa.choose(use)
    if chosen == isa.REFERENCE:
        codes[...] = reference.encode(x, NF4)
    elif codes.size:
        count = threads.count(num_threads)
        worst = np.zeros(count, np.int32)
        levels.encode(
            np.ascontiguousarray(x).reshape(-1), BOUNDARIES, codes.reshape(-1), worst, count
        )
        if not worst.max() <= INFINITY:
            raise ValueError("NF4 has no NaN, but x holds one; remove it before encoding")
    return codes


def decode(codes, *, out=None, use=None, num_threads=None):
    """codes uint8 from 0 to 15, any shape and strides -> their levels, float32

    out:  float32 of the codes' shape.  Raises ValueError for other codes; otherwise as ``encode``.
    """
    codes = np.asarray(codes)
    if codes.dtype != np.uint8 or codes.max(initial=0) >= len(LEVELS):
        raise ValueError(
            f"codes of type {codes.dtype} up to {codes.max(initial=0)} are none of NF4; "
            "pass uint8 from 0 to 15"
        )
    values = result(out, codes.shape, np.float32)
    chosen = isa.choose(use)
    if chosen == isa.REFERENCE:
        values[...] = reference.decode(codes, NF4)
    elif values.size:
        flat, count = np.ascontiguousarray(codes).reshape(-1), threads.count(num_threads)
        levels.decode(flat, LEVELS, values.reshape(-1), count)
    return values


def quantize(x, block_size=64, *, out=None, use=None, num_threads=None):
    """x float32, any shape of n numbers -> packed uint8 [ceil(n / 2)], absmax float32 [blocks]

    block_size:  neighbours, across rows too, that share absmax, a multiple of 32; the last block
                 may be shorter
    packed:      byte i holds the code of number 2 i in its high bits, that of 2 i + 1 in its low
                 ones; behind an odd count stands the code of 0
    out:         a pair of arrays like the result, to be filled; None: new ones
    Raises ValueError for NaN or infinity in x (out is then undefined), another type or block_size.
    """
    x = np.ascontiguousarray(_floats(x)).reshape(-1)
    _check_block(block_size)
    packed, absmax = out or (None, None)
    packed = result(packed, (-(-x.size // 2),), np.uint8)
    absmax = result(absmax, (-(-x.size // block_size),), np.float32)
    chosen = isa.choose(use)
    if chosen == isa.REFERENCE:
        if not np.all(np.isfinite(x)):
            raise ValueError("x holds NaN or infinity; quantize finite values only")
        packed[:], absmax[:] = reference.quantize_nf4(x, block_size)
    elif x.size:
        count = threads.count(num_threads)
        worst = np.zeros(count, np.int32)
        levels.quantize(x, block_size, reference.SMALLEST, BOUNDARIES, packed, absmax, worst, count)
        if not worst.max() < INFINITY:
            raise ValueError("x holds NaN or infinity; quantize finite values only")
    return packed, absmax


def dequantize(packed, absmax, shape, block_size=64, *, out=None, use=None, num_threads=None):
    """packed, absmax as ``quantize`` made them -> level * absmax, float32 of a shape

    Raises ValueError for sizes that do not belong to the shape.  Other arguments as above.
    """
    packed, absmax = np.asarray(packed), np.asarray(absmax)
    _check_block(block_size)
    values = result(out, shape, np.float32)
    n = values.size
    expected = (-(-n // 2),), (-(-n // block_size),)
    types = (packed.dtype, absmax.dtype)
    if types != (np.uint8, np.float32) or (packed.shape, absmax.shape) != expected:
        raise ValueError(
            f"packed is of type {packed.dtype} and shape {packed.shape}, absmax {absmax.dtype} and "
            f"{absmax.shape}; {shape} needs uint8 {expected[0]} and float32 {expected[1]}"
        )
    chosen = isa.choose(use)
    flat = values.reshape(-1)
    if chosen == isa.REFERENCE:
        flat[:] = reference.dequantize_nf4(packed, absmax, n, block_size)
    elif n:
        packed, absmax = np.ascontiguousarray(packed), np.ascontiguousarray(absmax)
        count = threads.count(num_threads)
        levels.dequantize(packed, LEVELS, absmax, block_size, flat, count)
    return values


def _floats(x):
    x = np.asarray(x)
    if x.dtype != np.float32:
        raise ValueError(f"x is of type {x.dtype}; pass float32, or use NF4.encode for other types")
    return x


def _check_block(block_size):
    if not isinstance(block_size, int) or block_size < UNIT or block_size % UNIT:
        raise ValueError(f"block_size={block_size!r} is not served; choose a multiple of {UNIT}")
