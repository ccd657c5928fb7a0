import math

import ml_dtypes
import numpy as np
import pytest
import torch

from qbook.training import half_precision

FLOAT16, BFLOAT16 = torch.float16, torch.bfloat16


def every_positive(numpy_type):
    """Every positive finite value of a 16-bit type, ascending, float64."""
    with np.errstate(invalid="ignore"):
        values = np.arange(1, 2**15, dtype=np.uint16).view(numpy_type).astype(np.float64)
    return values[np.isfinite(values)]


@pytest.mark.parametrize(
    ("dtype", "numpy_type"), [(FLOAT16, np.float16), (BFLOAT16, ml_dtypes.bfloat16)]
)
def test_rounding_goes_to_the_nearest_value_and_ties_to_even(dtype, numpy_type):
    values = every_positive(numpy_type)
    middle = (values[1:] + values[:-1]) / 2
    rounded = half_precision.round_to(torch.from_numpy(middle), dtype).numpy()
    # The codes of neighbours are consecutive: the even one is the first in every other pair.
    even = np.where(np.arange(1, len(values)) % 2 == 0, values[:-1], values[1:])
    assert np.array_equal(rounded, even)
    quarter = values[:-1] + (values[1:] - values[:-1]) / 4
    assert np.array_equal(half_precision.round_to(torch.from_numpy(quarter), dtype), values[:-1])


@pytest.mark.parametrize(
    ("dtype", "numpy_type", "mantissa_bits"),
    [(FLOAT16, np.float16, 10), (BFLOAT16, ml_dtypes.bfloat16, 7)],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_an_update_is_lost_below_a_quarter_and_kept_above_half_an_ulp_of_one(
    dtype, numpy_type, mantissa_bits, sign
):
    # The theorem of the page on every normal number: between the two ratios it depends on w.
    w = every_positive(numpy_type)
    w = w[(w >= float(ml_dtypes.finfo(numpy_type).smallest_normal)) & (w < w[-1])]
    w = torch.from_numpy(w[w >= 1e-30])
    lost, kept = 2.0 ** -(mantissa_bits + 2), 2.0 ** -(mantissa_bits + 1)
    # The cast goes through float32, which must still tell them from the tie: 2^-12 / 1000 > 2^-24.
    inside, outside = 0.999, 1.001
    assert half_precision.lost_share(w, sign * lost * inside * w, dtype) == 1
    assert half_precision.lost_share(w, sign * kept * outside * w, dtype) == 0
    # Neither bound can be moved: just inside, some w is changed or stays.
    assert half_precision.lost_share(w, sign * lost * 1.01 * w, dtype) < 1
    assert half_precision.lost_share(w, sign * kept * 0.99 * w, dtype) > 0


def test_the_smallest_and_largest_magnitudes_of_float16():
    tiny = torch.tensor([2.0**-25, 2.0**-25 * (1 + 2**-20), 2.0**-24], dtype=torch.float64)
    assert half_precision.round_to(tiny, FLOAT16).tolist() == [0, 2.0**-24, 2.0**-24]
    large = torch.tensor([65504.0, 65519.0, 65520.0], dtype=torch.float64)
    assert half_precision.round_to(large, FLOAT16).tolist() == [65504, 65504, math.inf]
    assert half_precision.flushed_share(tiny, FLOAT16) == 1 / 3
    assert half_precision.flushed_share(tiny, FLOAT16, factor=2.0) == 0
    assert half_precision.flushed_share(torch.zeros(3), FLOAT16) == 0


def test_updates_of_zero_are_not_counted_as_lost():
    w = torch.ones(4)
    update = torch.tensor([0.0, 0.0, 2.0**-12, 0.5])
    assert half_precision.lost_share(w, update, FLOAT16) == 1 / 2
    assert half_precision.lost_share(w, torch.zeros(4), FLOAT16) == 0


def test_a_store_rounds_forward_and_its_gradient_backward():
    x = torch.tensor([1 + 2.0**-12, 3.0], dtype=torch.float64, requires_grad=True)
    stored = half_precision.store(x, FLOAT16)
    assert stored.tolist() == [1.0, 3.0]
    (stored * torch.tensor([2.0**-30, 1 + 2.0**-12], dtype=torch.float64)).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0]


def test_a_sum_of_ones_stalls_where_one_is_half_an_ulp():
    ones = torch.ones(2, 5000)
    assert half_precision.accumulate(ones, FLOAT16).tolist() == [2048, 2048]
    assert half_precision.accumulate(ones, BFLOAT16).tolist() == [256, 256]
    assert half_precision.accumulate(ones, torch.float32).tolist() == [5000, 5000]


def test_accumulation_is_numpys_in_half_precision():
    terms = np.random.default_rng(0).normal(size=(3, 200)).astype(np.float16)
    # NumPy's cumsum adds one after another in the type it is told.
    expected = np.cumsum(terms, axis=1, dtype=np.float16)[:, -1]
    found = half_precision.accumulate(torch.from_numpy(terms).double(), FLOAT16)
    assert np.array_equal(found.numpy(), expected)


def test_binades_are_the_floors_of_the_logarithms():
    x = torch.tensor([0.0, -1.0, 1.999, 2.0, 0.75, 2.0**-24, math.inf, -math.nan])
    assert half_precision.binades(x).tolist() == [0, 0, 1, -1, -24]
