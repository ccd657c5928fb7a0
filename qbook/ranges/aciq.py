"""ACIQ: fit the width of a density; its best clip is that width times a constant of the bits.

    Gaussian of standard deviation sigma, Laplace density exp(-|x| / b) / (2 b); clip c, step
    2 c / 2^bits:   D(c) = c^2 / (3 4^bits) + 2 integral over x > c of (x - c)^2 f(x)

Banner et al. 2019, arXiv:1810.05723, section 3 and its supplement: D'(c) = 0 gives Lambert's
W(3 4^bits) b for the Laplace density.  Book: 2.7

The model counts 2^bits steps where the symmetric codes of ``affine`` have 2^bits - 2, and gives a
clipped value the end of the range where they have a level, so that the true optimum is a little
narrower below five bits: ``theory.noise.optimal_clip``, ``mse.search``.
"""

from scipy import optimize, special, stats

from qbook import affine
from qbook.ranges import samples


def laplace_factor(bits, *, one_sided=False):
    """The best clip of the Laplace density in units of b: W(3 4^bits) -> float.

    2.83, 3.90 and 5.03 for 2, 3 and 4 bits.
    one_sided: all 2^bits codes lie on one side, as after a ReLU: the factor of bits + 1
    Raises ValueError for bits outside 1..16.
    """
    affine.code_range(bits)
    return float(special.lambertw(3 * 4 ** (bits + one_sided)).real)


def gaussian_factor(bits, *, one_sided=False):
    """The best clip of the Gaussian in units of sigma -> float: c / (6 4^bits) = E max(x - c, 0).

    1.71, 2.15 and 2.56 for 2, 3 and 4 bits; otherwise as ``laplace_factor``.
    """
    affine.code_range(bits)
    levels = 4.0 ** (bits + one_sided)

    def slope(c):
        return c / (6 * levels) - (stats.norm.pdf(c) - c * stats.norm.sf(c))

    return float(optimize.brentq(slope, 0, 10, xtol=1e-12))


def laplace(x, bits):
    """The range for x of Laplace density about 0, b = E |x| -> (-high, high), of x's library.

    x:     floats, any shape; one range for all of them.  x >= 0 throughout is taken for one side
           of the density and gets (0, high); its exact zeros, which cost no quantizer anything,
           are left out of the fit
    bits:  width of a code, 1..16
    Contains 0; high may exceed max |x|.  float64 for float64 x, else float32.  Raises ValueError
    for bits outside 1..16, empty x, NaN, infinity.
    """
    xp, x, one_sided = _sides(x)
    high = xp.mean(xp.abs(x)) * laplace_factor(bits, one_sided=one_sided)
    return _range(xp, high, one_sided)


def gaussian(x, bits):
    """The range for x Gaussian about 0, sigma^2 = E x^2; otherwise as ``laplace``."""
    xp, x, one_sided = _sides(x)
    high = xp.sqrt(xp.mean(x * x)) * gaussian_factor(bits, one_sided=one_sided)
    return _range(xp, high, one_sided)


def _sides(x):
    xp, x = samples.checked(x)
    one_sided = bool(xp.all(x >= 0))
    if one_sided and bool(xp.any(x > 0)):
        x = x[x > 0]
    return xp, x, one_sided


def _range(xp, high, one_sided):
    return (xp.zeros_like(high) if one_sided else -high), high
