"""Ternary products against torch in float32, our INT8 product and llama.cpp's TQ2_0 and TQ1_0.

torch has no ternary product; its float32 product is what a user would run, and on AMD processors
MKL's is slow, so that the ratio to our INT8 product says more.  ggml quantizes x inside the call,
as its users do; our x is codes.  A GEMV is timed twice: with a weight that stays in the last-level
cache, and in turns over copies of it that no cache holds, as the layers of a large model are read.
"""

import dataclasses
import itertools

import numpy as np
import torch

from benchmarks.cpu import ggml
from qbook.kernels import aligned, threads
from qbook.kernels.int8_matmul import matmul as int8_matmul
from qbook.kernels.int8_matmul import panels as int8_panels
from qbook.kernels.ternary_matmul import loops, matmul, panels
from qbook.lab.timing import Group, Target

SIZE, SCALE = 4096, 0.02
BEYOND_CACHES = 192 << 20
FLOAT, INT8, GGML = "torch.mv fp32", "qbook int8", "ggml TQ2_0"


def groups():
    yield one_row(1, {FLOAT: 15.0, INT8: 3.0, GGML: 2.0})
    yield one_row(BEYOND_CACHES, {FLOAT: 10.0, INT8: 3.0, GGML: 2.0})
    for samples in (4, 64):
        yield rows(samples)


def one_row(at_least, targets):
    """GEMV over copies of the weight that take ``at_least`` bytes, in turns"""
    x, w = draw(1)
    count = threads.count()
    real, vector = SCALE * w.astype(np.float32), torch.from_numpy(x[0].astype(np.float32))
    bits_2, base_3, int8 = panels.pack(w), panels.pack(w, "base-3"), int8_panels.pack(w)
    size = {FLOAT: real.nbytes, INT8: int8.data.nbytes, "qbook": bits_2.nbytes}
    size |= {"qbook, scaled": bits_2.nbytes, "qbook, base-3": base_3.nbytes}
    weights = [torch.from_numpy(real.copy()) for _ in range(max(1, at_least // real.nbytes))]
    twos = copies(bits_2, at_least)
    cases = {
        FLOAT: in_turns(lambda weight: torch.mv(weight, vector), weights),
        INT8: in_turns(lambda weight: int8_matmul.matmul(x, weight), copies(int8, at_least)),
        "qbook": in_turns(lambda weight: matmul.matmul(x, weight), twos),
        "qbook, scaled": in_turns(lambda weight: matmul.linear(x, 1.0, weight, SCALE), twos),
        "qbook, base-3": in_turns(
            lambda weight: matmul.matmul(x, weight), copies(base_3, at_least)
        ),
    }
    for kind in ("tq2_0", "tq1_0"):
        first = ggml.matvec(kind, real, vector.numpy(), count)
        if first is not None:
            more = range(at_least // first.nbytes - 1)
            calls = [first, *(ggml.matvec(kind, real, vector.numpy(), count) for _ in more)]
            name = f"ggml {kind.upper()}"
            cases[name], size[name] = in_turns(lambda call: call(), calls), first.nbytes
    hot = len(twos) == 1
    if hot and count == 1:
        out = np.empty((1, SIZE), np.int32)
        cases["loops: naive"] = lambda: loops.naive(x, w, out) or out
        size["loops: naive"] = w.nbytes
    check(cases, x, w)
    found = [Target("qbook", name, least) for name, least in targets.items() if name in cases]
    where = "in the cache" if hot else f"over {BEYOND_CACHES >> 20} MiB"
    name = f"Ternary GEMV {SIZE}x{SIZE}, weights {where}"
    return Group(name, cases, 2 * SIZE * SIZE, size, tuple(found))


def rows(samples):
    x, w = draw(samples)
    weight, x_real = torch.from_numpy(w.astype(np.float32)).T.contiguous(), torch.from_numpy(x)
    x_real = x_real.float()
    bits_2, base_3, int8 = panels.pack(w), panels.pack(w, "base-3"), int8_panels.pack(w)
    cases = {
        "torch.mm fp32": lambda: torch.mm(x_real, weight),
        INT8: lambda: int8_matmul.matmul(x, int8),
        "qbook": lambda: matmul.matmul(x, bits_2),
        "qbook, scaled": lambda: matmul.linear(x, 1.0, bits_2, SCALE),
        "qbook, base-3": lambda: matmul.matmul(x, base_3),
    }
    check(cases, x, w)
    targets = (Target("qbook", "torch.mm fp32", 5.0),)
    name = f"Ternary GEMM {samples}x{SIZE}x{SIZE}"
    return Group(name, cases, 2 * samples * SIZE * SIZE, targets=targets)


def draw(samples):
    rng = np.random.default_rng(0)
    x = rng.integers(-127, 127, (samples, SIZE), np.int8, endpoint=True)
    return x, rng.integers(-1, 1, (SIZE, SIZE), np.int8, endpoint=True)


def copies(weight, at_least):
    """-> the packed weight and as many copies of it as fill ``at_least`` bytes with it"""
    found = [weight]
    while len(found) * weight.data.nbytes < at_least:
        data = aligned.zeros(weight.data.shape, weight.data.dtype)
        data[:] = weight.data
        found.append(dataclasses.replace(weight, data=data))
    return found


def in_turns(function, weights):
    if len(weights) == 1:
        return lambda: function(weights[0])
    turns = itertools.cycle(weights)
    return lambda: function(next(turns))


def check(cases, x, w):
    """Raises ValueError for a case that does not compute x w^T, times SCALE or not."""
    expected = x.astype(np.float64) @ w.T.astype(np.float64)
    for name, case in cases.items():
        found = np.asarray(case(), np.float64).reshape(expected.shape)
        if name == FLOAT or name == "qbook, scaled" or name.startswith("ggml"):
            found = found / SCALE
        # ggml's 8-bit x of blocks with a scale of their own is off by a part in 250 at most, and a
        # sum of many by less; float32 by far less; integers are exact.
        away = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        exact = name.startswith(("qbook", "loops")) and name != "qbook, scaled"
        if not away <= (0 if exact else 0.004):
            raise ValueError(f"{name} does not compute the product: {away} away")
