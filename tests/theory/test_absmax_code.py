import numpy as np
import pytest
from scipy import integrate, stats

from qbook.formats import E2M1, INT4, NF4, scaled
from qbook.theory import absmax_code
from qbook.theory.order_statistics import abs_max_moment


@pytest.mark.parametrize("group_size", [1, 2, 64, 1000])
def test_the_density_of_the_largest_has_area_one_and_its_known_second_moment(group_size):
    def moment(k):
        return integrate.quad(
            lambda m: m**k * absmax_code.largest_density(m, group_size), 0, 9, limit=200
        )[0]

    assert abs(moment(0) - 1) <= 1e-8
    assert abs(moment(2) / abs_max_moment(stats.norm(), group_size) - 1) <= 1e-7


@pytest.mark.parametrize("group_size", [2, 16, 64, 256])
@pytest.mark.parametrize("fmt", [NF4, E2M1, INT4], ids=lambda fmt: fmt.name)
def test_equals_a_simulation(fmt, group_size):
    x = np.random.default_rng(group_size).normal(size=(2**19 // group_size, group_size))
    # INT4's scale is of its positive end, 7: -8 is never used.
    levels = fmt.levels[1:] if fmt is INT4 else fmt.levels
    errors = np.mean((x - scaled.fake_quantize(x, fmt, scaled.absmax_scale(x, fmt, 1))) ** 2, 1)
    # Four standard errors of the mean over blocks, which are independent.
    tolerance = 4 * errors.std() / np.sqrt(len(x))
    exact = absmax_code.block_mse(levels / fmt.max, group_size)
    assert abs(errors.mean() - exact) <= tolerance
    assert tolerance <= 0.03 * exact


def test_a_block_of_one_costs_nothing_and_of_two_levels_what_integrals_say():
    assert absmax_code.block_mse(NF4.levels, 1) <= 1e-12
    # Levels -1 and 1, two numbers: 1/2 E (|y| - M)^2, with |y| < M the smaller magnitude.
    value = integrate.dblquad(
        lambda y, m: (m - y) ** 2 * 2 * 4 * stats.norm.pdf(m) * stats.norm.pdf(y),
        0, 8, 0, lambda m: m,
    )[0]  # fmt: skip
    assert abs(absmax_code.block_mse([-1, 1], 2) - value / 2) <= 1e-7


def test_an_end_without_a_level_costs_the_largest_its_distance():
    # Alone in its block, a number is the largest and at either end with probability 1/2.
    assert abs(absmax_code.block_mse([-1.0, 0.0, 0.9], 1) - 0.5 * 0.01) <= 1e-9


def test_bad_input_raises():
    with pytest.raises(ValueError, match="group_size=0 is below 1"):
        absmax_code.block_mse(NF4.levels, 0)
    with pytest.raises(ValueError, match="must increase"):
        absmax_code.block_mse([0.0, 0.0, 1.0], 4)
