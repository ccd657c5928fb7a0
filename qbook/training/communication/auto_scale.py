"""Auto-scaling: how far gradients are shrunk before FP8 codes of N ranks are added.

Peng et al. 2023, arXiv:2310.18313 (FP8-LM), section 2.1, "FP8 gradient and all-reduce
communication": one scale for all ranks (mu = 1: post-scaling, mu = 1/N: pre-scaling), and a mu that
is halved after a step in which too many sums hit the largest value, else creeps up.  Book: 5.2

``scale`` multiplies codes, as everywhere in this book: the paper's s is 1 / scale, and its smallest
s' of all ranks is the largest scale.  With a scale taken from the gradients themselves, a factor on
the gradients would cancel; mu acts after the scale is chosen, as in the authors' code (MS-AMP).
"""

import torch

from qbook.formats import E4M3

# Section 2.1: 0.001 % of the values, and twice as much in 1000 steps.
THRESHOLD, WINDOW = 1e-5, 1000


def shared_scale(largest, fmt=E4M3):
    """Largest |gradient| of any rank, torch [...] -> the scale of all ranks, float32 [...].

    The paper's eq. 4.  Zero gradients: scale 1.  What is not finite makes an infinite scale, and
    with it means that are NaN: an overflow is not to look like a large gradient.
    """
    largest = torch.nan_to_num(largest.detach().float(), nan=torch.inf, posinf=torch.inf)
    scale = largest / fmt.max
    tiny = torch.finfo(torch.float32).smallest_normal
    return torch.where(largest == 0, torch.ones_like(scale), scale.clamp(min=tiny))


def encode(gradient, scale, mu, fmt=E4M3):
    """gradient [...], scale and mu that broadcast -> codes of mu * gradient / scale, uint8 [...]

    Equations 3 and 5; what lies beyond the largest value saturates.
    """
    return fmt.encode(gradient.detach().float() * (mu / scale))


def mean(codes, scale, mu, ranks, fmt=E4M3):
    """Codes of the sum over ``ranks`` ranks [...] -> the mean gradient, float32 [...] (eq. 6)"""
    return fmt.decode(codes) * (scale / (mu * ranks))


def saturated_share(codes, fmt=E4M3):
    """Share of the codes [...] that stand for the largest magnitude of fmt -> float"""
    return (fmt.decode(codes).abs() == fmt.max).double().mean().item() if codes.numel() else 0.0


def next_mu(mu, share, *, threshold=THRESHOLD, window=WINDOW):
    """mu of this step, its saturated share -> mu of the next step

    More than ``threshold``: half of it; else 2^(1 / window) times as much, double in ``window``
    steps.  Raises ValueError unless mu > 0, 0 <= share <= 1 and window >= 1.
    """
    if not (mu > 0 and 0 <= share <= 1 and window >= 1):
        raise ValueError(
            f"mu={mu}, share={share}, window={window}: choose mu > 0, 0 <= share <= 1, window >= 1"
        )
    return mu / 2 if share > threshold else mu * 2 ** (1 / window)


def add_wide(codes, fmt=E4M3):
    """Codes of each rank, a list -> codes of their float32 sum, rounded once"""
    return fmt.encode(torch.stack([fmt.decode(c) for c in codes]).sum(dim=0))


def add_in_hops(codes, fmt=E4M3):
    """Codes of each rank, a list -> codes of the sum when every partial sum is rounded to fmt.

    A ring that adds in FP8: each rank adds its part to what arrives and sends FP8 on.
    """
    total = codes[0]
    for part in codes[1:]:
        total = fmt.encode(fmt.decode(total) + fmt.decode(part))
    return total


def all_reduce(gradients, mu, *, add=add_wide, fmt=E4M3):
    """One gradient [...] of each rank, a list -> (their mean float32 [...], codes of the sum)

    What an all-reduce with codes of fmt on the wire returns on every rank; no process is needed.
    Raises ValueError for an empty list and for gradients of different shapes.
    """
    if not gradients or len({g.shape for g in gradients}) != 1:
        shapes = [tuple(g.shape) for g in gradients]
        raise ValueError(f"gradients of shapes {shapes}: pass one of each rank, all of one shape")
    largest = torch.stack([g.detach().abs().max() for g in gradients]).max()
    scale = shared_scale(largest, fmt)
    codes = add([encode(g, scale, mu, fmt) for g in gradients], fmt)
    return mean(codes, scale, mu, len(gradients), fmt), codes


def settle(gradients, mu=1.0, *, threshold=THRESHOLD, add=add_wide, fmt=E4M3):
    """The mu, halved from the given one, at which the rule no longer halves -> float"""
    while True:
        share = saturated_share(all_reduce(gradients, mu, add=add, fmt=fmt)[1], fmt)
        if not share > threshold:
            return mu
        mu = next_mu(mu, share, threshold=threshold)


def all_reduce_rescaled(gradients, *, fmt=E4M3):
    """As ``all_reduce`` with mu = 1, but the float32 sum gets a scale of its own: no mu is needed.

    Where float32 adds, the largest sum can be agreed upon as the largest gradient was: one more
    number on the wire.  A library or a switch that adds codes never sees the sum.
    """
    scale = shared_scale(torch.stack([g.detach().abs().max() for g in gradients]).max(), fmt)
    total = sum(fmt.decode(encode(g, scale, 1.0, fmt)) for g in gradients)
    own = shared_scale(total.abs().max(), fmt)
    codes = encode(total, own, 1.0, fmt)
    return mean(codes, scale * own, 1.0, len(gradients), fmt), codes
