"""Rounding to a minifloat in integers, sixteen numbers at a time.

A normal number: adding just under half a step to the bits of |x|, and the lowest kept bit, carries
into the kept bits exactly where rounding to nearest, ties to even, goes up; a carry out of the
mantissa is the next exponent.  A subnormal one: adding 2^23 times the format's smallest value, in
float32, leaves no digits below it.  Either result is a code, because codes are in the order of
their values.

``rules`` are numbers that say which format it is, see ``minifloat.rules``.  Book: 2.5, 6.2
"""

import numpy as np
from numba import prange

from qbook.kernels.compiled import kernel
from qbook.kernels.simd.arithmetic import (
    add,
    and_,
    mul,
    or_,
    shift_left,
    shift_right,
    splat_f32,
    splat_i32,
    sub,
    to_f32,
)
from qbook.kernels.simd.convert import (
    INFINITY,
    bits_of,
    codes_at,
    float_of,
    largest_lane,
    magnitude,
    maximum,
    minimum,
    put_codes,
    put_values,
    values_at,
    where_less,
)
from qbook.kernels.simd.memory import prefetch

LANES, AHEAD = 16, 8192
QUIET_NAN = np.int32(0x7FC00000)


@kernel(parallel=True)
def encode(x, rules, codes, worst, threads):
    """x float32 [n] contiguous -> fills codes uint8 [n]

    worst:  int32 [threads], the bits of the largest |x| each has seen; NaN is above infinity
    """
    n = x.shape[0]
    if threads == 1:
        worst[0] = _encode(x, 0, n, rules, codes)
    else:
        for t in prange(threads):
            worst[t] = _encode(x, part(n, t, threads), part(n, t + 1, threads), rules, codes)


@kernel
def part(n, t, threads):
    """Where part t of n begins: at a whole vector"""
    return min(n, (n + LANES - 1) // LANES * t // threads * LANES)


@kernel
def _encode(x, first, last, rules, codes):
    worst = splat_i32(np.int32(0))
    for k in range(first, last, LANES):
        prefetch(x, 4 * k + AHEAD)
        values = values_at(x, k, last - k)
        worst = maximum(worst, magnitude(values))
        put_codes(codes, k, last - k, codes_of(values, rules))
    return largest_lane(worst)


@kernel
def codes_of(x, rules):
    """f32x16 -> i32x16"""
    dropped, bias, rounder, normal, highest, nan, sign = rules
    bits = magnitude(x)
    kept_odd = and_(shift_right(bits, dropped), splat_i32(np.int32(1)))
    half = splat_i32(np.int32((1 << (dropped - 1)) - 1))
    code = shift_right(add(add(bits, half), kept_odd), dropped)
    code = sub(code, splat_i32(bias))
    rounder = splat_i32(rounder)
    subnormal = sub(bits_of(add(float_of(bits), float_of(rounder))), rounder)
    code = where_less(bits, splat_i32(normal), subnormal, code)
    code = minimum(code, splat_i32(highest))
    code = where_less(splat_i32(INFINITY), bits, splat_i32(nan), code)
    # The sign bit falls to where the format has it.
    return or_(code, and_(shift_right(bits_of(x), 31 - sign), splat_i32(np.int32(1 << sign))))


@kernel(parallel=True)
def decode(codes, rules, out, threads):
    """codes uint8 [n] contiguous -> fills out float32 [n]"""
    n = codes.shape[0]
    if threads == 1:
        _decode(codes, 0, n, rules, out)
    else:
        for t in prange(threads):
            _decode(codes, part(n, t, threads), part(n, t + 1, threads), rules, out)


@kernel
def _decode(codes, first, last, rules, out):
    for k in range(first, last, LANES):
        prefetch(codes, k + AHEAD)
        put_values(out, k, last - k, values_of(codes_at(codes, k, last - k), rules))


@kernel
def values_of(code, rules):
    """i32x16 -> f32x16: the fields moved to where float32 has them, subnormals multiplied out"""
    dropped, exponents, smallest, mantissas, infinity, nan, sign = rules
    fields = and_(code, splat_i32(np.int32((1 << sign) - 1)))
    normal = add(shift_left(fields, dropped), splat_i32(exponents))
    subnormal = bits_of(mul(to_f32(fields), splat_f32(smallest)))
    bits = where_less(fields, splat_i32(mantissas), subnormal, normal)
    bits = where_less(fields, splat_i32(infinity), bits, splat_i32(INFINITY))
    bits = where_less(fields, splat_i32(nan), bits, splat_i32(QUIET_NAN))
    negative = and_(shift_left(code, 31 - sign), splat_i32(np.int32(-(2**31))))
    return float_of(or_(bits, negative))
