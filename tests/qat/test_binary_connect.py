import math

import numpy as np
import pytest
import torch

from qbook.qat import binary_connect

W = torch.tensor([-2.0, -1.0, -0.5, -0.0, 0.0, 0.25, 1.0, 3.0], dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_is_a_plus_and_there_are_two_values(dtype):
    assert binary_connect.signs(W.to(dtype)).tolist() == [-1, -1, -1, 1, 1, 1, 1, 1]
    assert binary_connect.signs(W.to(dtype)).dtype == dtype
    # What torch.sign would give.
    assert 0 in torch.sign(W).tolist()


def test_the_probability_of_a_plus_by_hand():
    assert binary_connect.hard_sigmoid(W).tolist() == [0, 0, 0.25, 0.5, 0.5, 0.625, 1, 1]


@pytest.mark.parametrize("count", [1, 7, 64])
def test_the_mean_over_an_even_grid_is_the_clipped_weight(count):
    # Midpoints of 2^-k cells: for weights that are multiples of 1 / count the share of points
    # below (w + 1) / 2 is exact, so that the mean is w and not nearly w.
    w = torch.arange(-2 * count, 2 * count + 1).double() / count
    uniform = (torch.arange(2 * count).double() + 0.5) / (2 * count)
    total = torch.zeros_like(w)
    for u in uniform:
        total += binary_connect.binarize_stochastic(w, torch.full_like(w, u))
    # Whole numbers until the division, which rounds once on both sides.
    assert bool(((total / (2 * count) - w.clamp(-1, 1)).abs() <= 2.0**-52).all())


def test_random_signs_have_the_weights_mean_and_the_variance_of_a_coin():
    rng = np.random.default_rng(0)
    samples, w = 40_000, torch.tensor([-1.0, -0.6, 0.0, 0.3, 1.0]).double()
    uniform = torch.from_numpy(rng.random((samples, 5)))
    drawn = binary_connect.binarize_stochastic(w.expand(samples, 5), uniform)
    deviation = torch.sqrt(1 - w**2)
    # Five standard deviations of a mean of 40 000; exact for the certain ones.
    assert bool(((drawn.mean(0) - w).abs() <= 5 * deviation / math.sqrt(samples) + 1e-12).all())
    # Var = 1 - w^2; a sample variance is 1 - mean^2, off by at most 2 |w| times the mean's error.
    assert bool(((drawn.var(0) - deviation**2).abs() <= 10 / math.sqrt(samples)).all())


@pytest.mark.parametrize("shape", [(), (1,), (3, 7), (2, 3, 3, 3)])
def test_the_gradient_goes_straight_through_even_beyond_one(shape):
    rng = np.random.default_rng(1)
    grad = torch.from_numpy(np.asarray(rng.normal(size=shape)))
    uniform = torch.from_numpy(np.asarray(rng.random(shape)))
    for binarize in (
        binary_connect.binarize,
        lambda w: binary_connect.binarize_stochastic(w, uniform),
    ):
        w = torch.from_numpy(np.asarray(3 * rng.normal(size=shape))).requires_grad_()
        binarize(w).backward(grad)
        assert torch.equal(w.grad, grad)


def test_a_step_is_clipped_and_carries_no_gradient():
    w = W.clone().requires_grad_()
    clipped = binary_connect.clip(w)
    assert clipped.tolist() == [-1, -1, -0.5, 0, 0, 0.25, 1, 1]
    assert not clipped.requires_grad
    assert torch.equal(w.detach(), W)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        binary_connect.signs(torch.tensor([0.0, torch.nan]))
    with pytest.raises(ValueError, match="one per weight"):
        binary_connect.binarize_stochastic(torch.zeros(3), torch.zeros(1))
    for bad in (-0.1, 1.0, torch.nan):
        with pytest.raises(ValueError, match=r"leaves \[0, 1\)"):
            binary_connect.binarize_stochastic(torch.zeros(2), torch.tensor([0.5, bad]))


def test_the_ends_of_the_range_are_certain_whatever_is_drawn():
    w = torch.tensor([-1.0, 1.0])
    for u in (0.0, 0.5, 1 - 2.0**-24):
        assert binary_connect.binarize_stochastic(w, torch.full((2,), u)).tolist() == [-1, 1]
