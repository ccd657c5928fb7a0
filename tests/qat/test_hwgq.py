import numpy as np
import pytest
from scipy import stats

from qbook.qat import hwgq
from qbook.theory import lloyd_max

# The tables gaussian_steps and hwgq_steps in EdMIPS's models/quant_module.py.
WEIGHTS = {1: 1.596, 2: 0.996, 3: 0.586, 4: 0.336}
ACTIVATIONS = {1: 0.799, 2: 0.538, 3: 0.3217, 4: 0.185}


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_steps_are_the_authors_tables(bits):
    # Their three digits: 0.185 lies 0.0008 above the minimum, 0.799 lies 0.0011 above sqrt(2 / pi).
    assert abs(hwgq.weight_step(bits) / WEIGHTS[bits] - 1) <= 5e-3
    assert abs(hwgq.half_wave_step(bits) / ACTIVATIONS[bits] - 1) <= 5e-3


def test_one_bit_by_hand_and_by_lloyd_max():
    # One positive level: the mean of |g|, sqrt(2 / pi); two levels without a zero: twice that.
    assert abs(hwgq.half_wave_step(1) - np.sqrt(2 / np.pi)) <= 1e-5
    levels = lloyd_max.design(stats.norm(), 2).levels
    assert abs(hwgq.weight_step(1) - (levels[1] - levels[0])) <= 1e-5


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("round_to_zero", [False, True])
def test_mse_is_the_mean_over_quantiles(bits, round_to_zero):
    n, step = 200_000, 0.4
    x = np.maximum(stats.norm.ppf((np.arange(n) + 0.5) / n), 0)
    codes = np.clip(np.rint(x / step), 0, 2**bits - 1)
    if not round_to_zero:
        codes = np.where(x > 0, np.maximum(codes, 1), 0)
    error = np.mean((x - codes * step) ** 2)
    # Midpoints of 200 000 cells; the outermost cell is worst, 5 sigma^2 / n.
    assert abs(hwgq.mse(step, bits, round_to_zero=round_to_zero) - error) <= 2e-4 * error + 3e-5


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_rounding_to_zero_needs_longer_steps(bits):
    nearest = hwgq.half_wave_step(bits, round_to_zero=True)
    assert nearest > 1.04 * hwgq.half_wave_step(bits)
    best = hwgq.mse(nearest, bits, round_to_zero=True)
    assert best < hwgq.mse(ACTIVATIONS[bits], bits, round_to_zero=True)
    for factor in (0.99, 1.01):
        assert best < hwgq.mse(factor * nearest, bits, round_to_zero=True)


def test_other_widths_are_refused():
    for bits in (0, 9, 1.5):
        with pytest.raises(ValueError, match="1 to 8"):
            hwgq.half_wave_step(bits)
        with pytest.raises(ValueError, match="1 to 8"):
            hwgq.weight_step(bits)
