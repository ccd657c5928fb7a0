"""Ternary weights of 2 bits: W2A16 against 16 bits and gemlite, W2A8 against int8 on tensor cores.

W2A8 is BitNet's: x comes as int8 codes with a scale a row, the sums are exact.
"""

import functools

import torch

from benchmarks.gpu import clock, compare, peers, tune, weights
from benchmarks.gpu.dp4a_matmul import scales
from benchmarks.gpu.dp4a_matmul import sums as int_sums
from benchmarks.gpu.group import Group
from benchmarks.gpu.int8_matmul import scaled
from qbook.kernels.gpu import device as architectures
from qbook.kernels.int8_matmul import gpu as int8
from qbook.kernels.ternary_matmul import configs, gpu

SIZE = 8192
GEMLITE, INT8 = "gemlite 2 bits, groups of 128", "qbook int8"
TARGETS = {1: ((weights.BF16, 2.6),), 16: (), 64: (), 1024: ()}
ODD = ((1, 33, 7), (3, 130, 65), (17, 256, 64), (70, 1000, 129), (300, 400, 40))
SCALE = 0.0234375


def checks(device):
    yield from weights.checks("ternary", (None, 64), device)
    for m, in_, out in ODD:
        yield f"W2A8 {m}x{in_}x{out}", functools.partial(odd_shape, m, in_, out, device)


def draw(m, in_, out, device):
    """-> x_codes int8 [m, in], x_scale [m], w_codes int8 [out, in] of -1, 0, 1"""
    generator = torch.Generator(device).manual_seed(m)
    integers = functools.partial(
        torch.randint, dtype=torch.int8, device=device, generator=generator
    )
    x_scale, _ = scales(m, out, device)
    return integers(-128, 128, (m, in_)), x_scale, integers(-1, 2, (out, in_))


def by_rule(x, x_scale, w, bias=None):
    """The promise, to the bit: exact sums, rounded to float32, times the rounded scales"""
    w_scale = torch.full((len(w),), SCALE, device=w.device)
    return scaled(int_sums(x, w), x_scale, w_scale, bias)


def odd_shape(m, in_, out, device):
    x, x_scale, w = draw(m, in_, out, device)
    bias = torch.linspace(-1, 1, out, device=device)
    packed = gpu.pack(w, SCALE)
    for dtype, added in ((torch.float16, None), (torch.float32, bias)):
        with compare.poisoned():
            found = gpu.matmul_int8(x, x_scale, packed, added, dtype)
        compare.equal(f"{dtype}", found, by_rule(x, x_scale, w, added).to(dtype))


def groups(device, quick=False):
    size = 256 if quick else SIZE
    rows = [m for m in TARGETS if not quick or m <= 16]
    for m in rows:
        others = {GEMLITE: ("fp16", gemlite)} if m == 1 else {}
        yield weights.group(
            "ternary", "W2A16 ternary", m, size, size, None, device, TARGETS[m], peers=others
        )
    for m in rows:
        yield codes_group(m, size, device)


def codes_group(m, size, device):
    x, x_scale, w = draw(m, size, size, device)
    packed, w_scale = gpu.pack(w, SCALE), torch.full((size,), SCALE, device=device)
    half = w.half() * SCALE
    x_half = (x * x_scale[:, None]).half()
    cases = {
        weights.FP16: clock.rotate(
            lambda w: torch.mm(x_half, w.t()), clock.copies(half, half.nbytes, device)
        ),
        INT8: clock.rotate(
            lambda w: int8.matmul(x, w, x_scale, w_scale), clock.copies(w, w.nbytes, device)
        ),
        "qbook": clock.rotate(
            lambda w: gpu.matmul_int8(x, x_scale, w), clock.copies(packed, packed.nbytes, device)
        ),
    }
    ends = m * size * 3
    moved = {weights.FP16: half.nbytes + 4 * m * size, INT8: w.nbytes + ends}
    moved["qbook"] = packed.nbytes + ends

    def check():
        for name in (INT8, "qbook"):
            with compare.poisoned():
                found = cases[name]()
            compare.equal(name, found, by_rule(x, x_scale, w).half())

    units = {weights.FP16: "fp16", INT8: "int8", "qbook": "int8"}
    name = f"W2A8 ternary {m}x{size}x{size}"
    return Group(name, cases, 2 * m * size * size, moved, units=units, check=check)


def gemlite(weight, x):
    # Its scale for a whole row goes another way; groups of 128 carry the same scales.
    out, in_ = weight.codes.shape
    scale = weight.scale.expand(out, in_ // 128)
    layer = peers.gemlite(weight.codes, scale, torch.ones_like(scale), 128, 2)
    return weights.turns(layer, weight, x)


def tunings(device, quick=False):
    size = 256 if quick else SIZE
    rows = [m for m in TARGETS if not quick or m <= 16]
    shapes = [(m, size, size) for m in rows]
    yield from weights.tunings("ternary", "W2A16", shapes, None, device)
    architecture = architectures.architecture(torch.empty(0, device=device))
    if architecture < gpu.TENSOR_CORES:
        return
    for m in rows:
        x, x_scale, w = draw(m, size, size, device)
        packed = gpu.pack(w, SCALE)

        def run(weight, config, x=x, x_scale=x_scale, m=m):
            y = x.new_empty(m, size, dtype=torch.float16)
            for launch in gpu.launches(x, x_scale, weight, None, y, config):
                launch.run()
            return y

        chosen = configs.choose(m, size, packed.codes.shape[1] // packed.plane, architecture)
        copies = clock.copies(packed, packed.nbytes, device)
        yield tune.Problem(
            f"W2A8 {m}x{size}x{size}",
            {
                config: clock.rotate(functools.partial(run, config=config), copies)
                for config in dict.fromkeys((chosen, *configs.candidates(m)))
            },
            functools.partial(compare.equal, "W2A8", expected=by_rule(x, x_scale, w).half()),
        )
