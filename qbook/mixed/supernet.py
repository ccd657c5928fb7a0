"""Super-net: a layer that holds its weight at several widths and computes with a mixture of them.

    w_mix = sum_k shares_k Q_k(w)
    y = x w_mix^T = sum_k shares_k (x Q_k(w)^T)

Cai & Vasconcelos 2020 (EdMIPS), arXiv:2004.05795: where widths share a weight, the sum of layers is
one layer.  Wu et al. 2018 (DNAS), arXiv:1812.00090, sum the outputs of layers; here their copies
share one weight, too.  Book: 3.3
"""

import torch

from qbook.qat import lsq


def copies(w, widths):
    """torch w [out, in] -> [width, out, in]: w rounded to each width, straight-through to w.

    The scale is LSQ's first one, 2 mean|w| / sqrt(qmax), of the w at hand.  Raises ValueError for
    widths outside 2..16 and for a w that is all zero.
    """
    return torch.stack([lsq.fake_quantize(w, lsq.initial_scale(w, bits), bits) for bits in widths])


def mix(branches, shares):
    """branches [width, ...], shares [width] -> weighted sum [...], with gradients to both."""
    if branches.shape[0] != shares.shape[0] or shares.ndim != 1:
        raise ValueError(
            f"{branches.shape[0]} branches and shares of shape {tuple(shares.shape)}; "
            "give one share for each branch"
        )
    return torch.tensordot(shares, branches, dims=1)


def mean_widths(shares, widths):
    """shares [layer, width], widths: bits -> sum_k shares_k bits_k [layer]"""
    bits = torch.as_tensor(widths, dtype=shares.dtype, device=shares.device)
    if bits.shape != shares.shape[-1:]:
        raise ValueError(
            f"widths={list(widths)} and shares of shape {tuple(shares.shape)}; "
            "the last axis needs a share for each width"
        )
    return shares @ bits


def choose(logits, widths):
    """logits [layer, width] -> the width with the largest logit in each layer, a list of bits."""
    return [widths[k] for k in logits.argmax(-1).tolist()]
