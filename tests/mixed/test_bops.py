import numpy as np
import pytest
import torch
from torch import nn

from qbook import data
from qbook.mixed import bops
from qbook.models import digits_mlp, resnet20


def test_resnet20_takes_the_multiplications_counted_by_hand():
    # 3x3 convolutions: 3 -> 16 and six 16 -> 16 on 32 x 32; 16 -> 32 and five 32 -> 32 on 16 x 16;
    # 32 -> 64 and five 64 -> 64 on 8 x 8; then 64 -> 10.
    first, later = 9 * 3 * 16 * 32 * 32, 9 * 16 * 16 * 32 * 32
    counted = bops.macs(resnet20.ResNet20().eval(), lambda m: m(torch.zeros(1, 3, 32, 32)))
    assert counted["conv1"] == first == 442_368
    assert counted["layer1.0.conv1"] == later == 2_359_296
    # Half the pixels each way, twice the channels each way.
    assert counted["layer2.1.conv2"] == counted["layer3.2.conv1"] == later
    assert counted["layer2.0.conv1"] == counted["layer3.0.conv1"] == later // 2
    assert counted["linear"] == 640
    assert sum(counted.values()) == first + 16 * later + 2 * (later // 2) + 640 == 40_551_040


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_convolution_takes_what_a_naive_loop_multiplies(stride, groups):
    layer = nn.Conv2d(3, 6, (3, 2), stride, padding=1, groups=groups)
    x = torch.zeros(2, 3, 5, 7)
    n, out, height, width = layer(x).shape
    multiplied = 0
    for _ in range(n * out * height * width):
        for _channel in range(3 // groups):
            multiplied += 3 * 2
    assert bops.macs(nn.Sequential(layer), lambda m: m(x)) == {"0": multiplied}


def test_linear_layers_count_every_position_and_unused_layers_nothing():
    model = nn.ModuleDict({"used": nn.Linear(5, 3), "unused": nn.Linear(2, 2)})
    counted = bops.macs(model, lambda m: m["used"](torch.zeros(2, 7, 5)))
    assert counted == {"used": 2 * 7 * 5 * 3, "unused": 0}


def test_bops_by_hand_and_the_hooks_are_gone():
    model = digits_mlp.build()
    counted = bops.macs(model, lambda m: m(torch.zeros(1, 64)))
    assert counted == {"0": 4096, "2": 640}
    assert bops.bops(counted, 4, 8) == (4096 + 640) * 32
    assert bops.bops(counted, {"0": 2, "2": 8}, 8) == 4096 * 16 + 640 * 64
    assert bops.bops(counted, {"0": 2, "2": 8}, {"0": 8, "2": 4}) == 4096 * 16 + 640 * 32
    before = dict(counted)
    model(torch.zeros(9, 64))
    assert counted == before
    assert not any(layer._forward_hooks for layer in model)


def test_the_survey_s_square_is_the_case_of_equal_widths():
    # HAWQ-V3 counts 16 times fewer bit operations at W8A8 than at 32 bits; (8 / 32)^2 = 1 / 16.
    counted = {"a": 100, "b": 7}
    assert bops.bops(counted, 32, 32) == 16 * bops.bops(counted, 8, 8)
    # Weights alone: a factor, not its square.
    assert bops.bops(counted, 32, 32) == 4 * bops.bops(counted, 8, 32)


def test_a_layer_without_a_width_is_refused():
    with pytest.raises(ValueError, match="weight_bits has no width for b; it has a"):
        bops.bops({"a": 1, "b": 1}, {"a": 4}, 8)
    with pytest.raises(ValueError, match="activation_bits=-1 of a is not a width"):
        bops.bops({"a": 1}, 4, -1)
    with pytest.raises(ValueError, match="is not a width"):
        bops.bops({"a": 1}, np.nan, 8)


@pytest.mark.skipif(
    not data.available("resnet20-12fca82f.th"), reason=data.how_to_get("resnet20-12fca82f.th")
)
def test_counting_leaves_the_model_as_it_is():
    model = resnet20.load()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(x)
        bops.macs(model, lambda m: m(x))
        assert torch.equal(model(x), before)
