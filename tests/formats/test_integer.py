import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from qbook import formats
from qbook.formats import BINARY, INT2, INT4, TERNARY

BITS = range(2, 9)


def numbers(bits):
    """All multiples of 1/8 in twice the range, ties among them, and float64 beside each."""
    at = np.arange(-(2 ** (bits + 3)), 2 ** (bits + 3) + 1) / 8
    return np.concatenate([at, np.nextafter(at, np.inf), np.nextafter(at, -np.inf)])


@pytest.mark.parametrize("bits", BITS)
def test_the_table_is_twos_complement(bits):
    fmt = getattr(formats, f"INT{bits}")
    assert (fmt.name, fmt.bits) == (f"INT{bits}", bits)
    # Sign extension by the machine: shift the code to the top of a byte and back.
    codes = np.arange(2**bits).astype(np.uint8)
    assert_array_equal(fmt.values, (codes << (8 - bits)).view(np.int8) >> (8 - bits))


@pytest.mark.parametrize("bits", BITS)
def test_encode_is_rint_and_clip_in_the_low_bits(bits):
    fmt, x = getattr(formats, f"INT{bits}"), numbers(bits)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    expected = np.clip(np.rint(x), low, high).astype(np.int64)
    assert_array_equal(fmt.encode(x), expected & (2**bits - 1))
    assert_array_equal(fmt.round(x), expected)
    # Without saturation: the same where rint stays in the range, an error elsewhere.
    inside = (np.rint(x) >= low) & (np.rint(x) <= high)
    assert_array_equal(fmt.round(x[inside], saturate=False), expected[inside])
    for value in x[~inside]:
        with pytest.raises(ValueError, match=f"INT{bits} holds {low}.0 to {high}.0"):
            fmt.encode(np.array([value]), saturate=False)


@pytest.mark.parametrize(("fmt", "theirs"), [(INT2, ml_dtypes.int2), (INT4, ml_dtypes.int4)])
def test_every_code_equals_ml_dtypes(fmt, theirs):
    codes = np.arange(2**fmt.bits, dtype=np.uint8)
    values = codes.astype(np.int8).view(theirs).astype(np.float32)
    assert_array_equal(fmt.values, values)
    # Encoding is compared on integers in range: ml_dtypes truncates fractions and wraps around.
    their_codes = values.astype(theirs).view(np.uint8) & (2**fmt.bits - 1)
    assert_array_equal(fmt.encode(values), their_codes)


def test_int8_equals_torch_on_all_bfloat16_numbers():
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    x = x[~torch.isnan(x)]
    theirs = torch.clamp(torch.round(x.float()), -128, 127).to(torch.int8)
    assert torch.equal(formats.INT8.encode(x).view(torch.int8), theirs)


def test_ternary_rounds_half_to_zero_and_clips_to_one():
    x = numbers(3)
    assert_array_equal(TERNARY.round(x), np.clip(np.rint(x), -1, 1))
    assert set(TERNARY.encode(x)) == {0, 1, 3}
    assert TERNARY.bits == 2


def test_binary_is_the_sign_and_the_sign_of_zero_is_plus_one():
    x = np.concatenate([numbers(2), [0.0, -0.0, 5e-324, -5e-324, np.inf, -np.inf]])
    assert_array_equal(BINARY.round(x), np.where(x >= 0, 1, -1))
    assert_array_equal(BINARY.encode(x), np.where(x >= 0, 1, 0))
    assert_array_equal(BINARY.encode(torch.from_numpy(x)).numpy(), BINARY.encode(x))
