import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from qbook.models import resnet20, separable
from qbook.ptq import fold


def trained(norm):
    """The norm in eval mode with parameters and statistics as training might leave them."""
    generator = torch.Generator().manual_seed(0)

    def draw():
        return torch.randn(norm.num_features, generator=generator, dtype=torch.float64)

    norm.running_mean, norm.running_var = draw(), torch.exp(3 * draw())
    if norm.affine:
        norm.weight.data, norm.bias.data = draw(), draw()
    return norm.eval()


def layers_and_norms():
    torch.manual_seed(0)
    yield nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), (2, 3, 7, 6)
    yield nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), (2, 4, 5, 5)
    yield nn.Conv2d(6, 4, 1, groups=2), nn.BatchNorm2d(4, affine=False), (1, 6, 3, 3)
    yield nn.Conv1d(2, 3, 2, stride=2), nn.BatchNorm1d(3, eps=0.5), (3, 2, 9)
    yield nn.Linear(7, 1), nn.BatchNorm1d(1), (4, 7)


@pytest.mark.parametrize("case", range(5))
def test_a_folded_layer_is_the_layer_and_its_norm(case):
    layer, norm, shape = list(layers_and_norms())[case]
    model = nn.Sequential(layer, norm).double()
    trained(norm)
    x = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        expected, found = model(x), fold.fold(model)(x)
    # A few dozen roundings of 1e-16 of values that gamma / sqrt(var) leaves below a hundred.
    assert float((found - expected).abs().max()) <= 1e-12


@pytest.mark.parametrize("case", range(5))
def test_folding_equals_torch(case):
    layer, norm, _ = list(layers_and_norms())[case]
    layer, norm = layer.double().eval(), trained(norm.double())
    fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
    theirs = fuse(layer, norm)
    weight, bias = fold.fold_pair(layer, norm)
    # The same formula in another order: a few ulp.
    assert torch.allclose(weight, theirs.weight, rtol=1e-14, atol=0)
    assert torch.allclose(bias, theirs.bias, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("network", [resnet20.ResNet20, separable.SeparableNet])
def test_a_folded_network_computes_the_same_without_any_norm(network):
    torch.manual_seed(0)
    model = network().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            trained(module)
            # Gains near 1, so that twenty layers neither vanish nor blow up.
            module.running_var = module.running_var.clamp(0.5, 2)
    model.eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    folded = fold.fold(model)
    with torch.no_grad():
        expected, found = model(x), folded(x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    # Errors of 1e-16 that at most twenty layers amplify, relative to the logits.
    assert float((found - expected).abs().max()) <= 1e-12 * float(expected.abs().max())


def test_statistics_are_those_of_outputs_whose_batch_the_norm_has_seen():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3, momentum=1.0)).double()
    model[1].weight.data = torch.tensor([0.5, -2.0, 3.0]).double()
    model[1].bias.data = torch.tensor([1.0, 0.0, -4.0]).double()
    x = torch.randn(8, 2, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        y = model(x)
    model.eval()
    mean, std = fold.statistics(model)["0"]
    y = y.transpose(0, 1).flatten(1)
    # eps = 1e-5 against variances near 0.5 takes a part in 1e5 off the standard deviation.
    assert torch.allclose(mean, y.mean(1), atol=1e-12)
    assert torch.allclose(std, y.std(1, unbiased=False), rtol=1e-4)


def test_pairs_may_be_named_and_then_nothing_is_traced():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)

        def forward(self, x):
            return self.norm(self.layer(x)) if x.sum() > 0 else self.norm(self.layer(-x))

    model = Branch().double()
    trained(model.norm)
    x = torch.randn(5, 3, dtype=torch.float64)
    with torch.no_grad():
        assert float((fold.fold(model, [("layer", "norm")])(x) - model(x)).abs().max()) <= 1e-12


def test_half_precision_layers_stay_so():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).bfloat16().eval()
    assert fold.fold(model)[0].weight.dtype == fold.fold(model)[0].bias.dtype == torch.bfloat16


def test_a_norm_that_cannot_be_folded_says_why():
    layer = nn.Linear(3, 4)
    with pytest.raises(ValueError, match=r"training mode; call model.eval\(\)"):
        fold.fold(nn.Sequential(layer, nn.BatchNorm1d(4)))
    with pytest.raises(ValueError, match="no running statistics"):
        fold.fold(nn.Sequential(layer, nn.BatchNorm1d(4, track_running_stats=False)).eval())
    with pytest.raises(ValueError, match="4 outputs, 1 5 channels"):
        fold.fold(nn.Sequential(layer, nn.BatchNorm1d(5)).eval())
    model = nn.Sequential(layer, nn.BatchNorm1d(4), nn.ReLU()).eval()
    with pytest.raises(ValueError, match="'2' names ReLU"):
        fold.fold(model, [("0", "2")])
    with pytest.raises(ValueError, match="'9' names nothing"):
        fold.statistics(model, [("9", "1")])


def test_the_model_stays_as_it_is():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fold.fold(model), fold.statistics(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert isinstance(model[1], nn.BatchNorm1d)
