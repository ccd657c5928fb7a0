from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from qbook import affine, requantize

LOW, HIGH = -(2**31), 2**31 - 1
# Everything at which a rounding, a sign or a saturation changes.
EDGES = sorted(
    {
        s * (2**e + d)
        for e in (0, 1, 2, 7, 15, 16, 29, 30, 31)
        for d in (-1, 0, 1)
        for s in (-1, 1)
        if LOW <= s * (2**e + d) <= HIGH
    }
    | {0, 3, -3, LOW, HIGH}
)
int32 = st.integers(LOW, HIGH) | st.sampled_from(EDGES)


def truncate(numerator, denominator):
    """C's division, of Python integers, which have no width."""
    quotient = abs(numerator) // denominator
    return quotient if numerator >= 0 else -quotient


def high_mul(a, b):
    """gemmlowp's SaturatingRoundingDoublingHighMul, statement by statement."""
    if a == b == LOW:
        return HIGH
    return truncate(a * b + (2**30 if a * b >= 0 else 1 - 2**30), 2**31)


def half_away_from_zero(x, exponent):
    magnitude = (2 * abs(x) + 2**exponent) // 2 ** (exponent + 1)
    return magnitude if x >= 0 else -magnitude


def test_the_product_equals_that_of_unbounded_integers_at_every_edge():
    a, b = np.array(EDGES)[:, None], np.array(EDGES)[None, :]
    found = requantize.saturating_rounding_doubling_high_mul(a, b)
    assert found.dtype == np.int32
    assert_array_equal(found, [[high_mul(a, b) for b in EDGES] for a in EDGES])


@given(int32, int32)
def test_the_product_is_the_nearest_integer_and_ties_go_up(a, b):
    found = int(requantize.saturating_rounding_doubling_high_mul(a, b))
    # floor(v + 1/2): mathematics that knows nothing of nudges and truncation.
    nearest = (a * b + 2**30) >> 31
    assert found == min(nearest, HIGH) == high_mul(a, b)


def test_only_the_square_of_the_lowest_integer_saturates():
    product = requantize.saturating_rounding_doubling_high_mul
    assert product(LOW, LOW) == HIGH
    assert product(LOW, LOW + 1) == HIGH
    assert product(LOW, HIGH) == -HIGH
    assert product(HIGH, HIGH) == HIGH - 1


@pytest.mark.parametrize("exponent", range(32))
def test_the_division_rounds_ties_away_from_zero(exponent):
    half = 2 ** max(exponent - 1, 0)
    near = [s * (m * half + d) for m in (0, 1, 2, 3, 5) for d in (-1, 0, 1) for s in (-1, 1)]
    x = sorted({v for v in near if LOW <= v <= HIGH} | set(EDGES))
    found = requantize.rounding_divide_by_power_of_two(np.array(x), exponent)
    assert found.dtype == np.int32
    assert_array_equal(found, [half_away_from_zero(v, exponent) for v in x])


def test_ties_of_both_roundings_by_hand():
    divide = requantize.rounding_divide_by_power_of_two
    assert divide(np.array([-5, -3, -1, 1, 3, 5]), 1).tolist() == [-3, -2, -1, 1, 2, 3]
    product = requantize.saturating_rounding_doubling_high_mul
    assert product(np.array([-5, -3, -1, 1, 3, 5]), 2**30).tolist() == [-2, -1, 0, 1, 2, 3]


@given(st.floats(2.0**-32, 2.0**31, exclude_max=True))
def test_the_multiplier_is_within_half_a_unit_of_its_mantissa(multiplier):
    m0, shift = (int(v) for v in requantize.quantize_multiplier(multiplier))
    assert 2**30 <= m0 <= HIGH
    unit = Fraction(1, 2**31) / Fraction(2) ** shift
    assert abs(Fraction(multiplier) - m0 * unit) <= unit / 2


def test_a_mantissa_that_rounds_up_to_one_is_halved():
    almost_one = np.nextafter(1.0, 0.0)
    m0, shift = requantize.quantize_multiplier([almost_one, almost_one / 8, 0.5, 1.0, 3.0])
    assert m0.dtype == shift.dtype == np.int32
    assert m0.tolist() == [2**30, 2**30, 2**30, 2**30, 3 * 2**29]
    # 1.0 is 2^30 times 2^-31 times 2^1.
    assert shift.tolist() == [-1, 2, 0, -1, -2]


def test_a_multiplier_too_small_for_any_sum_becomes_zero():
    m0, shift = requantize.quantize_multiplier([2.0**-32, 2.0**-33, 2.0**-1000])
    assert m0.tolist() == [2**30, 0, 0]
    assert shift.tolist() == [31, 0, 0]


@pytest.mark.parametrize("multiplier", [0.0, -0.5, np.nan, np.inf, 2.0**31])
def test_multipliers_that_are_no_ratio_of_scales_are_refused(multiplier):
    with pytest.raises(ValueError, match=r"not inside \(0, 2\^31\)"):
        requantize.quantize_multiplier(multiplier)


@given(int32, st.floats(2.0**-31, 1.0, exclude_max=True), st.integers(-128, 127))
def test_the_code_is_nearest_but_for_sums_close_to_a_tie(total, multiplier, zero_point):
    m0, shift = requantize.quantize_multiplier(multiplier)
    wide = affine.QParams(np.float32(1), np.int32(zero_point), LOW // 2, HIGH // 2)
    found = int(requantize.requantize(np.array([[total]], np.int32), m0, shift, wide)[0, 0])
    exact = min(max(Fraction(multiplier) * total + zero_point, LOW // 2), HIGH // 2)
    n = int(shift)
    # Half a code from the last rounding; half of 2^-n from the first, whose result is divided by
    # 2^n; |sum| 2^-(32 + n) from m0.  Without a shift the last rounding does nothing.
    bound = (
        Fraction(1, 2) * (n > 0) + Fraction(1, 2) ** (n + 1) + abs(total) / Fraction(2) ** (32 + n)
    )
    assert abs(found - exact) <= bound


def test_multipliers_of_one_or_more_shift_left_and_saturate():
    m0, shift = requantize.quantize_multiplier([3.0, 3.0, 1e6])
    wide = affine.QParams(np.float32(1), np.int32(0), LOW, HIGH)
    sums = np.array([[7, -7, HIGH], [0, 1, -5000]], np.int32)
    found = requantize.requantize(sums, m0, shift, wide)
    assert found[0, :2].tolist() == [21, -21]
    assert found[1, :2].tolist() == [0, 3]
    # 5000e6 is beyond int32: the shifted sum saturates instead of wrapping around, and is then
    # multiplied by the mantissa 1e6 / 2^20.
    assert found[0, 2] == round(Fraction(HIGH * 10**6, 2**20))
    assert found[1, 2] == round(Fraction(LOW * 10**6, 2**20))


@pytest.mark.parametrize(
    ("qmin", "qmax", "dtype"),
    [(-128, 127, np.int8), (0, 255, np.uint8), (-7, 7, np.int8), (-(2**15), 2**15 - 1, np.int16)],
)
def test_codes_saturate_and_take_the_smallest_type(qmin, qmax, dtype):
    m0, shift = requantize.quantize_multiplier(0.5)
    y = affine.QParams(np.float32(1), np.int32(qmin), qmin, qmax)
    codes = requantize.requantize(np.array([[-9, 4, HIGH]], np.int32), m0, shift, y)
    assert codes.dtype == dtype
    assert codes.tolist() == [[qmin, qmin + 2, qmax]]


def test_anything_but_int32_is_refused():
    y = affine.QParams(np.float32(1), np.int32(0), -128, 127)
    with pytest.raises(ValueError, match="sums is of type float64"):
        requantize.requantize(np.ones((1, 1)), 2**30, 0, y)
    with pytest.raises(ValueError, match="a is of type int64"):
        requantize.saturating_rounding_doubling_high_mul(2**31, 1)
    with pytest.raises(ValueError, match=r"outside 0\.\.31"):
        requantize.rounding_divide_by_power_of_two(1, 32)
