"""DoReFa: few bits forwards, for weights and activations, and few bits backwards, for gradients.

Zhou et al. 2016, arXiv:1606.06160, sections 2.3 (weights), 2.4 (activations), 2.5 (gradients);
where the paper leaves a choice, the authors' examples/DoReFa-Net of tensorpack.  The first and the
last layer stay as they are (section 2.7).  Book: 3.2
"""

import torch
from torch.autograd.function import once_differentiable

from qbook import ste


def quantize_unit(r, bits):
    """torch r [...] on 0..1 -> round((2^bits - 1) r) / (2^bits - 1); gradient 1 everywhere.

    Raises ValueError for bits that are no integer of 1..16.
    """
    steps = _steps(bits)
    return ste.round_ste(r * steps) / steps


def quantize_weights(w, bits):
    """torch w [...] -> values on -1..1, or for one bit -E|w| and E|w|; carries a gradient.

    bits > 1: 2 quantize_unit(tanh w / (2 max|tanh w|) + 1/2) - 1, the maximum over the tensor.
    Only the rounding is passed straight through; tanh and maximum have their own derivatives.
    One bit: sign(w) E|w| with sign(0) = 1 and gradient 1 everywhere.
    Raises ValueError for all-zero or empty w.
    """
    if _steps(bits) == 1:
        _check_not_zero(w)
        mean = w.detach().abs().mean()
        value = torch.where(w.detach() < 0, -mean, mean)
        return ste._Surrogate.apply(w, value, torch.ones_like(w))
    return 2 * quantize_unit(_on_unit_interval(w), bits) - 1


def weight_codes(w, bits):
    """torch w [...] -> integers 0 ... 2^bits - 1, int32, whose weights are (2 code - n) / n.

    n = 2^bits - 1 is odd: no code stands for 0.  For one bit the unit is E|w|.  Raises ValueError
    as ``quantize_weights`` does.
    """
    steps = _steps(bits)
    if steps == 1:
        _check_not_zero(w)
        return (w.detach() >= 0).int()
    return torch.round(_on_unit_interval(w.detach()) * steps).int()


def quantize_activations(x, bits):
    """torch x [...] -> quantize_unit(clip(x, 0, 1)); gradient 1 where 0 <= x <= 1, else 0."""
    return quantize_unit(x.clamp(0, 1), bits)


def quantize_gradients(x, bits, generator):
    """torch x [samples, ...] -> x itself; the gradient is rounded to 2^bits levels on its way back.

    generator: torch.Generator on x's device that draws the noise; None: rounds without noise, which
    is biased.  Each sample has its own maximum.  Raises ValueError for x without a dimension.
    """
    _steps(bits)
    if x.ndim == 0:
        raise ValueError("x has no dimension; the first one is the samples', each with its maximum")
    return _QuantizedGradient.apply(x, bits, generator)


def round_gradient(g, bits, noise):
    """torch g [samples, ...] -> 2 M (quantize_unit(g / (2 M) + 1/2 + noise / n) - 1/2), like g.

    M = max|g| of the sample and n = 2^bits - 1: levels M (2 code - n) / n.
    noise: [samples, ...], uniform on -1/2..1/2 makes the mean g for every g; zeros: to nearest,
           where g = 0 becomes +M / n for two bits or more.
    A sample that is all zero stays so; one NaN or infinity spoils its whole sample.
    """
    steps = _steps(bits)
    largest = g.abs().amax(tuple(range(1, g.ndim)), keepdim=True) if g.ndim > 1 else g.abs()
    unit = g / torch.where(largest == 0, 1, largest)
    # n/2 is half an odd number: exact, so that noise of exactly 1/2 is the only way out of 0..n.
    codes = torch.round(steps / 2 * unit + steps / 2 + noise).clamp(0, steps)
    return (2 * codes - steps) / steps * largest


class _QuantizedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bits, generator):
        ctx.constants = bits, generator
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        bits, generator = ctx.constants
        noise = torch.zeros_like(grad)
        if generator is not None:
            like = {"dtype": grad.dtype, "device": grad.device}
            noise = torch.rand(grad.shape, generator=generator, **like) - 0.5
        return round_gradient(grad, bits, noise), None, None


def _on_unit_interval(w):
    _check_not_zero(w)
    squashed = torch.tanh(w)
    return squashed / (2 * squashed.abs().max()) + 0.5


def _check_not_zero(w):
    if not bool((w != 0).any()):
        raise ValueError(f"w of shape {tuple(w.shape)} is zero throughout and gives no scale")


def _steps(bits):
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 16:
        raise ValueError(f"bits={bits!r} is not supported; choose an integer from 1 to 16")
    return 2**bits - 1
