"""Ternary products: the public calls.  They check, pick the instruction set, allocate and launch.

    matmul    codes -> int32 sums           linear    codes and scales -> float32

Versions, and what each changes: ``reference`` (NumPy, 64 bits), ``loops`` (Numba: a branch on each
weight), ``vectors`` (panels: ``packed`` bytes for few rows of x, ``unpacked`` ones for many).
Book: 6.2
"""

import numpy as np

from qbook.kernels import arguments, isa, threads
from qbook.kernels.ternary_matmul import panels, reference, vectors

# The largest sum is 128 in: x of -128 and weights of -1 add up to 2^31 - 128 at most.
LONGEST = (2**31 - 1) // 128
NO_FLOATS = np.empty(0, np.float32)


def matmul(x_codes, w, *, use=None, num_threads=None):
    """x_codes int8 [samples, in], w ``panels.Panels`` -> x w^T, int32 [samples, out]

    x_codes: any strides;  use: an instruction set, see ``isa``;  num_threads: see ``threads``
    Exact.  Raises ValueError for types and shapes that do not fit, and for in above 2^24 - 1, where
    a sum might not fit 32 bits.
    """
    x = _checked(x_codes, w)
    chosen = isa.choose(use)
    if chosen == isa.REFERENCE:
        return reference.matmul(x_codes, panels.unpack(w)).astype(np.int32)
    out = np.empty((x.shape[0], w.shape[0]), np.int32)
    _launch(chosen, x, w, (NO_FLOATS,) * 3, out, num_threads)
    return out


def linear(x_codes, x_scale, w, w_scale, bias=None, *, use=None, num_threads=None):
    """The sums of ``matmul`` times x_scale w_scale, plus bias -> float32 [samples, out]

    x_scale: a number or [samples];  w_scale: a number or [out];  bias: [out] or None
    The product of the scales is rounded first, then that with the sum, then the bias added.  Raises
    ValueError as ``matmul``, and for scales of other shapes.
    """
    x = _checked(x_codes, w)
    samples, out = x.shape[0], w.shape[0]
    lanes = panels.ROWS * w.data.shape[0]
    x_scale = arguments.floats(x_scale, samples, "x_scale")
    w_scale = arguments.floats(w_scale, out, "w_scale", lanes)
    bias = arguments.floats(0 if bias is None else bias, out, "bias", lanes)
    chosen = isa.choose(use)
    if chosen == isa.REFERENCE:
        sums = matmul(x_codes, w, use=chosen).astype(np.float32)
        return sums * (x_scale[:, None] * w_scale[:out]) + bias[:out]
    result = np.empty((samples, out), np.float32)
    _launch(chosen, x, w, (x_scale, w_scale, bias), result.view(np.int32), num_threads)
    return result


def _launch(chosen, x, w, scales, out, num_threads):
    if out.size:
        x_sums, count = np.empty(x.shape[0], np.int32), threads.count(num_threads)
        vectors.multiply(isa.ISAS[chosen], x, w.data, w.digits, x_sums, scales, out, count)


def _checked(x_codes, w):
    """-> x int8 [samples, 4 digits chunks] contiguous, zeros behind"""
    x = np.asarray(x_codes)
    if x.dtype != np.int8 or x.ndim != 2 or x.shape[1] != w.shape[1]:
        raise ValueError(
            f"x_codes is of type {x.dtype} and shape {x.shape}; pass int8 [samples, {w.shape[1]}]"
        )
    samples, in_ = x.shape
    if in_ > LONGEST:
        raise ValueError(
            f"in={in_} products of up to 128 may overflow int32; "
            f"split the sum into pieces of at most {LONGEST}"
        )
    whole = w.data.shape[1] * panels.BYTES * w.digits
    if in_ < whole:
        padded = np.zeros((samples, whole), np.int8)
        padded[:, :in_] = x
        x = padded
    return np.ascontiguousarray(x)
