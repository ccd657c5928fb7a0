"""A layer whose weight is packed codes: what is stored is what is counted.

The product itself stays in floating point: the weight is unpacked for each call, and the input is
rounded first where asked (simulation, Nagel et al. 2021, arXiv:2106.08295, section 2.4).
Book: 4.5
"""

import copy
import math

import torch
from torch import nn
from torch.nn import functional as F

from qbook import affine, packing
from qbook.granularity import normalise_axes


class QuantizedLayer(nn.Module):
    """A Linear or convolution in codes.  Same inputs and outputs as the layer that it replaces.

    layer:     the real layer; its weight is dropped, its bias and its geometry are kept
    codes:     integers [out, in], of a convolution [out, in * k * k]
    qparams:   ``affine.QParams``, scale [out, 1], [1, 1] or [out, groups, 1]
    x_qparams: None: the input stays real.  A ``QParams`` with one scale: static.  An int, bits:
               dynamic and asymmetric, a scale for each token of a Linear, each image of a
               convolution
    """

    def __init__(self, layer, codes, qparams, x_qparams=None):
        super().__init__()
        self.layer = copy.deepcopy(layer)
        del self.layer.weight
        self.layer.register_parameter("weight", None)
        self.shape = tuple(layer.weight.shape)
        self.qmin, self.qmax = qparams.qmin, qparams.qmax
        self.group_axis = qparams.group_axis
        self.bits = _bits(self.qmin, self.qmax)
        self.register_buffer("packed", packing.pack(codes, self.bits))
        self.register_buffer("scale", qparams.scale)
        # A symmetric quantizer's zero-point is 0 everywhere and need not be stored.
        zero_point = qparams.zero_point.to(self._code_dtype) if qparams.zero_point.any() else None
        self.register_buffer("zero_point", zero_point)
        self.x_bits, self.x_qmin, self.x_qmax = None, None, None
        self.register_buffer("x_scale", None)
        self.register_buffer("x_zero_point", None)
        if isinstance(x_qparams, int):
            self.x_bits = x_qparams
        elif x_qparams is not None:
            self.x_bits = _bits(x_qparams.qmin, x_qparams.qmax)
            self.x_qmin, self.x_qmax = x_qparams.qmin, x_qparams.qmax
            self.x_scale, self.x_zero_point = x_qparams.scale, x_qparams.zero_point

    @property
    def _code_dtype(self):
        return torch.int8 if self.qmin < 0 else torch.uint8

    @property
    def codes(self):
        """[out, in], int8 or uint8"""
        in_ = math.prod(self.shape[1:])
        return packing.unpack(self.packed, self.bits, in_, signed=self.qmin < 0)

    @property
    def qparams(self):
        if self.zero_point is None:
            zero_point = torch.zeros_like(self.scale, dtype=torch.int32)
        else:
            zero_point = self.zero_point.int()
        return affine.QParams(self.scale, zero_point, self.qmin, self.qmax, self.group_axis)

    @property
    def weight(self):
        """The weight that the codes stand for, in the shape of the real one."""
        return affine.dequantize(self.codes, self.qparams).reshape(self.shape)

    def __getattr__(self, name):
        # Models ask their layers for bias, out_channels, stride and the like.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, x):
        x = self.round_input(x)
        weight = self.weight.to(x.dtype)
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, self.layer.bias)
        return self.layer._conv_forward(x, weight, self.layer.bias)

    def round_input(self, x):
        """x -> the values that its codes stand for; x itself where inputs stay real"""
        if self.x_bits is None:
            return x
        if self.x_scale is not None:
            qparams = affine.QParams(self.x_scale, self.x_zero_point, self.x_qmin, self.x_qmax)
        else:
            shared = -1 if isinstance(self.layer, nn.Linear) else tuple(range(1, x.ndim))
            axes = normalise_axes(shared, x.ndim)
            qparams = affine.choose_qparams(x, self.x_bits, axis=axes, symmetric=False)
        return affine.fake_quantize(x, qparams)

    def extra_repr(self):
        inputs = "real" if self.x_bits is None else f"{self.x_bits} bits"
        return f"bits={self.bits}, scales={tuple(self.scale.shape)}, inputs: {inputs}"


def quantized_layers(model):
    """-> dict: name -> ``QuantizedLayer``, in the model's order"""
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLayer)}


def _bits(qmin, qmax):
    """Width of a code that holds qmin and qmax, in two's complement where qmin is negative."""
    return max(qmax.bit_length() + (qmin < 0), (-qmin - 1).bit_length() + 1 if qmin < 0 else 1, 1)
