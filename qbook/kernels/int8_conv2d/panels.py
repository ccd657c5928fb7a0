"""Packing: sixteen filters side by side, four channels of each: what one vector instruction eats.

    data[g, p, (a, b, f), lane, byte] = w[filter 16 p + lane of group g, 4 f + byte, a, b]

Here the image is the unsigned factor of the byte dot product and the filters are the signed one,
so that a sum needs no correction for each pixel.  Filler is 0: it adds nothing.  Book: 6.2
"""

from dataclasses import dataclass

import numpy as np

from qbook.kernels import aligned
from qbook.kernels.int8_conv2d.geometry import FOUR
from qbook.kernels.int8_matmul.panels import LANES, per_row, reach


@dataclass(frozen=True)
class Panels:
    """Filters, packed once.

    data:        int8 [groups, panels, rows * columns * fours, 16, 4]; one panel more, of ones, for
                 each group where a zero-point is not 0: it sums the codes of x
    shape:       (out, in / groups, rows, columns)
    zero_point:  int32 [out]
    code_sums:   int32 [out]: sum of a filter's (code - zero_point), what a zero-point of x is
                 multiplied by
    groups:      channels and filters are split into as many
    reach:       the largest |code - zero_point| that int8 allows
    """

    data: np.ndarray
    shape: tuple
    zero_point: np.ndarray
    code_sums: np.ndarray
    groups: int
    reach: int

    @property
    def nbytes(self):
        return self.data.nbytes + self.code_sums.nbytes


def pack(w_codes, zero_point=0, groups=1):
    """w_codes [out, in / groups, kh, kw] int8, any strides; zero_point an integer or [out]
    -> ``Panels``

    Raises ValueError for codes of another type or number of axes, for a filter without codes, for
    zero-points that are not codes or not one for each filter, and for groups that do not divide
    out.
    """
    w = np.asarray(w_codes)
    if w.dtype != np.int8 or w.ndim != 4 or 0 in w.shape[1:]:
        raise ValueError(
            f"w_codes is of type {w.dtype} and shape {w.shape}; pass int8 [out, in, rows, columns]"
        )
    out, channels, *kernel = w.shape
    if int(groups) != groups or groups < 1 or out % groups:
        raise ValueError(f"groups={groups} do not divide out={out}; choose a divisor")
    zero_point = per_row(zero_point, out, "zero_point", w.dtype)
    filters, fours = out // groups, -(-channels // FOUR)
    panels, taps = -(-filters // LANES), kernel[0] * kernel[1]
    more = 1 if zero_point.any() else 0
    padded = np.zeros((groups, (panels + more) * LANES, fours * FOUR, taps), np.int8)
    padded[:, :filters, :channels] = w.reshape(groups, filters, channels, taps)
    if more:
        padded[:, panels * LANES :, :channels] = 1
    split = padded.reshape(groups, panels + more, LANES, fours, FOUR, taps)
    data = aligned.zeros((groups, panels + more, taps * fours, LANES, FOUR), np.int8)
    data[:] = split.transpose(0, 1, 5, 3, 2, 4).reshape(data.shape)
    code_sums = w.sum(axis=(1, 2, 3), dtype=np.int32) - channels * taps * zero_point
    return Panels(data, w.shape, zero_point, code_sums, int(groups), reach(w.dtype, zero_point))


def stored(data, code_sums, shape, groups):
    """The ``Panels`` of codes with zero-point 0 from what has to be stored of them"""
    return Panels(data, shape, np.zeros(shape[0], np.int32), code_sums, groups, 128)


def unpack(w):
    """``Panels`` -> codes int8 [out, in / groups, kh, kw]"""
    out, channels, *kernel = w.shape
    groups, panels, steps = w.data.shape[:3]
    taps = kernel[0] * kernel[1]
    split = w.data.reshape(groups, panels, taps, steps // taps, LANES, FOUR)
    rows = split.transpose(0, 1, 4, 3, 5, 2).reshape(
        groups, panels * LANES, steps // taps * FOUR, taps
    )
    return rows[:, : out // groups, :channels].reshape(w.shape)
