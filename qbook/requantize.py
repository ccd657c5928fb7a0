"""Requantization: the int32 sum of one layer becomes the codes of the next, in integers alone.

    M = s_x s_w / s_y = m0 2^-31 2^-shift,      2^30 <= m0 < 2^31
    y_codes = clamp(z_y + round(round(sum m0 / 2^31) / 2^shift), qmin, qmax)

Jacob et al. 2018, arXiv:1712.05877, section 2.2, eq. 5-6; gemmlowp, ``fixedpoint/fixedpoint.h``
and ``doc/quantization.md``, bit for bit.  Book: 3.1

NumPy only: what is int32 there is computed in int64 here and never overflows.  Both roundings take
the nearest, ties as gemmlowp has them: the first one up, the second away from zero.
"""

import numpy as np

INT32 = np.iinfo(np.int32)


def quantize_multiplier(multiplier):
    """Real multiplier > 0, any shape -> (m0, shift), both int32 of its shape.

    multiplier is m0 2^-31 2^-shift to within half a unit of m0; a mantissa that rounds up to 2^31
    is halved.  A multiplier below 2^-32 gives (0, 0) as in TensorFlow Lite, 1 or more a negative
    shift.  Raises ValueError for multipliers that are not in (0, 2^31).
    """
    multiplier = np.asarray(multiplier, np.float64)
    if not np.all((multiplier > 0) & (multiplier < 2.0**31)):
        raise ValueError(f"multiplier={multiplier} is not inside (0, 2^31); scales are positive")
    mantissa, exponent = np.frexp(multiplier)
    m0 = np.floor(mantissa * 2.0**31 + 0.5).astype(np.int64)
    carried = m0 == 2**31
    m0, exponent = np.where(carried, m0 // 2, m0), exponent + carried
    vanishes = exponent < -31
    return (
        np.where(vanishes, 0, m0).astype(np.int32),
        np.where(vanishes, 0, -exponent).astype(np.int32),
    )


def saturating_rounding_doubling_high_mul(a, b):
    """a, b int32 that broadcast -> int32: the high half of 2 a b, nearest, ties up.

    That is a b / 2^31; the one product that does not fit, (-2^31)^2, gives 2^31 - 1.
    """
    a, b = _int32(a, "a"), _int32(b, "b")
    product = a * b
    nudged = product + np.where(product >= 0, 2**30, 1 - 2**30)
    # C's division truncates towards zero, a right shift towards minus infinity.
    high = np.where(nudged >= 0, nudged >> 31, -(-nudged >> 31))
    return np.minimum(high, INT32.max).astype(np.int32)


def rounding_divide_by_power_of_two(x, exponent):
    """x, exponent int32 that broadcast -> int32: x / 2^exponent, ties away from zero.

    Raises ValueError for exponents outside 0..31.
    """
    x, exponent = _int32(x, "x"), _int32(exponent, "exponent")
    if not np.all((exponent >= 0) & (exponent <= 31)):
        raise ValueError(f"exponent={exponent} is outside 0..31")
    mask = (np.int64(1) << exponent) - 1
    threshold = (mask >> 1) + (x < 0)
    return ((x >> exponent) + ((x & mask) > threshold)).astype(np.int32)


def requantize(sums, m0, shift, y_qparams):
    """Sums of one layer, int32 [samples, out] -> codes of its output y [samples, out]

    m0, shift:  of ``quantize_multiplier``, shape () or [out]: one multiplier for each output
    y_qparams:  the zero-point, qmin and qmax of the result; its scale is in the multiplier already
    The codes have the smallest of int8, uint8, int16, int32 that holds qmin and qmax.
    Raises ValueError for sums that are not int32.
    """
    sums, shift = _int32(sums, "sums"), _int32(shift, "shift")
    left = np.clip(sums << np.maximum(-shift, 0), INT32.min, INT32.max)
    high = saturating_rounding_doubling_high_mul(left, m0)
    steps = rounding_divide_by_power_of_two(high, np.maximum(shift, 0))
    zero_point = np.asarray(y_qparams.zero_point, np.int64)
    codes = np.clip(steps + zero_point, y_qparams.qmin, y_qparams.qmax)
    return codes.astype(_smallest_type(y_qparams.qmin, y_qparams.qmax))


def _int32(values, name):
    """-> int64 copy of integers, none of which needs more than 32 bits."""
    values = np.asarray(values)
    if values.dtype.kind not in "iu" or not np.all((values >= INT32.min) & (values <= INT32.max)):
        raise ValueError(f"{name} is of type {values.dtype} or holds values that int32 does not")
    return values.astype(np.int64)


def _smallest_type(qmin, qmax):
    types = (np.int8, np.uint8, np.int16, np.int32)
    return next(t for t in types if np.iinfo(t).min <= qmin and qmax <= np.iinfo(t).max)
