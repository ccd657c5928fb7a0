"""Parameterized clipping: the loss teaches where to cut the activations off.

Choi et al. 2018, arXiv:1805.06085, equations 1-3.  The paper adds an L2 penalty on alpha to the
loss; that is the optimizer's weight decay.  Book: 3.2
"""

import torch
from torch.autograd.function import once_differentiable

from qbook import affine


class _ParameterizedClipping(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, alpha, bits):
        ctx.save_for_backward(x, alpha)
        return affine.fake_quantize(x, qparams(alpha, bits))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, alpha = ctx.saved_tensors
        to_x, to_alpha = slopes(x, alpha)
        grad_alpha = (grad * to_alpha).sum_to_size(alpha.shape)
        return (grad * to_x).to(x.dtype), grad_alpha.to(alpha.dtype), None


def fake_quantize(x, alpha, bits):
    """torch x [...] -> clip(x, 0, alpha) on 2^bits even levels, with a gradient for alpha.

    alpha: tensor > 0, of one element or broadcasting against x.  Takes the place of the ReLU.
    Raises ValueError for an alpha that is not positive and for bits outside 1..16.
    """
    return _ParameterizedClipping.apply(x, alpha, bits)


def slopes(x, alpha):
    """torch x [...] -> derivatives of the output by x and by alpha, both [...].

    One where 0 <= x < alpha, and one where x >= alpha (eq. 1 and 3): those of the
    clipping; the rounding is passed straight through.
    """
    x, alpha = x.detach(), alpha.detach()
    above = alpha <= x
    return ((0 <= x) & ~above).to(x.dtype), above.to(x.dtype)


def qparams(alpha, bits):
    """The learned range as ``affine.QParams``: codes 0 ... 2^bits - 1, the last one worth alpha.

    Raises ValueError for an alpha that is not positive and finite.
    """
    alpha = alpha.detach()
    qmin, qmax, _ = affine.code_range(bits, symmetric=False, signed=False)
    if not bool(((0 < alpha) & torch.isfinite(alpha)).all()):
        raise ValueError(f"alpha={alpha} must be positive and finite, as a clipping level is")
    scale = alpha / qmax
    return affine.QParams(scale, torch.zeros_like(scale, dtype=torch.int32), qmin, qmax)
