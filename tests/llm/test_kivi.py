import numpy as np
import pytest
import torch

from qbook import metrics
from qbook.llm import kivi


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("axis", [-1, -2])
def test_each_number_moves_at_most_half_a_step_of_its_own_group(bits, axis):
    x = normal(3, 2, 12, 8)
    x_hat = kivi.dequantize(kivi.quantize(x, bits, 4, axis))
    assert x_hat.shape == x.shape
    for n in range(0, x.shape[axis], 4):
        group = x.narrow(axis, n, 4)
        step = (group.amax(axis, keepdim=True) - group.amin(axis, keepdim=True)) / (2**bits - 1)
        error = (x_hat.narrow(axis, n, 4) - group).abs()
        assert bool((error <= step / 2 * (1 + 1e-9)).all())


@pytest.mark.parametrize("axis", [-1, -2])
def test_the_ends_of_a_group_are_exact_and_zero_need_not_be_inside(axis):
    x = 100 + normal(2, 6, 6)
    x_hat = kivi.dequantize(kivi.quantize(x, 2, 6, axis))
    for end in (torch.amin, torch.amax):
        assert torch.allclose(end(x_hat, axis), end(x, axis), rtol=1e-15, atol=0)


def test_two_by_hand():
    """0, 1, 2, 6: range 6, four codes, step 2; 1 is a tie and goes to the even code 0."""
    x = torch.tensor([[0.0, 1.0, 2.0, 6.0]])
    grouped = kivi.quantize(x, 2, 4, -1)
    assert kivi.dequantize(grouped).tolist() == [[0.0, 0.0, 2.0, 6.0]]
    # Codes 0, 0, 1, 3 from the lowest bits up.
    assert grouped.packed.tolist() == [[[0 + 1 * 16 + 3 * 64]]]


def test_constant_groups_come_back():
    x = torch.full((4, 4), -3.5)
    assert torch.equal(kivi.dequantize(kivi.quantize(x, 2, 4, -2)), x)


def test_large_channels_harm_only_themselves_along_tokens():
    keys = normal(64, 16)
    keys[:, 3] *= 50
    others = [c for c in range(16) if c != 3]
    error = {}
    for axis, size in ((-2, 32), (-1, 16)):
        x_hat = kivi.dequantize(kivi.quantize(keys, 2, size, axis))
        error[axis] = metrics.mse(keys[:, others].numpy(), x_hat[:, others].numpy())
    assert error[-2] * 2 < error[-1]


@pytest.mark.parametrize("pieces", [[100], [1] * 100, [70, 1, 1, 28]])
def test_the_cache_holds_what_its_rules_say_however_tokens_arrive(pieces):
    keys, values = normal(2, 100, 8), normal(2, 100, 8, seed=1)
    cache = kivi.Cache(bits=2, group_size=8, residual=32)
    for k, v in zip(keys.split(pieces, dim=1), values.split(pieces, dim=1), strict=True):
        cache.append(k, v)
    k_hat, v_hat = cache.read()
    # Keys leave in blocks of 32 tokens: 96 of 100.  Values leave one by one: 68.
    assert torch.equal(k_hat[:, 96:], keys[:, 96:])
    assert torch.equal(v_hat[:, 68:], values[:, 68:])
    expected = kivi.dequantize(kivi.quantize(keys[:, :96], 2, 8, -2))
    assert torch.allclose(k_hat[:, :96], expected, rtol=0, atol=1e-12)
    expected = kivi.dequantize(kivi.quantize(values[:, :68], 2, 8, -1))
    assert torch.allclose(v_hat[:, :68], expected, rtol=0, atol=1e-12)


def test_bytes_are_those_of_the_formula_and_of_the_real_tokens():
    keys = normal(4, 256, 64).half()
    cache = kivi.Cache(residual=128)
    cache.append(keys, keys)
    # Keys: all 256 tokens.  Values: 128 quantized, 128 real.
    quantized = kivi.bits_per_number(2, 32) / 8 * 64 * 4
    assert cache.nbytes == 256 * quantized + 128 * quantized + 128 * 64 * 4 * 2
    assert kivi.bits_per_number(2, 32) == 3


def test_wrong_calls_say_what_would_work():
    with pytest.raises(ValueError, match="residual=40 is no multiple of group_size=32"):
        kivi.Cache(residual=40)
    with pytest.raises(ValueError, match="axis=0 is neither channels"):
        kivi.quantize(normal(4, 4), 2, 4, 0)
    with pytest.raises(ValueError, match="group_size=3 does not divide the 4"):
        kivi.quantize(normal(4, 4), 2, 3, -1)
    with pytest.raises(ValueError, match="NaN or infinity"):
        kivi.quantize(torch.full((2, 2), torch.inf), 2, 2, -1)
