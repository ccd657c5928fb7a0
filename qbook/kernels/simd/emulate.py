"""The byte products of processors, as their manual defines them: in NumPy, on any machine.

    vpmaddubsw   u8 x s8, two products a lane, added in 16 bits that saturate       SSSE3, AVX2
    vpmaddwd     s16 x s16, two products a lane, added in 32 bits                   SSE2, AVX2
    vpdpbusd     u8 x s8, four products a lane, added to 32 bits modulo 2^32        VNNI
    vpdpbusds    the same, saturating                                               VNNI

Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2.  Arrays broadcast against
each other.  Book: 6.2
"""

import numpy as np


def vpmaddubsw(u, s):
    """u uint8 [..., 2 n], s int8 [..., 2 n] -> int16 [..., n]: sums of two products, saturated"""
    return _saturate(_sums(u, np.uint8, s, np.int8, 2), np.int16)


def saturates(u, s):
    """-> bool [..., n]: where ``vpmaddubsw`` of the same arguments is not the exact sum"""
    exact = _sums(u, np.uint8, s, np.int8, 2)
    return exact != _saturate(exact, np.int16)


def vpmaddwd(x, y):
    """x, y int16 [..., 2 n] -> int32 [..., n]: sums of two products, exact but for four -32768"""
    return _sums(x, np.int16, y, np.int16, 2).astype(np.int32)


def vpdpbusd(acc, u, s):
    """acc int32 [..., n], u uint8 and s int8 [..., 4 n] -> int32 [..., n], modulo 2^32"""
    return _added(acc, u, s).astype(np.int32)


def vpdpbusds(acc, u, s):
    """Like ``vpdpbusd``, but a sum that does not fit becomes the nearest that does."""
    return _saturate(_added(acc, u, s), np.int32)


def saturating_matmul(x, w):
    """x uint8 [samples, in], w int8 [out, in] -> int32 sums, pairs cut, [samples, out]

    As without VNNI: ``vpmaddubsw``, then ``vpmaddwd`` with ones, then additions.
    An odd in is filled up with a zero.  Raises ValueError for other types and shapes.
    """
    x, w = np.asarray(x), np.asarray(w)
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[1]:
        raise ValueError(f"x is {x.shape}, w is {w.shape}; pass [samples, in] and [out, in]")
    x, w = (np.pad(a, ((0, 0), (0, a.shape[1] % 2))) for a in (x, w))
    sums = np.empty((len(x), len(w)), np.int32)
    cut = np.empty_like(sums)
    for j, row in enumerate(w):
        exact = _sums(x, np.uint8, row, np.int8, 2)
        pairs = _saturate(exact, np.int16)
        sums[:, j] = pairs.sum(axis=1, dtype=np.int32)
        cut[:, j] = np.count_nonzero(pairs != exact, axis=1)
    return sums, cut


def _sums(x, x_type, y, y_type, count):
    """x, y [..., count n] of these types -> integers [..., n], sums of ``count`` products, exact"""
    x, y = np.asarray(x), np.asarray(y)
    if x.dtype != x_type or y.dtype != y_type:
        names = np.dtype(x_type).name, np.dtype(y_type).name
        raise ValueError(f"operands are {x.dtype} and {y.dtype}; pass {names[0]} and {names[1]}")
    if x.shape[-1] != y.shape[-1] or x.shape[-1] % count:
        raise ValueError(
            f"operands have {x.shape[-1]} and {y.shape[-1]} elements; "
            f"pass equal numbers that {count} divides"
        )
    # Four products of bytes need 18 bits, two of 16 bits may need 33.
    wide = np.int32 if x.dtype.itemsize == 1 else np.int64
    x, y = x.astype(wide), y.astype(wide)
    return sum(x[..., i::count] * y[..., i::count] for i in range(count))


def _added(acc, u, s):
    acc = np.asarray(acc)
    if acc.dtype != np.int32:
        raise ValueError(f"acc is {acc.dtype}; pass int32")
    return acc.astype(np.int64) + _sums(u, np.uint8, s, np.int8, 4)


def _saturate(x, dtype):
    info = np.iinfo(dtype)
    return np.clip(x, info.min, info.max).astype(dtype)
