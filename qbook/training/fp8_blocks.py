"""Blocks that share a scale: an outlier spoils 128 numbers, not a tensor, and sums stay short.

    activations, gradients   tiles of 1 x 128 along the axis that the product sums over
    weights                  squares of 128 x 128, which serve the product and the transposed one
    sums                     leave the tensor core every 128 terms, are scaled, and added in float32

E4M3 everywhere, scale = largest magnitude / 448.  DeepSeek-AI 2024, arXiv:2412.19437, section 3.3;
the released inference/kernel.py (act_quant, weight_quant, fp8_gemm).  Book: 5.2
"""

from typing import NamedTuple

import numpy as np
import torch

from qbook.formats import E4M3, scaled
from qbook.theory import accumulator
from qbook.training import fp8_scaling

SIZE = 128
TILE, COLUMN, SQUARE = (1, SIZE), (SIZE, 1), (SIZE, SIZE)


class Blocks(NamedTuple):
    """values: [rows, columns] of the format;  scale: float32, one for each block, multiplies them

    block: (rows, columns) of a block; those at the lower and right edge may be smaller
    """

    values: torch.Tensor
    scale: torch.Tensor
    block: tuple[int, int]


def quantize(x, block=TILE, fmt=E4M3, *, power_of_two=False):
    """torch x [rows, columns] -> Blocks, scale [ceil(rows / block[0]), ceil(columns / block[1])]

    power_of_two: False: scale = max|x| / fmt.max; True: the next power of two above that
    A block of zeros has scale 1.  Raises ValueError unless x has two axes and is finite.
    """
    if x.ndim != 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; flatten it to [rows, columns]")
    cut = _cut(x.detach().float(), block)
    scale = scaled.absmax_scale(cut, fmt, axis=(1, 3))
    if power_of_two:
        mantissa, exponent = torch.frexp(scale)
        scale = torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).int())
    values = _join(fp8_scaling.round_to(cut / scale, fmt), x.shape)
    return Blocks(values, scale[:, 0, :, 0], block)


def dequantize(blocks):
    """Blocks -> values * scale, float32 [rows, columns]"""
    scale = blocks.scale[:, None, :, None]
    return _join(_cut(blocks.values, blocks.block) * scale, blocks.values.shape)


def fake_quantize(x, block=TILE, fmt=E4M3, *, power_of_two=False):
    """``dequantize(quantize(...))`` in x's own type"""
    return dequantize(quantize(x, block, fmt, power_of_two=power_of_two)).to(x.dtype)


def matmul(x, w, *, bits=None):
    """Blocks x [m, k] in tiles, Blocks w [n, k] in tiles or squares -> x w^T [m, n] float32

    The 128 products of a block are summed, multiplied by both scales and added in float32,
    as ``fp8_gemm_kernel`` does.
    bits: what the sums in a block keep, as in ``accumulator.fixed_point``: 14 on Hopper; it
          takes m n k numbers of memory.  None: float32
    Raises ValueError where the blocks of x and w do not cut k at the same places.
    """
    (m, k), (n, k_w) = x.values.shape, w.values.shape
    size = x.block[1]
    if k != k_w or size != w.block[1]:
        raise ValueError(
            f"x has {k} columns in blocks of {size}, "
            f"w has {k_w} in blocks of {w.block[1]}; both must be the same"
        )
    x_scale = x.scale.repeat_interleave(x.block[0], 0)[:m]
    w_scale = w.scale.repeat_interleave(w.block[0], 0)[:n]
    total = x.values.new_zeros(m, n)
    for j, start in enumerate(range(0, k, size)):
        part = slice(start, start + size)
        sums = _sums(x.values[:, part], w.values[:, part], bits)
        total = total + sums * x_scale[:, j, None] * w_scale[None, :, j]
    return total


def _sums(x, w, bits):
    if bits is None:
        return x @ w.T
    products = x.double()[:, None] * w.double()[None]
    sums = accumulator.fixed_point(products.cpu().numpy(), bits=bits)
    return torch.from_numpy(sums.astype(np.float32)).to(x.device)


def _cut(x, block):
    """[rows, columns] -> [down, height, across, width], zeros beyond the lower and right edge"""
    (rows, columns), (height, width) = x.shape, block
    beyond = (0, -columns % width, 0, -rows % height)
    padded = torch.nn.functional.pad(x, beyond) if any(beyond) else x
    return padded.unflatten(1, (-1, width)).unflatten(0, (-1, height))


def _join(cut, shape):
    """The inverse of ``_cut``, without what it filled up"""
    return cut.flatten(2).flatten(0, 1)[: shape[0], : shape[1]]
