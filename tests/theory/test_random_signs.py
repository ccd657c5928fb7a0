import itertools

import numpy as np
import pytest
import scipy.stats
import torch

from qbook.llm import hadamard
from qbook.theory import random_signs


def every_transform(x):
    """x [n] -> y [2^n, n] for every choice of signs"""
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=len(x)))).double()
    return hadamard.transform(signs * torch.as_tensor(x).double())


@pytest.mark.parametrize("n", [2, 4, 8, 12])
def test_the_moments_are_those_of_all_signs_enumerated(n):
    x = np.random.default_rng(n).standard_t(3, size=n)
    y = every_transform(x).numpy()
    square = (y**2).mean(axis=0)
    # Sums of 4096 numbers around 1 in float64.
    assert np.abs(square * n / (x**2).sum() - 1).max() <= 1e-12
    found = (y**4).mean(axis=0) / square**2
    assert np.abs(found - random_signs.kurtosis_after(x)).max() <= 1e-12


@pytest.mark.parametrize("failure", [0.5, 0.1, 0.01])
def test_the_bound_fails_no_more_often_than_it_says(failure):
    for x in (np.ones(12), np.arange(1.0, 13), np.eye(12)[0]):
        crests = random_signs.crest(every_transform(x).numpy())
        assert (crests > random_signs.crest_bound(12, failure=failure)).mean() <= failure


def test_rows_share_the_probability_of_failure():
    one, many = random_signs.crest_bound(64, 10, failure=0.1), random_signs.crest_bound(640)
    assert abs(one - random_signs.crest_bound(640, failure=0.1)) <= 1e-15
    assert one < many


@pytest.mark.parametrize("shape", [(7,), (3, 50), (2, 3, 33)])
def test_kurtosis_about_zero_is_scipys_of_mirrored_numbers(shape):
    x = np.random.default_rng(0).normal(size=shape)
    mirrored = np.concatenate([x, -x], axis=-1)
    expected = scipy.stats.kurtosis(mirrored, axis=-1, fisher=False)
    assert np.abs(random_signs.kurtosis(x) / expected - 1).max() <= 1e-12
    assert np.abs(random_signs.kurtosis(torch.tensor(x)).numpy() / expected - 1).max() <= 1e-12


def test_the_extremes_are_signs_and_a_single_number():
    single = 5.0 * np.eye(16)[3]
    assert random_signs.kurtosis(np.array([2.0, -2.0, 2.0])) == random_signs.crest(-np.ones(9)) == 1
    assert (random_signs.kurtosis(single), random_signs.crest(single)) == (16, 4)
    # What was one number becomes signs: every y_k has one magnitude.
    assert random_signs.kurtosis_after(single) == 1


def test_neither_depends_on_the_unit_and_large_numbers_do_not_overflow():
    x = np.random.default_rng(1).normal(size=(2, 20)).astype(np.float32)
    for measure in (random_signs.kurtosis, random_signs.crest):
        # float32 sums of 20 numbers.
        assert np.abs(measure(x * np.float32(2.0**100)) / measure(x) - 1).max() <= 1e-6


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_row_without_a_shape_is_refused(value):
    with pytest.raises(ValueError, match="zero throughout, NaN or infinite"):
        random_signs.crest(np.stack([np.ones(4), np.full(4, value)]))


@pytest.mark.parametrize(
    ("n", "rows", "failure"), [(0, 1, 0.1), (4, 0, 0.1), (4, 1, 0.0), (4, 1, 1.0)]
)
def test_a_bound_without_meaning_is_refused(n, rows, failure):
    with pytest.raises(ValueError, match=f"n={n} and rows={rows} .* failure={failure}"):
        random_signs.crest_bound(n, rows, failure=failure)
