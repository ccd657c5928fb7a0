"""INT8 convolutions: the public calls.  They check, pick the instruction set, allocate and launch.

    conv2d                codes -> int32 sums
    conv2d_linear         codes, scales, bias -> float32
    conv2d_requantized    codes, multipliers, bias -> codes of the next layer, integers throughout

Versions, and what each changes: ``reference`` (NumPy, patches as rows, 64 bits), ``loops`` (patches
of some images at a time, then ``int8_matmul``), ``vectors`` (no patches).  Book: 6.2
"""

import numpy as np

from qbook import requantize
from qbook.kernels import isa, threads
from qbook.kernels.int8_conv2d import geometry, panels, reference, vectors
from qbook.kernels.int8_matmul.panels import reach

INT32_MAX = 2**31 - 1


def conv2d(
    x_codes, w, x_zero_point=0, *, stride=1, padding=0, dilation=1, use=None, num_threads=None
):
    """x_codes [n, c, h, w], w ``panels.Panels`` -> sum (x - z_x)(w - z_w), int32 [n, out, ho, wo]

    x_codes:       int8 or uint8, any strides;  x_zero_point: a code, which fills the border too
    stride, padding, dilation: a number, or rows and columns;  groups are those of ``panels.pack``
    use:           an instruction set, see ``isa``;  num_threads: see ``threads``
    Exact.  Raises ValueError for types and shapes that do not fit, and where a sum might not fit
    32 bits.
    """
    x, g = _checked(x_codes, w, x_zero_point, stride, padding, dilation)
    chosen = isa.choose(use)
    if chosen == isa.REFERENCE:
        return _reference(x, w, x_zero_point, g)
    return _launch(chosen, x, x_zero_point, w, g, (), np.int32, num_threads)


def conv2d_linear(
    x_codes,
    x_scale,
    w,
    w_scale,
    bias=None,
    x_zero_point=0,
    *,
    stride=1,
    padding=0,
    dilation=1,
    use=None,
    num_threads=None,
):
    """The sums of ``conv2d`` times x_scale w_scale, plus bias -> float32 [n, out, ho, wo]

    x_scale: a number;  w_scale: a number or [out];  bias: [out] or None
    The product of the scales is rounded first, then that with the sum, then the bias added.
    Raises ValueError as ``conv2d``, and for scales of other shapes.
    """
    x, g = _checked(x_codes, w, x_zero_point, stride, padding, dilation)
    filters = w.shape[0]
    scale = _each(w_scale, filters, "w_scale", np.float32)
    scale *= _each(x_scale, 1, "x_scale", np.float32)
    bias = _each(0 if bias is None else bias, filters, "bias", np.float32)
    chosen = isa.choose(use)
    if chosen == isa.REFERENCE:
        sums = _reference(x, w, x_zero_point, g).astype(np.float32)
        return sums * scale[:, None, None] + bias[:, None, None]
    return _launch(chosen, x, x_zero_point, w, g, (scale, bias), np.float32, num_threads)


def conv2d_requantized(
    x_codes,
    w,
    m0,
    shift,
    y_qparams,
    bias=None,
    x_zero_point=0,
    *,
    stride=1,
    padding=0,
    dilation=1,
    use=None,
    num_threads=None,
):
    """The sums of ``conv2d`` plus bias, requantized -> codes [n, out, ho, wo], int8 or uint8

    m0, shift:   of ``qbook.requantize.quantize_multiplier``, shape () or [out]
    y_qparams:   zero-point, qmin and qmax of the result, that fit 8 bits
    bias:        int32 [out] or None, in steps of x_scale w_scale
    Bit for bit ``qbook.requantize.requantize``.  Raises ValueError as ``conv2d``, and for a result
    that needs more than 8 bits.
    """
    x, g = _checked(x_codes, w, x_zero_point, stride, padding, dilation)
    qmin, qmax = y_qparams.qmin, y_qparams.qmax
    fits = [t for t in (np.int8, np.uint8) if np.iinfo(t).min <= qmin and qmax <= np.iinfo(t).max]
    if not fits:
        raise ValueError(f"codes {qmin}..{qmax} need more than 8 bits; choose a narrower result")
    each = [("m0", m0), ("shift", shift), ("bias", 0 if bias is None else bias)]
    m0, shift, bias = (_each(values, w.shape[0], name, np.int32) for name, values in each)
    chosen = isa.choose(use)
    if chosen == isa.REFERENCE:
        sums = _reference(x, w, x_zero_point, g).transpose(0, 2, 3, 1) + bias
        return requantize.requantize(sums, m0, shift, y_qparams).transpose(0, 3, 1, 2)
    limits = np.array([np.asarray(y_qparams.zero_point).item(), qmin, qmax], np.int32)
    extras = (m0, shift, bias, limits)
    # The limits make the bits those of the one type or of the other.
    codes = _launch(chosen, x, x_zero_point, w, g, extras, np.uint8, num_threads)
    return codes.view(fits[0])


def _launch(chosen, x, zero_point, w, g, extras, dtype, num_threads):
    filters = w.shape[0]
    out = np.empty((x.shape[0], filters, g.pixels), dtype)
    if out.size:
        # The same distances from another zero: the byte dot product wants x unsigned.
        flip = 128 if x.dtype == np.int8 else 0
        border = int(zero_point) + flip
        vectors.convolve(
            isa.ISAS[chosen],
            np.ascontiguousarray(x).view(np.uint8),
            (np.uint8(flip), np.uint8(border), *g.padding, *g.padded),
            geometry.offsets(g, -(-w.shape[1] // geometry.FOUR), vectors.BLOCK),
            w.data,
            (-np.int32(border) * w.code_sums, w.zero_point),
            extras,
            out,
            threads.count(num_threads),
        )
    return out.reshape(x.shape[0], filters, *g.output)


def _reference(x, w, zero_point, g):
    sums = reference.accumulate(
        x,
        panels.unpack(w),
        zero_point,
        w.zero_point,
        w.groups,
        stride=g.stride,
        padding=g.padding,
        dilation=g.dilation,
    )
    return sums.astype(np.int32)


def _checked(x_codes, w, x_zero_point, stride, padding, dilation):
    """-> x, ``Geometry``"""
    x = np.asarray(x_codes)
    channels = w.shape[1] * w.groups
    if x.dtype not in (np.int8, np.uint8) or x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(
            f"x_codes is of type {x.dtype} and shape {x.shape}; "
            f"pass int8 or uint8 [n, {channels}, rows, columns]"
        )
    low, high = np.iinfo(x.dtype).min, np.iinfo(x.dtype).max
    if int(x_zero_point) != x_zero_point or not low <= x_zero_point <= high:
        raise ValueError(
            f"x_zero_point={x_zero_point} is no code of {x.dtype}; choose {low} to {high}"
        )
    _, per_group, rows, columns = w.shape
    terms, largest = per_group * rows * columns, reach(x.dtype, int(x_zero_point)) * w.reach
    if terms * largest > INT32_MAX:
        raise ValueError(
            f"{terms} products of up to {largest} may overflow int32; "
            f"split the channels into pieces of at most {INT32_MAX // largest} products"
        )
    return x, geometry.of(x.shape[2:], w.shape[2:], stride, padding, dilation)


def _each(values, count, name, dtype):
    """A number or [count] -> [count] of a type.  Raises ValueError."""
    values = np.asarray(values)
    whole = values.dtype.kind in "iu" or dtype == np.float32
    if values.size not in (1, count) or values.ndim > 1 or not whole:
        raise ValueError(
            f"{name} is of type {values.dtype} and shape {values.shape}; "
            f"pass {np.dtype(dtype)}, a number or {count} numbers"
        )
    # A copy in any case: an array that is read-only is another type to Numba.
    each = np.empty(count, dtype)
    each[:] = values.reshape(-1)
    return each
