"""Least MSE: shrink the min-max range until clipping costs more than the finer step gains.

Two errors pull against each other: scale^2 / 12 for each value inside, (|x| - high)^2 for each
outside.  The line search tries every factor of a grid and quantizes for real, so that it needs no
model of the distribution: Choukroun et al. 2019, arXiv:1902.06822 (OMSE).  With a model the same
sum has a closed form: Banner et al. 2019, arXiv:1810.05723 (ACIQ).  Book: 2.7
"""

from qbook import affine, granularity, metrics
from qbook.ranges import samples
from qbook.ranges.minmax import minmax


def search(x, bits, *, axis=None, symmetric=True, steps=100):
    """The range of least MSE among ``steps`` shrunken ones -> (low, high), of x's library, device.

    x:          floats, any shape
    bits:       width of a code, 1..16
    axis:       as in ``minmax``: None, or the axes that share a range, kept at length 1
    symmetric:  the quantizer that will be used, as in ``affine.choose_qparams``; whether its codes
                are signed does not change the error
    steps:      the factors tried are 1/steps, 2/steps, ... 1, each on both ends

    Contains 0 (the min-max range is widened first); symmetric=True gives low = -high.  Never worse
    than min-max, which is the factor 1; of equally good factors the largest.  One fake quantization
    a factor.  float64 for float64 x, else float32.  Raises ValueError for bits outside 1..16, steps
    that are no positive integer, empty x, NaN, infinity, a missing axis.
    """
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r} is no positive integer; 100 tries 0.01, 0.02, ... 1")
    xp, x = samples.checked(x)
    axes = granularity.normalise_axes(axis, x.ndim)
    low, high = minmax(x, axes)
    low, high = xp.minimum(low, xp.zeros_like(low)), xp.maximum(high, xp.zeros_like(high))
    if symmetric:
        high = xp.maximum(-low, high)
        low = -high

    def error(factor):
        qparams = affine.qparams_from_range(low * factor, high * factor, bits, symmetric=symmetric)
        return metrics.mse(x, affine.fake_quantize(x, qparams), axis=axes)

    least, best = error(1.0), xp.ones_like(high)
    for step in range(steps - 1, 0, -1):
        candidate = error(step / steps)
        best = xp.where(candidate < least, step / steps, best)
        least = xp.minimum(candidate, least)
    low, high = low * best, high * best
    return (low.reshape(()), high.reshape(())) if axis is None else (low, high)
