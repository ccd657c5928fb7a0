"""Lloyd-Max: the scalar quantizer of a given number of levels with the least mean squared error.

Two conditions: a threshold lies midway between its levels (nearest neighbour), a level is the mean
of its cell (centroid).  Lloyd 1982 (memo of 1957), Method I, alternates them; Max 1960.
Fleischer 1964: for a log-concave density only one quantizer satisfies both.  Book: 2.3
"""

from typing import NamedTuple

import numpy as np
from array_api_compat import array_namespace, device
from scipy import linalg

from qbook.theory.bins import bin_moments, squared_error


class Codebook(NamedTuple):
    """levels [n], increasing; thresholds [n - 1]; mse in the unit of x squared."""

    levels: np.ndarray
    thresholds: np.ndarray
    mse: float


def quantize(x, codebook):
    """x [...] -> code of the nearest level, integers 0 ... n - 1; a tie goes to the upper level."""
    xp = array_namespace(x)
    thresholds = xp.asarray(codebook.thresholds, dtype=x.dtype, device=device(x))
    return xp.searchsorted(thresholds, x, side="right")


def dequantize(codes, codebook):
    """codes [...] -> levels [...]"""
    xp = array_namespace(codes)
    return xp.asarray(codebook.levels, device=device(codes))[codes]


def design(dist, size, *, tolerance=1e-12, max_steps=1000):
    """The optimal quantizer of a log-concave density -> Codebook.

    dist: frozen distribution of scipy.stats with a finite variance;  size: number of levels, >= 1
    Newton's method on the centroid condition, with a step of Lloyd's Method I wherever Newton's
    would not halve the distance of the levels from their centroids.  Ends when that distance is at
    most ``tolerance`` root mean squares of x everywhere.
    Raises ValueError for size < 1, RuntimeError where max_steps do not suffice (1024 levels of a
    heavy tail need a tolerance above the rounding of their centroids).
    """
    _check_size(size)
    levels = compander_levels(dist, size)
    centroids = lloyd_step(dist, levels)
    for _ in range(max_steps):
        distance = np.abs(centroids - levels).max()
        if distance <= tolerance * np.hypot(dist.mean(), dist.std()):
            return Codebook(levels, midpoints(levels), mse(dist, levels))
        proposal = newton_step(dist, levels)
        if (np.diff(proposal) > 0).all():
            its_centroids = lloyd_step(dist, proposal)
            if np.abs(its_centroids - proposal).max() <= distance / 2:
                levels, centroids = proposal, its_centroids
                continue
        levels, centroids = centroids, lloyd_step(dist, centroids)
    raise RuntimeError(f"size={size}: not converged after max_steps={max_steps}; allow more")


def lloyd_step(dist, levels):
    """Nearest-neighbour cells, then their centroids: levels [n] -> levels [n], never worse."""
    p, m1, _ = _cells(dist, levels)
    return m1 / p


def newton_step(dist, levels):
    """One Newton step on half the gradient of the error, levels * p - m1 = 0 -> levels [n].

    A threshold moves by half of what its level moves, so the Hessian is tridiagonal.
    """
    p, m1, _ = _cells(dist, levels)
    # Half the distance of two levels, times the density between them, halved once more.
    coupling = np.diff(levels) / 4 * dist.pdf(midpoints(levels))
    hessian = np.zeros((3, len(levels)))
    hessian[0, 1:] = hessian[2, :-1] = -coupling
    # All levels of a Laplace density may shift together at no cost to second order; a little
    # damping keeps rounding errors from shifting them.
    hessian[1] = p * (1 + 1e-8)
    hessian[1, :-1] -= coupling
    hessian[1, 1:] -= coupling
    return levels - linalg.solve_banded((1, 1), hessian, levels * p - m1)


def mse(dist, levels):
    """Mean squared error of the nearest-neighbour quantizer with these levels [n], increasing."""
    return float(squared_error(_cells(dist, levels), levels).sum())


def midpoints(levels):
    """levels [n] -> thresholds [n - 1]"""
    return (levels[:-1] + levels[1:]) / 2


def compander_levels(dist, size):
    """Levels as dense as pdf^(1/3), the optimum for many levels (Panter & Dite 1951) -> [size]."""
    x = np.linspace(dist.ppf(1e-9), dist.isf(1e-9), 20001)
    density = np.cbrt(dist.pdf((x[1:] + x[:-1]) / 2))
    cumulative = np.append(0.0, np.cumsum(density))
    return np.interp((np.arange(size) + 0.5) / size * cumulative[-1], cumulative, x)


def design_from_samples(samples, size, *, max_steps=10_000):
    """Lloyd's Method I on samples (any shape), from quantiles -> Codebook; mse is theirs.

    Each cell is a run of the sorted samples, so a step costs ``size`` look-ups.  Ends at a fixed
    point, which need not be the global minimum; a cell that runs empty keeps its level.
    Raises ValueError for size < 1, for NaN or infinity and for fewer distinct samples than levels;
    RuntimeError where max_steps do not suffice.
    """
    _check_size(size)
    x = np.sort(np.asarray(samples, np.float64), axis=None)
    distinct = np.unique(x)
    if not np.isfinite(x).all() or len(distinct) < size:
        raise ValueError(
            f"size={size} levels need as many distinct finite samples; there are {len(distinct)}"
        )
    sums = np.append(0.0, np.cumsum(x))
    levels = distinct[((np.arange(size) + 0.5) / size * len(distinct)).astype(int)]
    for _ in range(max_steps):
        ends = np.concatenate([[0], np.searchsorted(x, midpoints(levels)), [len(x)]])
        count = np.diff(ends)
        # An empty cell keeps its level.
        moved = np.where(count > 0, np.diff(sums[ends]) / np.maximum(count, 1), levels)
        if np.array_equal(moved, levels):
            error = x - np.repeat(levels, count)
            return Codebook(levels, midpoints(levels), float(np.mean(error**2)))
        levels = moved
    raise RuntimeError(f"size={size}: not converged after max_steps={max_steps}; allow more")


def _cells(dist, levels):
    return bin_moments(dist, np.concatenate([[-np.inf], midpoints(levels), [np.inf]]))


def _check_size(size):
    if not size >= 1:
        raise ValueError(f"size={size} levels; choose 1 or more")
