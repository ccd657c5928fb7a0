"""Packing: sixteen rows of w side by side, four bytes of each: what one vector instruction eats.

    data[p, step, lane, byte] = w[16 p + lane, 4 step + byte] + 128

vpdpbusd multiplies unsigned by signed bytes.  The weight is the unsigned one: its offset of 128
adds 128 sum_k x to a sum, one number for each row of x, which the last step takes off again with
the terms of the zero-points (section 2.1.3).  Book: 6.2
"""

from dataclasses import dataclass

import numpy as np

from qbook.kernels import aligned

LANES, BYTES = 16, 4
# in is filled up to whole groups of four steps, see ``vectors.CHAINS``.
DEPTH = 16


@dataclass(frozen=True)
class Panels:
    """A weight of codes, packed once.

    data:         uint8 [ceil(out / 16), 4 ceil(in / 16), 16, 4]; the filler is never seen
    shape:        (out, in)
    zero_point:   int32 [out]
    offset:       what was added to a code to make it unsigned: 128 for int8, 0 for uint8
    row_factor:   int32 [16 panels]: -(offset + zero_point), what a sum of x is multiplied by
    column_term:  int32 [16 panels]: in * zero_point - sum of the row's codes, what a zero-point of
                  x is multiplied by
    reach:        the largest |code - zero_point| that the type of the codes allows
    """

    data: np.ndarray
    shape: tuple
    zero_point: np.ndarray
    offset: int
    row_factor: np.ndarray
    column_term: np.ndarray
    reach: int

    @property
    def nbytes(self):
        return self.data.nbytes + self.row_factor.nbytes + self.column_term.nbytes


def pack(w_codes, zero_point=0):
    """w_codes [out, in] int8 or uint8, any strides; zero_point an integer or [out] -> ``Panels``

    Raises ValueError for codes of another type or number of axes, and for zero-points that are not
    codes or not one for each row.
    """
    w = np.asarray(w_codes)
    if w.dtype not in (np.int8, np.uint8) or w.ndim != 2:
        raise ValueError(
            f"w_codes is of type {w.dtype} and shape {w.shape}; pass int8 or uint8 [out, in]"
        )
    out, in_ = w.shape
    zero_point = per_row(zero_point, out, "zero_point", w.dtype)
    offset = 128 if w.dtype == np.int8 else 0
    panels, steps = -(-out // LANES), -(-in_ // DEPTH) * (DEPTH // BYTES)
    padded = np.zeros((panels * LANES, steps * BYTES), np.uint8)
    padded[:out, :in_] = w.view(np.uint8) ^ offset
    data = aligned.zeros((panels, steps, LANES, BYTES), np.uint8)
    data[:] = padded.reshape(panels, LANES, steps, BYTES).transpose(0, 2, 1, 3)
    row_factor = lanes_of(-(offset + zero_point), panels)
    column_term = lanes_of(in_ * zero_point - w.sum(axis=1, dtype=np.int32), panels)
    return Panels(
        data, (out, in_), zero_point, offset, row_factor, column_term, reach(w.dtype, zero_point)
    )


def symmetric(data, column_term, shape):
    """The ``Panels`` of int8 codes with zero-point 0 from what has to be stored of them"""
    zeros, row_factor = np.zeros(shape[0], np.int32), np.full(column_term.shape, -128, np.int32)
    return Panels(data, shape, zeros, 128, row_factor, column_term, 128)


def unpack(w):
    """``Panels`` -> codes [out, in], int8 or uint8"""
    out, in_ = w.shape
    panels, steps = w.data.shape[:2]
    rows = w.data.transpose(0, 2, 1, 3).reshape(panels * LANES, steps * BYTES)
    codes = rows[:out, :in_] ^ np.uint8(w.offset)
    return codes.view(np.int8) if w.offset else codes


def reach(dtype, zero_point):
    """The largest |code - zero_point| of codes of a type; zero_point an integer or an array"""
    info = np.iinfo(dtype)
    if isinstance(zero_point, int):
        return max(zero_point - info.min, info.max - zero_point)
    if not zero_point.size:
        return 0
    return max(int(zero_point.max()) - info.min, info.max - int(zero_point.min()))


def lanes_of(values, panels):
    """[out] -> [16 panels], zeros behind; itself where nothing is missing"""
    if len(values) == panels * LANES:
        return values
    padded = aligned.zeros(panels * LANES, values.dtype)
    padded[: len(values)] = values
    return padded


def per_row(values, rows, name, codes):
    """An integer or [rows] that are codes of a type -> int32 [rows].  Raises ValueError."""
    values = np.asarray(values)
    low, high = np.iinfo(codes).min, np.iinfo(codes).max
    if values.dtype.kind not in "iu" or values.size not in (1, rows):
        raise ValueError(
            f"{name} is of type {values.dtype} and shape {values.shape}; pass an integer or {rows}"
        )
    if values.size and not (values.min() >= low and values.max() <= high):
        raise ValueError(
            f"{name} from {values.min()} to {values.max()} is no code of {np.dtype(codes)}; "
            f"choose {low} to {high}"
        )
    return np.broadcast_to(values.reshape(-1), (rows,)).astype(np.int32)
