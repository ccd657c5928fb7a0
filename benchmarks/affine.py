"""choose_qparams + quantize against torch's fused fake quantizer: ``python -m benchmarks.affine``.

Ten million float32, 8 bits, per channel.  The two are timed in turn in one process; the ratio of
the medians is what counts, the spread says how far to trust it.
"""

import datetime
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from qbook import affine
from qbook.lab.session import cpu_name

SHAPE = (1000, 10_000)
BITS = 8
REPEATS = 21
TARGET = 1.5


def ours(x):
    return affine.quantize(x, affine.choose_qparams(x, BITS, axis=1))


def seconds(function, *arguments):
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def measure():
    """-> results as a dict: medians and quartiles in milliseconds, ratios to torch."""
    x = torch.from_numpy(np.random.default_rng(0).normal(size=SHAPE).astype(np.float32))
    qparams = affine.choose_qparams(x, BITS, axis=1)
    scale, zero_point = qparams.scale.ravel(), qparams.zero_point.ravel()

    def theirs():
        torch.fake_quantize_per_channel_affine(x, scale, zero_point, 0, qparams.qmin, qparams.qmax)

    cases = {"torch.fake_quantize_per_channel_affine": theirs}
    cases["qbook, torch tensor"] = lambda: ours(x)
    array = x.numpy()
    cases["qbook, NumPy array"] = lambda: ours(array)
    for case in cases.values():
        case()
    times = {name: [] for name in cases}
    for _ in range(REPEATS):
        for name, case in cases.items():
            times[name].append(1e3 * seconds(case))
    baseline = statistics.median(next(iter(times.values())))
    return {
        name: {
            "median_ms": round(statistics.median(t), 2),
            "quartiles_ms": [round(q, 2) for q in statistics.quantiles(t, n=4)[::2]],
            "ratio_to_torch": round(statistics.median(t) / baseline, 2),
        }
        for name, t in times.items()
    }


def main():
    results = measure()
    record = {
        "command": "python -m benchmarks.affine",
        "date": datetime.date.today().isoformat(),
        "device": cpu_name(),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
        },
        "shape": SHAPE,
        "bits": BITS,
        "results": results,
    }
    print(f"{record['device']}, {record['threads']} threads, {SHAPE} float32, {BITS} bits")
    for name, row in results.items():
        low, high = row["quartiles_ms"]
        print(
            f"{name:42} {row['median_ms']:8.2f} ms ({low:.2f} to {high:.2f})"
            f"  {row['ratio_to_torch']:.2f} x torch"
        )
    if "--record" in sys.argv:
        path = Path(__file__).parent / "results" / "affine.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")
    worst = max(row["ratio_to_torch"] for name, row in results.items() if "qbook" in name)
    print(f"slowest ratio {worst:.2f}, target {TARGET} or less")
    return worst > TARGET


if __name__ == "__main__":
    sys.exit(main())
