"""The histogram by its definition.  The references of the searches are in ``qbook.ranges``.

Book: 2.7, 6.2
"""

import numpy as np


def histogram(x, edges):
    """x of any shape, edges [bins + 1] ascending -> counts, int64 [bins]

    A value lies in the last bin whose left edge is not above it; the right edge of all lies in the
    last bin.  What is outside, and NaN, is not counted.
    """
    inside = x[(x >= edges[0]) & (x <= edges[-1])]
    return np.bincount(np.searchsorted(edges[1:-1], inside, "right"), minlength=len(edges) - 1)
