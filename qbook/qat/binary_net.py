"""BinaryNet: signs for the activations too, so that a layer is xnor, popcount and a comparison.

Training:   sign(x), with the gradient 1 where |x| <= 1, else 0
Inference:  sign(BatchNorm(a . b)) compares the number of disagreements of a and b with an integer

Courbariaux et al. 2016, arXiv:1602.02830, sections 1.3 to 1.5; the threshold: Umuroglu et al. 2017
(FINN), arXiv:1612.07119.  Book: 3.2
"""

from dataclasses import dataclass

import torch

from qbook import bitwise, packing
from qbook.qat import binary_connect


class _ClippedSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return binary_connect.signs(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= 1)


def binarize(x):
    """torch x [...] -> +1 where x >= 0, else -1; gradient 1 where |x| <= 1, else 0."""
    return _ClippedSign.apply(x)


def thresholds(norm):
    """BatchNorm -> (turned [out] bool, bound [out] float64): for a sum y that enters it,

    sign(norm(y)) = +1 exactly where y >= bound, or -y >= bound where turned (gamma < 0).
    norm: torch.nn.BatchNorm1d or 2d with running statistics.
    A gamma of 0 leaves sign(beta): the bound is -inf for always, inf for never.
    """
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    gamma = torch.ones_like(mean) if norm.weight is None else norm.weight.detach().double()
    beta = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach().double()
    zero = mean - beta * torch.sqrt(variance + norm.eps) / gamma
    turned = gamma < 0
    bound = torch.where(turned, -zero, zero)
    constant = torch.where(beta >= 0, -torch.inf, torch.inf).double()
    return turned, torch.where(gamma == 0, constant, bound)


@dataclass(frozen=True)
class BinaryLayer:
    """Signs in, signs out.

    weight: [out, ceil(count / 8)] uint8, packed signs of a row, complemented where gamma < 0
    most:   [out] int64: the output is +1 if at most so many of the inputs disagree with the row
    count:  inputs
    """

    weight: torch.Tensor
    most: torch.Tensor
    count: int


@dataclass(frozen=True)
class FirstLayer:
    """Unsigned codes in, signs out: the input of a network is no sign.

    weight: [out, ceil(count / 8)] uint8, as in BinaryLayer
    least:  [out] int64: the output is +1 if the sum over the row is at least this
    count, bits: inputs, and the width of their codes
    """

    weight: torch.Tensor
    least: torch.Tensor
    count: int
    bits: int


def fold(w, norm):
    """Real w [out, in], of which the signs count, and the BatchNorm behind it -> ``BinaryLayer``.

    d disagreements make a sum of in - 2 d, which reaches a bound t when d <= floor((in - t) / 2).
    Raises ValueError for a norm of another number of features.
    """
    weight, bound = _turn(w, norm)
    count = w.shape[1]
    # From never, -1, to always, count: where infinite bounds end.
    most = torch.floor((count - bound) / 2).clamp(-1, count)
    return BinaryLayer(weight, most.to(torch.int64), count)


def fold_first(w, norm, bits):
    """As ``fold``, for a layer whose inputs are unsigned codes of these bits -> ``FirstLayer``."""
    weight, bound = _turn(w, norm)
    largest = w.shape[1] * (2**bits - 1)
    least = torch.ceil(bound).clamp(-largest, largest + 1)
    return FirstLayer(weight, least.to(torch.int64), w.shape[1], bits)


def forward(layer, packed):
    """packed signs [samples, ceil(count / 8)] -> packed signs [samples, ceil(out / 8)]."""
    disagreements = bitwise.popcount(packed[:, None] ^ layer.weight)
    return bitwise.pack_signs(torch.where(disagreements <= layer.most, 1, -1))


def forward_first(layer, codes):
    """Unsigned codes [samples, count] -> packed signs [samples, ceil(out / 8)] uint8.

    Bit planes: x . w = 2 x . u - sum(x) for u = 1 where w is +1, else 0.
    """
    ones = packing.unpack(layer.weight, 1, layer.count)
    positive = bitwise.dot_planes(codes[:, None], ones[None], layer.bits, 1)
    sums = 2 * positive - codes.sum(dim=1, keepdim=True)
    return bitwise.pack_signs(torch.where(sums >= layer.least, 1, -1))


def _turn(w, norm):
    """-> packed signs of w, rows complemented where gamma < 0; the bound on their sums."""
    turned, bound = thresholds(norm)
    if w.shape[0] != len(bound):
        raise ValueError(f"w has {w.shape[0]} rows, norm {len(bound)} features; fold them in pairs")
    signs = binary_connect.signs(w.detach())
    return bitwise.pack_signs(torch.where(turned[:, None], -signs, signs)), bound
