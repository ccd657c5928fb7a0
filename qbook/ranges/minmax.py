"""Min-max: cover every value; one outlier sets the step of all the others.

Nagel et al. 2021, arXiv:2106.08295, section 3.1.  Book: 2.7
"""

from qbook import granularity
from qbook.ranges import samples


def minmax(x, axis=None):
    """Smallest and largest value of x -> (low, high), of x's library and device.

    x:     floats, any shape
    axis:  None: the whole tensor, 0-dimensional results; else the axis or axes that share a range,
           kept at length 1.  w [out, in], axis=1 -> [out, 1]
    float64 for float64 x, else float32.  0 need not lie inside: ``affine.qparams_from_range``
    widens the range to contain it.  Raises ValueError for empty x, NaN, infinity, a missing axis.
    """
    xp, x = samples.checked(x)
    axes = granularity.normalise_axes(axis, x.ndim)
    keep = axis is not None
    return xp.min(x, axis=axes, keepdims=keep), xp.max(x, axis=axes, keepdims=keep)
