"""INT8 products against torch in float32, torch._int_mm (oneDNN) and ONNX Runtime.

Weights are prepared before for whoever can: packed panels here, column-major for ``_int_mm``, a
constant of the model for ONNX Runtime.  float32 gets its weight in the faster of two layouts.
"""

import numpy as np
import torch

from benchmarks.cpu import peers
from qbook import roofline
from qbook.kernels import isa, threads
from qbook.kernels.int8_matmul import loops, matmul, panels
from qbook.kernels.peaks import bandwidth, compute
from qbook.lab.timing import Group, Target

PEAK, READ = "peak of the byte product", "read of as many bytes"
LOOP_SIZE = 512


def groups():
    yield product(2048, 2048, 2048, {"torch.mm fp32": 3.2, "torch._int_mm": 0.95, PEAK: 0.8})
    yield product(64, 4096, 4096, {"torch.mm fp32": 5.0, "torch._int_mm": 1.2})
    yield product(1, 4096, 4096, {"torch.mm fp32": 5.0, "torch._int_mm": 1.0, "ONNX Runtime": 1.0})
    yield plain_loops()


def product(samples, in_, out, targets):
    rng = np.random.default_rng(0)
    x = rng.integers(-128, 128, (samples, in_)).astype(np.int8)
    w = rng.integers(-128, 128, (out, in_)).astype(np.int8)
    packed = panels.pack(w)
    expected = (x.astype(np.float64) @ w.T.astype(np.float64)).astype(np.int64)
    x_codes, w_columns = torch.from_numpy(x), torch.from_numpy(w).t()
    x_real, w_rows = x_codes.float(), w_columns.float().contiguous()
    if samples == 1:
        # A weight [out, in] is the faster layout for one row, [in, out] for many.
        weight, vector = w_columns.t().float().contiguous(), x_real[0]
        real = {"torch.mm fp32": lambda: torch.mv(weight, vector)}
    else:
        real = {"torch.mm fp32": lambda: torch.mm(x_real, w_rows)}
    cases = real | {
        "torch._int_mm": lambda: torch._int_mm(x_codes, w_columns),
        "qbook": lambda: matmul.matmul(x, packed),
    }
    theirs = peers.onnxruntime_matmul(w, threads.count())
    if theirs is not None:
        shifted = (x.view(np.uint8) ^ 128).astype(np.uint8)
        cases["ONNX Runtime"] = lambda: theirs(shifted)
    for name, case in cases.items():
        if name not in real and not np.array_equal(np.asarray(case()), expected):
            raise ValueError(f"{name} does not compute the product of {samples}x{in_}x{out}")
    operations = dict.fromkeys(cases, 2 * samples * in_ * out)
    bytes_moved = dict.fromkeys(
        cases, roofline.matmul_bytes(samples, in_, out, weight_bits=8, input_bits=8, output_bits=32)
    )
    bytes_moved["torch.mm fp32"] = roofline.matmul_bytes(
        samples, in_, out, weight_bits=32, input_bits=32, output_bits=32
    )
    if samples == 1:
        cases[READ] = lambda: bandwidth.read(packed.data)
        bytes_moved[READ] = in_ * out
    elif isa.choose() in ("avx512vnni", "avxvnni"):
        steps = max(1, 2 * samples * in_ * out // 10 // compute.DOT_OPERATIONS)
        cases[PEAK] = lambda: compute.dot(steps)
        operations[PEAK] = compute.DOT_OPERATIONS * steps * threads.count()
    found = [
        Target("qbook", against, least, "operation" if against == PEAK else "call")
        for against, least in targets.items()
        if against in cases
    ]
    kind = "GEMV" if samples == 1 else "GEMM"
    name = f"INT8 {kind} {samples}x{in_}x{out}"
    return Group(name, cases, operations, bytes_moved, tuple(found))


def plain_loops():
    """What loops of Numba reach: the first thing that a reader would write."""
    rng = np.random.default_rng(0)
    shape = (LOOP_SIZE, LOOP_SIZE)
    x, w = (rng.integers(-128, 128, shape).astype(np.int8) for _ in range(2))
    w_transposed, out = np.ascontiguousarray(w.T), np.empty(shape, np.int32)
    x_real, w_real = (torch.from_numpy(a).float() for a in (x, w_transposed))
    packed = panels.pack(w)
    cases = {
        "torch.mm fp32": lambda: torch.mm(x_real, w_real),
        "loops: naive": lambda: loops.naive(x, w_transposed, out),
        "loops: lanes": lambda: loops.lanes(x, w_transposed, out),
        "loops: dot": lambda: loops.dot(x, w, out),
        "qbook": lambda: matmul.matmul(x, packed, num_threads=1),
    }
    return Group(f"INT8 GEMM {LOOP_SIZE}^3, plain loops, one thread", cases, 2 * LOOP_SIZE**3)
