"""Metrics: how far a reconstruction x_hat lies from x.

The error is e = x - x_hat.  Everything is accumulated in float64 (float32 on a device that has no
float64), and comes back as a Python float; ``mse`` of some axes is an array.
Gray & Neuhoff 1998, "Quantization", IEEE Trans. Inf. Theory 44(6).  Book: 2.2
"""

import math

from array_api_compat import array_namespace, device, size

from qbook import granularity


def mse(x, x_hat, axis=None):
    """Mean squared error mean(e^2), in squared units of x.

    axis:  None: over everything, a Python float; else the axis or axes to average over, an array
           with these kept at length 1.  x, x_hat [out, in], axis=1 -> [out, 1]
    Raises ValueError for shapes that differ, for empty arrays and for a missing axis.
    """
    xp, x, x_hat = _wide(x, x_hat)
    if axis is None:
        return float(xp.mean((x - x_hat) ** 2))
    axes = granularity.normalise_axes(axis, x.ndim)
    return xp.mean((x - x_hat) ** 2, axis=axes, keepdims=True)


def mae(x, x_hat):
    """Mean absolute error mean(|e|), in units of x.  Raises ValueError as ``mse`` does."""
    xp, x, x_hat = _wide(x, x_hat)
    return float(xp.mean(xp.abs(x - x_hat)))


def max_error(x, x_hat):
    """Largest absolute error max(|e|), in units of x.  Raises ValueError as ``mse`` does."""
    xp, x, x_hat = _wide(x, x_hat)
    return float(xp.max(xp.abs(x - x_hat)))


def mean_error(x, x_hat):
    """Bias mean(e), in units of x: positive where x_hat lies too low.

    Raises ValueError as ``mse`` does.
    """
    xp, x, x_hat = _wide(x, x_hat)
    return float(xp.mean(x - x_hat))


def sqnr_db(x, x_hat):
    """Signal-to-quantization-noise ratio 10 log10(sum(x^2) / sum(e^2)), in decibels.

    No noise: inf.  Raises ValueError where x is zero throughout, and as ``mse`` does.
    """
    xp, x, x_hat = _wide(x, x_hat)
    signal, noise = float(xp.sum(x**2)), float(xp.sum((x - x_hat) ** 2))
    if signal == 0:
        raise ValueError("x is zero throughout and has no signal power; report mse or max_error")
    if noise == 0:
        return math.inf
    return 10 * (math.log10(signal) - math.log10(noise))


def cosine_similarity(x, x_hat):
    """<x, x_hat> / (|x| |x_hat|) of the flattened arrays, -1 ... 1; blind to a common factor.

    Raises ValueError where either is zero throughout, and as ``mse`` does.
    """
    xp, x, x_hat = _wide(x, x_hat)
    norms = math.sqrt(float(xp.sum(x**2))) * math.sqrt(float(xp.sum(x_hat**2)))
    if norms == 0:
        raise ValueError("x or x_hat is zero throughout and has no direction; report mse instead")
    return float(xp.sum(x * x_hat)) / norms


def kl_divergence(p, q):
    """Kullback-Leibler divergence sum p ln(p / q) of two histograms of one shape, in nats.

    p, q:  counts or probabilities; each is first divided by its sum
    A bin empty in p counts nothing; a bin empty in q alone makes it inf.  Raises ValueError for
    negative, infinite or NaN counts, for a histogram without any, and as ``mse`` does.
    """
    xp, p, q = _wide(p, q, names="p and q")
    for name, counts in (("p", p), ("q", q)):
        if not bool(xp.all((counts >= 0) & xp.isfinite(counts))):
            raise ValueError(f"{name} holds a negative or non-finite count; counts are >= 0")
        if not bool(xp.any(counts > 0)):
            raise ValueError(f"{name} sums to 0; a histogram needs at least one count")
    p, q = p / xp.sum(p), q / xp.sum(q)
    occupied = p > 0
    p, q = p[occupied], q[occupied]
    if bool(xp.any(q == 0)):
        return math.inf
    return float(xp.sum(p * xp.log(p / q)))


def _wide(x, x_hat, names="x and x_hat"):
    """-> namespace, and both arguments as float64 where their device has it."""
    xp = array_namespace(x, x_hat)
    if x.shape != x_hat.shape:
        raise ValueError(
            f"{names} must have one shape, got {tuple(x.shape)} and {tuple(x_hat.shape)}"
        )
    if size(x) == 0:
        raise ValueError(f"{names} are empty, of shape {tuple(x.shape)}; give at least one value")
    floats = xp.__array_namespace_info__().dtypes(device=device(x), kind="real floating")
    dtype = floats.get("float64", xp.float32)
    return xp, *(xp.astype(_without_gradient(a), dtype, copy=False) for a in (x, x_hat))


def _without_gradient(x):
    return x.detach() if hasattr(x, "detach") else x
