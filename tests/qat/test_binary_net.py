import itertools

import numpy as np
import pytest
import torch
from torch import nn

from qbook import bitwise, packing
from qbook.data import digits
from qbook.qat import binary_connect, binary_net


def norm_of(gamma, beta, mean, variance, eps=1e-5):
    norm = nn.BatchNorm1d(len(gamma), eps=eps).double().eval()
    with torch.no_grad():
        norm.weight.copy_(torch.as_tensor(gamma))
        norm.bias.copy_(torch.as_tensor(beta))
        norm.running_mean.copy_(torch.as_tensor(mean))
        norm.running_var.copy_(torch.as_tensor(variance))
    return norm


def random_norm(features, spread, rng):
    return norm_of(
        rng.normal(size=features),
        rng.normal(size=features),
        spread * rng.normal(size=features),
        spread**2 * rng.uniform(0.5, 2, features),
        eps=spread**2 / 2,
    )


def all_signs(n):
    return torch.tensor(list(itertools.product([-1.0, 1.0], repeat=n)), dtype=torch.float64)


def unpack(packed, count):
    return 2 * packing.unpack(packed, 1, count).double() - 1


def test_the_sign_of_zero_is_plus_and_the_ends_of_the_window_pass():
    x = torch.tensor([-2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 1.5], requires_grad=True)
    y = binary_net.binarize(x)
    y.backward(torch.arange(1.0, 9.0))
    assert y.tolist() == [-1, -1, -1, 1, 1, 1, 1, 1]
    assert x.grad.tolist() == [0, 2, 3, 4, 5, 6, 7, 0]


def test_the_gradient_is_that_of_the_hard_tanh():
    x = torch.linspace(-2, 2, 82, dtype=torch.float64)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    binary_net.binarize(ours).sum().backward()
    nn.functional.hardtanh(theirs).sum().backward()
    # No grid point lies on a corner, where the two may differ.
    assert bool(((x.abs() - 1).abs() > 1e-3).all())
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9])
def test_every_pair_of_sign_vectors_passes_as_the_float_layer_does(count):
    rng = np.random.default_rng(count)
    inputs = weights = all_signs(count)
    norm = random_norm(len(weights), np.sqrt(count), rng)
    expected = binary_connect.signs(norm(inputs @ weights.T))
    layer = binary_net.fold(weights, norm)
    found = unpack(binary_net.forward(layer, bitwise.pack_signs(inputs)), len(weights))
    assert torch.equal(found, expected)
    # Both directions of gamma and both outputs have been seen.
    assert 0 < int((norm.weight < 0).sum()) < len(weights) or count == 1
    assert expected.unique().numel() == 2


@pytest.mark.parametrize("gamma", [2.0, -2.0])
@pytest.mark.parametrize("target", [-3.0, -1.0, 0.0, 1.0, 3.0])
def test_a_sum_on_the_threshold_counts_as_plus(gamma, target):
    # beta = 0: gamma (y - mean) >= 0 in whole numbers.  Torch's own norm is no oracle here: it
    # computes y * factor + offset, which rounds to one side of 0 or the other.
    norm = norm_of([gamma], [0.0], [target], [1.0])
    inputs, w = all_signs(3), torch.ones(1, 3).double()
    expected = [[1.0 if gamma * (sum(row) - target) >= 0 else -1.0] for row in inputs.tolist()]
    found = binary_net.forward(binary_net.fold(w, norm), bitwise.pack_signs(inputs))
    assert unpack(found, 1).tolist() == expected


def test_a_gamma_of_zero_leaves_the_sign_of_beta_and_far_means_are_constant():
    norm = norm_of(
        [0.0, 0.0, 0.0, 1.0, 1.0, -1.0],
        [1.0, 0.0, -1.0, 0, 0, 0],
        [0, 0, 0, 99, -99, 99],
        [1.0] * 6,
    )
    inputs, w = all_signs(5), torch.ones(6, 5).double()
    layer = binary_net.fold(w, norm)
    found = unpack(binary_net.forward(layer, bitwise.pack_signs(inputs)), 6)
    assert torch.equal(found, binary_connect.signs(norm(inputs @ w.T)))
    assert layer.most.tolist() == [5, 5, -1, -1, 5, 5]


@pytest.mark.parametrize("bits", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 7, 16])
def test_the_first_layer_takes_codes_and_equals_the_float_layer(bits, count):
    rng = np.random.default_rng(bits + count)
    codes = torch.from_numpy(rng.integers(0, 2**bits, (200, count)))
    w = torch.from_numpy(rng.normal(size=(37, count)))
    norm = random_norm(37, 2**bits * np.sqrt(count), rng)
    expected = binary_connect.signs(norm(codes.double() @ binary_connect.signs(w).T))
    layer = binary_net.fold_first(w, norm, bits)
    assert torch.equal(unpack(binary_net.forward_first(layer, codes), 37), expected)
    with pytest.raises(ValueError, match="do not fit"):
        binary_net.forward_first(layer, codes + 2**bits)


def test_a_norm_without_parameters_and_a_norm_of_images_are_folded_alike():
    plain = nn.BatchNorm2d(3, affine=False).eval()
    plain.running_mean.copy_(torch.tensor([-1.0, 0.0, 2.5]))
    turned, bound = binary_net.thresholds(plain)
    assert not turned.any()
    assert bound.tolist() == [-1, 0, 2.5]


def test_the_integer_network_is_the_simulated_one_on_every_digit():
    # Untrained, with statistics of its own sums: every threshold lies among the data.
    (train, _), (test, _) = digits()
    codes = torch.from_numpy(np.concatenate([train, test]) * 16).round().to(torch.int64)
    assert codes.shape == (1797, 64)
    rng = np.random.default_rng(0)
    first, second = (torch.from_numpy(rng.normal(size=s)) for s in ((50, 64), (41, 50)))
    norms = [nn.BatchNorm1d(n).double() for n in (50, 41)]
    for norm in norms:
        norm.weight.data = torch.from_numpy(rng.normal(size=norm.num_features))
        norm.bias.data = torch.from_numpy(rng.normal(size=norm.num_features))

    def simulated():
        hidden = binary_net.binarize(norms[0](codes.double() @ binary_connect.signs(first).T))
        return binary_net.binarize(norms[1](hidden @ binary_connect.signs(second).T))

    for norm in norms:
        norm.momentum = None
    # One pass with statistics of the batch, kept as the running ones.
    simulated()
    expected = [norm.eval() for norm in norms] and simulated()
    packed = binary_net.forward_first(binary_net.fold_first(first, norms[0], 5), codes)
    packed = binary_net.forward(binary_net.fold(second, norms[1]), packed)
    assert torch.equal(unpack(packed, 41), expected)
    assert 0.2 < (expected > 0).double().mean() < 0.8


def test_a_norm_of_another_layer_is_refused():
    norm = nn.BatchNorm1d(4).eval()
    with pytest.raises(ValueError, match="w has 3 rows, norm 4 features"):
        binary_net.fold(torch.zeros(3, 8), norm)
