"""What all packed layers share: checks, and a state that says what its bytes mean.

A layer keeps its packed weight in buffers, so that ``state_dict`` is what is stored.  In eager mode
it calls the kernel directly; under ``torch.compile`` it calls an operator of ``torch.library``,
which the compiler takes as it is.  Inference only: no gradient leaves the kernels.  Book: 6.2
"""

import torch
from torch import nn


class PackedLayer(nn.Module):
    """A layer of one kind, ``replaces``, on a kernel; float32 in and out, on the CPU.

    operator:  the layer's function of ``torch.library``
    layout:    what the packed bytes mean, integers; a state of another layout is refused
    """

    replaces = nn.Linear
    operator = None
    layout = ()

    def __init__(self, layer):
        super().__init__()
        if not isinstance(layer, self.replaces):
            kind = self.replaces.__name__
            raise ValueError(f"layer is a {type(layer).__name__}; pass a torch.nn.{kind}")
        if layer.weight.dtype != torch.float32 or layer.weight.device.type != "cpu":
            raise ValueError(
                f"the weight is {layer.weight.dtype} on {layer.weight.device}; "
                "pass a float32 layer on the CPU"
            )
        bias = None if layer.bias is None else layer.bias.detach().clone()
        self.register_buffer("bias", bias)

    def check_input(self, x, wanted, fits):
        """RuntimeError where a gradient is asked, ValueError unless x is float32 and fits."""
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError(f"{type(self).__name__} has no gradient; call it in torch.no_grad()")
        if x.dtype != torch.float32 or x.device.type != "cpu" or not fits:
            raise ValueError(
                f"x is {x.dtype} of shape {tuple(x.shape)} on {x.device}; "
                f"pass float32 {wanted} on the CPU"
            )

    @property
    def run(self):
        return type(self).operator if torch.compiler.is_compiling() else self.compute

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}layout"] = torch.tensor(self.layout, dtype=torch.int64)

    def _load_from_state_dict(self, state, prefix, metadata, strict, missing, unexpected, errors):
        layout = state.get(f"{prefix}layout")
        super()._load_from_state_dict(state, prefix, metadata, strict, missing, unexpected, errors)
        if layout is None:
            missing.append(f"{prefix}layout")
            return
        if f"{prefix}layout" in unexpected:
            unexpected.remove(f"{prefix}layout")
        if layout.tolist() != list(self.layout):
            errors.append(
                f"{prefix or 'the layer'} is packed as {layout.tolist()}, not as "
                f"{list(self.layout)}; build it with the options that it was saved with"
            )


def array(tensor):
    """-> the same memory as a NumPy array, or None"""
    return None if tensor is None else tensor.detach().numpy()
