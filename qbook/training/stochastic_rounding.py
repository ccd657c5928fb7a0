"""Stochastic rounding to any table of levels: up or down by chance, right on average.

    low <= x <= high:   high with probability (x - low) / (high - low), else low
    E x_hat = x,        Var x_hat = (x - low) (high - x)

For gradients, whose updates are smaller than a step: rounded to nearest they are lost every time,
rounded by chance they arrive in the mean.  Beyond the last level nothing is unbiased: scales must
not let a block saturate.  Gupta et al. 2015, arXiv:1502.02551, section 3; in FP4 Tseng et al. 2025,
arXiv:2502.20586, section 4, and NVIDIA 2025, arXiv:2509.25149, section 4.  Book: 5.8
"""

import numpy as np
from array_api_compat import array_namespace, device, is_torch_array

from qbook import granularity


def round_stochastic(x, fmt, rng):
    """x [...], NumPy or torch floats -> a neighbouring value of ``fmt`` each, float32

    rng: numpy.random.Generator, or for a torch x a torch.Generator on its device
    Beyond fmt's range: its lowest or highest value.  Raises ValueError for NaN in x.
    """
    xp = array_namespace(x)
    low, high, x = _neighbours(x, fmt)
    chance = (x - low) / xp.where(high > low, high - low, xp.ones_like(low))
    return xp.astype(xp.where(_uniform(x, rng) < chance, high, low), xp.float32)


def variance(x, fmt):
    """x [...] -> variance of ``round_stochastic``, float64: (x - low) (high - x), 0 on a level"""
    low, high, x = _neighbours(x, fmt)
    return (x - low) * (high - x)


def fake_quantize(x, blocks, rng):
    """x [..., n], rounded by chance on the grids that its ``microscaling.Blocks`` span, in x's type

    blocks: of this x, from ``quantize_mx`` or ``quantize_nvfp4``; only scales and formats are used
    Raises ValueError for another shape, and as ``round_stochastic``.
    """
    xp = array_namespace(x)
    if tuple(x.shape) != tuple(blocks.codes.shape):
        raise ValueError(f"x has shape {tuple(x.shape)}, its blocks {tuple(blocks.codes.shape)}")
    scale = xp.astype(blocks.scale_fmt.decode(blocks.scale), xp.float64)
    if blocks.tensor_scale is not None:
        scale = scale * xp.astype(xp.asarray(blocks.tensor_scale), xp.float64)
    groups = granularity.split_groups(_wide(x), x.shape[-1] // scale.shape[-2])
    rounded = xp.astype(round_stochastic(groups / scale, blocks.fmt, rng), xp.float64)
    return xp.astype(granularity.merge_groups(rounded * scale), x.dtype)


def _neighbours(x, fmt):
    """-> the levels below and above each x, and x within the range, all float64"""
    xp = array_namespace(x)
    x = _wide(x)
    if bool(xp.any(xp.isnan(x))):
        raise ValueError(f"x holds NaN, which lies between no two values of {fmt.name}; remove it")
    levels = xp.asarray(fmt.levels.astype(np.float64), device=device(x))
    x = xp.clip(x, fmt.min, fmt.max)
    below = xp.searchsorted(levels, xp.reshape(x, (-1,)), side="right") - 1
    below = xp.reshape(xp.clip(below, 0, len(fmt.levels) - 2), x.shape)
    return levels[below], levels[below + 1], x


def _wide(x):
    x = x.detach() if hasattr(x, "detach") else x
    return array_namespace(x).astype(x, array_namespace(x).float64)


def _uniform(x, rng):
    """[...] of [0, 1) like x; chances are compared in float64, so that tiny ones count"""
    if is_torch_array(x) and not isinstance(rng, np.random.Generator):
        import torch

        return torch.rand(x.shape, generator=rng, dtype=torch.float64, device=x.device)
    return array_namespace(x).asarray(rng.random(tuple(x.shape)), device=device(x))
