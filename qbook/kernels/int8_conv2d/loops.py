"""The convolution as a product of patches, "im2col": what a textbook draws, and a BLAS multiplies.

    im2col        every patch of laid out images as a row: rows * columns times the image's bytes
    by_patches    so many images that their patches stay in the second-level cache, then the product

Chellapilla, Puri and Simard 2006, High Performance Convolutional Neural Networks for Document
Processing.  A version to be slower than ``vectors``, and to be read.  Book: 6.2
"""

import numpy as np

from qbook.kernels.compiled import kernel
from qbook.kernels.int8_conv2d import geometry, vectors
from qbook.kernels.int8_matmul import matmul, panels

CACHE = 2**18


@kernel
def im2col(images, row_at, step_at, patches):
    """images [n, bytes] as words of 4, int32; offsets in bytes -> fills patches int32
    [n * pixels, steps]
    """
    pixels = patches.shape[0] // images.shape[0]
    for n in range(images.shape[0]):
        for i in range(pixels):
            first = row_at[i] // 4
            for step in range(step_at.shape[0]):
                patches[n * pixels + i, step] = images[n, first + step_at[step] // 4]


@kernel
def lay_out(x, first, layout, images):
    """Images from ``first`` on of x uint8 [n, c, h, w] -> into images uint8 [few, bytes]"""
    size = images.shape[1]
    for n in range(images.shape[0]):
        vectors.lay_out(x, first + n, 0, x.shape[1], layout, images.reshape(-1), n * size)


def pack(w_codes):
    """w_codes int8 [out, in, kh, kw], zero-point 0 -> ``int8_matmul.panels.Panels`` of its rows

    in the order of ``geometry.offsets``, zeros behind the last channel.
    """
    out, channels, rows, columns = w_codes.shape
    fours = -(-channels // geometry.FOUR)
    padded = np.zeros((out, fours * geometry.FOUR, rows * columns), np.int8)
    padded[:, :channels] = w_codes.reshape(out, channels, -1)
    split = padded.reshape(out, fours, geometry.FOUR, -1).transpose(0, 3, 1, 2)
    return panels.pack(split.reshape(out, -1))


def by_patches(x, w, zero_point, g, num_threads=None):
    """x int8 [n, c, h, w], w of ``pack``, ``Geometry`` -> sums int32 [n, out, ho, wo]"""
    n, channels = x.shape[:2]
    fours = -(-channels // geometry.FOUR)
    row_at, step_at = geometry.offsets(g, fours)
    few = max(1, CACHE // (g.pixels * 4 * len(step_at)))
    layout = (np.uint8(0), np.uint8(zero_point % 256), *g.padding, *g.padded)
    images = np.full((few, 4 * fours * g.padded[0] * g.padded[1]), layout[1], np.uint8)
    patches = np.empty((few * g.pixels, len(step_at)), np.int32)
    out = np.empty((n, w.shape[0], g.pixels), np.int32)
    for first in range(0, n, few):
        count = min(few, n - first)
        lay_out(x.view(np.uint8), first, layout, images[:count])
        rows = patches[: count * g.pixels]
        im2col(images[:count].view(np.int32), row_at, step_at, rows)
        sums = matmul.matmul(rows.view(np.int8), w, zero_point, num_threads=num_threads)
        out[first : first + count] = sums.reshape(count, g.pixels, -1).transpose(0, 2, 1)
    return out.reshape(n, -1, *g.output)
