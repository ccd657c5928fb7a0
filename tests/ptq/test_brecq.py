import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch.nn import functional as F

from qbook import affine
from qbook.ptq import adaround, brecq, reconstruction
from qbook.ptq.rounded_layer import RoundedLayer


def model(seed=0):
    """Three blocks between a first and a last layer: 6 -> 5 classes, float64."""

    def block():
        return nn.Sequential(nn.Linear(7, 8), nn.Softplus(), nn.Linear(8, 7), nn.Softplus())

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(6, 7), block(), block(), block(), nn.Linear(7, 5)]
        return nn.Sequential(*layers).double().eval()


def samples(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


BLOCKS = ["1", "2", "3"]


def test_the_exact_fisher_diagonal_equals_the_one_from_jacobians_of_the_tail():
    net, x = model(), samples(4, 6)
    found = brecq.fisher_diagonal(net, "2", x)
    z = net[:3](x).detach()
    for i in range(4):
        jacobian = torch.autograd.functional.jacobian(net[3:], z[i])
        p = torch.softmax(net[3:](z[i]), dim=0).detach()
        # Gauss-Newton of the cross-entropy: J^T (diag p - p p^T) J, in float64.
        full = jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian
        assert_allclose(found[i], torch.diagonal(full), rtol=1e-10)


def test_the_fisher_is_the_hessian_of_the_divergence_where_the_two_networks_agree():
    net, x = model(), samples(1, 6)
    z = net[:2](x).detach()
    p = torch.softmax(net[2:](z), dim=1).detach()

    def divergence(z):
        return F.kl_div(F.log_softmax(net[2:](z), dim=1), p, reduction="sum")

    hessian = torch.autograd.functional.hessian(divergence, z).reshape(7, 7)
    # The residual p - q of the chain rule's second term is zero here, so nothing is left out.
    assert_allclose(brecq.fisher_diagonal(net, "1", x)[0], torch.diagonal(hessian), rtol=1e-9)


def test_random_labels_approach_the_mean_over_all_labels():
    net, x = model(), samples(6, 6)
    exact = brecq.fisher_diagonal(net, "3", x)
    drawn = brecq.fisher_diagonal(net, "3", x, draws=3000)
    # 3000 draws leave a relative error of about 1/50 on each mean; the norm averages 42 of them.
    assert torch.linalg.norm(drawn - exact) <= 0.06 * torch.linalg.norm(exact)


def test_the_released_slopes_vanish_where_nothing_is_quantized_and_are_h_times_delta_near_it():
    net, x = model(), samples(3, 6)
    assert brecq.kl_slopes(net, copy.deepcopy(net), "2", x).abs().max() <= 1e-15
    moved = copy.deepcopy(net)
    moved[2][2].bias.data += 1e-5 * samples(7, seed=3)
    found = brecq.kl_slopes(net, moved, "2", x)
    z, z_hat = net[:3](x).detach(), moved[:3](x).detach()
    for i in range(3):
        p = torch.softmax(net[3:](z[i]), dim=0).detach()
        hessian = torch.autograd.functional.hessian(
            lambda u, p=p: F.kl_div(F.log_softmax(net[3:](u), dim=0), p, reduction="sum"), z[i]
        )
        # Third-order terms are 1e-5 smaller.
        expected = hessian @ (z_hat[i] - z[i])
        assert torch.linalg.norm(found[i] - expected) <= 1e-3 * torch.linalg.norm(expected)


def test_slopes_do_not_depend_on_the_batch():
    net, x = model(), samples(5, 6)

    def likelihood(out, chosen):
        return F.log_softmax(out, dim=1)[:, 0].sum()

    together = brecq.slopes(net, "1", x, likelihood)
    one_by_one = brecq.slopes(net, "1", x, likelihood, batch_size=1)
    assert together.shape == (5, 7)
    assert_allclose(together, one_by_one, rtol=1e-12)
    assert net[1]._forward_hooks == {}


def test_the_order_is_the_model_s_and_layers_in_no_block_stand_alone():
    assert brecq.order(model(), ["3", "1"]) == [
        ("0", False),
        ("1", True),
        ("2.0", False),
        ("2.2", False),
        ("3", True),
        ("4", False),
    ]
    assert brecq.order(model(), ["1.0"])[1:3] == [("1.0", True), ("1.2", False)]


@pytest.mark.parametrize(
    ("blocks", "message"),
    [(["9"], "have no layer"), (["1", "1.0"], "has one block"), (["1.1"], "have no layer")],
)
def test_blocks_that_do_not_fit_are_named(blocks, message):
    with pytest.raises(ValueError, match=message):
        brecq.order(model(), blocks)


def test_the_cache_is_what_the_module_sees_and_says_whatever_the_batch():
    net, x = model(), samples(5, 6)
    seen, said = brecq.cache(net, "2", x, batch_size=2)
    assert_allclose(seen, net[:2](x).detach(), rtol=1e-12)
    assert_allclose(said, net[:3](x).detach(), rtol=1e-12)


def test_first_and_last_layers_have_eight_bits_and_blocks_the_bits_asked_for():
    net, x = model(), samples(40, 6)
    quantized = brecq.quantize(net, x, BLOCKS, 2, 3, steps=2)
    codes = brecq.codes(quantized)
    assert list(codes) == ["0", "1.0", "1.2", "2.0", "2.2", "3.0", "3.2", "4"]
    for name, layer in quantized.named_modules():
        if name in codes:
            bits = 8 if name in ("0", "4") else 2
            low, high, _ = affine.code_range(bits, symmetric=False)
            assert (layer.qparams.qmin, layer.qparams.qmax) == (low, high)
            assert low <= codes[name].min()
            assert codes[name].max() <= high
            assert layer.bits == (8 if bits == 8 else 3)
    first = quantized[0]
    assert_array_equal(codes["0"], affine.quantize(net[0].weight.detach(), first.qparams))


def test_without_steps_every_code_is_the_nearest_and_without_act_bits_no_input_is_rounded():
    net, x = model(), samples(20, 6)
    quantized = brecq.quantize(net, x, BLOCKS, 3, steps=0)
    for name, codes in brecq.codes(quantized).items():
        layer = quantized.get_submodule(name)
        assert_array_equal(codes, affine.quantize(layer.layer.weight, layer.qparams))
        assert layer.step is None


def test_a_block_is_fitted_to_the_real_output_from_the_quantized_prefix():
    net, x = model(), samples(50, 6)
    schedule = {"steps": 15, "learning_rate": 0.1, "batch_size": None}
    quantized = brecq.quantize(net, x, BLOCKS, 2, **schedule)
    seen = quantized[:2](x).detach()
    target = net[:3](x).detach()
    block = reconstruction.round_layers(net[2], seen, 2)
    expected = reconstruction.fit(block, seen, target, **schedule)
    for found, layer in zip(quantized[2], expected, strict=True):
        if isinstance(layer, RoundedLayer):
            assert_array_equal(found.codes(), layer.codes())
            assert_allclose(found.logits.detach(), layer.logits.detach(), rtol=0, atol=1e-10)


def test_one_layer_per_block_is_layerwise_adaround():
    net, x = model(), samples(60, 6)
    schedule = {"steps": 40, "learning_rate": 0.1, "lam": 0.03}
    layers = ["1.0", "1.2"]
    quantized = brecq.quantize(net, x, layers, 3, batch_size=None, **schedule)
    seen = quantized[0](x).detach()
    target = net[1][0](net[0](x)).detach()
    layer = quantized.get_submodule("1.0")
    w, bias = net[1][0].weight.detach(), net[1][0].bias.detach()
    *_, v = adaround.descend(w, seen, layer.qparams, y=target - bias, **schedule)
    assert_allclose(layer.logits.detach(), v, rtol=0, atol=1e-7)


def test_learnt_codes_beat_nearest_ones_on_the_divergence_from_the_real_network():
    found = []
    for seed in range(3):
        net = model(seed)
        x, fresh = samples(200, 6, seed=seed), samples(500, 6, seed=99)
        p = torch.softmax(net(fresh).detach(), dim=1)
        divergences = []
        for steps in (250, 0):
            quantized = brecq.quantize(
                net, x, BLOCKS, 2, steps=steps, learning_rate=0.03, batch_size=None
            )
            log_q = F.log_softmax(reconstruction.run(quantized, fresh), dim=1)
            divergences.append(float(F.kl_div(log_q, p, reduction="batchmean")))
        found.append(divergences)
    blocks, nearest = np.log(found).mean(axis=0)
    # A geometric mean over three networks, on inputs that were not used.
    assert blocks <= nearest + np.log(0.5)


def test_the_importance_of_each_block_reaches_its_loss():
    net, x = model(), samples(50, 6)
    asked = []

    def fisher(real, quantized, name, inputs):
        asked.append(name)
        assert isinstance(quantized.get_submodule(name)[0], RoundedLayer)
        return brecq.fisher_diagonal(real, name, inputs)

    schedule = {"steps": 30, "learning_rate": 0.1}
    weighted = brecq.quantize(net, x, BLOCKS, 2, importance=fisher, **schedule)
    plain = brecq.quantize(net, x, BLOCKS, 2, **schedule)
    assert asked == BLOCKS
    assert any(
        not torch.equal(a, b)
        for a, b in zip(brecq.codes(weighted).values(), brecq.codes(plain).values(), strict=True)
    )


def test_the_model_is_not_modified():
    net, x = model(), samples(20, 6)
    before = copy.deepcopy(net.state_dict())

    def released(real, quantized, name, inputs):
        return brecq.kl_slopes(real, quantized, name, inputs) ** 2

    brecq.quantize(net, x, BLOCKS, 2, 4, steps=3, importance=released)
    assert list(net.state_dict()) == list(before)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_bad_calibration_and_bad_draws_are_named():
    net = model()
    with pytest.raises(ValueError, match="0 samples"):
        brecq.quantize(net, samples(4, 6)[:0], BLOCKS, 2)
    with pytest.raises(ValueError, match="NaN"):
        brecq.quantize(net, samples(4, 6) * torch.nan, BLOCKS, 2)
    with pytest.raises(ValueError, match="draws=0"):
        brecq.fisher_diagonal(net, "1", samples(4, 6), draws=0)
    with pytest.raises(ValueError, match="pass draws=10"):
        brecq.fisher_diagonal(net, "1", samples(4, 2, 6))
