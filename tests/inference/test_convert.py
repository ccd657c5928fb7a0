import pytest
import torch
from torch import nn

from qbook.inference.convert import convert, nbytes
from qbook.inference.int8_linear import Int8Linear


def model():
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 4), nn.Linear(4, 3))


def test_linear_layers_are_replaced_in_a_copy():
    real = model()
    packed = convert(real, Int8Linear)
    assert [type(m) for m in packed] == [nn.Conv2d, nn.Flatten, Int8Linear, Int8Linear]
    assert isinstance(real[2], nn.Linear)
    assert not packed.training


def test_what_is_skipped_stays_real():
    packed = convert(model(), Int8Linear, skip=["3"])
    assert isinstance(packed[2], Int8Linear)
    assert isinstance(packed[3], nn.Linear)


def test_errors_name_the_layer_and_the_way_out():
    with pytest.raises(ValueError, match=r"2: the weight is torch.float64 .*; skip=\['2'\] leaves"):
        convert(model().double(), Int8Linear)
    with pytest.raises(ValueError, match="skip='head' names no module"):
        convert(model(), Int8Linear, skip="head")
    with pytest.raises(ValueError, match="the model has no Linear layer that is not skipped"):
        convert(model(), Int8Linear, skip=["2", "3"])


def test_a_tensor_that_two_layers_share_is_counted_once():
    tied = nn.ModuleDict({"a": nn.Linear(3, 5, bias=False), "b": nn.Linear(3, 5, bias=False)})
    tied["b"].weight = tied["a"].weight
    assert nbytes(tied) == 3 * 5 * 4
    assert nbytes(nn.Linear(3, 5)) == 4 * (3 * 5 + 5)
    assert torch.equal(tied["a"].weight, tied["b"].weight)
