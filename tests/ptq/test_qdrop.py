import itertools

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from qbook.ptq import brecq, qdrop, reconstruction


def model(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        block = [nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 7)) for _ in range(2)]
        return nn.Sequential(nn.Linear(6, 7), *block, nn.Linear(7, 5)).double().eval()


def samples(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def coin(seed=0):
    return torch.Generator().manual_seed(seed)


BLOCKS = ["1", "2"]


def logits(quantized):
    layers = (quantized.get_submodule(name) for name in brecq.codes(quantized))
    return [layer.logits.detach() for layer in layers]


@pytest.mark.parametrize("p", [0.0, 0.25, 0.5, 1.0])
def test_each_element_keeps_its_quantization_with_probability_p(p):
    x = samples(300, 40)
    kept = qdrop.drop(x + 1, x, p, coin()) != x
    if p in (0, 1):
        assert kept.to(float).mean() == p
    # Four standard deviations of a mean of 12000 coins, and of one column's or row's.
    assert abs(kept.to(float).mean() - p) <= 4 * 0.5 / np.sqrt(12000)
    assert (kept.to(float).mean(0) - p).abs().max() <= 4 * 0.5 / np.sqrt(300)
    assert (kept.to(float).mean(1) - p).abs().max() <= 4.5 * 0.5 / np.sqrt(40)


def test_the_closed_form_equals_the_mean_over_all_patterns():
    w, w_hat = samples(3, 6), samples(3, 6, seed=1)
    x, x_hat = samples(4, 6, seed=2), samples(4, 6, seed=3)
    for p in (0.0, 0.3, 0.5, 1.0):
        expected = torch.zeros(4, dtype=torch.float64)
        for pattern in itertools.product([0, 1], repeat=6):
            kept = torch.tensor(pattern, dtype=torch.bool)
            probability = p ** sum(pattern) * (1 - p) ** (6 - sum(pattern))
            dropped = torch.where(kept, x_hat, x)
            expected += probability * ((dropped @ w_hat.T - x @ w.T) ** 2).sum(1)
        # Sums of 64 terms in float64.
        assert_allclose(qdrop.linear_loss(w, w_hat, x, x_hat, p), expected, rtol=1e-12)


def test_the_penalty_is_largest_for_a_fair_coin_and_zero_without_one():
    w, x = samples(3, 6), samples(4, 6, seed=1)
    x_hat = x + 0.1 * samples(4, 6, seed=2)

    def penalty(p):
        centre = ((x + p * (x_hat - x)) @ w.T - x @ w.T) ** 2
        return (qdrop.linear_loss(w, w, x, x_hat, p) - centre.sum(1)).mean()

    assert abs(penalty(0)) <= 1e-15
    assert abs(penalty(1)) <= 1e-15
    assert penalty(0.5) > penalty(0.3) > 0


def test_p_1_is_brecq_with_activations_quantized():
    net, x = model(), samples(40, 6)
    schedule = {"steps": 20, "learning_rate": 0.1, "batch_size": 8, "seed": 3}
    dropped = qdrop.quantize(net, x, BLOCKS, 2, 4, p=1, **schedule)
    expected = brecq.quantize(net, x, BLOCKS, 2, 4, **schedule)
    for found, wanted in zip(logits(dropped), logits(expected), strict=True):
        assert torch.equal(found, wanted)


def test_p_0_learns_from_the_real_inputs_without_any_quantized_activation():
    net, x = model(), samples(40, 6)
    schedule = {"steps": 20, "learning_rate": 0.1, "batch_size": None, "lam": 0.05}
    dropped = qdrop.quantize(net, x, BLOCKS, 2, 4, p=0, **schedule)
    for name in BLOCKS:
        seen, target = brecq.cache(net, name, x)
        block = reconstruction.round_layers(net.get_submodule(name), seen, 2)
        expected = reconstruction.fit(block, seen, target, **schedule)
        found = reconstruction.rounded_layers(dropped.get_submodule(name))
        for layer, wanted in zip(found, reconstruction.rounded_layers(expected), strict=True):
            assert_allclose(layer.logits.detach(), wanted.logits.detach(), rtol=0, atol=1e-10)


def test_steps_of_the_inputs_stay_where_they_were_if_never_used():
    net, x = model(), samples(40, 6)
    never = qdrop.quantize(net, x, BLOCKS, 8, 4, p=0, steps=20)
    half = qdrop.quantize(net, x, BLOCKS, 8, 4, p=0.5, steps=20)
    start = brecq.quantize(net, x, BLOCKS, 8, 4, steps=0)

    def first_step(quantized):
        return quantized.get_submodule("1.0").step.detach()

    assert first_step(never) == first_step(start)
    assert first_step(half) != first_step(start)


def test_after_training_every_activation_is_quantized_and_nothing_is_random():
    net, x = model(), samples(40, 6)
    dropped = qdrop.quantize(net, x, BLOCKS, 3, 2, steps=5)
    once, again = (reconstruction.run(dropped, x) for _ in range(2))
    assert torch.equal(once, again)
    seen, _ = brecq.cache(dropped, "1.0", x)
    layer = dropped.get_submodule("1.0")
    codes = seen / layer.step.detach()
    grid = torch.clamp(torch.round(codes), -2, 1) * layer.step.detach()
    w_hat = layer.w_hat().detach()
    expected = grid @ w_hat.T + layer.layer.bias.detach()
    assert_allclose(brecq.cache(dropped, "1.0", x)[1], expected, rtol=0, atol=1e-12)


def test_the_same_seed_repeats_and_the_global_state_stays():
    net, x = model(), samples(40, 6)
    state = torch.random.get_rng_state()
    runs = [logits(qdrop.quantize(net, x, BLOCKS, 2, 4, steps=4, seed=s)) for s in (0, 0, 1)]
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_a_p_that_is_no_probability_is_named(p):
    with pytest.raises(ValueError, match=f"p={p}"):
        qdrop.drop(samples(3), samples(3), p, coin())
    with pytest.raises(ValueError, match=f"p={p}"):
        qdrop.quantize(model(), samples(9, 6), BLOCKS, 2, 4, p=p)
