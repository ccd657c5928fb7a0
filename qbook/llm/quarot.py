"""QuaRot: rotate what flows between the layers, so that no channel is larger than the others.

A norm without gain commutes with a rotation, norm(x q) = norm(x) q, so the residual stream can be
rotated once and for all: what writes to it is multiplied by q, what reads from it by q^T.  Three
steps, each leaving the function as it is:

    center   the mean leaves the stream, and LayerNorm becomes RMSNorm
    fuse     gains and biases of the norms move into the layers that read them
    rotate   q moves into the weights on both sides

Ashkboos et al. 2024, arXiv:2404.00456, section 4; centring is Ashkboos et al. 2024,
arXiv:2401.15024 (SliceGPT), section 3.  Book: 5.9
"""

from typing import NamedTuple

import torch
from torch import nn

from qbook.llm import hadamard
from qbook.models.weights import replace


class Stream(NamedTuple):
    """The residual stream of a pre-norm transformer, by names of its modules.

    embeddings: nn.Embeddings that are summed into it
    writers:    Linears whose outputs are added to it
    readers:    dict, name of a norm -> names of the Linears that read this norm
    """

    embeddings: tuple
    writers: tuple
    readers: dict


def char_gpt_stream(blocks=4):
    """-> the ``Stream`` of ``qbook.models.char_gpt``"""
    readers, writers = {}, []
    for i in range(blocks):
        attention = f"blocks.{i}.attention"
        readers[f"{attention}_norm"] = tuple(f"{attention}.{n}" for n in ("query", "key", "value"))
        readers[f"blocks.{i}.mlp_norm"] = (f"blocks.{i}.up",)
        writers += [f"{attention}.output", f"blocks.{i}.down"]
    return Stream(("embedding", "position"), tuple(writers), readers | {"norm": ("head",)})


@torch.no_grad()
def center(model, stream):
    """-> a copy of the same function whose stream has mean zero at every token.

    For models with LayerNorm, which subtracts the mean anyway.  Raises ValueError where a norm of
    the stream is none.
    """
    centred = replace(model, {})
    for name in stream.readers:
        norm = centred.get_submodule(name)
        if not isinstance(norm, nn.LayerNorm):
            raise ValueError(f"{name} is a {type(norm).__name__}; only LayerNorm ignores the mean")
    for name in stream.embeddings:
        weight = centred.get_submodule(name).weight
        weight -= weight.mean(dim=1, keepdim=True)
    for name in stream.writers:
        layer = centred.get_submodule(name)
        layer.weight -= layer.weight.mean(dim=0, keepdim=True)
        if layer.bias is not None:
            layer.bias -= layer.bias.mean()
    return centred


@torch.no_grad()
def fuse(model, stream):
    """-> a copy with RMSNorms without gain; gains and biases of the norms are in their readers.

    A LayerNorm's mean is no longer subtracted: ``center`` first.
    """
    fused = replace(model, {})
    for name, readers in stream.readers.items():
        norm = fused.get_submodule(name)
        gain, bias = norm.weight, getattr(norm, "bias", None)
        for reader in readers:
            layer = fused.get_submodule(reader)
            if bias is not None:
                shift = layer.weight @ bias
                layer.bias = nn.Parameter(shift if layer.bias is None else layer.bias + shift)
            layer.weight *= gain
        fused.set_submodule(name, nn.RMSNorm(len(gain), eps=_eps(norm), elementwise_affine=False))
    return fused


@torch.no_grad()
def rotate(model, stream, q):
    """-> a copy of the same function whose stream is multiplied by q [width, width], orthogonal.

    Raises ValueError as ``rotated_tensors``, and for a q that is not orthogonal to 1e-6.
    """
    _check_orthogonal(q)
    rotated = replace(model, {})
    state = rotated_tensors(model, stream, q)
    rotated.load_state_dict({name: t.contiguous() for name, t in state.items()}, strict=False)
    return rotated


def rotated_tensors(model, stream, q):
    """-> dict: name of a parameter that q moves -> its new value, differentiable by q

    Raises ValueError for a norm that still has a gain: ``fuse`` first.
    """
    for name in stream.readers:
        if getattr(model.get_submodule(name), "weight", None) is not None:
            raise ValueError(f"{name} has a gain, which does not commute with a rotation; fuse it")
    moved = {}
    for name in (*stream.embeddings, *(r for readers in stream.readers.values() for r in readers)):
        weight = model.get_submodule(name).weight.detach()
        moved[f"{name}.weight"] = weight @ q.to(weight)
    for name in stream.writers:
        layer = model.get_submodule(name)
        moved |= {f"{name}.{key}": t for key, t in _rotated_outputs(layer, q).items()}
    return moved


@torch.no_grad()
def rotate_heads(model, value, output, q):
    """-> a copy of the same function: each head's values are multiplied by q [d, d], orthogonal.

    value, output: names of the Linears before and after attention, whose weighted averages let a
    rotation within a head pass.  Raises ValueError where d does not divide their widths.
    """
    _check_orthogonal(q)
    rotated = replace(model, {})
    first, second = rotated.get_submodule(value), rotated.get_submodule(output)
    width, d = first.weight.shape[0], len(q)
    if width % d or second.weight.shape[1] % d:
        raise ValueError(f"q of order {d} does not divide the {width} channels of {value}")
    q = q.to(first.weight)
    first.load_state_dict(_rotated_outputs(first, torch.block_diag(*[q] * (width // d))))
    own = torch.block_diag(*[q] * (second.weight.shape[1] // d))
    second.weight.copy_(second.weight @ own)
    return rotated


class RotatedLinear(nn.Module):
    """x [..., in] -> (x q) (W q)^T + bias: a Linear that transforms its own input at run time.

    For inputs whose writer cannot be rotated, such as those behind a GELU.  The Linear inside,
    ``linear``, holds the rotated weight; quantize that one.

    seed: of q = ``hadamard.matrix(in, seed=seed)``; None: no signs, as in the authors' code, so
          that the sum of x becomes one of the outputs, larger than the others where x has a mean
    Raises ValueError as ``hadamard.matrix``.
    """

    def __init__(self, linear, *, seed=None):
        super().__init__()
        signs = hadamard.signs(linear.weight.shape[1], seed).to(linear.weight.device)
        rotated = hadamard.transform(linear.weight.detach().double() * signs).to(linear.weight)
        self.linear = replace(nn.Sequential(linear), {"0": rotated})[0]
        self.register_buffer("signs", None if seed is None else signs.to(linear.weight))

    def forward(self, x):
        return self.linear(hadamard.transform(x if self.signs is None else x * self.signs))


def _rotated_outputs(layer, q):
    """A Linear whose outputs [..., out] are to be multiplied by q [out, out] -> its parameters"""
    q = q.to(layer.weight)
    moved = {"weight": q.T @ layer.weight.detach()}
    return moved if layer.bias is None else moved | {"bias": layer.bias.detach() @ q}


def _check_orthogonal(q):
    excess = float((q @ q.T - torch.eye(len(q)).to(q)).abs().max())
    if not excess <= 1e-6:
        raise ValueError(f"q q^T differs from the identity by {excess:.1e}; pass an orthogonal q")


def _eps(norm):
    return norm.eps if norm.eps is not None else torch.finfo(norm.weight.dtype).eps
