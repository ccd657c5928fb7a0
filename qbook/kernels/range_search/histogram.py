"""Histograms: the public calls.  They check, find the edges, allocate and launch.

Counts are those of ``numpy.histogram`` of the same float32 values, every one of them: a bin is what
lies between two edges, and the edges are NumPy's.  Book: 2.7, 6.2
"""

import numpy as np

from qbook.kernels import isa, threads
from qbook.kernels.range_search import counting, reference

EVERY_BIT, NO_SIGN = np.int32(-1), np.int32(0x7FFFFFFF)
MOST_BINS = 1 << 20


def histogram(x, bins, low, high, *, use=None, num_threads=None):
    """x float32, any shape -> counts of equal bins between low and high, int64 [bins]

    The counts of ``numpy.histogram(x, bins, (low, high))``: edges in float32, or in float64 where
    low or high is a float64 of NumPy; the last bin holds its right edge; what is outside, and NaN,
    is not counted.
    use:  an instruction set, see ``isa``;  num_threads: see ``threads``
    Raises ValueError for another type, bins outside 1..2^20, a range that is empty, not finite or
    too short for as many bins.
    """
    return _counted(x, bins, low, high, EVERY_BIT, use, num_threads)


def absolute_histogram(x, bins, high, *, use=None, num_threads=None):
    """x float32, any shape -> counts of |x| in equal bins between 0 and high, int64 [bins]

    As ``histogram`` of |x|, which is never stored.
    """
    return _counted(x, bins, 0, high, NO_SIGN, use, num_threads)


def _counted(x, bins, low, high, mask, use, num_threads):
    x = np.asarray(x)
    if x.dtype != np.float32:
        raise ValueError(f"x is of type {x.dtype}; pass float32, or call numpy.histogram")
    if not 1 <= bins <= MOST_BINS:
        raise ValueError(f"bins={bins} is not supported; choose 1 to {MOST_BINS}")
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise ValueError(f"low={low}, high={high} is no range; choose two finite numbers in order")
    chosen = isa.choose(use)
    # NumPy's error says that there are too many bins; its warnings on the way say less.
    with np.errstate(over="ignore", invalid="ignore"):
        edges = np.histogram_bin_edges(x.ravel()[:0], bins, (low, high))
    first, above, inverse, exact = _in_float32(edges)
    if chosen == isa.REFERENCE or not exact:
        return reference.histogram(np.abs(x) if mask == NO_SIGN else x, edges)
    x = np.ascontiguousarray(x).reshape(-1)
    count = threads.count(num_threads)
    counts = np.empty((count, bins + 2), np.int64)
    token = isa.ISAS[chosen]
    edges = np.concatenate([_upwards(edges[:-1]), np.float32([np.inf, -np.inf])])
    counting.count(token, x, mask, first, above, inverse, edges, counts, count)
    return counts[:, :bins].sum(axis=0)


def _in_float32(edges):
    """-> low, the first number above high, bins / (high - low), and whether they find every bin

    They do if (x - low) inverse, in float32, is off by less than half a bin at every edge.
    """
    bins = len(edges) - 1
    low, high = _upwards(edges[:1])[0], -_upwards(-edges[-1:])[0]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        inverse = np.float32(bins / (np.float64(edges[-1]) - np.float64(edges[0])))
        positions = (_upwards(edges) - low) * inverse
        # Neighbours of an edge are at most three roundings of bins away from where it is.
        wrong = np.max(np.abs(positions - np.arange(bins + 1))) + 4 * bins * 2.0**-24
        above = np.nextafter(high, np.float32(np.inf))
    return low, above, inverse, bool(wrong < 0.5)


def _upwards(edges):
    """The smallest float32 not below each edge: of float32 values, it divides the same."""
    rounded = edges.astype(np.float32)
    return np.where(rounded < edges, np.nextafter(rounded, np.float32(np.inf)), rounded)
