import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from qbook.models import separable
from qbook.ptq import dfq, fold, neighbours


def uneven(*layers, spread=2.0):
    """A float64 model whose channels differ by powers of e, in weights and biases."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(*layers).double()
    for layer in model:
        if hasattr(layer, "weight"):
            rows = torch.randn(len(layer.weight), generator=generator, dtype=torch.float64)
            factor = torch.exp(spread * rows)
            layer.weight.data *= factor.reshape(-1, *[1] * (layer.weight.ndim - 1))
            if layer.bias is not None:
                layer.bias.data *= factor
    return model.eval()


def models():
    torch.manual_seed(0)
    yield uneven(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)), (4, 5)
    yield uneven(nn.Conv2d(2, 3, 3, bias=False), nn.ReLU(), nn.Conv2d(3, 4, 1)), (2, 2, 6, 5)
    yield (
        uneven(
            nn.Conv2d(2, 6, 1),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, padding=1, groups=6),
            nn.ReLU(),
            nn.Conv2d(6, 3, 1),
        ),
        (2, 2, 6, 5),
    )
    yield uneven(nn.Conv1d(2, 6, 2), nn.ReLU(), nn.Conv1d(6, 4, 3, groups=2)), (2, 2, 9)
    yield uneven(*(nn.Linear(4, 4), nn.ReLU()) * 3, nn.Linear(4, 2)), (3, 4)


def by_loops(layer):
    """Largest weight that leaves, and that reads, each channel: one weight at a time."""
    w, groups = layer.weight.detach(), getattr(layer, "groups", 1)
    out, in_ = len(w), w.shape[1] * groups
    leaves, reads = [0.0] * out, [0.0] * in_
    for o in range(out):
        for i in range(w.shape[1]):
            channel = (o // (out // groups)) * w.shape[1] + i
            largest = float(w[o, i].abs().max())
            leaves[o] = max(leaves[o], largest)
            reads[channel] = max(reads[channel], largest)
    return leaves, reads


@pytest.mark.parametrize("case", range(5))
def test_ranges_are_the_largest_weights_of_each_channel(case):
    model, _ = list(models())[case]
    for layer in (model[0], model[2]):
        leaves, reads = by_loops(layer)
        assert dfq.output_ranges(layer).tolist() == leaves
        assert dfq.input_ranges(layer).tolist() == reads


@pytest.mark.parametrize("case", range(4))
def test_after_equalization_the_function_is_the_same_and_the_ranges_are_equal(case):
    model, shape = list(models())[case]
    equal, scales = dfq.equalize(model, tolerance=1e-9)
    x = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        expected, found = model(x), equal(x)
    # Two more roundings for each weight and bias, in sums of a few dozen products.
    assert float((found - expected).abs().max()) <= 1e-12 * float(expected.abs().max())
    for first, second in neighbours.chains(model):
        r1 = dfq.output_ranges(equal.get_submodule(first))
        r2 = dfq.input_ranges(equal.get_submodule(second))
        # The last sweep moved no factor by more than 1e-9.
        assert torch.allclose(r1, r2, rtol=1e-8, atol=0)
    # The factors returned are the ones that were moved.
    w = model[0].weight / scales["0"].reshape(-1, *[1] * (model[0].weight.ndim - 1))
    assert torch.allclose(equal[0].weight, w, rtol=1e-13, atol=0)


def test_one_pair_is_done_in_one_sweep_and_the_ranges_are_geometric_means():
    model, _ = next(models())
    r1, r2 = dfq.output_ranges(model[0]), dfq.input_ranges(model[2])
    equal, _ = dfq.equalize(model, tolerance=1e-12, sweeps=2)
    assert torch.allclose(dfq.output_ranges(equal[0]), torch.sqrt(r1 * r2), rtol=1e-14)
    with pytest.raises(ValueError, match="after 1 sweeps"):
        dfq.equalize(model, tolerance=1e-12, sweeps=1)


def test_a_chain_of_three_spreads_the_range_to_its_geometric_mean():
    # A depthwise middle layer has one range a channel: converged, all three are the cube root.
    model, _ = list(models())[2]
    product = dfq.output_ranges(model[0]) * dfq.output_ranges(model[2]) * dfq.input_ranges(model[4])
    equal, _ = dfq.equalize(model, tolerance=1e-9)
    for r in (
        dfq.output_ranges(equal[0]),
        dfq.output_ranges(equal[2]),
        dfq.input_ranges(equal[4]),
    ):
        assert torch.allclose(r, product ** (1 / 3), rtol=1e-7)


def precisions(r1, r2, s):
    """Every channel's product of precisions, section 4.1: r_i / max r, in both layers."""
    a, b = r1 / s, r2 * s
    return (a / a.max()) * (b / b.max())


@pytest.mark.parametrize("seed", range(5))
def test_no_scales_give_any_channel_a_larger_product_of_precisions(seed):
    rng = np.random.default_rng(seed)
    r1, r2 = np.exp(rng.normal(size=(2, 4)))
    s = dfq.equalizing_scales(torch.tensor(r1), torch.tensor(r2)).numpy()
    best = precisions(r1, r2, s)
    assert np.all(np.abs(best - r1 * r2 / (r1 * r2).max()) <= 1e-14)
    for trial in np.exp(rng.normal(scale=2, size=(2000, 4))):
        # Rounding alone may let another optimum look better.
        assert np.all(precisions(r1, r2, trial) <= best * (1 + 1e-13))
    # A search that starts elsewhere climbs to the same sum, and no higher.
    climbed = minimize(
        lambda logs: -precisions(r1, r2, np.exp(logs)).sum(),
        rng.normal(size=4),
        method="Nelder-Mead",
        options={"maxiter": 4000, "maxfev": 4000, "xatol": 1e-8, "fatol": 1e-10},
    )
    assert best.sum() * (1 - 1e-2) <= -climbed.fun <= best.sum() * (1 + 1e-12)


def test_dead_channels_are_left_alone():
    s = dfq.equalizing_scales(
        torch.tensor([0.0, 2.0, 0.0, 8.0]), torch.tensor([1.0, 0.0, 0.0, 2.0])
    )
    assert s.tolist() == [1, 1, 1, 2]


def test_a_planted_disparity_is_undone():
    model, shape = next(models())
    s = torch.exp(torch.linspace(-3, 4, 7, dtype=torch.float64))
    planted = dfq.rescale(model, "0", "2", s)
    x = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        expected, found = model(x), planted(x)
    assert float((found - expected).abs().max()) <= 1e-12 * float(expected.abs().max())
    assert torch.allclose(planted[0].weight, model[0].weight / s[:, None])
    equal, again = dfq.equalize(model)[0], dfq.equalize(planted)[0]
    assert torch.allclose(again[0].weight, equal[0].weight, rtol=1e-12)
    assert torch.allclose(again[0].bias, equal[0].bias, rtol=1e-12)
    assert torch.allclose(again[2].weight, equal[2].weight, rtol=1e-12)


def test_relu6_would_not_be_the_same_function_and_is_not_offered():
    model = uneven(nn.Linear(5, 7), nn.ReLU6(), nn.Linear(7, 3))
    assert neighbours.chains(model) == []
    x = 20 * torch.randn(64, 5, dtype=torch.float64)
    forced, _ = dfq.equalize(model, [("0", "2")])
    with torch.no_grad():
        assert float((forced(x) - model(x)).abs().max()) >= 0.1


def test_a_bias_that_is_absorbed_leaves_the_function_where_no_input_is_cut():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 4, 3)).double()
    model[0].bias.data = torch.tensor([9.0, 0.5, -9.0]).double()
    std = model[0].weight.detach().flatten(1).norm(dim=1)
    statistics = {"0": fold.Normal(model[0].bias.detach().clone(), std)}
    absorbed, shifts = dfq.absorb(model, statistics)
    # max(0, mean - 3 std): only the first is high.
    assert torch.allclose(shifts["0"], (9 - 3 * std) * torch.tensor([1.0, 0, 0]))
    x = torch.randn(50, 2, 6, 6, dtype=torch.float64)
    y = model[0](x)
    high = (y[:, 0] >= shifts["0"][0]).flatten(1).all(1)
    with torch.no_grad():
        error = (absorbed(x) - model(x)).abs().flatten(1).amax(1)
    assert 0 < int(high.sum()) < 50
    assert bool((error[high] <= 1e-12).all())
    assert bool((error[~high] > 1e-12).all())
    moved = dfq.moved_statistics(statistics, {"0": torch.tensor([2.0, 1, 1])}, shifts)
    assert torch.allclose(moved["0"].mean[0], 9 / 2 - shifts["0"][0])
    assert torch.allclose(moved["0"].std, std / torch.tensor([2.0, 1, 1]))


def test_with_zero_padding_an_absorbed_bias_is_wrong_at_the_border_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1)).double()
    model[0].bias.data += 50
    statistics = {"0": fold.Normal(model[0].bias.detach().clone(), torch.ones(3).double())}
    absorbed, _ = dfq.absorb(model, statistics)
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        error = (absorbed(x) - model(x)).abs()
    assert float(error[:, :, 1:-1, 1:-1].max()) <= 1e-12
    assert float(error[:, :, 0].min()) >= 0.1


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_what_weights_make_of_a_constant_input_is_the_layers_output(groups):
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 12, 3, groups=groups, bias=False).double()
    mean = torch.randn(6, dtype=torch.float64)
    with torch.no_grad():
        y = layer(mean[None, :, None, None].expand(1, 6, 3, 3)).flatten()
    assert torch.allclose(dfq.through(layer, layer.weight, mean), y, rtol=1e-12)


def test_the_separable_network_equalizes_whole():
    torch.manual_seed(0)
    model = separable.SeparableNet().eval().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var = torch.exp(2 * torch.randn(module.num_features)).double()
    folded = fold.fold(model)
    equal, scales = dfq.equalize(folded)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected, found = model(x), equal(x)
    assert len(scales) == 11
    assert float((found - expected).abs().max()) <= 1e-11 * float(expected.abs().max())


def test_bad_names_shapes_and_factors_are_refused_and_nothing_is_modified():
    model, _ = next(models())
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="no layer is called '1'"):
        dfq.equalize(model, [("0", "1")])
    with pytest.raises(ValueError, match="3 channels meet 5"):
        dfq.equalize(model, [("2", "0")])
    with pytest.raises(ValueError, match="s must be positive"):
        dfq.rescale(model, "0", "2", -torch.ones(7))
    with pytest.raises(ValueError, match="7 channels meet 3"):
        dfq.rescale(model, "0", "2", torch.ones(3))
    dfq.equalize(model)
    dfq.absorb(model, {"0": fold.Normal(torch.ones(7), torch.zeros(7))})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
