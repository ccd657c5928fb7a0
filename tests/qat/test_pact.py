import numpy as np
import pytest
import torch

from qbook import affine
from qbook.qat import lsq, pact


def around(alpha, bits, dtype=torch.float64):
    """Every quarter step from a range below zero to a range above alpha, and beside each."""
    steps = 2**bits - 1
    grid = alpha * torch.arange(-4 * steps, 8 * steps + 1, dtype=dtype) / (4 * steps)
    edges = torch.tensor([0.0, alpha], dtype=dtype)
    ends = (torch.tensor(end, dtype=dtype) for end in (-1e9, 1e9))
    return torch.cat([grid, edges, *(torch.nextafter(edges, end) for end in ends)])


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("alpha", [0.25, 1.3, 6.0])
def test_slopes_are_the_papers_cases_in_every_region_and_on_its_edges(bits, alpha):
    x = around(alpha, bits)
    level = torch.tensor(alpha, dtype=torch.float64)
    to_x, to_alpha = pact.slopes(x, level)
    assert to_x.tolist() == [1.0 if 0 <= v < alpha else 0.0 for v in x.tolist()]
    assert to_alpha.tolist() == [1.0 if v >= alpha else 0.0 for v in x.tolist()]
    assert set(zip(to_x.tolist(), to_alpha.tolist(), strict=True)) == {(0, 0), (1, 0), (0, 1)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_forward_is_the_affine_fake_quantizer_and_backward_sums_the_slopes(bits, dtype):
    alpha = torch.tensor(1.3, dtype=dtype, requires_grad=True)
    x = around(1.3, bits, dtype).requires_grad_()
    weights = torch.linspace(-2, 3, x.numel(), dtype=dtype)
    value = pact.fake_quantize(x, alpha, bits)
    (value * weights).sum().backward()
    assert torch.equal(value.detach(), affine.fake_quantize(x.detach(), pact.qparams(alpha, bits)))
    to_x, to_alpha = pact.slopes(x, alpha)
    assert torch.equal(x.grad, weights * to_x)
    assert torch.equal(alpha.grad, (weights * to_alpha).sum())


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_values_are_those_of_the_papers_two_equations(bits):
    # Off the ties, where the two roundings of x * (1 / scale) could decide.
    x = torch.from_numpy(np.random.default_rng(bits).normal(0.5, 1, 5000))
    alpha, steps = 1.3, 2**bits - 1
    y = 0.5 * (x.abs() - (x - alpha).abs() + alpha)
    expected = torch.round(y * steps / alpha) * alpha / steps
    value = pact.fake_quantize(x, torch.tensor(alpha, dtype=torch.float64), bits)
    # float64: a handful of roundings at a size of 2.
    assert bool(((value - expected).abs() <= 1e-14).all())
    assert value.min() == 0
    assert abs(value.max() - alpha) <= 1e-15


def test_slope_of_alpha_is_the_derivative_of_the_mean_output_under_dither():
    # The mean over a dither of one step is clip(x, 0, alpha): differentiable but at alpha.
    n, steps = 4096, 3
    t = (torch.arange(n).double() + 0.5) / n - 0.5
    x = torch.tensor([-0.9, -0.3, 0.1, 0.5, 0.9, 1.6, 3.0], dtype=torch.float64)

    def mean(alpha):
        qparams = pact.qparams(torch.tensor(alpha, dtype=torch.float64), 2)
        return affine.fake_quantize(x[:, None] + alpha / steps * t, qparams).mean(axis=1)

    numeric = (mean(1.32) - mean(1.28)) / 0.04
    _, to_alpha = pact.slopes(x, torch.tensor(1.3, dtype=torch.float64))
    # Half a step / n in each mean: 0.43 / 4096 / 0.04 = 2.7e-3.
    assert bool(((numeric - to_alpha).abs() <= 5e-3).all())


def test_on_squared_error_alpha_never_shrinks_and_a_learned_step_does():
    x = torch.from_numpy(np.abs(np.random.default_rng(0).normal(size=4000)))
    for value in (0.5, 1.5, 3.0, x.max().item(), 9.0):
        alpha = torch.tensor(value, dtype=torch.float64).requires_grad_()
        ((pact.fake_quantize(x, alpha, 3) - x) ** 2).mean().backward()
        assert alpha.grad <= 0
        assert (alpha.grad == 0) == (value >= x.max())
    scale = torch.tensor(9.0 / 7, dtype=torch.float64).requires_grad_()
    ((lsq.fake_quantize(x, scale, 3, signed=False) - x) ** 2).mean().backward()
    assert scale.grad > 0


def test_an_alpha_for_each_channel_gets_the_sum_over_its_channel():
    x = torch.from_numpy(np.random.default_rng(0).normal(1, 1, size=(5, 3)))
    alpha = torch.tensor([[0.5, 1.0, 2.0]], dtype=torch.float64).requires_grad_()
    pact.fake_quantize(x, alpha, 4).sum().backward()
    assert torch.equal(alpha.grad, (x >= alpha.detach()).sum(0, keepdim=True).double())


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_an_alpha_that_is_not_positive_is_refused(alpha):
    with pytest.raises(ValueError, match="must be positive"):
        pact.fake_quantize(torch.ones(3), torch.tensor(alpha), 4)


def test_a_width_of_no_use_is_refused():
    with pytest.raises(ValueError, match="bits=0"):
        pact.fake_quantize(torch.ones(3), torch.tensor(1.0), 0)
