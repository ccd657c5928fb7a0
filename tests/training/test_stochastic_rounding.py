import numpy as np
import pytest
import torch

from qbook.formats import E2M1, E2M3, E4M3, INT4, NF4, microscaling
from qbook.llm import hadamard
from qbook.theory import dither
from qbook.training import stochastic_rounding

FORMATS = {f.name: f for f in (E2M1, E2M3, E4M3, INT4, NF4)}


@pytest.fixture(params=FORMATS.values(), ids=FORMATS)
def fmt(request):
    return request.param


def test_every_value_of_the_format_stays_where_it_is(fmt):
    levels = np.tile(fmt.levels, 50)
    x_hat = stochastic_rounding.round_stochastic(levels, fmt, np.random.default_rng(0))
    np.testing.assert_array_equal(x_hat, levels)
    np.testing.assert_array_equal(stochastic_rounding.variance(levels, fmt), 0)


def test_only_the_two_neighbours_are_drawn(fmt):
    levels = fmt.levels.astype(np.float64)
    low, high = np.repeat(levels[:-1], 40), np.repeat(levels[1:], 40)
    share = np.tile(np.linspace(0.05, 0.95, 40), len(levels) - 1)
    x_hat = stochastic_rounding.round_stochastic(
        low + share * (high - low), fmt, np.random.default_rng(1)
    )
    assert np.all((x_hat == low) | (x_hat == high))
    assert np.any(x_hat == low)
    assert np.any(x_hat == high)


@pytest.mark.parametrize("generator", ["numpy", "torch"])
def test_mean_and_variance_are_those_of_the_formulas(fmt, generator):
    draws = 4000
    levels = fmt.levels.astype(np.float64)
    share = np.array([0.01, 0.3, 0.5, 0.9])
    x = (levels[:-1, None] + share * np.diff(levels)[:, None]).reshape(-1)
    many = np.broadcast_to(x, (draws, len(x)))
    if generator == "torch":
        many, rng = torch.from_numpy(many.copy()), torch.Generator().manual_seed(2)
    else:
        rng = np.random.default_rng(2)
    x_hat = np.asarray(stochastic_rounding.round_stochastic(many, fmt, rng), np.float64)
    # A Bernoulli variable between the two levels: p (1 - p) step^2.
    step = np.repeat(np.diff(levels), 4)
    expected = np.tile(share * (1 - share), len(levels) - 1) * step**2
    np.testing.assert_allclose(
        stochastic_rounding.variance(x, fmt), expected, atol=1e-12 * fmt.max**2
    )
    # Up to 1008 means: five standard deviations of one.
    assert np.all(np.abs(x_hat.mean(axis=0) - x) <= 5 * np.sqrt(expected / draws) + 1e-9)
    # The squared deviation of a Bernoulli variable has variance below step^4 / 16.
    spread = ((x_hat - x) ** 2).mean(axis=0)
    assert np.all(np.abs(spread - expected) <= 5 * step**2 / 4 / np.sqrt(draws))


def test_on_integers_it_is_the_dither_of_chapter_two():
    x = np.random.default_rng(3).uniform(-7, 7, size=999)
    found = stochastic_rounding.round_stochastic(x, INT4, np.random.default_rng(4))
    # floor(x + u) goes up for u >= 1 - f, this for u < f: the same chance with 1 - u.
    uniform = 1 - np.random.default_rng(4).random(999)
    np.testing.assert_array_equal(found, dither.round_stochastic(x, uniform))


def test_a_generator_of_the_same_seed_repeats_the_draw(fmt):
    x = torch.linspace(fmt.min, fmt.max, 777)
    a, b, c = (
        stochastic_rounding.round_stochastic(x, fmt, torch.Generator().manual_seed(seed))
        for seed in (5, 5, 6)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert a.dtype == torch.float32


def test_beyond_the_range_it_saturates(fmt):
    x = np.array([-np.inf, 1.5 * fmt.min, 1.5 * fmt.max, np.inf])
    x_hat = stochastic_rounding.round_stochastic(x, fmt, np.random.default_rng(0))
    assert x_hat.tolist() == [fmt.min, fmt.min, fmt.max, fmt.max]
    np.testing.assert_array_equal(stochastic_rounding.variance(x, fmt), 0)


@pytest.mark.parametrize("kind", ["rceil", "floor", "nvfp4"])
def test_blocks_are_unbiased_up_to_what_saturates(kind):
    x = np.random.default_rng(7).normal(size=(3, 96)).astype(np.float32)
    if kind == "nvfp4":
        blocks = microscaling.quantize_nvfp4(x)
        scale = blocks.scale_fmt.decode(blocks.scale) * blocks.tensor_scale
    else:
        blocks = microscaling.quantize_mx(x, E2M1, mode=kind)
        scale = blocks.scale_fmt.decode(blocks.scale)
    scale = np.repeat(scale[..., 0], 96 // scale.shape[1], axis=1).astype(np.float64)
    rng, draws = np.random.default_rng(8), 2000
    mean = np.mean([stochastic_rounding.fake_quantize(x, blocks, rng) for _ in range(draws)], 0)
    clipped = np.clip(x, -6 * scale, 6 * scale)
    # The widest step is 2 scales, so a standard deviation is at most one; five of the mean's.
    assert np.all(np.abs(mean - clipped) <= 5 * scale / np.sqrt(draws))
    # A scale of NVFP4 is rounded too, down by up to 1/17: only rceil promises that all fits.
    assert np.any(clipped != x) == (kind != "rceil")


def test_the_mean_of_many_tiny_steps_arrives_and_to_nearest_none_does():
    step, n = np.full(4000, 0.01), 20
    rng = np.random.default_rng(9)
    total = sum(stochastic_rounding.round_stochastic(step, E2M1, rng) for _ in range(n))
    # 0.2 expected; a standard deviation of sqrt(20 * 0.01 * 0.49) / sqrt(4000) = 0.005.
    assert abs(total.mean() - n * 0.01) <= 5 * np.sqrt(n * 0.01 * 0.49 / 4000)
    assert np.all(E2M1.round(step) == 0)


def test_rotating_both_operands_over_tokens_leaves_the_weight_gradient():
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(64, n, generator=generator, dtype=torch.float64) for n in (7, 5))
    q = torch.block_diag(*[hadamard.matrix(16, seed=1)] * 4)
    # Orthogonal to float64's precision, sums of 64 products.
    assert float(((q.T @ g).T @ (q.T @ x) - g.T @ x).abs().max()) <= 1e-12


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rng: stochastic_rounding.round_stochastic(np.array([np.nan]), E2M1, rng), "NaN"),
        (
            lambda rng: stochastic_rounding.fake_quantize(
                np.ones((2, 32)), microscaling.quantize_mx(np.ones(32), E2M1), rng
            ),
            r"shape \(2, 32\), its blocks \(32,\)",
        ),
    ],
)
def test_wrong_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.random.default_rng(0))
