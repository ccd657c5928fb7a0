"""Bounds on the speed-up of a number format, from the roofline with all its bytes.

A layer with w bytes of weights, and a bytes and A seconds of arithmetic for each sample, needs

    t(M) >= max(A M, (w + a M) / bandwidth)

and turns compute-bound at M* = (w / bandwidth) / (A - a / bandwidth).  From M* of the format it
replaces on, a format that only makes the weights smaller wins nothing.

Williams, Waterman and Patterson 2009, CACM 52(4).  Book: 6.1.1, 6.1.2
"""

import math
from typing import NamedTuple

from qbook import roofline


class Format(NamedTuple):
    """How a layer is stored and multiplied.

    weight_bits: bits of a weight with its metadata, see ``footprint.bits_per_weight``
    input_bits:  bits of a number of the input
    dtype:       what the arithmetic unit multiplies, a key of ``Machine.peak``
    """

    weight_bits: float
    input_bits: float
    dtype: str


W16A16 = Format(16, 16, "float16")


def seconds(layer, samples, in_, out, machine):
    """Format of x [samples, in] @ w.T, w [out, in] -> lower bound on the time; a 16-bit result"""
    moved = roofline.matmul_bytes(
        samples, in_, out, weight_bits=layer.weight_bits, input_bits=layer.input_bits
    )
    return roofline.seconds(
        roofline.matmul_operations(samples, in_, out),
        moved,
        peak=machine.peak[layer.dtype],
        bandwidth=machine.bandwidth,
    )


def speed_up(layer, samples, in_, out, machine, *, over=W16A16, overhead=0.0):
    """-> ratio of the bounds of ``over`` and of ``layer``

    overhead: seconds that each call needs besides, whatever its format
    """
    before, after = (seconds(f, samples, in_, out, machine) for f in (over, layer))
    return (overhead + before) / (overhead + after)


def crossing(layer, in_, out, machine):
    """-> M*, samples from which on the layer is compute-bound; inf where it never is"""
    weights = roofline.matmul_bytes(0, in_, out, weight_bits=layer.weight_bits)
    both = roofline.matmul_bytes(
        1, in_, out, weight_bits=layer.weight_bits, input_bits=layer.input_bits
    )
    arithmetic = roofline.matmul_operations(1, in_, out) / machine.peak[layer.dtype]
    spare = arithmetic - (both - weights) / machine.bandwidth
    return weights / machine.bandwidth / spare if spare > 0 else math.inf
