import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy import optimize, stats

from qbook.theory import rate_distortion

N = 200_000


def test_gaussian_function_at_the_points_everybody_knows():
    assert rate_distortion.gaussian_rate(1.0) == 0
    assert rate_distortion.gaussian_rate(7.0, 3.0) == 0
    assert rate_distortion.gaussian_rate(0.25) == 1
    assert rate_distortion.gaussian_mse(4.0, 3.0) == 3 / 256
    # 4 bits: 24.08 dB; 6.02 dB per bit.
    assert abs(-10 * np.log10(rate_distortion.gaussian_mse(4.0)) - 24.08) <= 0.005


def test_gaussian_rate_and_mse_invert_each_other_elementwise():
    rates = np.linspace(0, 12, 25)
    back = rate_distortion.gaussian_rate(rate_distortion.gaussian_mse(rates, 0.3), 0.3)
    assert np.abs(back - rates).max() <= 1e-14


@pytest.mark.parametrize(("mse", "variance"), [(0.1, 1.0), (1.5, 2.0), (0.02, 0.3)])
def test_the_test_channel_has_the_error_and_the_information_of_r_d(mse, variance):
    rng = np.random.default_rng(0)
    x = rng.normal(0, np.sqrt(variance), N)
    x_hat = rate_distortion.gaussian_test_channel(x, mse, variance, rng)
    error = x - x_hat
    # Sample moments of Gaussians: a variance is off by sqrt(2 / N) of itself, a correlation by
    # 1 / sqrt(N); four standard deviations.
    assert abs(error.var() / mse - 1) <= 4 * np.sqrt(2 / N)
    assert abs(x_hat.var() / (variance - mse) - 1) <= 4 * np.sqrt(2 / N)
    assert abs(np.corrcoef(error, x_hat)[0, 1]) <= 4 / np.sqrt(N)
    # Joint normality: the error is Gaussian too, not the uniform one of a quantizer.
    assert stats.kstest(error / np.sqrt(mse), "norm").statistic <= 1.95 / np.sqrt(N)
    # dI = rho / (1 - rho^2) / ln 2 * d rho, and rho varies by (1 - rho^2) /
    # sqrt(N).
    information = rate_distortion.gaussian_mutual_information(x, x_hat)
    rate = rate_distortion.gaussian_rate(mse, variance)
    assert abs(information - rate) <= 4 / np.log(2) / np.sqrt(N)


def test_the_test_channel_at_full_error_says_nothing():
    x = np.random.default_rng(0).normal(size=(3, 5))
    assert (rate_distortion.gaussian_test_channel(x, 1.0, 1.0, np.random.default_rng(1)) == 0).all()


def test_a_worse_channel_of_the_same_error_carries_more_information():
    rng = np.random.default_rng(0)
    x = rng.normal(size=N)
    noisy = x + np.sqrt(0.25) * rng.normal(size=N)
    # 0.5 log2(1 + 1 / 0.25) = 1.161 bits instead of R(0.25) = 1.
    assert rate_distortion.gaussian_mutual_information(x, noisy) > 1.1


@pytest.mark.parametrize("mse", [1e-3, 0.1, 1.0])
def test_shannon_lower_bound_is_r_d_of_the_gaussian_and_the_entropy_of_others(mse):
    gaussian = rate_distortion.shannon_lower_bound(stats.norm(2, 3), mse)
    assert abs(gaussian - rate_distortion.gaussian_rate(mse, 9.0)) <= 1e-12
    # h = log2(2 e b) for Laplace, log2(width) for the uniform density.
    laplace = rate_distortion.shannon_lower_bound(stats.laplace(scale=2), mse)
    assert abs(laplace - np.log2(4 * np.e) + 0.5 * np.log2(2 * np.pi * np.e * mse)) <= 1e-12
    uniform = rate_distortion.shannon_lower_bound(stats.uniform(-1, 4), mse)
    assert abs(uniform - 2 + 0.5 * np.log2(2 * np.pi * np.e * mse)) <= 1e-12
    # Of all densities of one variance the Gaussian is the hardest to code.
    same_variance = stats.laplace(scale=3 / np.sqrt(2))
    assert rate_distortion.shannon_lower_bound(same_variance, mse) < gaussian


@pytest.mark.parametrize("mse", [0.01, 0.5, 1.2, 3.0, 7.3, 8.5])
def test_reverse_water_filling_equals_constrained_minimisation(mse):
    variances = np.array([3.0, 0.1, 1.0, 4.0, 0.5])
    mses, rates = rate_distortion.reverse_water_filling(variances, mse)
    # The sum of five numbers up to 8.6.
    assert abs(mses.sum() - mse) <= 1e-14
    result = optimize.minimize(
        lambda d: np.sum(0.5 * np.log2(variances / d)),
        variances * mse / variances.sum(),
        bounds=[(1e-9, v) for v in variances],
        constraints={"type": "eq", "fun": lambda d: d.sum() - mse},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    # SLSQP stops within about 1e-7 of the optimum here; the closed form may only be better.
    assert abs(rates.sum() - result.fun) <= 1e-6
    assert rates.sum() <= result.fun + 1e-9
    # Karush-Kuhn-Tucker: one water level where there are bits, and the whole variance elsewhere.
    coded = mses < variances
    assert np.ptp(mses[coded]) <= 1e-15
    assert (rates[~coded] == 0).all()
    assert (variances[~coded] <= mses.max()).all()


def test_reverse_water_filling_of_one_component_and_of_everything():
    mses, rates = rate_distortion.reverse_water_filling([2.0], 0.5)
    assert (mses, rates) == (0.5, 1.0)
    mses, rates = rate_distortion.reverse_water_filling([0.1, 0.2, 0.3], 0.1 + 0.2 + 0.3)
    assert np.abs(mses - [0.1, 0.2, 0.3]).max() <= 1e-15
    assert np.abs(rates).max() <= 1e-14
    # A sum rounded upwards is still everything.
    mses, _ = rate_distortion.reverse_water_filling([0.1, 5.0], np.nextafter(5.1, 6))
    assert_array_equal(mses, [0.1, 5.0])


def test_bad_arguments_are_named():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="mse=0"):
        rate_distortion.gaussian_rate(0)
    with pytest.raises(ValueError, match="rate=-1"):
        rate_distortion.gaussian_mse(-1)
    with pytest.raises(ValueError, match=r"mse=2.* variance=1"):
        rate_distortion.gaussian_test_channel(np.zeros(3), 2.0, 1.0, rng)
    with pytest.raises(ValueError, match=r"mse=4 exceeds .* 3"):
        rate_distortion.reverse_water_filling([1.0, 2.0], 4)
    with pytest.raises(ValueError, match="positive"):
        rate_distortion.reverse_water_filling([1.0, 0.0], 0.5)
