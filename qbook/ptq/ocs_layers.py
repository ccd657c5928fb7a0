"""Split layers: linear and convolution layers with more input channels and the same function.

What repeats or splits the channels is a module before the layer, or the layer before.  Zhao et al.
2019, arXiv:1901.09504; the idea of widening without changing the function: Chen et al. 2016,
arXiv:1511.05641 (Net2Net).  Book: 3.1
"""

import copy

from torch import nn

from qbook.models import weights
from qbook.ptq.ocs import source, split


class SplitWeights(nn.Module):
    """A linear or convolution layer with split weights; its forward pass repeats input channels."""

    def __init__(self, layer, pieces, scale=None):
        super().__init__()
        self.layer = _with_weight(layer, split(layer.weight, pieces, scale))
        self.axis = _input_axis(layer)
        self.register_buffer("source", source(pieces, layer.weight.shape[1]))

    def forward(self, x):
        """x [..., in] (convolution: [n, in, h, w]) -> layer(x with its channels repeated)"""
        return self.layer(x.index_select(self.axis, self.source))


class SplitInputs(nn.Module):
    """A linear or convolution layer with repeated weights; its forward pass splits the input."""

    def __init__(self, layer, pieces, scale=None):
        super().__init__()
        repeated = layer.weight.detach()[:, source(pieces, layer.weight.shape[1])]
        self.layer = _with_weight(layer, repeated)
        self.axis = _input_axis(layer)
        self.pieces, self.scale = list(pieces), scale

    def forward(self, x):
        """x [..., in] (convolution: [n, in, h, w]) -> layer(x with its channels split)"""
        return self.layer(split(x, self.pieces, self.scale, axis=self.axis))


def fold(previous, layer, pieces, scale=None):
    """The repetition of a linear layer's inputs, moved into the linear layer before it.

    -> (previous with repeated outputs, layer with split weights), two copies.  Between the two only
    what acts on each number alone may stand, such as a ReLU.  Raises ValueError for other layers.
    """
    if not isinstance(previous, nn.Linear) or not isinstance(layer, nn.Linear):
        names = f"{type(previous).__name__} and {type(layer).__name__}"
        raise ValueError(f"{names} cannot be folded; pass two nn.Linear, or use SplitWeights")
    repeat = source(pieces, layer.in_features)
    before = _with_weight(previous, previous.weight.detach()[repeat])
    if previous.bias is not None:
        before.bias = nn.Parameter(previous.bias.detach()[repeat])
    return before, _with_weight(layer, split(layer.weight, pieces, scale))


def apply(model, modules):
    """-> a copy of the model in which these modules, dict of name -> module, stand; it stays.

    Raises ValueError for a name that is no linear or convolution layer of the model.
    """
    copied = copy.deepcopy(model)
    known = dict(weights.layers(copied))
    for name, module in modules.items():
        if name not in known:
            raise ValueError(f"no layer is called {name!r}; this model has {', '.join(known)}")
        parent, _, last = name.rpartition(".")
        copied.get_submodule(parent)._modules[last] = module
    return copied


def _with_weight(layer, weight):
    """A copy of the layer with this weight and the widths that go with it."""
    if getattr(layer, "groups", 1) != 1:
        raise ValueError(f"groups={layer.groups}: a split channel would need a group of its own")
    changed = copy.deepcopy(layer)
    changed.weight = nn.Parameter(weight.clone())
    names = ("out_features", "in_features")
    if not isinstance(layer, nn.Linear):
        names = ("out_channels", "in_channels")
    for name, size in zip(names, weight.shape, strict=False):
        setattr(changed, name, size)
    return changed


def _input_axis(layer):
    return -1 if isinstance(layer, nn.Linear) else 1
