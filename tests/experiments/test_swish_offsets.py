import pytest
import torch
from torch.nn.functional import silu

from qbook.experiments import swish_offsets


@pytest.fixture(scope="module")
def network():
    return swish_offsets.pretrain(steps=30)


def test_hidden_activations_are_swishes_of_normalized_sums(network):
    for x, gain in zip(swish_offsets.hidden(network), network[6:], strict=True):
        assert x.shape == (1437, 32)
        # The least value of x * sigmoid(x), of size 0.2785.
        assert x.min() >= silu(torch.linspace(-2, 0, 20_001).double()).min() - 1e-7
        assert gain.shape == (32,)


@pytest.mark.parametrize("method", ["unsigned", "signed"])
def test_without_an_offset_the_stored_network_is_the_trained_one(network, method):
    result = swish_offsets.fine_tune(network, method, 3, seed=0, steps=3)
    # An activation on a tie may go the other way: one of 360 images and a like change of loss.
    assert abs(result["after"][0] - result["exported"][0]) <= 0.5
    assert abs(result["after"][1] - result["exported"][1]) <= 1e-2


def test_fine_tuning_repeats_and_leaves_its_network_alone(network):
    copies = [p.clone() for p in network]
    runs = [swish_offsets.fine_tune(network, "offset", 2, seed=1, steps=3) for _ in range(2)]
    assert runs[0] == runs[1]
    assert all(torch.equal(p, copy) for p, copy in zip(network, copies, strict=True))


def test_an_unknown_method_is_refused(network):
    with pytest.raises(ValueError, match="method='free' is unknown"):
        swish_offsets.fine_tune(network, "free", 2, seed=0)
