import numpy as np
import pytest
import torch
from torch import nn

from qbook import affine, data
from qbook.inference.convert import convert_convolutions, nbytes
from qbook.inference.int8_conv2d import Int8Conv2d
from qbook.inference.int8_linear import Int8Linear
from qbook.models import resnet20


def make(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv = nn.Conv2d(6, 10, 3, **options)
    return conv, Int8Conv2d(conv, affine.choose_qparams(images(), 8, symmetric=False))


def images():
    return torch.from_numpy(np.random.default_rng(0).normal(size=(4, 6, 9, 7)).astype(np.float32))


GEOMETRIES = [{}, {"padding": 1, "stride": 2}, {"dilation": 2, "padding": (2, 0)}, {"groups": 2}]


@pytest.mark.parametrize("options", GEOMETRIES)
@torch.no_grad()
def test_the_layer_is_the_simulated_convolution(options):
    conv, packed = make(**options)
    x = images()
    x_hat = affine.fake_quantize(x, affine.choose_qparams(x, 8, symmetric=False))
    w = conv.weight
    w_hat = affine.fake_quantize(w, affine.choose_qparams(w, 8, axis=(1, 2, 3)))
    conv.weight.copy_(w_hat)
    expected = conv.double()(x_hat.double())
    # Three roundings behind an exact sum, and those of x_hat and w_hat; their sizes are bounded by
    # the convolution of magnitudes.
    conv.weight.abs_()
    size = conv(x_hat.double().abs()).abs().max() + 1
    assert packed(x).shape == expected.shape
    assert (packed(x) - expected).abs().max() <= 6 * 2**-23 * size


@pytest.mark.parametrize("options", GEOMETRIES)
@torch.no_grad()
def test_torch_compile_and_torchs_own_checks_accept_it(options):
    _, packed = make(**options)
    torch.library.opcheck(Int8Conv2d.operator, (images(), *packed.tensors))
    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(images()), packed(images()))


@torch.no_grad()
def test_the_state_is_what_a_copy_needs_and_names_its_geometry():
    _, packed = make(padding=1)
    _, other = make(padding=1)
    for buffer in other.buffers():
        buffer.zero_()
    other.load_state_dict(packed.state_dict())
    assert torch.equal(other(images()), packed(images()))
    _, strided = make(padding=1, stride=2)
    with pytest.raises(RuntimeError, match="is packed as"):
        strided.load_state_dict(packed.state_dict())


def test_misuse_is_refused_with_what_would_work():
    conv, packed = make()
    qparams = affine.choose_qparams(images(), 8)
    with pytest.raises(ValueError, match=r"pass float32 \[n, 6, h, w\]"):
        packed(images()[:, :5])
    with pytest.raises(RuntimeError, match="has no gradient"):
        packed(images().requires_grad_())
    with pytest.raises(ValueError, match="padding_mode='reflect'"):
        Int8Conv2d(nn.Conv2d(6, 10, 3, padding=1, padding_mode="reflect"), qparams)
    with pytest.raises(ValueError, match="have 4 scales and 255 codes; pass one scale and 8 bits"):
        Int8Conv2d(conv, affine.choose_qparams(images(), 8, axis=(1, 2, 3)))
    with pytest.raises(ValueError, match="have 1 scales and 1023 codes"):
        Int8Conv2d(conv, affine.choose_qparams(images(), 10))


def test_a_layer_that_was_not_reached_is_named():
    model = nn.Sequential(nn.Conv2d(6, 10, 3), nn.Flatten())
    with pytest.raises(ValueError, match=r"0 was not reached by run; skip=\['0'\]"):
        convert_convolutions(model, lambda m: None)


@torch.no_grad()
def test_resnet20_runs_on_the_kernels_and_answers_as_before():
    try:
        model, (photos, labels) = resnet20.load(), data.cifar10("test")
    except data.DataUnavailable as lacking:
        pytest.skip(str(lacking))
    seen = resnet20.normalise(photos[-64:])
    packed = convert_convolutions(model, lambda m: m(seen))
    kinds = [type(m) for m in packed.modules()]
    assert kinds.count(Int8Conv2d) == 19
    assert kinds.count(Int8Linear) == 1
    assert nbytes(packed) <= nbytes(model) / 3
    answers = [resnet20.predict(m, photos[:500]).numpy() for m in (model, packed)]
    # Eight bits change one answer in fifty at most; the two networks are as often right to within
    # a standard error of 500 answers, 1.8 points.
    assert (answers[0] == answers[1]).mean() >= 0.98
    right = [(a == labels[:500]).mean() for a in answers]
    assert abs(right[0] - right[1]) <= 0.018
