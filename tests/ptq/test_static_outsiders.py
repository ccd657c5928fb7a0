"""The integer network against ONNX Runtime and against PyTorch's quantized kernels.

All compute the same int32 sum.  The sum is then multiplied by s_x s_w / s_y: in fixed point and
rounded twice here, in float32 and rounded once there.  Codes differ only next to a tie.

Weights have seven bits: two products of 255 and 63 fit into the 16 bits in which processors without
VNNI add them.
"""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from qbook import affine
from qbook.data import digits
from qbook.models import digits_mlp
from qbook.ptq import static
from qbook.ranges.minmax import minmax

pytestmark = pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, :UserWarning")

SIZES = [(1, 1), (7, 5), (64, 33), (300, 17)]
TRANSPOSED = {"domain": "com.microsoft", "transB": 1}


@pytest.fixture(params=[*SIZES, "digits 1", "digits 2"], ids=str)
def case(request):
    """-> a Linear, its IntegerLinear and codes of its input"""
    if isinstance(request.param, tuple):
        in_, out = request.param
        rng = np.random.default_rng(0)
        w, bias = rng.normal(size=(out, in_)) / np.sqrt(in_), rng.normal(size=out)
        layers, x = [static.Linear(w, bias, relu=in_ == 64)], rng.normal(size=(50, in_)) + 0.3
        (layer,) = static.quantize(layers, static.calibrate(layers, [x], minmax), w_bits=7)
        return layers[0], layer, affine.quantize(x, layer.x_qparams)
    layers, network, codes = digits_network()
    if request.param == "digits 2":
        return layers[1], network[1], static.integer_layer(network[0], codes)
    return layers[0], network[0], codes


def digits_network():
    """-> the two real layers, their integers, and the codes of 360 test images"""
    layers = static.chain(digits_mlp.load())
    (train, _), (images, _) = digits()
    ranges = static.calibrate(layers, [train.astype(np.float64)])
    network = static.quantize(layers, ranges, w_bits=7)
    return layers, network, affine.quantize(images.astype(np.float64), network[0].x_qparams)


def assert_only_near_ties_differ(layer, x_codes, theirs, *, bias_error=0.0):
    """bias_error: how far apart the two biases may be, in units of the sum"""
    ours = static.integer_layer(layer, x_codes).astype(int)
    ratio = layer.x_qparams.scale * layer.w_qparams.scale[:, 0] / layer.y_qparams.scale
    x, w = x_codes.astype(np.int64), layer.w_codes.astype(np.int64)
    dot = (x - int(layer.x_qparams.zero_point)) @ w.T
    bias = layer.bias_codes.astype(np.int64)
    position = (dot + bias) * ratio
    # Ours rounds first to multiples of 2^-shift, half of one away at most, and the multiplier is
    # good to half a unit in 2^31.  The float32 product there has three rounded scales, their
    # product and quotient, and itself: eight units in 2^24 leave room for the bias.
    first_rounding = 2.0**-layer.shift * (0.5 + np.abs(dot + bias) * 2.0**-32)
    float32 = (np.abs(dot) + np.abs(bias)) * ratio * 8 * 2.0**-24
    reach = first_rounding + float32 + bias_error * ratio
    near_a_tie = np.abs(position - np.floor(position) - 0.5) <= reach
    differ = ours != theirs
    assert np.abs(ours - theirs).max() <= 1
    assert near_a_tie[differ].all()
    # Positions are spread evenly between ties: twice the reach of them are near one.  Four standard
    # deviations, and one for the smallest layers.
    expected = 2 * reach.sum()
    assert differ.sum() <= expected + 4 * np.sqrt(expected) + 1
    # The outputs fill their range, or the comparison would say nothing.
    assert len(np.unique(theirs)) > 8


def constants(layer, *, transposed, prefix=""):
    """Weights as ONNX wants them, and the scales and zero-points of a layer's three arrays."""
    w = layer.w_codes if transposed else np.ascontiguousarray(layer.w_codes.T)
    arrays = {
        "x_scale": np.float32(layer.x_qparams.scale),
        "x_zero": np.int8(layer.x_qparams.zero_point),
        "w": w,
        "w_scale": layer.w_qparams.scale[:, 0].astype(np.float32),
        "w_zero": np.zeros(len(layer.w_codes), np.int8),
        "bias": layer.bias_codes,
        "y_scale": np.float32(layer.y_qparams.scale),
        "y_zero": np.int8(layer.y_qparams.zero_point),
    }
    return {key: numpy_helper.from_array(np.asarray(a), prefix + key) for key, a in arrays.items()}


def run_onnx(nodes, tensors, x_codes, wanted):
    """-> the outputs named in ``wanted``, as int"""
    ends = [
        helper.make_tensor_value_info(name, TensorProto.INT8, [None, None])
        for name in ("x", *wanted)
    ]
    graph = helper.make_graph(nodes, "network", ends[:1], ends[1:], tensors)
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [y.astype(int) for y in session.run(list(wanted), {"x": x_codes})]


def torch_linear(layer, bias, x_codes):
    """PyTorch's linear: input codes from 0, weights per channel, a real bias."""
    to_unsigned = 128
    w = torch._make_per_channel_quantized_tensor(
        torch.from_numpy(layer.w_codes),
        torch.from_numpy(layer.w_qparams.scale[:, 0]),
        torch.zeros(len(layer.w_codes), dtype=torch.long),
        0,
    )
    packed = torch.ops.quantized.linear_prepack(w, torch.from_numpy(bias.astype(np.float32)))
    x = torch._make_per_tensor_quantized_tensor(
        torch.from_numpy((x_codes.astype(int) + to_unsigned).astype(np.uint8)),
        float(layer.x_qparams.scale),
        int(layer.x_qparams.zero_point) + to_unsigned,
    )
    linear = torch.ops.quantized.linear_relu if layer.relu else torch.ops.quantized.linear
    y_zero_point = int(layer.y_qparams.zero_point) + to_unsigned
    y = linear(x, packed, float(layer.y_qparams.scale), y_zero_point)
    return y.int_repr().numpy().astype(int) - to_unsigned


def test_a_layer_without_bias_differs_from_onnx_s_qlinearmatmul_near_ties_only(case):
    _, layer, codes = case
    layer = replace(layer, bias_codes=np.zeros_like(layer.bias_codes))
    tensors = constants(layer, transposed=False)
    del tensors["bias"]
    node = helper.make_node("QLinearMatMul", ["x", *tensors], ["y"])
    (theirs,) = run_onnx([node], list(tensors.values()), codes, ["y"])
    assert_only_near_ties_differ(layer, codes, theirs)


def test_a_layer_differs_from_onnx_runtime_s_qgemm_near_ties_only(case):
    _, layer, codes = case
    tensors = constants(layer, transposed=True)
    node = helper.make_node("QGemm", ["x", *tensors], ["y"], **TRANSPOSED)
    (theirs,) = run_onnx([node], list(tensors.values()), codes, ["y"])
    assert_only_near_ties_differ(layer, codes, theirs)


def test_a_layer_differs_from_torch_s_quantized_linear_near_ties_only(case, engine):
    real, layer, codes = case
    theirs = torch_linear(layer, real.bias, codes)
    # The bias stays real in one engine and is rounded by the other: half a unit of the sum.
    assert_only_near_ties_differ(layer, codes, theirs, bias_error=0.5)


def test_the_digits_network_differs_from_onnx_runtime_s_as_far_as_its_hidden_codes_do():
    _, network, codes = digits_network()
    nodes, tensors, source = [], [], "x"
    for i, layer in enumerate(network):
        own = constants(layer, transposed=True, prefix=f"{i} ")
        names = [tensor.name for tensor in own.values()]
        nodes.append(helper.make_node("QGemm", [source, *names], [f"y{i}"], **TRANSPOSED))
        tensors, source = [*tensors, *own.values()], f"y{i}"
    theirs = run_onnx(nodes, tensors, codes, ["y0", "y1"])
    assert_networks_agree(network, codes, *theirs)


def test_the_digits_network_differs_from_torch_s_as_far_as_its_hidden_codes_do(engine):
    layers, network, codes = digits_network()
    hidden = torch_linear(network[0], layers[0].bias, codes)
    logits = torch_linear(network[1], layers[1].bias, hidden)
    assert_networks_agree(network, codes, hidden, logits)


def assert_networks_agree(network, x_codes, their_hidden, their_logits):
    first, second = network
    hidden = static.integer_layer(first, x_codes).astype(int)
    logits = static.integer_forward(network, x_codes).astype(int)
    assert np.abs(hidden - their_hidden).max() <= 1
    # A hidden code that differs moves a logit by its weight; both results are then rounded.
    ratio = second.x_qparams.scale * second.w_qparams.scale[:, 0] / second.y_qparams.scale
    moved = np.abs(hidden - their_hidden) @ np.abs(second.w_codes.astype(int)).T * ratio
    assert (np.abs(logits - their_logits) <= np.floor(moved) + 1).all()
    # No logit moves by more than one of its 255 steps: only a lead of two or less can change hands.
    assert np.abs(logits - their_logits).max() <= 1
    top = np.sort(logits, axis=1)
    clear = top[:, -1] - top[:, -2] > 2
    assert np.mean(clear) >= 0.9
    assert (logits.argmax(axis=1) == their_logits.argmax(axis=1))[clear].all()
