"""Sectors: a GPU's memory moves 32 bytes at a time, whether all of them were asked for or not.

One load instruction of a warp asks for as many bytes as its 32 threads together; what crosses the
bus is every sector that one of them touches.

NVIDIA, CUDA C++ Best Practices Guide, "Coalesced Access to Global Memory".  Book: 6.1.2
"""

import numpy as np

SECTOR = 32
WARP = 32


def sectors(addresses, size):
    """Byte addresses of the threads [n], each of which loads ``size`` bytes -> sectors touched

    Raises ValueError for a size below 1.
    """
    if size < 1:
        raise ValueError(f"size={size} loads nothing; choose 1 or more bytes")
    first = np.asarray(addresses, dtype=np.int64) // SECTOR
    last = (np.asarray(addresses, dtype=np.int64) + size - 1) // SECTOR
    most = int(np.max(last - first, initial=0)) + 1
    touched = np.minimum(first[:, None] + np.arange(most), last[:, None])
    return len(np.unique(touched))


def efficiency(addresses, size):
    """-> bytes asked for over bytes moved, at most 1 unless threads share a byte"""
    return len(addresses) * size / (SECTOR * sectors(addresses, size))


def strided(stride, size, start=0):
    """-> ``efficiency`` of a warp whose threads load ``size`` bytes at a distance of ``stride``"""
    return efficiency(start + stride * np.arange(WARP), size)
