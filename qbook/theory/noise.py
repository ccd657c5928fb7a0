"""What rounding costs: the exact mean squared error of a uniform quantizer, and its clipping range.

scale^2 / 12 is the first term of a Fourier series in the characteristic function of the input, and
no law.  Bennett 1948 (the first term); Widrow, Kollar & Liu 1996, Sripad & Snyder 1977 (the
series); Max 1960 (the optimal clip).  Error means e = x - x_hat.  Book: 2.2
"""

import numpy as np
from scipy import optimize

from qbook.theory.bins import bin_moments, midtread_bins, squared_error


def granular_mse(dist, scale):
    """Mean squared error of scale * round(x / scale) without clipping, by summing bin integrals.

    dist: frozen distribution of scipy.stats.  The result has the unit of x squared and a relative
    error of about 1e-16 * (std / scale)^2.  Raises ValueError as ``bins.midtread_bins`` does.
    """
    levels, edges = midtread_bins(dist, scale)
    return float(squared_error(bin_moments(dist, edges), levels).sum())


def laplace_granular_mse(scale, b=1.0):
    """The same for the Laplace density exp(-|x| / b) / (2 b), summed in closed form:
    2 b^2 - b scale / sinh(scale / (2 b)), which tends to scale^2 / 12 for a small scale.

    The terms cancel: the relative error is about 5e-15 * (b / scale)^2.
    """
    return float(2 * b * b - b * scale / np.sinh(scale / (2 * b)))


def error_moments_series(characteristic_function, scale, terms=1000):
    """Mean and mean square of the unclipped error as Fourier series -> (mean, mse).

        E e   = -(scale / pi) sum_m (-1)^m / m  Im phi(2 pi m / scale)
        E e^2 = scale^2 / 12 + (scale / pi)^2 sum_m (-1)^m / m^2  Re phi(2 pi m / scale)

    characteristic_function: vectorized phi(t) = E exp(i t x).  m runs from 1 to ``terms``; the rest
    is at most (scale / pi)^2 sum_{m > terms} |phi| / m^2 <= (scale / pi)^2 / terms for E e^2.
    Widrow et al. 1996; Sripad & Snyder 1977, from the density of e by Poisson summation.
    """
    m = np.arange(1, terms + 1)
    phi = np.asarray(characteristic_function(2 * np.pi * m / scale), np.complex128)
    sign = np.where(m % 2, -1.0, 1.0)
    mean = -(scale / np.pi) * np.sum(sign / m * phi.imag)
    mse = scale**2 / 12 + (scale / np.pi) ** 2 * np.sum(sign / m**2 * phi.real)
    return float(mean), float(mse)


def gaussian_characteristic_function(mean=0.0, std=1.0):
    """-> phi(t) = exp(i mean t - std^2 t^2 / 2), for ``error_moments_series``."""
    return lambda t: np.exp(1j * mean * t - (std * t) ** 2 / 2)


def laplace_characteristic_function(b=1.0):
    """-> phi(t) = 1 / (1 + b^2 t^2)."""
    return lambda t: 1 / (1 + (b * t) ** 2)


def uniform_characteristic_function(low, high):
    """-> phi(t) = exp(i t (low + high) / 2) sinc(t (high - low) / 2)."""
    middle, half = (low + high) / 2, (high - low) / 2
    return lambda t: np.exp(1j * t * middle) * np.sinc(t * half / np.pi)


def clipped_mse(dist, clip, bits):
    """Mean squared error of the symmetric quantizer of 2^bits - 1 codes whose outermost levels are
    -clip and clip -> (granular, overload); their sum is the whole error.

    scale = clip / (2^(bits-1) - 1), as ``affine.choose_qparams`` with max |x| = clip.  Granular is
    the part from |x| <= clip + scale / 2, where |e| <= scale / 2; overload is the rest.
    Raises ValueError unless clip > 0 and bits is an integer from 2 to 16.
    """
    if not clip > 0:
        raise ValueError(f"clip={clip} must be positive")
    if bits not in range(2, 17):
        raise ValueError(f"bits={bits} is not supported; choose an integer from 2 to 16")
    qmax = 2 ** (bits - 1) - 1
    codes = np.arange(-qmax, qmax + 1)
    scale = clip / qmax
    edges = np.concatenate([[-np.inf], (codes - 0.5) * scale, [(qmax + 0.5) * scale, np.inf]])
    levels = np.concatenate([[-clip], codes * scale, [clip]])
    error = squared_error(bin_moments(dist, edges), levels)
    return float(error[1:-1].sum()), float(error[0] + error[-1])


def optimal_clip(dist, bits):
    """The clip that minimises ``sum(clipped_mse(dist, clip, bits))`` -> float, in the unit of x.

    A scan of 60 clips from a tenth of the root mean square to 9 times it (or to the 1e-12 quantile,
    where that is larger), then Brent's method between the neighbours of the best.  The minimum is
    flat: the clip is accurate to about 1e-7 relative, the error to rounding.
    Raises ValueError as ``clipped_mse`` does, and where the second moment of dist is infinite.
    """
    rms = np.hypot(dist.mean(), dist.std())
    if not np.isfinite(rms):
        raise ValueError(f"the second moment of dist is {rms}; the error of any clip is infinite")
    clips = np.geomspace(rms / 10, max(9 * rms, -dist.ppf(1e-12), dist.isf(1e-12)), 60)
    errors = [sum(clipped_mse(dist, clip, bits)) for clip in clips]
    best = int(np.argmin(errors))
    low, high = clips[max(best - 1, 0)], clips[min(best + 1, len(clips) - 1)]
    result = optimize.minimize_scalar(
        lambda clip: sum(clipped_mse(dist, clip, bits)),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-9 * high},
    )
    return float(result.x)
