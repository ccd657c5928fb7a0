"""AWQ: inputs that are large get weights that are scaled up before they are rounded.

Lin et al. 2024, arXiv:2306.00978, section 3: Q(w s) x / s in place of Q(w) x, with one s for each
input channel, s = mean |x|^exponent; the exponent is searched on a grid, on the output of the
block that reads the input.  Then a range for each group of weights, narrower than its largest one,
is searched in the same way.  As in the released code, auto_scale.py and auto_clip.py; whole models
are scaled by ``qbook.llm.awq_layers``.  Book: 5.5
"""

from typing import NamedTuple

import torch
from array_api_compat import array_namespace
from torch.func import functional_call

from qbook import affine, granularity

GRID, MAX_SHRINK = 20, 0.5


class Found(NamedTuple):
    """s [in], the exponent it was made with, and the mean squared error of each one tried"""

    s: torch.Tensor
    exponent: float
    errors: dict


def saliency(x):
    """x [..., in] -> mean |x| of each channel, [in].  Section 3.1; NumPy or torch"""
    xp = array_namespace(x)
    return xp.mean(xp.abs(xp.reshape(x, (-1, x.shape[-1]))), axis=0)


def scales(saliency, exponent):
    """saliency [in] -> s [in] = saliency^exponent, at least 1e-4, over sqrt(largest * smallest)

    exponent: 0: no scaling;  1: inputs of equal size.  A common factor of all s changes nothing
              but the size of the numbers.  Raises ValueError outside 0..1, for saliency below 0
    """
    xp = array_namespace(saliency)
    if not 0 <= exponent <= 1:
        raise ValueError(f"exponent={exponent} is outside the paper's range; choose 0 to 1")
    if not bool(xp.all((saliency >= 0) & xp.isfinite(saliency))):
        raise ValueError(
            f"saliency of shape {tuple(saliency.shape)} holds a negative or non-finite value; "
            "saliency(x) of finite inputs has none"
        )
    s = xp.clip(saliency**exponent, 1e-4, None)
    return s / xp.sqrt(xp.max(s) * xp.min(s))


def search_scales(block, readers, x, calls, *, bits, group_size=None, symmetric=False, grid=GRID):
    """-> Found: of exponents 0, 1 / grid, ... the one with the least error of the block's output

    block:   a module;  readers: names of its Linears that read x; [""]: the block is the reader
    x:       [..., in], what they read in all calls
    calls:   list of (arguments, keywords), the calls of the block
    Raises ValueError for no readers or calls, widths unlike x's, and as ``affine.choose_qparams``.
    """
    if not calls or not readers:
        raise ValueError(f"{len(calls)} calls and {len(readers)} readers leave nothing to search")
    weights = {
        f"{name}.weight".removeprefix("."): block.get_submodule(name).weight.detach()
        for name in readers
    }
    for name, w in weights.items():
        if w.shape[1] != x.shape[-1]:
            raise ValueError(f"{name} has {w.shape[1]} inputs; x has {x.shape[-1]} channels")
    errors, found = {}, {}
    with torch.no_grad():
        outputs = [_first(block(*arguments, **keywords)) for arguments, keywords in calls]
        for exponent in (step / grid for step in range(grid)):
            s = scales(saliency(x), exponent)
            rounded = {
                name: _round(w * s, bits, group_size, symmetric) / s for name, w in weights.items()
            }
            total = 0.0
            for (arguments, keywords), y in zip(calls, outputs, strict=True):
                y_hat = _first(functional_call(block, rounded, arguments, keywords))
                total += float(torch.sum((y - y_hat).double() ** 2))
            errors[exponent] = total / sum(y.numel() for y in outputs)
            found[exponent] = s
    # The first of equals: the least scaling.
    best = min(errors, key=errors.get)
    return Found(found[best], best, errors)


def search_clip(w, x, *, bits, group_size=None, symmetric=False, grid=GRID, max_shrink=MAX_SHRINK):
    """w [out, in], x [..., in] -> shares [out, groups, 1]: how much of its range a group keeps

    Of the shares 1, 1 - 1 / grid, ... above 1 - max_shrink of the group's largest |w|, the one with
    the least error of the group's own part of the output, x_g (w_g - w_hat_g).
    Raises ValueError as ``affine.choose_qparams``, and where w and x differ in width.
    """
    if w.shape[1] != x.shape[-1]:
        raise ValueError(f"w has {w.shape[1]} inputs; x has {x.shape[-1]} channels")
    size = group_size or w.shape[1]
    groups = granularity.split_groups(w.detach(), size)
    parts = granularity.split_groups(x.detach().reshape(-1, x.shape[-1]), size)
    # The mean of (x e)^2 is e^T h e: the samples are needed only once.
    h = torch.einsum("ngi,ngj->gij", parts, parts) / len(parts)
    shares = groups.new_ones(*groups.shape[:2], 1)
    least = torch.full_like(shares, torch.inf)
    for step in range(int(max_shrink * grid)):
        share = torch.full_like(shares, 1 - step / grid)
        w_hat = _round(clamp(w.detach(), share), bits, size, symmetric)
        error = groups - w_hat.reshape(groups.shape)
        cost = (torch.einsum("ogi,gij->ogj", error, h) * error).sum(dim=-1, keepdim=True)
        shares = torch.where(cost < least, share, shares)
        least = torch.minimum(cost, least)
    return shares


def clamp(w, shares):
    """w [out, in], shares [out, groups, 1] -> each group clamped to +- share * its largest |w|"""
    groups = granularity.split_groups(w, w.shape[1] // shares.shape[1])
    limits = shares * groups.abs().amax(dim=-1, keepdim=True)
    return torch.clamp(groups, -limits, limits).reshape(w.shape)


def _round(w, bits, group_size, symmetric):
    qparams = affine.choose_qparams(w, bits, axis=1, group_size=group_size, symmetric=symmetric)
    return affine.fake_quantize(w, qparams)


def _first(output):
    return output[0] if isinstance(output, tuple) else output
