"""Decoding as a reader would write it: a table of 256 floats, a load for each code.

Right for every format at once, and slower than placing bits: a load gives one value where a vector
gives sixteen.  Book: 6.2
"""

from qbook.kernels.compiled import kernel


@kernel
def decode(codes, values, out):
    """codes uint8 [n], values float32 [256] -> fills out float32 [n]"""
    for i in range(codes.shape[0]):
        out[i] = values[codes[i]]
