"""Products with weights of 4 bits: the public calls.  They check, pick the instruction set, launch.

    w4a8     x is quantized to 8 bits inside, a scale for each group: products of integers
    w4a16    x is rounded to bfloat16: products of pairs, summed in float32
    w4a32    x stays float32, codes of w become floats in registers: as exact as float32

Versions: ``reference`` (NumPy) and ``vectors`` (panels, four rows at a time).  One row waits for
memory, where 4.5 bits instead of 32 (a float16 scale for 32 weights) are up to 7.1 times the speed.
Many rows wait for the multiplier: w4a8 then has the rate of bytes; w4a32 has at best that of any
float32 product, to which short weights add nothing; w4a16 lies between.  Book: 6.2
"""

import numpy as np

from qbook.kernels import isa, threads
from qbook.kernels.int4_matmul import blocks, panels, reference, vectors

INT32_MAX = 2**31 - 1
# The largest |code of w - zero_point| times the largest |code of x|.
LARGEST = 15 * 127


def w4a8(x, w, bias=None, *, use=None, num_threads=None):
    """x float32 [samples, in], w ``panels.Panels`` -> x w_hat^T + bias, float32 [samples, out]

    bias:  [out] or None
    use:   an instruction set, see ``isa``;  num_threads: see ``threads``
    x is rounded to 8 bits, with a scale for each group of w (None: for the row), so the result is
    off by what that costs.  Its arithmetic is that of ``reference.w4a8``, bit for bit, on every
    instruction set.  Raises ValueError for types and shapes that do not fit, for NaN or infinity in
    x, and for a group so long that its sum might not fit 32 bits.
    """
    x, bias, chosen, count = _checked(x, w, bias, use, num_threads)
    if w.group_size * LARGEST > INT32_MAX:
        raise ValueError(
            f"a group of {w.group_size} inputs may overflow int32; "
            f"pack with a group_size of at most {INT32_MAX // LARGEST}"
        )
    if chosen == isa.REFERENCE:
        return reference.w4a8(x, *panels.unpack(w), bias)
    return _launch(chosen, blocks.quantize(x, w.groups, w.steps, count), w, bias, count)


def w4a32(x, w, bias=None, *, use=None, num_threads=None):
    """x float32 [samples, in], w ``panels.Panels`` -> x w_hat^T + bias, float32 [samples, out]

    Arguments and errors as of ``w4a8``, but NaN and infinity go their way through the product.
    Sums are float32, in an order that depends on nothing but w's groups; a multiplication and
    addition are rounded once where the machine has such an instruction, else twice.
    """
    x, bias, chosen, count = _checked(x, w, bias, use, num_threads)
    if chosen == isa.REFERENCE:
        return reference.w4a32(x, *panels.unpack(w), bias)
    return _launch(chosen, blocks.copy(x, w.groups, w.steps), w, bias, count)


def w4a16(x, w, bias=None, *, use=None, num_threads=None):
    """x float32 [samples, in], w ``panels.Panels`` -> x w_hat^T + bias, float32 [samples, out]

    Arguments and errors as of ``w4a32``.  x is rounded to bfloat16, to the nearest: off by 2^-8 of
    itself at most, and infinite beyond 3.39e38.  Sums are float32, in an order that depends on
    nothing but w's groups; a pair of products is added as ``simd.bfloat`` says, which may count
    subnormal numbers as 0.  Without vdpbf16ps, w4a32 is about as fast and rounds nothing.
    """
    x, bias, chosen, count = _checked(x, w, bias, use, num_threads)
    if chosen == isa.REFERENCE:
        return reference.w4a16(x, *panels.unpack(w), bias)
    return _launch(chosen, blocks.round_to_bfloat16(x, w.groups, w.steps), w, bias, count)


def _launch(chosen, x_blocks, w, bias, count):
    out = np.empty((x_blocks.shape[0], w.shape[0]), np.float32)
    if out.size:
        padded = np.zeros(panels.LANES * w.data.shape[0], np.float32)
        if bias is not None:
            padded[: len(bias)] = bias
        layout = (w.groups, w.steps, *w.group_bytes)
        vectors.multiply(isa.ISAS[chosen], x_blocks, w.data, layout, padded, out, count)
    return out


def _checked(x, w, bias, use, num_threads):
    x = np.asarray(x)
    if x.dtype != np.float32 or x.ndim != 2 or x.shape[1] != w.shape[1]:
        raise ValueError(
            f"x is of type {x.dtype} and shape {x.shape}; pass float32 [samples, {w.shape[1]}]"
        )
    if bias is not None:
        bias = np.asarray(bias, np.float32)
        if bias.shape != (w.shape[0],):
            raise ValueError(f"bias is of shape {bias.shape}; pass [{w.shape[0]}] or None")
    return np.ascontiguousarray(x), bias, isa.choose(use), threads.count(num_threads)
