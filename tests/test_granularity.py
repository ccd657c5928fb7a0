import numpy as np
import pytest
from numpy.testing import assert_array_equal

from qbook import affine, granularity


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_merging_undoes_splitting(axis):
    x = np.arange(6 * 12 * 18).reshape(6, 12, 18)
    assert_array_equal(granularity.merge_groups(granularity.split_groups(x, 3, axis), axis), x)


def test_a_group_holds_neighbours():
    assert_array_equal(granularity.split_groups(np.arange(6), 3), [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize(
    "kwargs", [{}, {"axis": 1}, {"axis": (0, 2)}, {"group_size": 4}, {"axis": 0, "group_size": 3}]
)
def test_scale_count_is_the_number_of_scales_that_are_made(kwargs):
    x = np.random.default_rng(0).normal(size=(6, 5, 8))
    made = affine.choose_qparams(x, 8, **kwargs).scale.size
    assert granularity.scale_count(x.shape, **kwargs) == made


@pytest.mark.parametrize("n", range(1, 200))
def test_divisors_are_all_of_them(n):
    assert granularity.divisors(n) == [d for d in range(1, n + 1) if n % d == 0]


def test_an_axis_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="axis=2 does not exist in an array of 2"):
        granularity.normalise_axes(2, 2)
