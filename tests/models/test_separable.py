import itertools
import json

import numpy as np
import pytest
import torch

from qbook.data import available, cifar10, how_to_get
from qbook.models import separable

NEEDS = "CIFAR-10-images-d7d05618061fe37d830fb0419063d113c575ccbc.zip"
needs_images = pytest.mark.skipif(not available(NEEDS), reason=how_to_get(NEEDS))


def test_its_size_is_what_its_layers_add_up_to():
    model = separable.load()
    widths = [separable.STEM, *(out for out, _ in separable.STAGES)]
    # Stem 27 weights a channel; each stage 9 a channel and in x out; BatchNorm 2 a channel.
    expected = 27 * widths[0] + 2 * widths[0]
    for in_, out in itertools.pairwise(widths):
        expected += 9 * in_ + 2 * in_ + in_ * out + 2 * out
    assert sum(p.numel() for p in model.parameters()) == expected + 10 * widths[-1] + 10
    assert separable.WEIGHTS.stat().st_size < 3e6


def test_a_depthwise_convolution_keeps_channels_apart():
    layer = separable.load().stages[1].depthwise
    x = torch.zeros(1, layer.in_channels, 9, 9)
    x[0, 5] = torch.randn(9, 9, generator=torch.Generator().manual_seed(0))
    touched = layer(x).abs().sum(dim=(0, 2, 3)) > 0
    assert touched.nonzero().flatten().tolist() == [5]


@needs_images
def test_the_shipped_weights_have_the_accuracy_that_their_log_states():
    log = json.loads(separable.LOG.read_text())
    images, labels = cifar10("test")
    found = separable.predict(separable.load(), images[:2000]).numpy() == labels[:2000]
    # 2000 of 10 000 images: four standard errors of a share near 0.8.
    error = np.sqrt(0.8 * 0.2 / 2000)
    assert abs(found.mean() - log["test_accuracy"]) < 4 * error


def test_augmented_images_are_shifted_or_mirrored_ones():
    """A picture of its own coordinates shows where each pixel went."""
    x = torch.ones(200, 3, 32, 32)
    x[:, 0] = torch.arange(1, 33)[:, None]
    x[:, 1] = torch.arange(1, 33)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        moved = separable._augment(x)
    mirrored = 0
    for image in moved:
        rows, columns = image[0, :, 15], image[1, 15]
        inside = (rows > 0).nonzero().flatten()
        assert (rows[inside].diff() == 1).all()
        inside = (columns > 0).nonzero().flatten()
        step = columns[inside].diff().unique().tolist()
        assert step in ([1.0], [-1.0])
        assert len(inside) >= 28
        mirrored += step == [-1.0]
    # Half of 200, within four standard deviations of 7.
    assert 72 <= mirrored <= 128
