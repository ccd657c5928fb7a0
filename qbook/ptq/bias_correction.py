"""Bias correction: rounded weights are wrong by e, the mean output by e E[x]; the bias repays it.

Nagel et al. 2019, arXiv:1906.04721, section 4.2 and appendices B, C (without data) and D (with).
Book: 3.1
"""

import copy
import math

import torch
from torch import nn

from qbook.models import weights
from qbook.ptq import dfq, neighbours, simulate


def clipped_mean(mean, std, low=0.0, high=math.inf):
    """E[clamp(y, low, high)] of a normal y, elementwise; ReLU by default, high=6 is ReLU6.

    mean, std: torch tensors, std >= 0.  Appendix C.  Raises ValueError where low > high.
    """
    if not low <= high:
        raise ValueError(f"low={low} is above high={high}; nothing can be clamped to that")
    # A constant is its own mean: where std is 0 the formula's limit is taken.
    spread = torch.where(std > 0, std, 1)
    a, b = (low - mean) / spread, (high - mean) / spread
    value = mean * (_cdf(b) - _cdf(a)) + spread * (_density(a) - _density(b))
    if math.isfinite(low):
        value = value + low * _cdf(a)
    if math.isfinite(high):
        value = value + high * _cdf(-b)
    return torch.where(std > 0, value, mean.clamp(low, high))


def expected_inputs(model, statistics):
    """-> dict: layer -> E[x] [in], where its input is the ReLU of a layer with statistics.

    statistics: dict: layer -> ``fold.Normal`` of its output.  A skip connection's other end counts.
    """
    chains = neighbours.chains(model, shared=True)
    return {b: clipped_mean(*statistics[a]) for a, b in chains if a in statistics}


def measured_inputs(model, run):
    """-> dict: layer -> E[x] [in], the mean over the inputs and positions that ``run(model)`` sees.

    Linear layers take channels last, convolutions second.
    """
    linear = {n for n, layer in weights.layers(model) if isinstance(layer, nn.Linear)}
    means = {}
    for name, batches in simulate.record(model, run).items():
        rows = [x.flatten(0, -2) if name in linear else x.transpose(0, 1).flatten(1).T
                for x in batches]  # fmt: skip
        means[name] = torch.cat(rows).mean(0)
    return means


def correct(model, quantized, means):
    """-> a copy of ``quantized`` with bias - (w_hat - w) E[x] in each layer that has a mean.

    model:  what was quantized: the same layers, their weights before
    means:  dict: layer -> E[x] [in], from ``expected_inputs`` or ``measured_inputs``
    Exact for the mean output of a layer whose inputs have these means, where no padding is read.
    Raises ValueError for a name that is no layer, and where the models differ in layers.
    """
    corrected = copy.deepcopy(quantized)
    before, after = (dict(weights.layers(m)) for m in (model, corrected))
    if list(before) != list(after):
        raise ValueError("the two models have different layers; pass one and its quantized copy")
    for name, mean in means.items():
        if name not in after:
            raise ValueError(f"no layer is called {name!r}; this model has {', '.join(after)}")
        layer = after[name]
        shift = dfq.through(layer, layer.weight - before[name].weight, mean)
        _subtract(layer, shift)
    return corrected


def match_outputs(model, quantized, run):
    """-> a copy of ``quantized``: its layers' mean outputs are those of ``model``.

    run: called with either model, feeds it the calibration inputs.
    Layers are corrected from the front, so each answers for the errors before it too.
    Appendix D.
    """
    corrected = copy.deepcopy(quantized)
    wanted = _output_means(model, run)
    layers = dict(weights.layers(corrected))
    # In the order of the calls: a later layer never changes an earlier one.
    for name, mean in wanted.items():
        _subtract(layers[name], _output_means(corrected, run)[name] - mean)
    return corrected


def _output_means(model, run):
    """-> dict: layer -> mean output [out], in the order of the calls"""
    seen = {}

    def keep(name, layer):
        axis = -1 if isinstance(layer, nn.Linear) else 1

        def hook(_, __, y):
            y = y.movedim(axis, 0).flatten(1)
            seen.setdefault(name, []).append((y.sum(1, dtype=torch.float64), y.shape[1]))

        return hook

    handles = [m.register_forward_hook(keep(n, m)) for n, m in weights.layers(model)]
    try:
        with torch.no_grad():
            run(model)
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: sum(total for total, _ in parts) / sum(count for _, count in parts)
        for name, parts in seen.items()
    }


def _subtract(layer, shift):
    bias = 0 if layer.bias is None else layer.bias.detach()
    layer.bias = nn.Parameter((bias - shift).to(layer.weight))


def _cdf(z):
    return torch.special.ndtr(z)


def _density(z):
    return torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
