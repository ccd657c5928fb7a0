"""What all packed layers share: shapes, checks, and the way through torch.compile.

A layer keeps its packed weight in buffers, so that ``state_dict`` is what is stored.  In eager mode
it calls the kernel directly; under ``torch.compile`` it calls an operator of ``torch.library``,
which the compiler takes as it is.  Inference only: no gradient leaves the kernels.  Book: 6.2
"""

import torch
from torch import nn


class PackedLinear(nn.Module):
    """x [..., in] float32 -> [..., out] float32.  Subclasses give ``packed_bits`` and ``compute``.

    operator:  the layer's function of ``torch.library``
    tensors:   the buffers that it takes behind x, in its order
    """

    operator = None
    # What the packed bytes mean, integers; a state of another layout is refused.
    layout = ()

    def __init__(self, linear):
        super().__init__()
        if not isinstance(linear, nn.Linear):
            raise ValueError(f"linear is a {type(linear).__name__}; pass a torch.nn.Linear")
        if linear.weight.dtype != torch.float32 or linear.weight.device.type != "cpu":
            raise ValueError(
                f"the weight is {linear.weight.dtype} on {linear.weight.device}; "
                "pass a float32 layer on the CPU"
            )
        self.in_features, self.out_features = linear.in_features, linear.out_features
        bias = None if linear.bias is None else linear.bias.detach().clone()
        self.register_buffer("bias", bias)

    def check_codes(self, codes):
        """Raises ValueError unless codes are of the layer's shape [out, in]."""
        if tuple(codes.shape) != (self.out_features, self.in_features):
            raise ValueError(
                f"codes of shape {tuple(codes.shape)} are not of the layer's "
                f"{(self.out_features, self.in_features)}"
            )

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

    @classmethod
    def compute(cls, x, *tensors):
        """x [samples, in], buffers -> [samples, out]: NumPy behind views of tensors"""
        raise NotImplementedError

    @property
    def tensors(self):
        raise NotImplementedError

    def forward(self, x):
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError(f"{type(self).__name__} has no gradient; call it in torch.no_grad()")
        if x.dtype != torch.float32 or x.device.type != "cpu" or x.shape[-1] != self.in_features:
            raise ValueError(
                f"x is {x.dtype} of shape {tuple(x.shape)} on {x.device}; "
                f"pass float32 [..., {self.in_features}] on the CPU"
            )
        rows = x.detach().reshape(-1, self.in_features)
        run = type(self).operator if torch.compiler.is_compiling() else self.compute
        return run(rows, *self.tensors).reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self):
        bits = 8 * sum(b.numel() * b.element_size() for n, b in self.named_buffers() if n != "bias")
        bits /= max(self.in_features * self.out_features, 1)
        return f"in={self.in_features}, out={self.out_features}, {bits:.2f} bits a weight"


def array(tensor):
    """-> the same memory as a NumPy array, or None"""
    return None if tensor is None else tensor.detach().numpy()
