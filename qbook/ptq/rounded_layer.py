"""A layer with a softly rounded weight and, if wanted, inputs on a grid whose step is learnt.

What a block consists of while it is reconstructed: AdaRound's relaxation for the weight, LSQ's
quantizer for the input.  Nagel et al. 2020, arXiv:2004.10568; Esser et al. 2020, arXiv:1902.08153.
Book: 4.2
"""

import torch
from torch import nn
from torch.func import functional_call

from qbook import affine
from qbook.ptq import adaround
from qbook.qat import lsq
from qbook.ranges import mse

# Values of an activation that its first step is searched on.
SEARCHED = 16384


class RoundedLayer(nn.Module):
    """A linear or convolution layer whose weight is rounded and whose input may be.

    logits [out, in]: AdaRound's v;  hard: whether h(v) or its rounding counts;  step: of the input,
    None: not quantized;  mix: None, or (x_hat, x) -> what the layer computes with.
    """

    def __init__(self, layer, bits):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        w = layer.weight.flatten(1)
        low, high = mse.search(w, bits, axis=1, symmetric=False)
        self.qparams = affine.qparams_from_range(low, high, bits, symmetric=False)
        position = w * (1 / self.qparams.scale)
        self.logits = nn.Parameter(adaround.initial_logits(position - torch.floor(position)))
        self.hard = False
        self.step = self.mix = None

    def codes(self):
        """-> integer codes of the weight, [out, in], a convolution's [out, in * k * k]"""
        return adaround.hard_round(self.layer.weight.flatten(1), self.logits, self.qparams)

    def w_hat(self):
        """-> the rounded weight [out, in]: a smooth function of the logits unless ``hard``"""
        if self.hard:
            return affine.dequantize(self.codes(), self.qparams)
        scale, zero_point = self.qparams.scale, self.qparams.zero_point
        floor = torch.floor(self.layer.weight.flatten(1) * (1 / scale))
        raw = floor + zero_point + adaround.rectified_sigmoid(self.logits)
        return scale * (torch.clamp(raw, self.qparams.qmin, self.qparams.qmax) - zero_point)

    def quantize_inputs(self, x, bits):
        """From now on inputs are rounded; the first step is the one of least MSE on x.

        Codes are unsigned where x has no negative value.
        """
        sample = x.detach().flatten()[:: max(1, x.numel() // SEARCHED)]
        self.bits, self.signed = bits, bool(x.min() < 0)
        # With symmetric=False the range of a positive x starts at its zero-point, 0.
        low, high = mse.search(sample, bits, symmetric=self.signed, steps=50)
        chosen = affine.qparams_from_range(low, high, bits, symmetric=self.signed)
        self.step = nn.Parameter(chosen.scale)
        self.factor = lsq.gradient_factor(x[0].numel(), bits, signed=self.signed)

    def forward(self, x):
        if self.step is not None:
            x_hat = lsq.fake_quantize(
                x, self.step, self.bits, signed=self.signed, factor=self.factor
            )
            x = x_hat if self.mix is None else self.mix(x_hat, x)
        weight = self.w_hat().reshape(self.layer.weight.shape)
        return functional_call(self.layer, {"weight": weight}, (x,))

    def __getattr__(self, name):
        """What a block reads off its layers, such as out_channels, is the layer's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "layer":
                raise
            return getattr(self.layer, name)
