"""The kernels' order of tiles is the one whose traffic ``qbook.theory.tile_order`` counts."""

import pytest
import torch
import triton
import triton.language as tl
from numpy.testing import assert_array_equal

from qbook.kernels.gpu import tiles
from qbook.theory import tile_order


@triton.jit
def place_all(row_ptr, column_ptr, rows, columns, GROUP: tl.constexpr):
    tile = tl.program_id(0)
    row, column = tiles.place(tile, rows, columns, GROUP)
    tl.store(row_ptr + tile, row)
    tl.store(column_ptr + tile, column)


@pytest.mark.parametrize("group", [1, 3, 8])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 5), (5, 1), (8, 3), (13, 4)])
def test_programs_take_the_tiles_in_the_order_that_theory_counts(rows, columns, group):
    count = rows * columns
    found = torch.full((2, count), -1, dtype=torch.int32)
    place_all[(count,)](found[0], found[1], rows, columns, GROUP=group)
    wanted = tile_order.place(range(count), rows, columns, group)
    assert_array_equal(found[0].numpy(), wanted[0])
    assert_array_equal(found[1].numpy(), wanted[1])
