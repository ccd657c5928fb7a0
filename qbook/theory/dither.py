"""Dither: noise added before rounding makes the error obey the uniform model for every input.

Subtracted again after rounding, the error is uniform and independent of x (Roberts 1962; Schuchman
1964).  Left in, the rounding is unbiased: it is stochastic rounding (Gupta et al. 2015,
arXiv:1502.02551).  NumPy arrays and torch tensors alike.  Book: 2.2
"""

from array_api_compat import array_namespace


def uniform_dither(shape, scale, rng):
    """One value per element, uniform on [-scale / 2, scale / 2) -> NumPy array of ``shape``.

    scale:  real step, > 0, broadcastable to ``shape``
    rng:    numpy.random.Generator
    """
    return (rng.random(shape) - 0.5) * scale


def quantize_subtractive(x, scale, dither):
    """x and dither [...] -> x_hat = scale * round((x + dither) / scale) - dither.

    The decoder needs the same dither, so it shares the seed.  With ``uniform_dither`` the error is
    uniform on [-scale / 2, scale / 2] and independent of x: the mean squared error is scale^2 / 12
    for every density of x, and for every single x.
    """
    return quantize_nonsubtractive(x, scale, dither) - dither


def quantize_nonsubtractive(x, scale, dither):
    """x and dither [...] -> x_hat = scale * round((x + dither) / scale), a multiple of scale.

    With ``uniform_dither`` the mean of x_hat is x.  Raises ValueError unless every scale > 0.
    """
    xp = array_namespace(x, dither)
    if not bool(xp.all(xp.asarray(scale) > 0)):
        raise ValueError(f"scale={scale} must be positive")
    return scale * xp.round((x + dither) / scale)


def round_stochastic(x, uniform):
    """x [...] and ``uniform`` [...] on [0, 1) -> floor(x + uniform).

    Rounds up with a probability equal to the fraction of x above its floor.
    The same map as ``quantize_nonsubtractive(x, 1, uniform - 1/2)``, ties aside.
    """
    xp = array_namespace(x, uniform)
    return xp.floor(x + uniform)


def nonsubtractive_mse(x, scale):
    """Mean squared error over the dither, given x [...] -> [...]: scale^2 f (1 - f), where f is the
    fractional part of x / scale.

    A Bernoulli variance.  It depends on x: 0 on a level, scale^2 / 4 between two, scale^2 / 6 on
    average over f, which is twice the error of rounding to nearest.
    """
    xp = array_namespace(x)
    steps = x / scale
    fraction = steps - xp.floor(steps)
    return scale**2 * fraction * (1 - fraction)
