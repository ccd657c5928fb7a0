import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qbook import affine
from qbook.ptq import ocs

# Every 64th of a step from -40 to 40: exact in float64, and so are its halves and quarters.
STEPS = torch.arange(-40 * 64, 40 * 64 + 1, dtype=torch.float64) / 64


def round_half_even(u):
    return torch.tensor([round(Fraction(v)) for v in u.tolist()], dtype=torch.float64)


def clipped_sum(u, pieces, scale, qmax):
    """Sum of the codes of all pieces of one channel that holds the values u, at scale 1."""
    parts = ocs.split(u[:, None], pieces, scale)
    return round_half_even(parts.flatten()).reshape(parts.shape).clamp(-qmax, qmax).sum(1)


def test_the_codes_of_the_halves_add_up_to_the_code_except_at_every_second_tie():
    found = clipped_sum(STEPS, [0], 1.0, math.inf)
    expected = round_half_even(STEPS)
    differ = STEPS[found != expected]
    # Ties k + 1/2 with k = 1, 2 (mod 4): one half lands on a tie of its own and goes the wrong way.
    odd_ones = [k + 0.5 for k in range(-40, 40) if k % 4 in (1, 2)]
    assert differ.tolist() == odd_ones
    # There both neighbours are equally near.
    assert (found - STEPS).abs().max() == 0.5


@pytest.mark.parametrize("pieces", [[0], [0, 0], [0, 1], [0, 0, 1], [0, 0, 1, 2, 3]])
def test_with_ties_rounded_up_the_codes_add_up_everywhere(pieces):
    # Hermite: floor(2 y) = floor(y) + floor(y + 1/2), applied once a split.
    parts = ocs.split(STEPS[:, None], pieces, 1.0)
    assert torch.equal(torch.floor(parts + 0.5).sum(1), torch.floor(STEPS + 0.5))


@pytest.mark.parametrize("pieces", [[0], [0, 0], [0, 1], [0, 0, 1], [0, 1, 0, 2, 4]])
def test_no_piece_adds_rounding_error_of_its_own(pieces):
    # Ties included: one rounding, at most half a step.
    assert (clipped_sum(STEPS, pieces, 1.0, math.inf) - STEPS).abs().max() == 0.5


@pytest.mark.parametrize("qmax", [1, 3, 7])
def test_a_split_channel_is_clipped_at_twice_the_range(qmax):
    off_ties = STEPS[(STEPS - 0.5) % 1 != 0]
    expected = round_half_even(off_ties).clamp(-2 * qmax, 2 * qmax)
    assert torch.equal(clipped_sum(off_ties, [0], 1.0, qmax), expected)


def test_equal_halves_round_as_one_weight_at_twice_the_scale():
    halved = clipped_sum(STEPS, [0], None, math.inf)
    assert torch.equal(halved, 2 * round_half_even(STEPS / 2))
    assert (halved - STEPS).abs().max() == 1
    # A uniform weight: 4 times the variance of one rounding, 1 / 12.  The grid of 64 points a step
    # errs by 1 / (6 * 64^2) at most, its two ends by less than 1 in 5121.
    assert abs(((halved - STEPS) ** 2).mean().item() - 4 / 12) <= 1e-3


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_scale_of_equal_halves_fits_the_shifted_ones(bits):
    # The largest half sticks out by a quarter step, which rounds to the last code: no clipping.
    qmax = affine.code_range(bits)[1]
    w = torch.linspace(-1, 1, 1001, dtype=torch.float64)[:, None]
    qparams = affine.choose_qparams(ocs.split(w, [0]), bits)
    parts = ocs.split(w, [0], qparams.scale)
    assert parts.abs().max() > qparams.scale * qmax
    w_hat = affine.fake_quantize(parts, qparams).sum(1, keepdim=True)
    # w / scale is rounded twice in float64.
    assert (w_hat - w).abs().max() <= qparams.scale / 2 * (1 + 1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (8, 5, 3, 3)])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_the_pieces_add_up_to_the_weight(shape, scale):
    w = torch.from_numpy(np.random.default_rng(0).normal(size=shape))
    before = w.clone()
    pieces = ocs.choose(ocs.largest(w), 6)
    parts = ocs.split(w, pieces, scale)
    assert parts.shape == (shape[0], shape[1] + 6, *shape[2:])
    # Halves are exact, shifts round at the size of the weight: 7 pieces, sizes below 4.
    assert (ocs.merge(parts, pieces) - w).abs().max() <= 7 * 4 * 2.0**-52
    assert torch.equal(w, before)
    assert ocs.source(pieces, shape[1])[: shape[1]].tolist() == list(range(shape[1]))


def test_a_scale_for_each_output_shifts_each_row_by_its_own():
    w = torch.from_numpy(np.random.default_rng(1).normal(size=(3, 4)))
    scale = torch.tensor([[0.1], [0.2], [0.4]], dtype=torch.float64)
    rows = [ocs.split(w[i : i + 1], [2], scale[i, 0]) for i in range(3)]
    assert torch.equal(ocs.split(w, [2], scale), torch.cat(rows))
    difference = ocs.split(w, [2], scale)[:, 4] - ocs.split(w, [2], scale)[:, 2]
    assert (difference - scale[:, 0] / 2).abs().max() <= 1e-15


def test_the_size_of_a_channel_is_its_largest_magnitude():
    w = torch.tensor([[[1.0, -2], [3, 0]], [[-1, 1], [-5, 4]]])
    assert ocs.largest(w).tolist() == [2, 5]
    assert ocs.largest(w, axis=-1).tolist() == [5, 4]


def test_the_largest_piece_is_split_each_time_by_hand():
    # 8 -> 4, 4; then 5 -> 2.5, 2.5; then both fours.
    pieces = ocs.choose([1.0, 8.0, 5.0], 4)
    assert pieces == [1, 2, 1, 3]
    assert ocs.source(pieces, 3).tolist() == [0, 1, 2, 1, 2, 1, 1]
    parts = ocs.split(torch.tensor([[1.0, 8.0, -5.0]]), pieces)
    assert parts.tolist() == [[1, 2, -2.5, 2, -2.5, 2, 2]]


@given(
    st.lists(st.floats(0.01, 100), min_size=1, max_size=8),
    st.integers(0, 12),
)
def test_as_many_splits_as_needed_reach_the_target_and_one_fewer_does_not(maxima, splits):
    w = torch.tensor([maxima], dtype=torch.float64)
    target = ocs.largest(ocs.split(w, ocs.choose(maxima, splits))).max().item()
    fewest = ocs.needed(maxima, target)
    assert fewest <= splits
    reached = ocs.largest(ocs.split(w, ocs.choose(maxima, fewest))).max()
    assert reached <= target
    if fewest:
        short = ocs.largest(ocs.split(w, ocs.choose(maxima, fewest - 1))).max()
        assert short > target


def test_halving_the_range_takes_a_split_for_each_channel_above_half():
    maxima = np.random.default_rng(2).laplace(size=50)
    maxima = np.abs(maxima)
    top = maxima.max()
    assert ocs.needed(maxima, top / 2) == np.count_nonzero(maxima > top / 2)


def test_an_expand_ratio_adds_its_share_of_channels_rounded_up():
    assert [ocs.count(r, 384) for r in (0, 0.001, 0.01, 0.25)] == [0, 1, 4, 96]


@pytest.mark.parametrize("aware", [True, False])
def test_one_call_splits_quantizes_and_merges(aware):
    w = torch.from_numpy(np.random.default_rng(3).normal(size=(6, 5, 2)))
    pieces = ocs.choose(ocs.largest(w), 3)
    found = ocs.fake_quantize(w, pieces, lambda v: affine.choose_qparams(v, 3), aware=aware)
    scale = ocs.split(w, pieces).abs().max() / 3
    expected = ocs.split(w, pieces, scale if aware else None) / scale
    expected = scale * ocs.merge(expected.round().clamp(-3, 3), pieces)
    # Codes up to 12 times the scale, which both round once.
    assert (found - expected).abs().max() <= 1e-14
    if aware:
        assert (found - w).abs().max() <= scale / 2 * (1 + 1e-12)
    else:
        assert (found - w).abs().max() > scale / 2


def test_splits_of_inputs_are_quantized_along_their_last_axis():
    x = torch.from_numpy(np.random.default_rng(4).normal(size=(4, 7, 3)))
    pieces = ocs.choose(ocs.largest(x, axis=-1), 2)
    found = ocs.fake_quantize(x, pieces, lambda v: affine.choose_qparams(v, 4), axis=-1)
    columns = x.reshape(28, 3)
    expected = ocs.fake_quantize(columns, pieces, lambda v: affine.choose_qparams(v, 4))
    assert torch.equal(found.reshape(28, 3), expected)


def test_what_cannot_be_split_is_refused_with_what_would_work():
    with pytest.raises(ValueError, match=r"ratio=-0.1 is negative; 0.01 to 0.05"):
        ocs.count(-0.1, 4)
    with pytest.raises(ValueError, match=r"ratio=nan"):
        ocs.count(math.nan, 4)
    with pytest.raises(ValueError, match=r"splits=-1 is negative"):
        ocs.choose([1.0], -1)
    with pytest.raises(ValueError, match=r"target=0 is never reached"):
        ocs.needed([1.0], 0)
    with pytest.raises(ValueError, match=r"piece 3 does not exist among 3 channels"):
        ocs.split(torch.ones(2, 3), [3])
