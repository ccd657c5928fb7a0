"""Packing: int8 panels for all columns, and a way to any one column in float.

The paper multiplies outliers with 16-bit weights, which somebody has to keep: here as float32, 4
bytes a weight on top of one.  bitsandbytes by default keeps the int8 codes alone and multiplies
outliers with ``scale * code``; so does this, unless it is asked for floats.  Book: 5.1, 6.2
"""

from dataclasses import dataclass

import numpy as np

from qbook.kernels import aligned
from qbook.kernels.int8_matmul import panels
from qbook.kernels.rowwise import quantizer

LANES = panels.LANES


@dataclass(frozen=True)
class Weight:
    """A weight packed once: codes from -127 to 127 and a scale for each output.

    codes:   ``int8_matmul.panels.Panels``
    scale:   float32 [16 panels], zeros behind [out]
    floats:  None, or float32 [panels, in, 16], zeros behind [out]
    """

    codes: panels.Panels
    scale: np.ndarray
    floats: np.ndarray | None

    @property
    def shape(self):
        return self.codes.shape

    @property
    def nbytes(self):
        floats = 0 if self.floats is None else self.floats.nbytes
        return self.codes.nbytes + self.scale.nbytes + floats


def pack(w, *, keep_floats=False, use=None, num_threads=None):
    """w float32 [out, in] -> ``Weight``, quantized with a scale for each row

    keep_floats:  outliers are multiplied with w itself, at five times the memory; else with what
                  the codes stand for
    Raises ValueError for another type or number of axes, NaN and infinity.
    """
    codes, scale = quantizer.quantize(w, use=use, num_threads=num_threads)
    packed = panels.pack(codes)
    count = packed.data.shape[0]
    floats = None
    if keep_floats:
        out, in_ = w.shape
        padded = np.zeros((count * LANES, in_), np.float32)
        padded[:out] = w
        floats = aligned.zeros((count, in_, LANES), np.float32)
        floats[:] = padded.reshape(count, LANES, in_).transpose(0, 2, 1)
    return Weight(packed, panels.lanes_of(scale.reshape(-1), count), floats)


def unpack(w):
    """``Weight`` -> what outliers are multiplied with, float32 [out, in]"""
    out, in_ = w.shape
    if w.floats is None:
        return panels.unpack(w.codes) * w.scale[:out, None]
    rows = LANES * w.floats.shape[0]
    return w.floats.transpose(0, 2, 1).reshape(rows, in_)[:out]
