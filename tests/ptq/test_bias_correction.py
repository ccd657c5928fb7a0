import math

import pytest
import torch
from scipy import integrate, stats
from torch import nn

from qbook import affine
from qbook.models import weights
from qbook.ptq import bias_correction, fold


def rounded(model, bits=3):
    """One scale a tensor, few bits: errors that a test can see."""
    matrices = weights.weights(model)
    return weights.replace(
        model,
        {n: affine.fake_quantize(w, affine.choose_qparams(w, bits)) for n, w in matrices.items()},
    )


@pytest.mark.parametrize(("low", "high"), [(0, math.inf), (0, 6), (-1, 2), (-math.inf, 1.5)])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-2.5, 0.7), (4.0, 3.0), (1.0, 0.05)])
def test_the_mean_of_a_clipped_normal_is_the_integral(mean, std, low, high):
    normal = stats.norm(mean, std)
    inside, _ = integrate.quad(
        lambda y: y * normal.pdf(y),
        max(low, mean - 40 * std),
        min(high, mean + 40 * std),
        points=[mean - std, mean, mean + std],
        epsabs=1e-13,
        limit=400,
    )
    expected = inside
    if math.isfinite(low):
        expected += low * normal.cdf(low)
    if math.isfinite(high):
        expected += high * normal.sf(high)
    found = bias_correction.clipped_mean(
        torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64), low, high
    )
    # The quadrature's own tolerance.
    assert abs(float(found) - expected) <= 1e-10


def test_the_relu_of_a_normal_by_hand_and_its_limits():
    one, zero = torch.tensor(1.0), torch.tensor(0.0)
    assert abs(float(bias_correction.clipped_mean(zero, one)) - 1 / math.sqrt(2 * math.pi)) <= 1e-7
    mean = torch.tensor([-3.0, 0.0, 2.0, 9.0])
    assert bias_correction.clipped_mean(mean, torch.zeros(4)).tolist() == [0, 0, 2, 9]
    assert bias_correction.clipped_mean(mean, torch.zeros(4), 0, 6).tolist() == [0, 0, 2, 6]
    with pytest.raises(ValueError, match="low=1 is above high=0"):
        bias_correction.clipped_mean(one, one, 1, 0)


def small():
    """Convolutions without padding, so that every tap reads an input, and a linear layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 6, 1, groups=3, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 5),
    ).double()


def test_with_the_true_input_means_each_layer_has_the_mean_output_it_had():
    model, x = small(), 1 + torch.randn(16, 2, 4, 4, dtype=torch.float64)
    quantized = rounded(model)
    means = bias_correction.measured_inputs(model, lambda m: m(x))
    # A 3 x 3 kernel's taps read different windows: their means agree only for a constant input.
    del means["0"]
    corrected = bias_correction.correct(model, quantized, means)
    layers = [dict(weights.layers(m)) for m in (model, quantized, corrected)]
    with torch.no_grad():
        inputs = {"2": model[:2](x), "5": model[:5](x)}
        for name, value in inputs.items():
            axes = (0,) if name == "5" else (0, 2, 3)
            wanted, before, after = (m[name](value).mean(axes) for m in layers)
            # Sums of a few hundred terms of size 1.
            assert float((after - wanted).abs().max()) <= 1e-12
            assert float((before - wanted).abs().max()) >= 1e-3


def test_measured_inputs_are_means_over_images_and_positions():
    model, x = small(), torch.randn(6, 2, 4, 4, dtype=torch.float64)
    means = bias_correction.measured_inputs(model, lambda m: (m(x[:4]), m(x[4:])))
    assert torch.allclose(means["0"], x.mean((0, 2, 3)), rtol=1e-12)
    assert torch.allclose(means["5"], model[:5](x).mean(0), rtol=1e-12)


def test_matched_outputs_are_those_of_the_model_in_every_layer_at_once():
    model, x = small(), 1 + torch.randn(16, 2, 5, 5, dtype=torch.float64)
    model[5] = nn.Linear(54, 5).double()
    corrected = bias_correction.match_outputs(model, rounded(model), lambda m: m(x))
    with torch.no_grad():
        for depth, axes in ((1, (0, 2, 3)), (3, (0, 2, 3)), (6, 0)):
            wanted, found = (m[:depth](x).mean(axes) for m in (model, corrected))
            assert float((found - wanted).abs().max()) <= 1e-12


def test_expected_inputs_are_those_of_normal_outputs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    # A normal input makes the outputs normal: mean b, standard deviation |w|.
    n = 200_000
    x = torch.special.ndtri((torch.arange(n).double() + 0.5) / n)[:, None]
    w, b = model[0].weight.detach()[:, 0], model[0].bias.detach()
    expected = bias_correction.expected_inputs(model, {"0": fold.Normal(b, w.abs())})
    measured = bias_correction.measured_inputs(model, lambda m: m(x))
    assert list(expected) == ["2"]
    # Midpoints of 200 000 quantiles: the two tails beyond them weigh about 1e-5.
    assert torch.allclose(expected["2"], measured["2"], atol=1e-4)
    assert bias_correction.expected_inputs(model, {}) == {}


def test_names_and_models_that_do_not_fit_are_refused_and_nothing_is_modified():
    model = small()
    quantized = rounded(model)
    before = [p.detach().clone() for p in quantized.parameters()]
    with pytest.raises(ValueError, match="no layer is called '1'"):
        bias_correction.correct(model, quantized, {"1": torch.ones(6)})
    with pytest.raises(ValueError, match="different layers"):
        bias_correction.correct(model[:3], quantized, {})
    x = torch.ones(1, 2, 4, 4, dtype=torch.float64)
    bias_correction.correct(model, quantized, {"2": torch.ones(6).double()})
    bias_correction.match_outputs(model, quantized, lambda m: m(x))
    assert all(torch.equal(a, b) for a, b in zip(quantized.parameters(), before, strict=True))
    assert quantized[2].bias is None
