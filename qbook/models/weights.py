"""Weights as matrices: what a quantizer wants, out of any model and back into a copy of it.

A convolution is a matrix product over unfolded patches: Chellapilla et al. 2006,
inria-00112631.  Book: used throughout.
"""

import copy

from torch import nn

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


def weights(model):
    """-> dict: name of the layer -> its weight [out, in], a convolution's [out, in * k * k].

    Linear and convolution layers, in the model's order.  The tensors are detached copies.
    """
    return {name: layer.weight.detach().flatten(1).clone() for name, layer in layers(model)}


def replace(model, matrices):
    """-> a copy of the model whose named layers have these weights; the model stays as it is.

    matrices: dict, name -> tensor [out, in] as ``weights`` returns them; other layers keep theirs.
    Raises ValueError for a name the model does not have, and for a matrix of another shape.
    """
    replaced = copy.deepcopy(model)
    found = dict(layers(replaced))
    for name, matrix in matrices.items():
        if name not in found:
            raise ValueError(f"no layer is called {name!r}; this model has {', '.join(found)}")
        weight = found[name].weight
        if matrix.shape != weight.flatten(1).shape:
            raise ValueError(
                f"the matrix for {name} has shape {tuple(matrix.shape)}; "
                f"the layer's is {tuple(weight.flatten(1).shape)}"
            )
        weight.data = matrix.detach().reshape(weight.shape).to(weight, copy=True)
    return replaced


def layers(model):
    """-> list of (name, module): the linear and convolution layers, in the model's order."""
    return [(n, m) for n, m in model.named_modules() if isinstance(m, LAYERS)]
