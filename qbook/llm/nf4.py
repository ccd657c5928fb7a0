"""NF4 with double quantization: blocks of 64 weights, and scales that are quantized themselves.

    w_hat = NF4[code] * absmax                    4 bits a weight, one absmax for 64 weights
    absmax_hat = mean + dynamic[code] * scale     8 bits an absmax, one scale for 256 of them

In bits a weight: 4 + 32 / 64 = 4.5 with absmax in float32, 4 + 8 / 64 + 32 / (64 * 256) = 4.127
with it quantized.  Blocks run through the matrix row by row, as in the released code.
Dettmers et al. 2023, arXiv:2305.14314, section 3 (QLoRA).  Book: 5, NF4 and QLoRA
"""

import math
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace, device

from qbook import packing
from qbook.formats import NF4, scaled
from qbook.formats.dynamic import DYNAMIC

GROUP_SIZE, ABSMAX_GROUP_SIZE = 64, 256


@dataclass(frozen=True)
class Absmax:
    """Quantized block maxima: codes [blocks] uint8, scale [ceil(blocks / 256)], mean []: float32"""

    codes: Any
    scale: Any
    mean: Any


@dataclass(frozen=True)
class Packed:
    """A matrix in NF4.

    codes:   [ceil(weights / 2)] uint8, two to a byte
    absmax:  [blocks] float32, or an ``Absmax``
    shape:   of the matrix
    """

    codes: Any
    absmax: Any
    shape: tuple[int, ...]
    group_size: int = GROUP_SIZE


def quantize(w, *, group_size=GROUP_SIZE):
    """w [...] -> codes uint8 of w's shape, absmax [ceil(weights / group_size)] float32

    Neighbours in memory order share an absmax; the last block may be short.  float64 is rounded to
    float32 first.  Raises ValueError for NaN or infinity and for a group_size below 1.
    """
    xp = array_namespace(w)
    blocks = _blocks(w, group_size)
    scale = scaled.absmax_scale(blocks, NF4, axis=1)
    codes = NF4.encode(blocks * (1 / scale))
    # A block of zeros has scale 1 to divide by, and absmax 0 to average with the others.
    absmax = xp.where(xp.any(blocks != 0, axis=1), scale[:, 0], xp.zeros_like(scale[:, 0]))
    return xp.reshape(xp.reshape(codes, (-1,))[: math.prod(w.shape)], w.shape), absmax


def dequantize(codes, absmax, *, group_size=GROUP_SIZE):
    """codes [...], absmax [blocks] -> w_hat float32 of codes' shape: NF4[code] * absmax

    Raises ValueError where absmax does not have one entry a block.
    """
    xp = array_namespace(codes, absmax)
    blocks = _blocks(NF4.decode(codes), group_size)
    if tuple(absmax.shape) != (blocks.shape[0],):
        raise ValueError(
            f"absmax has shape {tuple(absmax.shape)}; {math.prod(codes.shape)} codes in groups of "
            f"{group_size} need ({blocks.shape[0]},)"
        )
    flat = xp.reshape(blocks * absmax[:, None], (-1,))
    return xp.reshape(flat[: math.prod(codes.shape)], codes.shape)


def quantize_absmax(absmax, *, group_size=ABSMAX_GROUP_SIZE):
    """absmax [blocks] >= 0 -> ``Absmax``: their mean is taken off, then 8 dynamic bits each.

    Raises ValueError for NaN or infinity and for a group_size below 1.
    """
    xp = array_namespace(absmax)
    mean = xp.mean(xp.astype(absmax, xp.float32))
    groups = _blocks(absmax - mean, group_size)
    scale = scaled.absmax_scale(groups, DYNAMIC, axis=1)
    codes = xp.reshape(DYNAMIC.encode(groups * (1 / scale)), (-1,))
    return Absmax(codes[: absmax.shape[0]], scale[:, 0], mean)


def dequantize_absmax(absmax, *, group_size=ABSMAX_GROUP_SIZE):
    """``Absmax`` -> absmax_hat [blocks] float32; it may fall a little below 0 where absmax is 0"""
    xp = array_namespace(absmax.codes)
    groups = _blocks(DYNAMIC.decode(absmax.codes), group_size)
    flat = xp.reshape(groups * absmax.scale[:, None], (-1,))
    return flat[: absmax.codes.shape[0]] + absmax.mean


def pack(w, *, group_size=GROUP_SIZE, double=True):
    """w [...] -> ``Packed``.  double: quantize absmax too.  Raises ValueError as ``quantize``."""
    codes, absmax = quantize(w, group_size=group_size)
    flat = codes.reshape((-1,))
    absmax = quantize_absmax(absmax) if double else absmax
    return Packed(packing.pack(flat, 4), absmax, tuple(w.shape), group_size)


def unpack(packed):
    """``Packed`` -> w_hat float32 of its shape"""
    codes = packing.unpack(packed.codes, 4, math.prod(packed.shape))
    absmax = packed.absmax
    if isinstance(absmax, Absmax):
        absmax = dequantize_absmax(absmax)
    return dequantize(codes.reshape(packed.shape), absmax, group_size=packed.group_size)


def fake_quantize(w, *, group_size=GROUP_SIZE, double=True):
    """w [...] -> unpack(pack(w)), in w's float type.  Raises ValueError as ``quantize``."""
    xp = array_namespace(w)
    return xp.astype(unpack(pack(w, group_size=group_size, double=double)), w.dtype)


def stored_bytes(packed):
    """``Packed`` -> bytes of its arrays"""
    absmax = packed.absmax
    arrays = (absmax.codes, absmax.scale, absmax.mean) if isinstance(absmax, Absmax) else (absmax,)
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in (packed.codes, *arrays))


def _blocks(x, group_size):
    """x [...] -> [blocks, group_size] float32, filled up with zeros"""
    if group_size < 1:
        raise ValueError(f"group_size={group_size} holds no weight; QLoRA takes 64, 256 for absmax")
    xp = array_namespace(x)
    x = x.detach() if hasattr(x, "detach") else x
    flat = xp.astype(xp.reshape(x, (-1,)), xp.float32)
    filler = xp.zeros((-flat.shape[0] % group_size,), dtype=xp.float32, device=device(x))
    return xp.reshape(xp.concat([flat, filler]), (-1, group_size))
