"""Dynamic quantization against ONNX Runtime and against PyTorch's dynamic linear layer.

Everything in float32, as theirs is.  The int32 sums are equal; the real results are equal up to
float32 rounding wherever the codes of the input are, which x / scale next to a tie may prevent.

Weights have seven bits: two products of 255 and 63 fit into the 16 bits in which processors without
VNNI add them.
"""

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.testing import assert_array_equal
from onnx import TensorProto, helper

from qbook import affine, integer_product
from qbook.data import digits
from qbook.models import digits_mlp
from qbook.ptq import dynamic, static

pytestmark = pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, :UserWarning")

EPS = 2.0**-24
DIGITS = ["digits 1", "digits 2"]
SIZES = [(1, 1, 1), (3, 7, 5), (50, 64, 33), (20, 300, 17)]


@pytest.fixture(params=[*SIZES, *DIGITS], ids=str)
def case(request):
    """-> a Linear and its input [samples, in], float32"""
    if isinstance(request.param, tuple):
        samples, in_, out = request.param
        rng = np.random.default_rng(0)
        w, bias = rng.normal(size=(out, in_)), rng.normal(size=out)
        return float32(static.Linear(w, bias, relu=False)), float32(rng.normal(size=(samples, in_)))
    layers = [float32(layer) for layer in static.chain(digits_mlp.load())]
    images = digits()[1][0]
    activations = static.activations(layers, float32(images))
    place = DIGITS.index(request.param)
    return layers[place]._replace(relu=False), activations[place]


def float32(value):
    if isinstance(value, static.Linear):
        return value._replace(w=float32(value.w), bias=float32(value.bias))
    return value.astype(np.float32)


def assert_equal_but_for_codes_near_a_tie(x, layer, theirs, *, x_bits=8, per_token=False):
    """layer: a DynamicLinear; theirs [samples, out]: its result by another library"""
    ours = dynamic.linear(x, layer, x_bits=x_bits, per_token=per_token)
    assert ours.dtype == np.float32
    qparams = dynamic.choose_qparams(x, x_bits, per_token=per_token)
    codes = affine.quantize(x, qparams).astype(np.int64)
    w = layer.w_codes.astype(np.int64)
    unit = qparams.scale.astype(np.float64) * layer.w_qparams.scale[:, 0]
    sums = (codes - qparams.zero_point) @ w.T
    # The sum leaves int32 rounded, two scales are good to two units each, their product and that of
    # the sum and the addition of the bias round: ten units of either summand.
    rounding = 10 * EPS * (np.abs(sums) * unit + np.abs(layer.bias))
    # A scale good to two units, its reciprocal and the product: five units of at most 255 steps.
    steps = x.astype(np.float64) / qparams.scale
    reach = 5 * EPS * np.abs(steps)
    near_a_tie = np.abs(steps - np.floor(steps) - 0.5) <= reach
    one_code = near_a_tie.astype(np.int64) @ np.abs(w).T * unit
    difference = np.abs(ours.astype(np.float64) - theirs)
    assert (difference <= rounding + one_code * (1 + 10 * EPS)).all()
    # A value is near a tie with a chance of twice its reach and then moves a row of results.  The
    # half-white pixels of the digits are exact ties, which both send to the even code.
    assert np.mean(difference > rounding) <= 2 * reach.mean() * x.shape[1]


def packed(layer):
    """The weights of a DynamicLinear, in PyTorch's own arrangement."""
    w = torch._make_per_channel_quantized_tensor(
        torch.from_numpy(layer.w_codes),
        torch.from_numpy(layer.w_qparams.scale[:, 0].astype(np.float64)),
        torch.zeros(len(layer.w_codes), dtype=torch.long),
        0,
    )
    return torch.ops.quantized.linear_prepack(w, torch.from_numpy(layer.bias))


def run_onnx(nodes, inputs, outputs):
    """inputs: name -> array; outputs: name -> ONNX type"""
    values = {name: np.asarray(array) for name, array in inputs.items()}
    ends = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for name, v in values.items()
    ]
    results = [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()]
    graph = helper.make_graph(nodes, "layer", ends, results)
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(list(outputs), values)


def test_parameters_and_codes_are_onnx_s_dynamic_quantize_linear_s(case):
    _, x = case
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["codes", "scale", "zero"])
    types = {"codes": TensorProto.UINT8, "scale": TensorProto.FLOAT, "zero": TensorProto.UINT8}
    codes, scale, zero_point = run_onnx([node], {"x": x}, types)
    ours = dynamic.choose_qparams(x, per_token=False)
    # high - low and the division round on both sides.
    assert abs(ours.scale.item() - scale) <= 4 * EPS * scale
    # Ours are signed codes, 128 lower.
    assert ours.zero_point.item() + 128 == zero_point
    found = affine.quantize(x, ours).astype(int) + 128
    steps = x.astype(np.float64) / scale
    near_a_tie = np.abs(steps - np.floor(steps) - 0.5) <= 5 * EPS * np.abs(steps)
    differ = found != codes
    assert np.abs(found - codes.astype(int)).max() <= 1
    assert near_a_tie[differ].all()
    # As above, for one value.
    assert np.mean(differ) <= 2 * 5 * EPS * np.abs(steps).mean()


@pytest.mark.parametrize(("samples", "in_", "out"), SIZES)
def test_the_int32_sums_are_onnx_s_matmulinteger_s(samples, in_, out):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (samples, in_)).astype(np.uint8)
    w = rng.integers(-63, 64, (out, in_)).astype(np.int8)
    node = helper.make_node("MatMulInteger", ["x", "w", "zero"], ["sums"])
    values = {"x": x, "w": np.ascontiguousarray(w.T), "zero": np.uint8(77)}
    (theirs,) = run_onnx([node], values, {"sums": TensorProto.INT32})
    # Signed codes and a zero-point 128 lower are the same steps.
    signed = (x.astype(int) - 128).astype(np.int8)
    assert_array_equal(integer_product.accumulate(signed, w, 77 - 128), theirs)
    assert_array_equal(integer_product.accumulate(x, w, 77), theirs)


def test_a_layer_is_onnx_runtime_s_dynamic_quantize_matmul(case):
    real, x = case
    (layer,) = dynamic.quantize([real], w_bits=7)
    values = {
        "x": x,
        "w": np.ascontiguousarray(layer.w_codes.T),
        "scale": layer.w_qparams.scale[:, 0],
        "zero": np.zeros(len(layer.w_codes), np.int8),
        "bias": layer.bias,
    }
    node = helper.make_node("DynamicQuantizeMatMul", [*values], ["y"], domain="com.microsoft")
    (theirs,) = run_onnx([node], values, {"y": TensorProto.FLOAT})
    assert_equal_but_for_codes_near_a_tie(x, layer, theirs)


def test_a_layer_is_torch_s_dynamic_linear(case, engine):
    real, x = case
    (layer,) = dynamic.quantize([real], w_bits=7)
    theirs = torch.ops.quantized.linear_dynamic(torch.from_numpy(x), packed(layer), False)
    assert_equal_but_for_codes_near_a_tie(x, layer, theirs.numpy())


def test_per_token_is_torch_s_dynamic_linear_on_one_row_at_a_time(case, engine):
    real, x = case
    (layer,) = dynamic.quantize([real], w_bits=7)
    weights = packed(layer)
    rows = [
        torch.ops.quantized.linear_dynamic(row, weights, False)
        for row in torch.from_numpy(x[:50])[:, None]
    ]
    assert_equal_but_for_codes_near_a_tie(x[:50], layer, torch.cat(rows).numpy(), per_token=True)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
def test_the_digits_network_is_that_of_torch_s_quantize_dynamic(engine):
    import torch.ao.quantization as theirs

    model = digits_mlp.load()
    recipe = {torch.nn.Linear: theirs.per_channel_dynamic_qconfig}
    converted = theirs.quantize_dynamic(model, recipe, dtype=torch.qint8)
    # It gives the input one bit less, for the sake of 16-bit sums; QNNPACK warns that it does not.
    x_bits = 8 if engine == "qnnpack" else 7
    x = torch.from_numpy(digits()[1][0])
    for real, module, relu in zip(
        static.chain(model), (converted[0], converted[2]), (True, False), strict=True
    ):
        w = module.weight()
        scale = w.q_per_channel_scales().numpy().astype(np.float32)[:, None]
        # The weights it chose, with -128 for a code: 255 steps for twice the largest.
        largest = np.abs(real.w).max(axis=1)
        assert np.abs(scale[:, 0] - largest / 127.5).max() <= 4 * EPS * scale.max()
        qparams = affine.QParams(scale, np.zeros(scale.shape, np.int32), -128, 127)
        assert_array_equal(affine.quantize(float32(real.w), qparams), w.int_repr().numpy())
        layer = dynamic.DynamicLinear(w.int_repr().numpy(), qparams, float32(real.bias), False)
        y = module(x).detach()
        assert_equal_but_for_codes_near_a_tie(x.numpy(), layer, y.numpy(), x_bits=x_bits)
        x = torch.relu(y) if relu else y
    labels = digits()[1][1]
    assert np.mean(x.argmax(dim=1).numpy() == labels) >= 0.95
