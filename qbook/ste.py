"""Straight-through: round on the way forward, pass a chosen slope on the way back.

The derivative of rounding is 0 almost everywhere.  Three slopes take its place: 1 everywhere
(Bengio et al. 2013, arXiv:1308.3432); 1 where no clipping happens (Courbariaux et al. 2016,
arXiv:1602.02830, is the 1-bit case); and the derivative of the *mean* output under dither, which
exists and needs no convention.  Book: 2.4
"""

from dataclasses import replace

import torch
from array_api_compat import array_namespace

from qbook import affine


class _Surrogate(torch.autograd.Function):
    """Forward: a value computed elsewhere.  Backward: gradient times a slope computed elsewhere."""

    @staticmethod
    def forward(ctx, x, value, slope):
        ctx.save_for_backward(slope)
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        (slope,) = ctx.saved_tensors
        return grad * slope, None, None


def round_ste(x):
    """torch x [...] -> round(x), ties to even; gradient 1 everywhere."""
    return _Surrogate.apply(x, torch.round(x.detach()), torch.ones_like(x))


def fake_quantize_ste(x, qparams):
    """torch x [...] -> ``affine.fake_quantize``; gradient 1 where no code was clipped, else 0.

    The pass region is half a step wider than the levels on both sides, because the code is compared
    after rounding: PyTorch's convention, forward and gradient bit for bit.
    """
    value = affine.fake_quantize(x, qparams)
    return _Surrogate.apply(x, value, unclipped(x, qparams).to(x.dtype))


def quantize_ste(x, qparams):
    """torch x [...] -> ``affine.quantize`` as floats; gradient 1 / scale where no code was clipped.

    The codes count steps, so their slope carries the unit of one: dequantizing multiplies it away.
    """
    codes = affine.quantize(x, qparams)
    slope = unclipped(x, qparams) / _scale_of_each(codes, qparams)
    return _Surrogate.apply(x, codes.to(x.dtype), slope.to(x.dtype))


def unclipped(x, qparams):
    """x [...] -> True where qmin <= round(x / scale) + zero_point <= qmax, before any clamp."""
    # One more code on both sides: what lands there would have been clipped.
    wider = replace(qparams, qmin=qparams.qmin - 1, qmax=qparams.qmax + 1)
    codes = affine.quantize(x, wider)
    return (qparams.qmin <= codes) & (codes <= qparams.qmax)


def dithered_expectation(x, qparams):
    """x [...] -> the mean of ``affine.fake_quantize(x + u)`` over u uniform on [-scale/2, scale/2].

    Exactly x between the lowest and the highest level, that level outside: dithered rounding is
    unbiased, and the staircase averages to a clamp.  NumPy or torch; differentiable in torch.
    """
    xp = array_namespace(x)
    lowest, highest = _outermost_levels(x, qparams)
    return xp.minimum(xp.maximum(x, lowest), highest)


def dithered_slope(x, qparams):
    """x [...] -> derivative of ``dithered_expectation``: 1 between the outermost levels, else 0.

    At the two corners, where none exists, it is 1.  Half a step narrower than ``unclipped`` on both
    sides.  For sign(x), of levels -1 and 1 and step 2, the same mean is clip(x, -1, 1), and its
    slope is BinaryNet's |x| <= 1.
    """
    xp = array_namespace(x)
    lowest, highest = _outermost_levels(x, qparams)
    return xp.astype((lowest <= x) & (x <= highest), x.dtype)


def _outermost_levels(x, qparams):
    """The values of the codes qmin and qmax, of x's shape and type."""
    xp = array_namespace(x)
    codes = xp.zeros_like(x, dtype=xp.int32)
    return tuple(
        xp.astype(affine.dequantize(codes + code, qparams), x.dtype)
        for code in (qparams.qmin, qparams.qmax)
    )


def _scale_of_each(codes, qparams):
    """The scale of every element: what one step decodes to."""
    xp = array_namespace(codes)
    without_zero_point = replace(qparams, zero_point=xp.zeros_like(qparams.zero_point))
    return affine.dequantize(xp.ones_like(codes), without_zero_point)
