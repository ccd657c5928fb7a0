import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qbook.ranges.percentile import percentile

PERCENTS = [50.1, 75, 90, 99, 99.9, 99.99, 100]
VALUES = st.floats(-1e6, 1e6)


@pytest.mark.parametrize("percent", PERCENTS)
@pytest.mark.parametrize("n", [1, 2, 3, 101, 10_007])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_percentile_equals_numpy(percent, n, dtype):
    x = np.random.default_rng(0).laplace(size=n).astype(dtype)
    expected = np.percentile(x, 100 - percent), np.percentile(x, percent)
    assert percentile(x, percent) == expected
    _, high = percentile(x, percent, symmetric=True)
    assert high == np.percentile(np.abs(x), percent)


@pytest.mark.parametrize("percent", PERCENTS)
def test_percentile_of_an_axis_equals_torch(percent):
    x = torch.randn(7, 101, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    low, high = percentile(x, percent, axis=1)
    # torch forms the position 100 q with one rounding: 100 * 2^-53 of a gap between neighbours,
    # which is below 2 here.
    for ours, q in ((low, (100 - percent) / 100), (high, percent / 100)):
        theirs = torch.quantile(x, q, dim=1, keepdim=True)
        assert float((ours - theirs).abs().max()) <= 2 * 100 * 2.0**-52


@given(x=hnp.arrays(np.float64, st.integers(1, 300), elements=VALUES), percent=st.floats(50.1, 100))
def test_no_more_than_the_stated_share_is_clipped(x, percent):
    low, high = percentile(x, percent)
    # Above the value at position (n - 1) percent / 100 lie at most ceil of the remaining positions;
    # the added 1e-9 stands for the rounding of that position.
    share = math.ceil((len(x) - 1) * (100 - percent) / 100 + 1e-9)
    assert (x > high).sum() <= share
    assert (x < low).sum() <= share
    assert x.min() <= low <= high <= x.max()


def test_one_hundred_percent_is_minmax():
    x = np.random.default_rng(0).normal(size=(5, 7))
    assert percentile(x, 100) == (x.min(), x.max())
    assert percentile(x, 100, symmetric=True) == (-np.abs(x).max(), np.abs(x).max())


def test_two_sided_loses_twice_the_share_of_symmetric():
    x = np.random.default_rng(0).normal(size=100_000)
    low, high = percentile(x, 99.9)
    assert ((x < low) | (x > high)).sum() == 200
    low, high = percentile(x, 99.9, symmetric=True)
    assert ((x < low) | (x > high)).sum() == 100


@pytest.mark.parametrize("percent", [50, 0, -1, 100.1, math.nan, 0.9999])
def test_percent_outside_50_to_100_is_refused(percent):
    with pytest.raises(ValueError, match=rf"percent={percent} is outside \(50, 100\]"):
        percentile(np.ones(3), percent)
