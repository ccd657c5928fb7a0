"""Weights of 4 bits, a scale for each 32, against float32, llama.cpp and torch's own 4 bits.

One row of x waits for the weight: from the third-level cache where it fits, else from memory; both
are timed.  Many rows wait for the multiplier.
"""

import itertools

import numpy as np
import torch

from benchmarks.cpu import ggml
from qbook import affine
from qbook.kernels import threads
from qbook.kernels.int4_matmul import matmul, panels
from qbook.kernels.peaks import bandwidth
from qbook.lab.timing import Group, Target

SIZE, GROUP_SIZE, SAMPLES = 4096, 32, 64
# More than any third-level cache at hand.
FAR = 400 * 2**20
FLOAT, TORCH, READ = "torch.mv fp32", "torch int4pack bf16", "read of as many bytes"
EACH, DEQUANTIZED = "qbook, row by row", "numpy fp32, dequantized before"


def groups():
    x, w, packed = problem()
    yield one_row("W4A8", matmul.w4a8, x, w, packed, {FLOAT: 7.0, "ggml": 1.5})
    yield one_row("W4A16", matmul.w4a16, x, w, packed, {FLOAT: 4.0, TORCH: 2.0})
    yield one_row("W4A32", matmul.w4a32, x, w, packed, {FLOAT: 4.0, TORCH: 2.0})
    yield far("W4A8", matmul.w4a8, x, packed, 0.8)
    yield far("W4A16", matmul.w4a16, x, packed, None)
    yield far("W4A32", matmul.w4a32, x, packed, None)
    yield many_rows("W4A8", matmul.w4a8, x, w, packed, {EACH: 1.5})
    yield many_rows("W4A16", matmul.w4a16, x, w, packed, {EACH: 1.5})
    yield many_rows("W4A32", matmul.w4a32, x, w, packed, {EACH: 1.5})


def problem():
    """-> x [samples, in], w [out, in], the latter packed too"""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SAMPLES, SIZE)).astype(np.float32)
    w = rng.normal(size=(SIZE, SIZE)).astype(np.float32)
    qparams = affine.choose_qparams(w, 4, axis=1, group_size=GROUP_SIZE)
    packed = panels.pack(affine.quantize(w, qparams), qparams.scale, None, GROUP_SIZE)
    return x, w, packed


def one_row(name, product, x, w, packed, targets):
    weight, row = torch.from_numpy(w), x[:1]
    vector = torch.from_numpy(row[0])
    cases = {
        FLOAT: lambda: torch.mv(weight, vector),
        TORCH: torch_int4(packed, row),
        "qbook": lambda: product(row, packed),
    }
    bytes_moved = {FLOAT: w.nbytes, TORCH: packed.nbytes, "qbook": packed.nbytes}
    theirs = ggml.matvec("q4_0", w, row[0], threads.count())
    if theirs is not None:
        case = f"ggml Q4_0, {theirs.buffer}"
        cases[case], bytes_moved[case] = theirs, theirs.nbytes
        targets = {case if against == "ggml" else against: t for against, t in targets.items()}
    check(cases, row, w, packed)
    cases[READ], bytes_moved[READ] = lambda: bandwidth.read(packed.data), packed.nbytes
    found = tuple(Target("qbook", case, t) for case, t in targets.items() if case in cases)
    label = f"{name} GEMV 1x{SIZE}x{SIZE}, group {GROUP_SIZE}"
    return Group(label, cases, 2 * SIZE**2, bytes_moved, found)


def far(name, product, x, packed, share):
    """Weights in turn, so many that none is in a cache when its turn comes."""
    copies = [packed]
    while len(copies) * packed.nbytes < FAR:
        codes, qparams = panels.unpack(packed)
        copies.append(panels.pack(codes, qparams.scale, None, GROUP_SIZE))
    turns = {case: itertools.cycle(copies) for case in ("qbook", READ)}
    row = x[:1]
    cases = {
        "qbook": lambda: product(row, next(turns["qbook"])),
        READ: lambda: bandwidth.read(next(turns[READ]).data),
    }
    targets = () if share is None else (Target("qbook", READ, share, "byte"),)
    label = f"{name} GEMV 1x{SIZE}x{SIZE}, group {GROUP_SIZE}, weights from memory"
    return Group(label, cases, None, packed.nbytes, targets)


def many_rows(name, product, x, w, packed, targets):
    weight, rows = torch.from_numpy(np.ascontiguousarray(w.T)), torch.from_numpy(x)
    w_hat = np.ascontiguousarray(affine.dequantize(*panels.unpack(packed)).T)
    cases = {
        "torch.mm fp32": lambda: torch.mm(rows, weight),
        DEQUANTIZED: lambda: x @ w_hat,
        TORCH: torch_int4(packed, x),
        EACH: lambda: np.concatenate([product(x[i : i + 1], packed) for i in range(SAMPLES)]),
        "qbook": lambda: product(x, packed),
    }
    check(cases, x, w, packed)
    found = tuple(Target("qbook", case, t) for case, t in targets.items())
    label = f"{name} GEMM {SAMPLES}x{SIZE}x{SIZE}, group {GROUP_SIZE}"
    return Group(label, cases, 2 * SAMPLES * SIZE**2, None, found)


def torch_int4(packed, x):
    """The same weight and x in bfloat16 by torch -> call() -> [samples, out]"""
    codes, qparams = panels.unpack(packed)
    weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
        torch.from_numpy(codes + np.int8(8)).int(), 1
    )
    scale = qparams.scale[:, :, 0].T
    parameters = np.ascontiguousarray(np.stack([scale, np.zeros_like(scale)], axis=2))
    parameters, rows = (torch.from_numpy(a).bfloat16() for a in (parameters, x))
    return lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(rows, weight, GROUP_SIZE, parameters)


def check(cases, x, w, packed):
    """Raise ValueError where a case does not compute about x w^T or x w_hat^T."""
    codes, qparams = panels.unpack(packed)
    exact, quantized = x @ w.T, x @ affine.dequantize(codes, qparams).T
    for name, case in cases.items():
        found = case()
        found = found.float().numpy() if isinstance(found, torch.Tensor) else found
        # Others quantize w in their own way: a tenth is what 4 bits cost; 1 % what 8 bits of x do.
        away = min(np.linalg.norm(found - y) / np.linalg.norm(y) for y in (exact, quantized))
        if not away <= (0.12 if "ggml" in name else 0.01):
            raise ValueError(f"{name} is off by {away:.3f}")
