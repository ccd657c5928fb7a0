"""Memory: how fast bytes come and go.  ``read`` is what a weight sees in a product with one row.

STREAM (McCalpin 1995) counts what the program names, not what the cache fetches besides: a copy
reads and writes, and so does ours count.  Book: 6.2
"""

import numpy as np
from numba import prange

from qbook.kernels import threads
from qbook.kernels.compiled import kernel
from qbook.kernels.simd.arithmetic import fma, splat_f32, xor
from qbook.kernels.simd.memory import load_f32, load_i32, prefetch, store

UNROLLED = 4 * 64
AHEAD = 4096


def read(source, *, num_threads=None):
    """Load every byte of a contiguous array once -> bytes read.  The last 255 may be left out."""
    return _run(_read, source, (), num_threads)


def copy(source, target, *, num_threads=None):
    """Copy source into target, contiguous, of one size -> bytes read and written"""
    return 2 * _run(_copy, source, (target,), num_threads)


def triad(x, y, target, *, num_threads=None):
    """target = x + 3 y, float32 -> bytes read and written: STREAM's own kernel"""
    return 3 * _run(_triad, x, (y, target), num_threads)


def _run(compiled, source, others, num_threads):
    for array in (source, *others):
        if not array.flags.c_contiguous or array.nbytes != source.nbytes:
            raise ValueError(
                f"arrays of {source.nbytes} and {array.nbytes} bytes; pass contiguous, equal ones"
            )
    count = threads.count(num_threads)
    flat = [array.reshape(-1).view(np.uint8) for array in (source, *others)]
    sums = np.zeros((count, 16), np.int32)
    compiled(*flat, sums, count)
    return source.nbytes // UNROLLED * UNROLLED


@kernel(parallel=True)
def _read(source, sums, threads):
    blocks = source.shape[0] // UNROLLED
    if threads == 1:
        _read_part(source, 0, blocks, sums, 0)
    else:
        for t in prange(threads):
            _read_part(source, blocks * t // threads, blocks * (t + 1) // threads, sums, t)


@kernel
def _read_part(source, first, last, sums, t):
    a = b = c = d = load_i32(sums, 64 * t)
    for block in range(first, last):
        at = block * UNROLLED
        prefetch(source, at + AHEAD)
        prefetch(source, at + AHEAD + 64)
        prefetch(source, at + AHEAD + 128)
        prefetch(source, at + AHEAD + 192)
        a, b = xor(a, load_i32(source, at)), xor(b, load_i32(source, at + 64))
        c, d = xor(c, load_i32(source, at + 128)), xor(d, load_i32(source, at + 192))
    store(sums, 64 * t, xor(xor(a, b), xor(c, d)))


@kernel(parallel=True)
def _copy(source, target, sums, threads):
    blocks = source.shape[0] // UNROLLED
    if threads == 1:
        _copy_part(source, target, 0, blocks)
    else:
        for t in prange(threads):
            _copy_part(source, target, blocks * t // threads, blocks * (t + 1) // threads)


@kernel
def _copy_part(source, target, first, last):
    for at in range(first * UNROLLED, last * UNROLLED, 64):
        store(target, at, load_i32(source, at))


@kernel(parallel=True)
def _triad(x, y, target, sums, threads):
    blocks = x.shape[0] // UNROLLED
    if threads == 1:
        _triad_part(x, y, target, 0, blocks)
    else:
        for t in prange(threads):
            _triad_part(x, y, target, blocks * t // threads, blocks * (t + 1) // threads)


@kernel
def _triad_part(x, y, target, first, last):
    three = splat_f32(np.float32(3))
    for at in range(first * UNROLLED, last * UNROLLED, 64):
        store(target, at, fma(three, load_f32(y, at), load_f32(x, at)))
