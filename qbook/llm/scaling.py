"""Scales that move between layers: the function stays, what must be quantized changes.

    x W^T = (x / s) (W diag(s))^T

with s a factor for each input channel.  The division goes into whatever writes x: a LayerNorm's
gain and bias, or the rows of a Linear.  Xiao et al. 2023, arXiv:2211.10438, eq. 3 (SmoothQuant);
Lin et al. 2024, arXiv:2306.00978, eq. 2 (AWQ) is the same identity.  Book: 5.4, 5.5

Where the writer cannot be changed (its output also goes elsewhere, as BERT's LayerNorms into the
residual; or a GELU lies between), ``ScaledLinear`` divides its own input.
"""

import copy

import torch
from torch import nn

from qbook.models.weights import replace


def migrate(model, writer, readers, s):
    """-> a copy: what ``writer`` writes is divided by s, columns of ``readers`` are multiplied.

    writer:  name of a LayerNorm, RMSNorm or Linear.  Nothing but the readers may use its output,
             and between them only what lets positive factors pass: ReLU, attention's average
    readers: names of the Linears that read it
    s:       [channels] > 0
    Raises ValueError for s that is not positive and finite, or does not fit the layers.
    """
    moved = copy.deepcopy(model)
    first, *layers = (moved.get_submodule(name) for name in (writer, *readers))
    channels = {writer: first.weight.shape[0]}
    channels |= {name: layer.weight.shape[1] for name, layer in zip(readers, layers, strict=True)}
    _check(s, channels)
    s = s.detach().to(first.weight)
    with torch.no_grad():
        first.weight.div_(s if first.weight.ndim == 1 else s[:, None])
        if getattr(first, "bias", None) is not None:
            first.bias.div_(s)
        for layer in layers:
            layer.weight.mul_(s)
    return moved


def plant(model, writer, readers, channels, factor):
    """-> a copy with outliers: these channels of what ``writer`` writes are ``factor`` times larger

    The readers' columns become as much smaller, so that the model computes what it did: outliers
    as large models have them, in a model whose function is known.  channels: list of ints.
    """
    width = model.get_submodule(writer).weight.shape[0]
    s = torch.ones(width, dtype=torch.float64)
    s[list(channels)] = 1 / factor
    return migrate(model, writer, readers, s)


class ScaledLinear(nn.Module):
    """x [..., in] -> (x / s) (W diag(s))^T + bias: a Linear that divides its own input.

    The Linear inside, ``linear``, sees the divided input and holds the multiplied weight; quantize
    that one.  s: [in] > 0.  Raises ValueError as ``migrate``.
    """

    def __init__(self, linear, s):
        super().__init__()
        _check(s, {"the layer": linear.weight.shape[1]})
        s = s.detach().to(linear.weight)
        self.linear = replace(nn.Sequential(linear), {"0": linear.weight * s})[0]
        self.register_buffer("reciprocal", 1 / s)

    def forward(self, x):
        return self.linear(x * self.reciprocal)


def _check(s, channels):
    """channels: dict, name of a layer -> its number of channels"""
    if s.ndim != 1 or not bool(((s > 0) & torch.isfinite(s)).all()):
        raise ValueError(
            f"s of shape {tuple(s.shape)} must have one axis and be positive and finite; "
            f"its smallest value is {float(s.min())}"
        )
    for name, count in channels.items():
        if count != len(s):
            raise ValueError(f"s has {len(s)} factors; {name} has {count} channels")
