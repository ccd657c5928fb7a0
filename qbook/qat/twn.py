"""Ternary weight networks: -1, 0 or 1 times a scale, the small weights being the zeros.

Li, Zhang and Liu 2016, arXiv:1605.04711: the threshold 0.7 mean|w|, the scale it implies, and
training with both.  ``optimal_scale`` solves exactly the problem that 0.7 approximates.  Book: 3.2
"""

import torch
from array_api_compat import array_namespace, device
from torch.autograd.function import once_differentiable

from qbook import affine

FACTOR = 0.7


def threshold(w, *, axis=None, factor=FACTOR):
    """w [...] -> factor * mean|w|, of length 1 along axis, the axis or axes that share it.

    axis: None: the whole tensor, as in the paper.  NumPy or torch.
    """
    xp = array_namespace(w)
    return factor * xp.mean(xp.abs(w), axis=axis, keepdims=True)


def scale(w, threshold, *, axis=None):
    """w [...], threshold -> mean of |w| over |w| > threshold, of threshold's shape.

    The least-squares scale for the codes of that threshold; 1 where no weight exceeds it.
    """
    xp = array_namespace(w)
    magnitude = xp.abs(w)
    kept = xp.astype(magnitude > threshold, w.dtype)
    total = xp.sum(magnitude * kept, axis=axis, keepdims=True)
    count = xp.sum(kept, axis=axis, keepdims=True)
    return xp.where(count > 0, total / xp.where(count > 0, count, 1), xp.ones_like(total))


def optimal_scale(w, *, axis=None):
    """w [...] -> the scale of least squared error among all ternary codes, O(n log n).

    axis: one axis that shares a scale, or None.  Of all codes with k nonzero ones the
    best keep the k largest |w| and save (their sum)^2 / k: sort, add up, take the best k.
    Half the scale is then the best threshold, so that ``affine.quantize`` finds the codes.
    1 for a slice that is all zero.
    """
    xp = array_namespace(w)
    shape = (1,) * w.ndim
    if axis is None:
        w, axis = xp.reshape(w, (-1,)), 0
    magnitude = xp.astype(xp.abs(w), xp.float64)
    largest_first = xp.flip(xp.sort(magnitude, axis=axis), axis=axis)
    sums = xp.cumulative_sum(largest_first, axis=axis)
    broadcast = [1] * w.ndim
    broadcast[axis] = -1
    count = xp.arange(1, w.shape[axis] + 1, dtype=sums.dtype, device=device(w))
    count = xp.reshape(count, tuple(broadcast))
    best = xp.argmax(sums**2 / count, axis=axis, keepdims=True)
    found = xp.take_along_axis(sums / count, best, axis=axis)
    found = xp.astype(xp.where(found > 0, found, xp.ones_like(found)), w.dtype)
    return xp.reshape(found, shape) if found.ndim == 1 else found


def qparams(scale):
    """-> ``affine.QParams`` of the codes -1, 0, 1; its own threshold is scale / 2."""
    xp = array_namespace(scale)
    return affine.QParams(scale, xp.zeros_like(scale, dtype=xp.int32), -1, 1)


def quantize(w, threshold):
    """w [...] -> codes int8 in {-1, 0, 1}: the sign of w where |w| > threshold, else 0."""
    xp = array_namespace(w)
    return xp.astype(w > threshold, xp.int8) - xp.astype(w < -threshold, xp.int8)


class _Ternary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, axis, factor):
        at = threshold(w, axis=axis, factor=factor)
        return affine.dequantize(quantize(w, at), qparams(scale(w, at, axis=axis)))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad, None, None


def fake_quantize(w, *, axis=None, factor=FACTOR):
    """torch w [...] -> scale * codes, both found anew from w; gradient 1 everywhere.

    Straight-through as in the paper's training: neither threshold nor scale is differentiated.
    """
    return _Ternary.apply(w, axis, factor)
