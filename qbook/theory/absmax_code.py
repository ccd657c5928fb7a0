"""What a code costs on blocks that are divided by their largest magnitude, exactly.

The largest of g Gaussian numbers has the density f(m) = 2 g phi(m) (2 Phi(m) - 1)^(g-1); given it,
the others are independent Gaussians cut at -m and m.  So the mean squared error is one integral
over m of bins' integrals.  Yoshida 2023, arXiv:2306.06965, section 3 (the distribution).
Book: 5, NF4 and QLoRA
"""

import numpy as np
from scipy import stats

from qbook.theory.bins import bin_moments, squared_error

NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)
NORMAL = stats.norm()
# Beyond it lies one Gaussian number of 10^16: no block's maximum does.
FARTHEST = 8.3


def largest_density(m, group_size):
    """m [...] > 0 -> density of the largest magnitude of group_size standard normal numbers"""
    inside = stats.norm.cdf(m) - stats.norm.cdf(-m)
    return 2 * group_size * stats.norm.pdf(m) * inside ** (group_size - 1)


def block_mse(levels, group_size):
    """Mean squared error of standard normal numbers in blocks scaled by their largest magnitude.

    levels:     [n], increasing, as fractions of the largest magnitude: NF4's, or those of INT4 / 7
    group_size: numbers in a block, an integer of at least 1
    -> float, in variances; exact up to 1e-9.  Raises ValueError for a group_size below 1 and for
    levels that do not increase.
    """
    levels = np.asarray(levels, np.float64)
    if not group_size >= 1:
        raise ValueError(f"group_size={group_size} is below 1; the largest of no numbers is none")
    if levels.ndim != 1 or not np.all(np.diff(levels) > 0):
        raise ValueError(f"levels={levels} must increase")
    # The integrand lives where maxima do: from their 1e-12 quantile on.
    low = stats.norm.isf((1 - 1e-12 ** (1 / group_size)) / 2)
    half = (FARTHEST - low) / 2
    m = low + half * (1 + NODES)
    weight = half * WEIGHTS * largest_density(m, group_size)
    others = np.array([_cut_mse(levels * each, each) for each in m])
    itself = m**2 * np.mean([np.min((levels - end) ** 2) for end in (-1, 1)])
    return float(np.sum(weight * ((group_size - 1) * others + itself)) / group_size)


def _cut_mse(levels, m):
    """The mean squared error of a standard normal number, given that it lies in (-m, m)"""
    thresholds = (levels[1:] + levels[:-1]) / 2
    used = (thresholds > -m) & (thresholds < m)
    first, last = np.searchsorted(thresholds, [-m, m], side="right")
    edges = np.concatenate([[-m], thresholds[used], [m]])
    moments = bin_moments(NORMAL, edges)
    return squared_error(moments, levels[first : last + 1]).sum() / moments[0].sum()
