"""BatchNorm folding: at inference the normalisation is a scale and a shift, which a layer can hold.

    gamma (w x + b - mu) / sqrt(var + eps) + beta  =  (g w) x + (g (b - mu) + beta)
    g = gamma / sqrt(var + eps), one number for each output channel

Jacob et al. 2018, arXiv:1712.05877, section 3.2; Nagel et al. 2019, arXiv:1906.04721, section 4.
Book: 3.1
"""

import copy
from typing import NamedTuple

import torch
from torch import nn

from qbook.models import weights
from qbook.ptq import neighbours


class Normal(NamedTuple):
    """What BatchNorm knows of a layer's output on the training data: mean [out], std [out]."""

    mean: torch.Tensor
    std: torch.Tensor


def fold(model, names=None):
    """-> a copy whose BatchNorm layers are Identity, their arithmetic held by the layers in front.

    names:  list of (layer, norm); None: ``neighbours.norms(model)``
    A folded layer has a bias.  Raises ValueError for a norm in training mode or without running
    statistics, and for a name that is not a layer or a norm of as many channels.
    """
    folded = copy.deepcopy(model)
    for layer_name, norm_name in neighbours.norms(model) if names is None else names:
        layer, norm = _pair(folded, layer_name, norm_name)
        layer.weight, layer.bias = fold_pair(layer, norm)
        folded.set_submodule(norm_name, nn.Identity())
    return folded


def fold_pair(layer, norm):
    """One layer and the norm behind it -> (weight, bias [out]) of the layer that is both.

    Computed in float64, returned in the layer's type.  Raises ValueError as ``fold`` does.
    """
    gamma, beta, mean, var = (v.double() for v in _parameters(norm))
    gain = gamma / torch.sqrt(var + norm.eps)
    w = layer.weight.detach()
    bias = 0 if layer.bias is None else layer.bias.detach().double()
    w_folded = w.double() * gain.reshape(-1, *[1] * (w.ndim - 1))
    return nn.Parameter(w_folded.to(w)), nn.Parameter((gain * (bias - mean) + beta).to(w))


def statistics(model, names=None):
    """-> dict: layer -> ``Normal`` of its output once folded: mean beta, std |gamma|.

    On the training data the normalised output has mean 0 and variance 1 in each channel; that it is
    normal is an assumption.  names and errors as for ``fold``.
    """
    found = {}
    for layer_name, norm_name in neighbours.norms(model) if names is None else names:
        gamma, beta, _, _ = _parameters(_pair(model, layer_name, norm_name)[1])
        found[layer_name] = Normal(beta.clone(), gamma.abs())
    return found


def _pair(model, layer_name, norm_name):
    modules = dict(model.named_modules())
    for name, kinds in ((layer_name, weights.LAYERS), (norm_name, neighbours.NORMS)):
        if not isinstance(modules.get(name), kinds):
            kind = type(modules[name]).__name__ if name in modules else "nothing"
            wanted = ", ".join(k.__name__ for k in kinds)
            raise ValueError(f"{name!r} names {kind} in this model; needed: one of {wanted}")
    layer, norm = modules[layer_name], modules[norm_name]
    if len(layer.weight) != norm.num_features:
        raise ValueError(
            f"{layer_name} has {len(layer.weight)} outputs, {norm_name} {norm.num_features} "
            "channels; fold a norm into the layer whose output it normalises"
        )
    return layer, norm


def _parameters(norm):
    """-> gamma, beta, running mean, running variance, each [channels]"""
    if norm.running_mean is None:
        raise ValueError(
            "the BatchNorm keeps no running statistics (track_running_stats=False): it normalises "
            "each batch by itself, which no fixed weight can do"
        )
    if norm.training:
        raise ValueError("the BatchNorm is in training mode; call model.eval() before folding")
    mean, var = norm.running_mean, norm.running_var
    gamma = torch.ones_like(mean) if norm.weight is None else norm.weight.detach()
    beta = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach()
    return gamma, beta, mean, var
