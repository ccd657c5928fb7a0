"""Oracles: the order walked as it was described; rows counted one by one; all waves searched."""

import numpy as np
import pytest

from qbook.theory import tile_order

GRIDS = [(1, 1), (1, 5), (5, 1), (8, 3), (13, 4), (7, 7)]


def walked(rows, columns, group):
    """Every tile in order: groups of rows, in each the columns, in each the rows of the group."""
    for first in range(0, rows, group):
        for column in range(columns):
            for row in range(first, min(first + group, rows)):
                yield row, column


@pytest.mark.parametrize("group", [1, 2, 3, 8, 100])
@pytest.mark.parametrize(("rows", "columns"), GRIDS)
def test_the_order_is_the_one_that_was_described(rows, columns, group):
    found = tile_order.place(np.arange(rows * columns), rows, columns, group)
    assert list(zip(*(a.tolist() for a in found), strict=True)) == list(
        walked(rows, columns, group)
    )


@pytest.mark.parametrize("group", [1, 2, 8])
@pytest.mark.parametrize("programs", [1, 3, 7, 1000])
def test_a_wave_fetches_the_rows_that_its_tiles_touch(programs, group):
    m, n, block_m, block_n = 37, 50, 4, 8
    tiles = list(walked(10, 7, group))
    found = tile_order.waves(m, n, block_m, block_n, programs, group)
    assert len(found) == -(-len(tiles) // programs)
    for number, (of_x, of_w) in enumerate(found):
        wave = tiles[number * programs : (number + 1) * programs]
        x = {i for r, _ in wave for i in range(r * block_m, min((r + 1) * block_m, m))}
        w = {j for _, c in wave for j in range(c * block_n, min((c + 1) * block_n, n))}
        assert (of_x, of_w) == (len(x), len(w))


@pytest.mark.parametrize(("block_m", "block_n"), [(128, 128), (128, 256), (64, 256), (256, 64)])
def test_no_rectangle_fetches_less_than_the_square(block_m, block_n):
    programs = 144
    rows = np.arange(1, programs + 1)
    fetched = rows * block_m + programs / rows * block_n
    best = tile_order.best_rows(block_m, block_n, programs)
    # A convex function of the rows: its least integer is beside its least real number.
    assert abs(rows[fetched.argmin()] - best) < 1
    least = best * block_m + programs / best * block_n
    assert least <= fetched.min() * (1 + 1e-12)
    assert np.isclose(best * block_m, programs / best * block_n, rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(([0], 2, 2, 0), "group=0"), (([4], 2, 2, 1), "0 to 3"), (([-1], 2, 2, 1), "0 to 3")],
)
def test_what_does_not_fit_is_told(arguments, told):
    with pytest.raises(ValueError, match=told):
        tile_order.place(*arguments)
