import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qbook.models import resnet20, weights


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, (2, 3)),
        nn.BatchNorm2d(5),
        nn.Flatten(),
        nn.Linear(20, 7),
        nn.Embedding(4, 2),
    )


def test_linear_and_convolution_layers_become_matrices_in_order(model):
    shapes = {name: tuple(w.shape) for name, w in weights.weights(model).items()}
    assert list(shapes.items()) == [("0", (5, 18)), ("3", (7, 20))]


def test_the_matrix_of_a_convolution_multiplies_unfolded_patches():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False).double()
    x = torch.randn(2, 3, 7, 9, dtype=torch.float64)
    (matrix,) = weights.weights(conv).values()
    patches = F.unfold(x, 3, padding=1, stride=2)
    expected = conv(x).flatten(2)
    # Sums of 27 products of order 1 in float64: 27 * 2^-53 * a few is below 1e-13.
    assert (matrix @ patches - expected).abs().max() <= 1e-13


def test_the_matrices_are_copies_without_gradients(model):
    before = model[3].weight.clone()
    matrices = weights.weights(model)
    assert not any(w.requires_grad for w in matrices.values())
    matrices["3"].zero_()
    assert torch.equal(model[3].weight, before)


def test_replacing_weights_by_themselves_changes_nothing():
    torch.manual_seed(0)
    model = resnet20.ResNet20().eval()
    copy = weights.replace(model, weights.weights(model))
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(copy(x), model(x))


def test_replace_changes_the_named_layers_of_a_copy_only(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    matrix = torch.arange(90.0).reshape(5, 18)
    replaced = weights.replace(model, {"0": matrix})
    assert torch.equal(weights.weights(replaced)["0"], matrix)
    assert replaced[0].weight.shape == (5, 3, 2, 3)
    assert torch.equal(weights.weights(replaced)["3"], before["3.weight"])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    matrix.zero_()
    assert replaced[0].weight.sum() == 90 * 89 / 2


def test_replace_keeps_the_type_of_the_layer_and_its_gradient(model):
    replaced = weights.replace(model, {"3": torch.ones(7, 20, dtype=torch.float64)})
    assert replaced[3].weight.dtype == torch.float32
    assert replaced[3].weight.requires_grad


def test_an_unknown_layer_is_answered_with_the_known_ones(model):
    with pytest.raises(ValueError, match="no layer is called '1'; this model has 0, 3"):
        weights.replace(model, {"1": torch.ones(5)})


def test_a_matrix_of_another_shape_is_refused(model):
    with pytest.raises(ValueError, match=r"\(20, 7\); the layer's is \(7, 20\)"):
        weights.replace(model, {"3": torch.ones(20, 7)})
