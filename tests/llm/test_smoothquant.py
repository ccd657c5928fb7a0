import copy
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from qbook.llm import smoothquant
from qbook.models import char_gpt
from qbook.models.weights import weights

IDS = torch.randint(65, (3, 50), generator=torch.Generator().manual_seed(0))


def groups(writers=True):
    """What a pre-LN block allows: its two norms, or the readers' own division"""
    found = []
    for i in range(char_gpt.LAYERS):
        block = f"blocks.{i}."
        qkv = [block + f"attention.{name}" for name in ("query", "key", "value")]
        found.append((block + "attention_norm" if writers else None, qkv))
        found.append((block + "mlp_norm" if writers else None, [block + "up"]))
        if not writers:
            found.append((None, [block + "down"]))
    return found


def run(model):
    model(IDS[:2])
    model(IDS[2:, :7])


@pytest.fixture(scope="module")
def model():
    return char_gpt.load()


@pytest.fixture(scope="module")
def maxima(model):
    return smoothquant.maxima(model, run)


# Relative to the largest logit.  Each of some twenty roundings in a row is relative 2^-24 or
# 2^-53; sums of 512 terms multiply them by at most their condition, about ten here.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("alpha", [0, 0.5, 0.85, 1])
@pytest.mark.parametrize("writers", [True, False])
@torch.no_grad()
def test_smoothing_leaves_the_function_alone(model, maxima, dtype, tolerance, alpha, writers):
    real = copy.deepcopy(model).to(dtype)
    smoothed = smoothquant.smooth(real, groups(writers), maxima, alpha)
    before, after = real(IDS), smoothed(IDS)
    assert after.dtype == dtype
    assert float((after - before).abs().max() / before.abs().max()) <= tolerance
    # It did move something, and not in the model that was given.
    w = smoothed.blocks[0].up
    w = w.weight if writers else w.linear.weight
    assert float((w / real.blocks[0].up.weight - 1).abs().max()) > 0.1
    assert torch.equal(real.blocks[0].up.weight, model.blocks[0].up.weight.to(dtype))


@pytest.mark.parametrize("count", [1, 7, 130])
def test_at_one_half_the_maxima_of_both_sides_are_equal_and_at_the_ends_one_is_flat(count):
    rng = np.random.default_rng(count)
    x, w = rng.normal(size=(20, count)), rng.normal(size=(9, count))
    x_max, w_max = np.abs(x).max(axis=0), np.abs(w).max(axis=0)
    s = smoothquant.scales(x_max, w_max)
    # One square root and one division: a few units of 1e-16.
    assert_allclose(np.abs(x / s).max(axis=0), np.abs(w * s).max(axis=0), rtol=1e-14)
    assert_allclose(np.abs(x / s).max(axis=0), np.sqrt(x_max * w_max), rtol=1e-14)
    assert_allclose(np.abs(w * smoothquant.scales(x_max, w_max, 0)).max(axis=0), 1, rtol=1e-14)
    assert_allclose(np.abs(x / smoothquant.scales(x_max, w_max, 1)).max(axis=0), 1, rtol=1e-14)


@torch.no_grad()
def test_readers_of_one_input_share_the_largest_weight_of_all_three(model, maxima):
    smoothed = smoothquant.smooth(model, groups(), maxima)
    after = smoothquant.maxima(smoothed, run)
    attention = smoothed.blocks[2].attention
    together = [getattr(attention, name).weight.abs().amax(0) for name in ("query", "key", "value")]
    x_max = after["blocks.2.attention.query"]
    # float32, the factors applied once to each side.
    assert_allclose(x_max, torch.stack(together).amax(0), rtol=1e-5)
    assert torch.equal(x_max, after["blocks.2.attention.value"])
    assert not torch.allclose(x_max, together[0], rtol=1e-2)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.85, 1.0])
def test_the_factors_are_those_of_torchao(alpha):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        core = pytest.importorskip("torchao.prototype.smoothquant.core")
    g = torch.Generator().manual_seed(1)
    x, w = torch.randn(2, 31, 13, generator=g) * 20, torch.randn(5, 13, generator=g)
    observer = core.SmoothQuantObserver(w, alpha)
    observer(x)
    s = smoothquant.scales(x.flatten(0, 1).abs().amax(0), w.abs().amax(0), alpha)
    # torchao adds 1.2e-7 to magnitudes above 0.1 where we clamp: relative 1e-6.
    assert_allclose(s, observer.calculate_qparams()[0], rtol=5e-6)


def test_magnitudes_of_zero_are_clamped_as_in_the_released_code():
    x_max, w_max = np.array([0.0, 4.0, 4.0]), np.array([1.0, 0.0, 1.0])
    # sqrt(0 / 1) clamped; sqrt(4 / 1e-5); sqrt(4 / 1)
    expected = [1e-5, 2 / np.sqrt(1e-5), 2]
    assert_allclose(smoothquant.scales(x_max, w_max), expected, rtol=1e-14)


def naive(model, x, bits, level, largest, per_row):
    """Independent: one Linear rounded as the level says, in float64 -> y"""
    qmax = 2 ** (bits - 1) - 1
    w, x = model.weight.double(), x.double()
    step_w = (w.abs().amax(dim=1, keepdim=True) if per_row else w.abs().max()) / qmax
    if level == "O1":
        step_x = x.abs().amax(dim=-1, keepdim=True) / qmax
    else:
        step_x = (x.abs().max() if level == "O2" else largest) / qmax
    codes = torch.round(x / step_x).clamp(-qmax, qmax)
    return step_x * codes @ (step_w * torch.round(w / step_w)).T + model.bias.double()


@pytest.mark.parametrize("level", smoothquant.LEVELS)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("per_row", [False, True])
@torch.no_grad()
def test_each_level_rounds_as_it_says(level, bits, per_row):
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(13, 7)).double()
    calibrated, x = torch.randn(40, 13).double(), 2 * torch.randn(2, 5, 13).double()
    maxima = smoothquant.maxima(net, lambda m: m(calibrated))
    found = smoothquant.simulate(net, level, bits=bits, x_maxima=maxima, per_row=per_row)(x)
    expected = naive(net[0], x, bits, level, calibrated.abs().max(), per_row)
    # Division and multiplication by the reciprocal differ by an ulp; no value lies on a tie.
    assert float((found - expected).abs().max()) <= 1e-13
    # Twice as large as what was calibrated on: O3 saturates.
    assert float(x.abs().max()) > float(calibrated.abs().max())


@torch.no_grad()
def test_only_the_named_layers_are_quantized(model, maxima):
    named = [name for name in weights(model) if name != "head"]
    quantized = smoothquant.simulate(model, "O3", names=named, x_maxima=maxima)
    changed = {n for n, w in weights(quantized).items() if not torch.equal(w, weights(model)[n])}
    assert changed == set(named)
    seen = []
    quantized.head.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    quantized(IDS)
    # Its input is not on a grid of 255 values.
    assert len(seen[0].unique()) > 255


@torch.no_grad()
def test_planted_outliers_are_repaired(model):
    from qbook.llm import scaling

    readers = [f"blocks.1.attention.{name}" for name in ("query", "key", "value")]
    spoilt = scaling.plant(model, "blocks.1.attention_norm", readers, [5, 60], 60.0)
    maxima = smoothquant.maxima(spoilt, run)
    pairs = [("blocks.1.attention_norm", readers)]
    before = model(IDS)

    def error(m):
        return float((smoothquant.simulate(m, "O2", names=readers)(IDS) - before).pow(2).mean())

    errors = [error(smoothquant.smooth(spoilt, pairs, maxima, a)) for a in (0.5, 0, 1)]
    # The outliers cost two channels of 128 sixty times the step for all others.
    assert errors[0] < error(spoilt) / 100
    assert errors[0] < min(errors[1:])


def test_what_cannot_be_used_is_refused(model, maxima):
    one = np.ones(3)
    for alpha in (-0.1, 1.5, float("nan"), "0.5"):
        with pytest.raises(ValueError, match=f"alpha={alpha!r} is not between 0 and 1"):
            smoothquant.scales(one, one, alpha)
    with pytest.raises(ValueError, match=r"x_max has shape \(3,\) and w_max \(2,\)"):
        smoothquant.scales(one, one[:2])
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="w_max must hold finite magnitudes"):
            smoothquant.scales(one, np.array([1.0, bad, 1.0]))
        with pytest.raises(ValueError, match="x_max must hold finite magnitudes"):
            smoothquant.scales(np.array([1.0, bad, 1.0]), one)
    with pytest.raises(ValueError, match=r"lacks blocks.0.up; calibrate with maxima\(\)"):
        smoothquant.smooth(model, [("blocks.0.mlp_norm", ["blocks.0.up"])], {})
    with pytest.raises(ValueError, match="level='O4' does not exist; choose one of O1, O2, O3"):
        smoothquant.simulate(model, "O4")
    with pytest.raises(ValueError, match=r"O3 needs x_maxima of blocks.0.attention.query"):
        smoothquant.simulate(model, "O3")
    with pytest.raises(ValueError, match=r"no Linear is called 'up'; there are blocks.0.attention"):
        smoothquant.simulate(model, names=["up"])
    with pytest.raises(ValueError, match="the input of 0 holds NaN or infinity"):
        smoothquant.maxima(nn.Sequential(nn.Linear(2, 2)), lambda m: m(torch.tensor([1, np.nan])))
