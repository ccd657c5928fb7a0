"""Weights of 4 bits, a scale for each group of inputs; activations in INT8, bfloat16 or float32.

W4A8 rounds each group of a token's activations too, and multiplies integers; W4A16 rounds them to
bfloat16; W4A32 rounds the weights alone, as GPTQ and AWQ leave them.  Book: 6.2
"""

import numpy as np
import torch

from qbook import affine
from qbook.inference.packed_layer import array
from qbook.inference.packed_linear import PackedLinear
from qbook.kernels.int4_matmul import matmul, panels

SCALE = np.dtype(np.float16)
KERNELS = {8: matmul.w4a8, 16: matmul.w4a16, 32: matmul.w4a32}


class Int4Linear(PackedLinear):
    """A Linear whose weight is 4-bit codes in panels, rounded to nearest.

    group_size:  inputs that share a scale: a multiple of 8 that divides ``in``
    x_bits:      8 (W4A8), 16 (W4A16) or 32 (W4A32)
    codes:       (codes int8 [out, in] in -8 ... 7, ``affine.QParams``), NumPy or torch, of another
                 rounding such as ``ptq.gptq``; None: the nearest
    Raises ValueError as ``PackedLinear`` and ``int4_matmul.panels.pack`` do, and for other x_bits.
    """

    def __init__(self, linear, *, group_size=32, x_bits=8, codes=None):
        super().__init__(linear)
        if x_bits not in KERNELS:
            raise ValueError(f"x_bits={x_bits} is not supported; choose 8, 16 or 32")
        w = linear.weight.detach()
        if codes is None:
            qparams = affine.choose_qparams(w, 4, axis=1, group_size=group_size)
            codes = affine.quantize(w, qparams), qparams
        found, qparams = codes
        self.check_codes(found)
        parts = (np.asarray(part) for part in (found, qparams.scale, qparams.zero_point))
        packed = panels.pack(*parts, group_size)
        self.group_size, self.x_bits = packed.group_size, x_bits
        self.has_zero_points = packed.has_zero_points
        self.layout = (self.group_size, self.has_zero_points)
        self.register_buffer("panels", torch.from_numpy(packed.data))

    @property
    def tensors(self):
        return (
            self.panels,
            self.bias,
            self.out_features,
            self.group_size,
            self.has_zero_points,
            self.x_bits,
        )

    @classmethod
    def compute(cls, x, data, bias, out, group_size, has_zero_points, x_bits):
        shape = (out, x.shape[1])
        w = panels.Panels(array(data), shape, group_size, SCALE, has_zero_points)
        return torch.from_numpy(KERNELS[x_bits](array(x), w, array(bias)))


@torch.library.custom_op("qbook::int4_linear", mutates_args=())
def int4_linear(
    x: torch.Tensor,
    panels: torch.Tensor,
    bias: torch.Tensor | None,
    out: int,
    group_size: int,
    has_zero_points: bool,
    x_bits: int,
) -> torch.Tensor:
    """x [samples, in] float32 and what an ``Int4Linear`` holds -> [samples, out] float32"""
    return Int4Linear.compute(x, panels, bias, out, group_size, has_zero_points, x_bits)


@int4_linear.register_fake
def _(x, panels, bias, out, group_size, has_zero_points, x_bits):
    return x.new_empty(x.shape[0], out)


Int4Linear.operator = int4_linear
