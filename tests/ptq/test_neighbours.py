import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qbook.models import resnet20, separable
from qbook.ptq import fold, neighbours


class Net(nn.Module):
    """Every way to miss a pair, and a few to find one, in one forward."""

    def __init__(self):
        super().__init__()
        for name in ("a", "b", "c", "d", "e", "twice", "g"):
            setattr(self, name, nn.Conv2d(4, 4, 3, padding=1))
        self.norm_a, self.norm_b, self.norm_twice = (nn.BatchNorm2d(4) for _ in range(3))
        self.relu, self.relu6 = nn.ReLU(), nn.ReLU6()
        self.pool, self.wide, self.narrow = (
            nn.AdaptiveAvgPool2d(1),
            nn.Linear(64, 4),
            nn.Linear(4, 2),
        )

    def forward(self, x):
        x = self.relu(self.norm_a(self.a(x)))
        y = self.b(x)
        # b feeds its norm and the sum; c feeds the skip and d through one ReLU.
        z = self.relu(self.c(self.norm_b(y) + y))
        z = self.relu6(self.d(z)) + z
        z = torch.relu(self.e(z)).relu()
        z = self.relu(self.twice(self.relu(self.twice(z))))
        z = F.relu(self.g(self.norm_twice(self.norm_twice(z))))
        wide = self.wide(z[:, :, :4, :4].flatten(1))
        return self.narrow(torch.flatten(self.pool(z), 1)) + wide[:, :2]


def test_a_norm_belongs_to_the_layer_it_alone_follows():
    assert neighbours.norms(Net()) == [("a", "norm_a")]


def test_a_chain_is_a_layer_a_relu_and_a_layer_with_nobody_else_listening():
    # a ends in its norm, d in a ReLU6, e feeds a layer called twice, and g is read twice.
    assert neighbours.chains(fold.fold(Net().eval())) == [("a", "b")]


def test_a_skip_connection_counts_only_when_it_may():
    found = neighbours.chains(fold.fold(Net().eval()), shared=True)
    assert found == [("a", "b"), ("c", "d"), ("g", "narrow")]


def test_resnet20_has_one_chain_in_each_block():
    model = fold.fold(resnet20.ResNet20().eval())
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]
    assert neighbours.chains(model) == [(f"{b}.conv1", f"{b}.conv2") for b in blocks]
    assert neighbours.chains(model, shared=True)[0] == ("conv1", "layer1.0.conv1")
    assert len(neighbours.norms(resnet20.ResNet20())) == 19


def test_the_separable_network_is_one_chain_from_its_stem_to_its_classifier():
    model = separable.SeparableNet().eval()
    found = neighbours.chains(fold.fold(model))
    assert found[0][0] == "conv"
    assert found[-1][1] == "linear"
    assert [a for a, _ in found[1:]] == [b for _, b in found[:-1]]
    assert len(found) == len(neighbours.norms(model)) == 11


def test_spatial_means_and_flattened_single_pixels_are_passed_and_other_shapes_are_not():
    conv, linear = nn.Conv2d(3, 5, 3), nn.Linear(5, 2)

    def found(*between):
        return neighbours.chains(nn.Sequential(conv, nn.ReLU(), *between, linear))

    assert found(nn.AdaptiveAvgPool2d(1), nn.Flatten()) == [("0", "4")]
    assert found(nn.MaxPool2d(2), nn.Flatten()) == []
    assert found(nn.Softmax(1)) == []
    # Flattened pixels: four inputs of the linear layer read each channel.
    pixels = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 2))
    assert neighbours.chains(pixels) == []
    assert neighbours.chains(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))) == []


def test_a_model_that_cannot_be_traced_asks_for_names():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=r"Branch cannot be traced.*pass the names"):
        neighbours.norms(Branch())
