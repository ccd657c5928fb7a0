"""The table of a format encodes and decodes; blocks as QLoRA has them.

Dettmers et al. 2023, arXiv:2305.14314, section 3; the released code bitsandbytes divides by
multiplying with the rounded reciprocal and puts the first code in the high bits.  Book: 2.5
"""

import numpy as np

from qbook.formats import NF4

# What a smaller largest magnitude counts as when it divides, in bitsandbytes.
SMALLEST = np.float32(1e-38)


def encode(x, fmt, saturate=True):
    """x float32 -> codes uint8"""
    return fmt.encode(x, saturate)


def decode(codes, fmt):
    """codes uint8 -> float32"""
    return fmt.decode(codes)


def quantize_nf4(x, block_size):
    """x float32 [n] -> two codes a byte uint8 [ceil(n / 2)], absmax float32 [blocks]"""
    blocks = -(-x.size // block_size)
    padded = np.zeros((blocks, block_size), np.float32)
    padded.reshape(-1)[: x.size] = x
    absmax = np.abs(padded).max(axis=1, initial=0)
    codes = NF4.encode(padded * (1 / np.maximum(absmax, SMALLEST))[:, None]).reshape(-1)
    codes = codes[: x.size + x.size % 2]
    return codes[::2] << 4 | codes[1::2], absmax


def dequantize_nf4(packed, absmax, count, block_size):
    """packed uint8 [ceil(count / 2)], absmax [blocks] -> float32 [count]"""
    codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[:count]
    return NF4.decode(codes) * np.repeat(absmax, block_size)[:count]
