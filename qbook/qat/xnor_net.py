"""XNOR-Net: signs with a scale for every filter, the one that is best in least squares.

    w ~ alpha sign(w),  alpha = mean |w| over the filter              sections 3.1 and 3.2
    BatchNorm, sign, binary convolution, pooling: in this order        section 3.2

Rastegari et al. 2016, arXiv:1603.05279, and its released code, github.com/allenai/XNOR-Net.
Book: 3.2
"""

import torch
from torch.nn import functional as F

from qbook.qat import binary_connect


class _ScaledSigns(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, gradient):
        ctx.save_for_backward(w)
        ctx.gradient = gradient
        return scale(w) * binary_connect.signs(w)

    @staticmethod
    def backward(ctx, grad):
        (w,) = ctx.saved_tensors
        return ctx.gradient(w, grad), None


def scale(w):
    """torch w [out, ...] -> alpha [out, 1, ...]: the mean of |w| over each filter."""
    return w.abs().flatten(1).mean(dim=1).reshape(_one_each(w))


def printed_gradient(w, grad):
    """Filters w [out, ...], gradient by alpha sign(w) [out, ...] -> by w, as the paper prints it:

    grad_i (alpha 1{|w_i| < 1} + 1 / n), n weights a filter.  Of the sum that ``full_gradient`` has
    it keeps one of n terms.
    """
    n = w[0].numel()
    return grad * (scale(w) * _inside(w) + 1 / n)


def full_gradient(w, grad):
    """Filters w [out, ...], gradient by alpha sign(w) -> by w, with the chain rule's sum:

    alpha 1{|w_i| < 1} grad_i + sign(w_i) / n sum_j sign(w_j) grad_j.
    Straight through the sign, exact in alpha.
    """
    signs = binary_connect.signs(w)
    through_scale = (grad * signs).flatten(1).mean(dim=1).reshape(_one_each(w))
    return scale(w) * _inside(w) * grad + signs * through_scale


def released_gradient(w, grad):
    """``printed_gradient`` times (1 - 1 / c) n, c = w.shape[1]: updateBinaryGradWeight.

    1 - 1 / c is the diagonal of the derivative of ``center``; n is a factor on the learning rate.
    """
    return printed_gradient(w, grad) * (1 - 1 / w.shape[1]) * w[0].numel()


def binarize(w, gradient=printed_gradient):
    """torch w [out, ...] -> alpha sign(w), the least-squares fit with one bit a weight.

    gradient: one of the three functions above
    """
    return _ScaledSigns.apply(w, gradient)


def center(w):
    """torch w [out, c, ...] -> w less its mean over the c inputs, as the released code keeps it.

    A convolution is centred at every position of its kernel by itself.
    """
    return w - w.mean(dim=1, keepdim=True)


def input_scale(x, kernel_size=1, *, stride=1, padding=0):
    """torch x [samples, in] -> mean |x| [samples, 1]; x [samples, c, h, w] -> K [samples, 1, ...].

    K is the mean of |x| over channels and the kernel's window: a scale for every patch.  Section
    3.2; the released model does without.  Outside the image x is 0.
    """
    mean = x.abs().mean(dim=1, keepdim=True)
    if x.ndim == 2:
        return mean
    return F.avg_pool2d(mean, kernel_size, stride, padding)


def _inside(w):
    return (w.abs() < 1).to(w.dtype)


def _one_each(w):
    return (-1, *[1] * (w.ndim - 1))
