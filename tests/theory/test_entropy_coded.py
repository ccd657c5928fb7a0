import numpy as np
import pytest
from scipy import stats

from qbook.theory import entropy_coded, rate_distortion

SOURCES = [
    stats.norm(),
    stats.norm(0.3, 2),
    stats.laplace(scale=0.5),
    stats.uniform(-1, 2),
    stats.logistic(),
]


@pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("b", [0.5, 1.0])
def test_laplace_rate_and_error_equal_the_closed_forms(scale, b):
    # P(0) = 1 - e^-h, P(+-k) = e^(-k s) sinh(h) with s = scale / b and h = s / 2: a geometric law,
    # so the sums over k of q^k and k q^k close.
    s = scale / b
    h, q = s / 2, np.exp(-s)
    zero, one = 1 - np.exp(-h), np.sinh(h)
    surprise = -zero * np.log2(zero) - 2 * one * np.log2(one) * q / (1 - q)
    surprise += 2 * one * (s / np.log(2)) * q / (1 - q) ** 2
    # Within a cell of width s an exponential has variance 1 - s^2 e^s / (e^s - 1)^2 about its mean.
    variance = 1 - s * s * np.exp(s) / np.expm1(s) ** 2
    error = 2 - (h * h + 2 * h + 2) * np.exp(-h) + np.exp(-h) * variance
    rate, mse = entropy_coded.rate_and_mse(stats.laplace(scale=b), scale)
    # The bins beyond the 1e-15 quantile, at 50 bits each; moments of x^2 up to 1200 e^-35.
    assert abs(rate - surprise) <= 1e-12
    assert abs(mse / b**2 - error) <= 1e-12


@pytest.mark.parametrize("cells", [1, 3, 5, 255])
def test_uniform_density_needs_log2_of_its_cells(cells):
    rate, mse = entropy_coded.rate_and_mse(stats.uniform(-1, 2), 2 / cells)
    assert abs(rate - np.log2(cells)) <= 1e-12
    assert abs(mse - (2 / cells) ** 2 / 12) <= 1e-15


@pytest.mark.parametrize("dist", [stats.norm(), stats.laplace(), stats.logistic()])
@pytest.mark.parametrize("centroid", [True, False])
def test_the_gap_to_the_bound_tends_to_a_quarter_bit(dist, centroid):
    # pi e / 6: the factor in error between a cube of many dimensions and the ball it stands in for.
    assert abs(entropy_coded.HIGH_RATE_GAP_BITS - 0.2546) <= 0.00005
    assert abs(20 * np.log10(2) * entropy_coded.HIGH_RATE_GAP_BITS - 1.53) <= 0.005
    gaps = []
    for scale in (0.2, 0.05, 0.01):
        rate, mse = entropy_coded.rate_and_mse(dist, scale * dist.std(), centroid=centroid)
        gaps.append(abs(rate - rate_distortion.shannon_lower_bound(dist, mse) - 0.2546143348))
    # The kink of the Laplace density costs most: about s^2 / 24 of relative error, in nats.
    assert gaps[0] <= 0.2**2 / 12
    assert gaps[1] <= 0.05**2 / 12
    assert gaps[2] <= 0.01**2 / 12


@pytest.mark.parametrize("dist", SOURCES)
def test_no_step_beats_the_rate_distortion_function_and_coarse_steps_need_few_bits(dist):
    previous_rate, previous_mse = np.inf, 0.0
    for scale in np.geomspace(0.02, 6, 40) * dist.std():
        rate, mse = entropy_coded.rate_and_mse(dist, scale)
        assert rate >= rate_distortion.shannon_lower_bound(dist, mse) - 1e-9
        if dist.dist.name == "norm":
            assert rate >= rate_distortion.gaussian_rate(mse, dist.var()) - 1e-9
        if dist.dist.name != "uniform":
            assert rate < previous_rate
            assert mse > previous_mse
        previous_rate, previous_mse = rate, mse
    # Laplace has most beyond 3 std, 0.0144 of the mass: its entropy and one bit for the sign.
    assert rate <= 0.125


@pytest.mark.parametrize("dist", SOURCES)
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_centroids_lower_the_error_at_the_same_rate(dist, scale):
    rate, mse = entropy_coded.rate_and_mse(dist, scale)
    same_rate, midpoint_mse = entropy_coded.rate_and_mse(dist, scale, centroid=False)
    assert rate == same_rate
    assert mse <= midpoint_mse + 1e-14


def test_rate_is_the_entropy_of_the_codes_of_samples():
    x = np.random.default_rng(0).normal(size=400_000)
    _, codes, counts = np.unique(np.rint(x / 0.7), return_inverse=True, return_counts=True)
    surprise = -np.log2(counts / len(x))[codes]
    rate, _ = entropy_coded.rate_and_mse(stats.norm(), 0.7)
    # Four standard deviations of a mean of surprises, and the plug-in bias, codes / (2 N ln 2).
    assert abs(surprise.mean() - rate) <= 4 * surprise.std() / np.sqrt(len(x)) + 2e-5


def test_entropy_takes_zero_probabilities():
    assert entropy_coded.entropy([0.0, 1.0]) == 0
    assert entropy_coded.entropy([0.5, 0.25, 0.25, 0.0]) == 1.5
