"""Arithmetic from registers alone: twelve independent chains hide the latency of each step.

Operations: a multiplication and an addition are two.  Book: 6.2
"""

import numpy as np
from numba import prange

from qbook.kernels import isa, threads
from qbook.kernels.compiled import kernel
from qbook.kernels.simd.arithmetic import add, fma, splat_f32, splat_i32
from qbook.kernels.simd.dot import dot4
from qbook.kernels.simd.memory import store

CHAINS = 12
DOT_OPERATIONS = 2 * CHAINS * 64
FMA_OPERATIONS = 2 * CHAINS * 16


def dot(steps=100_000, *, use=None, num_threads=None):
    """Run ``steps`` of twelve byte products on each thread -> operations done

    Raises ValueError for "reference", and for "portable": several plain instructions, which the
    compiler takes out of a loop that always multiplies the same.
    """
    if isa.choose(use) == "portable":
        raise ValueError("use='portable' has no instruction of its own, so no peak")
    return _run(_dot, DOT_OPERATIONS, steps, use, num_threads)


def multiply_add(steps=100_000, *, use=None, num_threads=None):
    """Run ``steps`` of twelve float32 multiply-adds on each thread -> operations done"""
    return _run(_fma, FMA_OPERATIONS, steps, use, num_threads)


def _run(compiled, operations, steps, use, num_threads):
    chosen = isa.choose(use)
    if chosen == isa.REFERENCE:
        raise ValueError(f"use={chosen!r} has no peak; choose one of {', '.join(isa.ISAS)}")
    count = threads.count(num_threads)
    compiled(isa.ISAS[chosen], steps, np.zeros((count, 16), np.int32), count)
    return operations * steps * count


@kernel(parallel=True)
def _dot(isa, steps, out, threads):
    if threads == 1:
        _dot_chains(isa, steps, out, 0)
    else:
        for t in prange(threads):
            _dot_chains(isa, steps, out, t)


@kernel
def _dot_chains(isa, steps, out, t):
    a = b = c = d = e = f = g = h = i = j = k = m = splat_i32(np.int32(0))
    # Bytes that the compiler cannot know.
    u, s = splat_i32(np.int32(steps | 0x01010101)), splat_i32(np.int32(steps | 0x02020202))
    for _ in range(steps):
        a, b, c = dot4(isa, a, u, s), dot4(isa, b, u, s), dot4(isa, c, u, s)
        d, e, f = dot4(isa, d, u, s), dot4(isa, e, u, s), dot4(isa, f, u, s)
        g, h, i = dot4(isa, g, u, s), dot4(isa, h, u, s), dot4(isa, i, u, s)
        j, k, m = dot4(isa, j, u, s), dot4(isa, k, u, s), dot4(isa, m, u, s)
    total = add(add(add(a, b), add(c, d)), add(add(e, f), add(g, h)))
    store(out, 64 * t, add(add(total, add(i, j)), add(k, m)))


@kernel(parallel=True)
def _fma(isa, steps, out, threads):
    if threads == 1:
        _fma_chains(isa, steps, out, 0)
    else:
        for t in prange(threads):
            _fma_chains(isa, steps, out, t)


@kernel
def _fma_chains(isa, steps, out, t):
    a = b = c = d = e = f = g = h = i = j = k = m = splat_f32(np.float32(0))
    x, y = splat_f32(np.float32(1e-9 * steps)), splat_f32(np.float32(1.0 + 1e-9 * steps))
    for _ in range(steps):
        a, b, c = fma(x, y, a), fma(x, y, b), fma(x, y, c)
        d, e, f = fma(x, y, d), fma(x, y, e), fma(x, y, f)
        g, h, i = fma(x, y, g), fma(x, y, h), fma(x, y, i)
        j, k, m = fma(x, y, j), fma(x, y, k), fma(x, y, m)
    total = add(add(add(a, b), add(c, d)), add(add(e, f), add(g, h)))
    store(out, 64 * t, add(add(total, add(i, j)), add(k, m)))
