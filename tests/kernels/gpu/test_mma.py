"""Oracle: NVIDIA's own assembler, and the PTX manual's formulas of who holds what."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from qbook.kernels.gpu import device, mma

needs_assembler = pytest.mark.skipif(
    not device.has_triton(),
    reason="Triton brings the assembler along: pip install triton (Linux)",
)

# The table of the book: name -> architectures where it is native, and where it is emulated.
WARP = {
    "fp16, Volta": ({70, 75}, {80, 89, 90, 100, 120}),
    "fp16, Turing": ({75, 80, 89, 90, 100, 120}, set()),
    "int8, Turing": ({75, 80, 89, 90}, {100, 120}),
    "int4, Turing": ({75, 80, 89}, {90, 100, 120}),
    "tf32": ({80, 89, 90, 100, 120}, set()),
    "fp16": ({80, 89, 90, 100, 120}, set()),
    "bf16": ({80, 89, 90, 100, 120}, set()),
    "int8": ({80, 89, 90, 100, 120}, set()),
    "int4": ({80, 89}, {90, 100, 120}),
    "e4m3": ({89, 120}, {90, 100}),
    "e2m1": ({120}, set()),
    "nvfp4": ({120}, set()),
}


def found(table, name):
    status = {a: mma.status(table[name], a) for a in mma.TARGETS}
    return tuple({a for a, s in status.items() if s == kind} for kind in ("native", "emulated"))


@needs_assembler
@pytest.mark.parametrize("name", mma.WARP)
def test_the_assembler_agrees_with_the_table(name):
    assert found(mma.WARP, name) == WARP[name]


@needs_assembler
@pytest.mark.parametrize("name", mma.GROUP)
def test_four_warps_multiply_on_hopper_alone_and_no_four_bits(name):
    assert found(mma.GROUP, name) == (set() if name == "int4" else {90}, set())


@needs_assembler
@pytest.mark.parametrize("name", mma.BLOCK)
def test_blocks_multiply_on_data_centre_blackwell_alone(name):
    assert found(mma.BLOCK, name) == ({100}, set())


@needs_assembler
def test_four_bits_are_refused_by_hopper_for_their_type(tmp_path):
    import triton.backends.nvidia

    source = tmp_path / "one.ptx"
    source.write_text(mma.program(mma.GROUP["int4"], "sm_90a"))
    ptxas = Path(triton.backends.nvidia.__file__).parent / "bin" / "ptxas"
    command = [ptxas, "-arch=sm_90a", source, "-o", tmp_path / "one.cubin"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "instruction types" in done.stderr


@needs_assembler
def test_what_emulation_makes_of_it():
    four_bits = mma.machine_code(mma.WARP["int4"], 90)
    assert [n for n in four_bits if "MMA" in n] == ["IMMA.16832.S8.S8"] * 2
    # Unpacking: many times the instructions of the native program.
    assert len(four_bits) > 4 * len(mma.machine_code(mma.WARP["int4"], 80))
    eight_bits = mma.machine_code(mma.WARP["e4m3"], 90)
    assert [n for n in eight_bits if "MMA" in n] == ["HMMA.16816.F32"] * 2


def test_a_row_of_x_takes_as_many_bits_whatever_its_type():
    for table in (mma.WARP, mma.GROUP, mma.BLOCK):
        for name, instruction in table.items():
            width = {"fp16, Volta": 64}.get(name, 128 if "Turing" in name else 256)
            assert instruction.k * instruction.bits == width


def by_the_manual(bits):
    """PTX ISA, fragments of m16n8k8 .tf32, m16n8k16 .f16, m16n8k32 .s8 and m16n8k64 .s4."""
    holder = np.full((16, 256 // bits), -1)
    each = 32 // bits
    for lane in range(32):
        group, thread = lane // 4, lane % 4
        for i in range(4 * each):
            row = group + 8 * (i // each % 2)
            column = thread * each + i % each + 4 * each * (i // (2 * each))
            assert holder[row, column] == -1
            holder[row, column] = lane
    return holder


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_threads_hold_what_the_manual_says(bits):
    holder = mma.fragment(bits)
    assert_array_equal(holder, by_the_manual(bits))
    assert_array_equal(np.bincount(holder.ravel()), 4 * 32 // bits)


def test_unknown_architectures_and_widths_are_refused():
    with pytest.raises(ValueError, match="architecture=61"):
        mma.machine_code(mma.WARP["int8"], 61)
    with pytest.raises(ValueError, match="bits=6"):
        mma.fragment(6)
