import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from scipy import stats

from qbook.formats import NF4
from qbook.formats.normal_float import normal_float_levels


def test_the_table_equals_bitsandbytes_to_the_last_bit():
    theirs = bnb.get_4bit_type("nf4", device="cpu").numpy()
    assert_array_equal(NF4.values.view(np.int32), theirs.view(np.int32))


def test_the_levels_are_evenly_spaced_in_probability():
    levels = normal_float_levels().astype(np.float64)
    top = stats.norm.ppf(0.9677083)
    # Undo the division and ask scipy for the probability of each level.  The levels are rounded to
    # float32 three times on their way, 2^-24 relative each time, and their probabilities before
    # that by 2^-25; the density is at most 0.4 and the levels at most 1.85: 5e-7 covers it.
    probability = stats.norm.cdf(levels * top)
    expected = np.concatenate(
        [
            np.linspace(1 - 0.9677083, 0.5, 8),
            np.linspace(0.5, 0.9677083, 9)[1:],
        ]
    )
    assert np.abs(probability - expected).max() <= 5e-7
    assert (levels[0], levels[7], levels[15]) == (-1, 0, 1)


def test_the_offset_is_the_mean_of_two_outermost_quantiles():
    published, formula = normal_float_levels(), normal_float_levels(1 - (1 / 30 + 1 / 32) / 2)
    # The seven digits move the probability by 3.4e-8: no level by more than a few 2^-24.
    assert np.abs(published - formula).max() <= 4e-7


@pytest.mark.parametrize("scale", [1.0, 1e-4, 37.0])
def test_codes_and_values_equal_bitsandbytes_on_a_million_weights(scale):
    x = torch.from_numpy(np.random.default_rng(1).normal(size=2**20).astype(np.float32) * scale)
    packed, state = bnb.quantize_4bit(x, blocksize=64, quant_type="nf4")
    # Two codes a byte, the first one in the high bits.
    theirs = torch.stack([packed >> 4, packed & 15], dim=-1).reshape(-1)
    # bitsandbytes multiplies by the rounded reciprocal, so we compare on the same block-relative
    # number; it may exceed 1 by an ulp, hence the saturation.
    absmax = x.reshape(-1, 64).abs().amax(dim=1, keepdim=True)
    relative = x.reshape(-1, 64) * (1.0 / absmax)
    ours = NF4.encode(relative)
    # Its boundaries are midpoints rounded to float32, ours are exact: an x on a rounded midpoint
    # may go either way, and no other may.
    levels = torch.tensor(NF4.values)
    on_boundary = torch.isin(relative, (levels[1:] + levels[:-1]) / 2).reshape(-1)
    assert int(on_boundary.sum()) <= 20
    assert torch.equal(ours.reshape(-1)[~on_boundary], theirs[~on_boundary])
    assert set(ours.reshape(-1).tolist()) == set(range(16))
    values = (NF4.decode(theirs.reshape(-1, 64)) * absmax).reshape(-1)
    assert torch.equal(values, bnb.dequantize_4bit(packed, state).reshape(-1))
