"""Packing: one bit a sign, 64 to a word; for the weight eight rows side by side.

    bit k of word s of a row = 1 where sign[64 s + k] is +1, as ``bitwise.pack_signs`` has it
    data[p, s, lane] = word s of row 8 p + lane                             [out / 8, in / 64, 8]

Filler bits are 0 in both factors and never disagree.  Book: 1.2, 6.2
"""

from dataclasses import dataclass

import numpy as np

from qbook import bitwise
from qbook.kernels import aligned
from qbook.kernels.sign_matmul import vectors

LANES, WORD = 8, 64


@dataclass(frozen=True)
class Panels:
    """A weight of signs, packed once.

    data:   uint64 [ceil(out / 8), ceil(in / 64), 8]; rows of the filler are never seen
    shape:  (out, in)
    """

    data: np.ndarray
    shape: tuple

    @property
    def nbytes(self):
        return self.data.nbytes


def pack(signs):
    """signs [out, in] of -1 and +1, any type, any strides -> ``Panels``

    Raises ValueError for any other value or number of axes.
    """
    signs = np.asarray(signs)
    if signs.ndim != 2:
        raise ValueError(f"signs is of shape {signs.shape}; pass [out, in]")
    out, in_ = signs.shape
    panels, words = -(-out // LANES), words_of(in_)
    octets = np.zeros((panels * LANES, words * 8), np.uint8)
    octets[:out, : -(-in_ // 8)] = bitwise.pack_signs(signs)
    rows = octets.view("<u8").astype(np.uint64)
    data = aligned.zeros((panels, words, LANES), np.uint64)
    data[:] = rows.reshape(panels, LANES, words).transpose(0, 2, 1)
    return Panels(data, (out, in_))


def pack_rows(x):
    """x [samples, in], real numbers, any strides -> words uint64 [samples, ceil(in / 64)]

    Takes signs on the way: x >= 0 is +1, -0 too.  int8 and float32 are read as they are, other
    types copied first.  Raises ValueError for NaN and for another number of axes.
    """
    x = np.asarray(x)
    if x.ndim != 2 or x.dtype.kind not in "iuf":
        raise ValueError(f"x is of type {x.dtype} and shape {x.shape}; pass numbers [samples, in]")
    if x.dtype not in (np.int8, np.float32):
        # Not by conversion to float32, whose underflow would lose the sign of -1e-300.
        x = np.where(
            np.isnan(x), np.float32(np.nan), np.where(x >= 0, np.float32(1), np.float32(-1))
        )
    words = np.empty((x.shape[0], words_of(x.shape[1])), np.uint64)
    if vectors.pack_rows(np.ascontiguousarray(x), words):
        raise ValueError("x holds NaN, which has no sign; pass numbers")
    return words


def unpack(w):
    """``Panels`` -> words of its rows, uint64 [out, ceil(in / 64)]"""
    panels, words, _ = w.data.shape
    rows = w.data.transpose(0, 2, 1).reshape(panels * LANES, words)[: w.shape[0]]
    return np.ascontiguousarray(rows)


def words_of(count):
    """Words that hold ``count`` signs."""
    return -(-count // WORD)
