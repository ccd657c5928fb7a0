import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from scipy import stats

from qbook.theory import dither

N = 200_000


def every_dither(scale, n=1000):
    """The midpoints of n equal parts of one step: enumeration instead of sampling."""
    return ((np.arange(n) + 0.5) / n - 0.5) * scale


def one_over_1000_off_the_ties(n, seed=0):
    """Random x in units of the step, on multiples of 1/1000: no x + dither above is then a tie."""
    return np.random.default_rng(seed).integers(-5000, 5000, n) / 1000


@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0])
def test_subtractive_error_is_the_same_set_for_every_x(scale):
    u = every_dither(scale)
    for x in one_over_1000_off_the_ties(50) * scale:
        error = np.sort(x - dither.quantize_subtractive(np.full_like(u, x), scale, u))
        # The error is the dither shifted round the circle, so its set of values is unchanged; x and
        # the dither reach 7 steps, whose rounding is 7 * 2^-52.
        assert np.abs(error - u).max() <= 4e-15 * scale
        # The mean square of n midpoints is scale^2 / 12 (1 - 1 / n^2).
        assert abs(np.mean(error**2) / (scale**2 / 12) - (1 - 1e-6)) <= 1e-12


@pytest.mark.parametrize("source", ["constant", "binary", "gaussian", "ramp"])
def test_subtractive_error_is_uniform_and_independent_of_x(source):
    rng = np.random.default_rng(1)
    scale = 2.0
    x = {
        "constant": np.full(N, 0.3),
        "binary": rng.choice([-0.9, 0.4], N),
        # Half a step of standard deviation: undithered, the error would be far from uniform.
        "gaussian": rng.normal(0, 1, N),
        "ramp": np.linspace(-5, 5, N),
    }[source]
    error = x - dither.quantize_subtractive(x, scale, dither.uniform_dither(N, scale, rng))
    # Kolmogorov: sqrt(N) D exceeds 1.95 with probability 2 exp(-2 * 1.95^2) = 0.001.
    assert stats.kstest(error, stats.uniform(-scale / 2, scale).cdf).statistic <= 1.95 / np.sqrt(N)
    if source != "constant":
        # Independent values have a correlation of standard deviation 1 / sqrt(N); so have their
        # squares, which uncorrelated but dependent values would betray.
        for a, b in ((x, error), (x**2, error**2), (np.abs(x), np.abs(error))):
            assert abs(np.corrcoef(a, b)[0, 1]) <= 4 / np.sqrt(N)


def test_without_dither_the_same_statistics_see_the_dependence():
    x = np.random.default_rng(1).normal(0, 1, N)
    error = x - dither.quantize_subtractive(x, 4.0, np.zeros(N))
    assert stats.kstest(error, stats.uniform(-2, 4).cdf).statistic > 30 / np.sqrt(N)
    assert abs(np.corrcoef(x, error)[0, 1]) > 100 / np.sqrt(N)


@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0])
def test_nonsubtractive_rounding_is_unbiased_and_has_the_bernoulli_error(scale):
    u = every_dither(scale)
    for x in one_over_1000_off_the_ties(50, seed=2) * scale:
        x_hat = dither.quantize_nonsubtractive(np.full_like(u, x), scale, u)
        # 1000 x / scale is an integer, so the share of the dithers that round up is exact.
        assert abs(x_hat.mean() - x) <= 1e-14 * scale
        mse = np.mean((x_hat - x) ** 2)
        assert abs(mse - dither.nonsubtractive_mse(np.float64(x), scale)) <= 1e-13 * scale**2
        assert len(np.unique(x_hat)) <= 2


def test_nonsubtractive_error_is_twice_that_of_rounding_on_average():
    fractions = (np.arange(1000) + 0.5) / 1000
    mean = dither.nonsubtractive_mse(7 + fractions, 1.0).mean()
    # f (1 - f) at n midpoints averages 1/6 + 1 / (12 n^2).
    assert abs(mean - 1 / 6 - 1 / 12e6) <= 1e-12
    # On a level nothing is random, half way between two everything is.
    assert_array_equal(dither.nonsubtractive_mse(np.array([-3.0, 0.0, 2.5]), 1.0), [0, 0, 0.25])


def test_stochastic_rounding_is_nonsubtractive_dither():
    rng = np.random.default_rng(3)
    x, uniform = rng.normal(size=(7, 11)) * 5, rng.random((7, 11))
    assert_array_equal(
        dither.round_stochastic(x, uniform), dither.quantize_nonsubtractive(x, 1.0, uniform - 0.5)
    )
    # Integers stay for every draw, and -0.25 becomes -1 for a quarter of them.
    assert_array_equal(
        dither.round_stochastic(np.arange(-5.0, 6), rng.random(11)), np.arange(-5, 6)
    )
    uniform = (np.arange(1000) + 0.5) / 1000
    assert np.mean(dither.round_stochastic(np.full(1000, -0.25), uniform)) == -0.25


def test_uniform_dither_fills_the_interval_of_each_scale():
    scale = np.array([[0.5], [4.0]])
    u = dither.uniform_dither((2, N), scale, np.random.default_rng(4)) / scale
    assert u.shape == (2, N)
    assert ((-0.5 <= u) & (u < 0.5)).all()
    for row in u:
        assert stats.kstest(row, stats.uniform(-0.5, 1).cdf).statistic <= 1.95 / np.sqrt(N)


def test_torch_and_numpy_agree():
    rng = np.random.default_rng(5)
    x, scale = rng.normal(size=(3, 7)), np.array([[0.3], [1.0], [2.0]])
    u = dither.uniform_dither(x.shape, scale, rng)
    tensors = (torch.from_numpy(x), torch.from_numpy(scale), torch.from_numpy(u))
    for function in (dither.quantize_subtractive, dither.quantize_nonsubtractive):
        assert_array_equal(function(x, scale, u), function(*tensors).numpy())
    assert_array_equal(
        dither.nonsubtractive_mse(x, scale), dither.nonsubtractive_mse(*tensors[:2]).numpy()
    )


def test_scales_that_are_not_positive_are_refused():
    for scale in (0.0, -1.0, np.nan, np.array([1.0, 0.0, 1.0])):
        with pytest.raises(ValueError, match="positive"):
            dither.quantize_subtractive(np.zeros(3), scale, np.zeros(3))
