"""Images: scikit-learn's 8 x 8 digits, which need no file, and CIFAR-10 as JPEG files.

Alpaydin and Kaynak 1998, doi:10.24432/C50P49; Krizhevsky 2009, "Learning multiple layers of
features from tiny images", chapter 3.  Book: used throughout.
"""

import io

import numpy as np
from PIL import Image

from qbook.data.archives import load_arrays
from qbook.data.catalogue import CIFAR10_ARCHIVE

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def digits():
    """-> ((train images, train labels), (test images, test labels)): 1437 and 360 digits.

    images [n, 64] float32 in 0..1, labels [n] int64.  One fixed permutation, then the split.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = (images[order] / 16).astype(np.float32), labels[order].astype(np.int64)
    return (images[:1437], labels[:1437]), (images[1437:], labels[1437:])


def cifar10(split):
    """split "train" or "test" -> (images [n, 32, 32, 3] uint8, labels [n] int64).

    50 000 or 10 000 images; image i shows CIFAR10_CLASSES[i % 10], so that every leading slice is
    balanced.  The pixels went through JPEG once: close to the original data set, not equal to it.
    Raises ValueError for another split, DataUnavailable.
    """
    arrays = load_arrays(CIFAR10_ARCHIVE, split, _decode)
    images = arrays["images"]
    return images, np.arange(len(images)) % len(CIFAR10_CLASSES)


def _decode(archive, split):
    root = CIFAR10_ARCHIVE.removesuffix(".zip")
    count = {"train": 5000, "test": 1000}[split]
    images = np.empty((count, len(CIFAR10_CLASSES), 32, 32, 3), np.uint8)
    for i in range(count):
        for label, name in enumerate(CIFAR10_CLASSES):
            data = archive.read(f"{root}/{split}/{name}/{i:04d}.jpg")
            images[i, label] = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    return {"images": images.reshape(-1, 32, 32, 3)}
