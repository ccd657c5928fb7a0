"""The noise of floating point: relative to the signal it knows neither scale nor shape.

Averaged over one octave of scales, the noise-to-signal ratio of rounding to m mantissa bits is
the same number for every distribution, about 4^-m / (32 ln 2), as long as nothing leaves the range.
Widrow, Kollar & Liu 1996 apply the uniform noise model to floating point; the average over
scales is the book's.  Error means e = x - x_hat.  Book: 2.5
"""

import numpy as np

# What octave_noise(m) * 4^m tends to: the mean of v^-2 over an octave, divided by 12.
OCTAVE_LIMIT = 1 / (32 * np.log(2))


def octave_noise(mantissa_bits):
    """Mean of (e / v)^2 for v log-uniform on an octave -> float.

    It is E e^2 / E x^2 of any x, averaged over its scales t x, t log-uniform on an
    octave.  In [1, 2] the levels are multiples of 2^-m, and each cell has an
    antiderivative, whose terms cancel: the relative error is about 1e-15 * 8^m.
    Raises ValueError unless mantissa_bits is an integer from 0 to 10.
    """
    if mantissa_bits not in range(11):
        raise ValueError(f"mantissa_bits={mantissa_bits} is not within 0 to 10")
    levels = 1 + np.arange(2**mantissa_bits + 1) / 2**mantissa_bits
    edges = np.concatenate([[1.0], (levels[:-1] + levels[1:]) / 2, [2.0]])
    high, low = edges[1:] / levels - 1, edges[:-1] / levels - 1
    return float(np.sum(_antiderivative(high) - _antiderivative(low)) / np.log(2))


def breakeven_crest(qmax, mantissa_bits):
    """Largest |x| over root mean square where integers and floats are equally noisy -> float.

    qmax: highest code of the integers, whose scale max|x| / qmax covers all of x: their noise is
    (max|x| / qmax)^2 / 12.  The floats' is ``octave_noise``.  A larger crest favours the floats.
    Raises ValueError unless qmax is positive, and as ``octave_noise`` does.
    """
    if not qmax > 0:
        raise ValueError(f"qmax={qmax} must be positive")
    return float(qmax * np.sqrt(12 * octave_noise(mantissa_bits)))


def _antiderivative(u):
    """Of (v - a)^2 / v^3 in v, written in u = v / a - 1."""
    return np.log1p(u) - u * (2 + 3 * u) / (2 * (1 + u) ** 2)
