"""What a search sees of x: rows of float32 on the host, and their extrema.  Book: 2.7, 6.2"""

import math

import numpy as np
from array_api_compat import array_namespace, device, size

from qbook import granularity
from qbook.kernels import threads
from qbook.kernels.range_search import errors
from qbook.ranges import samples

# Values of a row that one task looks through.
PART = 1 << 16
# The bits of infinity, the first pattern that is no finite number.
INFINITY = 0x7F800000


def is_wide(x):
    """Whether x is float64, which these kernels do not compute in."""
    return str(x.dtype).rpartition(".")[2] == "float64"


def rows_of(x, axis=None):
    """x, the axes that share a range -> float32 [rows, n] on the host, shape of the result

    A view of x where one exists.  Raises ValueError where x is empty or not of a real float type,
    and for a missing axis.
    """
    axes = granularity.normalise_axes(axis, x.ndim)
    # All checks of ``samples`` but the one that reads every value: ``extrema`` reads them anyway.
    xp, _ = samples.checked(x if size(x) == 0 else x[(slice(1),) * x.ndim])
    x = x.detach() if hasattr(x, "detach") else x
    host = samples.on_host(xp.astype(x, xp.float32, copy=False))
    kept = [a for a in range(x.ndim) if a not in axes]
    shape = () if axis is None else tuple(1 if a in axes else n for a, n in enumerate(x.shape))
    count = math.prod(x.shape[a] for a in kept)
    rows = np.transpose(host, (*kept, *axes)).reshape(count, -1)
    return np.ascontiguousarray(rows), shape


def extrema(rows, num_threads=None):
    """float32 [rows, n] -> low, high [rows].  Raises ValueError for NaN and infinity."""
    parts = -(-rows.shape[1] // PART)
    low, high, top = (
        np.empty((len(rows), parts), dtype) for dtype in (np.float32, np.float32, np.int32)
    )
    errors.extrema(rows, low, high, top, threads.count(num_threads))
    if not top.max() < INFINITY:
        raise ValueError("x holds NaN or infinity; estimate the range of finite values only")
    return low.min(axis=1), high.max(axis=1)


def like(x, values, shape):
    """float32 values of the host -> an array of this shape in x's library, on its device"""
    return array_namespace(x).asarray(values.reshape(shape), device=device(x))
