import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import qbook
from qbook import affine
from qbook.models import digits_mlp, weights
from qbook.pipeline import capture
from qbook.pipeline.layers import QuantizedLayer, quantized_layers
from qbook.ptq import gptq
from qbook.ranges.minmax import minmax


class Mixed(nn.Module):
    """Every supported kind of layer, called in another order than it is declared in."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(10, 3)
        self.conv = nn.Conv2d(2, 6, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding="same", groups=6, bias=False)
        self.wave = nn.Conv1d(6, 10, 3, dilation=2, padding=2, padding_mode="circular")

    def forward(self, x):
        x = F.relu(self.bn(self.conv(x)))
        x = F.relu(self.depthwise(x)).flatten(2)
        return self.head(F.relu(self.wave(x)).mean(dim=2))


@pytest.fixture
def mixed():
    torch.manual_seed(0)
    model = Mixed().eval()
    model.bn.running_mean.uniform_(-0.2, 0.2)
    return model


@pytest.fixture
def batches():
    return torch.randn(12, 2, 9, 8, generator=torch.Generator().manual_seed(1)).split(5)


LAYERS = {"conv", "depthwise", "wave", "head"}


@pytest.mark.parametrize("method", ["nearest", "adaround", "gptq", "obq"])
def test_every_kind_of_layer_is_replaced_and_the_model_stays_as_it_was(mixed, batches, method):
    before = copy.deepcopy(mixed.state_dict())
    schedule = {"steps": 20} if method == "adaround" else {}
    quantized, report = qbook.quantize(mixed, batches, method=method, bits=4, **schedule)
    assert quantized_layers(quantized).keys() == LAYERS
    assert not quantized_layers(mixed)
    for name, tensor in mixed.state_dict().items():
        assert torch.equal(tensor, before[name])
    # In the order of the calls, which is the order in which errors build up.
    assert [row.name for row in report.rows] == ["conv", "depthwise", "wave", "head"]
    assert torch.isfinite(quantized(batches[0])).all()


def test_the_unfolded_rows_reproduce_every_layer(mixed, batches):
    """x w^T of the captured rows is the layer's own output, whatever stride, group, padding."""
    for name in LAYERS:
        layer = mixed.get_submodule(name)
        (x,) = capture.inputs(mixed, name, batches[:1])
        rows = capture.rows(layer, x)
        wanted = layer(x) - (0 if layer.bias is None else _beside_channels(layer, x))
        if not isinstance(layer, nn.Linear):
            wanted = wanted.movedim(1, -1)
        w = layer.weight.flatten(1)
        w = w.reshape(rows.shape[1], -1, w.shape[1])
        found = torch.einsum("ngi,goi->ngo", rows, w)
        # float32 sums of at most 54 products of order 1.
        torch.testing.assert_close(found.reshape(wanted.shape), wanted, atol=1e-5, rtol=1e-5)


def _beside_channels(layer, x):
    return layer.bias if isinstance(layer, nn.Linear) else layer.bias[:, *(None,) * (x.ndim - 2)]


def test_nearest_rounding_is_fake_quantization_of_each_weight(mixed, batches):
    quantized, _ = qbook.quantize(mixed, bits=3)
    expected = {}
    for name, w in weights.weights(mixed).items():
        expected[name] = affine.fake_quantize(w, affine.choose_qparams(w, 3, axis=1))
    by_hand = weights.replace(mixed, expected)
    assert torch.equal(quantized(batches[0]), by_hand(batches[0]))


def test_gptq_sees_the_inputs_that_the_quantized_prefix_makes(batches):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 4)).eval()
    x = torch.randn(40, 8)
    quantized, _ = qbook.quantize(model, [x], method="gptq", bits=3)
    first = quantized[0](x).relu()
    w = model[2].weight.detach().double().numpy()
    h = gptq.dampen(gptq.hessian(first.detach().numpy()))
    # The scale is chosen in float32, as the pipeline does.
    qparams = affine.choose_qparams(model[2].weight.detach(), 3, axis=1)
    own = affine.QParams(
        qparams.scale.double().numpy(), qparams.zero_point.numpy(), qparams.qmin, qparams.qmax
    )
    codes = gptq.quantize(w, h, own, order=gptq.act_order(h))
    np.testing.assert_array_equal(quantized[2].codes.numpy(), codes)


def test_a_method_of_ones_own_is_called_for_each_group(mixed, batches):
    seen = []

    def down(w, x, qparams, y):
        seen.append((tuple(w.shape), tuple(x.shape)[1], tuple(y.shape)[1]))
        return torch.clamp(torch.floor(w / qparams.scale), qparams.qmin, qparams.qmax).to(
            torch.int8
        )

    quantized, _ = qbook.quantize(mixed, batches, method=down, bits=4)
    # 6 groups of one channel and 9 inputs; the convolutions have 2 * 9 and 6 * 3 inputs.
    assert seen == [((6, 18), 18, 6), *[((1, 9), 9, 1)] * 6, ((10, 18), 18, 10), ((3, 10), 10, 3)]
    assert (quantized.depthwise.weight <= mixed.depthwise.weight + 1e-6).all()


def test_widths_may_differ_and_groups_share_scales():
    model = digits_mlp.load()
    quantized, report = qbook.quantize(model, bits={"0": 2, "2": 5}, group_size=16)
    assert [row.bits for row in report.rows] == [2, 5]
    assert quantized[0].scale.shape == (64, 4, 1)
    assert set(quantized[0].codes.unique().tolist()) == {-1, 0, 1}


def test_methods_recover_what_nearest_rounding_loses():
    """On real weights and data: the order that chapter 4 derives, in output error at 3 bits."""
    from qbook.data import digits

    (images, _), _ = digits()
    x = torch.from_numpy(images[:512])
    model = digits_mlp.load()
    error = {}
    for method in ("nearest", "adaround", "gptq", "obq"):
        _, report = qbook.quantize(model, [x], method=method, bits=3)
        error[method] = report.rows[0].output_error
    assert max(error["adaround"], error["gptq"], error["obq"]) < 0.5 * error["nearest"]


def test_reports_count_the_stored_bytes(mixed, batches):
    _, report = qbook.quantize(mixed, batches, bits=4, skip="head")
    rows = {row.name: row for row in report.rows}
    # conv: 6 rows of 18 codes in 9 bytes, 6 float32 scales, 6 float32 biases.
    assert rows["conv"].bytes == 6 * 9 + 6 * 4 + 6 * 4
    assert rows["conv"].real_bytes == 4 * (6 * 18 + 6)
    assert rows["conv"].bits_per_weight == 8 * (6 * 9 + 6 * 4) / (6 * 18)
    # 9 codes a row need 5 bytes.
    assert rows["depthwise"].bytes == 6 * 5 + 6 * 4
    kept = {"head.weight", "head.bias", "bn.weight", "bn.bias", "bn.running_mean"}
    assert report.kept.keys() == kept | {"bn.running_var", "bn.num_batches_tracked"}
    assert report.bytes == sum(row.bytes for row in report.rows) + sum(report.kept.values())
    real = sum(t.numel() * t.element_size() for t in mixed.state_dict().values())
    assert report.real_bytes == real
    assert f"{report.bytes:,}" in str(report)


def test_static_inputs_keep_the_range_of_the_batches(batches, mixed):
    quantized, _ = qbook.quantize(mixed, batches, x_bits=8, x_estimate=minmax)
    x = torch.cat(batches)
    qparams = affine.choose_qparams(x, 8, symmetric=False)
    torch.testing.assert_close(quantized.conv.x_scale, qparams.scale.reshape(()))
    assert quantized.conv.x_zero_point == qparams.zero_point.item()
    expected = affine.fake_quantize(x, qparams)
    torch.testing.assert_close(quantized.conv.round_input(x), expected)


def test_dynamic_inputs_have_a_range_for_each_token_and_image(mixed, batches):
    quantized, _ = qbook.quantize(mixed, x_bits=8)
    x = batches[0] * torch.tensor([1, 10, 100, 1000, 1.0])[:, None, None, None]
    expected = affine.fake_quantize(x, affine.choose_qparams(x, 8, axis=(1, 2, 3), symmetric=False))
    assert torch.equal(quantized.conv.round_input(x), expected)
    tokens = torch.randn(2, 5, 10) * torch.logspace(0, 4, 5)[None, :, None]
    expected = affine.fake_quantize(
        tokens, affine.choose_qparams(tokens, 8, axis=-1, symmetric=False)
    )
    assert torch.equal(quantized.head.round_input(tokens), expected)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_layer_gives_back_the_codes_it_was_given(bits, symmetric):
    torch.manual_seed(bits)
    layer = nn.Linear(13, 5)
    w = layer.weight.detach()
    qparams = affine.choose_qparams(w, bits, axis=1, symmetric=symmetric)
    codes = affine.quantize(w, qparams)
    packed = QuantizedLayer(layer, codes, qparams)
    assert torch.equal(packed.codes.int(), codes.int())
    assert torch.equal(packed.weight, affine.dequantize(codes, qparams))
    assert packed.bits == (1 if bits == 1 else bits)


def test_a_layer_called_twice_is_calibrated_on_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(self.layer(x))

    model = Twice().eval()
    seen = capture.inputs(model, "layer", [torch.randn(3, 4), torch.randn(5, 4)])
    assert [len(x) for x in seen] == [3, 3, 5, 5]


def test_tuples_and_keywords_are_batches_too():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x, shift):
            return self.layer(x + shift)

    model, x = Two().eval(), torch.randn(9, 4)
    one, _ = qbook.quantize(model, [(x, 1.0)], method="gptq", bits=2)
    two, _ = qbook.quantize(model, [{"x": x, "shift": 1.0}], method="gptq", bits=2)
    assert torch.equal(one.layer.packed, two.layer.packed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", ["nearest", "adaround", "gptq", "obq"])
def test_models_of_other_float_types_are_quantized_in_at_least_float32(dtype, method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 4)).eval().to(dtype)
    x = torch.randn(64, 16).to(dtype)
    schedule = {"steps": 20} if method == "adaround" else {}
    quantized, _ = qbook.quantize(model, [x], method=method, bits=8, x_bits=8, **schedule)
    with torch.no_grad():
        found, wanted = quantized(x), model(x)
    assert found.dtype == dtype
    # Eight bits: a step is 1/127 of a row's largest weight; sums of 16 such errors stay below 0.05.
    assert float((found - wanted).abs().max()) <= 0.05
