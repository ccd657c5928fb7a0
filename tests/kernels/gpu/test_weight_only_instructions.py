"""Loops in machine code, and what the compiler makes of the products with packed weights."""

import pytest

from qbook import gpus
from qbook.kernels.weight_only import instructions

# As Triton disassembles: control bits, a tabulator, the instruction.  The last jump fills.
CODE = """Function:multiply
--:-:1:-:1\tLDC R1, c[0x0][0x28];
LBB0:
--:-:-:-:1\tLDG.E R2, desc[UR4][R4.64];
--:-:-:-:1\t@!P5 BRA LBB1;
--:-:-:-:1\tFFMA R1, R2, R3, R1;
LBB1:
04:-:-:-:1\tIADD3 R4, R4, 0x4, RZ;
--:-:-:-:5\t@P6 BRA LBB0;
LBB2:
--:-:-:-:1\tIADD3 R4, R4, 0x4, RZ;
--:-:-:Y:5\t@!P0 BRA.U UP0, LBB2;
--:-:-:-:5\tEXIT;
LBB3:
--:-:-:Y:0\tBRA LBB3;
"""


@pytest.fixture(scope="module")
def loops():
    return {(one.name, one.way): one for one in instructions.read(90)}


def test_the_longest_jump_back_is_the_loop():
    assert instructions.loop(CODE) == ["LDG", "BRA", "FFMA", "IADD3", "BRA"]


def test_code_without_a_loop_is_told():
    with pytest.raises(ValueError, match="no loop"):
        instructions.loop(CODE.split("LBB0")[0] + "LBB3:\n--:-:-:Y:0\tBRA LBB3;\n")


def test_a_budget_is_what_the_schedulers_start_while_a_weight_arrives():
    # H100 SXM at the 1.98 GHz of its float32 peak: 132 multiprocessors start 4 * 32 a cycle.
    issued, arriving = 132 * 4 * 32 * 1.98e9, 3.35e12 * 8 / 4.25
    assert instructions.budget(4.25, gpus.H100) == pytest.approx(issued / arriving, rel=1e-3)


def test_every_format_and_way_is_counted(loops):
    others = ["int4, byte_by_byte", "int4, converted", "int4, half_scale"]
    names = [*instructions.FORMATS, *others]
    assert {name for name, way in loops if way == "multiply"} == set(names)
    assert {name for name, way in loops if way == "multiply_row"} == set(instructions.FORMATS)
    for one in loops.values():
        # Less than an instruction for two weights would be less than the conversion of two alone.
        assert one.weights >= 16
        assert 0.5 < one.per_weight < 20


def test_codes_become_numbers_without_a_conversion(loops):
    ours, converted = loops["int4", "multiply"], loops["int4, converted", "multiply"]
    assert "I2F" not in ours.instructions
    assert converted.instructions["I2F"] >= converted.weights


def test_four_bytes_at_a_time_take_fewer_instructions_than_one(loops):
    ours, single = loops["int4", "multiply"], loops["int4, byte_by_byte", "multiply"]
    assert ours.per_weight < single.per_weight
    assert "I2F" not in single.instructions


def test_words_of_scales_are_copied_ahead_and_halves_are_not(loops):
    ours, halves = loops["int4", "multiply"], loops["int4, half_scale", "multiply"]
    assert ours.instructions["LDGSTS"] > 0
    assert "LDG" not in ours.instructions
    assert halves.instructions["LDG"] > 0
