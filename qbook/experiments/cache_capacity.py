"""Caches and widths: how fast a model's weights come, by how many bytes they are.

Reads of arrays from 8 KiB to 512 MiB, again and again, with the sizes of the caches as the system
tells them; products of one row in float32 and INT8, whose weights are read once a call; and
products of one to many rows with weights that are near or far.  Book: 6.2.2

    python -m qbook.experiments.cache_capacity

A minute on two cores that have nothing else to do.
"""

import dataclasses
import itertools
import statistics
import time
from functools import partial
from pathlib import Path

import numpy as np

from qbook.experiments import recorded
from qbook.lab import timing

SYSTEM = Path("/sys/devices/system/cpu/cpu0/cache")
# Three sizes an octave; every width of a power of two falls on the same ones.
SIZES = tuple(round(2 ** (13 + k / 3)) // 256 * 256 for k in range(49))
SIDES = (256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SIDE, FAR = 2048, 96


def cache_sizes(folder=SYSTEM):
    """-> list of {"level", "bytes", "shared_by"}, of data; empty where the system does not say

    shared_by: cores
    """
    units = {"K": 2**10, "M": 2**20}
    found = []
    for index in sorted(folder.glob("index*")):
        names = ("level", "type", "size", "shared_cpu_list")
        if not all((index / name).is_file() for name in names):
            continue
        level, kind, size, cores = ((index / name).read_text().strip() for name in names)
        if kind == "Instruction":
            continue
        spans = [[int(end) for end in span.split("-")] for span in cores.split(",")]
        found.append(
            {
                "level": int(level),
                "bytes": int(size[:-1]) * units[size[-1]],
                "shared_by": sum(span[-1] - span[0] + 1 for span in spans),
            }
        )
    return found


def read_times(sizes, *, threads=(1, 2), rounds=7, seconds=0.03):
    """-> rows of bytes, threads, seconds: of one pass through an array that was read just before

    sizes: bytes, multiples of 256.  Sizes take turns; the first pass of a turn is not timed.
    """
    from qbook.kernels import aligned
    from qbook.kernels.peaks import resident

    memory = aligned.zeros(max(sizes), np.uint8)
    # Pages that nobody wrote are all one and the same.
    memory[:] = 1

    def turn(size, count, passes):
        resident.read(memory[:size], 1, num_threads=count)
        # Of one thread its own time, which stands still while others run.
        clock = time.process_time if count == 1 else time.perf_counter
        start = clock()
        resident.read(memory[:size], passes, num_threads=count)
        return (clock() - start) / passes

    # By one thread, whose start is cheap, and from enough passes to forget it.
    passes = {size: max(1, round(seconds / turn(size, 1, 1 + 2**22 // size))) for size in sizes}
    cases = list(itertools.product(sizes, threads))
    taken = {case: [] for case in cases}
    for number in range(rounds):
        for size, count in cases[:: 1 if number % 2 == 0 else -1]:
            taken[size, count].append(turn(size, count, passes[size]))
    return [
        {"bytes": size, "threads": count, "seconds": statistics.median(taken[size, count])}
        for size, count in cases
    ]


def product_times(sides, *, rounds=7, seconds=0.02):
    """-> rows of weights, float32, int8: seconds of w x for w [side, side], x one row, one thread

    float32: the faster of torch and NumPy
    """
    import torch

    from qbook.kernels.int8_matmul import matmul, panels

    rng, rows = np.random.default_rng(0), []
    for side in sides:
        codes, x = (rng.integers(-128, 128, (n, side), np.int8) for n in (side, 1))
        w, vector, packed = codes.astype(np.float32), x[0].astype(np.float32), panels.pack(codes)
        w_torch, vector_torch = torch.from_numpy(w), torch.from_numpy(vector)
        # One after the other: in turns, each would find its weights evicted by the others.
        cases = (
            partial(torch.mv, w_torch, vector_torch),
            partial(np.matmul, w, vector),
            partial(matmul.matmul, x, packed, num_threads=1),
        )
        *real, int8 = [_seconds(case, rounds, seconds) for case in cases]
        rows.append({"weights": side * side, "float32": min(real), "int8": int8})
    return rows


def row_times(samples, *, side=SIDE, far=FAR, rounds=5, seconds=0.02):
    """-> rows of samples, near, far: seconds of an INT8 product with w [side, side], one thread

    near: with the same weight every time;  far: with the next of ``far`` copies, too many to stay
    """
    from qbook.kernels import aligned
    from qbook.kernels.int8_matmul import matmul, panels

    rng = np.random.default_rng(0)
    w = panels.pack(rng.integers(-128, 128, (side, side), np.int8))
    copies = []
    for _ in range(far):
        data = aligned.zeros(w.data.shape, w.data.dtype)
        data[:] = w.data
        copies.append(dataclasses.replace(w, data=data))
    copies, rows = itertools.cycle(copies), []
    for count in samples:
        x = rng.integers(-128, 128, (count, side), np.int8)
        near = _seconds(partial(matmul.matmul, x, w, num_threads=1), rounds, seconds)
        distant = partial(_with_next, matmul.matmul, x, copies)
        rows.append({"samples": count, "near": near, "far": _seconds(distant, rounds, seconds)})
    return rows


def _with_next(product, x, copies):
    return product(x, next(copies), num_threads=1)


def _seconds(case, rounds, seconds):
    """Median of the process's own time: of one thread, or more where the case has started some."""
    times = timing.interleave({"": case}, rounds=rounds, seconds=seconds, clock=time.process_time)
    return times[""].seconds


def main():
    import torch

    from qbook.kernels import isa, threads

    torch.set_num_threads(1)
    start = time.perf_counter()
    results = {
        "caches": cache_sizes(),
        "reads": read_times(SIZES, threads=range(1, min(2, threads.count()) + 1)),
        "products": product_times(SIDES),
        "rows": row_times(ROWS),
    }
    recorded.save(
        "cache_capacity",
        results,
        command="python -m qbook.experiments.cache_capacity",
        seeds=[0],
        seconds=time.perf_counter() - start,
        kernels=isa.choose(),
        side=SIDE,
        far=FAR,
    )


if __name__ == "__main__":
    main()
