import math
from fractions import Fraction

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from qbook.ranges import entropy


def naive_divergences(counts, levels):
    """The talk's pseudocode, one bin at a time, in exact fractions up to the logarithm."""
    result = []
    for i in range(levels, len(counts) + 1):
        p = [Fraction(int(c)) for c in counts[:i]]
        p[i - 1] += sum(map(int, counts[i:]))
        level = [k * levels // i for k in range(i)]
        merged = [sum(int(counts[k]) for k in range(i) if level[k] == m) for m in range(levels)]
        occupied = [sum(p[k] > 0 for k in range(i) if level[k] == m) for m in range(levels)]
        q = [
            Fraction(merged[level[k]], occupied[level[k]]) if p[k] else Fraction(0)
            for k in range(i)
        ]
        if sum(q) == 0 or any(b == 0 < a for a, b in zip(p, q, strict=True)):
            result.append(math.inf)
            continue
        p, q = [a / sum(p) for a in p], [b / sum(q) for b in q]
        result.append(math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a))
    return np.array(result)


def sample(name, n=50_000, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "gaussian": lambda: rng.normal(size=n),
        "laplace": lambda: rng.laplace(size=n),
        "heavy-tailed": lambda: rng.standard_t(3, size=n),
        "rectified": lambda: np.maximum(rng.normal(size=n), 0),
    }[name]()


def test_the_example_of_the_talk():
    counts = np.array([1, 0, 2, 3, 5, 3, 1, 7])
    spread = entropy.merge_and_spread(counts, counts > 0, 2)
    assert_array_equal(spread, [6 / 3, 0, 6 / 3, 6 / 3, 16 / 4, 16 / 4, 16 / 4, 16 / 4])


@pytest.mark.parametrize("levels", [1, 2, 3, 8])
@pytest.mark.parametrize("bins", [8, 13, 40])
@pytest.mark.parametrize("seed", range(5))
def test_divergences_equal_the_pseudocode_in_exact_fractions(levels, bins, seed):
    # A third of the bins are empty, the first and the last sometimes among them.
    counts = np.random.default_rng(seed).poisson(1.1, bins)
    ours, exact = entropy.divergences(counts, levels), naive_divergences(counts, levels)
    assert ours.shape == exact.shape
    assert_array_equal(np.isinf(ours), np.isinf(exact))
    finite = np.isfinite(exact)
    assert finite.any()
    # At most 40 terms below 1 * ln(100), each with three roundings.
    assert (np.abs(ours[finite] - exact[finite]) <= 40 * 5 * 3 * 2.0**-53).all()


@pytest.mark.parametrize("name", ["gaussian", "laplace", "heavy-tailed", "rectified"])
@pytest.mark.parametrize(("bits", "num_bins"), [(8, 2048), (8, 3000), (4, 2048)])
def test_the_threshold_lies_half_a_bin_above_the_best_candidate(name, bits, num_bins):
    x = sample(name)
    low, high = entropy.search(x, bits, num_bins=num_bins)
    counts, edges = np.histogram(np.abs(x), num_bins, (0, np.abs(x).max()))
    errors = entropy.divergences(counts, 2 ** (bits - 1))
    kept = 2 ** (bits - 1) + errors.argmin()
    assert errors[kept - 2 ** (bits - 1)] == errors.min()
    middle = (edges[kept] + edges[min(kept + 1, num_bins)]) / 2
    # Two ways to round the same product of max |x|.
    assert abs(high - middle) <= 4 * 2.0**-53 * edges[-1]
    assert low == -high


def test_a_uniform_density_is_not_clipped():
    x = np.linspace(-3, 3, 2048 * 50)
    assert entropy.search(x) == (-3, 3)


def test_outliers_are_clipped_and_the_bulk_is_kept():
    x = np.concatenate([np.linspace(-1, 1, 100_000), [8.0]])
    _, high = entropy.search(x)
    # One bin is 8 / 2048 wide; the divergence jumps where the window starts to cut the bulk.
    assert 1 <= high <= 1.1


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**10])
def test_the_threshold_scales_with_the_data(factor):
    x = sample("laplace")
    assert entropy.search(factor * x)[1] == factor * entropy.search(x)[1]


def test_signs_do_not_matter():
    x = sample("laplace")
    assert entropy.search(-x) == entropy.search(np.abs(x)) == entropy.search(x)


def test_exact_zeros_pull_the_threshold_of_rectified_data_down():
    x = sample("rectified")
    with_zeros, without = entropy.search(x)[1], entropy.search(x[x != 0])[1]
    assert with_zeros < 0.6 * without


def test_finer_codes_clip_less():
    x = sample("laplace")
    highs = [entropy.search(x, bits, num_bins=2048)[1] for bits in (2, 4, 6, 8)]
    assert highs[0] < highs[1] < min(highs[2:])


def test_float32_data_of_every_magnitude_have_a_histogram():
    for top in (1e-45, 1e-40, 3e38):
        x = np.float32([top, -top, 0])
        assert entropy.search(x)[1] == np.float32(top)


def test_too_few_bins_are_refused_with_the_number_that_would_do():
    with pytest.raises(ValueError, match=r"num_bins=2047 .* 8 bits; use at least 2048"):
        entropy.search(np.ones(3), num_bins=2047)
    with pytest.raises(ValueError, match=r"num_bins=2048 .* 9 bits; use at least 4096"):
        entropy.search(np.ones(3), 9)
    with pytest.raises(ValueError, match=r"7 bins cannot be merged into 8 levels"):
        entropy.divergences(np.ones(7), 8)


@pytest.mark.parametrize("bits", [0, 17, 8.0])
def test_bits_outside_1_to_16_are_refused(bits):
    with pytest.raises(ValueError, match="from 1 to 16"):
        entropy.search(np.ones(3), bits)
