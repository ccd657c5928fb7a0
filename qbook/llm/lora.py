"""LoRA on a frozen base of four bits: two thin matrices learn, the base is decoded when needed.

    y = x W_hat^T + bias + alpha / rank * (x A^T) B^T           A [rank, in], B [out, rank]

B starts at zero, so that the model starts as it was.  W_hat is a constant: its gradient is never
asked for, and that of x, dy W_hat, is exact; no straight-through estimator is involved.
Hu et al. 2021, arXiv:2106.09685, section 4.1; Dettmers et al. 2023, arXiv:2305.14314, eq. 5.
Book: 5, NF4 and QLoRA
"""

import copy
import math

import torch
from torch import nn
from torch.nn import functional as F

from qbook.llm import nf4


class NF4Linear(nn.Module):
    """x [..., in] -> x W_hat^T + bias, with W stored in NF4 and frozen.

    linear: nn.Linear, read once.  double: as in ``nf4.pack``.  The state_dict holds the bytes.
    """

    def __init__(self, linear, *, double=True):
        super().__init__()
        packed = nf4.pack(linear.weight.detach(), double=double)
        self.out_features, self.in_features = packed.shape
        self.register_buffer("codes", packed.codes)
        absmax = packed.absmax
        self.double = double
        self.register_buffer("absmax", absmax.codes if double else absmax)
        self.register_buffer("scale", absmax.scale if double else None)
        self.register_buffer("mean", absmax.mean if double else None)
        bias = linear.bias
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def dequantize(self):
        """-> w_hat [out, in] float32"""
        absmax = nf4.Absmax(self.absmax, self.scale, self.mean) if self.double else self.absmax
        return nf4.unpack(nf4.Packed(self.codes, absmax, (self.out_features, self.in_features)))

    def forward(self, x):
        y = _FrozenProduct.apply(x, self)
        return y if self.bias is None else y + self.bias


class _FrozenProduct(torch.autograd.Function):
    """x W_hat^T: W_hat is decoded in forward and again in backward, and kept by neither."""

    @staticmethod
    def forward(ctx, x, base):
        ctx.base = base
        return x @ base.dequantize().to(x.dtype).T

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.base.dequantize().to(grad.dtype), None


class LoRALinear(nn.Module):
    """x [..., in] -> base(x) + alpha / rank * (x A^T) B^T; A [rank, in] and B [out, rank] train.

    base: nn.Linear or ``NF4Linear``, frozen here; A is drawn as an nn.Linear's weight from
    torch's generator, B is 0.  Raises ValueError for a rank below 1 or above both sides.
    """

    def __init__(self, base, rank, alpha):
        super().__init__()
        out, in_ = base.out_features, base.in_features
        if not 1 <= rank <= min(out, in_):
            raise ValueError(f"rank={rank} does not fit {out} x {in_}; choose 1 to {min(out, in_)}")
        self.base = base.requires_grad_(False)
        self.factor = alpha / rank
        self.a, self.b = nn.Parameter(torch.empty(rank, in_)), nn.Parameter(torch.zeros(out, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x):
        return self.base(x) + self.factor * F.linear(F.linear(x, self.a), self.b)

    def merged(self):
        """-> nn.Linear with the weight W_hat + alpha / rank * B A, in float32"""
        base = self.base
        w = base.dequantize() if isinstance(base, NF4Linear) else base.weight.detach()
        linear = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None)
        with torch.no_grad():
            linear.weight.copy_(w + self.factor * self.b @ self.a)
            if base.bias is not None:
                linear.bias.copy_(base.bias)
        return linear


def attach(model, rank, *, alpha=16, names=None, make_base=NF4Linear):
    """-> a copy that trains adapters only: everything else is frozen.

    rank, alpha: of ``LoRALinear``
    names:       of the Linears that get adapters; None: all.  The others stay as they are, frozen
    make_base:   function nn.Linear -> frozen base; None: the Linear itself, in its own type
    Raises ValueError for a name that is no Linear of the model, and as ``LoRALinear``.
    """
    attached = copy.deepcopy(model).requires_grad_(False)
    found = {name: m for name, m in attached.named_modules() if isinstance(m, nn.Linear)}
    for name in found if names is None else names:
        if name not in found:
            raise ValueError(f"no Linear is called {name!r}; this model has {', '.join(found)}")
        base = found[name] if make_base is None else make_base(found[name])
        attached.set_submodule(name, LoRALinear(base, rank, alpha))
    return attached


def merge(model):
    """-> a copy without adapters: each ``LoRALinear`` becomes the nn.Linear it computes.

    Its weights are real numbers again: quantizing them anew may round away what was learnt.
    """
    merged = copy.deepcopy(model)
    layers = [(name, m) for name, m in merged.named_modules() if isinstance(m, LoRALinear)]
    for name, layer in layers:
        merged.set_submodule(name, layer.merged())
    return merged
