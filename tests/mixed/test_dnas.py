import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from qbook.mixed import dnas, supernet

THETA = torch.tensor([0.3, -1.2, 1.5, 0.0], dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_noise_is_gumbel_distributed():
    noise = dnas.gumbel((5000,), generator())
    assert noise.dtype == torch.float64
    # One fixed seed; a correct sampler fails one seed in a thousand.
    assert stats.kstest(noise.numpy(), stats.gumbel_r.cdf).pvalue >= 1e-3


def test_the_largest_of_logit_plus_gumbel_is_k_with_the_softmax_probability():
    """Quadrature of the density of theta_k + g at t times the chance that all others lie below."""
    theta = THETA.numpy()
    for k, expected in enumerate(torch.softmax(THETA, 0).tolist()):

        def density(t, k=k):
            others = np.delete(theta, k)
            return stats.gumbel_r.pdf(t - theta[k]) * stats.gumbel_r.cdf(t - others).prod()

        # quad's own tolerance is 1.5e-8; the tails cut off hold below e^-25.
        assert abs(integrate.quad(density, -6, 30)[0] - expected) <= 1e-7


def test_samples_have_the_softmax_frequencies():
    n = 20_000
    draws = dnas.sample(THETA.expand(n, 4), generator())
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    assert bool((draws.sum(-1) == 1).all())
    expected = n * torch.softmax(THETA, 0).numpy()
    # One fixed seed; a correct sampler fails one seed in a thousand.
    assert stats.chisquare(draws.sum(0).numpy(), expected).pvalue >= 1e-3


@pytest.mark.parametrize("temperature", [0.3, 1.0, 7.0])
def test_relaxed_shares_equal_torch_on_the_same_noise(temperature):
    theta = THETA.expand(3, 4)
    torch.manual_seed(5)
    noise = -torch.empty_like(theta, memory_format=torch.contiguous_format).exponential_().log()
    torch.manual_seed(5)
    theirs = torch.nn.functional.gumbel_softmax(theta, temperature)
    ours = dnas.relax(theta, noise, temperature)
    # Both exponentiate numbers below 50 in float64.
    assert bool(((ours - theirs).abs() <= 1e-13).all())


def test_towards_temperature_zero_shares_are_the_sample_and_towards_infinity_equal():
    theta = THETA.expand(200, 4)
    noise = dnas.gumbel(theta.shape, generator(3))
    drawn = dnas.sample(theta, generator(3))
    gap = (theta + noise).topk(2).values
    gap = gap[:, 0] - gap[:, 1]
    shares = dnas.relax(theta, noise, 1e-3)
    # The others hold at most 3 exp(-gap / temperature).
    bound = 3 * torch.exp(-gap / 1e-3) + 1e-15
    assert bool(((shares - drawn).abs().amax(-1) <= bound).all())
    # Differences of a few units over 1e6.
    assert bool(((dnas.relax(theta, noise, 1e6) - 0.25).abs() <= 1e-5).all())


def test_the_largest_share_is_the_sample_at_every_temperature():
    theta = THETA.expand(500, 4)
    noise, drawn = dnas.gumbel(theta.shape, generator(4)), dnas.sample(theta, generator(4))
    for temperature in (0.1, 1, 30):
        largest = dnas.relax(theta, noise, temperature).argmax(-1)
        assert torch.equal(largest, drawn.argmax(-1))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_gradients_of_the_shares_are_the_softmax_jacobian_over_the_temperature(temperature):
    noise = dnas.gumbel((4,), generator(1))
    jacobian = torch.autograd.functional.jacobian(
        lambda theta: dnas.relax(theta, noise, temperature), THETA
    )
    m = dnas.relax(THETA, noise, temperature)
    expected = (torch.diag(m) - torch.outer(m, m)) / temperature
    # Products of numbers up to 1, divided by 0.5 at the least.
    assert bool(((jacobian - expected).abs() <= 1e-15).all())


def test_size_by_hand_and_its_gradient():
    one_hot = torch.tensor([[0.0, 1, 0], [1, 0, 0]], dtype=torch.float64)
    # 100 weights of 4 bits and 10 of 2.
    assert dnas.size(one_hot, [100, 10], (2, 4, 8)).item() == 420
    theta = torch.tensor([[0.1, -0.4, 0.9], [1.0, 0.0, 0.5]], dtype=torch.float64)
    theta.requires_grad_()
    dnas.size(torch.softmax(theta, -1), [100, 10], (2, 4, 8)).backward()
    p, bits = torch.softmax(theta.detach(), -1), torch.tensor([2.0, 4, 8], dtype=torch.float64)
    mean = supernet.mean_widths(p, (2, 4, 8))
    expected = torch.tensor([[100.0], [10]]) * p * (bits - mean[:, None])
    # Sums of a few numbers up to 800.
    assert bool(((theta.grad - expected).abs() <= 1e-12).all())


def test_the_mean_loss_of_a_draw_is_linear_in_each_layers_odds_and_least_at_an_assignment():
    rng = np.random.default_rng(0)
    task = torch.from_numpy(rng.uniform(0.1, 2, size=(3, 3, 3)))
    draws = list(itertools.product(range(3), repeat=3))
    hot = torch.eye(3, dtype=torch.float64)
    loss = {
        a: dnas.loss(task[a], dnas.size(hot[list(a)], [9, 5, 2], (2, 4, 8)), 1, 2) for a in draws
    }

    def mean(p):
        return sum(loss[a] * math.prod(p[layer][k] for layer, k in enumerate(a)) for a in draws)

    for _ in range(100):
        p = torch.from_numpy(rng.dirichlet(np.ones(3) / 2, size=3))
        ends = sum(p[1][k] * mean([p[0], hot[k], p[2]]) for k in range(3))
        # 27 products of losses below 60.
        assert abs(mean(p) - ends) <= 1e-12
        assert mean(p) >= min(loss.values()) - 1e-12


def test_loss_is_the_papers_product_and_beta_moves_no_minimum():
    task, cost = torch.tensor([0.9, 0.5, 0.4]), torch.tensor([20.0, 400.0, 8000.0])
    for beta, gamma in itertools.product((0.1, 2.0), (0.0, 0.6, 3.0)):
        values = [dnas.loss(t, c, beta, gamma) for t, c in zip(task, cost, strict=True)]
        by_hand = [
            float(t) * beta * math.log(c) ** gamma for t, c in zip(task, cost.tolist(), strict=True)
        ]
        # float32, numbers below 1400.
        assert np.allclose(values, by_hand, rtol=1e-6)
        assert np.argmin(values) == {0.0: 2, 0.6: 1, 3.0: 0}[gamma]


def test_a_cost_up_to_one_and_a_temperature_of_zero_are_refused():
    for cost in (1.0, 0.5, float("nan")):
        with pytest.raises(ValueError, match="smaller unit"):
            dnas.loss(torch.tensor(1.0), torch.tensor(cost), 1, 0.5)
    for temperature in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="must be positive"):
            dnas.relax(THETA, THETA, temperature)


def test_the_temperature_falls_by_a_constant_factor():
    # 5 exp(-0.1 * 10) = 5 / e
    assert dnas.anneal(0, 5.0, 0.1) == 5.0
    assert abs(dnas.anneal(10, 5.0, 0.1) - 5 / math.e) <= 1e-14


def test_draws_come_from_the_given_generator_alone():
    state = torch.random.get_rng_state()
    first, again = (dnas.sample(THETA.expand(30, 4), generator(7)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(THETA, torch.tensor([0.3, -1.2, 1.5, 0.0], dtype=torch.float64))
