"""Rows to int8 and E4M3: against a copy of as many bytes, which is the least that it could take."""

import functools

import torch

from benchmarks.gpu import clock, compare, peers
from benchmarks.gpu.group import Group
from qbook.kernels.rowwise import gpu, triton_kernels
from qbook.lab.timing import Target

SHAPES = ((8192, 8192), (16384, 4096), (4096, 14336), (2048, 28672))
ODD = ((1, 1), (3, 7), (5, 1000), (129, 4097), (2, 16385))
CALLS = {torch.int8: gpu.quantize_int8, torch.float8_e4m3fn: gpu.quantize_fp8}
EAGER, COMPILED = "torch, an operation at a time", "torch.compile of the same"
COPY = "copy of as many bytes"


def checks(device):
    for dtype in CALLS:
        for shape in ODD:
            for x_dtype in (torch.float16, torch.bfloat16, torch.float32):
                yield (
                    f"{x_dtype} {list(shape)} to {dtype}",
                    functools.partial(equals_the_reference, shape, x_dtype, dtype, device),
                )
    yield "the native cast to E4M3 is the integer cast", functools.partial(casts_agree, device)


def equals_the_reference(shape, x_dtype, dtype, device):
    x = draw(shape, x_dtype, device)
    if len(x) > 2:
        x[1] = 0
    multiplier = draw((1, shape[1]), torch.float32, device)[0].abs() + 0.1
    for factor in (None, multiplier):
        with compare.poisoned():
            codes, scale = CALLS[dtype](x, factor)
        on_cpu = None if factor is None else factor.cpu()
        expected = gpu.reference(x.cpu(), on_cpu, dtype)
        compare.equal("codes", codes, expected[0].to(device))
        compare.equal("scales", scale, expected[1].to(device))


def casts_agree(device, rows=64, n=4096):
    """Rows with largest value 448 have scale 1: their codes are the cast of x alone."""
    generator = torch.Generator(device).manual_seed(0)
    # Bits of finite float32 below 448, of either sign: every exponent, ties and subnormals too.
    bits = torch.randint(0, 0x43E00000, (rows, n), generator=generator, device=device)
    bits[1::4] &= ~0xFFFF
    bits[2::4] &= ~0x7FFFF
    x = bits.to(torch.int32).view(torch.float32)
    # Around E4M3's own range, from 2^-12 on, and not only where everything becomes 0.
    x[::2] = x[::2].clamp_min(2.0**-12)
    x[3::4] = torch.exp2(torch.rand(x[3::4].shape, generator=generator, device=device) * 20.8 - 12)
    x[:, ::3] *= -1
    x[:, 0] = 448
    codes, scale = gpu.quantize_fp8(x)
    compare.equal("scales", scale, torch.ones_like(scale))
    codes = codes.view(torch.uint8)
    by_bits = torch.empty_like(codes)
    programs = -(-x.numel() // 1024)
    triton_kernels.encode_e4m3[(programs,)](x, by_bits, x.numel(), BLOCK=1024)
    compare.equal("codes", codes, by_bits)
    compare.equal("codes", codes, x.to(torch.float8_e4m3fn).view(torch.uint8))


def groups(device, quick=False):
    for rows, n in SHAPES:
        for dtype in CALLS:
            scale = 128 if quick else 1
            yield group(max(1, rows // scale), max(1, n // scale), dtype, device, quick)


def group(rows, n, dtype, device, quick):
    x = draw((rows, n), torch.float16, device)
    multiplier = draw((1, n), torch.float32, device)[0].abs() + 0.1
    eager = functools.partial(an_operation_at_a_time, dtype=dtype)
    copies, call = clock.copies(x, x.nbytes, device), CALLS[dtype]
    cases, absent = {EAGER: clock.rotate(eager, copies)}, {}
    if torch.device(device).type == "cuda" and (rows, n) == SHAPES[0]:
        compiled = torch.compile(eager, dynamic=False)
        found = peers.attempt(
            COMPILED,
            absent,
            lambda: clock.rotate(lambda x: compiled(x)[0], copies),
            eager(x)[0].double(),
        )
        if found is not None:
            cases[COMPILED] = found
    else:
        absent[COMPILED] = "compiled for the first shape, on a GPU"
    cases["qbook"] = clock.rotate(call, copies)
    cases["qbook, smoothed"] = clock.rotate(lambda x: call(x, multiplier), copies)
    moved = x.nbytes + rows * n + 4 * rows
    cases[COPY] = copy_of(moved, device)
    bytes_moved = dict.fromkeys(cases, moved) | {"qbook, smoothed": moved + 4 * n}

    def check():
        for name, factor in (("qbook", 1), ("qbook, smoothed", multiplier)):
            with compare.poisoned():
                codes, scale = cases[name]()
            wanted = eager(x.float() * factor)
            compare.equal(f"{name}, codes", codes, wanted[0])
            compare.equal(f"{name}, scales", scale, wanted[1])

    kind = "int8" if dtype == torch.int8 else "E4M3"
    name = f"rows to {kind}, float16 {rows}x{n}"
    targets = (Target("qbook", COPY, 0.8, "byte"),)
    return Group(name, cases, None, bytes_moved, targets, absent=absent, check=check)


def copy_of(nbytes, device):
    """-> call() that reads nbytes / 2 and writes as many elsewhere, in turns over copies"""
    generator = torch.Generator(device).manual_seed(0)
    source = torch.randint(
        0, 256, (nbytes // 2,), dtype=torch.uint8, device=device, generator=generator
    )
    sources = clock.copies(source, nbytes, device)
    targets = [torch.empty_like(source) for source in sources]
    return clock.rotate(lambda source, target: target.copy_(source), sources, targets)


def an_operation_at_a_time(x, dtype):
    """What one writes in torch: each line reads and writes all of x"""
    x = x.float()
    largest = x.abs().amax(dim=1)
    scale = (largest / gpu.LARGEST[dtype]).clamp_min(torch.finfo(torch.float32).tiny)
    scale = torch.where(largest == 0, 1, scale)
    steps = x * (1 / scale)[:, None]
    codes = steps.round() if dtype == torch.int8 else steps.clamp(-448, 448)
    return codes.to(dtype), scale


def draw(shape, dtype, device):
    generator = torch.Generator(device).manual_seed(shape[0])
    return torch.randn(shape, device=device, generator=generator).to(dtype)
