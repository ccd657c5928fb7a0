"""First call of every kernel, compiled and cached: ``python -m benchmarks.compile_times``.

Two processes share an empty cache; the second finds what the first compiled.  Exit status 1 where
a kernel takes longer than the target to compile.
"""

import os
import subprocess
import sys
import tempfile
import time

TARGET_SECONDS = 10


def calls():
    """-> name -> a call of a public launcher on small data, one for each compiled signature"""
    import numpy as np

    from qbook import formats
    from qbook.kernels.int4_matmul import matmul as int4
    from qbook.kernels.int4_matmul import panels as int4_panels
    from qbook.kernels.int8_conv2d import conv2d
    from qbook.kernels.int8_conv2d import panels as conv_panels
    from qbook.kernels.int8_matmul import matmul as int8
    from qbook.kernels.int8_matmul import panels as int8_panels
    from qbook.kernels.minifloat_cast import minifloat, nf4
    from qbook.kernels.outlier_matmul import matmul as outliers
    from qbook.kernels.outlier_matmul import panels as outlier_panels
    from qbook.kernels.range_search import entropy, histogram, mse
    from qbook.kernels.rowwise import quantizer
    from qbook.kernels.sign_matmul import matmul as signs
    from qbook.kernels.sign_matmul import panels as sign_panels
    from qbook.kernels.ternary_matmul import matmul as ternary
    from qbook.kernels.ternary_matmul import panels as ternary_panels

    rng = np.random.default_rng(0)
    x, w_real = (rng.normal(size=(n, 64)).astype(np.float32) for n in (40, 48))
    codes, w = (rng.integers(-8, 8, (n, 64)).astype(np.int8) for n in (40, 48))
    packed = int8_panels.pack(w)
    four = int4_panels.pack(w, np.ones((48, 2), np.float32), group_size=32)
    three = {p: ternary_panels.pack(np.sign(w), p) for p in ("2-bit", "base-3")}
    one = sign_panels.pack(np.where(w < 0, -1, 1).astype(np.int8))
    images, filters = codes.reshape(1, 64, 8, 5), conv_panels.pack(w.reshape(48, 64, 1, 1))
    mixed = outlier_panels.pack(w_real)
    e4m3 = minifloat.encode
    return {
        "int8_matmul.matmul": lambda: int8.matmul(codes, packed),
        "int8_matmul.linear": lambda: int8.linear(codes, 1.0, packed, 1.0),
        "int4_matmul.w4a8": lambda: int4.w4a8(x, four),
        "int4_matmul.w4a16": lambda: int4.w4a16(x, four),
        "int4_matmul.w4a32": lambda: int4.w4a32(x, four),
        "ternary_matmul, 2-bit": lambda: ternary.matmul(codes, three["2-bit"]),
        "ternary_matmul, base-3": lambda: ternary.matmul(codes, three["base-3"]),
        "sign_matmul": lambda: signs.matmul(x, one),
        "int8_conv2d.conv2d": lambda: conv2d.conv2d(images, filters),
        "int8_conv2d.conv2d_linear": lambda: conv2d.conv2d_linear(images, 1.0, filters, 1.0),
        "outlier_matmul": lambda: outliers.matmul(x, mixed, threshold=2.0),
        "rowwise.quantize": lambda: quantizer.quantize(x),
        "rowwise.quantize, columns": lambda: quantizer.quantize(x, axis=0),
        "rowwise.dequantize": lambda: quantizer.dequantize(codes, np.ones((40, 1), np.float32)),
        "minifloat_cast.encode": lambda: e4m3(x, formats.E4M3),
        "minifloat_cast.decode": lambda: minifloat.decode(e4m3(x, formats.E4M3), formats.E4M3),
        "minifloat_cast.nf4": lambda: nf4.quantize(x),
        "range_search.histogram": lambda: histogram.histogram(x.ravel(), 64, -3.0, 3.0),
        "range_search.mse": lambda: mse.search(x, 8),
        "range_search.entropy": lambda: entropy.search(rng.normal(size=99_999).astype("float32")),
    }


def first_calls():
    """Print the seconds of each first call in this process, a line each."""
    for name, call in calls().items():
        start = time.perf_counter()
        call()
        print(f"{name}\t{time.perf_counter() - start:.3f}")


def main():
    command = [sys.executable, "-m", "benchmarks.compile_times", "--worker"]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"NUMBA_CACHE_DIR": folder}
        runs = [
            subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            for _ in range(2)
        ]
    cold, warm = ([line.split("\t") for line in run.stdout.splitlines()] for run in runs)
    for (name, seconds), (_, cached) in zip(cold, warm, strict=True):
        print(f"{name:28} compiled {float(seconds):5.2f} s, cached {float(cached):5.2f} s")
    longest = max(float(seconds) for _, seconds in cold)
    print(f"longest {longest:.1f} s, target {TARGET_SECONDS} s or less")
    return longest > TARGET_SECONDS


if __name__ == "__main__":
    sys.exit(first_calls() if "--worker" in sys.argv else main())
