"""Half precision, emulated: every stored tensor is rounded to 16 bits, every sum is kept wider.

Micikevicius et al. 2018, arXiv:1710.03740, sections 3.1 and 3.3.  Values live in a wider tensor
(float32 or float64) and pass through float16 or bfloat16 where a 16-bit machine would store them;
between two stores, in a matrix product, nothing is rounded to 16 bits.  Book: 3.3
"""

import torch


def round_to(x, dtype):
    """torch x [...] -> the nearest values of dtype, in x's own type; no gradient.

    Ties to even, overflow to infinity; the cast is torch's, which takes float64 through float32.
    """
    return x.detach().to(dtype).to(x.dtype)


class _Store(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dtype):
        ctx.dtype = dtype
        return round_to(x, dtype)

    @staticmethod
    def backward(ctx, grad):
        return round_to(grad, ctx.dtype), None


def store(x, dtype):
    """torch x [...] -> ``round_to(x, dtype)``; on the way back the gradient is rounded likewise.

    Put it on every tensor that is written to memory in 16 bits: weights, activations, and with
    them their gradients.
    """
    return _Store.apply(x, dtype)


def add(w, update, dtype):
    """w + update as dtype stores it: what a weight without a master copy becomes."""
    return round_to(w + update, dtype)


def lost_share(w, update, dtype):
    """Share of the nonzero updates [...] that leave w [...], as dtype stores it, alone -> float."""
    w = round_to(w, dtype)
    return _share((add(w, update, dtype) == w) & (update != 0), update != 0)


def flushed_share(x, dtype, *, factor=1.0):
    """Share of the nonzero x [...] that dtype rounds to zero after a multiplication -> float."""
    return _share((round_to(factor * x, dtype) == 0) & (x != 0), x != 0)


def accumulate(terms, dtype):
    """terms [..., n] -> their sum [...], one after another, every partial sum stored in dtype."""
    total = torch.zeros_like(terms[..., 0])
    for term in terms.unbind(-1):
        total = add(total, term, dtype)
    return total


def binades(x):
    """torch x [...] -> floor(log2|x|) of its nonzero finite elements, [n] int32, exactly."""
    x = x.detach()
    x = x[(x != 0) & torch.isfinite(x)]
    return torch.frexp(x.double()).exponent - 1


def _share(hits, among):
    return hits.sum().item() / max(among.sum().item(), 1)
