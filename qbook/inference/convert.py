"""Replace the layers of any model by packed ones.  Book: 6.2"""

import copy

import torch
from torch import nn

from qbook import affine
from qbook.inference.int8_conv2d import Int8Conv2d
from qbook.inference.int8_linear import Int8Linear
from qbook.pipeline import supported
from qbook.ptq import simulate


def convert(model, layer, *, skip=(), **options):
    """model, a packed class such as ``Int8Linear`` -> a copy with its Linear layers replaced

    skip:     names of layers, or of modules above them, that stay as they are
    options:  of the class, such as group_size
    Convolutions stay as they are.  The model is left alone.
    Raises ValueError for a name in skip that the model does not have, where no Linear is left, and
    what the class raises, with the name of the layer.
    """
    names = [
        name
        for name in supported.layers(model, skip)
        if isinstance(model.get_submodule(name), nn.Linear)
    ]
    if not names:
        raise ValueError("the model has no Linear layer that is not skipped")
    converted = copy.deepcopy(model).eval()
    for name in names:
        try:
            packed = layer(model.get_submodule(name), **options)
        except ValueError as error:
            raise ValueError(f"{name}: {error}; skip={[name]} leaves it as it is") from error
        converted.set_submodule(name, packed)
    return converted


def convert_convolutions(model, run, *, skip=()):
    """-> a copy with INT8 convolutions and Linear layers, for inputs like those that ``run`` shows

    run:   called with the model, calls it on samples; each convolution keeps the range it saw
    skip:  as in ``convert``
    Raises ValueError as ``convert``, for a convolution of one dimension, and for one that ``run``
    did not reach.
    """
    seen = simulate.record(model, run)
    converted = copy.deepcopy(model).eval()
    for name in supported.layers(model, skip):
        layer = model.get_submodule(name)
        if isinstance(layer, nn.Linear):
            converted.set_submodule(name, Int8Linear(layer))
            continue
        if name not in seen:
            raise ValueError(f"{name} was not reached by run; skip={[name]} leaves it as it is")
        inputs = torch.cat([x.flatten() for x in seen[name]])
        x_qparams = affine.choose_qparams(inputs, 8, symmetric=False)
        try:
            converted.set_submodule(name, Int8Conv2d(layer, x_qparams))
        except ValueError as error:
            raise ValueError(f"{name}: {error}; skip={[name]} leaves it as it is") from error
    return converted


def nbytes(model):
    """Bytes of everything that the model stores; a tensor that two layers share counts once."""
    state = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())
