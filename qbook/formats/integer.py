"""Integers as tables: two's complement in the low bits, and the two smallest alphabets.

INTb holds -2^(b-1) ... 2^(b-1) - 1.  TERNARY is INT2 without -2 (Li et al. 2016, arXiv:1605.04711).
BINARY is the sign (Courbariaux et al. 2016, arXiv:1602.02830, eq. 1).
Book: 2.5
"""

import numpy as np

from qbook.formats.table import Format


def integer(bits):
    """Build INTb -> Format.  A number overflows where it rounds to 2^(b-1) or -2^(b-1) - 1."""
    half = 2 ** (bits - 1)
    codes = np.arange(2 * half)
    # Half to even: half - 1/2 goes to half and overflows, -half - 1/2 goes to -half and does not.
    limits = (-half - 0.5, float(np.nextafter(half - 0.5, 0)))
    return Format(f"INT{bits}", bits, np.where(codes < half, codes, codes - 2 * half), limits)


INT2, INT3, INT4, INT5, INT6, INT7, INT8 = (integer(bits) for bits in range(2, 9))

# Code 2 would be -2: it is unused, is never produced and decodes to NaN.
TERNARY = Format("TERNARY", 2, [0, 1, np.nan, -1])

# Bit 1 is +1.  The one tie, x = 0, goes up: sign(0) := +1, for -0 too.
BINARY = Format("BINARY", 1, [-1, 1], ties_up=True)
