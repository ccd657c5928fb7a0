"""Packing: 32 rows of w side by side, in each byte of theirs four or five ternary digits.

    2-bit    byte = sum_i digit_i 4^i, digit = code + 1                     2 bits a weight
    base-3   byte = ceil(256 v / 243), v = sum_i digit_i 3^(4 - i)          8 / 5 = 1.6 bits

The bound is log2 3 = 1.585.  Byte t of lane r in vector h of chunk c of panel p holds the digits of
row 32 p + 16 h + r and the inputs n c + t, n c + 4 + t, n c + 8 + t, ..., n = 16 or 20: digit i of
the 64 bytes of a vector is what one dot product of bytes takes.  Two vectors share it of x.

The base-3 byte is the fraction v / 243 in units of 1/256, so that a multiplication by 3 carries
one digit out.  With 243 byte = 256 v + e and v = 81 digit_0 + v_1,

    3 byte = (256 v + e) / 81 = 256 digit_0 + (256 v_1 + e) / 81,      0 <= e <= 242, v_1 <= 80

and the last term stays below 256, since 256 * 80 + 242 < 256 * 81: 3 byte // 256 is the digit, and
3 byte mod 256 the fraction of the four digits left, with the same e.  So on to the last digit, for
which e < 256 suffices.
The idea is that of TQ1_0 in llama.cpp, https://github.com/ggml-org/llama.cpp/pull/8151.  Book: 6.2
"""

from dataclasses import dataclass

import numpy as np

from qbook.kernels import aligned

VECTORS, LANES, BYTES = 2, 16, 4
ROWS = VECTORS * LANES
DIGITS = {"2-bit": 4, "base-3": 5}


@dataclass(frozen=True)
class Panels:
    """A ternary weight, packed once.

    data:     uint8 [ceil(out / 32), ceil(in / (4 digits)), 2, 16, 4]; the filler is never seen
    shape:    (out, in)
    packing:  "2-bit" or "base-3"
    """

    data: np.ndarray
    shape: tuple
    packing: str

    @property
    def digits(self):
        """Codes in a byte."""
        return DIGITS[self.packing]

    @property
    def nbytes(self):
        return self.data.nbytes


def pack(w_codes, packing="2-bit"):
    """w_codes int8 [out, in] of -1, 0, 1, any strides -> ``Panels``

    Raises ValueError for codes of another type, number of axes or value, and another packing.
    """
    w = np.asarray(w_codes)
    if packing not in DIGITS:
        raise ValueError(f"packing={packing!r} does not exist; choose {' or '.join(DIGITS)}")
    if w.dtype != np.int8 or w.ndim != 2:
        raise ValueError(
            f"w_codes is of type {w.dtype} and shape {w.shape}; pass int8 [out, in] of -1, 0, 1"
        )
    if w.size and not (w.min() >= -1 and w.max() <= 1):
        raise ValueError(f"w_codes from {w.min()} to {w.max()} are not ternary; choose -1, 0, 1")
    out, in_ = w.shape
    digits = DIGITS[packing]
    panels, chunks = -(-out // ROWS), -(-in_ // (BYTES * digits))
    padded = np.zeros((panels * ROWS, chunks * digits * BYTES), np.uint8)
    padded[:out, :in_] = w + 1
    digit = np.moveaxis(padded.reshape(panels, VECTORS, LANES, chunks, digits, BYTES), 4, 0)
    data = aligned.zeros((panels, chunks, VECTORS, LANES, BYTES), np.uint8)
    data[:] = _join(digit).transpose(0, 3, 1, 2, 4)
    return Panels(data, (out, in_), packing)


def unpack(w):
    """``Panels`` -> codes int8 [out, in]"""
    out, in_ = w.shape
    panels, chunks = w.data.shape[:2]
    digit = np.empty((panels, VECTORS, LANES, chunks, w.digits, BYTES), np.int8)
    rest = w.data.transpose(0, 2, 3, 1, 4).astype(np.int32)
    for i in range(w.digits):
        if w.packing == "2-bit":
            digit[..., i, :], rest = rest & 3, rest >> 2
        else:
            digit[..., i, :], rest = 3 * rest >> 8, 3 * rest & 255
    rows = digit.reshape(panels * ROWS, chunks * w.digits * BYTES)
    return rows[:out, :in_] - np.int8(1)


def _join(digit):
    """digit uint8 [digits of a byte, ...] -> bytes uint8 [...]"""
    if len(digit) == DIGITS["2-bit"]:
        return digit[0] | digit[1] << 2 | digit[2] << 4 | digit[3] << 6
    value = np.zeros(digit.shape[1:], np.int32)
    for one in digit:
        value = 3 * value + one
    return (-(-256 * value // 243)).astype(np.uint8)
