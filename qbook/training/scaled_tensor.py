"""A tensor stored as 8- or 16-bit floats and one scale: what a low-precision optimizer keeps.

    x_hat = codes * scale,    scale = 2^-k with the largest k that keeps max|x| * 2^k in range

Peng et al. 2023, arXiv:2310.18313, section 2.2 (tensor scaling); the power of two is the released
code's, see ``fp8_scaling.power_of_two_factor``.  It adds no rounding, and nothing saturates: MX's
power of two (``formats.scaled``) is up to twice smaller, and there the largest value may.
Book: 5.2
"""

from dataclasses import dataclass

import torch

from qbook.training import fp8_scaling

# The highest binade of float32: scaling up to it would take a scale that is subnormal.
FLOAT32_BINADE = 2.0**127


@dataclass(frozen=True)
class ScaledTensor:
    """codes [...] of a torch float type;  scale [] float32, which multiplies them.

    Not iterable, so that ``torch.optim.Optimizer.load_state_dict`` leaves it as it is.
    """

    codes: torch.Tensor
    scale: torch.Tensor

    @property
    def nbytes(self):
        """Bytes of the codes and of the scale."""
        return self.codes.nbytes + self.scale.nbytes


def power_of_two_scale(x, dtype):
    """torch x [...] -> float32 [], the smallest 2^j with max|x| / 2^j <= the top number of dtype.

    1 where x has zeros only or no elements, and for bfloat16 and float32, whose range needs none.
    Raises ValueError for NaN or infinity in x and for a dtype that is not a float type.
    """
    top = _check(dtype)
    largest = fp8_scaling.amax(x)
    if not bool(torch.isfinite(largest)):
        raise ValueError(f"the largest magnitude is {largest.item()}; a scale needs finite values")
    if top.max >= FLOAT32_BINADE:
        return torch.ones_like(largest)
    return 1 / fp8_scaling.power_of_two_factor(largest, top)


def store(x, dtype, *, scaled=True):
    """torch x [...] -> ScaledTensor of dtype, rounded to nearest, ties to even.

    dtype:  torch.float8_e4m3fn, float8_e5m2, float16, bfloat16 or float32
    scaled: False: the scale is 1, and what exceeds the range saturates
    Raises ValueError as ``power_of_two_scale`` does.
    """
    scale = power_of_two_scale(x, dtype)
    scale = scale if scaled else torch.ones_like(scale)
    top = torch.finfo(dtype).max
    return ScaledTensor((x.detach().float() / scale).clamp(-top, top).to(dtype), scale)


def load(stored):
    """ScaledTensor -> codes * scale, float32 [...]"""
    return stored.codes.float() * stored.scale


def _check(dtype):
    """-> what torch knows of a float type, with its largest number as ``max``."""
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype={dtype!r} stores no floats; choose torch.float8_e4m3fn or float16")
    return torch.finfo(dtype)
