"""int8 with a scale per row or column, against a copy of as many bytes and against torch.

Sixteen million float32: quantizing reads 64 MiB and writes 16, dequantizing the reverse, and a copy
moves 40 to 40.  Results go to arrays that were written before, else page faults are what is timed.
"""

import numpy as np
import torch

from qbook import affine
from qbook.kernels import aligned
from qbook.kernels.peaks import bandwidth
from qbook.kernels.rowwise import quantizer
from qbook.lab.timing import Group, Target

SHAPE = (4096, 4096)
COPY, KERNEL_COPY = "numpy.copyto", "copy by a kernel"


def groups():
    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    yield dynamic(x)
    yield given(x)
    yield back(x)
    yield lengths(x)


def dynamic(x):
    """The scale of a row from its largest magnitude"""
    tensor, out = torch.from_numpy(x), written(x.shape, np.int8)
    rooms = [torch.from_numpy(written(x.shape, dtype)) for dtype in (np.float32, np.int8)]
    cases = copies(x.nbytes + out.nbytes) | {
        "torch eager": lambda: step_by_step(tensor, *rooms).numpy(),
        "affine": lambda: affine.quantize(x, affine.choose_qparams(x, 8, axis=1)),
        "qbook": lambda: quantizer.quantize(x, out=out)[0],
    }
    fused = compiled(tensor, rooms[1])
    if fused is not None:
        cases["torch.compile"] = lambda: fused(tensor, rooms[1])
    agree(cases, ("torch eager", "torch.compile", "qbook"), cases["affine"]())
    targets = (
        Target("qbook", COPY, 0.8),
        Target("qbook", KERNEL_COPY, 0.8),
        Target("qbook", "torch eager", 4.0),
        Target("qbook", "affine", 5.0),
    )
    return Group("int8 per row, dynamic", cases, x.size, x.nbytes + out.nbytes, targets)


def step_by_step(x, room, codes):
    """Eager torch at its best: every step into memory that is there"""
    scale = torch.abs(x, out=room).amax(dim=1, keepdim=True) / 127
    steps = torch.mul(x, 1 / scale, out=room).round_().clamp_(-127, 127)
    return codes.copy_(steps)


def compiled(x, codes):
    """-> the same steps fused by torch.compile, None where no C++ compiler serves it"""

    def quantize(x, codes):
        scale = x.abs().amax(dim=1, keepdim=True) / 127
        return codes.copy_((x * (1 / scale)).round().clamp(-127, 127))

    fused = torch.compile(quantize)
    try:
        fused(x, codes)
    except RuntimeError:
        return None
    return fused


def given(x):
    """Scales known before: static quantization, by row and by column"""
    out = written(x.shape, np.int8)
    found = {axis: affine.choose_qparams(x, 8, axis=axis) for axis in (0, 1)}
    skew = affine.choose_qparams(x, 8, axis=0, symmetric=False)

    def run(qparams):
        limits = qparams.qmin, qparams.qmax
        return quantizer.quantize_with(x, qparams.scale, qparams.zero_point, *limits, out=out)

    cases = copies(x.nbytes + out.nbytes) | {
        "qbook": lambda: run(found[1]),
        "qbook, per column": lambda: run(found[0]),
        "qbook, per column, zero-points": lambda: run(skew),
        "qbook, per column, dynamic": lambda: quantizer.quantize(x, 0, out=out)[0],
    }
    agree(cases, ("qbook",), affine.quantize(x, found[1]))
    by_column = ("qbook, per column", "qbook, per column, dynamic")
    agree(cases, by_column, affine.quantize(x, found[0]))
    agree(cases, ("qbook, per column, zero-points",), affine.quantize(x, skew))
    targets = (Target("qbook", COPY, 0.8), Target("qbook", KERNEL_COPY, 0.8))
    return Group("int8, scales given", cases, x.size, x.nbytes + out.nbytes, targets)


def back(x):
    codes, scale = quantizer.quantize(x)
    columns = np.ascontiguousarray(np.broadcast_to(scale[:1], (1, x.shape[1])))
    out = written(x.shape, np.float32)
    tensor, room, factor = (torch.from_numpy(a) for a in (codes, out, scale))
    cases = copies(x.nbytes + codes.nbytes) | {
        "torch eager": lambda: room.copy_(tensor).mul_(factor).numpy(),
        "qbook": lambda: quantizer.dequantize(codes, scale, out=out),
        "qbook, per column": lambda: quantizer.dequantize(codes, columns, out=out),
    }
    agree(cases, ("torch eager", "qbook"), codes.astype(np.float32) * scale)
    return Group("int8 per row, back to float32", cases, x.size, x.nbytes + codes.nbytes)


def lengths(x):
    """The same numbers in rows that fit each cache, and in rows that fit none"""
    out = written(x.size, np.int8)
    cases = copies(x.nbytes + out.nbytes)
    for n in (64, 1024, 16_384, 262_144, 4_194_304, 16_777_216):
        view, room = x.reshape(-1, n), out.reshape(-1, n)
        cases[f"rows of {n}"] = lambda view=view, room=room: quantizer.quantize(view, out=room)
    return Group("int8 per row, length of a row", cases, x.size, x.nbytes + out.nbytes)


def copies(moved):
    source, target = (written(moved // 2, np.uint8) for _ in range(2))
    return {
        COPY: lambda: np.copyto(target, source),
        KERNEL_COPY: lambda: bandwidth.copy(source, target),
    }


def written(shape, dtype):
    """An array whose pages exist"""
    array = aligned.zeros(shape, dtype)
    array[...] = 1
    return array


def agree(cases, names, expected):
    for name in names:
        if name in cases and not np.array_equal(np.asarray(cases[name]()), expected):
            raise ValueError(f"{name} does not give the codes of qbook.affine")
