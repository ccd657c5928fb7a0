import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from qbook import affine, ste

SCHEMES = [{"symmetric": True}, {"symmetric": False}, {"symmetric": False, "signed": False}]


def around(qparams, n=2000, seed=0):
    """float32 values inside the range, far outside it, and on and beside every rounding tie."""
    rng = np.random.default_rng(seed)
    scale, zero_point = qparams.scale.item(), qparams.zero_point.item()
    codes = np.arange(qparams.qmin - 3, qparams.qmax + 4, 0.5) - zero_point
    ties = (codes * scale).astype(np.float32)
    beside = [np.nextafter(ties, np.float32(end)) for end in (-np.inf, np.inf)]
    middle = scale * ((qparams.qmin + qparams.qmax) / 2 - zero_point)
    width = scale * (qparams.qmax - qparams.qmin)
    return torch.from_numpy(
        np.concatenate([rng.normal(middle, width, n).astype(np.float32), ties, *beside])
    )


def gradient(function, x):
    """Derivative of the sum of weights * function(x): the weights show that it multiplies."""
    x = x.clone().requires_grad_(True)
    weights = torch.linspace(-2, 3, x.numel()).reshape(x.shape)
    value = function(x)
    (value * weights.to(value.dtype)).sum().backward()
    return value.detach(), x.grad, weights


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_clipped_reading_equals_torch_fake_quantize_bit_for_bit(bits, scheme):
    data = torch.from_numpy(np.random.default_rng(bits).normal(0.4, 1, 999).astype(np.float32))
    qparams = affine.choose_qparams(data, bits, **scheme)
    x = around(qparams)

    def theirs(x):
        return torch.fake_quantize_per_tensor_affine(
            x, qparams.scale.item(), qparams.zero_point.item(), qparams.qmin, qparams.qmax
        )

    value, slope, _ = gradient(lambda x: ste.fake_quantize_ste(x, qparams), x)
    their_value, their_slope, _ = gradient(theirs, x)
    assert torch.equal(value, their_value)
    assert torch.equal(slope, their_slope)
    assert 0 < int((slope != 0).sum()) < x.numel()


@pytest.mark.parametrize("channel_axis", [0, 1])
def test_clipped_reading_equals_torch_fake_quantize_per_channel(channel_axis):
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(7, 9)).astype(np.float32))
    qparams = affine.choose_qparams(x * 0.6, 3, axis=1 - channel_axis, symmetric=False)

    def theirs(x):
        return torch.fake_quantize_per_channel_affine(
            x,
            qparams.scale.ravel(),
            qparams.zero_point.ravel(),
            channel_axis,
            qparams.qmin,
            qparams.qmax,
        )

    value, slope, _ = gradient(lambda x: ste.fake_quantize_ste(x, qparams), x)
    their_value, their_slope, _ = gradient(theirs, x)
    assert torch.equal(value, their_value)
    assert torch.equal(slope, their_slope)


def test_identity_reading_rounds_to_even_and_passes_every_gradient():
    x = torch.tensor([-2.5, -1.5, -0.5, -0.2, 0.0, 0.5, 1.5, 2.5, 1e6, -3e38])
    value, slope, weights = gradient(ste.round_ste, x)
    assert_array_equal(value.numpy(), np.rint(x.numpy()))
    # The sign of zero too: x + (round(x) - x) would lose it.
    assert_array_equal(np.signbit(value.numpy()), np.signbit(np.rint(x.numpy())))
    assert torch.equal(slope, weights)


@pytest.mark.parametrize("scale", [0.1, 0.3, 2.0])
def test_the_integer_quantizer_has_the_slope_of_one_over_scale(scale):
    qparams = affine.QParams(torch.tensor(scale), torch.tensor(3, dtype=torch.int32), 0, 15)
    x = around(qparams)
    value, slope, weights = gradient(lambda x: ste.quantize_ste(x, qparams), x)
    assert torch.equal(value, affine.quantize(x, qparams).float())
    mask = ste.unclipped(x, qparams)
    assert torch.equal(slope, torch.where(mask, weights * (1 / torch.tensor(scale)), 0.0))
    # Dequantizing restores the fake quantizer, gradient included; scale * (1 / scale) rounds twice.
    value, slope, weights = gradient(lambda x: (ste.quantize_ste(x, qparams) - 3) * scale, x)
    assert torch.equal(value, affine.fake_quantize(x, qparams))
    assert bool(((slope - weights * mask).abs() <= 2.0**-22 * weights.abs()).all())


def test_the_integer_quantizer_knows_the_scale_of_every_group():
    w = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 12)).astype(np.float32))
    qparams = affine.choose_qparams(w, 4, group_size=3)
    _, slope, weights = gradient(lambda w: ste.quantize_ste(w, qparams), w)
    scale = qparams.scale.expand(4, 4, 3).reshape(4, 12)
    assert torch.equal(slope, weights * (1 / scale))


def test_the_pass_region_ends_half_a_step_beyond_the_outermost_levels():
    # Levels -2 ... 5 with step 0.5: -1 ... 2.5.  Half to even keeps the tie at the even end only.
    qparams = affine.QParams(np.float64(0.5), np.int32(0), -2, 5)
    x = np.array([-1.26, -1.25, -1.24, -1.0, 0.0, 2.5, 2.74, 2.75, 2.76])
    assert_array_equal(ste.unclipped(x, qparams), [0, 1, 1, 1, 1, 1, 1, 0, 0])
    assert_array_equal(ste.dithered_slope(x, qparams), [0, 0, 0, 1, 1, 1, 0, 0, 0])


def mean_over_dither(x, qparams, n=4096):
    """Mean of the quantizer over n midpoints of one step: enumeration, not sampling."""
    u = ((np.arange(n) + 0.5) / n - 0.5) * qparams.scale.item()
    return affine.fake_quantize(x[:, None] + u, qparams).mean(axis=1)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_mean_output_under_dither_is_the_clamp(bits, scheme):
    rng = np.random.default_rng(0)
    qparams = affine.choose_qparams(rng.normal(0.4, 1, 99), bits, **scheme)
    scale = qparams.scale.item()
    x = rng.uniform(-8, 8, 500)
    expected = ste.dithered_expectation(x, qparams)
    # The share of n dithers above a threshold is exact to 1 / n of a step.
    assert np.abs(mean_over_dither(x, qparams) - expected).max() <= scale / 4096 * 1.01
    # Central differences over a quarter step, away from the corners, where they average two slopes.
    step = scale / 8
    above, below = mean_over_dither(x + step, qparams), mean_over_dither(x - step, qparams)
    levels = scale * (np.array([qparams.qmin, qparams.qmax]) - qparams.zero_point.item())
    smooth = (np.abs(x[:, None] - levels) > step).all(axis=1)
    slope = ste.dithered_slope(x, qparams)
    # Two errors of scale / 4096 over 2 step = scale / 4.
    assert np.abs((above - below) / (2 * step) - slope)[smooth].max() <= 2 * 4 / 4096 * 1.01
    assert {0.0, 1.0} == set(slope)


def test_binarynet_mask_is_the_slope_of_the_mean_sign_under_dither():
    # sign(x): levels -1 and 1, step 2, dither on [-1, 1].  Enumerated as above.
    x = np.linspace(-2, 2, 81)
    u = ((np.arange(4096) + 0.5) / 4096 - 0.5) * 2
    mean = np.sign(x[:, None] + u).mean(axis=1)
    assert np.abs(mean - np.clip(x, -1, 1)).max() <= 2 / 4096


def test_the_mean_output_differentiates_itself_in_torch():
    qparams = affine.choose_qparams(torch.linspace(-1, 2, 50), 3, symmetric=False)
    x = torch.linspace(-3, 4, 200)
    value, slope, weights = gradient(lambda x: ste.dithered_expectation(x, qparams), x)
    assert torch.equal(slope, weights * ste.dithered_slope(x, qparams))
    as_numpy = affine.QParams(
        qparams.scale.numpy(), qparams.zero_point.numpy(), qparams.qmin, qparams.qmax
    )
    assert_array_equal(value.numpy(), ste.dithered_expectation(x.numpy(), as_numpy))
    assert_array_equal(
        ste.dithered_slope(x, qparams).numpy(), ste.dithered_slope(x.numpy(), as_numpy)
    )


def test_all_readings_work_on_groups_and_short_floats():
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        w = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 6))).to(dtype)
        qparams = affine.choose_qparams(w * 0.5, 3, group_size=2)
        for function in (ste.fake_quantize_ste, ste.quantize_ste, ste.dithered_expectation):
            value, slope, _ = gradient(lambda w, f=function, q=qparams: f(w, q), w)
            assert value.dtype == slope.dtype == dtype
            assert value.shape == slope.shape == w.shape


def test_a_quantized_weight_learns_only_while_it_is_inside():
    qparams = affine.QParams(torch.tensor(0.5), torch.tensor(0, dtype=torch.int32), -3, 3)
    w, target = torch.tensor([0.9, 5.0]), torch.tensor([-1.0, -1.0])
    for _ in range(100):
        w.requires_grad_(True)
        ((ste.fake_quantize_ste(w, qparams) - target) ** 2).sum().backward()
        w = (w - 0.1 * w.grad).detach()
    # The first reaches its target; the second is clipped, gets no gradient and stays for ever.
    assert affine.fake_quantize(w, qparams)[0].item() == -1.0
    assert w[1].item() == 5.0


def test_nan_is_refused_and_arguments_stay():
    qparams = affine.QParams(torch.tensor(0.5), torch.tensor(0, dtype=torch.int32), -3, 3)
    with pytest.raises(ValueError, match="NaN"):
        ste.fake_quantize_ste(torch.tensor([1.0, float("nan")]), qparams)
    x = torch.linspace(-3, 3, 20)
    copy = x.clone()
    ste.fake_quantize_ste(x, qparams)
    ste.quantize_ste(x, qparams)
    ste.round_ste(x)
    assert torch.equal(x, copy)
