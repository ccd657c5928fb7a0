"""A kernel's contract: compiled for a GPU that is not there, and read.

    python -m qbook.kernels.gpu.contract                        every kernel, every architecture
    python -m qbook.kernels.gpu.contract rowwise --arch 90      some

Holds when no register was spilled, shared memory and registers fit, and the instructions that the
launch is there for (``Launch.does``) are in the machine code.  Triton brings the assembler and the
disassembler along; neither a GPU nor a driver is needed.  It cannot run in a process in which
Triton interprets, therefore ``read`` starts another.  Book: 6.1
"""

import argparse
import collections
import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from qbook.kernels.gpu import device

# Every room of qbook.kernels that has public calls for a GPU.
ROOMS = tuple(sorted(p.parent.name for p in Path(__file__).parents[1].glob("*/gpu.py")))
REGISTERS = 65536

# What a tensor core's instruction is called in machine code, by type of operand and architecture.
MMA = {75: "HMMA", 80: "HMMA", 86: "HMMA", 89: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}
# Triton 3.6 gives int8 to sm_100 as it gives it to sm_80.
IMMA = {75: "IMMA", 80: "IMMA", 86: "IMMA", 89: "IMMA", 90: "IGMMA", 100: "IMMA", 120: "IMMA"}
QMMA = {89: "QMMA", 90: "QGMMA", 100: "UTCQMMA", 120: "QMMA"}
# What a launch can claim: name -> architecture -> instruction.
CLAIMS = {
    "fp16 tensor core": MMA,
    "int8 tensor core": IMMA,
    "fp8 tensor core": QMMA,
    "dp4a": dict.fromkeys(device.ARCHITECTURES, "IDP"),
    "fp8 conversion": dict.fromkeys((89, 90, 100, 120), "F2FP"),
    "bulk copy": dict.fromkeys((90, 100, 120), "UTMALDG"),
}
SPILLS = ("LDL", "STL")


@dataclasses.dataclass(frozen=True)
class Report:
    """What the compiler made of a launch.

    registers:     of one thread
    stack, local:  bytes of memory that a thread needs beside its registers: spills
    shared:        bytes of shared memory that one program needs
    instructions:  name of a machine instruction -> how often it stands in the code
    broken:        sentences, one for each clause that does not hold
    """

    room: str
    name: str
    architecture: int
    registers: int
    stack: int
    local: int
    shared: int
    num_warps: int
    instructions: dict
    broken: list


def compile_for(launch, architecture):
    """Launch, whose tensors may be on the "meta" device -> Triton's compiled kernel"""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        kind = "constexpr" if parameter.is_constexpr else _kind(value)
        signature[parameter.name] = kind
        if kind == "constexpr":
            constants[index,] = value
        elif kind.startswith("*") or (isinstance(value, int) and value % 16 == 0):
            attributes[index,] = [["tt.divisibility", 16]]
    source = ASTSource(
        fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes
    )
    target = GPUTarget("cuda", architecture, 32)
    return triton.compile(source, target=target, options=launch.options)


def _kind(value):
    """-> the type that Triton gives an argument of a launch: what its own dispatch would find"""
    import torch
    from triton._utils import canonicalize_dtype
    from triton.tools.tensor_descriptor import TensorDescriptor

    # None and 1 become constants.
    if value is None or (isinstance(value, int) and value == 1):
        return "constexpr"
    if isinstance(value, torch.Tensor):
        return "*" + canonicalize_dtype(value.dtype)
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{canonicalize_dtype(value.base.dtype)}{list(value.block_shape)}>"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return "fp32"


def report(room, name, launch, architecture):
    """-> ``Report`` of a launch, compiled in this process"""
    compiled = compile_for(launch, architecture)
    usage, code = _disassemble(compiled.asm["cubin"])
    numbers = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    registers, stack, local = map(int, numbers.groups())
    found = Report(
        room,
        name,
        architecture,
        registers,
        stack,
        local,
        compiled.metadata.shared,
        launch.num_warps,
        dict(collections.Counter(re.findall(r"^\s+/\*\w+\*/\s+(?:@!?\w+ )?(\w+)", code, re.M))),
        [],
    )
    return dataclasses.replace(found, broken=list(_broken(found, launch.does)))


def _disassemble(cubin):
    import triton.backends.nvidia

    tools = Path(triton.backends.nvidia.__file__).parent / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        commands = [tools / "cuobjdump", "-res-usage", path], [tools / "nvdisasm", "-c", path]
        return [subprocess.check_output(c, text=True, stderr=subprocess.STDOUT) for c in commands]


def _broken(found, claims):
    limit = device.SHARED_MEMORY[found.architecture] * 1024
    if found.stack or found.local or any(found.instructions.get(name) for name in SPILLS):
        yield f"{found.stack} bytes of stack and {found.local} of local memory: registers spill"
    if found.shared > limit:
        yield f"{found.shared} bytes of shared memory, of {limit} at most"
    if found.registers * 32 * found.num_warps > REGISTERS:
        yield f"{found.registers} registers in {found.num_warps} warps, of {REGISTERS} at most"
    for claim in claims:
        wanted = CLAIMS[claim][found.architecture]
        if not found.instructions.get(wanted):
            yield f"no {wanted}, the instruction of its {claim}"


def read(rooms=ROOMS, architectures=device.ARCHITECTURES, only=""):
    """-> ``Report`` of every launch of the rooms' ``contracts``, compiled in another process

    only:  a text that the names of the launches must hold
    """
    architectures = map(str, architectures)
    rows = elsewhere("qbook.kernels.gpu.contract", *rooms, "--only", only, "--arch", *architectures)
    return [Report(**row) for row in rows]


def elsewhere(module, *arguments):
    """What ``python -m module --json`` prints on its last line, in a process where Triton compiles

    Raises RuntimeError, with the end of what it said, where it fails.
    """
    command = [sys.executable, "-m", module, "--json", *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _reports(rooms, architectures, only):
    for room in rooms:
        module = importlib.import_module(f"qbook.kernels.{room}.gpu")
        for architecture in architectures:
            for name, launch in module.contracts(architecture):
                if only in name:
                    yield report(room, name, launch, architecture)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    # Not ``choices``: argparse would compare the whole default with each of them.
    parser.add_argument("rooms", nargs="*", help=f"of {', '.join(ROOMS)}")
    parser.add_argument("--arch", nargs="+", type=int, default=device.ARCHITECTURES)
    parser.add_argument("--only", default="", metavar="TEXT", help="launches with TEXT in the name")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    unknown = [str(a) for a in {*asked.rooms, *asked.arch} - {*ROOMS, *device.ARCHITECTURES}]
    if unknown:
        parser.error(f"{', '.join(unknown)} unknown; choose of {ROOMS} and {device.ARCHITECTURES}")
    if device.interpreted():
        parser.error("TRITON_INTERPRET=1 is set, and an interpreter compiles nothing; unset it")
    found = []
    for row in _reports(asked.rooms or ROOMS, asked.arch, asked.only):
        found.append(row)
        if not asked.json:
            print(line(row), flush=True)
    if asked.json:
        print(json.dumps([dataclasses.asdict(row) for row in found]))
        return 0
    return any(row.broken for row in found)


def line(row):
    """-> a report in one line"""
    tensor = {name for claim in (MMA, IMMA, QMMA) for name in claim.values()} | {"IDP", "FFMA"}
    used = ", ".join(f"{k} {v}" for k, v in sorted(row.instructions.items()) if k in tensor)
    text = f"sm_{row.architecture:<4} {row.room:16} {row.name:44} {row.registers:4} registers"
    return "; ".join([f"{text} {row.shared / 1024:6.1f} KiB  {used}", *row.broken])


if __name__ == "__main__":
    sys.exit(main())
