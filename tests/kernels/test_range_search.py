import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal

from qbook import affine, metrics
from qbook.kernels import isa
from qbook.kernels.range_search import entropy, histogram, mse, reference, values
from qbook.ranges import entropy as numpy_entropy
from qbook.ranges import mse as numpy_mse

SETS = isa.available()
COMPILED = SETS[:-1]
TYPES = {"float": float, "float32": np.float32, "float64": np.float64}


def sample(name, shape, seed=0):
    rng = np.random.default_rng(seed)
    x = {
        "gaussian": lambda: rng.normal(size=shape),
        "heavy-tailed": lambda: rng.standard_t(3, size=shape),
        "rectified": lambda: np.maximum(rng.normal(size=shape), 0),
    }[name]()
    return x.astype(np.float32)


def at_and_beside(edges):
    """The float32 numbers at each edge and on both sides, and what no bin takes."""
    edges = edges.astype(np.float32)
    beside = [np.nextafter(edges, np.float32(end)) for end in (-np.inf, np.inf)]
    return np.concatenate([edges, *beside, np.float32([np.nan, np.inf, -np.inf, -0.0])])


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("bins", [1, 2, 3, 100, 2048])
def test_counts_are_those_of_numpy_at_every_edge(bins, kind, use):
    rng = np.random.default_rng(bins)
    for low, high in [(-1.0, 1.0), (0.1, 0.7), (-12.9, -12.6), (0.0, 1e-37), (1000.0, 1001.5)]:
        low, high = TYPES[kind](low), TYPES[kind](high)
        x = rng.uniform(1.5 * low - 0.5 * high, 1.5 * high - 0.5 * low, 1501).astype(np.float32)
        x = np.concatenate([x, at_and_beside(np.histogram_bin_edges(x, bins, (low, high)))])
        expected, _ = np.histogram(x, bins, (low, high))
        for threads in (1, 2):
            counts = histogram.histogram(x, bins, low, high, use=use, num_threads=threads)
            assert counts.dtype == np.int64
            assert_array_equal(counts, expected)


@pytest.mark.parametrize("use", SETS)
@given(
    x=hnp.arrays(np.float32, st.integers(0, 70), elements=st.floats(width=32)),
    low=st.floats(-1e38, 1e38),
    width=st.floats(0, 1e38),
    bins=st.integers(1, 40),
)
@settings(max_examples=30)
def test_counts_follow_the_definition_on_any_range(use, x, low, width, bins):
    try:
        edges = np.histogram_bin_edges(x[:0], bins, (low, low + width))
    except ValueError:
        with pytest.raises(ValueError, match="Too many bins"):
            histogram.histogram(x, bins, low, low + width, use=use)
        return
    x = np.concatenate([x, at_and_beside(edges)])
    by_definition = [
        np.count_nonzero((left <= x) & ((x <= right) if k == bins - 1 else (x < right)))
        for k, (left, right) in enumerate(itertools.pairwise(edges))
    ]
    assert_array_equal(reference.histogram(x, edges), by_definition)
    assert_array_equal(histogram.histogram(x, bins, low, low + width, use=use), by_definition)


@pytest.mark.parametrize("use", SETS)
def test_a_range_longer_than_float32_can_tell_is_counted(use):
    x = np.float32([-3e38, -1, 1, 2e38, 3e38])
    assert_array_equal(histogram.histogram(x, 3, -3.3e38, 3.3e38, use=use), [1, 2, 2])
    # bins / width is more than float32 holds.
    x = np.float32([0, 1e-39, 2.5e-39, 4e-39])
    assert_array_equal(histogram.histogram(x, 4, 0, 4e-39, use=use), [1, 1, 1, 1])


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("n", [0, 1, 3, 15, 16, 17, 1023, 1024, 1025, 5001])
def test_magnitudes_are_counted_without_their_sign(n, use):
    x = sample("gaussian", n)
    expected, _ = np.histogram(np.abs(x).astype(np.float64), 300, (0, np.float64(2.9)))
    for threads in (1, 2):
        counts = histogram.absolute_histogram(x, 300, np.float64(2.9), use=use, num_threads=threads)
        assert_array_equal(counts, expected)


def test_strided_values_are_counted_as_they_are():
    x = sample("gaussian", (40, 50))[::3, ::-2]
    assert_array_equal(
        histogram.histogram(x, 7, -1.0, 2.0), np.histogram(x, 7, range=(-1.0, 2.0))[0]
    )


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((np.zeros(3), 4, 0.0, 1.0), "float64; pass float32"),
        ((np.zeros(3, np.float32), 0, 0.0, 1.0), "bins=0"),
        ((np.zeros(3, np.float32), 2**20 + 1, 0.0, 1.0), "choose 1 to 1048576"),
        ((np.zeros(3, np.float32), 4, 1.0, 0.0), "low=1.0, high=0.0"),
        ((np.zeros(3, np.float32), 4, 0.0, math.nan), "high=nan"),
        ((np.zeros(3, np.float32), 4, 1.0, 1.0 + 1e-7), "Too many bins"),
    ],
)
def test_a_histogram_that_cannot_be_made_is_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        histogram.histogram(*arguments)


def histograms():
    rng = np.random.default_rng(0)
    for bins in (16, 33, 127, 300):
        yield rng.integers(0, 3, bins)
        yield rng.integers(0, 10**6, bins)
        yield np.histogram(np.abs(rng.standard_t(2, size=2000)), bins)[0]
        yield np.arange(bins) < bins // 2
        yield np.arange(bins) >= bins // 2
        yield np.arange(bins) == bins - 1


@pytest.mark.parametrize("levels", [1, 2, 5, 16])
def test_divergences_are_those_of_the_definition(levels):
    for counts in histograms():
        expected = numpy_entropy.divergences(counts, levels)
        found = entropy.divergences(counts, levels)
        assert_array_equal(np.isinf(found), np.isinf(expected))
        finite = np.isfinite(expected)
        # Each of up to 300 terms p ln(p / q) has a few roundings, of p (ln c - ln share) here and
        # of the logarithm of p / q there: 2^-53 times the sum of p |ln(p / q)|, at most ln 300,
        # and of p 1 for the ratio itself.  16 of them are allowed, 2e-15 (1 + ln 300).
        difference = np.abs(found[finite] - expected[finite])
        assert np.all(difference <= 1e-12 * np.abs(expected[finite]) + 16 * 2.0**-53 * 6.7)
        assert np.argmin(found) == np.argmin(expected)


def test_divergences_of_a_large_histogram_agree_to_twelve_digits():
    counts, _ = np.histogram(np.abs(sample("gaussian", 200_000)), 2048, (0, 5.5))
    expected = numpy_entropy.divergences(counts, 128)[:1921]
    found = entropy.divergences(counts, 128)
    assert_array_equal(np.isinf(found), np.isinf(expected))
    finite = np.isfinite(expected)
    # Counts rise and fall smoothly, so that p ln(p / q) is small for most, and its rounding too.
    difference = np.abs(found[finite] - expected[finite])
    assert np.all(difference <= 1e-12 * expected[finite] + 2e-15)


@pytest.mark.parametrize(
    ("counts", "match"),
    [
        (np.ones(3), "3 bins cannot be merged into 4 levels"),
        (-np.ones(8), "negative"),
        (np.full(8, np.nan), "non-finite"),
    ],
)
def test_counts_without_divergences_are_refused(counts, match):
    with pytest.raises(ValueError, match=match):
        entropy.divergences(counts, 4)


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("name", ["gaussian", "heavy-tailed", "rectified"])
def test_the_entropy_search_finds_the_range_of_the_numpy_version(name, use):
    x = sample(name, (3, 7, 251))
    for bits, num_bins in [(2, 32), (4, 300)]:
        expected = numpy_entropy.search(x, bits, num_bins=num_bins)
        assert entropy.search(x, bits, num_bins=num_bins, use=use) == expected
        assert entropy.search(x[:, ::-2].T, bits, num_bins=num_bins, use=use) == (
            numpy_entropy.search(x[:, ::-2].T, bits, num_bins=num_bins)
        )


def test_subnormal_values_have_room_for_all_bins():
    # 3000 bins between 0 and 4e-42 are narrower than what float32 can tell there.
    x = sample("gaussian", 999) * np.float32(1e-42)
    assert entropy.search(x, 4, num_bins=3000) == numpy_entropy.search(x, 4, num_bins=3000)


def test_divergences_that_are_close_are_told_apart_by_the_definition(monkeypatch):
    def misleading(counts, levels, use=None):
        found = numpy_entropy.divergences(counts, levels)
        found[0] = found.min() - 1e-14
        return found

    x = sample("gaussian", 999)
    monkeypatch.setattr(entropy, "divergences", misleading)
    assert entropy.search(x, 4, num_bins=300) == numpy_entropy.search(x, 4, num_bins=300)


@pytest.mark.parametrize("use", COMPILED)
@pytest.mark.parametrize(("bits", "symmetric"), [(1, True), (2, False), (4, True), (8, False)])
@given(
    x=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=1, max_dims=3, max_side=9),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    )
    | hnp.arrays(np.float32, st.integers(1, 40), elements=st.integers(-9, 9).map(float))
)
@settings(max_examples=20)
def test_the_factor_is_that_of_the_numpy_version_whatever_x_holds(use, bits, symmetric, x):
    """Also for squares that float32 cannot hold, and for factors that are equally good."""
    for axis in (None, -1):
        with np.errstate(over="ignore"):
            expected = numpy_mse.search(x, bits, axis=axis, symmetric=symmetric, steps=7)
            found = mse.search(x, bits, axis=axis, symmetric=symmetric, steps=7, use=use)
        assert_array_equal(found, expected)
        assert found[0].shape == expected[0].shape


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("name", ["gaussian", "heavy-tailed", "rectified"])
@pytest.mark.parametrize(("bits", "symmetric"), [(2, True), (5, False), (8, True), (16, False)])
def test_the_factor_of_many_blocks_is_that_of_the_numpy_version(bits, symmetric, name, use):
    x = sample(name, (2, 20_001))
    for axis in (None, 0, 1):
        part = x[:, :129] if axis == 0 else x
        expected = numpy_mse.search(part, bits, axis=axis, symmetric=symmetric, steps=11)
        for threads in (1, 2):
            found = mse.search(
                part, bits, axis=axis, symmetric=symmetric, steps=11, use=use, num_threads=threads
            )
            assert_array_equal(found, expected)


@pytest.mark.parametrize("use", COMPILED)
@pytest.mark.parametrize("n", [1, 3, 33, 2047, 2048, 2049, 9001])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_sums_are_no_further_from_float64_than_is_claimed(n, scale, use):
    rows = sample("heavy-tailed", (3, n)) * np.float32(scale)
    factors = np.float32([1, 0.9, 0.8])
    low, high = (end[:, None] * factors for end in (rows.min(axis=1), rows.max(axis=1)))
    qparams = affine.qparams_from_range(low, high, 6, symmetric=False)
    sums = mse.squared_errors(rows, qparams, use=use)
    assert_array_equal(sums, mse.squared_errors(rows, qparams, use=use, num_threads=2))
    exact = np.empty(sums.shape)
    for c in range(len(factors)):
        scale, zero_point = qparams.scale[:, [c]], qparams.zero_point[:, [c]]
        one = affine.QParams(scale, zero_point, qparams.qmin, qparams.qmax)
        exact[:, [c]] = n * metrics.mse(rows, affine.fake_quantize(rows, one), axis=1)
    kept = np.isfinite(sums)
    # A square below float32's smallest numbers loses half of the last of them, 2^-150.
    assert np.all(np.abs(sums - exact)[kept] <= mse.WRONG * exact[kept] + n * 2.0**-149)
    best = np.where(kept, exact, np.inf).min(axis=1, keepdims=True)
    assert np.all((exact > best)[~kept])


@pytest.mark.parametrize("use", COMPILED)
def test_factors_whose_errors_are_close_are_told_apart_in_float64(use):
    """Of 3000 factors several lie within what float32 sums can be wrong; the widest is not best."""
    x = sample("gaussian", 300, seed=6)
    expected = numpy_mse.search(x, 3, steps=3000)
    assert_array_equal(mse.search(x, 3, steps=3000, use=use), expected)


@pytest.mark.parametrize("use", COMPILED)
@pytest.mark.parametrize("seed", [2, 4, 5, 6])
def test_squares_below_what_float32_holds_do_not_mislead(seed, use):
    """Values of 1e-22: their squares are a few times float32's smallest number, 1e-45."""
    x = (np.random.default_rng(seed).normal(size=40) * 1e-22).astype(np.float32)
    expected = numpy_mse.search(x, 3, steps=20)
    assert_array_equal(mse.search(x, 3, steps=20, use=use), expected)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 127, 70_001])
def test_extrema_are_those_of_numpy(n):
    rows = sample("gaussian", (3, n))
    for threads in (1, 2):
        low, high = values.extrema(rows, threads)
        assert_array_equal(low, rows.min(axis=1))
        assert_array_equal(high, rows.max(axis=1))


@pytest.mark.parametrize("use", COMPILED)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 15, 16, 36, 65_535, 65_536, 70_000])
def test_what_is_not_finite_is_refused_wherever_it_stands(at, bad, use):
    x = np.zeros(max(37, at + 1), np.float32)
    x[at] = bad
    for search in (mse.search, entropy.search):
        with pytest.raises(ValueError, match="NaN or infinity"):
            search(x, 8, use=use)


@pytest.mark.parametrize("search", [mse.search, entropy.search])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_tensors_come_back_as_tensors(search, dtype):
    x = torch.from_numpy(sample("gaussian", (5, 333))).to(getattr(torch, dtype))
    x.requires_grad_()
    numpy_version = {mse.search: numpy_mse.search, entropy.search: numpy_entropy.search}[search]
    for ours, theirs in zip(search(x, 4), numpy_version(x, 4), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert ours == theirs
        assert not ours.requires_grad


@pytest.mark.parametrize("search", [mse.search, entropy.search])
@pytest.mark.parametrize(
    ("x", "match"),
    [
        (np.zeros((0, 3), np.float32), "x is empty"),
        (np.zeros(3, np.int32), "int32"),
    ],
)
def test_values_without_a_range_are_refused(search, x, match):
    with pytest.raises(ValueError, match=match):
        search(x, 8)


def test_arguments_without_a_meaning_are_refused():
    x = np.ones(9, np.float32)
    with pytest.raises(ValueError, match="steps=0 is no positive integer"):
        mse.search(x, 8, steps=0)
    for search in (mse.search, entropy.search):
        with pytest.raises(ValueError, match="from 1 to 16"):
            search(x, 17)
        with pytest.raises(ValueError, match="is no instruction set"):
            search(x, 8, use="abacus")
    with pytest.raises(ValueError, match="axis=2 does not exist"):
        mse.search(x, 8, axis=2)
    with pytest.raises(ValueError, match="num_bins=100 is too coarse"):
        entropy.search(x, num_bins=100)
