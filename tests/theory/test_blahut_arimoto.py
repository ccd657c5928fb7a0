import numpy as np
import pytest
from scipy import stats

from qbook.theory import rate_distortion
from qbook.theory.blahut_arimoto import blahut_arimoto, mutual_information


def binary_entropy(p):
    return -p * np.log2(p) - (1 - p) * np.log2(1 - p)


def squared_error(x, y):
    return (x[:, None] - y[None, :]) ** 2


@pytest.mark.parametrize("error", [0.01, 0.11, 0.3])
@pytest.mark.parametrize("p", [0.5, 0.35])
def test_a_binary_source_under_hamming_distance_reaches_h_p_minus_h_d(p, error):
    if error >= p:
        pytest.skip("the rate is 0 beyond the error of always guessing the likelier bit")
    # Slope of -H(D): log2((1 - D) / D), hence beta = ln((1 - D) / D).
    point = blahut_arimoto([p, 1 - p], 1 - np.eye(2), np.log((1 - error) / error), tolerance=1e-10)
    assert point.gap <= 1e-10
    # A gap g in rate moves the point along the curve by about sqrt(g).
    assert abs(point.distortion - error) <= 1e-4
    expected = binary_entropy(p) - binary_entropy(point.distortion)
    assert abs(point.rate - expected) <= 2e-10


@pytest.mark.parametrize("mse", [0.5, 0.25, 0.1])
def test_a_discretised_gaussian_reaches_the_gaussian_bound(mse):
    # Sampled at distance 0.1, sums of Gaussians of variance v equal their integrals up to
    # exp(-2 pi^2 v / 0.1^2), and the least v here is mse (1 - mse) >= 0.09: 1e-77.  Beyond +-6 lie
    # 2e-9 of the mass and 8e-8 of the energy.
    x = np.linspace(-6, 6, 121)
    p = stats.norm.pdf(x) / stats.norm.pdf(x).sum()
    point = blahut_arimoto(p, squared_error(x, x), 1 / (2 * mse), tolerance=1e-4)
    excess = point.rate - rate_distortion.gaussian_rate(point.distortion)
    assert abs(point.distortion - mse) <= 1e-3
    assert excess <= point.gap + 1e-7
    assert excess >= -1e-7
    # The channel found is the test channel: x_hat = (1 - D) x + noise of variance D (1 - D).
    middle = np.abs(x) <= 2
    mean = point.channel @ x
    variance = point.channel @ x**2 - mean**2
    assert np.abs(mean - (1 - mse) * x)[middle].max() <= 0.01
    assert np.abs(variance - mse * (1 - mse))[middle].max() <= 0.01


def test_the_laplace_function_lies_above_its_lower_bound_and_below_the_gaussian():
    b = np.sqrt(0.5)
    x = np.linspace(-10, 10, 201)
    p = np.exp(-np.abs(x) / b)
    p /= p.sum()
    variance = p @ x**2
    excess = []
    for mse in (0.8, 0.5, 0.1):
        point = blahut_arimoto(p, squared_error(x, x), 1 / (2 * mse), tolerance=1e-3)
        lower = rate_distortion.shannon_lower_bound(stats.laplace(scale=b), point.distortion)
        assert point.rate <= rate_distortion.gaussian_rate(point.distortion, variance) + point.gap
        excess.append(point.rate - lower)
    # Sampling at distance h cuts the variance by (h / b)^2 / 12 = 0.0017, the rate by half of that
    # in nats: 0.0012 bits.  The bound is tight at high rate and not at low rate.
    assert min(excess) >= -0.002
    assert excess[0] > excess[1] > 0.01
    assert abs(excess[2]) <= 0.002


def test_no_channel_with_the_same_error_carries_less():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(5))
    distortion = rng.random((5, 4))
    beta = 6.0
    point = blahut_arimoto(p, distortion, beta, tolerance=1e-8)
    assert np.abs(point.channel.sum(axis=1) - 1).max() <= 1e-14
    best = point.rate + beta / np.log(2) * point.distortion
    for _ in range(2000):
        mix = rng.random()
        channel = mix * point.channel + (1 - mix) * rng.dirichlet(np.ones(4) * 0.5, 5)
        joint = p[:, None] * channel
        cost = mutual_information(joint) + beta / np.log(2) * np.sum(joint * distortion)
        assert cost >= best - 1e-8


def test_mutual_information_of_independent_and_of_equal_variables():
    p = np.array([0.5, 0.25, 0.25])
    assert abs(mutual_information(np.outer(p, [0.9, 0.1]))) <= 1e-15
    assert mutual_information(np.diag(p)) == 1.5
    # Marginals of 1e-200 whose product is no float64.
    assert np.isfinite(mutual_information(np.diag([1e-200, 1 - 1e-200])))


def test_large_distortions_do_not_underflow():
    # exp(-5 * 1000) is 0 in float64.
    point = blahut_arimoto([0.5, 0.5], 1000 + 1 - np.eye(2), 5.0)
    assert abs(point.distortion - 1000 - 1 / (1 + np.exp(5))) <= 1e-9


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"sums to 0\.9"):
        blahut_arimoto([0.4, 0.5], np.eye(2), 1.0)
    with pytest.raises(ValueError, match="needs 2 rows"):
        blahut_arimoto([0.5, 0.5], np.eye(3), 1.0)
    with pytest.raises(ValueError, match="beta=0"):
        blahut_arimoto([0.5, 0.5], np.eye(2), 0)
    with pytest.raises(RuntimeError, match="max_steps=1"):
        blahut_arimoto([0.2, 0.8], 1 - np.eye(2), 2.0, tolerance=1e-12, max_steps=1)
