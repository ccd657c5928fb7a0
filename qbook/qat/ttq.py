"""Trained ternary quantization: the two nonzero levels are learned, one for each sign.

Zhu et al. 2017, arXiv:1612.01064.  Book: 3.2

The paper prints the gradient of W_n as the plain sum of the gradients of its weights.  Those
weights are -W_n, so the chain rule gives that sum a minus sign; this module follows the chain rule.
"""

import torch
from torch.autograd.function import once_differentiable

from qbook.qat import twn


class _TwoLevels(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, positive, negative, threshold):
        codes = twn.quantize(w, threshold)
        ctx.save_for_backward(codes, positive, negative)
        return _decode(codes, positive, negative)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        codes, positive, negative = ctx.saved_tensors
        one = torch.ones((), dtype=grad.dtype, device=grad.device)
        to_w = torch.where(codes > 0, positive, torch.where(codes < 0, negative, one))
        to_positive = (grad * (codes > 0)).sum_to_size(positive.shape)
        to_negative = -(grad * (codes < 0)).sum_to_size(negative.shape)
        return grad * to_w, to_positive, to_negative, None


def threshold(w, t=0.05):
    """torch w [...] -> t * max|w|, a tensor of no dimension; one threshold a layer."""
    return t * w.detach().abs().max()


def fake_quantize(w, positive, negative, threshold):
    """torch w [...] -> positive where w > threshold, -negative where w < -threshold, else 0.

    positive, negative: tensors > 0, W_p and W_n, of one element or broadcasting against w.
    Gradients: W_p and W_n get the sum over their weights, W_n with a minus sign; w gets the
    gradient times W_p, 1 or W_n, by its code.
    Raises ValueError for a level that is not positive: its sign would contradict the code's.
    """
    for name, level in (("positive", positive), ("negative", negative)):
        if not bool((level > 0).all()):
            raise ValueError(f"{name}={level.detach()} must be above 0; lower its learning rate")
    return _TwoLevels.apply(w, positive, negative, threshold)


def initial_levels(w, threshold):
    """torch w [...] -> W_p and W_n, the mean |w| on either side beyond the threshold; 1 if empty.

    The least-squares levels for these codes; the paper leaves the start open.
    """
    w = w.detach()
    sides = (w.clamp(min=0), (-w).clamp(min=0))
    return tuple(twn.scale(side, threshold).reshape(()) for side in sides)


def _decode(codes, positive, negative):
    zero = torch.zeros((), dtype=positive.dtype, device=positive.device)
    return torch.where(codes > 0, positive, torch.where(codes < 0, -negative, zero))
