import numpy as np
import pytest
import torch
from torch import nn

from qbook import affine
from qbook.inference.int8_linear import Int8Linear
from qbook.models import char_gpt

CLASSES = {"int8": Int8Linear}


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
    with pytest.raises(ValueError, match=r"linear is a Conv1d; pass a torch\.nn\.Linear"):
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
