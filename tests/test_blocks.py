import numpy as np
import pytest
from numpy.testing import assert_array_equal

from qbook import blocks

SHAPES = [(0,), (1,), (7,), (3, 0), (3, 4), (1, 9), (9, 1), (2, 3, 5), (2, 1, 8, 3)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 24, 1000])
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_meet_every_value_once_and_are_no_larger_than_asked(monkeypatch, size, shape):
    monkeypatch.setattr(blocks, "SIZE", size)
    visits = np.zeros(shape, int)
    for block in blocks.of(visits):
        assert visits[block].size <= size
        visits[block] += 1
    assert_array_equal(visits, 1)


@pytest.mark.parametrize("param_shape", [(2, 3, 5), (1, 3, 1), (2, 1, 5), (1, 1, 1)])
def test_a_part_broadcasts_against_its_block(monkeypatch, param_shape):
    monkeypatch.setattr(blocks, "SIZE", 4)
    x = np.zeros((2, 3, 5))
    param = np.random.default_rng(0).normal(size=param_shape)
    for block in blocks.of(x):
        x[block] = blocks.part(param, block)
    assert_array_equal(x, np.broadcast_to(param, x.shape))


def test_a_scalar_is_one_block():
    assert list(blocks.of(np.array(1.0))) == [()]
