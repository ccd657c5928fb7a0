"""The affine quantizer: real numbers on an evenly spaced grid of integer codes.

    codes = clamp(round(x / scale) + zero_point, qmin, qmax)
    x_hat = scale * (codes - zero_point)

Jacob et al. 2018, arXiv:1712.05877, section 2.1; Nagel et al. 2021, arXiv:2106.08295, eq. 4-7.
Book: 2.1

Conventions.  Rounding is to nearest, ties to even.  The division is a multiplication by the rounded
reciprocal, ``x * (1 / scale)``, in float32 (float64 for float64 input): PyTorch's convention, bit
for bit.  True division differs from it by one code for some x within an ulp of a tie, so
|x - x_hat| <= scale / 2 holds up to that ulp.  Zero is always exactly representable.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array, size

from qbook import blocks, granularity


@dataclass(frozen=True)
class QParams:
    """What an affine quantizer needs to know.

    scale:       real step per code, > 0; broadcasts against x (against its groups, see below)
    zero_point:  the code of real 0, int32 in [qmin, qmax], of scale's shape
    qmin, qmax:  lowest and highest code, inclusive
    group_axis:  None, or the axis of x that was split into groups; scale then has one more
                 dimension than x, of length 1, behind the groups
    """

    scale: Any
    zero_point: Any
    qmin: int
    qmax: int
    group_axis: int | None = None


def code_range(bits, *, symmetric=True, signed=True):
    """-> (qmin, qmax, zero_point of the symmetric quantizer).

    Symmetric codes are restricted to -(2^(bits-1) - 1) ... 2^(bits-1) - 1, so that negation is
    closed; one bit has no such range and takes -1 ... 0.  ``signed=False`` shifts every code by
    2^(bits-1) and changes nothing else.  Raises ValueError unless bits is an int in 1..16.
    """
    if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)) or not 1 <= bits <= 16:
        raise ValueError(f"bits={bits!r} is not supported; choose an integer from 1 to 16")
    half = 2 ** (int(bits) - 1)
    qmin, qmax = -half, half - 1
    if symmetric and bits > 1:
        qmin = -qmax
    shift = 0 if signed else half
    return qmin + shift, qmax + shift, shift


def choose_qparams(x, bits, *, axis=None, group_size=None, symmetric=True, signed=True):
    """Scale and zero-point that cover the range of x exactly -> QParams.

    x:          NumPy array or torch tensor of floats, any shape, any device
    bits:       width of a code, 1..16
    axis:       axis or axes that *share* a scale, as in ``max(axis=..., keepdims=True)``;
                None: the whole tensor.  w [out, in], axis=1 -> scale [out, 1]
    group_size: neighbours along ``axis`` (one axis, default the last) that share a scale.
                w [out, in] -> scale [out, in / group_size, 1]
    symmetric:  zero_point fixed to the middle code, scale from max |x|

    An all-zero slice, or an empty one, gets scale 1.  Raises ValueError for NaN or infinity in x,
    for bits outside 1..16 and for a group_size that does not divide.
    """
    low, high, group_axis = _extrema(x, axis, group_size)
    qparams = qparams_from_range(low, high, bits, symmetric=symmetric, signed=signed)
    return replace(qparams, group_axis=group_axis)


def qparams_from_range(low, high, bits, *, symmetric=True, signed=True):
    """QParams for values in [low, high]; the range is first widened to contain 0.

    low, high:  arrays of one shape, or Python floats
    zero_point = clamp(qmin - round(low / scale), qmin, qmax), an integer, so that 0 has a code.
    Raises ValueError where low or high is NaN or infinite, where low > high, or bits are not 1..16.
    """
    qmin, qmax, middle = code_range(bits, symmetric=symmetric, signed=signed)
    if not hasattr(low, "dtype"):
        low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
    xp = array_namespace(low, high)
    if not bool(xp.all(xp.isfinite(low) & xp.isfinite(high))):
        raise ValueError("the range holds NaN or infinity; quantize finite values only")
    if not bool(xp.all(low <= high)):
        raise ValueError(f"the range is empty: low={low} is above high={high}")
    low = xp.minimum(low, xp.zeros_like(low))
    high = xp.maximum(high, xp.zeros_like(high))
    # Halves, because high - low of two large float32 may overflow where its half does not.
    if symmetric:
        scale = xp.maximum(-low, high) / max(qmax - middle, middle - qmin)
    else:
        scale = (high / 2 - low / 2) / ((qmax - qmin) / 2)
    # A scale below the smallest normal number has no finite reciprocal.
    tiny = float(xp.finfo(scale.dtype).smallest_normal)
    scale = xp.where(
        (low == 0) & (high == 0), xp.ones_like(scale), xp.maximum(scale, xp.full_like(scale, tiny))
    )
    if symmetric:
        zero_point = xp.full_like(scale, middle)
    else:
        zero_point = xp.clip(qmin - xp.round(low / scale), qmin, qmax)
    return QParams(scale, xp.astype(zero_point, xp.int32), qmin, qmax)


def quantize(x, qparams):
    """x -> integer codes of x's shape: the smallest of int8, uint8, int16, int32 that holds them.

    Computed in the float type of scale.  Values outside the range saturate.
    Raises ValueError for NaN or infinity in x and for a shape that the scale does not fit.
    """
    xp = array_namespace(x)
    codes = xp.empty(x.shape, dtype=_code_dtype(xp, qparams), device=device(x))
    grouped, scale, zero_point = _broadcast(_detached(x), qparams)
    out = codes.reshape(grouped.shape)
    inverse = 1.0 / scale
    offset = xp.astype(zero_point, scale.dtype)
    for block in blocks.of(grouped):
        steps = xp.astype(grouped[block], scale.dtype)
        _check_finite(xp, steps)
        steps = steps * blocks.part(inverse, block)
        if is_numpy_array(x):
            steps = np.rint(steps)
            steps += blocks.part(offset, block)
            steps = np.clip(steps, qparams.qmin, qparams.qmax)
        else:
            steps.round_().add_(blocks.part(offset, block)).clamp_(qparams.qmin, qparams.qmax)
        out[block] = steps
    return codes


def dequantize(codes, qparams):
    """Integer codes -> scale * (codes - zero_point), in the float type of scale."""
    xp = array_namespace(codes)
    grouped, scale, zero_point = _broadcast(codes, qparams)
    # codes - zero_point spans at most 17 bits: exact in float32.
    steps = xp.astype(grouped, scale.dtype) - xp.astype(zero_point, scale.dtype)
    return (steps * scale).reshape(codes.shape)


def fake_quantize(x, qparams):
    """x -> dequantize(quantize(x)), in x's float type: the values the integers stand for.

    Equals ``torch.fake_quantize_per_tensor_affine`` and ``_per_channel_affine`` bit for bit on
    finite float32.  Carries no gradient; see ``qbook.ste``.
    """
    xp = array_namespace(x)
    return xp.astype(dequantize(quantize(x, qparams), qparams), x.dtype)


def _extrema(x, axis, group_size):
    """-> low, high (kept dimensions, float32 or float64), and the axis that was split, if any."""
    xp = array_namespace(x)
    x = _detached(x)
    group_axis = None
    if group_size is not None:
        axes = granularity.normalise_axes(-1 if axis is None else axis, x.ndim)
        if len(axes) != 1:
            raise ValueError(f"group_size={group_size} needs one axis to split, got axis={axis}")
        (group_axis,) = axes
        x = granularity.split_groups(x, group_size, group_axis)
        axes = (group_axis + 1,)
    else:
        axes = granularity.normalise_axes(axis, x.ndim)
    dtype = _working_dtype(xp, x)
    if size(x) == 0:
        shape = tuple(1 if a in axes else n for a, n in enumerate(x.shape))
        zeros = xp.zeros(shape, dtype=dtype, device=device(x))
        return zeros, zeros, group_axis
    low = xp.astype(xp.min(x, axis=axes, keepdims=True), dtype)
    high = xp.astype(xp.max(x, axis=axes, keepdims=True), dtype)
    return low, high, group_axis


def _working_dtype(xp, x):
    """float64 stays; every shorter float type is computed in float32, as PyTorch does."""
    if x.dtype == xp.float64:
        return xp.float64
    if not is_numpy_array(x) and not xp.isdtype(x.dtype, "real floating"):
        raise ValueError(f"x is of type {x.dtype}; quantize floating-point values")
    if is_numpy_array(x) and x.dtype.kind in "iubOSU":
        raise ValueError(f"x is of type {x.dtype}; quantize floating-point values")
    return xp.float32


def _detached(x):
    return x if is_numpy_array(x) else x.detach()


def _code_dtype(xp, qparams):
    for dtype in (xp.int8, xp.uint8, xp.int16):
        info = xp.iinfo(dtype)
        if info.min <= qparams.qmin and qparams.qmax <= info.max:
            return dtype
    return xp.int32


def _broadcast(x, qparams):
    """x split into its groups, with scale and zero_point of as many dimensions."""
    if is_numpy_array(x) != is_numpy_array(qparams.scale):
        raise ValueError(
            f"x is a {type(x).__name__} and the scale a {type(qparams.scale).__name__}; "
            "choose the parameters from arrays of x's library"
        )
    if qparams.group_axis is not None:
        groups = qparams.scale.shape[qparams.group_axis]
        x = granularity.split_groups(x, x.shape[qparams.group_axis] // groups, qparams.group_axis)
    scale, zero_point = qparams.scale, qparams.zero_point
    if scale.ndim < x.ndim:
        ones = (1,) * (x.ndim - scale.ndim)
        scale, zero_point = (
            scale.reshape(ones + scale.shape),
            zero_point.reshape(ones + scale.shape),
        )
    fits = scale.ndim == x.ndim and all(
        s in (1, n) for s, n in zip(scale.shape, x.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"scale of shape {tuple(scale.shape)} does not broadcast to x of shape "
            f"{tuple(x.shape)}; choose_qparams(x, ...) makes one that does"
        )
    return x, scale, zero_point


def _check_finite(xp, values):
    # One NaN or infinity makes the sum so; a finite sum clears them all in one cheap pass.
    with np.errstate(over="ignore", invalid="ignore"):
        if bool(xp.isfinite(xp.sum(values))):
            return
    if not bool(xp.all(xp.isfinite(values))):
        raise ValueError("x holds NaN or infinity; quantize finite values only")
