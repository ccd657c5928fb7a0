"""A factor for each tensor: multiply, round to FP8, divide.  Where the factor comes from.

    x_hat = fmt.round(x * factor) / factor        the book's scale is 1 / factor

current     from this tensor's largest magnitude: read it twice
delayed     from the largest of past steps: NVIDIA Transformer Engine, common/recipe, DelayedScaling
power of 2  factor = 2^(floor(log2(max / amax)) - margin): MS-AMP, common/tensor/meta.py, the code
            of Peng et al. 2023, arXiv:2310.18313 (FP8-LM)

Micikevicius et al. 2022, arXiv:2209.05433.  Book: 5.2
"""

from typing import NamedTuple

import numpy as np
import torch

# The casts of torch are what makes training with these formats bearable; tests hold them to the
# tables of qbook.formats, boundary by boundary.
TYPES = {"E4M3": torch.float8_e4m3fn, "E5M2": torch.float8_e5m2}
HISTORY = 1024
LARGEST_FLOAT32 = torch.finfo(torch.float32).max


class Delayed(NamedTuple):
    """amax: [length], largest magnitudes of the last steps, oldest first, 0 where there was none

    factor: tensor of no dimension, what multiplies the tensor in the coming step
    """

    amax: torch.Tensor
    factor: torch.Tensor


def round_to(x, fmt, *, saturate=True):
    """torch x [...] -> the nearest values of fmt, E4M3 or E5M2, in x's own type; no gradient.

    saturate: False: what overflows becomes infinity, NaN in E4M3.  The same values as
    ``fmt.round``, faster; float64 passes through float32.  Raises ValueError for other formats.
    """
    dtype = _type(fmt)
    x = x.detach()
    rounded = x.clamp(fmt.min, fmt.max).to(dtype).to(x.dtype)
    if saturate:
        return rounded
    beyond = torch.inf if np.isinf(fmt.values).any() else torch.nan
    # In float64: the limit of E5M2 is no number of float32.
    return torch.where(x.abs().double() > fmt.limits[1], beyond * torch.sign(x), rounded)


def fake_quantize(x, fmt, factor, *, saturate=True):
    """round_to(x * factor) / factor, in x's own type; factor broadcasts against x."""
    return round_to(x * factor, fmt, saturate=saturate) / factor


def amax(x):
    """Largest magnitude of torch x [...] -> float32 of no dimension; 0 where x is empty"""
    x = x.detach()
    return x.abs().amax().float() if x.numel() else torch.zeros((), device=x.device)


def linear_factor(amax, fmt, *, margin=0, otherwise=1.0):
    """fmt.max / amax / 2^margin -> float32: the largest magnitude lands at fmt.max / 2^margin

    amax:      tensor of largest magnitudes, any shape
    otherwise: factor where amax is 0, infinite or NaN and says nothing: a number or a tensor
    A quotient beyond float32 becomes its largest number.
    """
    amax = torch.as_tensor(amax, dtype=torch.float32)
    # Not fmt.max / amax: torch turns a number over a tensor into a reciprocal and a product.
    factor = torch.full_like(amax, fmt.max) / amax / 2.0**margin
    return _where_known(amax, factor.clamp(max=LARGEST_FLOAT32), otherwise)


def power_of_two_factor(amax, fmt, *, margin=0, otherwise=1.0):
    """2^(floor(log2(fmt.max / amax)) - margin) -> float32, arguments as ``linear_factor``

    The largest magnitude lands in (fmt.max / 2, fmt.max] / 2^margin.  Multiplying is exact.
    """
    amax = torch.as_tensor(amax, dtype=torch.float32)
    # In float64 no quotient rounds up to a power; frexp is exact where log2 is not.
    quotient = torch.full_like(amax, fmt.max, dtype=torch.float64) / amax.double()
    exponent = torch.frexp(quotient).exponent - 1 - margin
    factor = torch.ldexp(torch.ones_like(amax), exponent.clamp(-126, 127))
    return _where_known(amax, factor, otherwise)


def delayed(length=HISTORY, *, device=None):
    """-> the Delayed of a first step: no history, factor 1.  Raises ValueError for length < 1."""
    if length < 1:
        raise ValueError(f"length={length}; a history needs at least 1 step")
    return Delayed(torch.zeros(length, device=device), torch.ones((), device=device))


def update(state, amax, fmt, *, margin=0, algorithm="max"):
    """Delayed, largest magnitude of the step that it served -> the Delayed of the next step.

    algorithm: "max" of the whole history, this step included, or the "most_recent"
    A history that holds infinity or NaN, or zeros only, leaves the factor as it is.
    Raises ValueError for another algorithm.
    """
    if algorithm not in ("max", "most_recent"):
        raise ValueError(f"algorithm={algorithm!r}; choose 'max' or 'most_recent'")
    history = torch.cat([state.amax[1:], amax.detach().to(state.amax).reshape(1)])
    seen = history.amax() if algorithm == "max" else history[-1]
    return Delayed(history, linear_factor(seen, fmt, margin=margin, otherwise=state.factor))


def flushed_share(x, fmt, factor=1.0):
    """Share of the nonzero x [...] that fmt rounds to zero after the multiplication -> float"""
    alive = x.detach() != 0
    lost = alive & (round_to(x * factor, fmt) == 0)
    return lost.sum().item() / max(alive.sum().item(), 1)


def _where_known(amax, factor, otherwise):
    otherwise = torch.as_tensor(otherwise, dtype=factor.dtype, device=factor.device)
    return torch.where((amax > 0) & torch.isfinite(amax), factor, otherwise)


def _type(fmt):
    if fmt.name not in TYPES:
        raise ValueError(f"{fmt.name} is not a format of FP8; choose E4M3 or E5M2")
    return TYPES[fmt.name]
