"""Roofline: no kernel is faster than its arithmetic, and none is faster than its memory traffic.

    seconds >= max(operations / peak, bytes / bandwidth)

A bound from a data sheet, not a measurement: real kernels stay below it.
Williams, Waterman and Patterson 2009, CACM 52(4), section 3.  Book: 1.1
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """A data sheet: what the vendor says the machine does at best.

    peak:      data type -> operations a second (a multiplication and an addition are two)
    bandwidth: bytes a second between the memory and the chip
    memory:    bytes
    """

    name: str
    peak: dict[str, float]
    bandwidth: float
    memory: float
    source: str

    def balance(self, dtype):
        """Operations that the machine can do in the time that one byte takes, at this type."""
        return self.peak[dtype] / self.bandwidth


# Dense figures; the vendor's doubled ones need half of the weights to be zero.
A100 = Machine(
    name="NVIDIA A100 SXM, 80 GB",
    peak={"float32": 19.5e12, "float16": 312e12, "int8": 624e12, "int4": 1248e12},
    bandwidth=2.039e12,
    memory=80e9,
    source="NVIDIA A100 Tensor Core GPU data sheet, 2021",
)


def matmul_operations(samples, in_, out):
    """Multiplications and additions of x [samples, in] @ w.T, w [out, in]."""
    return 2 * samples * in_ * out


def matmul_bytes(samples, in_, out, *, weight_bits, input_bits=16, output_bits=16):
    """Bytes that must cross the memory bus: w, x and the result once each.

    weight_bits: bits per weight with their metadata, see ``footprint.bits_per_weight``
    """
    bits = in_ * out * weight_bits + samples * (in_ * input_bits + out * output_bits)
    return bits / 8


def seconds(operations, bytes_moved, *, peak, bandwidth):
    """The roofline's lower bound on the time.

    Raises ValueError unless peak and bandwidth are positive.
    """
    if not (peak > 0 and bandwidth > 0):
        raise ValueError(f"peak={peak} and bandwidth={bandwidth} must be positive")
    return max(operations / peak, bytes_moved / bandwidth)


def attainable(intensity, *, peak, bandwidth):
    """Operations a second that the roofline leaves at ``intensity`` operations per byte.

    Raises ValueError unless peak and bandwidth are positive.
    """
    if not (peak > 0 and bandwidth > 0):
        raise ValueError(f"peak={peak} and bandwidth={bandwidth} must be positive")
    return min(peak, bandwidth * intensity)
