"""A number format is a table: code -> value.  Encoding searches the midpoints between values.

Rounding to nearest is a choice among intervals that meet halfway between neighbouring values, so
one sorted list of boundaries serves integers, minifloats and quantiles alike.  Ties to even:
IEEE 754-2019, section 4.3.1.  Saturation, or not: OCP 8-bit Floating Point Specification.
Book: 2.5
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from array_api_compat import array_namespace, device


@dataclass(frozen=True, eq=False)
class Format:
    """A table of 2^bits values and the rule that rounds to them.

    values:   [2^bits] float32, index = code; NaN for a code that stands for NaN or for nothing
    limits:   lowest and highest real number that does not overflow, both inclusive;
              None: the lowest and highest value
    nan:      the code NaN is encoded as; None: the format has no NaN
    ties_up:  a number halfway between two values goes to the upper one, not to the even code

    A code for -0 marks a format of sign and magnitude: its code is the sign bit.
    Raises ValueError for bits outside 1..8, another number of values, or a value given twice.
    """

    name: str
    bits: int
    values: np.ndarray = field(repr=False)
    limits: tuple[float, float] | None = field(default=None, repr=False)
    nan: int | None = field(default=None, repr=False)
    ties_up: bool = field(default=False, repr=False)

    def __post_init__(self):
        values = np.array(self.values, dtype=np.float32)
        if self.bits not in range(1, 9) or values.shape != (2**self.bits,):
            raise ValueError(
                f"bits={self.bits} and values of shape {values.shape} do not agree; "
                "bits from 1 to 8 need a table of 2**bits values"
            )
        values.flags.writeable = False
        object.__setattr__(self, "values", values)
        if np.any(np.diff(self.levels) == 0):
            raise ValueError(f"{self.name} has a value twice among {self.levels.tolist()}")

    @property
    def levels(self):
        """[n] float32: the finite values in ascending order, zero once."""
        return self.values[self._ranked]

    @property
    def min(self):
        """The lowest finite value."""
        return float(self.levels[0])

    @property
    def max(self):
        """The highest finite value."""
        return float(self.levels[-1])

    def encode(self, x, saturate=True):
        """The code of the value nearest to each x -> uint8 of x's shape, low bits, high bits 0.

        x: NumPy array or torch tensor of real numbers, any shape, any device; compared exactly, in
        float64.  Ties go to the even code.  -0, and what rounds to it, keeps its sign where the
        format has -0.

        saturate=True:  numbers beyond the range, infinities too, become the lowest or highest value
        saturate=False: they become infinity, or NaN in a format without infinities

        NaN becomes NaN (its sign is kept where the format has a sign bit; its payload is not).
        Raises ValueError for NaN, and for overflow that must not saturate, where the format cannot
        express them.
        """
        xp = array_namespace(x)
        # By name, because np.isdtype refuses ml_dtypes' bfloat16.
        if not any(kind in str(x.dtype) for kind in ("float", "int")):
            raise ValueError(f"{self.name} cannot encode x of type {x.dtype}; pass real numbers")
        x = x.detach() if hasattr(x, "detach") else x
        # A signalling NaN becomes a quiet one on the way; that is no news.
        with np.errstate(invalid="ignore"):
            flat = xp.astype(xp.reshape(x, (-1,)), xp.float64)
        is_nan = xp.isnan(flat)
        if self.nan is None and bool(xp.any(is_nan)):
            raise ValueError(f"{self.name} has no NaN, but x holds one; remove it before encoding")
        rank = xp.searchsorted(_beside(flat, self._boundaries), flat)
        low, high = self._ranked[0], self._ranked[-1]
        if not saturate:
            low = high = self._overflow
            outside = flat[(rank == 0) | (rank == len(self._ranked) + 1)]
            if self._overflow is None and outside.shape[0]:
                raise ValueError(
                    f"{self.name} holds {self.min} to {self.max} and no infinity or NaN, but x has "
                    f"{float(outside[0])}; pass saturate=True or scale x first"
                )
        ranked = np.array([low or 0, *self._ranked, high or 0], dtype=np.uint8)
        codes = xp.take(_beside(flat, ranked), rank, axis=0)
        if self.nan is not None:
            codes = xp.where(is_nan, xp.full_like(codes, self.nan), codes)
        if self._sign_bit:
            codes = xp.where(xp.signbit(flat), codes | self._sign_bit, codes)
        return xp.reshape(codes, x.shape)

    def decode(self, codes):
        """Integer codes -> their values, float32 of the same shape.

        Raises ValueError for codes that are not integers or lie outside 0 .. 2^bits - 1.
        """
        xp = array_namespace(codes)
        if "int" not in str(codes.dtype):
            raise ValueError(f"codes are of type {codes.dtype}; {self.name} decodes integers")
        index = xp.astype(codes, xp.int64)
        wrong = index[(index < 0) | (index >= 2**self.bits)]
        if wrong.shape[0]:
            raise ValueError(
                f"{int(wrong[0])} is not a code of {self.name}; codes are 0 to {2**self.bits - 1}"
            )
        return _beside(codes, self.values)[index]

    def round(self, x, saturate=True):
        """The value nearest to each x, float32: ``decode(encode(x))``.  Carries no gradient."""
        return self.decode(self.encode(x, saturate))

    @cached_property
    def _ranked(self):
        """The codes of the finite values in ascending order of value, without the code of -0."""
        codes = np.flatnonzero(np.isfinite(self.values))
        if self._sign_bit:
            codes = codes[codes != self._sign_bit]
        return codes[np.argsort(self.values[codes])]

    @cached_property
    def _boundaries(self):
        """[n + 1] float64: x has rank r, the r-th value, where boundary[r - 1] < x <= boundary[r].

        A tie that goes up is moved below the midpoint by the smallest step there is.
        """
        # Halves and sums of float32 are exact in float64 for every table of this room.
        levels = self.levels.astype(np.float64)
        midpoints = (levels[:-1] + levels[1:]) / 2
        up = (self._ranked[:-1] % 2 == 1) | self.ties_up
        midpoints = np.where(up, np.nextafter(midpoints, -np.inf), midpoints)
        low, high = self.limits or (levels[0], levels[-1])
        return np.concatenate([[np.nextafter(low, -np.inf)], midpoints, [high]])

    @cached_property
    def _sign_bit(self):
        """The code of -0, or 0 where the format has none."""
        return int(np.argmax((self.values == 0) & np.signbit(self.values)))

    @cached_property
    def _overflow(self):
        """What a number beyond the range becomes, sign aside: infinity, else NaN, else None."""
        infinity = np.flatnonzero(np.isposinf(self.values))
        return int(infinity[0]) if infinity.size else self.nan


def _beside(x, table):
    """A copy of a NumPy table in x's library, on x's device."""
    return array_namespace(x).asarray(np.array(table), device=device(x))
