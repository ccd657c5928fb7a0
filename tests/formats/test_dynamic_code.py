import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from qbook.formats.dynamic import DYNAMIC, DYNAMIC_UNSIGNED, dynamic_levels


def steps_of(levels, decade):
    """Levels in (10^decade / 10, 10^decade), the 1 at the top left out."""
    return levels[(levels > 10.0**decade / 10) & (levels < 10.0**decade)]


@pytest.mark.parametrize("signed", [True, False])
def test_the_table_equals_bitsandbytes_to_the_last_bit(signed):
    theirs = bnb.create_dynamic_map(signed=signed).numpy()
    ours = dynamic_levels(signed=signed)
    # Theirs adds the steps of PyTorch's linspace, which rounds once on a processor with fused
    # multiply-adds and twice on one without: one unit in the last place, 2^-23 relative.
    assert np.all(np.abs(ours - theirs) <= 2**-23 * np.abs(ours))
    fused = torch.linspace(0.1, 1, 129)[7] == np.float32(
        0.1 + 7 * np.float64(np.float32(0.9) / 128)
    )
    if fused:
        assert_array_equal(ours.view(np.int32), theirs.view(np.int32))


@pytest.mark.parametrize("decade", range(-6, 1))
@pytest.mark.parametrize("signed", [True, False])
def test_each_decade_has_twice_the_steps_of_the_one_below_in_their_middles(decade, signed):
    steps = steps_of(dynamic_levels(signed=signed), decade)
    count = 2 ** (decade + 6) * (1 if signed else 2)
    edges = 10.0**decade * np.linspace(0.1, 1, count + 1)
    # Four roundings to float32 at most: 2^-22 relative.
    assert steps.shape == (count,)
    assert np.all(np.abs(steps / ((edges[1:] + edges[:-1]) / 2) - 1) <= 2**-22)


def test_signed_levels_mirror_but_for_the_one_at_the_top():
    levels = DYNAMIC.levels
    assert_array_equal(levels[:127], -levels[128:255][::-1])
    assert (levels[127], levels[255]) == (0, 1)
    # No -1: a block whose largest magnitude is negative is cut by 0.7 per cent.
    assert levels[0] == np.float32(-0.99296874)
    assert DYNAMIC.round(np.array([-1.0]))[0] == levels[0]


def test_unsigned_levels_start_at_zero_and_refuse_no_positive_number():
    levels = DYNAMIC_UNSIGNED.levels
    assert (levels[0], levels[-1]) == (0, 1)
    assert np.all(np.diff(levels) > 0)
    assert np.abs(DYNAMIC_UNSIGNED.round(levels) - levels).max() == 0
