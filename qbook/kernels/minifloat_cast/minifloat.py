"""float32 to a format of ``qbook.formats`` with a sign, and back: the public calls.

    encode    float32 -> codes, as ``fmt.encode``
    decode    codes -> float32, as ``fmt.decode``

FP8 (E4M3, E5M2) is what it is for; FP6 and FP4 of the MX formats, a code a byte, are served by the
same lines.  Versions: ``reference`` (the format's table), ``loops`` (a table of 256 values, to
decode), ``vectors``.  Book: 2.5, 6.2
"""

import functools

import numpy as np

from qbook.formats import Minifloat
from qbook.kernels import isa, threads
from qbook.kernels.arguments import result
from qbook.kernels.minifloat_cast import reference, vectors

MANTISSA_BITS, BIAS = 23, 127
# Above every code: nothing is infinity, or NaN.
NEVER = 256


def encode(x, fmt, saturate=True, *, out=None, use=None, num_threads=None):
    """x float32, any shape and strides -> codes uint8 of its shape, bit for bit ``fmt.encode``

    fmt:       E4M3, E5M2, E3M2, E2M3 or E2M1 of ``qbook.formats``
    saturate:  what lies beyond the range becomes the largest value; else infinity, or NaN
    out:       uint8 of x's shape, contiguous, to be filled; None: a new array
    use:       an instruction set, see ``isa``;  num_threads: see ``threads``
    Raises ValueError for NaN, and for overflow that must not saturate, where fmt has no code for
    them (out is then undefined); for another fmt, another type of x, another shape of out.
    """
    x = np.asarray(x)
    if x.dtype != np.float32:
        raise ValueError(
            f"x is of type {x.dtype}; pass float32, or use {fmt.name}.encode for other types"
        )
    chosen = rules(fmt, saturate)[0]
    codes = result(out, x.shape, np.uint8)
    use = isa.choose(use)
    if use == isa.REFERENCE:
        codes[...] = reference.encode(x, fmt, saturate)
    elif codes.size:
        x, count = np.ascontiguousarray(x), threads.count(num_threads)
        worst = np.zeros(count, np.int32)
        vectors.encode(x.reshape(-1), chosen, codes.reshape(-1), worst, count)
        _refuse(float(worst.max(keepdims=True).view(np.float32)[0]), fmt, saturate)
    return codes


def decode(codes, fmt, *, out=None, use=None, num_threads=None):
    """codes uint8, any shape and strides -> float32 of its shape, bit for bit ``fmt.decode``

    Raises ValueError for codes of another type or beyond those of fmt.  Other arguments as in
    ``encode``.
    """
    codes = np.asarray(codes)
    chosen = rules(fmt, True)[1]
    if codes.dtype != np.uint8 or (fmt.bits < 8 and codes.max(initial=0) >= 2**fmt.bits):
        raise ValueError(
            f"codes of type {codes.dtype} up to {codes.max(initial=0)} are none of {fmt.name}; "
            f"pass uint8 from 0 to {2**fmt.bits - 1}"
        )
    values = result(out, codes.shape, np.float32)
    use = isa.choose(use)
    if use == isa.REFERENCE:
        values[...] = reference.decode(codes, fmt)
    elif values.size:
        flat = np.ascontiguousarray(codes).reshape(-1)
        vectors.decode(flat, chosen, values.reshape(-1), threads.count(num_threads))
    return values


@functools.cache
def rules(fmt, saturate):
    """-> what ``vectors.encode`` and ``vectors.decode`` must know of a format, two tuples

    to encode:  mantissa bits dropped; what the exponent's bias amounts to in codes; bits of the
                number whose addition rounds subnormals; bits of the smallest normal number; code of
                what lies beyond the range; of NaN; place of the sign bit
    to decode:  mantissa bits to be filled in; what the bias amounts to in bits; smallest value;
                code of the smallest normal number; of infinity; of the first NaN; place of the sign
    Raises ValueError for a format without sign or mantissa.
    """
    if not isinstance(fmt, Minifloat) or fmt.mantissa_bits == 0 or fmt.min >= 0:
        raise ValueError(f"{fmt!r} is no minifloat with sign and mantissa; choose E4M3 or E5M2")
    dropped = MANTISSA_BITS - fmt.mantissa_bits
    sign = fmt.bits - 1
    largest = int(np.flatnonzero(fmt.values == fmt.max)[0])
    special = fmt.values[largest + 1 : 2**sign]
    infinity = largest + 1 if np.isposinf(special[:1]).any() else NEVER
    nan = largest + 1 + int(np.isposinf(special).sum()) if np.isnan(special).any() else NEVER
    smallest = np.float32(fmt.smallest_subnormal)
    # Without a code for what lies beyond the range the launcher refuses it.
    highest = largest if saturate or not special.size else largest + 1
    bits = np.float32([smallest * 2.0**MANTISSA_BITS, fmt.smallest_normal]).view(np.int32)
    bias = (BIAS - fmt.bias) << fmt.mantissa_bits
    encoding = (np.int32(bias), *bits, np.int32(highest), np.int32(fmt.nan or 0))
    decoding = (np.int32((BIAS - fmt.bias) << MANTISSA_BITS), smallest)
    codes = (np.int32(2**fmt.mantissa_bits), np.int32(infinity), np.int32(nan))
    return (dropped, *encoding, sign), (dropped, *decoding, *codes, sign)


def _refuse(largest, fmt, saturate):
    """largest: of all |x|, NaN if one is; float64, because the limit may have no float32"""
    if fmt.nan is None and np.isnan(largest):
        raise ValueError(f"{fmt.name} has no NaN, but x holds one; remove it before encoding")
    expressible = fmt.nan is not None or np.isinf(fmt.values).any()
    if not saturate and not expressible and not largest <= fmt.limits[1]:
        raise ValueError(
            f"{fmt.name} holds {fmt.min} to {fmt.max} and no infinity or NaN, but x has {largest}; "
            "pass saturate=True or scale x first"
        )
