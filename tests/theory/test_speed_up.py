"""Oracles: the crossing by search, the laws of the book's theorem, numbers worked by hand."""

import math

import numpy as np
import pytest

from qbook import gpus, roofline
from qbook.theory import speed_up
from qbook.theory.speed_up import Format

W4 = Format(4.125, 16, "float16")
W8A8 = Format(8, 8, "int8")
SHAPES = [(8192, 8192), (4096, 14336), (1000, 30), (300, 300)]


def compute_bound(layer, samples, in_, out, machine):
    operations = 2 * samples * in_ * out
    moved = in_ * out * layer.weight_bits + samples * (in_ * layer.input_bits + out * 16)
    return operations / machine.peak[layer.dtype] >= moved / 8 / machine.bandwidth


@pytest.mark.parametrize("machine", gpus.ALL, ids=lambda machine: machine.name)
@pytest.mark.parametrize("layer", [speed_up.W16A16, W4, W8A8], ids=str)
@pytest.mark.parametrize(("in_", "out"), SHAPES)
def test_the_crossing_is_where_a_search_finds_it(machine, layer, in_, out):
    found = speed_up.crossing(layer, in_, out, machine)
    samples = [m for m in range(1, 5000) if compute_bound(layer, m, in_, out, machine)]
    if samples:
        assert samples[0] == math.ceil(found)
        assert samples == list(range(samples[0], 5000))
    else:
        assert found > 4999


def test_a_narrow_layer_never_becomes_compute_bound():
    # 2 * 30 * 1000 operations for 2 * 1030 bytes: fewer than the 206 for each byte of an H200.
    assert speed_up.crossing(speed_up.W16A16, 1000, 30, gpus.H200) == math.inf


@pytest.mark.parametrize("machine", gpus.ALL, ids=lambda machine: machine.name)
@pytest.mark.parametrize("bits", [2.25, 4.125, 8, 15])
@pytest.mark.parametrize(("in_", "out"), SHAPES)
def test_weight_only_falls_to_one_at_the_crossing_and_not_before(machine, bits, in_, out):
    layer = Format(bits, 16, "float16")
    gain = np.array([speed_up.speed_up(layer, m, in_, out, machine) for m in range(1, 3000)])
    # Rounding of a dozen float64 operations.
    assert (np.diff(gain) <= 1e-13).all()
    end = speed_up.crossing(speed_up.W16A16, in_, out, machine)
    after = np.arange(1, 3000) >= end
    assert (np.abs(gain[after] - 1) <= 1e-13).all()
    assert (gain[~after] > 1).all()
    assert gain[0] < 16 / bits


@pytest.mark.parametrize("samples", [1, 16, 300, 5000])
def test_everything_in_eight_bits_wins_at_any_number_of_samples(samples):
    # Bytes of the weights and of the input halve, and so does the time of the arithmetic; the
    # result, 1 / 8192 of the weights for a sample, does not.
    gain = speed_up.speed_up(W8A8, samples, 8192, 8192, gpus.H200)
    assert 1.9 < gain <= 2.0002


def test_by_hand_on_the_data_sheet_of_an_h200():
    # 8192^2 weights: 134.2 MB take 27.96 us at 4.8 TB/s, and 32 KB of x and y 0.007 us.
    found = speed_up.seconds(speed_up.W16A16, 1, 8192, 8192, gpus.H200)
    assert abs(found * 1e6 - (2 * 8192**2 + 4 * 8192) / 4.8e6) <= 1e-9
    # 206.125 / (1 - 206.125 * 2 / 8192) = 217.04.
    assert abs(speed_up.crossing(speed_up.W16A16, 8192, 8192, gpus.H200) - 217.05) <= 0.01


def test_overhead_that_stays_takes_its_share():
    bare = speed_up.speed_up(W4, 1, 8192, 8192, gpus.H200)
    assert speed_up.speed_up(W4, 1, 8192, 8192, gpus.H200, overhead=1.0) == pytest.approx(1, 1e-4)
    before = speed_up.seconds(speed_up.W16A16, 1, 8192, 8192, gpus.H200)
    after = before / bare
    found = speed_up.speed_up(W4, 1, 8192, 8192, gpus.H200, overhead=before)
    # (before + before) / (before + after), a handful of roundings.
    assert abs(found - 2 * before / (before + after)) <= 1e-12


def test_the_bound_is_the_roofline_of_the_layer():
    moved = roofline.matmul_bytes(7, 50, 30, weight_bits=4.125)
    rate = roofline.attainable(
        2 * 7 * 50 * 30 / moved, peak=gpus.T4.peak["float16"], bandwidth=gpus.T4.bandwidth
    )
    found = speed_up.seconds(W4, 7, 50, 30, gpus.T4)
    assert abs(found * rate / (2 * 7 * 50 * 30) - 1) <= 1e-14
