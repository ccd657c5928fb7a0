"""Which layer feeds which: the pairs that folding and equalization work on, read off the graph.

Reed et al. 2022, arXiv:2112.08429 (torch.fx), traces a model with symbols for its inputs.
Book: 3.1
"""

from collections import Counter

import torch
from torch import fx, nn
from torch.nn import functional as F

from qbook.models import weights

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
RELUS = (nn.ReLU, F.relu, torch.relu, "relu")
# What lets a factor of a channel pass, and its mean: it averages or moves values of one channel.
PASSES = (nn.Identity, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, "flatten", torch.flatten)


def norms(model):
    """-> list of (layer, norm), the names of each BatchNorm and of the layer it alone follows.

    The model is traced symbolically.  Left out: a layer whose output is used elsewhere as well, and
    a layer or norm that is called twice.  Raises ValueError where the model cannot be traced.
    """
    once, found = _called_once(model), []
    for node, module in once.items():
        before = _input(node)
        layer = once.get(before)
        if isinstance(module, NORMS) and isinstance(layer, weights.LAYERS) and _private(before):
            found.append((before.target, node.target))
    return found


def chains(model, *, shared=False):
    """-> list of (first, second), names of layers with nothing but a ReLU and averages between.

    shared: also where the first layer's output or its ReLU feeds something else (a skip
            connection): no factor may move there, but the mean that arrives is known
    Fold first: a BatchNorm in between ends the chain.  Raises ValueError as ``norms``.
    """
    once, found = _called_once(model), []
    for node, second in once.items():
        if isinstance(second, weights.LAYERS):
            source = _source(model, _input(node), shared)
            first = once.get(source)
            if first is not None and len(first.weight) == _width(second):
                found.append((source.target, node.target))
    return found


def _called_once(model):
    """-> dict: fx node -> module, for the modules the model calls once, in order.

    Raises ValueError where ``torch.fx`` cannot trace the model, as with branches on values.
    """
    try:
        nodes = list(fx.symbolic_trace(model).graph.nodes)
    except Exception as error:
        raise ValueError(
            f"{type(model).__name__} cannot be traced ({error}); pass the names of the layers"
        ) from error
    nodes = [node for node in nodes if node.op == "call_module"]
    count = Counter(node.target for node in nodes)
    return {n: model.get_submodule(n.target) for n in nodes if count[n.target] == 1}


def _source(model, node, shared):
    """The call of the layer whose ReLU this fx node carries; None if anything else is between."""
    rectified = False
    while node is not None and (shared or _private(node)):
        module = model.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, weights.LAYERS):
            return node if rectified else None
        kind = node.target if module is None else type(module)
        if kind in RELUS:
            rectified = True
        elif not (kind in PASSES or _is_spatial_mean(node)):
            return None
        node = _input(node)
    return None


def _input(node):
    """The one fx node this node computes from; None where there are none or several."""
    return node.all_input_nodes[0] if len(node.all_input_nodes) == 1 else None


def _private(node):
    return len(node.users) == 1


def _is_spatial_mean(node):
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    return node.target in ("mean", torch.mean) and dims in ((2, 3), [2, 3], (-2, -1), [-2, -1])


def _width(layer):
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
