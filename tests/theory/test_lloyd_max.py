import itertools

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from scipy import optimize, stats

from qbook.theory import lloyd_max

GAUSSIAN, LAPLACE = stats.norm(), stats.laplace()
SOURCES = {
    "gaussian": GAUSSIAN,
    "laplace": LAPLACE,
    "uniform": stats.uniform(-1, 2),
    "shifted": stats.norm(-3, 0.2),
    "exponential": stats.expon(),
    "logistic": stats.logistic(),
}


@pytest.mark.parametrize(
    ("size", "mse", "levels", "thresholds"),
    [
        (2, 0.3634, [0.7980], [0]),
        (4, 0.1175, [0.4528, 1.510], [0, 0.9816]),
        (8, 0.03454, [0.2451, 0.7560, 1.344, 2.152], [0, 0.5006, 1.050, 1.748]),
        (
            16,
            0.009497,
            [0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733],
            [0, 0.2582, 0.5224, 0.7996, 1.099, 1.437, 1.844, 2.401],
        ),
    ],
)
def test_gaussian_quantizers_agree_with_max_1960_table_i(size, mse, levels, thresholds):
    codebook = lloyd_max.design(GAUSSIAN, size)
    # Printed to four digits, and computed by hand on a machine of 1960: two units of the last one.
    # His errors are worse: 0.009497 stands for 0.009501.
    assert np.abs(codebook.levels[size // 2 :] / levels - 1).max() <= 5e-4
    assert np.abs(codebook.thresholds[size // 2 - 1 :] - thresholds).max() <= 1e-3
    assert abs(codebook.mse / mse - 1) <= 5e-4


def test_one_gaussian_bit_has_its_closed_form_and_four_bits_reach_20_decibels():
    codebook = lloyd_max.design(GAUSSIAN, 2)
    assert abs(codebook.mse - (1 - 2 / np.pi)) <= 1e-14
    assert np.abs(codebook.levels - [-np.sqrt(2 / np.pi), np.sqrt(2 / np.pi)]).max() <= 1e-14
    assert abs(-10 * np.log10(lloyd_max.design(GAUSSIAN, 16).mse) - 20.22) <= 0.005


def laplace_by_recursion(half):
    """Levels > 0 of the optimal quantizer of 2 half levels for exp(-|x|) / 2, from the outside in.

    An exponential cell of width w has its mean at d(w) = 1 - w / (e^w - 1) above its lower end, an
    unbounded one at 1.  A threshold is midway: w - d(w) of a cell is d of the next cell outwards.
    """
    offsets, widths = [1.0], []
    for _ in range(half - 1):
        width = optimize.brentq(
            lambda w, d=offsets[0]: w - 1 + w / np.expm1(w) - d, 1e-9, 50, xtol=1e-15
        )
        widths.insert(0, width)
        offsets.insert(0, 1 - width / np.expm1(width))
    return np.append(0.0, np.cumsum(widths)) + offsets


@pytest.mark.parametrize("half", [1, 2, 4, 8, 16, 64])
@pytest.mark.parametrize("b", [1.0, 0.5**0.5])
def test_laplace_quantizers_follow_from_the_outermost_cell_inwards(half, b):
    positive = laplace_by_recursion(half) * b
    codebook = lloyd_max.design(stats.laplace(scale=b), 2 * half)
    # All levels shifted by t together change the error by t^3 only, so that the rounding of the
    # gradient, 1e-17, leaves a shift of its square root; its differences are good to 1e-12.
    expected = np.concatenate([-positive[::-1], positive])
    assert np.abs(codebook.levels - expected).max() <= 1e-8
    assert np.abs(np.diff(codebook.levels) - np.diff(expected)).max() <= 1e-11


@pytest.mark.parametrize(("size", "mse"), [(2, 0.5), (4, 0.1762), (8, 0.0545), (16, 0.0154)])
def test_laplace_errors_of_unit_variance_agree_with_the_published_ones(size, mse):
    # Paez & Glisson 1972, to their digits.
    measured = lloyd_max.design(stats.laplace(scale=0.5**0.5), size).mse
    assert abs(measured - mse) <= 5e-5


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 64])
def test_the_uniform_density_gets_the_uniform_quantizer_and_6_decibels_per_bit(size):
    codebook = lloyd_max.design(stats.uniform(-1, 2), size)
    assert np.abs(codebook.levels - ((np.arange(size) + 0.5) * 2 / size - 1)).max() <= 1e-12
    # The moments of 1/3 cancel down to the error.
    assert abs(codebook.mse - (2 / size) ** 2 / 12) <= 1e-15


@pytest.mark.parametrize("dist", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 255])
def test_levels_are_centroids_and_no_nearby_codebook_is_better(dist, size):
    codebook = lloyd_max.design(dist, size)
    levels = codebook.levels
    assert len(levels) == size
    assert_array_equal(codebook.thresholds, (levels[1:] + levels[:-1]) / 2)
    edges = np.concatenate([[dist.support()[0]], codebook.thresholds, [dist.support()[1]]])
    for code in {0, size // 2, size - 1}:
        low, high = edges[code], edges[code + 1]
        centroid = dist.expect(lambda x: x, lb=low, ub=high, conditional=True)
        # expect integrates adaptively to 1.5e-8 relative, of a cell that may hold 1e-4 of the mass.
        assert abs(centroid - levels[code]) <= 1e-6 * dist.std()
    rng = np.random.default_rng(0)
    for size_of_change in (1e-3, 1e-2, 0.1):
        gap = np.diff(levels).min() if size > 1 else dist.std()
        other = np.sort(levels + size_of_change * gap * rng.normal(size=size))
        # Rounding of the error: its terms are of size E x^2, 9 at most.
        assert codebook.mse <= lloyd_max.mse(dist, other) + 1e-14


def test_lloyd_steps_alone_never_worsen_and_end_at_the_same_quantizer():
    levels = np.array([-4.0, 0.1, 0.2, 0.3])
    errors = []
    for _ in range(300):
        errors.append(lloyd_max.mse(GAUSSIAN, levels))
        levels = lloyd_max.lloyd_step(GAUSSIAN, levels)
    assert (np.diff(errors) <= 1e-15).all()
    assert errors[0] > 2 * errors[-1]
    assert np.abs(levels - lloyd_max.design(GAUSSIAN, 4).levels).max() <= 1e-9


def test_newton_steps_use_the_derivative_of_the_centroid_condition():
    levels = np.array([-1.3, -0.2, 0.4, 0.9, 2.5])

    def gradient(y):
        step = 1e-6
        moved = y + step * np.concatenate([np.eye(5), -np.eye(5)])
        errors = np.array([lloyd_max.mse(LAPLACE, m) for m in moved])
        return (errors[:5] - errors[5:]) / (2 * step)

    step = 1e-3
    columns = [
        (gradient(levels + step * e) - gradient(levels - step * e)) / (2 * step) for e in np.eye(5)
    ]
    expected = levels - np.linalg.solve(np.array(columns), gradient(levels))
    # The inner differences carry 1e-16 / 1e-6 = 1e-10, divided by 1e-3: 1e-7 in a Hessian of about
    # 0.1; the outer ones step^2 = 1e-6 of third derivatives.
    assert np.abs(lloyd_max.newton_step(LAPLACE, levels) - expected).max() <= 2e-5


def test_many_levels_reach_the_error_of_panter_and_dite():
    # (integral of pdf^(1/3))^3 / (12 N^2) = sqrt(3) pi / 2 / N^2 for the Gaussian; finite N
    # approaches it from below, to 1 % at 256 levels.
    ratios = [
        lloyd_max.design(GAUSSIAN, n).mse * n * n / (3**0.5 * np.pi / 2) for n in (16, 64, 256)
    ]
    assert (np.diff(ratios) > 0).all()
    assert 0.99 <= ratios[-1] <= 1


def best_of_all_partitions(samples, size):
    """Least mean squared error over every way to cut the sorted samples into ``size`` runs."""
    x = np.sort(samples)
    best = np.inf
    for cuts in itertools.combinations(range(1, len(x)), size - 1):
        runs = np.split(x, cuts)
        best = min(best, sum(((run - run.mean()) ** 2).sum() for run in runs) / len(x))
    return best


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_codebooks_of_samples_are_fixed_points_and_seldom_far_from_the_best_partition(size):
    rng = np.random.default_rng(0)
    excess = []
    for _ in range(100):
        samples = rng.normal(size=13)
        codebook = lloyd_max.design_from_samples(samples.reshape(1, 13), size)
        codes = lloyd_max.quantize(samples, codebook)
        centroids = [samples[codes == code].mean() for code in range(size)]
        # Sums of 13 numbers, in two orders.
        assert np.abs(codebook.levels - centroids).max() <= 1e-14
        assert abs(np.mean((samples - codebook.levels[codes]) ** 2) - codebook.mse) <= 1e-14
        excess.append(codebook.mse / best_of_all_partitions(samples, size))
    assert min(excess) >= 1 - 1e-12
    # Method I stops at local minima; from quantiles they are no disaster.
    assert np.median(excess) <= 1.1


def test_codebooks_of_many_samples_approach_that_of_their_density():
    samples = np.random.default_rng(0).laplace(size=100_000)
    measured, exact = lloyd_max.design_from_samples(samples, 8), lloyd_max.design(LAPLACE, 8)
    # The standard deviation of the mean of (x - x_hat)^2, from the samples themselves; fitting the
    # levels lowers the error by about 8 / 100000 of itself, which is less.
    errors = (samples - exact.levels[lloyd_max.quantize(samples, exact)]) ** 2
    assert abs(measured.mse - exact.mse) <= 4 * errors.std() / np.sqrt(len(samples))


def test_an_empty_cell_keeps_its_level():
    # Found by search.  From -10, 44, 47 the middle cell gets 17 and 44, moves to their mean, 30.5,
    # and loses both: 17 is then nearer to 10.1, 44 to 47.8.
    samples = np.repeat([-14.0, -10, 11, 17, 44, 46, 47, 450], [1, 1, 50, 1, 1, 1, 500, 1])
    codebook = lloyd_max.design_from_samples(samples, 3)
    low, high = samples[samples < 20], samples[samples > 20]
    assert np.abs(codebook.levels - [low.mean(), 30.5, high.mean()]).max() <= 1e-12
    assert abs(codebook.mse - (low.var() * len(low) + high.var() * len(high)) / 556) <= 1e-9


@pytest.mark.parametrize("make", [np.asarray, torch.tensor], ids=["numpy", "torch"])
def test_quantize_finds_the_nearest_level(make):
    codebook = lloyd_max.design(GAUSSIAN, 7)
    x = np.random.default_rng(0).normal(size=(5, 41)) * 2
    codes = lloyd_max.quantize(make(x), codebook)
    assert_array_equal(np.asarray(codes), np.abs(x[..., None] - codebook.levels).argmin(-1))
    assert_array_equal(np.asarray(lloyd_max.dequantize(codes, codebook)), codebook.levels[codes])
    tie = make([float(codebook.thresholds[2])])
    assert int(lloyd_max.quantize(tie, codebook)[0]) == 3


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="size=0"):
        lloyd_max.design(GAUSSIAN, 0)
    with pytest.raises(ValueError, match=r"size=3 .* there are 2"):
        lloyd_max.design_from_samples([1.0, 1.0, 2.0], 3)
    with pytest.raises(ValueError, match="finite"):
        lloyd_max.design_from_samples([1.0, np.nan, 2.0], 2)
    with pytest.raises(RuntimeError, match="max_steps=1"):
        lloyd_max.design(GAUSSIAN, 16, max_steps=1)
    with pytest.raises(RuntimeError, match="max_steps=1"):
        lloyd_max.design_from_samples(np.random.default_rng(0).normal(size=1000), 16, max_steps=1)
