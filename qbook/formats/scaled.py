"""A format with a scale: numbers that share one are divided by it, rounded and multiplied back.

    x_hat = fmt.round(x / scale) * scale

Blocks scaled by their largest magnitude: Dettmers et al. 2022, arXiv:2110.02861, section 2.1.
Scales that are powers of two: Rouhani et al. 2023, arXiv:2310.10537, Algorithm 1 (MX).
Book: 2.5

Blocks are rows: ``granularity.split_groups(x, 64)`` makes them and ``axis=-1`` lets each share a
scale.  The division is a multiplication by the rounded reciprocal, as in ``affine``.
"""

import math

from array_api_compat import array_namespace

from qbook import granularity
from qbook.formats.minifloat import E8M0


def absmax_scale(x, fmt, axis=None):
    """max |x| / fmt.max: the largest magnitude becomes the largest value -> float32, or float64.

    x:    NumPy array or torch tensor of floats, any shape
    fmt:  a Format; of integers the positive end counts, 7 for INT4
    axis: axis or axes that share a scale, kept at length 1; None: all.  x [blocks, 64], axis=1
          -> scale [blocks, 1]
    Zeros only: scale 1.  Raises ValueError for NaN or infinity in x and for a missing axis.
    """
    xp, largest = _largest(x, axis)
    # A scale below the smallest normal number has no finite reciprocal.
    tiny = xp.full_like(largest, float(xp.finfo(largest.dtype).smallest_normal))
    scale = xp.maximum(largest / fmt.max, tiny)
    return xp.where(largest == 0, xp.ones_like(scale), scale)


def power_of_two_scale(x, fmt, axis=None):
    """2^(floor(log2 max|x|) - emax), with 2^emax the binade of fmt.max -> float32, values of E8M0.

    The block's maximum lands in the highest binade of fmt, beyond fmt.max in part of it: it then
    saturates.  Exponents outside E8M0's -127 ... 127 are clipped; zeros only: 2^-127.
    Arguments and errors as in ``absmax_scale``.
    """
    xp, largest = _largest(x, axis)
    # largest = mantissa * 2^exponent with the mantissa in [1/2, 1): exact where log2 is not.
    _, exponent = xp.frexp(largest)
    emax = math.floor(math.log2(fmt.max))
    codes = xp.clip(exponent - 1 - emax + E8M0.bias, 0, 2**E8M0.bits - 2)
    return E8M0.decode(xp.where(largest == 0, xp.zeros_like(codes), codes))


def fake_quantize(x, fmt, scale):
    """fmt.round(x / scale) * scale, in x's float type; what overflows saturates.

    scale: an array that broadcasts against x, computed in its float type
    Raises ValueError for a scale that is not finite or 0, and as fmt.encode does.
    """
    xp = array_namespace(x, scale)
    if not bool(xp.all(xp.isfinite(scale) & (scale != 0))):
        raise ValueError("scale holds 0, NaN or infinity; see absmax_scale")
    steps = xp.astype(_detached(x), scale.dtype) * (1.0 / scale)
    return xp.astype(xp.astype(fmt.round(steps), scale.dtype) * scale, x.dtype)


def _largest(x, axis):
    """-> namespace, max |x| with the axes kept at length 1, in float32 or float64."""
    xp = array_namespace(x)
    x = _detached(x)
    axes = granularity.normalise_axes(axis, x.ndim)
    wide = xp.astype(x, xp.float64 if x.dtype == xp.float64 else xp.float32)
    largest = xp.max(xp.abs(wide), axis=axes, keepdims=True)
    if not bool(xp.all(xp.isfinite(largest))):
        raise ValueError("x holds NaN or infinity; scale finite values only")
    return xp, largest


def _detached(x):
    return x.detach() if hasattr(x, "detach") else x
