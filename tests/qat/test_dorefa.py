import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from qbook import bitwise
from qbook.qat import dorefa
from qbook.theory import dither


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def slope_by_element(function, x):
    x = x.clone().requires_grad_()
    function(x).sum().backward()
    return x.grad


@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8])
def test_unit_quantizer_has_all_its_levels_and_takes_the_nearest(bits):
    levels = np.arange(2**bits) / (2**bits - 1)
    r = np.linspace(0, 1, 4001)
    found = dorefa.quantize_unit(torch.from_numpy(r), bits).numpy()
    assert_array_equal(np.unique(found), levels)
    nearest = np.abs(r[:, None] - levels).min(axis=1)
    # One rounding of a product and of a quotient below 256.
    assert np.all(np.abs(np.abs(found - r) - nearest) <= 1e-14)
    assert torch.equal(
        slope_by_element(lambda x: dorefa.quantize_unit(x, bits), torch.from_numpy(r)),
        torch.ones(4001, dtype=torch.float64),
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(1,), (3, 7), (5, 2, 3, 3)])
def test_weights_are_the_papers_formula_and_lie_on_the_odd_multiples(bits, shape):
    w = normal(*shape, seed=bits)
    n = 2**bits - 1
    tanh = np.tanh(w.numpy())
    expected = 2 * np.round(n * (tanh / (2 * np.abs(tanh).max()) + 0.5)) / n - 1
    value, codes = dorefa.quantize_weights(w, bits), dorefa.weight_codes(w, bits)
    # Values up to 1, three roundings.
    assert np.all(np.abs(value.numpy() - expected) <= 1e-15)
    assert np.all(np.abs(value.numpy() - (2 * codes.numpy() - n) / n) <= 1e-15)
    assert codes.dtype == torch.int32
    assert 0 <= codes.min() <= codes.max() <= n
    # The largest weight lies on the end; no weight is zero, for 2 code - n is odd.
    assert value.abs().max() == 1
    assert np.all(np.abs(value.numpy()) >= (1 - 1e-12) / n)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_enough_weights_reach_every_code(bits):
    w = torch.linspace(-3, 3, 20_001, dtype=torch.float64)
    assert_array_equal(dorefa.weight_codes(w, bits).unique().numpy(), np.arange(2**bits))


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_gradient_of_weights_is_that_of_the_map_without_rounding(bits):
    w = normal(4, 5)
    weights = torch.linspace(-1, 2, 20, dtype=torch.float64).reshape(4, 5)

    def smooth(w):
        return torch.tanh(w) / torch.tanh(w).abs().max()

    found = slope_by_element(lambda w: dorefa.quantize_weights(w, bits) * weights, w)
    expected = slope_by_element(lambda w: smooth(w) * weights, w)
    assert torch.allclose(found, expected, rtol=1e-13, atol=1e-14)
    # By hand: tanh' / M, and what the quotient rule takes off at the largest element.
    tanh = np.tanh(w.numpy())
    largest = np.abs(tanh).max()
    by_hand = weights.numpy() * (1 - tanh**2) / largest
    at = np.abs(tanh).argmax()
    total = (weights.numpy() * tanh).sum() / largest**2
    by_hand.flat[at] -= total * np.sign(tanh.flat[at]) * (1 - tanh.flat[at] ** 2)
    assert np.allclose(found.numpy(), by_hand, rtol=1e-12, atol=1e-13)


def test_one_bit_is_the_sign_times_the_mean_with_slope_one():
    w = torch.tensor([-1.5, 0.0, -0.0, 0.5, 2.0], dtype=torch.float64)
    assert dorefa.quantize_weights(w, 1).tolist() == [-0.8, 0.8, 0.8, 0.8, 0.8]
    assert dorefa.weight_codes(w, 1).tolist() == [0, 1, 1, 1, 1]
    assert slope_by_element(lambda w: dorefa.quantize_weights(w, 1), w).tolist() == [1] * 5


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_activations_are_clipped_to_the_unit_interval_and_pass_the_gradient_inside(bits):
    x = torch.tensor([-2, -1e-9, 0, 0.2, 0.5, 0.9, 1, 1 + 1e-9, 7], dtype=torch.float64)
    n = 2**bits - 1
    expected = np.round(np.clip(x.numpy(), 0, 1) * n) / n
    assert_array_equal(dorefa.quantize_activations(x, bits).numpy(), expected)
    slope = slope_by_element(lambda x: dorefa.quantize_activations(x, bits), x)
    assert slope.tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize(("w_bits", "x_bits"), [(2, 1), (3, 2), (4, 4)])
def test_a_product_of_weights_and_activations_is_one_of_unsigned_codes(w_bits, x_bits):
    w, x = normal(3, 37), normal(5, 37, seed=1).abs()
    n, m = 2**w_bits - 1, 2**x_bits - 1
    w_codes = dorefa.weight_codes(w, w_bits).numpy()
    x_hat = dorefa.quantize_activations(x, x_bits)
    x_codes = np.rint(x_hat.numpy() * m).astype(np.int32)
    planes = bitwise.dot_planes(x_codes[:, None], w_codes[None], x_bits, w_bits)
    assert_array_equal(planes, x_codes @ w_codes.T)
    from_codes = (2 * planes - n * x_codes.sum(1, keepdims=True)) / (n * m)
    real = x_hat @ dorefa.quantize_weights(w, w_bits).T
    # 37 products below 1.
    assert np.all(np.abs(real.numpy() - from_codes) <= 1e-13)


@pytest.mark.parametrize("bits", [1, 2, 3, 6])
@pytest.mark.parametrize("shape", [(4,), (3, 7), (2, 3, 2, 5)])
def test_the_mean_of_a_noisy_gradient_is_the_gradient(bits, shape):
    g = normal(*shape) * torch.tensor(10.0) ** torch.arange(shape[0]).reshape(
        -1, *[1] * (len(shape) - 1)
    )
    points = 4096
    noise = (torch.arange(points).double() + 0.5) / points - 0.5
    rounded = torch.stack([dorefa.round_gradient(g, bits, torch.full_like(g, t)) for t in noise])
    n = 2**bits - 1
    largest = g.abs().amax(tuple(range(1, g.ndim)), keepdim=True) if g.ndim > 1 else g.abs()
    # Of the midpoints, all but one lie on the right side of the one threshold: a step / points.
    tolerance = 2 * largest / n / points
    assert bool(((rounded.mean(0) - g).abs() <= tolerance).all())
    # Its variance is that of stochastic rounding.
    steps = n / 2 * (g / largest + 1)
    variance = (2 * largest / n) ** 2 * dither.nonsubtractive_mse(steps, 1)
    assert bool(
        (((rounded - g) ** 2).mean(0) - variance).abs().le(2 * largest / n * tolerance).all()
    )


@pytest.mark.parametrize("bits", [1, 2, 3, 6])
def test_a_noisy_gradient_is_stochastic_rounding_between_its_two_levels(bits):
    g = normal(9, 11)
    uniform = torch.from_numpy(np.random.default_rng(1).random((9, 11)))
    largest = g.abs().amax(1, keepdim=True)
    n = 2**bits - 1
    codes = dither.round_stochastic(n / 2 * (g / largest + 1), uniform)
    expected = largest * (2 * codes - n) / n
    found = dorefa.round_gradient(g, bits, uniform - 0.5)
    # Values of up to 4, a handful of roundings.
    assert bool(((found - expected).abs() <= 1e-14).all())
    # The largest of each sample is on a level, whatever the noise: it never changes.
    at = g.abs().argmax(1, keepdim=True)
    assert torch.equal(found.gather(1, at), g.gather(1, at))


@pytest.mark.parametrize("bits", [2, 3, 6])
def test_without_noise_zero_becomes_a_step_up_and_small_ones_their_sign(bits):
    g = torch.tensor([[0.0, 1e-6, -1e-6, 1.0], [0.0, 0.0, 0.0, -2.0]], dtype=torch.float64)
    n = 2**bits - 1
    found = dorefa.round_gradient(g, bits, torch.zeros_like(g))
    expected = [[1 / n, 1 / n, -1 / n, 1], [2 / n, 2 / n, 2 / n, -2]]
    assert np.allclose(found.numpy(), expected, rtol=1e-15)


def test_noise_at_its_ends_stays_within_the_levels():
    g = torch.tensor([[1.0, -1.0, 0.5]])
    for t in (-0.5, 0.5):
        found = dorefa.round_gradient(g, 2, torch.full_like(g, t))
        assert found.abs().max() == 1


def test_backward_rounds_what_comes_with_the_generators_noise_and_forward_does_nothing():
    x = normal(3, 8).requires_grad_()
    incoming = normal(3, 8, seed=1)
    y = dorefa.quantize_gradients(x, 2, torch.Generator().manual_seed(7))
    assert torch.equal(y, x)
    (y * incoming).sum().backward()
    again = torch.Generator().manual_seed(7)
    noise = torch.rand((3, 8), generator=again, dtype=torch.float64) - 0.5
    assert torch.equal(x.grad, dorefa.round_gradient(incoming, 2, noise))
    x.grad = None
    (dorefa.quantize_gradients(x, 2, None) * incoming).sum().backward()
    assert torch.equal(x.grad, dorefa.round_gradient(incoming, 2, torch.zeros(3, 8)))


def test_a_sample_without_gradient_keeps_none():
    g = torch.tensor([[0.0, 0.0], [1.0, -0.25]])
    found = dorefa.round_gradient(g, 2, torch.full((2, 2), 0.4))
    assert found[0].tolist() == [0, 0]
    assert bool(torch.isfinite(found).all())


def test_what_has_no_scale_no_samples_or_no_width_is_refused():
    for bits in (1, 2):
        with pytest.raises(ValueError, match="zero throughout"):
            dorefa.quantize_weights(torch.zeros(3), bits)
        with pytest.raises(ValueError, match="zero throughout"):
            dorefa.weight_codes(torch.zeros(0), bits)
    with pytest.raises(ValueError, match="no dimension"):
        dorefa.quantize_gradients(torch.tensor(1.0), 2, None)
    for bits in (0, 17, 2.0, True):
        with pytest.raises(ValueError, match="bits="):
            dorefa.quantize_activations(torch.ones(2), bits)


def test_arguments_stay_as_they_are():
    w = normal(3, 4)
    copy = w.clone()
    dorefa.quantize_weights(w, 3), dorefa.quantize_activations(w, 3), dorefa.weight_codes(w, 1)
    dorefa.round_gradient(w, 3, torch.zeros_like(w))
    assert torch.equal(w, copy)
