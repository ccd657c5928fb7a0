"""BitNet: a Transformer trained from scratch whose Linear layers multiply by -1, 0 and 1 only.

    w codes = clip(round(w / gamma), -1, 1),  gamma = mean |w|        b1.58, 3 values
    w codes = sign(w - mean w),               beta = mean |w|         BitNet, 2 values
    x codes = round(127 x / max |x|), a scale for each token, behind a norm without gain
    y       = gamma * x scale * (x codes . w codes) + bias

Ma et al. 2024, arXiv:2402.17764, section 2; Wang et al. 2023, arXiv:2310.11453, section 2.1, whose
scale for x is one a tensor in training.  Book: 5.3
"""

import copy

import torch
from array_api_compat import array_namespace
from torch import nn
from torch.autograd.function import once_differentiable

from qbook import affine
from qbook.qat import twn

# Keeps the reciprocal finite; decides no code of a weight that was ever trained.
EPS = 1e-5
NORM_EPS = 1e-5


def absmean(w, *, eps=EPS):
    """w [...] -> gamma = mean |w|, at least eps, of shape [1, ...]: one scale for all of w.

    Summed in float64: a float32 sum depends on the number of threads, and with it every code's
    level, in training and in the file.
    """
    xp = array_namespace(w)
    gamma = xp.mean(xp.astype(xp.abs(w), xp.float64), keepdims=True, axis=None)
    return xp.astype(xp.maximum(gamma, xp.full_like(gamma, eps)), w.dtype)


def quantize(w, bits=1.58):
    """w [...] -> codes int8 [...], scale [1, ...].  NumPy or torch, floats.

    bits: 1.58: -1, 0, 1 by b1.58's RoundClip, zero where |w| <= gamma / 2 (a tie goes to the even
          code); 1: BitNet's sign of w - mean w, -1 where that is 0
    Raises ValueError for other bits, and for NaN or infinity in w.
    """
    check_bits(bits)
    scale = absmean(w)
    if bits == 1.58:
        return affine.quantize(w, twn.qparams(scale)), scale
    xp = array_namespace(w)
    if not bool(xp.all(xp.isfinite(scale))):
        raise ValueError("w holds NaN or infinity; look for a step that diverged")
    above = xp.astype(w > xp.mean(w), xp.int8)
    return 2 * above - 1, scale


def quantize_activations(x):
    """x [..., in] -> codes int8 [..., in] from -127 to 127, scale [..., 1] = max |x| / 127.

    Bit for bit ``qbook.kernels.rowwise.quantizer.quantize``; a token of zeros has scale 1.
    """
    qparams = affine.choose_qparams(x, 8, axis=-1)
    return affine.quantize(x, qparams), qparams.scale


class _Product(torch.autograd.Function):
    """Forward: integers, as floats, and two scales.  Backward: rounding has slope 1."""

    @staticmethod
    def forward(ctx, x, w, bits):
        x_codes, x_scale = quantize_activations(x)
        w_codes, w_scale = quantize(w.detach(), bits)
        x_codes, w_codes = x_codes.to(x.dtype), w_codes.to(x.dtype)
        ctx.save_for_backward(x_codes, x_scale, w_codes, w_scale)
        return (x_codes @ w_codes.T) * (x_scale * w_scale[0])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x_codes, x_scale, w_codes, w_scale = ctx.saved_tensors
        to_x = (grad @ w_codes) * w_scale[0]
        to_w = (grad * x_scale).flatten(0, -2).T @ x_codes.flatten(0, -2)
        return to_x, to_w, None


class BitLinear(nn.Linear):
    """x [..., in] -> product of 8-bit codes of norm(x) with 1 or 1.58-bit codes of the weight.

    bits: 1.58 behind RMSNorm, or 1 behind LayerNorm, as in their papers; neither has a gain
    norm: False leaves it out, to see what it does
    The weight is the real one that the optimizer moves; its codes are found anew at every call.
    The sums are exact: |sum| <= 127 in is below 2^24 up to in = 132104.
    """

    def __init__(self, in_features, out_features, bias=True, *, bits=1.58, norm=True, **factory):
        check_bits(bits)
        super().__init__(in_features, out_features, bias, **factory)
        self.bits = bits
        kind = nn.RMSNorm if bits == 1.58 else nn.LayerNorm
        options = {"eps": NORM_EPS, "elementwise_affine": False}
        self.norm = kind(in_features, **options) if norm else nn.Identity()

    def forward(self, x):
        y = _Product.apply(self.norm(x), self.weight, self.bits)
        return y if self.bias is None else y + self.bias

    def codes(self):
        """-> codes int8 [out, in], scale [out], the same for every row: what is to be stored."""
        codes, scale = quantize(self.weight.detach(), self.bits)
        return codes, scale[0].expand(self.out_features)


def convert(model, *, bits=1.58, skip=("head",), norm=True):
    """model -> a copy with BitLinear for Linear, of the same weights and biases.

    skip: names of layers that stay, such as the one before the softmax
    Embeddings and norms stay, too.  A trained model does *not* keep its function; train the copy.
    Raises ValueError for other bits, for a name in skip that the model has not, and where no Linear
    is left.
    """
    check_bits(bits)
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    for name in skip:
        if name not in linears:
            raise ValueError(f"skip={name!r} names no Linear; the model has {', '.join(linears)}")
    if not set(linears) - {"", *skip}:
        raise ValueError(f"skip={tuple(skip)} leaves no Linear inside the model; skip fewer")
    converted = copy.deepcopy(model)
    for name in linears:
        if name in skip or not name:
            continue
        old = converted.get_submodule(name)
        sizes, has_bias = (old.in_features, old.out_features), old.bias is not None
        new = BitLinear(*sizes, has_bias, bits=bits, norm=norm, device="meta")
        new.weight, new.bias = old.weight, old.bias
        converted.set_submodule(name, new.train(old.training))
    return converted


def check_bits(bits):
    """Raises ValueError unless bits is 1.58 or 1."""
    if bits not in (1.58, 1):
        raise ValueError(f"bits={bits!r} is no BitNet; choose 1.58 (-1, 0, 1) or 1 (-1, 1)")
