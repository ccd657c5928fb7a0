"""GPTQ's lazy blocks against its plain column loop: ``python -m benchmarks.gptq``.

A layer of 1024 x 1024, 4 bits.  The two are timed in turn in one process; the ratio of the medians
is what counts.
"""

import statistics
import sys
import time

import numpy as np

from qbook import affine
from qbook.ptq import gptq

SIZE = 1024
BITS = 4
REPEATS = 5
TARGET_SECONDS = 5
TARGET_RATIO = 3


def seconds(function, *arguments):
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def main():
    rng = np.random.default_rng(0)
    w = rng.normal(size=(SIZE, SIZE))
    x = rng.normal(size=(2 * SIZE, SIZE)) @ rng.normal(size=(SIZE, SIZE)) / SIZE**0.5
    h = gptq.dampen(gptq.hessian(x))
    qparams = affine.choose_qparams(w, BITS, axis=1)
    cases = {"column loop": gptq.quantize, "blocks of 128": gptq.quantize_blocks}
    times = {name: [] for name in cases}
    for _ in range(REPEATS):
        for name, case in cases.items():
            times[name].append(seconds(case, w, h, qparams))
    loop, blocks = (statistics.median(t) for t in times.values())
    for name, t in times.items():
        print(f"{name:14} {statistics.median(t):6.2f} s ({min(t):.2f} to {max(t):.2f})")
    print(f"ratio {loop / blocks:.1f}, target {TARGET_RATIO} or more; {TARGET_SECONDS} s or less")
    return not (loop / blocks >= TARGET_RATIO and blocks <= TARGET_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
