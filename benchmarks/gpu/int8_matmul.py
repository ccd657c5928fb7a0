"""W8A8 with a scale a row, against 16 bits and torch._int_mm: on the tensor cores' int8.

``torch._int_mm`` gives sums in int32; who uses it multiplies by the scales afterwards, in another
pass over memory, so that is timed too.  It needs more than 16 rows.
"""

import functools

import torch

from benchmarks.gpu import clock, compare, peers, tune
from benchmarks.gpu.dp4a_matmul import draw, scales, sums
from benchmarks.gpu.group import Group
from qbook.kernels.gpu import device as architectures
from qbook.kernels.int8_matmul import gpu
from qbook.kernels.scaled_matmul import configs, launches
from qbook.lab.timing import Target

BF16, INT_MM, AFTERWARDS = "torch.mm bf16", "torch._int_mm", "torch._int_mm, then scaled"
SUMS = "qbook, int32"
SHAPES = {
    (1, 8192, 8192): (),
    (16, 8192, 8192): (),
    (64, 8192, 8192): (),
    (1024, 8192, 8192): (),
    (8192, 8192, 8192): (Target("qbook", BF16, 1.3), Target(SUMS, INT_MM, 1.0)),
}
QUICK = dict.fromkeys(((1, 128, 64), (16, 128, 64), (64, 128, 64)), ())
# Rows that start at multiples of 16 bytes and such that do not, on both sides of every tile.
ODD = ((1, 1, 1), (3, 65, 7), (17, 128, 64), (33, 1000, 65), (70, 272, 144), (300, 400, 272))


def checks(device):
    for m, in_, out in ODD:
        yield f"{m}x{in_}x{out}", functools.partial(odd_shape, m, in_, out, device)


def odd_shape(m, in_, out, device):
    x, w = draw(m, in_, out, device)
    with compare.poisoned():
        found = gpu.accumulate(x, w)
    compare.equal("sums", found, sums(x, w))
    bias = torch.linspace(-1, 1, out, device=device)
    for dtype, added in ((torch.float16, None), (torch.bfloat16, bias), (torch.float32, bias)):
        with compare.poisoned():
            found = gpu.matmul(x, w, *scales(m, out, device), added, dtype)
        expected = scaled(sums(x, w), *scales(m, out, device), added).to(dtype)
        compare.equal(f"{dtype}", found, expected)


def scaled(exact, x_scale, w_scale, bias=None):
    """What is promised to the bit: a sum rounded to float32, then times the rounded scales"""
    found = exact.float() * (x_scale[:, None] * w_scale)
    return found if bias is None else found + bias


def groups(device, quick=False):
    for (m, in_, out), targets in (QUICK if quick else SHAPES).items():
        yield group(m, in_, out, device, targets)


def group(m, in_, out, device, targets):
    x, w = draw(m, in_, out, device)
    x_scale, w_scale = scales(m, out, device)
    half, x_half = w.bfloat16() / 64, x.bfloat16() / 64
    weights, exact, absent = clock.copies(w, w.nbytes, device), sums(x, w), {}
    cases = {
        BF16: clock.rotate(
            lambda w: torch.mm(x_half, w.t()), clock.copies(half, half.nbytes, device)
        )
    }

    def afterwards(w):
        return (torch._int_mm(x, w.t()).float() * (x_scale[:, None] * w_scale)).bfloat16()

    theirs = {
        INT_MM: (lambda w: torch._int_mm(x, w.t()), exact.double()),
        AFTERWARDS: (afterwards, scaled(exact, x_scale, w_scale).double()),
    }
    for name, (call, expected) in theirs.items():
        build = functools.partial(clock.rotate, call, weights)
        found = peers.attempt(name, absent, build, expected)
        if found is not None:
            cases[name] = found
    cases["qbook"] = clock.rotate(
        lambda w: gpu.matmul(x, w, x_scale, w_scale, out_dtype=torch.bfloat16), weights
    )
    cases[SUMS] = clock.rotate(lambda w: gpu.accumulate(x, w), weights)

    def check():
        with compare.poisoned():
            found, whole = cases["qbook"](), cases[SUMS]()
        compare.equal("sums", whole, exact)
        compare.equal("scaled", found, scaled(exact, x_scale, w_scale).bfloat16())

    read = in_ * (m + out)
    moved = dict.fromkeys(cases, read + 2 * m * out) | {BF16: 2 * (read + m * out)}
    moved |= {name: read + 4 * m * out for name in (INT_MM, SUMS)}
    units = dict.fromkeys(cases, "int8") | {BF16: "bf16"}
    name, work = f"W8A8 int8 {m}x{in_}x{out}", 2 * m * in_ * out
    return Group(name, cases, work, moved, targets, units=units, absent=absent, check=check)


def tunings(device, quick=False):
    for m, in_, out in QUICK if quick else SHAPES:
        x, w = draw(m, in_, out, device)
        factors = *scales(m, out, device), None
        expected = scaled(sums(x, w), *factors).bfloat16()
        yield tune.Problem(
            f"W8A8 int8 {m}x{in_}x{out}",
            tiles(x, w, factors, configs.INT8),
            functools.partial(compare.equal, "scaled", expected=expected),
        )


def tiles(x, w, factors, kind, exact_every=None):
    """-> ``Config`` -> call: every candidate of the room that int8 and E4M3 share, chosen first"""
    m, out = len(x), len(w)
    architecture = architectures.architecture(x)
    weights = clock.copies(w, w.nbytes, x.device)
    # Rows of the timed shapes start at multiples of 16 bytes.
    descriptors = architecture in configs.DESCRIPTORS

    def run(w, config):
        y = x.new_empty(m, out, dtype=torch.bfloat16)
        # The interpreter cannot store bfloat16.
        y = y if x.device.type == "cuda" else y.float()
        launches.launch(x, w, y, *factors, architecture, exact_every, config).run()
        return y.bfloat16()

    chosen = configs.choose(m, out, architecture, kind, descriptors)
    tried = dict.fromkeys((chosen, *configs.candidates(architecture, kind, m)))
    return {c: clock.rotate(functools.partial(run, config=c), weights) for c in tried}
