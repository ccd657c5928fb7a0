import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import integrate, optimize, special, stats

from qbook import affine, metrics
from qbook.ranges import mse

DENSITIES = {"gaussian": stats.norm, "laplace": stats.laplace}
VALUES = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)


def stratified(distribution, n=20_001):
    """n quantiles in the middle of n equal shares: a sample without sampling noise."""
    return distribution.ppf((np.arange(n) + 0.5) / n)


def expected_mse(codes, density, edge=-np.inf):
    """Quadrature of (x - nearest code)^2 over the density, cell by cell, from ``edge`` upwards."""
    middles = (codes[1:] + codes[:-1]) / 2
    cells = itertools.pairwise([edge, *middles, np.inf])
    return sum(
        integrate.quad(lambda x, code=code: (x - code) ** 2 * density(x), *cell)[0]
        for code, cell in zip(codes, cells, strict=True)
    )


def best_clip(error):
    return optimize.minimize_scalar(
        error, bounds=(0.3, 9), method="bounded", options={"xatol": 1e-8}
    )


def fake_quantization_error(x, low, high, bits, **scheme):
    qparams = affine.qparams_from_range(low, high, bits, **scheme)
    return metrics.mse(x, affine.fake_quantize(x, qparams))


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("name", DENSITIES)
def test_the_symmetric_clip_is_the_one_that_quadrature_finds(name, bits):
    codes = np.arange(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1)) / (2 ** (bits - 1) - 1)
    density = DENSITIES[name].pdf
    best = best_clip(lambda clip: expected_mse(clip * codes, density))
    x = stratified(DENSITIES[name])
    _, high = mse.search(x, bits, steps=400)
    # The grid is x.max() / 400 wide, and its best point lies at most one step from the optimum of
    # a function that falls to it and rises behind it.
    assert abs(high - best.x) <= x.max() / 400
    # Near its minimum the error is a parabola, 1 + c d^2 with c < 2 for these densities and bits.
    excess = expected_mse(high * codes, density) / best.fun - 1
    assert -1e-9 <= excess <= 2 * (x.max() / 400) ** 2


def test_two_bits_of_a_laplace_density_clip_at_twice_its_mean():
    """Codes -s, 0, s leave the error 2 - 2 s exp(-s / 2), least at s = 2, where it is 2 - 4 / e."""
    for s in (0.5, 2.0, 5.0):
        error = expected_mse(s * np.array([-1, 0, 1]), stats.laplace.pdf)
        assert abs(error - (2 - 2 * s * math.exp(-s / 2))) <= 1e-8  # quad's own tolerance
    x = stratified(stats.laplace)
    _, high = mse.search(x, 2, steps=400)
    assert abs(high - 2) <= x.max() / 400


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_clip_of_rectified_data_is_the_one_that_quadrature_finds(bits):
    codes = np.arange(2**bits) / (2**bits - 1)
    best = best_clip(lambda clip: expected_mse(clip * codes, stats.norm.pdf, edge=0))
    x = np.maximum(stratified(stats.norm), 0)
    low, high = mse.search(x, bits, symmetric=False, steps=400)
    assert low == 0
    assert abs(high - best.x) <= x.max() / 400


def aciq_error(clip, density, bits):
    """ACIQ's two terms: a step of 2 clip / 2^bits rounds all of x, and the tails are cut off."""
    overload = integrate.quad(lambda x: (x - clip) ** 2 * density(x), clip, np.inf)[0]
    return clip**2 / (3 * 4**bits) + 2 * overload


@pytest.mark.parametrize(
    ("bits", "laplace", "gaussian"), [(2, 2.83, 1.71), (3, 3.89, 2.15), (4, 5.03, 2.55)]
)
def test_the_constants_of_aciq_follow_from_its_two_terms(bits, laplace, gaussian):
    ours = best_clip(lambda clip: aciq_error(clip, stats.laplace.pdf, bits)).x
    # For a Laplace density the overload is 2 exp(-clip), and the root of the derivative is
    # Lambert's W(3 4^bits).  A minimum is found to about the square root of quad's tolerance.
    assert abs(ours - special.lambertw(3 * 4**bits).real) <= 1e-5
    # The paper prints two decimals, some cut off instead of rounded: 3.897 and 2.559.
    assert abs(ours - laplace) <= 0.01
    assert abs(best_clip(lambda clip: aciq_error(clip, stats.norm.pdf, bits)).x - gaussian) <= 0.01


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("name", DENSITIES)
def test_searching_beats_the_clip_of_aciq(name, bits):
    """ACIQ's constants assume that x is uniform inside a cell and that the codes lie mid-cell."""
    x = stratified(DENSITIES[name])
    clip = best_clip(lambda clip: aciq_error(clip, DENSITIES[name].pdf, bits)).x
    for symmetric in (True, False):
        low, high = mse.search(x, bits, symmetric=symmetric, steps=400)
        searched = fake_quantization_error(x, low, high, bits, symmetric=symmetric)
        assert searched < fake_quantization_error(x, -clip, clip, bits, symmetric=symmetric)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [1, 2, 5, 8])
@given(x=hnp.arrays(np.float32, st.integers(1, 30), elements=VALUES))
def test_no_factor_of_the_grid_is_better(symmetric, signed, bits, x):
    scheme = {"symmetric": symmetric, "signed": signed}
    low, high = mse.search(x, bits, steps=7, symmetric=symmetric)
    least = fake_quantization_error(x, low, high, bits, **scheme)
    widest = min(x.min(), 0), max(x.max(), 0)
    if symmetric:
        widest = -np.abs(x).max(), np.abs(x).max()
    errors = [
        fake_quantization_error(
            x, *(np.float32(end) * np.float32(step / 7) for end in widest), bits, **scheme
        )
        for step in range(1, 8)
    ]
    assert least == min(errors)
    # Of equally good factors, the widest.
    chosen = 7 - errors[::-1].index(min(errors))
    assert high == np.float32(widest[1]) * np.float32(chosen / 7)


def test_of_equally_good_factors_the_largest_is_taken():
    # Codes -s, 0, s.  s = 1 leaves 2 (2 - 1)^2 + (3 - 1)^2 = 6; s = 2 rounds the ones to 0 (ties to
    # even) and leaves 5 + (3 - 2)^2 = 6; s = 3 leaves 5 (1 - 0)^2 + 2 (3 - 2)^2 = 7.
    x = np.array([1.0] * 5 + [2.0] * 2 + [3.0])
    assert mse.search(x, 2, steps=3) == (-2, 2)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_hundred_factors_come_within_half_a_percent_of_a_fine_search(bits):
    for distribution in (stats.norm, stats.laplace, stats.t(3)):
        x = stratified(distribution, 5001).astype(np.float32)
        errors = [
            fake_quantization_error(x, *mse.search(x, bits, steps=steps), bits)
            for steps in (100, 2000)
        ]
        assert errors[0] <= 1.005 * errors[1]


@pytest.mark.parametrize("bits", [0, 17, 2.0, True])
def test_bits_outside_1_to_16_are_refused(bits):
    with pytest.raises(ValueError, match="from 1 to 16"):
        mse.search(np.ones(3), bits)


@pytest.mark.parametrize("steps", [0, -5, 2.5])
def test_steps_that_are_no_positive_integer_are_refused(steps):
    with pytest.raises(ValueError, match=f"steps={steps} is no positive integer"):
        mse.search(np.ones(3), 8, steps=steps)
