import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import optimize

from qbook import affine
from qbook.llm import smoothquant
from qbook.theory import smoothing


def channels(count, seed=0, crest=None):
    """Statistics of count channels; crest=(x, w): their largest over their rms, else drawn."""
    rng = np.random.default_rng(seed)
    x_max, w_max = np.exp(rng.normal(size=(2, count)) * 1.5)
    crest_x, crest_w = rng.uniform(1.5, 6, (2, count)) if crest is None else crest
    return x_max, x_max / crest_x, w_max, w_max / crest_w


@pytest.mark.parametrize("seed", range(4))
def test_the_error_of_a_product_is_as_predicted(seed):
    rng = np.random.default_rng(seed)
    n = 37
    x = rng.normal(size=(400, n)) * np.exp(rng.normal(size=n) * 0.5)
    w = rng.normal(size=(300, n)) * np.exp(rng.normal(size=n) * 0.5)
    s = np.exp(rng.normal(size=n) * 0.3)
    rounded = [
        affine.fake_quantize(v, affine.choose_qparams(v, 8)).astype(float) for v in (x / s, w * s)
    ]
    found = np.mean((rounded[0] @ rounded[1].T - x @ w.T) ** 2)
    statistics = [f(v) for v in (x, w) for f in (_largest, _rms)]
    # 400 * 37 and 300 * 37 rounding errors: their mean squares vary by sqrt(0.8 / 11100) < 1 %,
    # weighted by energies that differ by e^2; the second order is steps^2 / 12 of the first, 1 %.
    assert abs(found / smoothing.product_error(*statistics, s) - 1) <= 0.06


def _largest(v):
    return np.abs(v).max(axis=0)


def _rms(v):
    return np.sqrt(np.mean(v**2, axis=0))


@pytest.mark.parametrize("seed", range(6))
def test_no_scales_that_a_search_finds_are_better_than_the_best(seed):
    statistics = channels(3, seed)
    best = smoothing.best_scales(*statistics)
    least = smoothing.product_error(*statistics, best)
    found = optimize.differential_evolution(
        # A common factor changes nothing: the first stays where it is.
        lambda logs: smoothing.product_error(*statistics, best * np.exp([0, *logs])),
        [(-4, 4)] * 2,
        rng=seed,
        maxiter=150,
        tol=1e-12,
    )
    # The search stops at least where we say, up to the rounding of a sum of six terms.
    assert least <= found.fun * (1 + 1e-12)
    assert found.fun <= least * (1 + 1e-3)


@pytest.mark.parametrize("count", [1, 2, 17])
@pytest.mark.parametrize("crest", [(3.0, 3.0), (2.0, 5.0), (5.0, 2.0)])
def test_between_nought_and_one_the_product_of_the_steps_is_the_same(count, crest):
    x_max, _, w_max, _ = channels(count, crest=crest)
    for alpha in (0, 0.2, 0.5, 0.9, 1):
        s = smoothquant.scales(x_max, w_max, alpha)
        # Powers of numbers of size 100 in float64.
        assert_allclose((x_max / s).max() * (w_max * s).max(), (x_max * w_max).max(), rtol=1e-13)


@pytest.mark.parametrize("count", [2, 17, 100])
def test_one_half_is_best_of_all_scales_where_crest_factors_are_alike(count):
    statistics = channels(count, seed=count, crest=(4.0, 4.0))
    half = smoothquant.scales(statistics[0], statistics[2], 0.5)
    best = smoothing.best_scales(*statistics)
    # The same up to a common factor; float64.
    assert_allclose(best / best[0], half / half[0], rtol=1e-12)
    # And at most (r + 1/r) / 2 worse where they are not.
    for ratio in (2, 3, 0.4):
        x_max, _, w_max, w_rms = statistics
        other = x_max, x_max / (4 * ratio), w_max, w_rms
        least = smoothing.product_error(*other, smoothing.best_scales(*other))
        at_half = smoothing.product_error(*other, half)
        assert least < at_half <= least * (ratio + 1 / ratio) / 2 * (1 + 1e-12)


@pytest.mark.parametrize(("crest", "sign"), [((6, 2), 1), ((2, 6), -1), ((3, 3), 0)])
def test_the_best_alpha_is_above_one_half_where_inputs_have_the_larger_crest(crest, sign):
    statistics = channels(40, crest=crest)

    def error(alpha):
        return smoothing.product_error(
            *statistics, smoothquant.scales(statistics[0], statistics[2], alpha)
        )

    best = optimize.minimize_scalar(error, bounds=(0, 1), method="bounded").x
    # The search stops within 1e-5.
    assert (best - 0.5) * sign > 0.05 if sign else abs(best - 0.5) <= 1e-4


def test_by_hand():
    # Two channels, crest factors 2 and 1: steps 8/127 and 1/127 without factors.
    statistics = [np.array(v) for v in ([8.0, 1.0], [4.0, 0.5], [1.0, 1.0], [1.0, 1.0])]
    plain = smoothing.product_error(*statistics, np.ones(2))
    assert_allclose(plain, (64 * 2 + 1 * 16.25) / 127**2 / 12, rtol=1e-14)
    # Largest product 8: s_1 = 8 / sqrt 8, the only one; s_2 = sqrt(1/2), within [1, 8] / sqrt 8.
    best = smoothing.best_scales(*statistics)
    assert_allclose(best, [np.sqrt(8), np.sqrt(0.5)], rtol=1e-14)
