"""Microscaling: a scale for 16 or 32 neighbours, so short that hardware multiplies it along.

    MX       x_hat = 2^e * element             32 share e, a byte of E8M0; elements E4M3 ... E2M1
    NVFP4    x_hat = t * scale * element       16 share a scale of E4M3, the tensor t; elements E2M1

Rouhani et al. 2023, arXiv:2310.10537, Algorithm 1, and OCP Microscaling Formats v1.0, section 6.3;
NVIDIA 2025, arXiv:2509.25149, its appendix on quantization.  Blocks lie along the last axis.
Book: 5.8
"""

import math
from typing import Any, NamedTuple

from array_api_compat import array_namespace

from qbook import granularity
from qbook.formats import scaled
from qbook.formats.minifloat import E2M1, E4M3, E8M0, Minifloat

MODES = ("floor", "ceil", "even", "rceil")


class Blocks(NamedTuple):
    """What is stored for x [..., n].

    codes:        [..., n] uint8, of ``fmt``
    scale:        [..., n / block_size, 1] uint8, codes of ``scale_fmt``
    tensor_scale: None, or a number that multiplies every scale
    """

    codes: Any
    scale: Any
    tensor_scale: Any
    fmt: Minifloat
    scale_fmt: Minifloat

    @property
    def bits_per_number(self):
        """Bits of an element and its share of the block's scale; a tensor's scale is not counted"""
        return self.fmt.bits + 8 * math.prod(self.scale.shape) / math.prod(self.codes.shape)


def quantize_mx(x, fmt, *, block_size=32, mode="floor"):
    """x [..., n], NumPy or torch -> Blocks with scales that are powers of two

    mode: which power.  "floor", the standard's: the largest magnitude is brought into the highest
          binade of fmt, where it may saturate;  "even": the same after it was rounded to fmt's
          mantissa;  "ceil": into the binade below that, unless it is a power of two;  "rceil": the
          smallest power with which nothing saturates
    Raises ValueError for another mode, NaN or infinity in x, and a block_size that does not divide.
    """
    xp = array_namespace(x)
    blocks, largest = _split(x, block_size)
    power = _power(xp, largest, fmt, mode)
    # A power of two: dividing by it rounds nothing, but for what no format here can tell from 0.
    codes = fmt.encode(blocks / power)
    return Blocks(_merge(codes, x), E8M0.encode(power), None, fmt, E8M0)


def quantize_nvfp4(x, *, block_size=16, tensor_scale=None):
    """x [..., n], NumPy or torch -> Blocks of E2M1 with scales of E4M3

    tensor_scale: a number; None: max |x| / (6 * 448), with which the largest scale is 448.  1 where
                  x is all zeros.  A block whose scale would round to 0 takes the smallest there is
    x is multiplied by (1 / tensor_scale) / scale, torchao's order of operations.
    Raises ValueError as ``quantize_mx``.
    """
    xp = array_namespace(x)
    blocks, largest = _split(x, block_size)
    if tensor_scale is None:
        top = xp.max(largest) if math.prod(largest.shape) else xp.sum(largest)
        # With smaller ones the reciprocal below would leave float32.
        smallest = float(xp.finfo(largest.dtype).smallest_normal) / E4M3.smallest_subnormal
        smallest = xp.full_like(top, smallest)
        tensor_scale = xp.maximum(top / (E2M1.max * E4M3.max), smallest)
        tensor_scale = xp.where(top == 0, xp.ones_like(top), tensor_scale)
    scale = largest / E2M1.max / tensor_scale
    scale = E4M3.encode(xp.maximum(scale, xp.full_like(scale, E4M3.smallest_subnormal)))
    codes = E2M1.encode(blocks * ((1.0 / tensor_scale) / E4M3.decode(scale)))
    return Blocks(_merge(codes, x), scale, tensor_scale, E2M1, E4M3)


def dequantize(blocks):
    """Blocks -> x_hat [..., n] float32"""
    block_size = blocks.codes.shape[-1] // max(blocks.scale.shape[-2], 1)
    elements = granularity.split_groups(blocks.fmt.decode(blocks.codes), max(block_size, 1))
    x_hat = elements * blocks.scale_fmt.decode(blocks.scale)
    if blocks.tensor_scale is not None:
        x_hat = x_hat * blocks.tensor_scale
    return granularity.merge_groups(x_hat)


def fake_quantize(x, fmt=None, **options):
    """x [..., n] -> what its Blocks stand for, in x's type.  fmt: of MX; None: NVFP4"""
    xp = array_namespace(x)
    made = quantize_nvfp4(x, **options) if fmt is None else quantize_mx(x, fmt, **options)
    return xp.astype(dequantize(made), x.dtype)


def _power(xp, largest, fmt, mode):
    """largest magnitudes [...] -> powers of two within E8M0, float32"""
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} does not exist; choose one of {', '.join(MODES)}")
    if mode == "floor":
        return scaled.power_of_two_scale(largest, fmt, axis=-1)
    # largest = mantissa * 2^exponent with the mantissa in [1/2, 1): exact where log2 is not.
    mantissa, exponent = xp.frexp(largest / fmt.max if mode == "rceil" else largest)
    if mode == "even":
        # Half a step of fmt's mantissa, and what reaches 1 is in the next binade.
        up = mantissa + 2.0 ** -(fmt.mantissa_bits + 2) >= 1
    else:
        up = mantissa > 0.5
    emax = 0 if mode == "rceil" else math.floor(math.log2(fmt.max))
    places = xp.astype(exponent, xp.int32) - 1 + xp.astype(up, xp.int32) - emax
    codes = xp.clip(places + E8M0.bias, 0, 2**E8M0.bits - 2)
    return E8M0.decode(xp.where(largest == 0, xp.zeros_like(codes), codes))


def _split(x, block_size):
    """x [..., n] -> blocks [..., n / block_size, block_size] float32, their largest magnitudes"""
    xp = array_namespace(x)
    x = x.detach() if hasattr(x, "detach") else x
    blocks = granularity.split_groups(xp.astype(x, xp.float32), block_size)
    largest = xp.max(xp.abs(blocks), axis=-1, keepdims=True)
    if not bool(xp.all(xp.isfinite(largest))):
        raise ValueError("x holds NaN or infinity; scale finite values only")
    return blocks, largest


def _merge(codes, x):
    return array_namespace(codes).reshape(codes, x.shape)
