import numpy as np
import pytest
import torch
from torch.testing import assert_close

from qbook import data
from qbook.data.catalogue import CIFAR10_ARCHIVE
from qbook.models import resnet20

WEIGHTS = "resnet20-12fca82f.th"
needs_weights = pytest.mark.skipif(not data.available(WEIGHTS), reason=data.how_to_get(WEIGHTS))
needs_images = pytest.mark.skipif(
    not data.available(CIFAR10_ARCHIVE), reason=data.how_to_get(CIFAR10_ARCHIVE)
)


def noise(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


@needs_weights
@needs_images
def test_the_first_2000_jpeg_test_images_give_1627_right_answers():
    # 81.35 %; all 10 000: 81.0 % (benchmarks/baselines.py).  The count is exact: the two largest
    # logits differ by at least 4.5e-3, float32 and float64 logits by at most 1.2e-5.
    images, labels = data.cifar10("test")
    predicted = resnet20.predict(resnet20.load(), images[:2000])
    assert int((predicted.numpy() == labels[:2000]).sum()) == 1627


def test_the_network_has_the_published_size():
    # He et al. 2016, table 6: 20 layers, 0.27 million parameters.  Counted by hand: 3x3
    # convolutions 3*16 + 6*16*16 + (16*32 + 5*32*32) + (32*64 + 5*64*64) times 9, two
    # batch-norm parameters for 7*16 + 6*32 + 6*64 channels, 64*10 + 10.
    convolutions = 9 * (48 + 6 * 256 + 512 + 5 * 1024 + 2048 + 5 * 4096)
    counted = convolutions + 2 * (7 * 16 + 6 * 32 + 6 * 64) + 650
    model = resnet20.ResNet20()
    assert sum(p.numel() for p in model.parameters()) == counted == 269_722
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) == 20


@pytest.mark.parametrize(("in_", "out", "stride"), [(16, 16, 1), (16, 32, 2), (3, 7, 2)])
def test_the_shortcut_subsamples_and_pads_with_zero_channels(in_, out, stride):
    x = torch.randn(2, in_, 6, 6, generator=torch.Generator().manual_seed(0))
    actual = resnet20.Block(in_, out, stride).shortcut(x)
    expected = torch.zeros(2, out, 6 // stride, 6 // stride)
    first = (out - in_) // 2
    for c in range(in_):
        for i in range(6 // stride):
            for j in range(6 // stride):
                expected[:, first + c, i, j] = x[:, c, i * stride, j * stride]
    assert_close(actual, expected, rtol=0, atol=0)


def test_normalise_equals_the_formula_pixel_by_pixel():
    images = noise(3)
    actual = resnet20.normalise(images).numpy()
    assert actual.shape == (3, 3, 32, 32)
    for channel, (mean, std) in enumerate(zip(resnet20.MEAN, resnet20.STD, strict=True)):
        expected = (images[..., channel] / 255 - mean) / std
        # Three float32 roundings of values below 3, each at most 3 * 2^-24, the first two
        # stretched by 1 / 0.224.
        assert np.abs(actual[:, channel] - expected).max() <= 3e-6


@pytest.mark.parametrize("shape", [(32, 32, 3), (1, 3, 32, 32)])
def test_normalise_refuses_another_shape(shape):
    with pytest.raises(ValueError, match=r"pass uint8 \[n, 32, 32, 3\]"):
        resnet20.normalise(np.zeros(shape, np.uint8))


def test_normalise_refuses_floats():
    with pytest.raises(ValueError, match=r"torch\.float32.*pass uint8"):
        resnet20.normalise(np.zeros((1, 32, 32, 3), np.float32))


def test_predictions_do_not_depend_on_the_batch_size():
    torch.manual_seed(0)
    model, images = resnet20.ResNet20().eval(), noise(11)
    expected = model(resnet20.normalise(images)).argmax(dim=1)
    for batch_size in (1, 4, 11, 100):
        assert resnet20.predict(model, images, batch_size).tolist() == expected.tolist()


@needs_weights
def test_every_load_is_a_fresh_model_in_eval_mode():
    first = resnet20.load()
    with torch.no_grad():
        first.linear.weight.zero_()
    second = resnet20.load()
    assert not second.training
    assert second.linear.weight.abs().min() > 0
