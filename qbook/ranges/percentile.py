"""Percentile: give up the rarest values, whatever they are, for a finer step.

Wu et al. 2020, arXiv:2004.09602, which compares 99.9 ... 99.9999 %.  Book: 2.7
"""

import math

from qbook import granularity
from qbook.ranges import samples


def percentile(x, percent=99.99, *, axis=None, symmetric=False):
    """The range between two percentiles of x -> (low, high), of x's library and device.

    x:          floats, any shape
    percent:    in (50, 100].  symmetric=False: high is this percentile of x and low its mirror,
                the (100 - percent)th, so up to 2 (100 - percent) % are clipped, half on each side.
                symmetric=True: high is this percentile of |x| and low = -high
    axis:       as in ``minmax``: None, or the axes that share a range and are kept at length 1
    Linear between order statistics, as ``numpy.percentile``.  symmetric=True contains 0;
    symmetric=False need not.  float64 for float64 x, else float32.  Raises ValueError for percent
    outside (50, 100], empty x, NaN, infinity, a missing axis.
    """
    if not 50 < percent <= 100:
        raise ValueError(f"percent={percent} is outside (50, 100]; 99.9 to 99.9999 is usual")
    xp, x = samples.checked(x)
    ordered = _sorted_slices(xp, xp.abs(x) if symmetric else x, axis)
    high = _order_statistic(ordered, percent)
    low = -high if symmetric else _order_statistic(ordered, 100 - percent)
    if axis is None:
        return low.reshape(()), high.reshape(())
    axes = granularity.normalise_axes(axis, x.ndim)
    shape = tuple(1 if a in axes else n for a, n in enumerate(x.shape))
    return low.reshape(shape), high.reshape(shape)


def _sorted_slices(xp, x, axis):
    """x -> [slices, values of a slice], each slice in ascending order."""
    axes = granularity.normalise_axes(axis, x.ndim)
    kept = tuple(a for a in range(x.ndim) if a not in axes)
    rows = math.prod(x.shape[a] for a in kept)
    return xp.sort(xp.permute_dims(x, kept + axes).reshape((rows, -1)), axis=1)


def _order_statistic(ordered, percent):
    """[slices, n] -> [slices, 1]: the value at position (n - 1) percent / 100."""
    position = (ordered.shape[1] - 1) * (percent / 100)
    below = math.floor(position)
    t = position - below
    a = ordered[:, below : below + 1]
    b = ordered[:, math.ceil(position) : math.ceil(position) + 1]
    # From the nearer end, so that t = 1 gives b exactly and the result never leaves [a, b].
    return a + (b - a) * t if t < 0.5 else b - (b - a) * (1 - t)
