import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch.nn import functional as F

from qbook import affine
from qbook.ptq import adaround
from qbook.ptq.rounded_layer import RoundedLayer
from qbook.qat import lsq


def samples(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def linear():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(7, 5).double(), samples(30, 7)


def convolution():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2).double(), samples(8, 4, 7, 5)


@pytest.mark.parametrize("build", [linear, convolution])
@pytest.mark.parametrize("bits", [2, 4])
def test_rounded_hard_it_is_the_layer_with_the_dequantized_weight(build, bits):
    layer, x = build()
    rounded = RoundedLayer(copy.deepcopy(layer), bits)
    rounded.hard = True
    with torch.no_grad():
        w_hat = affine.dequantize(rounded.codes(), rounded.qparams)
        layer.weight.copy_(w_hat.reshape(layer.weight.shape))
        # The same call on the same numbers.
        assert_array_equal(rounded(x), layer(x))


@pytest.mark.parametrize("build", [linear, convolution])
def test_the_soft_weight_is_adaround_s_formula(build):
    layer, _ = build()
    rounded = RoundedLayer(layer, 3)
    rounded.logits.data = samples(*rounded.logits.shape, seed=1)
    w, qparams = layer.weight.detach().flatten(1), rounded.qparams
    h = torch.clamp(torch.sigmoid(rounded.logits.detach()) * 1.2 - 0.1, 0, 1)
    code = torch.floor(w / qparams.scale) + qparams.zero_point + h
    expected = qparams.scale * (torch.clamp(code, -4, 3) - qparams.zero_point)
    # No weight is within an ulp of a step, where the reciprocal could matter.
    assert_allclose(rounded.w_hat().detach(), expected, rtol=0, atol=1e-14)
    outside = (code < -4) | (code > 3)
    (slope,) = torch.autograd.grad(rounded.w_hat().sum(), rounded.logits)
    assert (slope[outside] == 0).all()
    assert (slope[~outside & (h > 0) & (h < 1)] != 0).all()


def test_inputs_are_lsq_s_with_a_step_near_the_best_of_all():
    layer, x = linear()
    for values, signed in ((x, True), (x.abs(), False)):
        rounded = RoundedLayer(copy.deepcopy(layer), 8)
        rounded.hard = True
        rounded.quantize_inputs(values, 3)
        assert rounded.signed is signed
        x_hat = affine.fake_quantize(values, lsq.qparams(rounded.step, 3, signed=signed))
        expected = F.linear(x_hat, rounded.w_hat(), layer.bias)
        assert_allclose(rounded(values).detach(), expected.detach(), rtol=0, atol=1e-14)
        errors = [
            float(
                (
                    (values - affine.fake_quantize(values, lsq.qparams(s, 3, signed=signed))) ** 2
                ).mean()
            )
            for s in torch.linspace(0.05, 1.5, 300).double()
        ]
        # The search has 50 candidates, and a code less for signed values than LSQ has.
        assert float(((values - x_hat) ** 2).mean()) <= 1.15 * min(errors)


def test_the_mix_decides_what_the_layer_computes_with():
    layer, x = linear()
    rounded = RoundedLayer(layer, 8)
    without = rounded(x).detach()
    rounded.quantize_inputs(x, 2)
    assert (rounded(x) - without).abs().max() > 0.1
    rounded.mix = lambda x_hat, x: x
    assert_array_equal(rounded(x).detach(), without)


def test_what_the_block_reads_off_a_layer_is_the_layer_s():
    layer, _ = convolution()
    rounded = RoundedLayer(layer, 2)
    assert (rounded.out_channels, rounded.stride, rounded.groups) == (6, (2, 2), 2)
    with pytest.raises(AttributeError, match="colour"):
        _ = rounded.colour


def test_it_can_be_copied_and_the_copy_is_its_own():
    layer, x = linear()
    rounded = RoundedLayer(layer, 2)
    rounded.quantize_inputs(x, 4)
    copied = copy.deepcopy(rounded)
    copied.logits.data += 1
    copied.step.data *= 2
    assert not torch.equal(copied.logits, rounded.logits)
    assert rounded.step < copied.step
    h = adaround.rectified_sigmoid(rounded.logits.detach())
    assert ((0 <= h) & (h < 1)).all()
