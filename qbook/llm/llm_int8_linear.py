"""LLM.int8() in a model: a Linear that rounds weight and inputs and keeps outlier columns.

    y = x_hat w_hat^T + x_O w_O^T + bias

with x_hat and w_hat what the codes stand for and x_hat 0 in the columns O.  A sum in floating point
of numbers that integers stand for: the integer sum, but for the rounding of floats.  Dettmers et
al. 2022, arXiv:2208.07339, section 3.  Book: 5.1
"""

import torch
from torch import nn
from torch.nn import functional as F

from qbook import affine
from qbook.llm import llm_int8


class SimulatedLinear(nn.Module):
    """x [..., in] -> [..., out].  The columns with outliers are those of the whole batch.

    linear:     the nn.Linear that it stands for; its weight is copied
    threshold, bits, keep_floats: see ``llm_int8.simulate``
    """

    def __init__(self, linear, *, threshold=6.0, bits=8, keep_floats=True):
        super().__init__()
        if threshold is not None and not threshold >= 0:
            raise ValueError(f"threshold={threshold} is no magnitude; choose 0 or more, or None")
        self.threshold, self.bits = threshold, bits
        w = linear.weight.detach().clone()
        w_hat = affine.fake_quantize(w, affine.choose_qparams(w, bits, axis=1))
        self.register_buffer("w_hat", w_hat)
        # The columns of outliers are multiplied with this one.
        self.register_buffer("w_float", w if keep_floats else w_hat)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    @torch.no_grad()
    def forward(self, x):
        rows = x.reshape(-1, x.shape[-1])
        codes, qparams, columns = llm_int8.quantize_inputs(rows, self.threshold, self.bits)
        y = F.linear(affine.dequantize(codes, qparams).to(x.dtype), self.w_hat, self.bias)
        if len(columns):
            y += rows[:, columns] @ self.w_float[:, columns].T
        return y.reshape(*x.shape[:-1], -1)
