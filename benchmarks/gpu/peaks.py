"""What the GPU itself reaches: bytes by a copy, operations by the libraries' large products.

Fractions in the tables are of these, measured in the same run, on random data.
"""

import torch

from benchmarks.gpu import clock, peers
from benchmarks.gpu.group import Group

COPY, SIZE = "copy", 8192
COPIED = 1 << 30


def group(device, quick=False):
    """-> ``Group``: the copy, and one case for each matrix unit that the GPU has"""
    size, nbytes = (64, 1 << 16) if quick else (SIZE, COPIED)
    generator = torch.Generator(device).manual_seed(0)
    x, w = (torch.randn(size, size, device=device, generator=generator) for _ in range(2))
    source = torch.randint(
        0, 256, (nbytes // 2,), dtype=torch.uint8, device=device, generator=generator
    )
    target = torch.empty_like(source)
    cases, absent = {COPY: lambda: target.copy_(source)}, {}
    one = torch.ones((), device=device)
    byte = (torch.int8, torch.float8_e4m3fn)
    codes = [[(30 * t).clamp(-127, 127).to(dtype) for t in (x, w)] for dtype in byte]
    builds = {
        "bf16": lambda: clock.rotate(peers.matmul(w.bfloat16()), [x.bfloat16()]),
        "fp16": lambda: clock.rotate(peers.matmul(w.half()), [x.half()]),
        "int8": lambda: clock.rotate(peers.int8(codes[0][1]), [codes[0][0]]),
        "fp8": lambda: clock.rotate(
            peers.scaled(codes[1][1], one, fast=True), [codes[1][0]], [one]
        ),
    }
    for unit, build in builds.items():
        a, b = {"int8": codes[0], "fp8": codes[1]}.get(unit, (x, w))
        expected = a.double() @ b.double().T
        found = peers.attempt(unit, absent, build, expected)
        if found is not None:
            cases[unit] = found
    operations = dict.fromkeys(cases, 2 * size**3) | {COPY: None}
    units = {unit: unit for unit in cases if unit != COPY}
    return Group("peaks", cases, operations, {COPY: nbytes}, units=units, absent=absent)


def rates(group, timings):
    """-> name of a unit -> operations a second, "copy" -> bytes a second"""
    found = {}
    for name, timing in timings.items():
        work = group.work(name, "byte" if name == COPY else "operation")
        found[name] = work / timing.seconds
    return found
