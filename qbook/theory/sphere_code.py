"""Random codewords on a sphere: the block code with which Shannon reaches R(D).

A Gaussian block of n samples has nearly the length sqrt(n), so only its direction is coded: the
codeword at the smallest angle.  Shannon 1959 (random codes); Sakrison 1968, IEEE Trans. Inf. Theory
14, 481-486 (on the sphere).  Unit variance throughout.  Book: 2.3
"""

import numpy as np
from scipy import special

# Angles at which the distribution of the smallest one is tabulated: the error of the mean cosine
# falls as 1 / ANGLES^2 and is below 1e-6 for every n and rate allowed here.
ANGLES = 20_001
MAX_BITS = 1000


def draw(n, size, radius, rng):
    """Independent codewords, uniform on the sphere of radius ``radius * sqrt(n)`` -> [size, n].

    radius:  sqrt(1 - D) for distortion D per sample at n to infinity, see ``best_radius``
    rng:     numpy.random.Generator
    """
    directions = rng.standard_normal((size, n))
    return directions * (radius * np.sqrt(n) / np.linalg.norm(directions, axis=1, keepdims=True))


def quantize(x, codewords):
    """x [blocks, n], codewords [size, n] of one length -> code of the nearest, integers [blocks].

    With one length, nearest means largest inner product.
    """
    return np.argmax(x @ codewords.T, axis=1)


def cap_probability(n, angle):
    """Probability that a codeword lies within ``angle`` radians, 0 ... pi, of a given direction.

    The share of the sphere in n dimensions that its cap covers: up to a right angle half of
    I(sin^2 angle; (n - 1) / 2, 1/2), the regularised incomplete beta function.  Raises ValueError
    for n < 2.
    """
    if not n >= 2:
        raise ValueError(f"n={n} has no angles; choose a dimension of at least 2")
    angle = np.asarray(angle, np.float64)
    half = special.betainc((n - 1) / 2, 0.5, np.sin(angle) ** 2) / 2
    return np.where(angle <= np.pi / 2, half, 1 - half)


def mean_cosine(n, rate):
    """E cos of the angle to the nearest of 2^(n rate) random codewords, over code and source.

    All codewords miss the cap with probability (1 - p)^size; the mean is the integral of its
    complement.  Raises ValueError for n < 2 and for n * rate above MAX_BITS or not positive.
    """
    if not 0 < n * rate <= MAX_BITS:
        raise ValueError(
            f"n={n} and rate={rate} make {n * rate} bits a block; choose 0 < n * rate <= {MAX_BITS}"
        )
    angle = np.linspace(0, np.pi, ANGLES)
    with np.errstate(divide="ignore"):
        # At angle pi the cap is everything: log 0, and no codeword misses it.
        missed = np.exp(np.exp2(n * rate) * np.log1p(-cap_probability(n, angle)))
    # E cos = 1 - integral of P(smallest angle > a) sin a, by parts.
    return float(1 - np.trapezoid(missed * np.sin(angle), angle))


def best_radius(n, rate):
    """Radius of the sphere, in units of sqrt(n), with the least mean squared error."""
    cosine = mean_cosine(n, rate)
    # E |x| / sqrt(n) of a standard normal block.
    length = np.sqrt(2 / n) * np.exp(special.gammaln((n + 1) / 2) - special.gammaln(n / 2))
    return float(length * cosine)


def mse(n, rate):
    """Mean squared error per sample of a unit Gaussian, averaged over random codes of 2^(n rate)
    codewords of the best radius r: 1 - r^2, since E |x - c|^2 / n = 1 + r^2 - 2 r r at that radius.

    Tends to 2^(-2 rate) as n grows.  Raises ValueError as ``mean_cosine`` does.
    """
    return 1 - best_radius(n, rate) ** 2
