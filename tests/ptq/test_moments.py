import numpy as np
import pytest
import torch

from qbook import affine
from qbook.ptq import moments


@pytest.mark.parametrize("shape", [(1, 2), (3, 7), (4, 5, 3, 3)])
def test_every_output_channel_gets_its_size_back_and_its_mean_times_xi(shape):
    w = np.random.default_rng(0).laplace(1, size=shape)
    w_hat = affine.fake_quantize(w, affine.qparams_from_range(-1.5, 1.5, 3))
    found = moments.correct(w, w_hat)
    for row, original, rounded in zip(found, w, w_hat, strict=True):
        xi = np.std(original) / np.std(rounded) if np.std(rounded) else 1.0
        # Sums of at most 45 numbers below 10.
        assert abs(np.mean(row) - xi * np.mean(original)) <= 1e-13
        if np.std(rounded):
            assert abs(np.std(row) - np.std(original)) <= 1e-13


def test_without_resizing_the_mean_is_restored_exactly_and_steps_stay():
    w = np.random.default_rng(1).normal(0.3, size=(6, 40))
    qparams = affine.choose_qparams(w, 3)
    w_hat = affine.fake_quantize(w, qparams)
    found = moments.correct(w, w_hat, resize=False)
    assert np.abs(found.mean(1) - w.mean(1)).max() <= 1e-14
    assert np.abs((found - w_hat) - (found - w_hat)[:, :1]).max() <= 1e-14


def test_by_hand():
    # mu = 2 - 1 = 1; deviations 2 and 1 long: xi = 2.
    w = torch.tensor([[0.0, 4.0]])
    w_hat = torch.tensor([[0.0, 2.0]])
    assert moments.correct(w, w_hat).tolist() == [[2, 6]]
    assert moments.correct(w, w_hat, resize=False).tolist() == [[1, 3]]


def test_a_channel_rounded_to_zero_gets_its_mean():
    w = torch.tensor([[0.1, 0.3], [1.0, -1.0]])
    found = moments.correct(w, torch.tensor([[0.0, 0.0], [1.0, -1.0]]))
    # 0.1 + 0.3 rounds in float32.
    assert (found - torch.tensor([[0.2, 0.2], [1.0, -1.0]])).abs().max() <= 1e-7


def test_arrays_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"w \(2, 3\) and w_hat \(3, 2\) differ; pass w and its"):
        moments.correct(np.ones((2, 3)), np.ones((3, 2)))
    assert moments.correct(np.ones((0, 3)), np.ones((0, 3))).shape == (0, 3)
