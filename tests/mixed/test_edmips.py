import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from qbook.mixed import edmips, supernet


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def test_the_composite_layer_is_the_weighted_sum_of_all_pairs_of_layers():
    w, x = supernet.copies(normal(5, 7), (2, 4, 8)), supernet.copies(normal(3, 7, seed=1), (3, 6))
    of_w, of_x = normal(3, seed=2), normal(2, seed=3)
    composite = edmips.composite(x, of_x) @ edmips.composite(w, of_w).T
    p, q = torch.softmax(of_w, 0), torch.softmax(of_x, 0)
    parallel = sum(
        p[i] * q[j] * F.linear(x[j], w[i]) for i, j in itertools.product(range(3), range(2))
    )
    # 7 products of numbers below 4, in another order.
    assert bool(((composite - parallel).abs() <= 1e-13).all())


def test_the_composite_convolution_is_the_weighted_sum_of_convolutions():
    kernels = supernet.copies(normal(4, 3 * 9), (2, 3)).reshape(2, 4, 3, 3, 3)
    alpha, x = normal(2, seed=1), normal(2, 3, 6, 5, seed=2)
    one = F.conv2d(x, edmips.composite(kernels, alpha), stride=2, padding=1)
    p = torch.softmax(alpha, 0)
    two = p[0] * F.conv2d(x, kernels[0], stride=2, padding=1)
    two = two + p[1] * F.conv2d(x, kernels[1], stride=2, padding=1)
    # 27 products of numbers below 4, in another order.
    assert bool(((one - two).abs() <= 1e-13).all())


def test_the_gradient_of_a_logit_is_its_branchs_lead_over_the_mixture():
    branches, g = supernet.copies(normal(4, 6), (2, 4, 8)), normal(4, 6, seed=1)
    alpha = normal(3, seed=2).requires_grad_()
    mixture = edmips.composite(branches, alpha)
    (g * mixture).sum().backward()
    p = torch.softmax(alpha.detach(), 0)
    lead = ((branches - mixture.detach()) * g).sum((1, 2))
    # 24 products of numbers below 8.
    assert bool(((alpha.grad - p * lead).abs() <= 1e-13).all())


def test_bit_operations_by_hand_and_as_the_mean_over_all_pairs():
    w = torch.tensor([[0.0, 1.0], [0.5, 0.5]], dtype=torch.float64)
    x = torch.tensor([[1.0, 0.0], [0.25, 0.75]], dtype=torch.float64)
    # 100 * 4 * 2 + 10 * 3 * (0.25 * 2 + 0.75 * 8)
    assert edmips.bit_operations([100, 10], w, (2, 4), x, (2, 8)).item() == 995
    pairs = sum(
        macs * w[layer, i] * x[layer, j] * (2, 4)[i] * (2, 8)[j]
        for layer, macs in enumerate((100, 10))
        for i in range(2)
        for j in range(2)
    )
    assert pairs.item() == 995
    # Weights only: 100 of 4 bits, 10 of 3 on average.
    assert edmips.bit_operations([100, 10], w, (2, 4)).item() == 430


def squared_error(branches, w, p):
    return ((supernet.mix(branches, p) - w) ** 2).mean()


@pytest.mark.parametrize("widths", [(2, 3), (2, 4), (3, 8)])
@pytest.mark.parametrize("share_of_the_switch", [0.0, 0.5, 0.95, 1.05, 2.0])
def test_of_two_widths_the_larger_share_is_the_better_choice(widths, share_of_the_switch):
    w = normal(9, 31)
    branches = supernet.copies(w, widths)
    low, high = (((branch - w) ** 2).mean() for branch in branches)
    price = share_of_the_switch * (low - high) / (widths[1] - widths[0])
    grid = torch.linspace(0, 1, 2001, dtype=torch.float64)
    values = [
        squared_error(branches, w, torch.stack([p, 1 - p]))
        + price * (p * widths[0] + (1 - p) * widths[1])
        for p in grid
    ]
    share_of_low = grid[torch.stack(values).argmin()].item()
    assert (share_of_low > 0.5) == (share_of_the_switch > 1)
    # Between the prices at which one width would be best, the mixture keeps both.
    assert 0 < share_of_low
    assert share_of_low < 1 or share_of_the_switch == 2


def test_of_three_widths_the_largest_share_may_be_the_worse_choice():
    """Errors without correlation, mean squares 1, 0.1 and 0.01, price 0.022 a bit."""
    errors, widths = torch.tensor([1.0, 0.1, 0.01], dtype=torch.float64), (2, 4, 8)
    cost = 0.022 * torch.tensor(widths, dtype=torch.float64)
    grid = [
        torch.tensor([i, j, 500 - i - j], dtype=torch.float64) / 500
        for i in range(501)
        for j in range(501 - i)
    ]
    p = min(grid, key=lambda p: (p**2 * errors + p * cost).sum().item())
    assert widths[(errors + cost).argmin()] == 8
    assert supernet.choose(p.log()[None], widths) == [4]


def test_without_a_price_the_mixture_is_better_than_every_width_and_the_widest_wins():
    w = normal(40, 50)
    widths = (2, 4, 8)
    branches = supernet.copies(w, widths)
    alpha = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([alpha], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = ((edmips.composite(branches, alpha) - w) ** 2).mean() * 1000
        value.backward()
        return value

    optimizer.step(closure)
    error = squared_error(branches, w, edmips.shares(alpha.detach()))
    assert supernet.choose(alpha[None], widths) == [8]
    assert error < min(((branch - w) ** 2).mean() for branch in branches)


def test_loss_adds_the_price_and_equal_logits_are_equal_shares():
    assert edmips.loss(torch.tensor(0.5), torch.tensor(100.0), 0.25).item() == 25.5
    first = torch.full((2, 4), edmips.FIRST_LOGIT)
    assert torch.equal(edmips.shares(first), torch.full((2, 4), 0.25))
