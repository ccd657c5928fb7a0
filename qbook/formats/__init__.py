"""Number formats: what each code is worth, and which code a real number gets.

Book: 2.5
"""

from qbook.formats.integer import BINARY, INT2, INT3, INT4, INT5, INT6, INT7, INT8, TERNARY
from qbook.formats.minifloat import E2M1, E2M3, E3M2, E4M3, E5M2, E8M0, Minifloat
from qbook.formats.normal_float import NF4
from qbook.formats.table import Format

__all__ = [
    "BINARY",
    "E2M1",
    "E2M3",
    "E3M2",
    "E4M3",
    "E5M2",
    "E8M0",
    "INT2",
    "INT3",
    "INT4",
    "INT5",
    "INT6",
    "INT7",
    "INT8",
    "NF4",
    "TERNARY",
    "Format",
    "Minifloat",
]
