import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from qbook.llm import outlier_features

LIBRARIES = [np.asarray, torch.from_numpy]


def states(layers=8, positions=50, features=7, seed=0):
    """Hidden states without an outlier: all magnitudes below 3"""
    rng = np.random.default_rng(seed)
    return rng.uniform(-3, 3, (layers, positions, features))


@pytest.mark.parametrize("library", LIBRARIES)
def test_shares_are_those_of_counting_one_by_one(library):
    hidden = states() * np.array([1, 2, 2.5, 3, 5, 0, 1])
    layers, positions = outlier_features.shares([library(x) for x in hidden], 6.0)
    for f in range(7):
        large = [[abs(v) >= 6.0 for v in x[:, f]] for x in hidden]
        assert float(layers[f]) == sum(any(row) for row in large) / 8
        # A sum of eight multiples of 1 / 50, in float64.
        assert_allclose(float(positions[f]), sum(map(sum, large)) / 400, rtol=1e-15)
    assert 0 < float(positions[2]) < float(positions[4])


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("layers", "positions", "value", "found"),
    [
        # 2 of 8 layers are 25 %; 12 of 50 positions in each of them are 6 % of all.
        (2, 12, 6.0, True),
        (2, 12, -6.0, True),
        (2, 11, 6.0, False),
        (1, 50, 6.0, False),
        (2, 12, np.nextafter(6.0, 0), False),
        (8, 3, 60.0, True),
        (8, 2, 60.0, False),
    ],
)
def test_each_part_of_the_definition_has_its_border(layers, positions, value, found, library):
    hidden = states()
    hidden[-layers:, :positions, 4] = value
    detected = outlier_features.detect([library(x) for x in hidden])
    assert_array_equal(np.asarray(detected), [4] if found else [])


def test_the_share_of_positions_is_of_all_layers_and_not_of_one():
    # A feature that is large everywhere in a quarter of the layers has a quarter of the positions.
    hidden = states()
    hidden[:2, :, 1] = 7
    layers, positions = outlier_features.shares(list(hidden))
    assert layers[1] == positions[1] == 0.25


@pytest.mark.parametrize("alpha", [0.7, 1.5, 3.0, 6.0])
@pytest.mark.parametrize("k", [100, 1000])
def test_hill_finds_the_exponent_of_a_power_law(alpha, k):
    rng = np.random.default_rng(int(10 * alpha) + k)
    x = rng.pareto(alpha, 20_000) + 1
    signs = rng.choice([-1.0, 1.0], x.size)
    found = outlier_features.hill((x * signs).reshape(100, 200), k)
    # Four standard errors.
    assert abs(found - alpha) <= 4 * alpha / np.sqrt(k)
    assert outlier_features.hill(torch.from_numpy(5 * x * signs), k) == pytest.approx(found)


def test_hill_is_the_maximum_of_the_likelihood():
    x = np.sort(np.abs(np.random.default_rng(0).standard_t(3, 500)))
    # Independent: scipy maximises the likelihood of a Pareto law that begins at the 41st largest.
    alpha, _, _ = stats.pareto.fit(x[-40:], floc=0, fscale=x[-41])
    assert_allclose(outlier_features.hill(x, 40), alpha, rtol=1e-4)


def test_hill_grows_without_end_where_there_is_no_power_law():
    x = stats.halfnorm.ppf((np.arange(100_000) + 0.5) / 100_000)
    tops = (30_000, 3000, 300)
    found = [outlier_features.hill(x, k) for k in tops]
    assert np.all(np.diff(found) > 2)
    for alpha, k in zip(found, tops, strict=True):
        # Independent: the mean of log(x / t) beyond t, from the density.  A sum over quantiles for
        # an integral, whose last of k terms is off by a share of 1 / k of a few times the mean.
        t = x[-(k + 1)]
        mean = stats.halfnorm.expect(lambda v, t=t: np.log(v / t), lb=t, conditional=True)
        assert_allclose(alpha, 1 / mean, rtol=5 / k)


def test_bad_input_raises():
    hidden = list(states(3))
    with pytest.raises(ValueError, match=r"of shapes \[\]"):
        outlier_features.detect([])
    with pytest.raises(ValueError, match=r"\(49, 7\), \(50, 7\)"):
        outlier_features.detect([hidden[0], hidden[1][1:]])
    with pytest.raises(ValueError, match=r"\(0, 7\)"):
        outlier_features.detect([hidden[0][:0]])
    hidden[1] = hidden[1].copy()
    hidden[1][3, 2] = np.nan
    with pytest.raises(ValueError, match="holds NaN"):
        outlier_features.shares(hidden)
    for k in (0, 10):
        with pytest.raises(ValueError, match=f"k={k} largest of 10 values; choose 1 to 9"):
            outlier_features.hill(np.arange(10.0), k)
    with pytest.raises(ValueError, match=r"from 0.0 to 9.0"):
        outlier_features.hill(np.arange(10.0), 9)
    with pytest.raises(ValueError, match=r"from 2.0 to 2.0"):
        outlier_features.hill(np.full(9, 2.0), 3)
