import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from qbook import affine
from qbook.ptq import adaround, reconstruction
from qbook.qat import lsq


class Residual(nn.Module):
    """A block that reads a layer's attribute and adds its own input, as ResNet's do."""

    def __init__(self, channels=3):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 5, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(5, channels, 3, padding=1)
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        assert self.conv1.out_channels == 5
        return torch.relu(x + self.scale * self.conv2(torch.relu(self.conv1(x))))


def mlp(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 4)).double()


def residual(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Residual().double()


def samples(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


BLOCKS = [(mlp, (60, 7)), (residual, (20, 3, 6, 5))]


def naive_forward_of_the_mlp(block, x):
    """Rounded weights and inputs by the affine quantizer alone."""
    for layer in reconstruction.rounded_layers(block):
        if layer.step is not None:
            grid = lsq.qparams(layer.step, layer.bits, signed=layer.signed)
            x = affine.fake_quantize(x, grid)
        w_hat = affine.dequantize(layer.codes(), layer.qparams)
        x = x @ w_hat.T + layer.bias.detach()
        if layer is not reconstruction.rounded_layers(block)[-1]:
            x = torch.relu(x)
    return x


@pytest.mark.parametrize("act_bits", [None, 3, 8])
@pytest.mark.parametrize("steps", [0, 5])
def test_the_rounded_block_is_the_affine_quantizer_before_every_product(act_bits, steps):
    x = samples(60, 7)
    block = reconstruction.round_layers(mlp(), x, 2, act_bits)
    block = reconstruction.fit(block, x, mlp()(x).detach(), steps=steps)
    # The same products, summed in the same order or another.
    assert_allclose(
        reconstruction.run(block, x), naive_forward_of_the_mlp(block, x), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(("build", "shape"), BLOCKS)
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_before_training_every_weight_has_its_nearest_code(build, shape, bits):
    block = reconstruction.round_layers(build(), samples(*shape), bits)
    for layer in reconstruction.rounded_layers(block):
        w = layer.layer.weight.flatten(1)
        nearest = affine.quantize(w, layer.qparams)
        # Where a weight lies halfway, h = 1/2 goes up and half-to-even may not; none does here.
        assert_array_equal(layer.codes(), nearest)
        assert layer.codes().shape == w.shape


@pytest.mark.parametrize(("build", "shape"), BLOCKS)
def test_the_start_of_training_is_the_real_block_where_no_weight_is_clipped(build, shape):
    x = samples(*shape)
    block = reconstruction.round_layers(build(), x, 8)
    for layer in reconstruction.rounded_layers(block):
        layer.hard = False
        # The range of least MSE clips; widen it.
        layer.qparams = affine.choose_qparams(
            1.01 * layer.layer.weight.flatten(1), 8, axis=1, symmetric=False
        )
        position = layer.layer.weight.flatten(1) / layer.qparams.scale
        layer.logits.data = adaround.initial_logits(position - torch.floor(position)).detach()
    # Logits and back: a few ulp of weights near 1, over sums of 27 products.
    assert_allclose(reconstruction.run(block, x), build()(x).detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("build", "shape"), BLOCKS)
@pytest.mark.parametrize("bits", [2, 4])
def test_learnt_codes_are_integers_in_range_within_a_step_of_the_weight(build, shape, bits):
    x = samples(*shape)
    block = reconstruction.round_layers(build(), x, bits, 4)
    block = reconstruction.fit(block, x, build()(x).detach(), steps=40, learning_rate=0.1)
    changed = 0
    for layer in reconstruction.rounded_layers(block):
        codes, qparams = layer.codes(), layer.qparams
        assert codes.dtype == torch.int8
        assert qparams.qmin <= codes.min()
        assert codes.max() <= qparams.qmax
        position = layer.layer.weight.flatten(1) * (1 / qparams.scale)
        inside = torch.clamp(position + qparams.zero_point, qparams.qmin, qparams.qmax)
        assert (codes - inside).abs().max() <= 1 + 1e-12
        changed += int((codes != affine.quantize(layer.layer.weight.flatten(1), qparams)).sum())
        assert layer.hard
        assert layer.mix is None
    assert changed > 0


@pytest.mark.parametrize("asymmetric", [False, True])
def test_one_layer_seen_whole_without_activations_is_adaround(asymmetric):
    layer = nn.Linear(7, 3, bias=False).double()
    w = layer.weight.detach().clone()
    # Correlated inputs, where rounding has something to decide.
    real = samples(64, 7, seed=1) @ samples(7, 7, seed=2)
    x = real + 0.2 * samples(64, 7, seed=3) if asymmetric else real
    y = real @ w.T
    block = reconstruction.round_layers(layer, x, 3)
    assert_array_equal(block.codes(), affine.quantize(w, block.qparams))
    lam = 0.05
    schedule = {"steps": 60, "learning_rate": 0.1, "lam": lam}
    *_, v = adaround.descend(w, x, block.qparams, y=y, **schedule)
    learnt = reconstruction.fit(block, x, y, batch_size=None, **schedule)
    assert ((v > -2) & (v < 2)).any()
    # Rounding of 1e-16 grows over 60 steps, at worst where a gradient crosses zero.
    assert_allclose(learnt.logits.detach(), v, rtol=0, atol=1e-8)
    # The objective itself, at the end: errors of the rows add up to the block's.
    found = reconstruction.loss(reconstruction.run(learnt, x), y)
    expected = adaround.errors(w, learnt.codes(), x, block.qparams, y=y).sum()
    assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("beta", [1, 2, 20])
def test_the_regulariser_is_adaround_s_summed_over_layers_and_has_its_slope(beta):
    block = reconstruction.round_layers(mlp(), samples(9, 7), 3)
    layers = reconstruction.rounded_layers(block)
    expected = sum(
        adaround.regulariser(adaround.rectified_sigmoid(layer.logits.detach()), beta)
        for layer in layers
    )
    found = reconstruction.regulariser(block, beta)
    assert_allclose(found.item(), expected, rtol=1e-13)
    (slope,) = torch.autograd.grad(found, layers[0].logits)
    v = layers[0].logits.detach().clone()
    v[0, 0] += 1e-6
    moved = adaround.regulariser(adaround.rectified_sigmoid(v), beta)
    still = adaround.regulariser(adaround.rectified_sigmoid(layers[0].logits.detach()), beta)
    # A forward difference of a value near 40 in float64: 1e-8 from rounding, 1e-6 from curvature.
    assert abs((moved - still) / 1e-6 - slope[0, 0]) <= 1e-3


def test_the_loss_sums_over_a_sample_and_means_over_samples():
    output, target = samples(5, 3, 2, 2), samples(5, 3, 2, 2, seed=1)
    importance = samples(5, 3, 2, 2, seed=2).abs()
    for weight in (None, importance):
        for p in (2.0, 2.4):
            expected = 0.0
            for index in np.ndindex(5, 3, 2, 2):
                factor = 1 if weight is None else float(weight[index])
                expected += factor * abs(float(output[index] - target[index])) ** p / 5
            found = reconstruction.loss(output, target, importance=weight, p=p)
            assert_allclose(found, expected, rtol=1e-12)


def test_joint_training_beats_nearest_rounding_and_layers_trained_apart():
    ratios = []
    for seed in range(4):
        real, x = mlp(seed), samples(200, 7, seed=seed) @ samples(7, 7, seed=9)
        y = real(x).detach()
        schedule = {"steps": 300, "learning_rate": 0.03, "batch_size": None}
        nearest = reconstruction.round_layers(real, x, 3)
        joint = reconstruction.fit(nearest, x, y, **schedule)
        apart = nn.Sequential()
        for part in real:
            if isinstance(part, nn.Linear):
                hidden = apart(x).detach() if len(apart) else x
                target = real[: len(apart) + 1](x).detach()
                rounded = reconstruction.round_layers(part, hidden, 3)
                part = reconstruction.fit(rounded, hidden, target, **schedule)
            apart.append(part)
        ratios.append(
            [
                float(reconstruction.loss(reconstruction.run(block, x), y))
                for block in (joint, apart, nearest)
            ]
        )
    joint, apart, nearest = np.log(ratios).mean(axis=0)
    # Geometric means over four networks.
    assert joint <= apart + np.log(0.95)
    assert apart <= nearest + np.log(0.7)


def test_learnt_steps_lower_the_error_and_stay_positive():
    x = samples(100, 7)
    y = mlp()(x).detach()
    block = reconstruction.round_layers(mlp(), x, 8, 2)
    wide = copy.deepcopy(block)
    for layer in reconstruction.rounded_layers(wide):
        layer.step.data *= 1.7
    before = reconstruction.loss(reconstruction.run(wide, x), y)
    learnt = reconstruction.fit(wide, x, y, steps=300, step_learning_rate=0.02)
    assert reconstruction.loss(reconstruction.run(learnt, x), y) <= 0.9 * before
    thrown = reconstruction.fit(wide, x, y, steps=3, step_learning_rate=50.0)
    assert all(layer.step > 0 for layer in reconstruction.rounded_layers(thrown))


def test_importance_decides_which_outputs_come_out_well():
    real, x = mlp(), samples(200, 7)
    y = real(x).detach()
    block = reconstruction.round_layers(real, x, 2)
    importance = torch.zeros_like(y)
    importance[:, 1] = 1
    schedule = {"steps": 200, "learning_rate": 0.05, "batch_size": None}
    one = reconstruction.fit(block, x, y, importance=importance, **schedule)
    every = reconstruction.fit(block, x, y, **schedule)
    error = [((reconstruction.run(b, x) - y) ** 2).mean(0) for b in (one, every)]
    assert error[0][1] < 0.8 * error[1][1]
    assert error[0].sum() > error[1].sum()


def test_the_same_seed_repeats_and_nothing_is_modified():
    real, x = residual(), samples(40, 3, 6, 5)
    y, before = real(x).detach(), copy.deepcopy(real.state_dict())
    block = reconstruction.round_layers(real, x, 2, 4)
    kept = copy.deepcopy(block.state_dict())
    state = torch.random.get_rng_state()
    runs = [reconstruction.fit(block, x, y, steps=6, batch_size=8, seed=s) for s in (0, 0, 1)]
    assert torch.equal(state, torch.random.get_rng_state())
    for name, value in real.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.requires_grad for p in real.parameters())
    for name, value in block.state_dict().items():
        assert torch.equal(value, kept[name])
    logits = [reconstruction.rounded_layers(r)[0].logits.detach() for r in runs]
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": torch.zeros(0, 7)}, "0 samples"),
        ({"inputs": torch.full((9, 7), torch.nan)}, "inputs holds NaN"),
        ({"targets": torch.full((9, 4), torch.inf)}, "targets holds NaN or infinity"),
        ({"targets": torch.zeros(8, 4)}, "targets holds 8 samples; pass 9"),
        ({"importance": torch.full((9, 4), torch.nan)}, "importance holds NaN"),
        ({"beta": (20, 0.5)}, "beta"),
    ],
    ids=str,
)
def test_bad_calibration_is_named(change, message):
    block = reconstruction.round_layers(mlp(), samples(9, 7), 3)
    arguments = {"inputs": samples(9, 7), "targets": samples(9, 4)} | change
    with pytest.raises(ValueError, match=message):
        reconstruction.fit(block, steps=3, **arguments)


def test_a_block_without_layers_and_empty_calibration_are_named():
    with pytest.raises(ValueError, match="no Linear or Conv2d"):
        reconstruction.round_layers(nn.ReLU(), samples(9, 7), 3)
    with pytest.raises(ValueError, match="0 samples; pass at least one"):
        reconstruction.round_layers(mlp(), samples(9, 7)[:0], 3)
    with pytest.raises(ValueError, match="NaN"):
        reconstruction.round_layers(mlp(), samples(9, 7) * torch.nan, 3)
