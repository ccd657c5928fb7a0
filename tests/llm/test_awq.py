import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from qbook import affine
from qbook.llm import awq
from qbook.ptq import gptq


def layer(out=24, in_=36, samples=200, seed=0, salient=(3, 17), factor=12.0):
    """w [out, in], x [samples, in] with a few large inputs, torch float64"""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, in_)) * rng.uniform(0.5, 1.5, size=in_)
    x[:, list(salient)] *= factor
    return torch.from_numpy(rng.normal(size=(out, in_))), torch.from_numpy(x)


def linear_of(w):
    linear = nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=w.dtype)
    linear.weight.data = w
    return linear


def search(w, x, **rounding):
    return awq.search_scales(linear_of(w), [""], x, [((x,), {})], **rounding)


def round_asymmetric(w, bits, size):
    """Independent, after the released pseudo_quantize_tensor: zero-point codes 0 .. 2^bits - 1."""
    rows = w.reshape(-1, size)
    low, high = rows.min(axis=1, keepdims=True), rows.max(axis=1, keepdims=True)
    step = (high - low) / (2**bits - 1)
    zero = np.clip(-np.round(low / step), 0, 2**bits - 1)
    codes = np.clip(np.round(rows / step) + zero, 0, 2**bits - 1)
    return ((codes - zero) * step).reshape(w.shape)


def test_saliency_is_the_mean_of_absolute_inputs():
    x = np.array([[[1.0, -4.0, 0.0]], [[-3.0, 2.0, 0.0]]])
    assert_allclose(awq.saliency(x), [2.0, 3.0, 0.0], rtol=0)
    assert_allclose(awq.saliency(torch.from_numpy(x)).numpy(), [2.0, 3.0, 0.0], rtol=0)


def test_scales_are_a_power_with_geometric_ends_that_multiply_to_one():
    saliency = np.array([0.01, 1.0, 100.0])
    assert_allclose(awq.scales(saliency, 0.5), [0.1, 1.0, 10.0], rtol=1e-14)
    assert_allclose(awq.scales(10 * saliency, 0.5), [0.1, 1.0, 10.0], rtol=1e-14)
    assert_allclose(awq.scales(saliency, 0.0), np.ones(3), rtol=0)
    # A dead input is held at 1e-4 before the ends are balanced: s = 1e-4 / sqrt(1e-4 * 1).
    assert_allclose(awq.scales(np.array([0.0, 1.0]), 0.5), [0.01, 100.0], rtol=1e-14)
    found = awq.scales(torch.tensor([1.0, 4.0]), 1.0)
    assert_allclose(found.numpy(), [0.5, 2.0], rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("bits", "group_size"), [(2, 12), (3, 36), (3, None), (4, 9)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_never_worse_than_rounding_to_nearest_on_the_calibration_data(
    seed, bits, group_size, symmetric
):
    w, x = layer(seed=seed)
    rounding = {"bits": bits, "group_size": group_size, "symmetric": symmetric}
    found = search(w, x, **rounding)
    w_hat = affine.fake_quantize(w, affine.choose_qparams(w, axis=1, **rounding))
    nearest = float(((x @ (w - w_hat).T) ** 2).mean())
    assert list(found.errors) == [step / 20 for step in range(20)]
    assert abs(found.errors[0.0] / nearest - 1) <= 1e-12
    assert found.errors[found.exponent] == min(found.errors.values()) <= nearest
    # And its claim is true of the weights it stands for.
    w_hat = affine.fake_quantize(
        w * found.s, affine.choose_qparams(w * found.s, axis=1, **rounding)
    )
    reached = float(((x @ (w - w_hat / found.s).T) ** 2).mean())
    assert abs(reached / found.errors[found.exponent] - 1) <= 1e-12
    assert torch.equal(found.s, awq.scales(awq.saliency(x), found.exponent))


@pytest.mark.parametrize("bits", [3, 4])
def test_equals_the_papers_search_written_in_numpy(bits):
    w, x = (a.numpy() for a in layer(seed=5))
    errors = []
    for step in range(20):
        s = np.maximum(np.abs(x).mean(axis=0) ** (step / 20), 1e-4)
        s /= np.sqrt(s.max() * s.min())
        w_hat = round_asymmetric(w * s, bits, 12) / s
        errors.append(np.mean((x @ w.T - x @ w_hat.T) ** 2))
    found = search(torch.from_numpy(w), torch.from_numpy(x), bits=bits, group_size=12)
    # A weight on a tie may fall either way; these have none, and sums differ by rounding alone.
    assert_allclose(list(found.errors.values()), errors, rtol=1e-10)
    assert found.exponent == np.argmin(errors) / 20


@pytest.mark.parametrize("seed", range(3))
def test_equals_torchaos_observer_on_its_own_grid(seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        core = pytest.importorskip("torchao.prototype.awq.core")
        torchao = pytest.importorskip("torchao.quantization")
        granularity = torchao.granularity.PerGroup(16)
    # Longer groups than a weight has inputs would hide a swapped axis: 16 of 48.
    w, x = (a.float() for a in layer(out=20, in_=48, seed=seed))
    config = torchao.IntxWeightOnlyConfig(
        weight_dtype=torch.int3,
        granularity=granularity,
        mapping_type=torchao.MappingType.ASYMMETRIC,
    )
    observer = core.AWQObserver(w, None, config)
    observer(x, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = observer.calculate_qparams()
    found = search(w, x, bits=3, group_size=16)
    assert found.exponent > 0
    # float32: a power and a quotient.
    assert_allclose(found.s.numpy(), expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize("s", [1.5, 2.0, 4.0])
def test_the_error_of_a_salient_channel_falls_as_one_over_s_while_the_step_stays(s):
    """Enumerated over many rows: the salient column is far from the ends of its group's range."""
    rng = np.random.default_rng(0)
    w = rng.uniform(-1, 1, size=(20000, 8))
    w[:, 0] *= 0.2
    # The ends are fixed, so that the step is 2 / 6 whatever column 0 does up to a factor of 4.
    w[:, 6], w[:, 7] = 1.0, -1.0
    scaled = w.copy()
    scaled[:, 0] *= s
    before, after = (affine.choose_qparams(v, 3, axis=1) for v in (w, scaled))
    assert np.array_equal(before.scale, after.scale)
    errors = [
        (v - affine.fake_quantize(v, q))[:, 0] / factor
        for v, q, factor in ((w, before, 1), (scaled, after, s))
    ]
    # Uniform over -0.2 s .. 0.2 s with a step of 1 / 3, the mean square of the rounding error of
    # the scaled weight is by integration (here by a fine grid) what the two must have.
    for error, width, factor in zip(errors, (0.2, 0.2 * s), (1, s), strict=True):
        fine = (np.arange(200000) + 0.5) / 200000 * 2 * width - width
        exact = np.mean((fine - np.round(fine * 3) / 3) ** 2) / factor**2
        # 20000 draws: the mean of squares is known to about 1 %.
        assert abs(np.mean(error**2) / exact - 1) <= 0.04
    # The bound itself: half a step, over s.
    assert np.abs(errors[1]).max() <= after.scale.max() / 2 / s * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_surveys_direction_is_worse_than_no_scaling(seed):
    w, x = (a.numpy() for a in layer(seed=seed))
    errors = []
    for exponent in (0.0, 0.1, 0.3, 0.5, 0.8):
        s = awq.scales(awq.saliency(x), exponent)
        w_hat = round_asymmetric(w / s, 3, 12) * s
        errors.append(np.mean((x @ (w - w_hat).T) ** 2))
    assert np.all(np.diff(errors) > 0)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [9, None])
def test_clipping_equals_trying_every_share_in_every_group(group_size, symmetric):
    w, x = (a.numpy() for a in layer(out=7, in_=27, samples=50, seed=3))
    rounding = {"bits": 3, "symmetric": symmetric}
    shares = awq.search_clip(
        torch.from_numpy(w), torch.from_numpy(x), group_size=group_size, **rounding
    )
    size = group_size or 27
    assert shares.shape == (7, 27 // size, 1)
    for row in range(7):
        for group in range(27 // size):
            own = slice(group * size, (group + 1) * size)
            errors = []
            for step in range(10):
                limit = (1 - step / 20) * np.abs(w[row, own]).max()
                clamped = np.clip(w[row, own], -limit, limit)
                w_hat = affine.fake_quantize(clamped, affine.choose_qparams(clamped, **rounding))
                errors.append(np.mean((x[:, own] @ (w[row, own] - w_hat)) ** 2))
            assert abs(float(shares[row, group, 0]) - (1 - np.argmin(errors) / 20)) <= 1e-12
    assert shares.min() < 0.9, "nothing was clipped, so nothing was tested"


def test_of_equal_shares_and_exponents_the_least_change_is_taken():
    # No weights, no error: all shares and exponents are as good.
    w, x = torch.zeros(3, 8), torch.ones(5, 8)
    assert torch.equal(awq.search_clip(w, x, bits=3, group_size=4), torch.ones(3, 2, 1))
    assert search(w, x, bits=3).exponent == 0


def test_gptq_may_round_what_awq_prepared():
    """Scaling and GPTQ are different cures: the Hessian of x / s is scaled on both sides."""
    w, x = (a.numpy() for a in layer(seed=2))
    s = search(torch.from_numpy(w), torch.from_numpy(x), bits=3).s.numpy()
    h, moved = (gptq.dampen(gptq.hessian(v)) for v in (x, x / s))
    raw = gptq.hessian(x) / np.outer(s, s)
    assert_allclose(gptq.hessian(x / s), raw, rtol=1e-10)
    errors = {}
    for name, weight, own in (("gptq", w, h), ("both", w * s, moved)):
        qparams = affine.choose_qparams(weight, 3, axis=1, symmetric=False)
        w_hat = affine.dequantize(gptq.quantize(weight, own, qparams), qparams)
        errors[name] = gptq.output_error(w, w_hat / (s if name == "both" else 1), h)
    qparams = affine.choose_qparams(w, 3, axis=1, symmetric=False)
    errors["nearest"] = gptq.output_error(w, affine.fake_quantize(w, qparams), h)
    assert errors["both"] < errors["gptq"] < errors["nearest"]


def test_bad_input_raises():
    w, x = layer()
    with pytest.raises(ValueError, match=r"exponent=1.5 is outside .* choose 0 to 1"):
        awq.scales(awq.saliency(x), 1.5)
    with pytest.raises(ValueError, match="negative or non-finite"):
        awq.scales(np.array([1.0, np.nan]), 0.5)
    with pytest.raises(ValueError, match="weight has 36 inputs; x has 35 channels"):
        search(w, x[:, 1:], bits=3)
    with pytest.raises(ValueError, match="w has 36 inputs; x has 35 channels"):
        awq.search_clip(w, x[:, 1:], bits=3)
    with pytest.raises(ValueError, match="0 calls and 1 readers"):
        awq.search_scales(linear_of(w), [""], x, [], bits=3)
    with pytest.raises(ValueError, match="group_size=5 does not divide"):
        search(w, x, bits=3, group_size=5)
