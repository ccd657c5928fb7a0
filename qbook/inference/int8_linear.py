"""INT8 weights, a scale for each output; activations in INT8, a scale for each token, on the fly.

The W8A8 of LLM.int8() without its outliers: Dettmers et al. 2022, arXiv:2208.07339, section 3.1
("vector-wise").  Book: 6.2
"""

import torch

from qbook import affine
from qbook.inference.packed_layer import array
from qbook.inference.packed_linear import PackedLinear
from qbook.kernels.int8_matmul import matmul, panels
from qbook.kernels.rowwise import quantizer


class Int8Linear(PackedLinear):
    """A Linear whose weight is int8 codes in panels.  Raises ValueError as ``PackedLinear``."""

    def __init__(self, linear):
        super().__init__(linear)
        w = linear.weight.detach()
        qparams = affine.choose_qparams(w, 8, axis=1)
        packed = panels.pack(affine.quantize(w, qparams).numpy())
        self.register_buffer("panels", torch.from_numpy(packed.data))
        self.register_buffer("column_term", torch.from_numpy(packed.column_term))
        self.register_buffer("scale", qparams.scale.reshape(-1))

    @property
    def tensors(self):
        return self.panels, self.column_term, self.scale, self.bias

    @classmethod
    def compute(cls, x, panels_, column_term, scale, bias):
        w = panels.symmetric(array(panels_), array(column_term), (scale.shape[0], x.shape[1]))
        codes, x_scale = quantizer.quantize(array(x))
        return torch.from_numpy(matmul.linear(codes, x_scale, w, array(scale), array(bias)))


@torch.library.custom_op("qbook::int8_linear", mutates_args=())
def int8_linear(
    x: torch.Tensor,
    panels: torch.Tensor,
    column_term: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """x [samples, in] float32 and the buffers of an ``Int8Linear`` -> [samples, out] float32"""
    return Int8Linear.compute(x, panels, column_term, scale, bias)


@int8_linear.register_fake
def _(x, panels, column_term, scale, bias):
    return x.new_empty(x.shape[0], scale.shape[0])


Int8Linear.operator = int8_linear
