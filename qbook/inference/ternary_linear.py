"""Ternary weights, a scale for each output; activations in INT8, a scale for each token.

The forward pass of BitNet b1.58: Ma et al. 2024, arXiv:2402.17764, section 2, which has one scale
for the whole weight.  Book: 6.2
"""

import numpy as np
import torch

from qbook.inference.packed_layer import array
from qbook.inference.packed_linear import PackedLinear
from qbook.kernels.rowwise import quantizer
from qbook.kernels.ternary_matmul import matmul, panels
from qbook.qat import twn


class TernaryLinear(PackedLinear):
    """A Linear whose weight is ternary codes in panels.

    packing:  "2-bit" or "base-3" (1.6 bits)
    codes:    (codes int8 [out, in] in -1, 0, 1, scale tensor [out]) of a ternary network; None:
              those of least squared error, which cost a network not trained for them dearly
    Raises ValueError as ``PackedLinear`` and ``ternary_matmul.panels.pack`` do.
    """

    def __init__(self, linear, *, packing="2-bit", codes=None):
        super().__init__(linear)
        w = linear.weight.detach()
        if codes is None:
            scale = twn.optimal_scale(w, axis=1)
            codes = twn.quantize(w, scale / 2), scale
        found, scale = codes
        self.check_codes(found)
        packed = panels.pack(np.asarray(found), packing)
        self.packing, self.layout = packing, (panels.DIGITS[packing],)
        self.register_buffer("panels", torch.from_numpy(packed.data))
        self.register_buffer("scale", scale.reshape(-1).float())

    @property
    def tensors(self):
        return self.panels, self.scale, self.bias, self.packing

    @classmethod
    def compute(cls, x, data, scale, bias, packing):
        w = panels.Panels(array(data), (scale.shape[0], x.shape[1]), packing)
        codes, x_scale = quantizer.quantize(array(x))
        return torch.from_numpy(matmul.linear(codes, x_scale, w, array(scale), array(bias)))


@torch.library.custom_op("qbook::ternary_linear", mutates_args=())
def ternary_linear(
    x: torch.Tensor,
    panels: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    packing: str,
) -> torch.Tensor:
    """x [samples, in] float32 and what a ``TernaryLinear`` holds -> [samples, out] float32"""
    return TernaryLinear.compute(x, panels, scale, bias, packing)


@ternary_linear.register_fake
def _(x, panels, scale, bias, packing):
    return x.new_empty(x.shape[0], scale.shape[0])


TernaryLinear.operator = ternary_linear
