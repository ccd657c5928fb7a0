"""What LLVM makes of the byte product, on this processor or on one that is not at hand.

Book: 6.2
"""

import re
from collections import Counter

import llvmlite.binding as llvm
from llvmlite import ir

from qbook.kernels.simd import dot
from qbook.kernels.simd.types import I32

# Processor: LLVM's triple and name, and the instruction set of ``isa`` that suits it.
PROCESSORS = {
    "AVX-512 VNNI": ("x86_64-linux-gnu", "cascadelake", "avx512vnni"),
    "AVX-VNNI": ("x86_64-linux-gnu", "alderlake", "avxvnni"),
    "AVX2": ("x86_64-linux-gnu", "haswell", "portable"),
    "SSE2": ("x86_64-linux-gnu", "x86-64", "portable"),
    "NEON": ("aarch64-linux-gnu", "neoverse-n1", "portable"),
}
# What stands around the product and is no part of it.
FRAME = {"ret", "retq", "pushq", "popq", "mov", "movq"}


def dot4(processor):
    """A name of PROCESSORS -> the assembly of one ``simd.dot.dot4``, 64 products added to 16 sums

    Raises ValueError for a processor that is not among them.
    """
    if processor not in PROCESSORS:
        raise ValueError(f"{processor!r} is not known; choose one of {', '.join(PROCESSORS)}")
    triple, name, isa = PROCESSORS[processor]
    vector = ir.VectorType(I32, 16)
    module = ir.Module()
    module.triple = triple
    function = ir.Function(module, ir.FunctionType(vector, [vector] * 3), "dot4")
    builder = ir.IRBuilder(function.append_basic_block())
    builder.ret(dot.emit(builder, isa, *function.args))
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=name, opt=3)
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    return machine.emit_assembly(parsed)


def instructions(text):
    """Assembly -> Counter of its instructions, without what enters and leaves the function"""
    # Alder Lake's form of an instruction that AVX-512 also has is marked {vex}.
    found = re.findall(r"^\s+(?:\{vex\}\s+)?([a-z]\w*)(?:\s|$)", text, re.MULTILINE)
    return Counter(name for name in found if name not in FRAME)
