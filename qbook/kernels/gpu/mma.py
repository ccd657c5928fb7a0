"""Instructions of tensor cores, and what NVIDIA's assembler makes of each on each architecture.

    mma.sync   a warp multiplies; all operands in registers            Volta and later
    wgmma      four warps; w and the sums may be larger                Hopper alone
    tcgen05    one thread asks; sums in a memory of their own          Blackwell, sm_100

A type is native where the machine code holds a tensor core's instruction of that very type,
emulated where the assembler takes the instruction and makes others of it, and missing where it
refuses.  Triton brings the assembler along; no GPU is needed.

NVIDIA, Parallel Thread Execution ISA, "Matrix multiply-accumulate".  Book: 6.1.1
"""

import functools
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Instruction(NamedTuple):
    """ptx: its name; m, n, k: y [m, n] += x [m, k] w [k, n]; bits: of a number of x as stored

    native: what it is called in machine code where it exists
    """

    ptx: str
    m: int
    n: int
    k: int
    bits: int
    native: str

    @property
    def multiply_adds(self):
        return self.m * self.n * self.k


def _warp(kind, types, m, n, k, bits, native):
    return Instruction(
        f"mma.sync.aligned.m{m}n{n}k{k}.row.col.{kind}{types}", m, n, k, bits, native
    )


def _group(types, k, bits, native):
    return Instruction(f"wgmma.mma_async.sync.aligned.m64n8k{k}.{types}", 64, 8, k, bits, native)


def _block(kind, k, bits, native):
    return Instruction(f"tcgen05.mma.cta_group::1.kind::{kind}", 128, 256, k, bits, native)


SIX, SCALED = "kind::f8f6f4.", "kind::mxf4nvf4.block_scale.scale_vec::4X."
# Name -> instruction.  The last of the smaller shapes is Volta's and Turing's.
WARP = {
    "fp16, Volta": _warp("", "f32.f16.f16.f32", 8, 8, 4, 16, "HMMA.884"),
    "fp16, Turing": _warp("", "f32.f16.f16.f32", 16, 8, 8, 16, "HMMA.1688"),
    "int8, Turing": _warp("", "s32.s8.s8.s32", 8, 8, 16, 8, "IMMA.8816.S8"),
    "int4, Turing": _warp("", "s32.s4.s4.s32", 8, 8, 32, 4, "IMMA.8832.S4"),
    "tf32": _warp("", "f32.tf32.tf32.f32", 16, 8, 8, 32, "HMMA.1688.F32.TF32"),
    "fp16": _warp("", "f32.f16.f16.f32", 16, 8, 16, 16, "HMMA.16816.F32"),
    "bf16": _warp("", "f32.bf16.bf16.f32", 16, 8, 16, 16, "HMMA.16816.F32.BF16"),
    "int8": _warp("", "s32.s8.s8.s32", 16, 8, 32, 8, "IMMA.16832.S8"),
    "int4": _warp("", "s32.s4.s4.s32", 16, 8, 64, 4, "IMMA.16864.S4"),
    "e4m3": _warp("", "f32.e4m3.e4m3.f32", 16, 8, 32, 8, "QMMA.16832"),
    "e2m1": _warp(SIX, "f32.e2m1.e2m1.f32", 16, 8, 32, 8, "QMMA.16832"),
    "nvfp4": _warp(SCALED, "f32.e2m1.e2m1.f32.ue4m3", 16, 8, 64, 4, "OMMA.SF.16864"),
}
GROUP = {
    "tf32": _group("f32.tf32.tf32", 8, 32, "HGMMA"),
    "fp16": _group("f32.f16.f16", 16, 16, "HGMMA"),
    "bf16": _group("f32.bf16.bf16", 16, 16, "HGMMA"),
    "int8": _group("s32.s8.s8", 32, 8, "IGMMA"),
    "int4": _group("s32.s4.s4", 64, 4, "IGMMA"),
    "e4m3": _group("f32.e4m3.e4m3", 32, 8, "QGMMA"),
}
# Two of a byte's bits stay empty for six-bit types and four for e2m1, except where scaled.
BLOCK = {
    "tf32": _block("tf32", 8, 32, "UTCHMMA"),
    "fp16": _block("f16", 16, 16, "UTCHMMA"),
    "bf16": _block("f16", 16, 16, "UTCHMMA"),
    "int8": _block("i8", 32, 8, "UTCIMMA"),
    "e4m3": _block("f8f6f4", 32, 8, "UTCQMMA"),
    "mxfp8": _block("mxf8f6f4.block_scale", 32, 8, "UTCQMMA"),
    "mxfp4": _block("mxf4.block_scale", 64, 4, "UTCOMMA"),
    "nvfp4": _block("mxf4nvf4.block_scale.scale_vec::4X", 64, 4, "UTCOMMA"),
}
# Compute capability -> what the assembler calls it, and a GPU that has it.
TARGETS = {70: "sm_70", 75: "sm_75", 80: "sm_80", 89: "sm_89"}
TARGETS |= {90: "sm_90a", 100: "sm_100a", 120: "sm_120a"}


@functools.cache
def machine_code(instruction, architecture):
    """-> names of the machine instructions of a program around it; None where it is refused

    Needs Triton, for its copies of ptxas and nvdisasm.  Raises ValueError for an unknown
    architecture.
    """
    if architecture not in TARGETS:
        raise ValueError(
            f"architecture={architecture}; choose one of {', '.join(map(str, TARGETS))}"
        )
    import triton.backends.nvidia

    tools = Path(triton.backends.nvidia.__file__).parent / "bin"
    target = TARGETS[architecture]
    with tempfile.TemporaryDirectory() as folder:
        source, code = Path(folder) / "one.ptx", Path(folder) / "one.cubin"
        source.write_text(program(instruction, target))
        command = [tools / "ptxas", f"-arch={target}", source, "-o", code]
        if subprocess.run(command, capture_output=True).returncode:
            return None
        text = subprocess.check_output([tools / "nvdisasm", "-c", code], text=True)
    return tuple(re.findall(r"^\s+/\*\w+\*/\s+(?:@!?\w+ )?([\w.]+)", text, re.M))


def status(instruction, architecture):
    """-> "native", "emulated" or "missing", as above"""
    names = machine_code(instruction, architecture)
    if names is None:
        return "missing"
    return "native" if any(n.startswith(instruction.native) for n in names) else "emulated"


def program(instruction, target):
    """-> PTX that loads operands, runs the instruction once and stores its sums"""
    integer = ".s32." in instruction.ptx
    sums, number = ("%s", "s32") if integer else ("%f", "f32")
    if instruction.ptx.startswith("mma"):
        body = _warp_body(instruction, sums, number)
    elif instruction.ptx.startswith("wgmma"):
        body = _group_body(instruction, sums, number)
    else:
        scales = ", [%r2], [%r3]" if "block_scale" in instruction.ptx else ""
        body = [f"{instruction.ptx} [%r0], %d0, %d1, %r1{scales}, %p0;"]
    lines = [".version 8.7", f".target {target}", ".address_size 64"]
    lines += [".visible .entry one(.param .u64 place) {", ".reg .b32 %r<8>; .reg .b64 %d<4>;"]
    lines += [".reg .s32 %s<8>; .reg .f32 %f<8>; .reg .b16 %h0; .reg .pred %p0;"]
    lines += ["ld.param.u64 %d2, [place];", "cvta.to.global.u64 %d3, %d2;"]
    lines += [f"ld.global.b64 %d{i}, [%d3+{8 * i}];" for i in range(2)]
    lines += [f"ld.global.b32 %r{i}, [%d3+{16 + 4 * i}];" for i in range(8)]
    lines += ["setp.ne.b64 %p0, %d0, 0;", "mov.b16 %h0, 0;", *body, "ret; }", ""]
    return "\n".join(lines)


def _warp_body(instruction, sums, number):
    """Registers of 32 bits that each of 32 threads holds: its share of x, of w and of the sums"""
    x = max(1, instruction.m * instruction.k * instruction.bits // 1024)
    w = max(1, instruction.n * instruction.k * instruction.bits // 1024)
    y = instruction.m * instruction.n // 32
    if instruction.k == 4:
        # Volta's: four products of eight threads each.
        x, w, y = 2, 2, 8
    y_list = ", ".join(f"{sums}{i}" for i in range(y))
    x_list = ", ".join(f"%r{i}" for i in range(x))
    w_list = ", ".join(f"%r{x + i}" for i in range(w))
    scales = ", %r6, {%h0, %h0}, %r7, {%h0, %h0}" if "block_scale" in instruction.ptx else ""
    return [
        *(f"ld.global.{number} {sums}{i}, [%d3+{64 + 4 * i}];" for i in range(y)),
        f"{instruction.ptx} {{{y_list}}}, {{{x_list}}}, {{{w_list}}}, {{{y_list}}}{scales};",
        *(f"st.global.{number} [%d3+{64 + 4 * i}], {sums}{i};" for i in range(y)),
    ]


def _group_body(instruction, sums, number):
    # Signs and, for 16 bits, orders of both operands are immediate numbers.
    tail = {"s": "", "f": ", 1, 1"}[number[0]] + (", 0, 0" if instruction.bits == 16 else "")
    y_list = ", ".join(f"{sums}{i}" for i in range(4))
    return [
        *(f"ld.global.{number} {sums}{i}, [%d3+{64 + 4 * i}];" for i in range(4)),
        "wgmma.fence.sync.aligned;",
        f"{instruction.ptx} {{{y_list}}}, %d0, %d1, %p0{tail};",
        "wgmma.commit_group.sync.aligned;",
        "wgmma.wait_group.sync.aligned 0;",
        *(f"st.global.{number} [%d3+{64 + 4 * i}], {sums}{i};" for i in range(4)),
    ]


def fragment(bits):
    """Which thread of a warp holds which number of x in ``mma.sync`` with 16 rows -> int [16, k]

    k = 256 / bits.  A register takes 32 / bits neighbours of a row; whatever their type, eight
    registers stand side by side in a row, held by threads 4 g to 4 g + 3, twice, g = row mod 8.
    Raises ValueError for other bits than 4, 8, 16 or 32.
    """
    if bits not in (4, 8, 16, 32):
        raise ValueError(f"bits={bits}; choose 4, 8, 16 or 32")
    register = np.arange(256 // bits) * bits // 32
    return np.arange(16)[:, None] % 8 * 4 + register[None, :] % 4
