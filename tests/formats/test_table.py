import time
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal

from qbook import formats
from qbook.formats import BINARY, E2M1, E2M3, E3M2, E4M3, E5M2, E8M0, INT4, NF4, TERNARY, Format

INTEGERS = [getattr(formats, f"INT{bits}") for bits in range(2, 9)]
MINIFLOATS = [E4M3, E5M2, E2M1, E3M2, E2M3, E8M0]
ALL = [*INTEGERS, *MINIFLOATS, BINARY, TERNARY, NF4]
FLOATS = {
    "float16": (np.float16, torch.float16),
    "bfloat16": (ml_dtypes.bfloat16, torch.bfloat16),
    "float32": (np.float32, torch.float32),
    "float64": (np.float64, torch.float64),
}
all_formats = pytest.mark.parametrize("fmt", ALL, ids=lambda fmt: fmt.name)


def hard_cases(fmt):
    """[n] float64: every value, every midpoint, both float64 neighbours of each, and outliers."""
    values = np.unique(fmt.values[np.isfinite(fmt.values)]).astype(np.float64)
    at = np.concatenate([values, (values[1:] + values[:-1]) / 2])
    beside = [np.nextafter(at, direction) for direction in (-np.inf, np.inf)]
    outliers = [0.0, -0.0, 5e-324, -5e-324, 1e300, -1e300, 3 * fmt.max, 3 * fmt.min]
    return np.concatenate([at, *beside, outliers])


def nearest_by_fractions(x, fmt):
    """The code of the nearest value in exact arithmetic, with the tie rules written out."""
    distance = {
        code: abs(Fraction(float(x)) - Fraction(float(value)))
        for code, value in enumerate(fmt.values)
        if np.isfinite(value) and not (value == 0 and np.signbit(value) != np.signbit(x))
    }
    if not any(fmt.values[code] == 0 for code in distance):
        # A format whose only zero is +0 gives it to negative numbers too.
        distance |= {c: abs(Fraction(float(x))) for c, v in enumerate(fmt.values) if v == 0}
    least = min(distance.values())
    nearest = [code for code, far in distance.items() if far == least]
    if len(nearest) > 1 and fmt.name in ("BINARY", "E8M0"):
        return max(nearest, key=lambda code: fmt.values[code])
    even = [code for code in nearest if code % 2 == 0]
    (code,) = nearest if len(nearest) == 1 else even
    return code


@all_formats
def test_encode_finds_the_nearest_value_in_exact_arithmetic_with_ties_to_even(fmt):
    x = hard_cases(fmt)
    expected = [nearest_by_fractions(value, fmt) for value in x]
    assert_array_equal(fmt.encode(x), expected)


@all_formats
def test_every_code_that_stands_for_a_number_survives_decoding_and_encoding(fmt):
    codes = np.flatnonzero(np.isfinite(fmt.values))
    assert_array_equal(fmt.encode(fmt.decode(codes)), codes)
    assert_array_equal(fmt.encode(fmt.decode(codes), saturate=False), codes)
    assert len(codes) == 2**fmt.bits - {"E4M3": 2, "E5M2": 8, "E8M0": 1, "TERNARY": 1}.get(
        fmt.name, 0
    )


@all_formats
@pytest.mark.parametrize("dtype", FLOATS)
def test_torch_and_numpy_give_the_same_codes_and_values(fmt, dtype):
    ours, theirs = FLOATS[dtype]
    rng = np.random.default_rng(0)
    x = np.concatenate([hard_cases(fmt), rng.normal(size=3001) * fmt.max, rng.normal(size=3001)])
    with np.errstate(over="ignore"):
        array = x.astype(ours)
    # By its bytes: torch's own cast from float64 to float16 rounds twice.
    tensor = torch.from_numpy(array.view(np.uint8)).view(theirs)
    codes = fmt.encode(tensor)
    assert codes.dtype == torch.uint8
    assert_array_equal(codes.numpy(), fmt.encode(array))
    values = fmt.decode(codes)
    assert values.dtype == torch.float32
    assert_array_equal(values.numpy().view(np.int32), fmt.decode(codes.numpy()).view(np.int32))


@all_formats
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_number_gets_the_same_code_in_every_float_type(fmt, dtype):
    with np.errstate(over="ignore"):
        x = hard_cases(fmt).astype(FLOATS[dtype][0])
    assert_array_equal(fmt.encode(x), fmt.encode(x.astype(np.float64)))


@pytest.mark.parametrize("library", [np.asarray, torch.from_numpy])
def test_nan_keeps_its_sign_and_stays_apart_from_overflow(library):
    x = library(np.array([np.nan, -np.nan, np.inf, -np.inf, 1.0], np.float32))
    assert_array_equal(np.asarray(E4M3.encode(x)), [0x7F, 0xFF, 0x7E, 0xFE, 0x38])
    assert_array_equal(np.asarray(E5M2.encode(x, saturate=False)), [0x7E, 0xFE, 0x7C, 0xFC, 0x3C])
    assert_array_equal(np.asarray(E8M0.encode(x)), [0xFF, 0xFF, 0xFE, 0x00, 0x7F])


@all_formats
@given(x=hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32, allow_nan=False)))
def test_round_is_idempotent_and_monotone(fmt, x):
    rounded = fmt.round(np.sort(x))
    assert_array_equal(fmt.round(rounded).view(np.int32), rounded.view(np.int32))
    assert np.all(rounded[:-1] <= rounded[1:])
    assert fmt.min <= rounded[0] <= rounded[-1] <= fmt.max


@pytest.mark.parametrize("fmt", [E4M3, E5M2, E2M1, E3M2, E2M3, TERNARY], ids=lambda fmt: fmt.name)
@given(x=st.floats(width=32, allow_nan=False))
def test_round_to_a_symmetric_format_commutes_with_negation(fmt, x):
    assert_array_equal(fmt.round(np.array([-x])), -fmt.round(np.array([x])))


@pytest.mark.parametrize(
    "fmt", [f for f in ALL if f not in (E4M3, E5M2, E8M0)], ids=lambda f: f.name
)
@pytest.mark.parametrize("library", [np.asarray, torch.from_numpy])
def test_formats_without_nan_refuse_nan_and_overflow_that_must_not_saturate(fmt, library):
    x = library(np.array([0.0, np.nan]))
    for saturate in (True, False):
        with pytest.raises(ValueError, match=f"{fmt.name} has no NaN"):
            fmt.encode(x, saturate=saturate)
    for far in (1.0001 * fmt.limits[1] if fmt.limits else 1.0001, -1000.0, np.inf, -np.inf):
        with pytest.raises(ValueError, match=r"no infinity or NaN, but x has .*saturate=True"):
            fmt.encode(library(np.array([0.0, far])), saturate=False)
    inside = library(np.array([fmt.min, 0.9 * fmt.min, 0.9 * fmt.max, fmt.max]))
    assert_array_equal(
        np.asarray(fmt.encode(inside, saturate=False)), np.asarray(fmt.encode(inside))
    )


def test_shapes_are_kept_and_layout_does_not_matter():
    x = np.random.default_rng(0).normal(size=(3, 5, 7))
    for array in (x, x.T, x[:, ::2], x[::-1, 1], x[:0], x[0, 0, 0:1].reshape(())):
        tensor = torch.from_numpy(array.copy())
        assert E4M3.encode(array).shape == E4M3.round(array).shape == array.shape
        assert_array_equal(E4M3.encode(tensor).numpy(), E4M3.encode(array))
    turned = torch.from_numpy(x).permute(2, 0, 1)[::2].requires_grad_()
    assert_array_equal(NF4.round(turned).numpy(), NF4.round(x).transpose(2, 0, 1)[::2])
    assert not NF4.round(turned).requires_grad
    with pytest.raises(ValueError, match="x has"):
        NF4.encode(turned * 100, saturate=False)


def test_arguments_are_not_modified_and_tables_cannot_be():
    x = np.linspace(-900, 900, 77)
    before = x.copy()
    E4M3.encode(x)
    assert_array_equal(x, before)
    codes = E4M3.encode(torch.from_numpy(x))
    E4M3.decode(codes).mul_(0)
    E4M3.decode(codes.numpy())[:] = 0
    assert E4M3.max == 448
    with pytest.raises(ValueError, match="read-only"):
        E4M3.values[0] = 1


@pytest.mark.parametrize("library", [np.asarray, torch.from_numpy])
def test_decode_takes_every_integer_type_and_refuses_what_is_no_code(library):
    codes = np.array([[0, 7, 8, 15]])
    for dtype in (np.uint8, np.int8, np.int16, np.int32, np.int64):
        assert_array_equal(INT4.decode(library(codes.astype(dtype))), [[0, 7, -8, -1]])
    for wrong in (16, -1, 200):
        with pytest.raises(ValueError, match=f"{wrong} is not a code of INT4; codes are 0 to 15"):
            INT4.decode(library(np.array([3, wrong])))
    for dtype in (np.float32, np.bool_):
        with pytest.raises(ValueError, match="INT4 decodes integers"):
            INT4.decode(library(codes.astype(dtype)))


def test_encode_takes_integers_and_refuses_what_is_not_a_real_number():
    assert_array_equal(INT4.encode(np.arange(-10, 10)), INT4.encode(np.arange(-10.0, 10.0)))
    for x in (np.array([1j]), np.array([True]), np.array(["1"]), torch.tensor([1j])):
        with pytest.raises(ValueError, match="INT4 cannot encode x of type"):
            INT4.encode(x)


def test_any_table_makes_a_format():
    # Codes need not be in the order of their values; ties go to the even code.
    mine = Format("mine", 2, [3.0, -1.0, 0.0, 10.0])
    assert_array_equal(
        mine.encode(np.array([-9, -0.5, 1.4, 1.6, 6.4, 6.5, 6.6])), [1, 2, 2, 0, 0, 0, 3]
    )
    assert (mine.min, mine.max) == (-1, 10)
    assert_array_equal(mine.levels, [-1, 0, 3, 10])
    with pytest.raises(ValueError, match=r"10\.1"):
        mine.encode(np.array([10.1]), saturate=False)


@pytest.mark.parametrize(
    ("bits", "values"), [(0, [1]), (9, np.arange(512)), (2, [1, 2, 3]), (1, [1, 1]), (1, [[0, 1]])]
)
def test_a_table_that_is_not_one_is_refused(bits, values):
    with pytest.raises(ValueError, match=r"do not agree|a value twice"):
        Format("wrong", bits, values)


def test_ternary_codes_are_those_of_int2_and_the_unused_one_decodes_to_nan():
    assert_array_equal(TERNARY.values, [0, 1, np.nan, -1])
    kept = np.isfinite(TERNARY.values)
    assert_array_equal(TERNARY.values[kept], formats.INT2.values[kept])


def test_encoding_a_million_numbers_takes_well_under_a_second():
    x = np.random.default_rng(0).normal(size=1_000_000).astype(np.float32)
    E4M3.encode(x[:10])
    start = time.perf_counter()
    E4M3.encode(x)
    # A tenth of a second on two busy cores; the bound allows for a machine that does other things.
    assert time.perf_counter() - start <= 1.0
