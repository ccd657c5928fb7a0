import numpy as np
import pytest
import torch

from qbook import affine
from qbook.mixed import supernet
from qbook.qat import lsq


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("widths", [(2,), (2, 4, 8), (3, 5)])
def test_copies_are_the_weight_on_each_widths_grid_and_pass_gradients_to_it(widths):
    w = normal(3, 7).requires_grad_()
    branches = supernet.copies(w, widths)
    assert branches.shape == (len(widths), 3, 7)
    for branch, bits in zip(branches, widths, strict=True):
        qparams = lsq.qparams(lsq.initial_scale(w, bits), bits)
        assert torch.equal(branch, affine.fake_quantize(w.detach(), qparams))
    branches.sum().backward()
    inside = [lsq.slopes(w, lsq.initial_scale(w, bits), bits)[0] for bits in widths]
    assert torch.equal(w.grad, sum(inside))


def test_a_mixture_has_more_levels_than_its_parts():
    branches = supernet.copies(normal(50, 40), (2, 3))
    mixture = supernet.mix(branches, torch.tensor([0.37, 0.63], dtype=torch.float64))
    levels = [branch.unique().numel() for branch in branches]
    assert levels == [4, 8]
    # Thresholds of both: each of the 3 + 7 starts a level, unless two coincide (0.5 does not).
    assert mixture.unique().numel() == 11


def test_mix_is_the_weighted_sum_and_one_hot_shares_pick_a_branch():
    branches = normal(3, 2, 5)
    shares = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    expected = branches[0] / 2 + (branches[1] + branches[2]) / 4
    # Powers of two: only the additions round, at a size below 4.
    assert bool(((supernet.mix(branches, shares) - expected).abs() <= 2.0**-50).all())
    assert torch.equal(supernet.mix(branches, torch.eye(3, dtype=torch.float64)[2]), branches[2])


def test_mean_widths_by_hand_and_choose_takes_the_largest_logit():
    shares = torch.tensor([[1.0, 0, 0], [0.5, 0.25, 0.25]], dtype=torch.float64)
    assert supernet.mean_widths(shares, (2, 4, 8)).tolist() == [2, 4]
    assert supernet.choose(torch.tensor([[0.1, 3.0, 0.2], [-1, -2, -0.5]]), (2, 4, 8)) == [4, 8]


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one share for each branch"):
        supernet.mix(normal(3, 2, 2), normal(2))
    with pytest.raises(ValueError, match="share for each width"):
        supernet.mean_widths(normal(4, 3), (2, 4))
    with pytest.raises(ValueError, match="bits=17"):
        supernet.copies(normal(2, 2), (17,))


def test_arguments_stay_as_they_are():
    w, shares = normal(3, 4), torch.tensor([0.2, 0.8], dtype=torch.float64)
    copies = w.clone(), shares.clone()
    supernet.mix(supernet.copies(w, (2, 4)), shares), supernet.mean_widths(shares, (2, 4))
    assert torch.equal(w, copies[0])
    assert torch.equal(shares, copies[1])
