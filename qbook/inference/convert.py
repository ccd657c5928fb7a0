"""Replace the Linear layers of any model by packed ones.  Book: 6.2"""

import copy

from torch import nn

from qbook.pipeline import supported


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


def nbytes(model):
    """Bytes of everything that the model stores; a tensor that two layers share counts once."""
    state = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())
