import numpy as np
import torch
from torch.nn.functional import cross_entropy

from qbook.experiments import dorefa_bits


def test_hidden_layers_have_the_levels_asked_for_and_the_ends_are_untouched():
    network = dorefa_bits.Network((2, 3, 32), None, seed=0)
    x = torch.from_numpy(np.random.default_rng(0).random((20, 64)))
    assert torch.equal(network.multiply(x, 0), x @ network.weights[0].T)
    # A unit vector shows one column of the weights: odd thirds, at most four of them.
    columns = network.multiply(torch.eye(64, dtype=torch.float64), 1)
    assert set((3 * columns).round(decimals=9).unique().tolist()) <= {-3, -1, 1, 3}
    assert len(network.activate(columns).unique()) <= 8


def test_gradients_of_hidden_products_lie_on_their_samples_levels():
    network = dorefa_bits.Network((32, 32, 2), torch.Generator().manual_seed(0), seed=0)
    x = torch.from_numpy(np.random.default_rng(0).random((9, 64))).requires_grad_()
    incoming = torch.from_numpy(np.random.default_rng(1).normal(size=(9, 64)))
    (network.multiply(x, 1) * incoming).sum().backward()
    # Back through the weights: the incoming gradient, rounded.
    rounded = x.grad @ torch.linalg.inv(network.weights[1].detach())
    thirds = 3 * rounded / incoming.abs().amax(1, keepdim=True)
    # The inverse of a random 64 x 64 matrix amplifies 1e-16 by less than 1e8.
    assert bool(((thirds.abs() - 2).abs() - 1).abs().max() <= 1e-6)


def test_training_repeats_and_lowers_the_loss():
    losses = []
    for _ in range(2):
        network = dorefa_bits.train((1, 2, 4), seed=3, steps=10)
        losses.append(dorefa_bits.evaluate(network)[1])
    assert losses[0] == losses[1]
    untrained = dorefa_bits.Network((1, 2, 4), None, seed=3)
    (images, labels), _ = dorefa_bits._digits()
    assert losses[0] < cross_entropy(untrained(images), labels).item()
