import numpy as np
import pytest
from scipy import optimize, stats

from qbook import affine
from qbook.theory import noise
from qbook.theory.bins import bin_moments, midtread_bins

SOURCES = {
    "gaussian": (stats.norm(), noise.gaussian_characteristic_function()),
    "shifted": (stats.norm(0.3, 0.8), noise.gaussian_characteristic_function(0.3, 0.8)),
    "laplace": (stats.laplace(scale=0.7), noise.laplace_characteristic_function(0.7)),
    "uniform": (stats.uniform(-1, 3.1), noise.uniform_characteristic_function(-1, 2.1)),
}


@pytest.mark.parametrize(
    ("scale", "ratio"), [(0.1, 1.000), (1, 1.000), (2, 0.991), (3, 0.864), (4, 0.648)]
)
def test_the_gaussian_error_falls_below_the_uniform_model_for_coarse_steps(scale, ratio):
    # The first terms of the series by hand: 1 + (12 / pi^2) sum (-1)^m / m^2 exp(-2 (pi m / s)^2).
    by_hand = 1 + 12 / np.pi**2 * sum(
        (-1) ** m / m**2 * np.exp(-2 * (np.pi * m / scale) ** 2) for m in (1, 2, 3, 4)
    )
    measured = noise.granular_mse(stats.norm(), scale) / (scale**2 / 12)
    # The fifth term is below exp(-2 (5 pi / 4)^2) / 25 = 2e-15.
    assert abs(measured - by_hand) <= 1e-12
    assert abs(measured - ratio) <= 0.0005


@pytest.mark.parametrize(("dist", "phi"), SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("scale", [0.3, 1.0, 2.2, 4.0, 9.0])
def test_the_series_in_the_characteristic_function_equals_the_bin_integrals(dist, phi, scale):
    terms = 20_000
    mean, mse = noise.error_moments_series(phi, scale, terms)
    levels, edges = midtread_bins(dist, scale)
    p, m1, _ = bin_moments(dist, edges)
    # What the series leaves out.  Of the mse: |phi| <= c / m with c = scale / (2 pi half width) at
    # worst, for the uniform density, and c < 1 here, so (s/pi)^2 sum m^-3 = (s/pi)^2 / (2 terms^2).
    # Of the mean: alternating terms of the mean, at most (s/pi) sum m^-2 = (s/pi) / terms.
    assert abs(mse - noise.granular_mse(dist, scale)) <= (scale / np.pi) ** 2 / terms**2 + 1e-12
    assert abs(mean - np.sum(m1 - levels * p)) <= scale / np.pi / terms + 1e-12


@pytest.mark.parametrize("scale", [0.1, 0.5, 2.0, 7.0, 30.0])
@pytest.mark.parametrize("b", [0.3, 1.0, 5.0])
def test_the_laplace_error_has_the_closed_form_with_sinh(scale, b):
    bins = noise.granular_mse(stats.laplace(scale=b), scale)
    # Both sides cancel terms of size b^2.
    assert abs(noise.laplace_granular_mse(scale, b) - bins) <= 1e-13 * b * b


def test_the_error_tends_to_the_variance_when_the_step_covers_the_density():
    # All but exp(-50^2 / 2) of the mass lies in the cell of 0.
    assert abs(noise.granular_mse(stats.norm(), 100.0) - 1) <= 1e-12


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("clip", [0.4, 1.7, 6.0])
@pytest.mark.parametrize("dist", [stats.norm(), stats.laplace(0.2, 0.9), stats.logistic(0, 0.5)])
def test_clipped_mse_is_that_of_the_affine_quantizer(bits, clip, dist):
    qmax = 2 ** (bits - 1) - 1
    qparams = affine.QParams(np.float64(clip / qmax), np.int32(0), -qmax, qmax)
    step = 2e-4
    x = np.arange(-60 + step / 2, 60, step)
    error = (x - affine.fake_quantize(x, qparams)) ** 2 * dist.pdf(x) * step
    inside = np.abs(x) <= clip + clip / qmax / 2
    granular, overload = noise.clipped_mse(dist, clip, bits)
    # Midpoint rule: step^2 / 24 times the total variation of the derivative of the integrand, below
    # 2 for overload and 2 clip for the jumps of 2 s p(x) summed over the cells; the point that
    # straddles the overload edge adds (s/2)^2 p step.
    edge = (clip / qmax / 2) ** 2 * step
    assert abs(error[inside].sum() - granular) <= step**2 * (1 + clip) + edge
    assert abs(error[~inside].sum() - overload) <= step**2 * (1 + clip) + edge


@pytest.mark.parametrize(("bits", "clip"), [(2, 0.5), (3, 2.0), (6, 9.0)])
def test_laplace_overload_has_its_closed_form(bits, clip):
    h = clip / (2 ** (bits - 1) - 1) / 2
    granular, overload = noise.clipped_mse(stats.laplace(), clip, bits)
    # The exponential forgets: beyond clip + h the error is h plus a fresh exponential.
    assert abs(overload - np.exp(-clip - h) * (h * h + 2 * h + 2)) <= 1e-13
    # What is left of the unbounded sum is without the cells beyond, a geometric series.
    beyond = np.exp(-clip - h) * ((h * h - 2 * h + 2) - (h * h + 2 * h + 2) * np.exp(-2 * h))
    unbounded = noise.laplace_granular_mse(2 * h)
    assert abs(granular - unbounded + beyond / (1 - np.exp(-2 * h))) <= 1e-13


@pytest.mark.parametrize(
    ("dist", "bits", "clip", "mse"),
    [
        # Three levels: the optimal quantizer is uniform, so Max's conditions decide.  Laplace: the
        # outer level lies b above its threshold, half way: clip = 2 b, error (2 - 4/e) b^2.
        (stats.laplace(), 2, 2.0, 2 - 4 / np.e),
        (stats.laplace(scale=3), 2, 6.0, 9 * (2 - 4 / np.e)),
        # 2^b - 1 equal cells cover [-1, 1] and nothing overloads.
        (stats.uniform(-1, 2), 2, 2 / 3, (2 / 3) ** 2 / 12),
        (stats.uniform(-1, 2), 3, 6 / 7, (2 / 7) ** 2 / 12),
        (stats.uniform(-1, 2), 8, 254 / 255, (2 / 255) ** 2 / 12),
    ],
)
def test_optimal_clip_meets_the_closed_forms(dist, bits, clip, mse):
    best = noise.optimal_clip(dist, bits)
    # The minimum is flat: rounding of 1e-16 hides clip errors of its square root, 1e-8.
    assert abs(best / clip - 1) <= 1e-6
    assert abs(sum(noise.clipped_mse(dist, best, bits)) / mse - 1) <= 1e-9


def test_optimal_gaussian_clip_of_three_levels_satisfies_the_centroid_condition():
    # E[x | x > t] = pdf(t) / sf(t) = 2 t for the outer level 2 t, with t its threshold; the least
    # error is then 1 - E level^2 = 1 - 2 sf(t) (2 t)^2, 0.1902 in Max's Table I.
    t = optimize.brentq(lambda t: stats.norm.pdf(t) / stats.norm.sf(t) - 2 * t, 0.1, 2, xtol=1e-14)
    best = noise.optimal_clip(stats.norm(), 2)
    assert abs(best - 2 * t) <= 1e-6
    error = sum(noise.clipped_mse(stats.norm(), best, 2))
    assert abs(error - (1 - 8 * t * t * stats.norm.sf(t))) <= 1e-12
    assert abs(error - 0.1902) <= 0.00005


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8, 12])
@pytest.mark.parametrize(
    "dist",
    [stats.norm(), stats.laplace(), stats.logistic(), stats.norm(3, 0.5)],
    ids=["gaussian", "laplace", "logistic", "shifted"],
)
def test_no_other_clip_on_a_fine_grid_does_better(dist, bits):
    best = sum(noise.clipped_mse(dist, noise.optimal_clip(dist, bits), bits))
    rms = np.hypot(dist.mean(), dist.std())
    grid = np.geomspace(0.2 * rms, 20 * rms, 300)
    others = [sum(noise.clipped_mse(dist, clip, bits)) for clip in grid]
    assert best <= min(others) + 1e-14


def test_the_optimal_clip_grows_with_the_bits_and_with_the_scale():
    clips = [noise.optimal_clip(stats.norm(), bits) for bits in range(2, 13)]
    assert (np.diff(clips) > 0).all()
    # Flat minimum: 1e-7 is what optimal_clip promises.
    assert abs(noise.optimal_clip(stats.norm(scale=40), 5) / (40 * clips[3]) - 1) <= 2e-7


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="clip=0"):
        noise.clipped_mse(stats.norm(), 0, 4)
    for bits in (1, 17, 2.5):
        with pytest.raises(ValueError, match=f"bits={bits}"):
            noise.clipped_mse(stats.norm(), 1.0, bits)
    with pytest.raises(ValueError, match="infinite"):
        noise.optimal_clip(stats.t(2), 4)
