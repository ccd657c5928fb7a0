"""INT8 by dp4a, without tensor cores: what a T4 uses, and what it costs where there are such.

Weights are packed before.  cuBLASLt's int8 product needs more than 16 rows.
"""

import functools

import torch

from benchmarks.gpu import clock, compare, peers, tune
from benchmarks.gpu.group import Group
from qbook.kernels.dp4a_matmul import configs, gpu
from qbook.kernels.gpu import device as architectures

SHAPES = ((1, 8192, 8192), (16, 8192, 8192), (64, 8192, 8192), (4096, 4096, 4096))
QUICK = ((1, 128, 64), (16, 128, 64))
ODD = ((1, 1, 1), (3, 65, 7), (9, 130, 33), (33, 1000, 65), (70, 64, 129))
FP16, INT_MM = "torch.mm fp16", "torch._int_mm"


def draw(m, in_, out, device):
    generator = torch.Generator(device).manual_seed(m)
    integers = functools.partial(
        torch.randint, -128, 128, dtype=torch.int8, device=device, generator=generator
    )
    return integers((m, in_)), integers((out, in_))


def scales(m, out, device):
    generator = torch.Generator(device).manual_seed(out)
    return (torch.rand(n, device=device, generator=generator) / 64 + 2**-7 for n in (m, out))


def sums(x, w):
    """Exact: float64 holds every sum of less than 2^38 such products."""
    return (x.double() @ w.double().T).to(torch.int32)


def checks(device):
    for m, in_, out in ODD:
        yield f"{m}x{in_}x{out}", functools.partial(odd_shape, m, in_, out, device)
    yield "every product of two codes", functools.partial(every_product, device)


def odd_shape(m, in_, out, device):
    x, w = draw(m, in_, out, device)
    x_scale, w_scale = scales(m, out, device)
    with compare.poisoned():
        found, scaled = gpu.matmul(x, w), gpu.matmul(x, gpu.pack(w), x_scale, w_scale)
    compare.equal("sums", found, sums(x, w))
    expected = sums(x, w).float() * (x_scale[:, None] * w_scale)
    compare.equal("scaled sums", scaled, expected)


def every_product(device):
    codes = torch.arange(-128, 128, dtype=torch.int8, device=device)[:, None]
    compare.equal("products", gpu.matmul(codes, codes), sums(codes, codes))


def groups(device, quick=False):
    for m, in_, out in QUICK if quick else SHAPES:
        yield group(m, in_, out, device)


def group(m, in_, out, device):
    x, w = draw(m, in_, out, device)
    x_scale, w_scale = scales(m, out, device)
    half, x_half = w.half() / 64, x.half() / 64
    packed = clock.copies(gpu.pack(w), w.nbytes, device)
    cases, absent = {}, {}
    cases[FP16] = clock.rotate(
        lambda w: torch.mm(x_half, w.t()), clock.copies(half, half.nbytes, device)
    )
    int_mm = peers.attempt(
        INT_MM,
        absent,
        lambda: clock.rotate(lambda w: torch._int_mm(x, w.t()), clock.copies(w, w.nbytes, device)),
        sums(x, w).double(),
    )
    if int_mm is not None:
        cases[INT_MM] = int_mm
    cases["qbook"] = clock.rotate(lambda w: gpu.matmul(x, w), packed)
    cases["qbook, scaled"] = clock.rotate(lambda w: gpu.matmul(x, w, x_scale, w_scale), packed)
    moved = dict.fromkeys(cases, in_ * (m + out) + 4 * m * out)
    moved[FP16] = 2 * (in_ * (m + out) + m * out)

    def check():
        with compare.poisoned():
            found, scaled = cases["qbook"](), cases["qbook, scaled"]()
        exact = sums(x, w)
        compare.equal("sums", found, exact)
        compare.equal("scaled sums", scaled, exact.float() * (x_scale[:, None] * w_scale))

    units = {FP16: "fp16", INT_MM: "int8"}
    name = f"dp4a {m}x{in_}x{out}"
    work = 2 * m * in_ * out
    return Group(name, cases, work, moved, units=units, absent=absent, check=check)


def tunings(device, quick=False):
    for m, in_, out in QUICK if quick else SHAPES:
        x, w = draw(m, in_, out, device)
        packed = clock.copies(gpu.pack(w), w.nbytes, device)
        architecture = architectures.architecture(x)

        def run(words, config, x=x, m=m, out=out, architecture=architecture):
            found = x.new_empty(m, out, dtype=torch.int32)
            gpu.launch(x, words, None, None, found, architecture, config).run()
            return found

        tried = dict.fromkeys((configs.choose(m), *configs.candidates(architecture)))
        yield tune.Problem(
            f"dp4a {m}x{in_}x{out}",
            {c: clock.rotate(functools.partial(run, config=c), packed) for c in tried},
            functools.partial(compare.equal, "sums", expected=sums(x, w)),
        )
