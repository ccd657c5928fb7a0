"""Minifloats: sign, exponent and mantissa in eight, six or four bits.

    value = (-1)^sign * 2^(exponent - bias) * (1 + mantissa / 2^mantissa_bits)    exponent > 0
    value = (-1)^sign * 2^(1 - bias) * mantissa / 2^mantissa_bits                 exponent = 0

E4M3, E5M2: Micikevicius et al. 2022, arXiv:2209.05433, Table 1.  E2M3, E3M2, E2M1, E8M0: OCP
Microscaling Formats (MX) Specification v1.0; Rouhani et al. 2023, arXiv:2310.10537, Table 1.
Book: 2.5
"""

from dataclasses import dataclass, field

import numpy as np

from qbook.formats.table import Format


@dataclass(frozen=True, eq=False)
class Minifloat(Format):
    """A Format with the fields of a floating-point number.

    exponent_bits, mantissa_bits: stored bits;  bias: subtracted from the stored exponent
    smallest_normal: smallest positive value with a hidden leading 1
    """

    exponent_bits: int = field(kw_only=True)
    mantissa_bits: int = field(kw_only=True)
    bias: int = field(kw_only=True)
    smallest_normal: float = field(kw_only=True)

    @property
    def smallest_subnormal(self):
        """The smallest positive value: ``smallest_normal`` in a format without subnormals."""
        return float(self.levels[self.levels > 0][0])


def minifloat(name, exponent_bits, mantissa_bits, *, bias, infinity=None, nans=(), nan=None):
    """Build a format of sign, exponent and mantissa -> Minifloat of 1 + the given bits.

    infinity, nans: codes (sign bit 0) that stand for infinity and for NaN; every other is a number
    nan:            the one of ``nans`` that NaN is encoded as
    A number overflows where rounding would carry it to the first code beyond the largest number.
    """
    half = 2 ** (exponent_bits + mantissa_bits)
    # One more than there are codes: where the next value would lie decides what overflows.
    magnitudes = _magnitude(np.arange(half + 1), mantissa_bits, bias)
    specials = {*nans} | ({infinity} if infinity is not None else set())
    largest = max(set(range(half)) - specials)
    limit = _limit(magnitudes[largest], magnitudes[largest + 1], tie_overflows=largest % 2 == 1)
    positive = magnitudes[:half]
    positive[list(nans)] = np.nan
    if infinity is not None:
        positive[infinity] = np.inf
    return Minifloat(
        name,
        1 + exponent_bits + mantissa_bits,
        np.concatenate([positive, np.copysign(positive, -1.0)]),
        limits=(-limit, limit),
        nan=nan,
        exponent_bits=exponent_bits,
        mantissa_bits=mantissa_bits,
        bias=bias,
        smallest_normal=2.0 ** (1 - bias),
    )


def _magnitude(code, mantissa_bits, bias):
    """The value of a code without its sign bit, special codes read as numbers."""
    exponent, mantissa = np.divmod(code, 2**mantissa_bits)
    significand = (exponent > 0) + mantissa / 2**mantissa_bits
    return np.ldexp(significand, np.maximum(exponent, 1) - bias)


def _limit(largest, beyond, *, tie_overflows):
    """The highest number that does not round to ``beyond``, the value after ``largest``."""
    midpoint = (largest + beyond) / 2
    return float(np.nextafter(midpoint, 0) if tie_overflows else midpoint)


def scale_format(name, exponent_bits, *, bias):
    """Build an unsigned format of powers of two -> Minifloat; the last code is NaN.

    It has no zero, no subnormals and no sign.  Zero and negative numbers lie below the range: they
    saturate to the smallest value, or become NaN.  One digit is never even, so a tie goes to the
    larger neighbour (IEEE 754-2019, section 4.3.1).
    """
    codes = np.arange(2**exponent_bits)
    values = np.ldexp(1.0, codes - bias)
    limit = _limit(values[-2], values[-1], tie_overflows=True)
    smallest = float(values[0])
    values[-1] = np.nan
    return Minifloat(
        name,
        exponent_bits,
        values,
        # Every positive number, however small, is nearest to the smallest value.
        limits=(float(np.nextafter(0.0, 1.0)), limit),
        nan=int(codes[-1]),
        ties_up=True,
        exponent_bits=exponent_bits,
        mantissa_bits=0,
        bias=bias,
        smallest_normal=smallest,
    )


# "fn": finite, one NaN, no infinity.  The code spent on 480 in a full table is the NaN.
E4M3 = minifloat("E4M3", 4, 3, bias=7, nans=[0x7F], nan=0x7F)
# The IEEE 754 layout; 0x7E is the quiet NaN.
E5M2 = minifloat("E5M2", 5, 2, bias=15, infinity=0x7C, nans=[0x7D, 0x7E, 0x7F], nan=0x7E)
E3M2 = minifloat("E3M2", 3, 2, bias=3)
E2M3 = minifloat("E2M3", 2, 3, bias=1)
E2M1 = minifloat("E2M1", 2, 1, bias=1)
E8M0 = scale_format("E8M0", 8, bias=127)
