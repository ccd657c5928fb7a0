import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from qbook.formats import E2M1, E4M3, E5M2
from qbook.training import fp8_scaling

FORMATS = pytest.mark.parametrize("fmt", [E4M3, E5M2], ids=lambda fmt: fmt.name)
OUTSIDERS = {"E4M3": ml_dtypes.float8_e4m3fn, "E5M2": ml_dtypes.float8_e5m2}


def boundary_numbers(fmt):
    """Every value, every midpoint, the limits, and the float32 numbers on both sides of each"""
    levels = fmt.levels.astype(np.float64)
    beyond = levels[-1] + np.array([0.25, 0.5, 1, 4]) * (levels[-1] - levels[-2])
    at = np.concatenate([levels, (levels[:-1] + levels[1:]) / 2, beyond, -beyond, [0.0, -0.0]])
    at = np.concatenate([at.astype(np.float32), np.array([1e-30, -1e-30, 3e38], np.float32)])
    infinite = np.float32(np.inf)
    around = np.concatenate([at, np.nextafter(at, infinite), np.nextafter(at, -infinite)])
    return around[np.isfinite(around)]


@FORMATS
def test_every_boundary_rounds_as_in_ml_dtypes(fmt):
    x = np.concatenate([boundary_numbers(fmt), [np.nan]]).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(OUTSIDERS[fmt.name]).astype(np.float32)
    rounded = fp8_scaling.round_to(torch.from_numpy(x), fmt, saturate=False).numpy()
    assert_array_equal(rounded, expected)
    number = ~np.isnan(expected)
    assert_array_equal(np.signbit(rounded)[number], np.signbit(expected)[number])


@FORMATS
@pytest.mark.parametrize("saturate", [True, False])
def test_every_boundary_rounds_as_in_the_table_of_the_format(fmt, saturate):
    x = torch.from_numpy(np.append(boundary_numbers(fmt), [np.inf, -np.inf]).astype(np.float32))
    expected = fmt.round(x, saturate=saturate)
    rounded = fp8_scaling.round_to(x, fmt, saturate=saturate)
    assert_array_equal(rounded.numpy(), expected.numpy())
    assert rounded.dtype == x.dtype
    assert fp8_scaling.round_to(x.double(), fmt).dtype == torch.float64


def test_the_limits_are_464_and_61440():
    near = [464.0, np.nextafter(np.float32(464), np.float32(500)), -465.0]
    found = fp8_scaling.round_to(torch.tensor(near), E4M3, saturate=False)
    assert found[0] == 448
    assert found[1:].isnan().all()
    near = [np.nextafter(np.float32(61440), np.float32(0)), 61440.0, -61440.0]
    found = fp8_scaling.round_to(torch.tensor(near), E5M2, saturate=False)
    assert found.tolist() == [57344, math.inf, -math.inf]


def test_rounding_carries_no_gradient_and_leaves_x_alone():
    x = torch.tensor([0.3, 1000.0], requires_grad=True)
    assert fp8_scaling.round_to(x, E4M3).tolist() == [0.3125, 448]
    assert not fp8_scaling.round_to(x, E4M3).requires_grad
    assert x.tolist() == [pytest.approx(0.3), 1000]


@FORMATS
@pytest.mark.parametrize("margin", [0, 1, 3])
def test_the_linear_factor_puts_the_largest_magnitude_at_the_top(fmt, margin):
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32))
    factor = fp8_scaling.linear_factor(fp8_scaling.amax(x), fmt, margin=margin)
    # One rounding each of the quotient and of the product.
    assert abs((x * factor).abs().max() / (fmt.max / 2**margin) - 1) <= 2**-23


def exact_exponent(amax, fmt):
    """The largest k with 2^k amax <= fmt.max, in rational numbers"""
    quotient, k = Fraction(fmt.max) / Fraction(float(amax)), 0
    while Fraction(2) ** k > quotient:
        k -= 1
    while Fraction(2) ** (k + 1) <= quotient:
        k += 1
    return k


@FORMATS
@pytest.mark.parametrize("margin", [0, 2])
def test_the_power_of_two_is_the_largest_that_does_not_overflow(fmt, margin):
    rng = np.random.default_rng(1)
    top = np.float32(fmt.max) * np.float32(2.0) ** np.arange(-30, 20, dtype=np.float32)
    amax = np.concatenate([np.exp(rng.uniform(-30, 20, 200)).astype(np.float32), top])
    amax = np.concatenate([amax, np.nextafter(amax, np.float32(0)), np.nextafter(amax, 1e38)])
    amax = amax.astype(np.float32)
    expected = [2.0 ** (exact_exponent(a, fmt) - margin) for a in amax]
    found = fp8_scaling.power_of_two_factor(torch.from_numpy(amax), fmt, margin=margin)
    assert_array_equal(found.numpy(), np.array(expected, np.float32))


@pytest.mark.parametrize("rule", [fp8_scaling.linear_factor, fp8_scaling.power_of_two_factor])
def test_a_maximum_that_says_nothing_leaves_the_factor_as_it_was(rule):
    amax = torch.tensor([0.0, math.inf, math.nan, 448.0])
    assert rule(amax, E4M3).tolist() == [1, 1, 1, 1]
    assert rule(amax, E4M3, otherwise=torch.tensor(8.0)).tolist() == [8, 8, 8, 1]
    tiny = rule(torch.tensor(1e-44), E4M3)
    assert torch.isfinite(tiny)
    assert tiny > 1e37


def test_a_power_of_two_changes_no_normal_number():
    x = torch.from_numpy(np.random.default_rng(2).uniform(1, 4, 100).astype(np.float32))
    plain = fp8_scaling.fake_quantize(x, E4M3, torch.tensor(1.0))
    assert torch.equal(fp8_scaling.fake_quantize(x, E4M3, torch.tensor(64.0)), plain)
    assert not torch.equal(fp8_scaling.fake_quantize(x, E4M3, torch.tensor(60.0)), plain)


def test_a_written_history_of_three_steps():
    state, factors = fp8_scaling.delayed(3), []
    for largest in (1.0, 4.0, 2.0, 1.0, 1.0, 0.0, 0.0, 0.0):
        factors.append(state.factor.item())
        state = fp8_scaling.update(state, torch.tensor(largest), E4M3)
    # The 4 serves from the step after it to the third after it; zeros keep the last factor.
    assert factors == [1, 448, 112, 112, 112, 224, 448, 448]
    assert state.factor == 448
    assert state.amax.tolist() == [0, 0, 0]


def transformer_engine(amaxes, length, top, margin, algorithm):
    """Its kernel in plain Python: slot 0 is this step's, the rest roll; -> factor of each step"""
    history, factor, factors = [0.0] * length, 1.0, []
    for largest in amaxes:
        factors.append(factor)
        history[0] = largest
        seen = max(history) if algorithm == "max" else history[0]
        if math.isfinite(seen) and seen > 0:
            factor = np.float32(top) / np.float32(seen) / np.float32(2.0**margin)
        history = [0.0, *history[2:], history[0]] if length > 1 else [0.0]
    return factors


@pytest.mark.parametrize("algorithm", ["max", "most_recent"])
@pytest.mark.parametrize(("length", "margin"), [(1, 0), (2, 1), (5, 0), (16, 3)])
def test_the_history_is_that_of_transformer_engine(length, margin, algorithm):
    rng = np.random.default_rng(length)
    amaxes = np.exp(rng.normal(size=60)).astype(np.float32)
    amaxes[rng.random(60) < 0.1] = 0
    amaxes[20] = np.inf
    state, found = fp8_scaling.delayed(length), []
    for largest in amaxes:
        found.append(state.factor.item())
        state = fp8_scaling.update(
            state, torch.tensor(largest), E5M2, margin=margin, algorithm=algorithm
        )
    expected = transformer_engine(amaxes.tolist(), length, 57344, margin, algorithm)
    assert_array_equal(np.array(found, np.float32), np.array(expected, np.float32))


def test_one_infinity_freezes_the_factor_until_it_leaves_the_history():
    state = fp8_scaling.delayed(4)
    factors = []
    for largest in (1.0, math.inf, 8.0, 8.0, 8.0, 8.0):
        state = fp8_scaling.update(state, torch.tensor(largest), E4M3)
        factors.append(state.factor.item())
    assert factors == [448, 448, 448, 448, 448, 56]


def test_an_update_leaves_the_old_state_alone():
    state = fp8_scaling.delayed(2)
    fp8_scaling.update(state, torch.tensor(3.0), E4M3)
    assert state.amax.tolist() == [0, 0]
    assert state.factor == 1


def test_half_of_the_smallest_value_is_flushed_and_what_is_above_is_not():
    x = torch.tensor([0.0, 2.0**-10, -(2.0**-10), 1.01 * 2.0**-10, 5.0])
    assert fp8_scaling.flushed_share(x, E4M3) == 0.5
    assert fp8_scaling.flushed_share(x, E4M3, 2.0) == 0
    assert fp8_scaling.flushed_share(x, E5M2) == 0
    assert fp8_scaling.flushed_share(torch.zeros(3), E4M3) == 0


def test_an_empty_tensor_has_no_maximum_and_no_say():
    assert fp8_scaling.amax(torch.zeros(0, 3)) == 0
    assert fp8_scaling.amax(torch.tensor([-3.0, 2.0], dtype=torch.bfloat16)).dtype == torch.float32


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="E2M1 is not a format of FP8"):
        fp8_scaling.round_to(torch.ones(2), E2M1)
    with pytest.raises(ValueError, match="length=0"):
        fp8_scaling.delayed(0)
    with pytest.raises(ValueError, match="algorithm='mean'"):
        fp8_scaling.update(fp8_scaling.delayed(2), torch.tensor(1.0), E4M3, algorithm="mean")
