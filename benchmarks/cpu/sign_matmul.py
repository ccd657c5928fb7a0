"""Products of signs against torch in float32, our INT8 product and the peak of the byte product.

torch has no product of bits; its float32 product is what a user would run, and on AMD processors
MKL's is slow, so that the ratios to the two INT8 rates say more.  Activations are packed before,
and once inside the call: that is part of the cost of a real layer.
"""

import numpy as np
import torch

from qbook.kernels import isa, threads
from qbook.kernels.int8_matmul import matmul as int8_matmul
from qbook.kernels.int8_matmul import panels as int8_panels
from qbook.kernels.peaks import compute
from qbook.kernels.sign_matmul import loops, matmul, panels
from qbook.lab.timing import Group, Target

PEAK = "peak of the byte product"


def groups():
    yield product(1024, 1024, 1024, {"torch.mm fp32": 10.0, "qbook int8": 3.0, PEAK: 2.5})
    yield product(64, 4096, 4096, {"torch.mm fp32": 10.0, "qbook int8": 3.0})
    yield product(1, 4096, 4096, {"torch.mm fp32": 10.0})
    yield packing(64, 4096)


def product(samples, in_, out, targets):
    rng = np.random.default_rng(0)
    x, w = (rng.choice([-1, 1], (n, in_)).astype(np.int8) for n in (samples, out))
    packed, words = panels.pack(w), panels.pack_rows(x)
    real, w_codes = x.astype(np.float32), int8_panels.pack(w)
    x_real, w_real = torch.from_numpy(real), torch.from_numpy(w).float()
    w_columns = w_real.T.contiguous()
    rows, sums = panels.unpack(packed), np.empty((samples, out), np.int32)
    columns = np.ascontiguousarray(rows.T)
    if samples == 1:
        # A weight [out, in] is the faster layout for one row, [in, out] for many.
        cases = {"torch.mm fp32": lambda: torch.mv(w_real, x_real[0])}
    else:
        cases = {"torch.mm fp32": lambda: torch.mm(x_real, w_columns)}
    cases |= {
        "qbook int8": lambda: int8_matmul.matmul(x, w_codes),
        "qbook": lambda: matmul.matmul(words, packed),
        "qbook, x float32 packed inside": lambda: matmul.matmul(real, packed),
        "qbook, scaled": lambda: matmul.linear(words, 1.0, packed, 1.0),
    }
    if threads.count() == 1:
        cases |= {
            "loops: swar": lambda: loops.swar(words, rows, in_, sums) or sums,
            "loops: ctpop": lambda: loops.ctpop(words, rows, in_, sums) or sums,
            "loops: lanes": lambda: loops.lanes(words, columns, in_, sums) or sums,
        }
    expected = real.astype(np.float64) @ w.T.astype(np.float64)
    for name, case in cases.items():
        if not np.array_equal(np.asarray(case()).reshape(samples, out), expected):
            raise ValueError(f"{name} does not compute the product of {samples}x{in_}x{out}")
    work = 2 * samples * in_ * out
    operations = dict.fromkeys(cases, work)
    if isa.choose() in ("avx512vnni", "avxvnni") and PEAK in targets:
        steps = max(1, work // 10 // compute.DOT_OPERATIONS)
        cases[PEAK] = lambda: compute.dot(steps)
        operations[PEAK] = compute.DOT_OPERATIONS * steps * threads.count()
    found = [
        Target("qbook", against, least, "operation" if against == PEAK else "call")
        for against, least in targets.items()
        if against in cases
    ]
    bytes_moved = {name: in_ * out // 8 for name in cases if name.startswith("qbook")}
    bytes_moved |= {"torch.mm fp32": 4 * in_ * out, "qbook int8": in_ * out}
    kind = "GEMV" if samples == 1 else "GEMM"
    name = f"1-bit {kind} {samples}x{in_}x{out}"
    return Group(name, cases, operations, bytes_moved if samples == 1 else None, tuple(found))


def packing(samples, in_):
    """What it costs to take the signs of activations."""
    real = np.random.default_rng(0).normal(size=(samples, in_)).astype(np.float32)
    codes = np.where(real >= 0, 1, -1).astype(np.int8)
    octets = np.packbits(real >= 0, axis=1, bitorder="little")
    if not np.array_equal(panels.pack_rows(real).astype("<u8").view(np.uint8), octets):
        raise ValueError("the words are not the bits that NumPy packs")
    cases = {
        "numpy.packbits": lambda: np.packbits(real >= 0, axis=1, bitorder="little"),
        "qbook": lambda: panels.pack_rows(real),
        "qbook, from int8": lambda: panels.pack_rows(codes),
    }
    bytes_moved = dict.fromkeys(cases, real.nbytes) | {"qbook, from int8": codes.nbytes}
    name = f"Signs of {samples}x{in_} float32 as bits, one thread"
    return Group(name, cases, None, bytes_moved, (Target("qbook", "numpy.packbits", 1.3),))
