import math

import numpy as np
import pytest
import torch

from qbook import formats
from qbook.training import scaled_tensor

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
TABLES = [(E4M3, formats.E4M3), (E5M2, formats.E5M2)]
NARROW, WIDE = [E4M3, E5M2, torch.float16], [torch.bfloat16, torch.float32]


@pytest.mark.parametrize(("dtype", "table"), TABLES)
def test_codes_are_the_tables_at_every_value_at_every_midpoint_and_beside_it(dtype, table):
    levels = table.levels.astype(np.float64)
    middle = (levels[1:] + levels[:-1]) / 2
    x = np.concatenate([levels, middle]).astype(np.float32)
    x = np.concatenate([x, np.nextafter(x, np.float32(-1e9)), np.nextafter(x, np.float32(1e9))])
    # At full range the scale is 1, so that the codes can be compared with the table's.
    x = torch.from_numpy(np.clip(x, table.min, table.max))
    stored = scaled_tensor.store(x, dtype)
    assert stored.scale == 1
    assert torch.equal(stored.codes.view(torch.uint8), table.encode(x))


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("shape", [(), (1,), (3, 7), (2, 1, 5)])
@pytest.mark.parametrize("size", [1e-30, 3e-4, 1.0, 4e5])
def test_the_scale_is_the_power_of_two_that_fills_the_range_and_rounds_nothing(dtype, shape, size):
    x = size * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    stored = scaled_tensor.store(x, dtype)
    top, scale = torch.finfo(dtype).max, stored.scale.item()
    assert math.frexp(scale)[0] == 0.5
    assert top / 2 < x.abs().max().item() / scale <= top
    # The naive reference: Python's own numbers, one element at a time, rounded by the bare cast.
    for value, kept in zip(x.flatten().tolist(), scaled_tensor.load(stored).flatten(), strict=True):
        assert kept.item() == torch.tensor(value / scale).to(dtype).item() * scale


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_formats_with_float32s_range_are_not_scaled(dtype, size):
    x = size * torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    stored = scaled_tensor.store(x, dtype)
    assert stored.scale == 1
    assert torch.equal(stored.codes, x.to(dtype))


@pytest.mark.parametrize("dtype", NARROW)
def test_a_largest_value_at_the_top_and_just_beyond_it_takes_the_next_scale(dtype):
    top = torch.finfo(dtype).max
    assert scaled_tensor.power_of_two_scale(torch.tensor([-top, 1.0]), dtype) == 1
    beyond = torch.tensor([np.nextafter(np.float32(top), np.float32(np.inf)), 1.0])
    assert scaled_tensor.power_of_two_scale(beyond, dtype) == 2
    # A top number and half of it share the mantissa: half the scale to the digit.
    assert scaled_tensor.power_of_two_scale(torch.tensor([top / 2]), dtype) == 0.5


def test_the_share_that_vanishes_begins_where_the_format_says():
    # E4M3: half of 2^-9 is a tie that goes to zero.  With 448 as the largest the scale is 1.
    x = torch.tensor([448.0, 2.0**-10, 2.0**-10 * 1.001, -(2.0**-10), 0.0])
    kept = scaled_tensor.load(scaled_tensor.store(x, E4M3))
    assert kept.tolist() == [448, 0, 2.0**-9, 0, 0]
    # FP16: half of 2^-24.
    x = torch.tensor([65504.0, 2.0**-25, 2.0**-25 * 1.001])
    kept = scaled_tensor.load(scaled_tensor.store(x, torch.float16))
    assert kept.tolist() == [65504, 0, 2.0**-24]


def test_without_a_scale_small_values_vanish_and_large_ones_saturate():
    x = torch.tensor([1e-4, 1.0, 1e6, -1e6])
    stored = scaled_tensor.store(x, E4M3, scaled=False)
    assert stored.scale == 1
    assert stored.codes.float().tolist() == [0, 1, 448, -448]
    assert scaled_tensor.store(x, torch.float16, scaled=False).codes[2] == 65504


@pytest.mark.parametrize(
    ("dtype", "bytes_each"), list(zip(NARROW + WIDE, [1, 1, 2, 2, 4], strict=True))
)
def test_bytes_are_those_of_the_codes_and_four_of_the_scale(dtype, bytes_each):
    assert scaled_tensor.store(torch.ones(3, 7), dtype).nbytes == 21 * bytes_each + 4


@pytest.mark.parametrize("x", [torch.zeros(3), torch.zeros(0), torch.zeros(2, 0)])
def test_zeros_and_nothing_have_scale_one(x):
    stored = scaled_tensor.store(x, E4M3)
    assert stored.scale == 1
    assert torch.equal(scaled_tensor.load(stored), x)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scaled", [True, False])
def test_values_that_are_not_finite_are_refused(bad, scaled):
    with pytest.raises(ValueError, match="finite"):
        scaled_tensor.store(torch.tensor([1.0, bad]), E4M3, scaled=scaled)


@pytest.mark.parametrize("dtype", [torch.int8, "E4M3", None])
def test_a_type_without_floats_is_refused_by_name(dtype):
    with pytest.raises(ValueError, match="stores no floats"):
        scaled_tensor.store(torch.ones(2), dtype)


def test_arguments_stay_as_they_are_and_no_gradient_passes():
    x = torch.linspace(-1, 1, 9, requires_grad=True)
    copy = x.detach().clone()
    assert not scaled_tensor.load(scaled_tensor.store(x, E4M3)).requires_grad
    assert torch.equal(x, copy)
