import io
import zipfile

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from sklearn.datasets import load_digits

from qbook import data
from qbook.data import images
from qbook.data.catalogue import CIFAR10_ARCHIVE

needs_cifar = pytest.mark.skipif(
    not data.available(CIFAR10_ARCHIVE), reason=data.how_to_get(CIFAR10_ARCHIVE)
)


def test_the_digits_are_those_of_scikit_learn_each_once():
    (x_train, y_train), (x_test, y_test) = data.digits()
    assert (len(x_train), len(x_test)) == (1437, 360)
    rows = np.column_stack(
        [np.concatenate([x_train, x_test]) * 16, np.concatenate([y_train, y_test])]
    )
    expected = np.column_stack(load_digits(return_X_y=True))
    assert_array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])


def test_the_digits_are_floats_in_0_to_1_and_the_same_each_time():
    (x_train, y_train), (x_test, y_test) = data.digits()
    assert x_train.dtype == x_test.dtype == np.float32
    assert y_train.dtype == y_test.dtype == np.int64
    assert (x_train.min(), x_train.max()) == (0, 1)
    assert set(y_test.tolist()) == set(range(10))
    assert_array_equal(data.digits()[1][0], x_test)


@needs_cifar
def test_cifar10_images_stand_at_the_place_of_their_file():
    pixels, labels = data.cifar10("test")
    assert (pixels.shape, pixels.dtype) == ((10_000, 32, 32, 3), np.uint8)
    assert labels.dtype == np.int64
    # Alphabetical order is CIFAR-10's own numbering of the classes.
    assert list(images.CIFAR10_CLASSES) == sorted(images.CIFAR10_CLASSES)
    with zipfile.ZipFile(data.fetch(CIFAR10_ARCHIVE)) as archive:
        members = [m for m in archive.namelist() if "/test/" in m and m.endswith(".jpg")]
        assert len(members) == len(pixels)
        for member in members[::371]:
            _, _, name, file = member.split("/")
            i = int(file[:4]) * 10 + images.CIFAR10_CLASSES.index(name)
            assert images.CIFAR10_CLASSES[labels[i]] == name
            assert_array_equal(pixels[i], np.asarray(Image.open(io.BytesIO(archive.read(member)))))


@needs_cifar
def test_any_leading_slice_of_cifar10_is_balanced():
    _, labels = data.cifar10("test")
    for n in (10, 1000, 10_000):
        assert_array_equal(np.bincount(labels[:n], minlength=10), n // 10)


def test_an_unknown_split_of_cifar10_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="no part 'dev'; choose one of train, test"):
        data.cifar10("dev")
