"""A density cut into bins: probability, mean and energy of each bin, exactly.

Every scalar quantizer is a set of bins, and every number about it (mean squared error, entropy,
centroids) follows from three integrals per bin.  Antiderivatives for the Gaussian, the Laplace and
the uniform density; Gauss-Legendre panels for any other frozen distribution of ``scipy.stats``.
Book: 2.2, 2.3
"""

import numpy as np
from scipy import stats

# Probability that the bins of an unbounded quantizer leave out on each side.  The error there is
# at most scale / 2, so the mean squared error loses at most 2 * TAIL * scale^2 / 4.
TAIL = 1e-15
MAX_BINS = 10_000_000


def bin_moments(dist, edges):
    """edges [n + 1], increasing, may end in +-inf -> p, m1, m2 [n]: the integrals of the density
    times 1, x and x^2 over each bin.

    dist: a frozen continuous distribution of scipy.stats, ``stats.norm(scale=2)``.
    Raises ValueError where edges are not increasing, and where dist is not such a distribution.
    """
    edges = np.asarray(edges, np.float64)
    if edges.ndim != 1 or len(edges) < 2 or not (edges[:-1] < edges[1:]).all():
        raise ValueError(f"edges={edges} must be two or more increasing numbers")
    name = getattr(getattr(dist, "dist", None), "name", None)
    if name is None or not hasattr(dist, "pdf"):
        raise ValueError(f"dist={dist!r} is not supported; pass a frozen one such as stats.norm()")
    if name == "norm":
        return _unscale(_gaussian, edges, dist.mean(), dist.std())
    if name == "laplace":
        return _unscale(_laplace, edges, dist.mean(), dist.std() / np.sqrt(2))
    if name == "uniform":
        return _uniform(edges, *dist.support())
    return _quadrature(dist, edges)


def midtread_bins(dist, scale):
    """Bins of the unbounded uniform quantizer ``scale * round(x / scale)``, as many as the density
    needs -> levels [n], edges [n + 1]; the levels are the multiples of scale.

    Raises ValueError unless scale > 0, and where it would take more than MAX_BINS bins.
    """
    if not scale > 0:
        raise ValueError(f"scale={scale} must be positive")
    low, high = dist.support()
    low = low if np.isfinite(low) else dist.ppf(TAIL)
    high = high if np.isfinite(high) else dist.isf(TAIL)
    if not (high - low) / scale <= MAX_BINS:
        raise ValueError(
            f"scale={scale} cuts [{low:.3g}, {high:.3g}] into more than {MAX_BINS} bins; "
            f"choose a scale of at least {(high - low) / MAX_BINS:.3g}"
        )
    codes = np.arange(np.rint(low / scale), np.rint(high / scale) + 1)
    return codes * scale, np.append(codes - 0.5, codes[-1] + 0.5) * scale


def squared_error(moments, levels):
    """Integral of (x - level)^2 over each bin: p, m1, m2 and levels [n] -> [n].

    Cancellation leaves an absolute error of about 1e-16 * level^2 * p.
    """
    p, m1, m2 = moments
    return m2 - 2 * levels * m1 + levels**2 * p


def _unscale(standard_moments, edges, loc, scale):
    p, m1, m2 = standard_moments((edges - loc) / scale)
    return (
        p,
        scale * m1 + loc * p,
        scale**2 * m2 + 2 * loc * scale * m1 + loc**2 * p,
    )


def _probability(dist, edges):
    # To the right of the median differences of the survival function keep their digits.
    cdf, sf = dist.cdf(edges), dist.sf(edges)
    return np.where(edges[:-1] > 0, sf[:-1] - sf[1:], cdf[1:] - cdf[:-1])


def _gaussian(z):
    density = stats.norm.pdf(z)
    p = _probability(stats.norm, z)
    # phi' = -z phi, hence the antiderivatives -phi of z phi and Phi - z phi of z^2 phi.
    return p, -np.diff(density), p - np.diff(_finite(z) * density)


def _laplace(z):
    a = np.abs(_finite(z))
    decay = np.exp(-np.abs(z)) / 2
    p = _probability(stats.laplace, z)
    # Antiderivatives of z e^-|z| / 2, and of (z^2 - 2) e^-|z| / 2.
    return p, -np.diff((a + 1) * decay), 2 * p - np.diff(np.sign(z) * (a * a + 2 * a) * decay)


def _uniform(edges, low, high):
    x = np.clip(edges, low, high)
    return tuple(np.diff(x**k) / (k * (high - low)) for k in (1, 2, 3))


def _finite(z):
    # z times a density that is 0 at infinity: any finite z gives the limit.
    return np.where(np.isinf(z), 0.0, z)


def _quadrature(dist, edges, nodes=20):
    # Panels: the edges, and quantiles down to 1e-15 so that no panel spans many scales of the
    # density or hides a kink at the median.
    tails = 10.0 ** np.arange(-15, -2)
    body = np.linspace(0.0, 1.0, 129)
    cuts = np.concatenate([edges, dist.ppf(np.concatenate([tails, body])), dist.isf(tails)])
    cuts = np.unique(cuts[(edges[0] <= cuts) & (cuts <= edges[-1])])
    x, weight = _gauss_legendre(cuts[:-1, None], cuts[1:, None], dist.median(), nodes)
    weight = weight * dist.pdf(x)
    bin_of_panel = np.searchsorted(edges, cuts[:-1], side="right") - 1
    return tuple(
        np.bincount(bin_of_panel, (weight * x**k).sum(axis=1), minlength=len(edges) - 1)
        for k in range(3)
    )


def _gauss_legendre(low, high, median, nodes):
    """Panels low, high [n, 1] -> abscissas and weights [n, nodes].

    An infinite end lies at t = 1 of t / (1 - t), counted in distances from the median: algebraic
    tails become polynomials of 1 - t.
    """
    t, weight = np.polynomial.legendre.leggauss(nodes)
    t, weight = (t + 1) / 2, weight / 2
    left, right = np.isinf(low), np.isinf(high)
    start = np.where(left, high, low)
    length = np.where(left | right, start - median, _finite(high) - _finite(low))
    stretched = left | right
    x = start + length * np.where(stretched, t / (1 - t), t)
    return x, np.abs(length) * np.where(stretched, weight / (1 - t) ** 2, weight)
