import pytest
import torch
from torch import nn

from qbook import affine
from qbook.ptq import ocs, ocs_layers


def layers():
    torch.manual_seed(0)
    return [
        (nn.Linear(5, 3), torch.randn(2, 4, 5)),
        (nn.Conv2d(5, 3, (3, 2), stride=2, padding=1), torch.randn(2, 5, 6, 7)),
    ]


@pytest.mark.parametrize("kind", [ocs_layers.SplitWeights, ocs_layers.SplitInputs])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("which", [0, 1])
def test_the_layer_computes_what_it_did(kind, scale, which):
    layer, x = layers()[which]
    layer, x = layer.double(), x.double()
    pieces = ocs.choose(ocs.largest(layer.weight), 4)
    changed = kind(layer, pieces, scale)
    assert layer.weight.shape[1] == 5
    assert changed.layer.weight.shape[1] == 9
    assert repr(changed.layer).split("(")[1].startswith(("in_features=9", "9, 3"))
    # Sums of at most 30 products below 10, in another order.
    assert (changed(x) - layer(x)).abs().max() <= 1e-13
    for j in range(5):
        # Every channel is there, by name: wake one input and compare.
        alone = torch.zeros_like(x)
        alone.movedim(ocs_layers._input_axis(layer), 0)[j] = 1
        assert (changed(alone) - layer(alone)).abs().max() <= 1e-14


def test_split_inputs_are_repeated_with_whole_weights_and_split_weights_with_whole_inputs():
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 8.0]])
    by_weight, by_input = ocs_layers.SplitWeights(layer, [1]), ocs_layers.SplitInputs(layer, [1])
    assert by_weight.layer.weight.tolist() == [[1, 4, 4]]
    assert by_input.layer.weight.tolist() == [[1, 8, 8]]
    seen = []
    by_weight.layer.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    by_input.layer.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    x = torch.tensor([[2.0, 6.0]])
    by_weight(x), by_input(x)
    assert [s.tolist() for s in seen] == [[[2, 6, 6]], [[2, 3, 3]]]


def test_rounded_pieces_and_their_merged_weight_are_the_same_layer():
    layer, x = layers()[1]
    layer, x = layer.double(), x.double()
    pieces = ocs.choose(ocs.largest(layer.weight), 3)
    changed = ocs_layers.SplitWeights(layer, pieces, 0.05)
    qparams = affine.choose_qparams(changed.layer.weight.detach(), 4)
    changed.layer.weight.data = affine.fake_quantize(changed.layer.weight, qparams).detach()
    layer.weight.data = ocs.merge(changed.layer.weight, pieces)
    assert (changed(x) - layer(x)).abs().max() <= 1e-13


def test_a_folded_pair_computes_what_it_did_without_repeating_anything():
    torch.manual_seed(1)
    first, second = nn.Linear(3, 5).double(), nn.Linear(5, 2, bias=False).double()
    x = torch.randn(7, 3, dtype=torch.float64)
    before, after = ocs_layers.fold(first, second, [4, 0, 4], 0.2)
    assert (before.out_features, after.in_features) == (8, 8)
    expected = second(torch.relu(first(x)))
    assert (after(torch.relu(before(x))) - expected).abs().max() <= 1e-14
    assert first.out_features == 5
    assert second.in_features == 5


def test_the_halving_of_inputs_folds_through_a_relu_too():
    # relu(y / 2) = relu(y) / 2: rows of the layer before are halved with its bias.
    torch.manual_seed(2)
    first, second = nn.Linear(3, 5).double(), nn.Linear(5, 2).double()
    x, pieces = torch.randn(7, 3, dtype=torch.float64), [1, 1]
    rows = ocs.split(first.weight, pieces, axis=0)
    bias = ocs.split(first.bias, pieces, axis=0)
    hidden = torch.relu(x @ rows.T + bias)
    assert torch.equal(hidden, ocs.split(torch.relu(first(x)), pieces, axis=-1))
    found = hidden @ second.weight[:, ocs.source(pieces, 5)].T + second.bias
    assert (found - second(torch.relu(first(x)))).abs().max() <= 1e-14


def test_a_module_takes_its_place_in_a_copy():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Sequential(nn.Linear(3, 2))).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    changed = ocs_layers.apply(model, {"2.0": ocs_layers.SplitWeights(model[2][0], [1], 0.1)})
    assert isinstance(changed[2][0], ocs_layers.SplitWeights)
    assert isinstance(model[2][0], nn.Linear)
    assert (changed(x) - model(x)).abs().max() <= 1e-14


def test_layers_that_cannot_be_split_are_refused_with_what_would_work():
    with pytest.raises(ValueError, match=r"groups=2: a split channel"):
        ocs_layers.SplitWeights(nn.Conv2d(4, 4, 1, groups=2), [0])
    with pytest.raises(ValueError, match=r"Conv2d and Linear cannot be folded; pass two nn.Linear"):
        ocs_layers.fold(nn.Conv2d(4, 4, 1), nn.Linear(4, 2), [0])
    with pytest.raises(ValueError, match=r"no layer is called 'x'; this model has 0"):
        ocs_layers.apply(nn.Sequential(nn.Linear(1, 1)), {"x": nn.Identity()})
