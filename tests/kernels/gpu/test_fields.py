"""Codes cut out of four bytes at a time: the assembly, run in NumPy, against the plain twins."""

import numpy as np
import ptx
import pytest
from numpy.testing import assert_array_equal

from qbook.formats import E2M1
from qbook.kernels.gpu import fields


def float16(registers):
    """Two registers, two numbers each -> [words, 4] in the order of the bytes"""
    return np.stack([registers["$0"], registers["$1"]], axis=-1).view(np.float16)


def nibbles(words, field, bits):
    return words.view(np.uint8).reshape(-1, 4) >> bits * field & (2**bits - 1)


@pytest.mark.parametrize(("bits", "field"), [(4, 0), (4, 1), (2, 0), (2, 1), (2, 2), (2, 3)])
def test_every_code_in_every_place_becomes_1024_and_itself(bits, field):
    words = ptx.words()
    found = float16(ptx.run(fields.plus_1024_assembly(field, bits), _2=words))
    assert_array_equal(found, 1024.0 + nibbles(words, field, bits))


@pytest.mark.parametrize("field", [0, 1])
def test_every_code_of_e2m1_becomes_its_number(field):
    words = ptx.words()
    found = float16(ptx.run(fields.e2m1_assembly(field), _2=words)) * np.float16(16384)
    expected = E2M1.decode(nibbles(words, field, 4))
    assert_array_equal(found, expected)
    # -0 too.
    assert_array_equal(np.signbit(found), np.signbit(expected))


def test_an_instruction_that_numpy_does_not_know_is_told():
    with pytest.raises(AssertionError, match="not understood"):
        ptx.run("mov.b32 $0, $1;", _1=[1])
