"""The roof that kernels stay under: arithmetic from registers, bytes from memory and cache."""

import numpy as np

from qbook.kernels import aligned, isa, threads
from qbook.kernels.peaks import bandwidth, compute
from qbook.lab.timing import Group

STEPS = 50_000
# Past the last cache of most machines, and within that of most.
SIZES = {"memory, 512 MiB": 512 * 2**20, "cache, 8 MiB": 8 * 2**20}


def groups():
    yield arithmetic()
    for place, size in SIZES.items():
        yield memory(place, size)


def arithmetic():
    cases = {"float32 multiply-add": lambda: compute.multiply_add(STEPS)}
    operations = {"float32 multiply-add": compute.FMA_OPERATIONS * STEPS * threads.count()}
    if isa.choose() in ("avx512vnni", "avxvnni"):
        cases["int8 product"] = lambda: compute.dot(STEPS)
        operations["int8 product"] = compute.DOT_OPERATIONS * STEPS * threads.count()
    return Group("peak arithmetic", cases, operations)


def memory(place, size):
    x, y, target = (aligned.zeros(size // 4, np.float32) for _ in range(3))
    for array in (x, y, target):
        # Pages that were never written are all the same page of zeros.
        array[:] = 1
    cases = {
        "read": lambda: bandwidth.read(x),
        "copy": lambda: bandwidth.copy(x, target),
        "triad": lambda: bandwidth.triad(x, y, target),
    }
    return Group(f"bandwidth, {place}", cases, bytes_moved={n: c() for n, c in cases.items()})
