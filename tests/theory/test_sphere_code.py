"""Oracles: circle and sphere by elementary geometry, codes that are drawn, Shannon's limit."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from qbook.theory import sphere_code


def test_codewords_have_the_length_that_was_asked_for():
    codewords = sphere_code.draw(7, 33, 0.8, np.random.default_rng(0))
    assert codewords.shape == (33, 7)
    # Normalisation costs a few roundings of 1e-16.
    assert_allclose(np.sum(codewords**2, axis=1), 7 * 0.8**2, rtol=1e-13)


def test_the_code_is_the_one_of_the_nearest_codeword_by_brute_force():
    rng = np.random.default_rng(1)
    codewords, x = sphere_code.draw(5, 17, 0.7, rng), rng.standard_normal((99, 5))
    distances = np.sum((x[:, None, :] - codewords) ** 2, axis=2)
    assert_array_equal(sphere_code.quantize(x, codewords), distances.argmin(axis=1))


def test_a_cap_of_the_circle_is_an_arc_and_of_the_sphere_follows_archimedes():
    angle = np.linspace(0, np.pi, 101)
    # betainc is accurate to a few 1e-15, but sin^2 near a right angle rounds at 1e-16, and an arc
    # depends on its square root: 1e-8.
    assert_allclose(sphere_code.cap_probability(2, angle), angle / np.pi, atol=3e-8)
    # Archimedes: the area of a zone of the sphere is proportional to its height.
    assert_allclose(sphere_code.cap_probability(3, angle), (1 - np.cos(angle)) / 2, atol=1e-14)


@pytest.mark.parametrize("n", [2, 3, 8, 64, 301])
def test_the_cap_is_at_least_the_bound_of_the_proof(n):
    angle = np.linspace(0.01, np.pi / 2, 50)
    bound = np.sin(angle) ** (n - 1) / (np.pi * (n - 1))
    assert (sphere_code.cap_probability(n, angle) >= bound * (1 - 1e-12)).all()


def test_two_codewords_on_a_circle_have_the_mean_cosine_of_the_closed_form():
    # The smaller of two angles, each uniform on [0, pi], has density 2 (pi - a) / pi^2:
    # E cos = 2 / pi^2 * integral of (pi - a) cos a = 4 / pi^2.  The trapezium rule leaves
    # (pi / 20000)^2 / 12 * pi = 6e-9.
    assert abs(sphere_code.mean_cosine(2, 0.5) - 4 / np.pi**2) <= 1e-8


def test_one_codeword_in_three_dimensions_has_any_angle():
    # 2^(n rate) near 1: the cosine is uniform on [-1, 1] and its mean 0; a rate of 1e-9 moves
    # it by ln 2 * 3e-9, the trapezium rule by 1e-8.
    assert abs(sphere_code.mean_cosine(3, 1e-9)) <= 2e-8


@pytest.mark.parametrize(("n", "bits"), [(2, 4), (3, 5), (6, 6)])
def test_the_mean_squared_error_is_that_of_codes_that_are_drawn(n, bits):
    rng = np.random.default_rng(2)
    radius, errors = sphere_code.best_radius(n, bits / n), []
    for _ in range(400):
        codewords = sphere_code.draw(n, 2**bits, radius, rng)
        x = rng.standard_normal((200, n))
        x_hat = codewords[sphere_code.quantize(x, codewords)]
        errors.append(np.mean((x - x_hat) ** 2))
    standard_error = np.std(errors, ddof=1) / np.sqrt(len(errors))
    # Five standard errors: a false alarm once in a million seeds.
    assert abs(np.mean(errors) - sphere_code.mse(n, bits / n)) <= 5 * standard_error


@pytest.mark.parametrize("rate", [0.5, 1.0, 1.9])
def test_long_blocks_approach_the_rate_distortion_function_from_above(rate):
    gaps = [10 * np.log10(sphere_code.mse(n, rate) * 4**rate) for n in (4, 16, 64, 256, 512)]
    assert (np.diff(gaps) < 0).all()
    # (log2 n) / n bits at n = 512 is 0.0176 bit or 0.106 dB; the last gap must be of that order.
    assert 0 < gaps[-1] <= 0.2


@pytest.mark.parametrize(
    ("n", "rate"), [(1, 1.0), (0, 1.0), (4, 0.0), (512, 2.0), (4, float("nan"))]
)
def test_dimensions_and_rates_out_of_reach_are_refused(n, rate):
    with pytest.raises(ValueError, match="choose"):
        sphere_code.mse(n, rate)
