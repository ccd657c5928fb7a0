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


@pytest.mark.parametrize(
    ("residual", "keys_real", "values_real"), [(0, 4, 0), (8, 4, 8), (32, 4, 32)]
)
def test_without_a_window_only_the_unfinished_group_of_keys_is_real(
    residual, keys_real, values_real
):
    """100 tokens in groups of 8: the last 4 wait for their group, or for the block of 32."""
    x = normal(100, 16)
    cache = kivi.Cache(bits=2, group_size=8, residual=residual)
    cache.append(x, x)
    for x_hat, real in zip(cache.read(), (keys_real, values_real), strict=True):
        same = (x_hat == x).all(dim=1)
        assert bool(same[100 - real :].all())
        assert not bool(same[: 100 - real].any())


def test_blocks_keep_the_same_tokens_real_whatever_the_axes():
    x = normal(100, 16)
    for axes in ((-1, -1), (-1, -2), (-2, -1), (-2, -2)):
        cache = kivi.Cache(
            group_size=8, residual=32, key_axis=axes[0], value_axis=axes[1], in_blocks=True
        )
        cache.append(x, x)
        assert all(torch.equal(x_hat[96:], x[96:]) for x_hat in cache.read())
        assert {len(t) for t in cache.recent.values()} == {4}


def test_factors_and_offsets_of_a_channel_leave_its_codes_along_tokens():
    """x -> 8 x + 3: powers of two and small integers are exact, so are the codes."""
    x = (normal(64, 6) * 100).round()
    factor, offset = torch.tensor([1, 8, 1, 1, 64, 1.0]), torch.tensor([0, 3, -5, 0, 7, 0.0])
    plain, moved = (kivi.quantize(y, 2, 32, -2) for y in (x, x * factor + offset))
    assert torch.equal(plain.packed, moved.packed)
    x_hat = kivi.dequantize(plain) * factor + offset
    # float64, numbers up to 2e4.
    assert float((kivi.dequantize(moved) - x_hat).abs().max()) <= 1e-10
    assert not torch.equal(*(kivi.quantize(y, 2, 6, -1).packed for y in (x, x * factor + offset)))


@pytest.mark.parametrize(
    ("ends", "levels"),
    [
        (kivi.own_ends, [6.0, 7.0, 8.0, 9.0]),
        (kivi.with_zero, [6.0, 6.0, 9.0, 9.0]),
        (kivi.symmetric, [3.0, 9.0, 9.0, 9.0]),
    ],
)
def test_ranges_by_hand(ends, levels):
    """6, 7, 8, 9 in two bits: steps of 1, of 3 from 0 on, of 6 from -9 on; there 6 is a tie."""
    x = torch.tensor([[6.0, 7.0, 8.0, 9.0]])
    assert kivi.dequantize(kivi.quantize(x, 2, 4, -1, ends=ends)).tolist() == [levels]


def test_ranges_of_negative_numbers_by_hand():
    """-9, -8, -7, -5 in two bits: steps of 3 from -9 to 0, of 6 from -9 to 9."""
    x = torch.tensor([[-9.0, -8.0, -7.0, -5.0]])
    for ends, levels in (
        (kivi.with_zero, [-9.0, -9.0, -6.0, -6.0]),
        (kivi.symmetric, [-9.0, -9.0, -9.0, -3.0]),
    ):
        assert kivi.dequantize(kivi.quantize(x, 2, 4, -1, ends=ends)).tolist() == [levels]


def test_a_cache_passes_its_ends_on():
    x = normal(8, 8) + 5
    cache = kivi.Cache(group_size=8, residual=8, ends=kivi.symmetric)
    cache.append(x, x)
    expected = kivi.dequantize(kivi.quantize(x, 2, 8, -2, ends=kivi.symmetric))
    assert torch.equal(cache.read()[0], expected)


def test_wrong_calls_say_what_would_work():
    with pytest.raises(ValueError, match="residual=-32 is no multiple"):
        kivi.Cache(residual=-32)
    with pytest.raises(ValueError, match="residual=40 is no multiple of group_size=32"):
        kivi.Cache(residual=40)
    with pytest.raises(ValueError, match="axis=0 is neither channels"):
        kivi.quantize(normal(4, 4), 2, 4, 0)
    with pytest.raises(ValueError, match="group_size=3 does not divide the 4"):
        kivi.quantize(normal(4, 4), 2, 3, -1)
    with pytest.raises(ValueError, match="NaN or infinity"):
        kivi.quantize(torch.full((2, 2), torch.inf), 2, 2, -1)
