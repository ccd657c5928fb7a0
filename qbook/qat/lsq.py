"""Learned step size: the loss teaches the scale as it teaches the weights.

Esser et al. 2020, arXiv:1902.08153, equations 1-5 and section 2.2.  Book: 3.2
"""

import math

import torch
from torch.autograd.function import once_differentiable

from qbook import affine


class _LearnedStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v, scale, qmin, qmax, factor):
        ctx.save_for_backward(v, scale)
        ctx.constants = qmin, qmax, factor
        return affine.fake_quantize(v, _qparams(scale, qmin, qmax))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        v, scale = ctx.saved_tensors
        qmin, qmax, factor = ctx.constants
        to_v, to_scale = _slopes(v, scale, qmin, qmax)
        grad_scale = (grad * to_scale).sum_to_size(scale.shape) * factor
        return (grad * to_v).to(v.dtype), grad_scale.to(scale.dtype), None, None, None


def fake_quantize(v, scale, bits, *, signed=True, factor=None):
    """torch v [...] -> ``affine.fake_quantize`` on a scale that receives a gradient.

    scale:  tensor > 0, of one element or broadcasting against v; ``initial_scale`` makes the first
    factor: what multiplies the gradient of scale; None: ``gradient_factor`` for the elements of v
            that share a scale, as for weights.  For activations N is the features of one sample.
    Raises ValueError for a scale that is not positive and for bits outside 1..16, or 1 if signed.
    """
    qmin, qmax = _code_range(bits, signed)
    if factor is None:
        factor = gradient_factor(v.numel() / max(scale.numel(), 1), bits, signed=signed)
    _check_positive(scale)
    return _LearnedStep.apply(v, scale, qmin, qmax, factor)


def slopes(v, scale, bits, *, signed=True):
    """torch v [...] -> derivatives of v_hat [...] by v (eq. 5) and by scale (eq. 3), both [...].

    The range test is on v / scale, before rounding, and its ends count as outside.
    """
    return _slopes(v, scale, *_code_range(bits, signed))


def gradient_factor(n, bits, *, signed=True):
    """1 / sqrt(n * qmax), section 2.2: n values share one scale, whose steps it makes as large."""
    _, qmax = _code_range(bits, signed)
    return 1 / math.sqrt(max(n, 1) * qmax)


def initial_scale(v, bits, *, signed=True):
    """torch v [...] -> 2 mean|v| / sqrt(qmax), section 2.1: a tensor of no dimension.

    Raises ValueError where v is all zero or empty, for that gives no scale.
    """
    _, qmax = _code_range(bits, signed)
    scale = 2 * v.detach().abs().mean() / math.sqrt(qmax)
    _check_positive(scale)
    return scale


def qparams(scale, bits, *, signed=True):
    """The learned scale as ``affine.QParams``: zero_point 0, every code of the width in use.

    signed: codes -2^(bits-1) ... 2^(bits-1) - 1; else 0 ... 2^bits - 1.
    """
    return _qparams(scale, *_code_range(bits, signed))


def _slopes(v, scale, qmin, qmax):
    steps = v.detach() * (1 / scale.detach())
    inside = (qmin < steps) & (steps < qmax)
    to_scale = torch.where(inside, torch.round(steps) - steps, steps.clamp(qmin, qmax))
    return inside.to(steps.dtype), to_scale


def _qparams(scale, qmin, qmax):
    scale = scale.detach()
    return affine.QParams(scale, torch.zeros_like(scale, dtype=torch.int32), qmin, qmax)


def _code_range(bits, signed):
    qmin, qmax, _ = affine.code_range(bits, symmetric=False, signed=signed)
    if qmax == 0:
        raise ValueError(f"bits={bits} signed has no positive code; choose 2 or more, or unsigned")
    return qmin, qmax


def _check_positive(scale):
    if not bool(((0 < scale) & torch.isfinite(scale)).all()):
        raise ValueError(f"scale={scale.detach()} must be positive and finite; see initial_scale")
