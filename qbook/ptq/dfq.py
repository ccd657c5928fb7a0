"""Data-free quantization: move scale between layers until every channel uses the range alike.

A ReLU lets positive factors pass, so channel i may leave the first layer divided by s_i and enter
the second multiplied by it: the network is the same, its ranges are not.

    s_i = sqrt(r1_i r2_i) / r2_i          r1_i, r2_i: largest |w| of channel i in the two layers

Nagel et al. 2019, arXiv:1906.04721, section 4.1 and appendix A.  Book: 3.1
"""

import copy

import torch
from torch import nn

from qbook.models import weights
from qbook.ptq import neighbours
from qbook.ptq.fold import Normal


def output_ranges(layer):
    """r [out]: largest |weight| of each output channel."""
    return layer.weight.detach().abs().flatten(1).amax(1)


def input_ranges(layer):
    """r [in]: largest |weight| that reads each input channel; grouped convolutions included.

    A depthwise layer reads channel i with filter i alone, so both ranges are the same numbers.
    """
    return _by_input(layer).abs().amax((1, 3)).flatten()


def equalizing_scales(r1, r2):
    """r1, r2 [channels] -> s [channels] with r1 / s = s r2 = sqrt(r1 r2).

    1 where either range is 0: a dead channel is left alone.
    """
    alive = (r1 > 0) & (r2 > 0)
    return torch.where(alive, torch.sqrt(r1 / torch.where(alive, r2, 1)), 1)


def rescale(model, first, second, s):
    """-> a copy: outputs of ``first`` divided by s [channels], inputs of ``second`` times s.

    The same function if a chain joins the two.  Raises ValueError unless all s are positive.
    """
    rescaled = copy.deepcopy(model)
    _rescale(rescaled, first, second, s)
    return rescaled


def equalize(model, names=None, *, tolerance=1e-4, sweeps=1000):
    """Cross-layer equalization -> (copy, dict: first layer -> s [channels] of all sweeps).

    names:     list of (first, second); None: ``neighbours.chains(model)``
    tolerance: sweeps over all pairs end when no s is further than this from 1
    Raises ValueError for pairs that are no layers or do not fit, and after so many sweeps.
    """
    equal = copy.deepcopy(model)
    names = neighbours.chains(model) if names is None else names
    total = {}
    for _ in range(sweeps):
        furthest = 0.0
        for first, second in names:
            r1 = output_ranges(_layer(equal, first))
            r2 = input_ranges(_layer(equal, second))
            _check_channels(first, second, r1, r2)
            s = equalizing_scales(r1, r2)
            _rescale(equal, first, second, s)
            total[first] = total.get(first, 1) * s
            furthest = max(furthest, float((s - 1).abs().max()))
        if furthest <= tolerance:
            return equal, total
    raise ValueError(f"factors move by {furthest:.1e} after {sweeps} sweeps; allow more")


def absorb(model, statistics, names=None, *, sigmas=3):
    """High biases move on: c = max(0, mean - sigmas * std) leaves a bias, W2 c enters the next.

    statistics: dict: layer -> ``fold.Normal`` of its output, before this
    -> (copy, dict: first layer -> c [channels]); pairs without statistics are left out.
    ReLU(y) - c = ReLU(y - c) only where y >= c, and a second layer that pads sees zeros where the
    sum counts c: approximate there, exact elsewhere.  Section 4.1.3.
    """
    absorbed, moved = copy.deepcopy(model), {}
    for first, second in neighbours.chains(model) if names is None else names:
        if first in statistics:
            mean, std = statistics[first]
            source, reader = _layer(absorbed, first), _layer(absorbed, second)
            c = (mean - sigmas * std).clamp(min=0)
            source.bias = nn.Parameter(_bias(source) - c)
            reader.bias = nn.Parameter(_bias(reader) + through(reader, reader.weight, c))
            moved[first] = c
    return absorbed, moved


def moved_statistics(statistics, scales=None, shifts=None):
    """Statistics after ``equalize``, then ``absorb``: mean / s - c, std / s for each layer."""
    moved = {}
    for name, (mean, std) in statistics.items():
        s, c = (scales or {}).get(name, 1), (shifts or {}).get(name, 0)
        moved[name] = Normal(mean / s - c, std / s)
    return moved


def through(layer, w, mean):
    """w of the layer's shape, mean [in] of its input channels -> what w makes of it [out].

    A convolution sums its taps: the value where no padding is read.
    """
    groups = getattr(layer, "groups", 1)
    per_channel = w.detach().reshape(groups, len(w) // groups, w.shape[1], -1).sum(3)
    return (per_channel * mean.reshape(groups, 1, -1)).sum(2).flatten()


def _by_input(layer):
    """weight as [groups, out / groups, in / groups, taps]"""
    w, groups = layer.weight.detach(), getattr(layer, "groups", 1)
    return w.reshape(groups, len(w) // groups, w.shape[1], -1)


def _rescale(model, first, second, s):
    first_layer, second_layer = _layer(model, first), _layer(model, second)
    _check_channels(first, second, first_layer.weight, s)
    _check_channels(first, second, input_ranges(second_layer), s)
    if not bool((s > 0).all()):
        raise ValueError("s must be positive: a ReLU lets no other factor pass")
    w = first_layer.weight.detach()
    first_layer.weight = nn.Parameter(w / s.reshape(-1, *[1] * (w.ndim - 1)))
    if first_layer.bias is not None:
        first_layer.bias = nn.Parameter(first_layer.bias.detach() / s)
    w = _by_input(second_layer)
    scaled = w * s.reshape(len(w), 1, -1, 1)
    second_layer.weight = nn.Parameter(scaled.reshape(second_layer.weight.shape))


def _bias(layer):
    return layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach()


def _layer(model, name):
    found = dict(weights.layers(model))
    if name not in found:
        raise ValueError(f"no layer is called {name!r}; this model has {', '.join(found)}")
    return found[name]


def _check_channels(first, second, a, b):
    if len(a) != len(b):
        raise ValueError(f"{first} to {second}: {len(a)} channels meet {len(b)}")
