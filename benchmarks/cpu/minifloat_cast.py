"""FP8 and NF4 against a copy of as many bytes, torch, ml_dtypes and bitsandbytes.

Sixteen million float32, as in ``rowwise``; results go to arrays that were written before.
"""

import numpy as np
import torch

from benchmarks.cpu.rowwise import COPY, KERNEL_COPY, copies, written
from qbook.formats import E4M3, E5M2
from qbook.kernels.minifloat_cast import loops, minifloat, nf4
from qbook.lab.timing import Group, Target

VALUES = 1 << 24
TORCH = {"E4M3": torch.float8_e4m3fn, "E5M2": torch.float8_e5m2}


def groups():
    x = np.random.default_rng(0).normal(size=VALUES).astype(np.float32)
    yield encoding(x, E4M3, 2.0)
    yield encoding(x, E5M2, 2.0)
    yield decoding(x, E4M3)
    yield blocks(x)
    yield unblocks(x)


def encoding(x, fmt, at_least):
    tensor, out = torch.from_numpy(x), written(x.shape, np.uint8)
    room = torch.from_numpy(written(x.shape, np.uint8)).view(TORCH[fmt.name])
    cases = copies(x.nbytes + out.nbytes) | {
        "torch": lambda: room.copy_(tensor).view(torch.uint8).numpy(),
        "qbook": lambda: minifloat.encode(x, fmt, out=out),
        "qbook, not saturating": lambda: minifloat.encode(x, fmt, saturate=False, out=out),
    }
    cases |= by_ml_dtypes(x, fmt)
    agree(cases, [name for name in cases if "copy" not in name], fmt.encode(x))
    targets = (
        Target("qbook", COPY, 0.8),
        Target("qbook", KERNEL_COPY, 0.8),
        Target("qbook", "torch", at_least),
    )
    name = f"float32 to {fmt.name}"
    return Group(name, cases, x.size, x.nbytes + out.nbytes, targets)


def by_ml_dtypes(x, fmt):
    try:
        import ml_dtypes
    except ImportError:
        return {}
    theirs = {"E4M3": ml_dtypes.float8_e4m3fn, "E5M2": ml_dtypes.float8_e5m2}[fmt.name]
    return {"ml_dtypes": lambda: x.astype(theirs).view(np.uint8)}


def decoding(x, fmt):
    codes, out = fmt.encode(x), written(x.shape, np.float32)
    tensor, room = torch.from_numpy(codes).view(TORCH[fmt.name]), torch.from_numpy(out)
    values = np.array(fmt.values)

    def table():
        loops.decode(codes, values, out)
        return out

    cases = copies(x.nbytes + codes.nbytes) | {
        "torch": lambda: room.copy_(tensor).numpy(),
        "loops: table": table,
        "qbook": lambda: minifloat.decode(codes, fmt, out=out),
    }
    agree(cases, ("torch", "loops: table", "qbook"), fmt.decode(codes))
    targets = (Target("qbook", "torch", 2.0), Target("qbook", "loops: table", 1.0))
    name = f"{fmt.name} to float32"
    return Group(name, cases, x.size, x.nbytes + codes.nbytes, targets)


def blocks(x):
    out = nf4.quantize(x)
    moved = x.nbytes + sum(array.nbytes for array in out)
    cases = copies(moved) | {"qbook": lambda: nf4.quantize(x, out=out)[0]}
    bnb = bitsandbytes()
    targets = ()
    if bnb is not None:
        tensor = torch.from_numpy(x)
        cases["bitsandbytes"] = lambda: (
            bnb.quantize_4bit(tensor, blocksize=64, quant_type="nf4")[0].numpy().reshape(-1)
        )
        differing = np.count_nonzero(cases["qbook"]() != cases["bitsandbytes"]())
        # Numbers on a rounded midpoint: see ``nf4``.
        if not differing <= x.size // 10**5:
            raise ValueError(f"{differing} bytes are not those of bitsandbytes")
        targets = (Target("qbook", "bitsandbytes", 20.0),)
    return Group("float32 to NF4 in blocks of 64", cases, x.size, moved, targets)


def unblocks(x):
    packed, absmax = nf4.quantize(x)
    out = written(x.shape, np.float32)
    moved = x.nbytes + packed.nbytes + absmax.nbytes
    cases = copies(moved) | {"qbook": lambda: nf4.dequantize(packed, absmax, x.shape, out=out)}
    bnb = bitsandbytes()
    targets = ()
    if bnb is not None:
        theirs, state = bnb.quantize_4bit(torch.from_numpy(x), blocksize=64, quant_type="nf4")
        # Ours, so that both see the same codes.
        theirs = torch.from_numpy(packed).reshape(theirs.shape)
        cases["bitsandbytes"] = lambda: bnb.dequantize_4bit(theirs, state).numpy().reshape(-1)
        agree(cases, ("bitsandbytes",), nf4.dequantize(packed, absmax, x.shape, use="reference"))
        targets = (Target("qbook", "bitsandbytes", 4.0),)
    return Group("NF4 in blocks of 64 to float32", cases, x.size, moved, targets)


def bitsandbytes():
    try:
        import bitsandbytes.functional
    except ImportError:
        return None
    return bitsandbytes.functional


def agree(cases, names, expected):
    for name in names:
        if not np.array_equal(cases[name](), expected):
            raise ValueError(f"{name} does not give what the format's table gives")
