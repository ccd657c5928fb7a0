"""Which layers of a model can be quantized, and which modules are refused.  Book: 4.5"""

from torch import nn
from torch.nn.utils import parametrize

from qbook.models import weights

# Modules with weights that are multiplied and that nothing here can round.
UNSUPPORTED = (
    nn.modules.conv._ConvTransposeNd,
    nn.Conv3d,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    nn.Bilinear,
)


def layers(model, skip=()):
    """-> names of the Linear and convolution layers outside ``skip``, in the model's order.

    skip: names of layers, or of modules above them.  Raises ValueError for names that the model
    does not have, for modules that cannot be quantized and are not skipped, and where none is left.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is a {type(model).__name__}; pass a torch.nn.Module")
    skip = (skip,) if isinstance(skip, str) else tuple(skip)
    every = [name for name, _ in model.named_modules()]
    for name in skip:
        if name not in every:
            raise ValueError(f"skip={name!r} names no module; the model has {', '.join(every[1:])}")

    def skipped(name):
        return any(name == s or name.startswith(f"{s}.") for s in skip)

    for name, module in model.named_modules():
        if isinstance(module, UNSUPPORTED) and not skipped(name):
            raise ValueError(
                f"{name or 'the model'} is a {type(module).__name__}, which is not supported; "
                f"skip={[name]} leaves it real"
            )
    names = [name for name, _ in weights.layers(model) if not skipped(name)]
    if names == [""]:
        raise ValueError("the model is a single layer; wrap it in torch.nn.Sequential")
    if not names:
        raise ValueError("the model has no Linear, Conv1d or Conv2d layer that is not skipped")
    for name in names:
        if parametrize.is_parametrized(model.get_submodule(name)):
            raise ValueError(
                f"{name} computes its weight by a parametrization; "
                "torch.nn.utils.parametrize.remove_parametrizations first"
            )
    return names
