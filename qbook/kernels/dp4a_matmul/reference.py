"""dp4a as NVIDIA's manual defines it, in NumPy: what the kernels of this room are measured by.

PTX ISA, section "Integer Arithmetic Instructions: dp4a": two words of 32 bits hold four codes each,
the lowest byte first; their four products are added to a third word, modulo 2^32.  Book: 6.1
"""

import numpy as np

# Codes in a word, and the most whose products with int8 are sure to fit 32 bits.
CODES = 4
LONGEST = (2**31 - 1) // 128**2


def words(codes):
    """codes int8 [..., n] -> int32 [..., ceil(n / 4)]: four codes a word, filled up with zeros"""
    codes = np.asarray(codes)
    if codes.dtype != np.int8:
        raise ValueError(f"codes have type {codes.dtype}; dp4a.s32.s32 takes int8")
    fill = [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % CODES)]
    return np.ascontiguousarray(np.pad(codes, fill)).view("<i4")


def dp4a(a, b, c):
    """Words a and b, sums c, int32 that broadcast -> c + four products, wrapped"""
    a, b = (np.asarray(word, "<i4", order="C")[..., None].view(np.int8) for word in (a, b))
    total = np.asarray(c, np.int64) + (a.astype(np.int64) * b).sum(axis=-1)
    # The lower 32 of 64 bits are kept, bit 31 is the sign: as in a register.
    return total.astype(np.int32)


def matmul(x_codes, w_codes):
    """x_codes int8 [samples, in], w_codes int8 [out, in] -> int32 [samples, out], word by word"""
    a, b = words(x_codes), words(w_codes)
    total = np.zeros((len(a), len(b)), np.int32)
    for k in range(a.shape[1]):
        total = dp4a(a[:, None, k], b[None, :, k], total)
    return total
