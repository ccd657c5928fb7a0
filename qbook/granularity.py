"""Granularity: which neighbours share a scale.

Per tensor (all of them), per channel (a row), per group (``group_size`` neighbours of a row).
Nagel et al. 2021, arXiv:2106.08295, section 2.2.2.  Book: 2.6
"""

import math


def normalise_axes(axis, ndim):
    """The axes that share a scale as a sorted tuple of non-negative ints; None means all.

    Raises ValueError for an axis the array does not have.
    """
    if axis is None:
        return tuple(range(ndim))
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    for a in axes:
        if not -ndim <= a < ndim:
            raise ValueError(f"axis={a} does not exist in an array of {ndim} dimension(s)")
    return tuple(sorted({a % ndim for a in axes}))


def split_groups(x, group_size, axis=-1):
    """x [..., n, ...] -> view [..., n / group_size, group_size, ...], split along ``axis``.

    Raises ValueError where ``group_size`` does not divide the length of that axis.
    """
    (axis,) = normalise_axes(axis, x.ndim)
    length = x.shape[axis]
    if group_size < 1 or length % group_size:
        raise ValueError(
            f"group_size={group_size} does not divide the {length} values along axis {axis}; "
            f"what would work: {', '.join(map(str, divisors(length)))}"
        )
    groups = length // group_size
    return x.reshape((*x.shape[:axis], groups, group_size, *x.shape[axis + 1 :]))


def merge_groups(x, axis=-1):
    """The inverse of ``split_groups`` with the same ``axis``."""
    (axis,) = normalise_axes(axis, x.ndim - 1)
    return x.reshape((*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :]))


def scale_count(shape, *, axis=None, group_size=None):
    """How many scales an array of ``shape`` gets; arguments as in ``affine.choose_qparams``."""
    if group_size is not None:
        (axis,) = normalise_axes(-1 if axis is None else axis, len(shape))
        return math.prod(shape) // group_size
    shared = normalise_axes(axis, len(shape))
    return math.prod(n for a, n in enumerate(shape) if a not in shared)


def divisors(n):
    """The divisors of n, ascending: the group sizes that an axis of n values allows."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return small + [n // d for d in reversed(small) if d * d != n]
