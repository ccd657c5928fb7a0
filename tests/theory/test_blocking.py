"""Oracles: plain loops, the cache simulator, random sets of multiplications."""

import numpy as np
import pytest

from qbook.theory import blocking, cache


def touched(n, block):
    words = []
    for rows in range(0, n, block):
        for columns in range(0, n, block):
            for k in range(n):
                for i in range(rows, rows + block):
                    for j in range(columns, columns + block):
                        words += [(0, i, k), (1, k, j), (2, i, j)]
    return [matrix * n * n + row * n + column for matrix, row, column in words]


@pytest.mark.parametrize(("n", "block"), [(1, 1), (4, 1), (4, 2), (6, 3), (5, 5)])
def test_the_trace_is_that_of_plain_loops(n, block):
    assert blocking.trace(n, block).tolist() == touched(n, block)


@pytest.mark.parametrize(("n", "block"), [(12, 3), (12, 4), (20, 5), (24, 6), (16, 8), (6, 6)])
def test_the_formula_holds_from_just_as_many_words_on_as_it_says(n, block):
    needed, trace = blocking.words_needed(block), blocking.trace(n, block)
    assert cache.misses(trace, needed).sum() == blocking.words_moved(n, block)
    assert cache.misses(trace, needed - 1).sum() > blocking.words_moved(n, block)


@pytest.mark.parametrize("block", [1, 2])
def test_small_blocks_need_no_more_than_it_says(block):
    trace = blocking.trace(6, block)
    found = cache.misses(trace, blocking.words_needed(block)).sum()
    assert found == blocking.words_moved(6, block)


@pytest.mark.parametrize("capacity", [8, 27, 64, 305])
@pytest.mark.parametrize("n", [6, 24])
def test_no_block_moves_less_than_the_bound(n, capacity):
    for block in (b for b in range(1, n + 1) if n % b == 0):
        missed = cache.misses(blocking.trace(n, block), capacity)
        # Every third word is a sum: what is fetched of them is stored again.
        moved = missed.sum() + missed[2::3].sum()
        assert moved >= blocking.least_words(n, capacity)


def test_multiplications_are_no_more_than_the_words_they_touch_allow():
    # Loomis and Whitney: triples (i, j, k) that touch so many words of x, w and y.
    rng, n = np.random.default_rng(0), 7
    for density in (0.05, 0.3, 0.9):
        triples = rng.random((n, n, n)) < density
        x, w, y = (triples.any(axis=axis).sum() for axis in (1, 0, 2))
        assert triples.sum() <= np.sqrt(float(x * w * y))


def test_the_bound_is_never_negative_and_grows_as_the_cube():
    assert blocking.least_words(4, 1000) == 0
    capacity = 50
    terms = [blocking.least_words(n, capacity) + capacity for n in (100, 200)]
    # Two roundings each.
    np.testing.assert_allclose(terms[1] / terms[0], 8, rtol=1e-14)


@pytest.mark.parametrize("block", [0, 4, 7])
def test_a_block_that_does_not_divide_is_refused(block):
    with pytest.raises(ValueError, match=f"block={block} does not divide n=6"):
        blocking.trace(6, block)
