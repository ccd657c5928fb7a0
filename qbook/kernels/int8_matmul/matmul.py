"""INT8 products: the public calls.  They check, pick the instruction set, allocate and launch.

    matmul         codes -> int32 sums
    linear         codes, scales, bias -> float32
    requantized    codes, multipliers, bias -> codes of the next layer, integers throughout

Versions, and what each changes: ``reference`` (NumPy, 64 bits), ``loops`` (Numba: the naive three
loops, then what LLVM vectorizes), ``vectors`` (register tiles on packed panels).  Book: 6.2
"""

import numpy as np

from qbook import requantize
from qbook.kernels import aligned, arguments, isa, threads
from qbook.kernels.int8_matmul import panels, reference, vectors

INT32_MAX = 2**31 - 1


def matmul(x_codes, w, x_zero_point=0, *, use=None, num_threads=None):
    """x_codes [samples, in], w ``panels.Panels`` -> sum_k (x - z_x)(w - z_w), int32 [samples, out]

    x_codes:       int8 or uint8, any strides
    x_zero_point:  an integer or [samples]
    use:           an instruction set, see ``isa``;  num_threads: see ``threads``
    Exact.  Raises ValueError for types and shapes that do not fit, and where a sum might not fit 32
    bits.
    """
    x, zero_point, sums = _checked(x_codes, w, x_zero_point)
    chosen = isa.choose(use)
    if chosen == isa.REFERENCE:
        codes = panels.unpack(w)
        return reference.accumulate(x_codes, codes, x_zero_point, w.zero_point).astype(np.int32)
    out = np.empty((x.shape[0], w.shape[0]), np.int32)
    _launch(chosen, x, w, zero_point, sums, (), out, num_threads)
    return out


def linear(x_codes, x_scale, w, w_scale, bias=None, x_zero_point=0, *, use=None, num_threads=None):
    """The sums of ``matmul`` times x_scale w_scale, plus bias -> float32 [samples, out]

    x_scale: a number or [samples];  w_scale: a number or [out];  bias: [out] or None
    The product of the scales is rounded first, then that with the sum, then the bias added: bit
    for bit ``integer_product.linear``.  Raises ValueError as ``matmul``, and for scales of other
    shapes.
    """
    x, zero_point, sums = _checked(x_codes, w, x_zero_point)
    out = w.shape[0]
    x_scale = arguments.floats(x_scale, x.shape[0], "x_scale")
    lanes = panels.LANES * w.data.shape[0]
    w_scale = arguments.floats(w_scale, out, "w_scale", lanes)
    bias = arguments.floats(0 if bias is None else bias, out, "bias", lanes)
    chosen = isa.choose(use)
    if chosen == isa.REFERENCE:
        sums = matmul(x_codes, w, x_zero_point, use=chosen).astype(np.float32)
        return sums * (x_scale[:, None] * w_scale[:out]) + bias[:out]
    extras = (x_scale, w_scale, bias)
    result = np.empty((x.shape[0], out), np.float32)
    _launch(chosen, x, w, zero_point, sums, extras, result, num_threads)
    return result


def requantized(
    x_codes, w, m0, shift, y_qparams, bias=None, x_zero_point=0, *, use=None, num_threads=None
):
    """The sums of ``matmul`` plus bias, requantized -> codes [samples, out], int8 or uint8

    m0, shift:   of ``qbook.requantize.quantize_multiplier``, shape () or [out]
    y_qparams:   zero-point, qmin and qmax of the result, that fit 8 bits
    bias:        int32 [out] or None, in steps of x_scale w_scale
    Bit for bit ``qbook.requantize.requantize``.  Raises ValueError as ``matmul``, and for a result
    that needs more than 8 bits.
    """
    x, zero_point, sums = _checked(x_codes, w, x_zero_point)
    out, panel_count = w.shape[0], w.data.shape[0]
    bias = np.zeros(out, np.int32) if bias is None else np.asarray(bias)
    qmin, qmax = y_qparams.qmin, y_qparams.qmax
    fits = [t for t in (np.int8, np.uint8) if np.iinfo(t).min <= qmin and qmax <= np.iinfo(t).max]
    if not fits or bias.dtype != np.int32 or bias.shape != (out,):
        raise ValueError(
            f"codes {qmin}..{qmax} and a bias of type {bias.dtype} and shape {bias.shape}; "
            f"pass codes of 8 bits and int32 [{out}]"
        )
    chosen = isa.choose(use)
    if chosen == isa.REFERENCE:
        total = matmul(x_codes, w, x_zero_point, use=chosen) + bias
        return requantize.requantize(total, m0, shift, y_qparams)
    limits = np.array([np.asarray(y_qparams.zero_point).item(), qmin, qmax], np.int32)
    rows = [np.broadcast_to(np.asarray(v, np.int32).reshape(-1), (out,)) for v in (m0, shift)]
    extras = (*(panels.lanes_of(v, panel_count) for v in (*rows, bias)), limits)
    result = np.empty((x.shape[0], out), fits[0])
    _launch(chosen, x, w, zero_point, sums, extras, result, num_threads)
    return result


def _launch(chosen, x, w, zero_point, sums, extras, out, num_threads):
    if not out.size:
        return
    chosen = isa.ISAS[chosen]
    terms = (sums, zero_point, w.row_factor, w.column_term)
    vectors.multiply(chosen, x, w.data, terms, extras, out, threads.count(num_threads))


def _checked(x_codes, w, x_zero_point):
    """-> x int8 [samples, 4 steps] contiguous, its zero-points and room for its sums [samples]"""
    x = np.asarray(x_codes)
    if x.dtype not in (np.int8, np.uint8) or x.ndim != 2 or x.shape[1] != w.shape[1]:
        raise ValueError(
            f"x_codes is of type {x.dtype} and shape {x.shape}; "
            f"pass int8 or uint8 [samples, {w.shape[1]}]"
        )
    samples, in_ = x.shape
    # A constant type's 0 is the common case, and the checks of the other one cost microseconds.
    one = isinstance(x_zero_point, int) and x_zero_point == 0
    if not one:
        x_zero_point = panels.per_row(x_zero_point, samples, "x_zero_point", x.dtype)
    largest = panels.reach(x.dtype, x_zero_point) * w.reach
    if in_ * largest > INT32_MAX:
        raise ValueError(
            f"in={in_} products of up to {largest} may overflow int32; "
            f"split the sum into pieces of at most {INT32_MAX // largest}"
        )
    zero_point = np.zeros(samples, np.int32) if one else x_zero_point
    if x.dtype == np.uint8:
        # The same distances from another zero: vpdpbusd wants x signed.
        x, zero_point = (x ^ 128).view(np.int8), zero_point - np.int32(128)
    if in_ % panels.DEPTH:
        padded = aligned.zeros((samples, in_ + -in_ % panels.DEPTH), np.int8)
        padded[:, :in_] = x
        x = padded
    return np.ascontiguousarray(x), zero_point, np.empty(samples, np.int32)
