import math

import numpy as np
import pytest
from scipy import stats

from qbook import affine, metrics
from qbook.theory import order_statistics

SIZES = [1, 2, 3, 17, 128, 5000]


def harmonic(n, power):
    return math.fsum(1 / k**power for k in range(1, n + 1))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("b", [0.25, 1.0, 7.0])
def test_the_maximum_of_a_laplace_sample_has_harmonic_moments(n, b):
    # |x| is exponential, and the gaps between its order statistics are independent exponentials of
    # means b/n, b/(n-1), ..., b: mean b H_n, variance b^2 sum 1/k^2.
    mean, square = (order_statistics.abs_max_moment(stats.laplace(scale=b), n, k) for k in (1, 2))
    assert abs(mean / (b * harmonic(n, 1)) - 1) <= 1e-8
    assert abs(square / (b * b * (harmonic(n, 1) ** 2 + harmonic(n, 2))) - 1) <= 1e-8


@pytest.mark.parametrize("n", [*SIZES, 2.5])
def test_the_maximum_of_a_uniform_sample_has_rational_moments(n):
    # |x| is uniform on 0..3; its maximum has the density n t^(n-1) / 3^n.
    dist = stats.uniform(-3, 6)
    assert abs(order_statistics.abs_max_moment(dist, n, 1) / (3 * n / (n + 1)) - 1) <= 1e-8
    assert abs(order_statistics.abs_max_moment(dist, n, 2) / (9 * n / (n + 2)) - 1) <= 1e-8


def test_two_gaussians_have_the_closed_form():
    # max(|x|, |y|) = (|x + y| + |x - y|) / 2 for every x, y: mean 2 sqrt(2) sqrt(2/pi) / 2, and
    # mean square (2 + 2 + 2 E|x^2 - y^2|) / 4 = 1 + 2/pi, as x + y and x - y are independent.
    assert abs(order_statistics.abs_max_moment(stats.norm(), 2, 1) - 2 / math.sqrt(math.pi)) <= 1e-8
    assert abs(order_statistics.abs_max_moment(stats.norm(), 2, 2) - (1 + 2 / math.pi)) <= 1e-8


def test_one_value_is_its_own_maximum_whatever_its_mean():
    assert abs(order_statistics.abs_max_moment(stats.norm(3, 2), 1, 2) - 13) <= 1e-6


@pytest.mark.parametrize("n", [1, 2, 8, 64, 1000, 10**6])
def test_the_gaussian_maximum_stays_below_the_bound_of_the_exponential_moments(n):
    bound = math.sqrt(2 * math.log(2 * n))
    assert order_statistics.abs_max_moment(stats.norm(), n, 1) <= bound


@pytest.mark.parametrize("n", [2, 32, 128])
def test_the_moments_are_those_of_a_heavy_tailed_sample(n):
    draws = np.abs(np.random.default_rng(0).standard_t(6, size=(20_000, n))).max(axis=1)
    for power in (1, 2):
        sample = draws**power
        expected = order_statistics.abs_max_moment(stats.t(6), n, power)
        # Five standard errors of the mean of the draws.
        assert abs(sample.mean() - expected) <= 5 * sample.std() / math.sqrt(len(sample))


@pytest.mark.parametrize("group_size", [4, 32, 128])
def test_equal_rate_noise_is_what_the_quantizer_makes(group_size):
    x = np.random.default_rng(1).normal(size=(40_000 // group_size * 16, group_size))
    noise = metrics.mse(x, affine.fake_quantize(x, affine.choose_qparams(x, 8, axis=1)))
    expected = order_statistics.equal_rate_noise(stats.norm(), group_size, 0) / (12 * 127**2)
    # 640 000 squared errors, those of a group sharing one factor, scatter by less than a percent;
    # the step is below a thirtieth of the standard deviation, where s^2 / 12 is exact.
    assert abs(noise / expected - 1) <= 0.02


def test_metadata_cost_four_to_the_bits_a_value():
    free, paid = (order_statistics.equal_rate_noise(stats.norm(), 32, m) for m in (0, 16))
    assert abs(paid / free - 2) <= 1e-12


@pytest.mark.parametrize(("n", "power", "message"), [(0.5, 2, "n=0.5"), (3, 3, "power=3")])
def test_what_has_no_maximum_is_refused(n, power, message):
    with pytest.raises(ValueError, match=message):
        order_statistics.abs_max_moment(stats.norm(), n, power)


def test_densities_without_a_variance_and_negative_metadata_are_refused():
    with pytest.raises(ValueError, match="standard deviation of dist is inf"):
        order_statistics.abs_max_moment(stats.t(2), 3)
    with pytest.raises(ValueError, match="metadata_bits=-1"):
        order_statistics.equal_rate_noise(stats.norm(), 3, -1)
