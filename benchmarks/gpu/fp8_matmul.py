"""E4M3 x E4M3 with a scale a row, against 16 bits and torch._scaled_mm, its scales a row too.

Each is timed twice: with the sums that the tensor core keeps (use_fast_accum=True in torch,
exact_every=None here), and with sums in float32 (exact_every=128).
"""

import functools

import torch

from benchmarks.gpu import clock, compare, peers, tune
from benchmarks.gpu.dp4a_matmul import scales
from benchmarks.gpu.group import Group
from benchmarks.gpu.int8_matmul import tiles
from qbook.kernels.fp8_matmul import gpu
from qbook.kernels.gpu import device as architectures
from qbook.kernels.scaled_matmul import configs
from qbook.lab.timing import Target

BF16, FAST, EXACT = "torch.mm bf16", "torch._scaled_mm, fast sums", "torch._scaled_mm"
OURS_EXACT = "qbook, exact every 128"
SHAPES = {
    (1, 8192, 8192): (),
    (16, 8192, 8192): (),
    (64, 8192, 8192): (),
    (1024, 8192, 8192): (),
    (8192, 8192, 8192): (Target("qbook", BF16, 1.4), Target("qbook", FAST, 0.85)),
}
QUICK = dict.fromkeys(((1, 128, 64), (16, 128, 64), (64, 128, 64)), ())
ODD = ((1, 1, 1), (3, 65, 7), (17, 128, 64), (33, 1000, 65), (70, 272, 144), (300, 400, 272))


def draw(m, in_, out, device):
    generator = torch.Generator(device).manual_seed(m)
    normal = functools.partial(torch.randn, device=device, generator=generator)
    return tuple((64 * normal(rows, in_)).to(gpu.E4M3) for rows in (m, out))


def lost(in_, exact_every, device):
    """-> what sums may lose, in root sums of squares, see ``compare.product``

    A tensor core of sm_89 or sm_90 aligns 32 products and the sum to the largest of them and keeps
    around 14 bits: 2^-13 of the sum a step, if every step rounds the same way.  Sums reach five
    times the root here.  Architectures from sm_100 on, and 16-bit tensor cores, add in float32.
    """
    if exact_every is None and architectures.architecture(torch.empty(0, device=device)) in (
        89,
        90,
    ):
        return 5 * -(-in_ // 32) * 2.0**-13
    return 5 * -(-(exact_every or 0) // 32) * 2.0**-13


def checks(device):
    for m, in_, out in ODD:
        for exact_every in (None, 128):
            yield (
                f"{m}x{in_}x{out}, exact every {exact_every}",
                functools.partial(odd_shape, m, in_, out, exact_every, device),
            )
    yield "every product of two codes", functools.partial(every_product, device)


def odd_shape(m, in_, out, exact_every, device):
    x, w = draw(m, in_, out, device)
    factors = x_scale, w_scale = tuple(scales(m, out, device))
    bias = torch.linspace(-1, 1, out, device=device)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        with compare.poisoned():
            found = gpu.matmul(x, w, *factors, bias, dtype, exact_every)
        compare.product(
            f"{dtype}",
            found,
            x.float() * x_scale[:, None],
            w.float() * w_scale[:, None],
            bias,
            lost(in_, exact_every, device),
        )


def every_product(device):
    """One column: a product of two codes is exact in float32, NaN and subnormals included."""
    codes = torch.arange(256, device=device).to(torch.uint8)[:, None].view(gpu.E4M3)
    found = gpu.matmul(codes, codes, 1.0, 1.0, out_dtype=torch.float32)
    expected = codes.float() @ codes.float().T
    nan = expected.isnan()
    compare.equal("places of NaN", found.isnan().int(), nan.int())
    compare.within("products", found.nan_to_num(), expected.nan_to_num(), 0)


def groups(device, quick=False):
    for (m, in_, out), targets in (QUICK if quick else SHAPES).items():
        yield group(m, in_, out, device, targets)


def group(m, in_, out, device, targets):
    x, w = draw(m, in_, out, device)
    factors = x_scale, w_scale = tuple(scales(m, out, device))
    real = [codes.float() * scale[:, None] for codes, scale in zip((x, w), factors, strict=True)]
    x_half, w_half = (a.bfloat16() for a in real)
    weights, absent = clock.copies(w, w.nbytes, device), {}
    cases = {
        BF16: clock.rotate(
            lambda w: torch.mm(x_half, w.t()), clock.copies(w_half, w_half.nbytes, device)
        )
    }
    expected = real[0].double() @ real[1].double().T
    for name, fast in ((FAST, True), (EXACT, False)):

        def build(fast=fast):
            calls = [peers.scaled(w, w_scale, fast=fast) for w in weights]
            return clock.rotate(lambda call: call(x, x_scale), calls)

        found = peers.attempt(name, absent, build, expected)
        if found is not None:
            cases[name] = found
    ours = {"qbook": None, OURS_EXACT: 128}
    for name, exact_every in ours.items():
        cases[name] = clock.rotate(
            lambda w, every=exact_every: gpu.matmul(x, w, *factors, exact_every=every), weights
        )

    def check():
        for name, exact_every in ours.items():
            with compare.poisoned():
                found = cases[name]()
            compare.product(name, found, *real, extra=lost(in_, exact_every, device))

    read = in_ * (m + out)
    moved = dict.fromkeys(cases, read + 2 * m * out) | {BF16: 2 * (read + m * out)}
    units = dict.fromkeys(cases, "fp8") | {BF16: "bf16"}
    name, work = f"W8A8 E4M3 {m}x{in_}x{out}", 2 * m * in_ * out
    return Group(name, cases, work, moved, targets, units=units, absent=absent, check=check)


def tunings(device, quick=False):
    kind = configs.FP8
    if architectures.architecture(torch.empty(0, device=device)) < 89:
        kind = configs.FP8_DECODED
    for m, in_, out in QUICK if quick else SHAPES:
        x, w = draw(m, in_, out, device)
        factors = tuple(scales(m, out, device))
        real = x.float() * factors[0][:, None], w.float() * factors[1][:, None]
        for exact_every, summed in ((None, kind), (128, configs.FP8_APART)):
            if exact_every and kind == configs.FP8_DECODED:
                continue
            name = f"W8A8 E4M3 {m}x{in_}x{out}, exact every {exact_every}"
            check = functools.partial(
                compare.product,
                name,
                x=real[0],
                w_hat=real[1],
                extra=lost(in_, exact_every, device),
            )
            yield tune.Problem(name, tiles(x, w, (*factors, None), summed, exact_every), check)
