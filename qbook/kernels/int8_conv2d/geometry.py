"""Where a convolution reads: sizes, and offsets into the padded image.

    y[o, i, j] = sum_c,a,b x[c, s i + d a - p, s j + d b - p] w[o, c, a, b]     s stride, d dilation

The image a kernel reads lies padded, with four channels side by side, [groups, fours, rows,
columns, 4], so that one 32-bit word holds what a byte dot product takes at once.  Book: 6.2
"""

import functools
from dataclasses import dataclass

import numpy as np

FOUR = 4


@dataclass(frozen=True)
class Geometry:
    """Sizes (rows, columns) of one convolution.

    image:   of the input;  padded: with its border on both sides;  output: of the result
    stride, padding, dilation: pairs;  kernel: of the weight
    """

    image: tuple
    padded: tuple
    output: tuple
    kernel: tuple
    stride: tuple
    padding: tuple
    dilation: tuple

    @property
    def pixels(self):
        return self.output[0] * self.output[1]


def of(image, kernel, stride=1, padding=0, dilation=1):
    """Sizes of image and kernel (rows, columns) -> ``Geometry``; numbers or pairs otherwise.

    Raises ValueError for negative or fractional numbers and where the kernel does not fit.
    """
    stride, padding, dilation = (
        pair(stride, "stride", 1),
        pair(padding, "padding", 0),
        pair(dilation, "dilation", 1),
    )
    padded = tuple(n + 2 * p for n, p in zip(image, padding, strict=True))
    reach = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    if padded[0] < reach[0] or padded[1] < reach[1]:
        raise ValueError(
            f"a kernel that reaches over {reach} pixels does not fit an image of {tuple(image)} "
            f"with padding={padding}; pad more or dilate less"
        )
    output = tuple((n - r) // s + 1 for n, r, s in zip(padded, reach, stride, strict=True))
    return Geometry(tuple(image), padded, output, tuple(kernel), stride, padding, dilation)


def pair(value, name, least):
    """A number or two -> two ints.  Raises ValueError."""
    values = tuple(value) if hasattr(value, "__len__") else (value, value)
    if len(values) != 2 or any(int(v) != v or v < least for v in values):
        raise ValueError(f"{name}={value!r}; pass an integer of at least {least}, or two")
    return tuple(int(v) for v in values)


@functools.lru_cache(maxsize=64)
def offsets(geometry, fours, block=1):
    """-> (row_at, step_at), int64, in bytes; read-only, because equal calls share them

    row_at:   [pixels, rounded up to a multiple of block]: each output pixel's upper left corner;
              the filler repeats the last one
    step_at:  [kernel rows * kernel columns * fours]: from the corner to each word of a patch
    """
    rows, columns = (
        np.arange(n) * s for n, s in zip(geometry.output, geometry.stride, strict=True)
    )
    corners = (rows[:, None] * geometry.padded[1] + columns).reshape(-1)
    row_at = FOUR * np.pad(corners, (0, -len(corners) % block), mode="edge")
    down, across = (
        np.arange(k) * d for k, d in zip(geometry.kernel, geometry.dilation, strict=True)
    )
    planes = np.arange(fours) * geometry.padded[0] * geometry.padded[1]
    words = down[:, None, None] * geometry.padded[1] + across[:, None] + planes
    found = row_at.astype(np.int64), FOUR * words.reshape(-1).astype(np.int64)
    for values in found:
        values.flags.writeable = False
    return found
