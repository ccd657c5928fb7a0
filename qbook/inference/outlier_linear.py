"""LLM.int8(): a Linear in INT8 whose outlying input columns are multiplied in float32.

Dettmers et al. 2022, arXiv:2208.07339, section 3.2.  Book: 5.1, 6.2
"""

import torch

from qbook.inference.packed_layer import array
from qbook.inference.packed_linear import PackedLinear
from qbook.kernels.int8_matmul import panels
from qbook.kernels.outlier_matmul import matmul
from qbook.kernels.outlier_matmul import panels as outlier_panels


class OutlierLinear(PackedLinear):
    """A Linear whose weight is int8 codes; columns of x that reach the threshold stay in float.

    threshold:  6.0 in the paper
    Raises ValueError as ``PackedLinear`` does.
    """

    def __init__(self, linear, *, threshold=6.0):
        super().__init__(linear)
        self.threshold = float(threshold)
        packed = outlier_panels.pack(linear.weight.detach().numpy())
        self.register_buffer("panels", torch.from_numpy(packed.codes.data))
        self.register_buffer("column_term", torch.from_numpy(packed.codes.column_term))
        # [16 panels], as the kernel wants it.
        self.register_buffer("scale", torch.from_numpy(packed.scale))

    @property
    def tensors(self):
        return (
            self.panels,
            self.column_term,
            self.scale,
            self.bias,
            self.out_features,
            self.threshold,
        )

    @classmethod
    def compute(cls, x, data, column_term, scale, bias, out, threshold):
        codes = panels.symmetric(array(data), array(column_term), (out, x.shape[1]))
        w = outlier_panels.Weight(codes, array(scale), None)
        return torch.from_numpy(matmul.matmul(array(x), w, threshold, array(bias)))


@torch.library.custom_op("qbook::outlier_linear", mutates_args=())
def outlier_linear(
    x: torch.Tensor,
    panels: torch.Tensor,
    column_term: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    out: int,
    threshold: float,
) -> torch.Tensor:
    """x [samples, in] float32 and what an ``OutlierLinear`` holds -> [samples, out] float32"""
    return OutlierLinear.compute(x, panels, column_term, scale, bias, out, threshold)


@outlier_linear.register_fake
def _(x, panels, column_term, scale, bias, out, threshold):
    return x.new_empty(x.shape[0], out)


OutlierLinear.operator = outlier_linear
