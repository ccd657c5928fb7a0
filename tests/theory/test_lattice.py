import itertools

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from qbook.theory import lattice

LATTICES = {
    "Z8": (lattice.nearest_zn, 8),
    "D4": (lattice.nearest_dn, 4),
    "D8": (lattice.nearest_dn, 8),
    "E8": (lattice.nearest_e8, 8),
}


def in_dn(v):
    return bool((v == np.rint(v)).all() and v.sum() % 2 == 0)


def in_e8(v):
    return in_dn(v) or in_dn(v - 0.5)


def enumerate_near(x, shift):
    """Points of (D_n + shift) whose coordinates all lie within 1 of x's: at most two integers each.

    Complete for the nearest one: were a coordinate farther than 1 from x's, moving it by 2, which
    stays in D_n, would bring the point nearer.
    """
    low = np.floor(x - shift)
    corners = np.array(list(itertools.product((0, 1), repeat=len(x)))) + low
    return corners[corners.sum(axis=1) % 2 == 0] + shift


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8])
def test_nearest_dn_equals_enumeration(n):
    x = np.random.default_rng(n).normal(size=(300, n)) * 3
    nearest = lattice.nearest_dn(x)
    for point, found in zip(x, nearest, strict=True):
        assert in_dn(found)
        distances = np.sum((enumerate_near(point, 0.0) - point) ** 2, axis=1)
        # Two sums of n squares below 4.  For n = 1 the cell is [-1, 1] and both ends are listed.
        assert abs(np.sum((found - point) ** 2) - distances.min()) <= 1e-13


def test_nearest_e8_equals_enumeration():
    x = np.random.default_rng(0).normal(size=(400, 8)) * 3
    nearest = lattice.nearest_e8(x)
    for point, found in zip(x, nearest, strict=True):
        assert in_e8(found)
        near = np.concatenate([enumerate_near(point, 0.0), enumerate_near(point, 0.5)])
        distances = np.sum((near - point) ** 2, axis=1)
        assert abs(np.sum((found - point) ** 2) - distances.min()) <= 1e-13
        assert_array_equal(found, near[distances.argmin()])


def test_e8_has_240_shortest_vectors_and_no_shorter_one():
    ours = lattice.e8_minimal_vectors()
    # A vector of squared length <= 2 has integer entries of at most 1, or half-integer ones of 1/2.
    candidates = [np.array(v, float) for v in itertools.product((-1, 0, 1), repeat=8)]
    candidates += [np.array(v) for v in itertools.product((-0.5, 0.5), repeat=8)]
    short = {tuple(v) for v in candidates if in_e8(v) and 0 < v @ v <= 2}
    assert all(np.dot(v, v) == 2 for v in short)
    assert len(short) == 240
    assert len(ours) == 240
    assert {tuple(v) for v in ours} == short
    assert_array_equal(lattice.nearest_e8(ours), ours)
    # Root system: inner products are integers, and each root has 56 neighbours at 60 degrees.
    values, counts = np.unique(ours @ ours.T, return_counts=True)
    assert_array_equal(values, [-2, -1, 0, 1, 2])
    assert_array_equal(counts, np.array([1, 56, 126, 56, 1]) * 240)


@pytest.mark.parametrize(("nearest", "n"), LATTICES.values(), ids=LATTICES)
def test_the_cells_repeat_at_every_lattice_point(nearest, n):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, n))
    v = nearest(rng.normal(size=(2000, n)) * 9)
    assert_array_equal(nearest(v), v)
    assert_array_equal(nearest(x + v), nearest(x) + v)


@pytest.mark.parametrize(("nearest", "n"), LATTICES.values(), ids=LATTICES)
def test_permutations_and_even_sign_changes_are_symmetries(nearest, n):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2000, n)) * 2
    order = rng.permutation(n)
    assert_array_equal(nearest(x[:, order]), nearest(x)[:, order])
    signs = np.ones(n)
    signs[[0, n - 1]] = -1
    assert_array_equal(nearest(x * signs), nearest(x) * signs)


def test_reflections_in_the_roots_are_symmetries_of_e8():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(500, 8)) * 2
    for root in lattice.e8_minimal_vectors()[::7]:
        reflected = x - np.outer(x @ root, root)
        found = lattice.nearest_e8(x)
        assert_array_equal(lattice.nearest_e8(reflected), found - np.outer(found @ root, root))


def test_no_point_is_farther_than_1_from_e8_and_the_deep_hole_is():
    x = np.random.default_rng(3).random((20_000, 8)) * 2
    assert np.sum((x - lattice.nearest_e8(x)) ** 2, axis=1).max() <= 1
    hole = np.eye(8)[0]
    assert np.sum((hole - lattice.nearest_e8(hole)) ** 2) == 1


@pytest.mark.parametrize(
    ("name", "volume", "g"),
    [("Z8", 1, 1 / 12), ("D4", 2, 13 / (120 * 2**0.5)), ("E8", 1, 929 / 12960)],
)
def test_normalised_second_moment_by_monte_carlo(name, volume, g):
    nearest, n = LATTICES[name]
    estimate, error = lattice.normalised_second_moment(
        nearest, n, volume, 300_000, np.random.default_rng(0)
    )
    # 99.99 % of a normal estimate; the relative error must also be small enough to tell E8 from D4.
    assert abs(estimate - g) <= 3.9 * error
    assert error <= 0.001 * g


def test_e8_gains_two_thirds_of_a_decibel_over_the_cube():
    assert abs(10 * np.log10((1 / 12) / (929 / 12960)) - 0.65) <= 0.005
    loss = lattice.high_rate_gap_bits(np.array([1 / 12, 929 / 12960, 1 / (2 * np.pi * np.e)]))
    # The cube's 0.2546 bit is 1.53 dB; a ball in infinite dimension loses nothing.
    assert abs(loss[0] - 0.2546) <= 0.00005
    assert abs(loss[2]) <= 1e-15
    assert abs(20 * np.log10(2) * (loss[0] - loss[1]) - 0.65) <= 0.005


@pytest.mark.parametrize(("nearest", "n"), LATTICES.values(), ids=LATTICES)
def test_torch_and_numpy_agree_in_any_shape(nearest, n):
    # Multiples of 1/4 lie on many ties, so that the tie breaking is compared too.
    x = np.random.default_rng(4).integers(-9, 10, (3, 5, n)) / 4
    assert_array_equal(nearest(x), nearest(torch.from_numpy(x)).numpy())
    for dtype in (np.float32, np.float64):
        assert nearest(x.astype(dtype)).dtype == dtype


def test_e8_needs_eight_coordinates():
    with pytest.raises(ValueError, match=r"\(3, 7\)"):
        lattice.nearest_e8(np.zeros((3, 7)))
