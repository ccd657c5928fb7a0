"""Order statistics: how large is the largest of n values, which sets the step of their group?

    E max |x_i|^k = integral of k t^(k-1) (1 - P(|x| <= t)^n) over t > 0

David & Nagaraja 2003, "Order Statistics", chapter 3.  Book: 2.6
"""

import numpy as np
from scipy import integrate

# Panel edges: how many of the n values lie beyond them on average.
EXPECTED_BEYOND = np.array([1e3, 100, 30, 10, 3, 1, 0.3, 0.1, 0.01, 1e-3, 1e-4, 1e-6])
NODES, WEIGHTS = np.polynomial.legendre.leggauss(32)


def abs_max_moment(dist, n, power=2):
    """E max(|x_1|, ..., |x_n|)^power of n independent draws -> float, in the unit of x^power.

    dist:   a frozen continuous distribution of scipy.stats
    n:      how many, a real number of at least 1
    power:  1 or 2
    Relative error about 1e-9.  Raises ValueError for n below 1, another power, and a dist without
    a finite variance.
    """
    if not n >= 1:
        raise ValueError(f"n={n} is below 1; the largest of no values does not exist")
    if power not in (1, 2):
        raise ValueError(f"power={power} is not supported; choose 1 or 2")
    if not np.isfinite(dist.std()):
        raise ValueError(f"the standard deviation of dist is {dist.std()}; its maxima have no mean")

    def integrand(t):
        # 1 - (1 - outside)^n with all its digits where outside is small.
        outside = np.minimum(dist.sf(t) + dist.cdf(-t), 1 - 1e-16)
        return power * t ** (power - 1) * -np.expm1(n * np.log1p(-outside))

    # The integrand falls from 1 to 0 where about one value of n is larger: panels around there.
    shares = np.minimum(EXPECTED_BEYOND / n, 1) / 2
    edges = np.unique(np.append(0, np.maximum(np.abs(dist.isf(shares)), np.abs(dist.ppf(shares)))))
    low, half = edges[:-1, None], np.diff(edges)[:, None] / 2
    body = np.sum(half * WEIGHTS * integrand(low + half * (1 + NODES)))
    tail, _ = integrate.quad(integrand, edges[-1], np.inf, epsabs=1e-10 * body, limit=200)
    return float(body + tail)


def equal_rate_noise(dist, group_size, metadata_bits):
    """The noise of groups that each cover their largest value, at the same total bits for every
    group size -> float, in the unit of x squared, up to a factor that no group size changes.

        (1 - 1/g) E max |x|^2 4^(metadata_bits / g)

    The noise is scale^2 / 12 for all but the largest value, which is a level itself; bits + (bits
    of metadata) / g are held constant, and a bit divides the noise by four.  For fine steps.
    Raises ValueError as ``abs_max_moment`` does, and for negative metadata_bits.
    """
    if not metadata_bits >= 0:
        raise ValueError(f"metadata_bits={metadata_bits}; choose 0 or more")
    loading = abs_max_moment(dist, group_size)
    return (1 - 1 / group_size) * loading * 4 ** (metadata_bits / group_size)
