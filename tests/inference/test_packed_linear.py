import functools

import numpy as np
import pytest
import torch
from torch import nn

from qbook import affine
from qbook.inference.int4_linear import Int4Linear
from qbook.inference.int8_linear import Int8Linear
from qbook.inference.outlier_linear import OutlierLinear
from qbook.inference.ternary_linear import TernaryLinear
from qbook.models import char_gpt
from qbook.ptq import gptq
from qbook.qat import twn

CLASSES = {
    "int8": Int8Linear,
    "int4": Int4Linear,
    "int4, bfloat16 inputs": functools.partial(Int4Linear, x_bits=16),
    "int4, real inputs": functools.partial(Int4Linear, x_bits=32),
    "ternary": TernaryLinear,
    "ternary, base 3": functools.partial(TernaryLinear, packing="base-3"),
    "outliers": OutlierLinear,
}


def make(kind, in_=64, out=48, bias=True):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        linear = nn.Linear(in_, out, bias=bias)
    return linear, CLASSES[kind](linear)


def inputs(*shape):
    return torch.from_numpy(np.random.default_rng(0).normal(size=shape).astype(np.float32))


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_any_leading_shape_gives_the_rows_one_by_one(kind, bias):
    _, packed = make(kind, bias=bias)
    x = inputs(2, 3, 64)
    y = packed(x)
    assert y.shape == (2, 3, 48)
    rows = torch.stack([packed(row[None])[0] for row in x.reshape(6, 64)])
    assert torch.equal(y.reshape(6, 48), rows)
    assert packed(x[:0]).shape == (0, 3, 48)


@pytest.mark.parametrize("kind", CLASSES)
@torch.no_grad()
def test_the_state_is_what_a_copy_needs(kind, tmp_path):
    _, packed = make(kind)
    x = inputs(5, 64)
    expected = packed(x)
    torch.save(packed.state_dict(), tmp_path / "state.pt")
    _, other = make(kind)
    for buffer in other.buffers():
        buffer.zero_()
    other.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert torch.equal(other(x), expected)


@pytest.mark.parametrize("kind", CLASSES)
@torch.no_grad()
def test_torch_compile_takes_the_layer_whole(kind):
    _, packed = make(kind)
    x = inputs(5, 64)
    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), packed(x))


@pytest.mark.parametrize("kind", CLASSES)
def test_the_operator_passes_torchs_own_checks(kind):
    _, packed = make(kind)
    torch.library.opcheck(type(packed).operator, (inputs(5, 64), *packed.tensors))


@pytest.mark.parametrize("kind", CLASSES)
def test_misuse_is_refused_with_what_would_work(kind):
    linear, packed = make(kind)
    with pytest.raises(RuntimeError, match=r"has no gradient; call it in torch.no_grad\(\)"):
        packed(inputs(5, 64).requires_grad_())
    with torch.no_grad():
        with pytest.raises(ValueError, match=r"x is torch.float64 .* pass float32 \[..., 64\]"):
            packed(inputs(5, 64).double())
        with pytest.raises(ValueError, match=r"of shape \(5, 63\)"):
            packed(inputs(5, 63))
    with pytest.raises(ValueError, match=r"layer is a Conv1d; pass a torch\.nn\.Linear"):
        CLASSES[kind](nn.Conv1d(1, 1, 1))
    with pytest.raises(ValueError, match=r"the weight is torch\.bfloat16 on cpu"):
        CLASSES[kind](linear.bfloat16())


@torch.no_grad()
def test_int8_is_the_simulated_quantizer():
    linear, packed = make("int8", 133, 37)
    x = inputs(19, 133)
    x_hat = affine.fake_quantize(x, affine.choose_qparams(x, 8, axis=1))
    w_hat = affine.fake_quantize(linear.weight, affine.choose_qparams(linear.weight, 8, axis=1))
    expected = x_hat.double() @ w_hat.double().T + linear.bias
    # Three roundings of float32 behind an exact sum: of the two scales, of their product with the
    # sum, of the bias.  The largest result times 2^-23 covers them and those of x_hat, w_hat.
    error = (packed(x) - expected).abs().max()
    size = (x_hat.abs().double() @ w_hat.abs().double().T).max()
    assert error <= 4 * 2**-23 * size


@torch.no_grad()
def test_int8_loses_next_to_nothing_of_the_character_gpt():
    from qbook.inference.convert import convert, nbytes

    model = char_gpt.load()
    packed = convert(model, Int8Linear)
    prompt = char_gpt.encode("ROMEO:\nBut soft, what light through yonder window breaks?")[None]
    real, quantized = (m(prompt).log_softmax(dim=-1) for m in (model, packed))
    divergence = (real.exp() * (real - quantized)).sum(dim=-1).mean()
    assert divergence <= 1e-3
    assert nbytes(packed) <= nbytes(model) / 3


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("int4, real inputs", torch.float32), ("int4, bfloat16 inputs", torch.bfloat16)],
    ids=["float32", "bfloat16"],
)
@torch.no_grad()
def test_int4_is_the_product_with_the_weight_that_its_codes_stand_for(kind, dtype):
    linear, packed = make(kind, 96, 37)
    x, w = inputs(7, 96), linear.weight
    w_hat = affine.fake_quantize(w, affine.choose_qparams(w, 4, axis=1, group_size=32))
    expected = x.to(dtype).double() @ w_hat.double().T + linear.bias
    # Scales are kept in float16: each w_hat is off by 2^-11 of itself, and a sum of 97 float32
    # terms by 97 * 2^-24 of their magnitudes.
    size = x.abs().double() @ w_hat.abs().double().T + linear.bias.abs()
    assert ((packed(x) - expected).abs() <= (2**-11 + 97 * 2**-24) * size).all()


@torch.no_grad()
def test_int4_takes_the_codes_of_another_rounding():
    linear, _ = make("int4", 64, 48)
    x = inputs(256, 64) @ inputs(64, 64)
    h = gptq.dampen(gptq.hessian(x.double().numpy()))
    learnt = gptq.quantize_groups(linear.weight.double().numpy(), h, 4, 32)
    nearest, learnt = (Int4Linear(linear, x_bits=32, codes=codes) for codes in (None, learnt))
    lost = [float(((packed(x) - linear(x)) ** 2).sum()) for packed in (nearest, learnt)]
    assert lost[1] < 0.9 * lost[0]


@pytest.mark.parametrize("kind", ["ternary", "ternary, base 3"])
@torch.no_grad()
def test_ternary_is_the_simulated_network(kind):
    linear, packed = make(kind, 133, 37)
    x = inputs(19, 133)
    scale = twn.optimal_scale(linear.weight, axis=1)
    w_hat = affine.dequantize(twn.quantize(linear.weight, scale / 2), twn.qparams(scale))
    x_hat = affine.fake_quantize(x, affine.choose_qparams(x, 8, axis=1))
    expected = x_hat.double() @ w_hat.double().T + linear.bias
    # As for int8: three roundings behind an exact sum, and those of x_hat and w_hat.
    size = (x_hat.abs().double() @ w_hat.abs().double().T).max()
    assert (packed(x) - expected).abs().max() <= 4 * 2**-23 * size


@torch.no_grad()
def test_an_outlying_channel_ruins_int8_and_not_its_decomposition():
    linear = make("int8")[0]
    x = inputs(32, 64)
    x[:, 5] *= 60
    real = linear(x)
    lost = [float(((CLASSES[kind](linear)(x) - real) ** 2).sum()) for kind in ("int8", "outliers")]
    # What is left is the rounding of the weights, those of the outlying column too.
    assert lost[1] < lost[0] / 10


def test_a_state_of_another_layout_is_refused():
    # Both take four panels' steps for 64 inputs: the shapes alone would not tell.
    linear = make("int8")[0]
    two_bit, base_three = (TernaryLinear(linear, packing=p) for p in ("2-bit", "base-3"))
    assert two_bit.panels.shape == base_three.panels.shape
    with pytest.raises(RuntimeError, match=r"is packed as \[4\], not as \[5\]"):
        base_three.load_state_dict(two_bit.state_dict())
    state = two_bit.state_dict()
    del state["layout"]
    with pytest.raises(RuntimeError, match=r"Missing key.*layout"):
        two_bit.load_state_dict(state)


def test_codes_of_another_shape_are_refused():
    linear = nn.Linear(64, 48, bias=False)
    qparams = affine.choose_qparams(linear.weight.detach()[:, :32], 4, axis=1, group_size=32)
    codes = affine.quantize(linear.weight.detach()[:, :32], qparams)
    with pytest.raises(ValueError, match=r"codes of shape \(48, 32\) are not of the layer's"):
        Int4Linear(linear, codes=(codes, qparams))
    with pytest.raises(ValueError, match=r"codes of shape \(48, 32\) are not of the layer's"):
        TernaryLinear(linear, codes=(codes, torch.ones(48)))


def test_options_that_do_not_exist_are_refused():
    linear, _ = make("int8")
    with pytest.raises(ValueError, match="x_bits=4 is not supported; choose 8, 16 or 32"):
        Int4Linear(linear, x_bits=4)
    with pytest.raises(ValueError, match="packing='3-bit' does not exist"):
        TernaryLinear(linear, packing="3-bit")
