"""Loss scaling: multiply the loss before backpropagation, divide the gradients after it.

Micikevicius et al. 2018, arXiv:1710.03740, section 3.2: a constant factor.  The schedule that
finds the factor is torch.amp.GradScaler's: double it after a run of good steps; after a gradient
that is not finite, halve it and skip the step.  Book: 3.3
"""

import math
from typing import NamedTuple

import torch

LARGEST_FLOAT32 = torch.finfo(torch.float32).max


class LossScale(NamedTuple):
    """scale: what multiplies the loss;  good_steps: steps since it last changed."""

    scale: float = 2.0**16
    good_steps: int = 0


def update(state, finite, *, growth_factor=2.0, backoff_factor=0.5, growth_interval=2000):
    """LossScale, were all gradients finite? -> the LossScale of the next step.

    Growth that would leave float32's range is not done.  Raises ValueError unless
    growth_factor > 1, 0 < backoff_factor < 1 and growth_interval >= 1.
    """
    if not (growth_factor > 1 and 0 < backoff_factor < 1 and growth_interval >= 1):
        raise ValueError(
            f"growth_factor={growth_factor}, backoff_factor={backoff_factor}, "
            f"growth_interval={growth_interval}: choose > 1, between 0 and 1, >= 1"
        )
    if not finite:
        return LossScale(state.scale * backoff_factor, 0)
    if state.good_steps + 1 < growth_interval:
        return LossScale(state.scale, state.good_steps + 1)
    grown = state.scale * growth_factor
    return LossScale(grown if grown <= LARGEST_FLOAT32 else state.scale, 0)


def unscale(gradients, scale):
    """List of tensors, scale -> (gradients / scale in at least float32, were all finite?)

    The step is to be skipped if they were not: an infinity says nothing of the gradient it was.
    """
    gradients = [g if g.dtype == torch.float64 else g.float() for g in gradients]
    finite = all(bool(torch.isfinite(g).all()) for g in gradients)
    return [g / scale for g in gradients], finite


def static_scale(largest, dtype=torch.float16):
    """Largest |gradient| seen -> the highest power of two that keeps it in dtype's range.

    The paper's rule where statistics of gradients are at hand: scale * largest below the largest
    number, 65504.  Raises ValueError unless largest is positive and finite.
    """
    if not 0 < largest < math.inf:
        raise ValueError(f"largest={largest} must be positive and finite")
    top = torch.finfo(dtype).max
    exponent = math.frexp(top / largest)[1] - 1
    return math.ldexp(1.0, exponent if math.ldexp(largest, exponent) < top else exponent - 1)
