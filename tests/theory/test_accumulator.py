"""Oracles: integer arithmetic on shifted registers, exact fractions, NumPy's own float16."""

from fractions import Fraction

import numpy as np
import pytest

from qbook.theory import accumulator


def by_registers(products, bits, step):
    """The same with Python's integers: shift right, drop the sign first, add."""
    total = Fraction(0)
    for start in range(0, len(products), step):
        addends = [Fraction(float(p)) for p in products[start : start + step]] + [total]
        largest = max(abs(a) for a in addends)
        unit = Fraction(1)
        while largest >= unit * 2**bits:
            unit *= 2
        while largest and largest < unit * 2 ** (bits - 1):
            unit /= 2
        total = sum((int(a / unit) * unit for a in addends), Fraction(0))
    return total


@pytest.mark.parametrize("bits", [4, 9, 14])
@pytest.mark.parametrize("step", [1, 5, 32])
@pytest.mark.parametrize("n", [0, 1, 33, 100])
def test_sums_are_those_of_integer_registers(bits, step, n):
    rng = np.random.default_rng(100 * bits + step + n)
    products = rng.normal(size=(3, n)) * 2.0 ** rng.integers(-6, 6, (3, n))
    found = accumulator.fixed_point(products, bits=bits, step=step)
    for row, total in zip(products, found, strict=True):
        # The result leaves through a float32 register.
        assert Fraction(float(total)) == Fraction(float(np.float32(by_registers(row, bits, step))))


def test_wide_registers_are_exact():
    rng = np.random.default_rng(0)
    products = rng.integers(-100, 100, (7, 300)).astype(float)
    found = accumulator.fixed_point(products, bits=40)
    np.testing.assert_array_equal(found, products.sum(axis=1))
    again = accumulator.fixed_point(products, bits=40, promote=128)
    np.testing.assert_array_equal(again, products.sum(axis=1))


def test_a_step_errs_by_no_more_than_its_bound():
    rng = np.random.default_rng(1)
    products = rng.lognormal(sigma=2, size=(200, 32)) * rng.choice([-1, 1], (200, 32))
    error = np.abs(accumulator.fixed_point(products) - products.sum(axis=1))
    bound = accumulator.fixed_point_bound(np.abs(products).max(axis=1))
    # float32 of the result: below 2^-24 of it, which is below a thousandth of a unit's 2^-13.
    assert (error <= bound * 1.001).all()
    assert error.max() > 0.2 * bound[error.argmax()]


def test_moving_sums_out_bounds_the_loss():
    # All alike and positive: a sum of ones stops to grow when it is worth 2^bits ones.
    ones = np.ones((1, 4096))
    assert accumulator.fixed_point(ones, bits=6, step=1) == 64
    assert accumulator.fixed_point(ones, bits=6, step=1, promote=32) == 4096


def test_float16_sums_stop_at_2048_and_end_at_65504():
    # Beyond 2048 the distance of two numbers is 2, and the tie goes to even.
    assert accumulator.float16(np.ones((1, 5000))) == 2048
    assert accumulator.float16(np.full((1, 100), 1000.0)) == np.inf
    assert accumulator.float16(np.array([[60000.0, 60000.0, -60000.0]])) == np.inf
    assert accumulator.float16(np.array([60000.0, -60000.0, 5.0])) == 5


@pytest.mark.parametrize(
    "bad", [{"bits": 0}, {"step": 0}, {"promote": 0}, {"promote": 48}, {"promote": -32}]
)
def test_registers_that_cannot_be_are_refused(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}={next(iter(bad.values()))}"):
        accumulator.fixed_point(np.ones((1, 3)), **bad)
