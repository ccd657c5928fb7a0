import itertools
from dataclasses import replace
from fractions import Fraction

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.testing import assert_array_equal
from torch import nn

from qbook import affine
from qbook.data import digits
from qbook.models import digits_mlp
from qbook.ptq import static
from qbook.ranges import mse
from qbook.ranges.minmax import minmax
from qbook.ranges.percentile import percentile

ESTIMATORS = {
    "minmax": minmax,
    "percentile": lambda x: percentile(x, 99.0),
    "mse": lambda x: mse.search(x, 8, symmetric=False, steps=10),
}
SIZES = [(1, 1), (3, 7, 5), (64, 33, 10, 2)]


def random_chain(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [
        static.Linear(
            rng.normal(size=(out, in_)) / np.sqrt(in_), rng.normal(size=out), i < len(sizes) - 2
        )
        for i, (in_, out) in enumerate(itertools.pairwise(sizes))
    ]


def inputs(samples, n, seed=1):
    return np.random.default_rng(seed).normal(size=(samples, n)) + 0.3


def quantized(layers, x, estimate=minmax, **bits):
    return static.quantize(layers, static.calibrate(layers, [x], estimate), **bits)


def forward_in_unbounded_integers(network, x_codes):
    """The network written anew: Python integers and floats, one number at a time."""
    rows = x_codes.tolist()
    for layer in network:
        z_x, z_y = int(layer.x_qparams.zero_point), int(layer.y_qparams.zero_point)
        low = max(layer.y_qparams.qmin, z_y) if layer.relu else layer.y_qparams.qmin
        results = []
        for row in rows:
            result = []
            for j, weights in enumerate(layer.w_codes.tolist()):
                total = sum((x - z_x) * w for x, w in zip(row, weights, strict=True))
                total += int(layer.bias_codes[j])
                m0, shift = int(layer.m0[j]), int(layer.shift[j])
                total = max(-(2**31), min(total << max(-shift, 0), 2**31 - 1))
                high = min((total * m0 + 2**30) >> 31, 2**31 - 1)
                n = max(shift, 0)
                magnitude = (2 * abs(high) + 2**n) // 2 ** (n + 1)
                code = z_y + (magnitude if high >= 0 else -magnitude)
                result.append(max(low, min(code, layer.y_qparams.qmax)))
            results.append(result)
        rows = results
    return rows


@pytest.mark.parametrize("estimate", ESTIMATORS)
@pytest.mark.parametrize(("x_bits", "w_bits"), [(8, 8), (4, 8), (8, 3), (2, 2)])
@pytest.mark.parametrize("sizes", SIZES)
def test_the_integer_network_equals_unbounded_integers_bit_for_bit(sizes, x_bits, w_bits, estimate):
    layers, x = random_chain(sizes), inputs(29, sizes[0])
    network = quantized(layers, x, ESTIMATORS[estimate], x_bits=x_bits, w_bits=w_bits)
    codes = affine.quantize(x, network[0].x_qparams)
    found = static.integer_forward(network, codes)
    assert found.dtype == np.int8
    assert_array_equal(found, forward_in_unbounded_integers(network, codes))


@pytest.mark.parametrize("sizes", SIZES)
def test_one_layer_is_within_a_code_of_the_rounded_real_layer(sizes):
    layers, x = random_chain(sizes), inputs(29, sizes[0])
    for layer in quantized(layers, x):
        # Every layer of its own: a code that differs must not be amplified by the next one.
        x = affine.fake_quantize(inputs(29, layer.w_codes.shape[1]), layer.x_qparams)
        codes = static.integer_layer(layer, affine.quantize(x, layer.x_qparams))
        real = affine.quantize(static.simulated_forward([layer], x), layer.y_qparams)
        # Two numbers that are both rounded from values less than half a code apart.
        assert np.abs(codes.astype(int) - real).max() <= 1
        assert np.mean(codes != real) <= 0.02


@pytest.mark.parametrize("sizes", [(1, 1), (7, 5), (64, 33)])
def test_one_layer_is_within_a_code_of_onnx_runtime(sizes):
    layers, x = random_chain(sizes), inputs(29, sizes[0])
    # Seven bits: two products of 255 and 63 fit into the 16 bits that older processors sum in.
    (layer,) = quantized(layers, x, w_bits=7)
    codes = affine.quantize(x, layer.x_qparams)
    found = static.integer_layer(layer, codes).astype(int)
    theirs = onnxruntime_layer(layer, codes)
    # One float32 multiplication and one rounding there, integers and two roundings here.
    assert np.abs(found - theirs).max() <= 1
    assert np.mean(found != theirs) <= 0.02
    assert len(np.unique(theirs)) > 8


def onnxruntime_layer(layer, codes):
    """ONNX Runtime's QLinearConv with a window of one pixel is a linear layer with a bias."""
    arrays = {
        "x_scale": np.float32(layer.x_qparams.scale),
        "x_zero": np.int8(layer.x_qparams.zero_point),
        "w": layer.w_codes[:, :, None, None],
        "w_scale": np.float32(layer.w_qparams.scale[:, 0]),
        "w_zero": np.zeros(len(layer.w_codes), np.int8),
        "y_scale": np.float32(layer.y_qparams.scale),
        "y_zero": np.int8(layer.y_qparams.zero_point),
        "bias": layer.bias_codes,
    }
    constants = [onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items()]
    node = onnx.helper.make_node("QLinearConv", ["x", *arrays], ["y"])
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT8, [None, None, 1, 1])
        for name in "xy"
    ]
    graph = onnx.helper.make_graph([node], "layer", ends[:1], ends[1:], constants)
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": codes[:, :, None, None]})[0][:, :, 0, 0].astype(int)


def test_every_code_is_nearest_to_the_exact_real_number_but_near_a_tie():
    layers, x = random_chain((33, 17)), inputs(50, 33)
    (layer,) = quantized(layers, x)
    x_codes = affine.quantize(x, layer.x_qparams)
    codes = static.integer_layer(layer, x_codes)
    steps = x_codes.astype(object) - int(layer.x_qparams.zero_point)
    sums = steps @ layer.w_codes.astype(object).T + layer.bias_codes.astype(object)
    for j in range(17):
        ratio = layer.x_qparams.scale * layer.w_qparams.scale[j, 0] / layer.y_qparams.scale
        for i in range(50):
            exact = Fraction(float(ratio)) * sums[i, j] + int(layer.y_qparams.zero_point)
            exact = min(max(exact, -128), 127)
            # The bound of tests/test_requantize.py with a shift of at least 1: 1/2 + 2^-shift.
            assert abs(int(codes[i, j]) - exact) <= Fraction(1, 2) + Fraction(1, 2) ** int(
                layer.shift[j]
            )


def test_the_bias_has_the_scale_of_the_products_and_no_zero_point():
    layers, x = random_chain((7, 5)), inputs(20, 7)
    (layer,) = quantized(layers, x)
    unit = layer.x_qparams.scale * layer.w_qparams.scale[:, 0]
    assert layer.bias_codes.dtype == np.int32
    assert (np.abs(layer.bias_codes * unit - layers[0].bias) <= unit / 2 * (1 + 1e-15)).all()
    # Inputs whose code is the zero-point are real zeros: the output is the bias alone.
    zeros = np.full((1, 7), layer.x_qparams.zero_point, np.int8)
    y = affine.dequantize(static.integer_layer(layer, zeros), layer.y_qparams)
    low, high = static.calibrate(layers, [x])[1]
    inside = np.clip(layers[0].bias, low, high)
    # Half a step of the output, half a unit of the bias, and a step where the zero-point rounds.
    assert (np.abs(y[0] - inside) <= 1.6 * layer.y_qparams.scale).all()


def test_a_range_that_starts_at_zero_makes_the_relu_a_clamp():
    layers, x = random_chain((7, 5, 2)), inputs(40, 7)
    network = quantized(layers, x)
    assert int(network[0].y_qparams.zero_point) == -128
    without = [replace(network[0], relu=False), network[1]]
    codes = affine.quantize(x, network[0].x_qparams)
    assert_array_equal(
        static.integer_forward(without, codes), static.integer_forward(network, codes)
    )
    # A range with negative values does not.
    wide = static.quantize(layers, [(-3, 3), (-9, 9), (-9, 9)])
    hidden = static.integer_layer(wide[0], codes)
    assert (hidden >= wide[0].y_qparams.zero_point).all()
    assert (static.integer_layer(replace(wide[0], relu=False), codes) < hidden).any()


def test_calibration_of_two_batches_is_that_of_their_union():
    layers, x = random_chain((7, 5, 2)), inputs(41, 7)
    for estimate in ESTIMATORS.values():
        whole = static.calibrate(layers, [x], estimate)
        parts = static.calibrate(layers, iter([x[:13], x[13:]]), estimate)
        # BLAS may sum a batch of another size in another order: rounding of 7 and 5 products.
        assert np.abs(np.array(whole) - np.array(parts)).max() <= 1e-14
    low, high = static.calibrate(layers, [x])[1]
    assert (low, high) == (0, np.maximum(x @ layers[0].w.T + layers[0].bias, 0).max())


def test_a_row_of_zeros_gives_the_bias():
    layers = [static.Linear(np.zeros((2, 3)), np.array([0.5, -0.5]), relu=False)]
    x = inputs(5, 3)
    (layer,) = quantized(layers, x)
    y = affine.dequantize(
        static.integer_forward([layer], affine.quantize(x, layer.x_qparams)), layer.y_qparams
    )
    assert np.abs(y - [0.5, -0.5]).max() <= layer.y_qparams.scale + layer.x_qparams.scale / 2


def test_a_bias_beyond_int32_saturates_and_its_sum_is_refused():
    layers = [static.Linear(np.full((1, 1), 1e-9), np.array([1e9]), relu=False)]
    (layer,) = static.quantize(layers, [(0.0, 1.0), (0.0, 1.0)])
    assert layer.bias_codes.tolist() == [2**31 - 1]
    with pytest.raises(ValueError, match="values that int32 does not"):
        static.integer_forward([layer], np.array([[127]], np.int8))


def test_the_digits_classifier_keeps_its_answers():
    model = digits_mlp.load()
    layers = static.chain(model)
    assert [layer.relu for layer in layers] == [True, False]
    (train, _), (images, labels) = digits()
    network = quantized(layers, train.astype(np.float64))
    codes = static.integer_forward(
        network, affine.quantize(images.astype(np.float64), network[0].x_qparams)
    )
    real = static.activations(layers, images.astype(np.float64))[-1]
    # Two images of 360: half a percent, the figure that eight bits are known for.
    assert np.mean(codes.argmax(1) == labels) >= np.mean(real.argmax(1) == labels) - 0.006


def test_what_is_no_chain_or_does_not_match_is_refused():
    with pytest.raises(ValueError, match="GELU at this place"):
        static.chain(nn.Sequential(nn.Linear(2, 2), nn.GELU()))
    with pytest.raises(ValueError, match="ReLU at this place"):
        static.chain(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))
    without_bias = static.chain(nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU()))
    assert without_bias[0].bias.tolist() == [0, 0, 0]
    layers = random_chain((2, 2))
    with pytest.raises(ValueError, match="batches is empty"):
        static.calibrate(layers, [])
    with pytest.raises(ValueError, match=r"1 layers have 2 ranges.*got 1"):
        static.quantize(layers, [(0, 1)])
    with pytest.raises(ValueError, match=r"x_bits=16 is outside 1\.\.8"):
        static.quantize(layers, [(0, 1), (0, 1)], x_bits=16)
