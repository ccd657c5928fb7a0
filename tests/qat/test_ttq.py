import numpy as np
import pytest
import torch

from qbook.qat import ttq


def leaves(seed, shape=(4, 7), level_shape=()):
    rng = np.random.default_rng(seed)
    w = torch.from_numpy(rng.normal(size=shape)).requires_grad_()
    positive, negative = (
        torch.full(level_shape, value, dtype=torch.float64, requires_grad=True)
        for value in (0.8, 1.3)
    )
    return w, positive, negative


def weighted(values):
    return (values * torch.linspace(-2, 3, values.numel()).reshape(values.shape).double()).sum()


@pytest.mark.parametrize("shape", [(), (1,), (4, 1)])
def test_levels_get_the_gradients_that_autograd_gives_the_formula(shape):
    w, positive, negative = leaves(0, level_shape=shape)
    at = ttq.threshold(w, t=0.2)
    above, below = (w.detach() > at).double(), (w.detach() < -at).double()
    assert 0 < above.sum() + below.sum() < w.numel()
    formula = positive * above - negative * below
    expected = torch.autograd.grad(weighted(formula), (positive, negative))
    values = ttq.fake_quantize(w, positive, negative, at)
    assert torch.equal(values, formula)
    found = torch.autograd.grad(weighted(values), (positive, negative))
    for a, b in zip(found, expected, strict=True):
        assert a.shape == shape
        # Two orders of at most 28 additions of numbers below 3.
        assert bool(((a - b).abs() <= 1e-13).all())


def test_latent_weights_get_the_papers_three_factors():
    w = torch.tensor([-2.0, -0.3, 0.0, 0.3, 0.31, 2.0], requires_grad=True)
    positive, negative = torch.tensor(0.5), torch.tensor(4.0)
    ttq.fake_quantize(w, positive, negative, torch.tensor(0.3)).sum().backward()
    assert w.grad.tolist() == [4.0, 1.0, 1.0, 1.0, 0.5, 0.5]


def test_a_gradient_step_on_either_level_lowers_the_loss():
    # The paper's printed sign would raise it by way of W_n.
    w, positive, negative = leaves(1)
    at = ttq.threshold(w)
    target = torch.where(w > 0, 2.0, -2.0).detach()

    def loss(p, n):
        return ((ttq.fake_quantize(w, p, n, at) - target) ** 2).mean()

    start = loss(positive, negative)
    to_positive, to_negative = torch.autograd.grad(start, (positive, negative))
    assert loss(positive - 0.1 * to_positive, negative) < start
    assert loss(positive, negative - 0.1 * to_negative) < start
    assert loss(positive, negative + 0.1 * to_negative) > start


def test_first_levels_are_the_means_beyond_the_threshold():
    w = torch.tensor([3.0, 1.0, 0.1, -0.1, -2.0, -4.0, -6.0])
    positive, negative = ttq.initial_levels(w, ttq.threshold(w, t=0.1))
    assert (positive.item(), negative.item()) == (2.0, 4.0)
    positive, negative = ttq.initial_levels(torch.tensor([0.0, -1.0]), torch.tensor(0.5))
    assert (positive.item(), negative.item()) == (1.0, 1.0)


def test_the_threshold_is_a_share_of_the_largest_weight():
    # 0.05 * 4 in float32, half an ulp of 0.2.
    assert abs(ttq.threshold(torch.tensor([1.0, -4.0])).item() - 0.2) <= 2.0**-26


@pytest.mark.parametrize("level", [0.0, -1.0, float("nan")])
def test_a_level_that_is_not_positive_is_refused(level):
    w, positive, _ = leaves(2)
    with pytest.raises(ValueError, match="negative="):
        ttq.fake_quantize(w, positive, torch.tensor(level), ttq.threshold(w))
    with pytest.raises(ValueError, match="positive="):
        ttq.fake_quantize(w, torch.tensor(level), positive, ttq.threshold(w))


def test_arguments_stay_as_they_are():
    w, positive, negative = leaves(3)
    copy = w.detach().clone()
    ttq.fake_quantize(w, positive, negative, ttq.threshold(w))
    assert torch.equal(w, copy)
