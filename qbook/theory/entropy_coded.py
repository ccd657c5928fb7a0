"""Entropy-coded scalar quantization: equal steps, codes of unequal length.

Frequent codes get short code words, so the rate is the entropy of the codes and not log2 of their
number.  At high rate no scalar quantizer beats equal steps (Gish & Pierce 1968), and they lose
0.5 log2(pi e / 6) = 0.2546 bit (1.53 dB) to the rate-distortion function.  Book: 2.3
"""

import numpy as np

from qbook.theory.bins import bin_moments, midtread_bins, squared_error
from qbook.theory.lattice import high_rate_gap_bits

# An interval has the normalised second moment 1/12.
HIGH_RATE_GAP_BITS = float(high_rate_gap_bits(1 / 12))


def rate_and_mse(dist, scale, *, centroid=True):
    """Entropy of the codes in bits per sample, and the mean squared error -> (rate, mse).

    dist: frozen distribution of scipy.stats; codes = round(x / scale), without limit.
    centroid: decode a code to the mean of its bin, the least error; False: to codes * scale.
    Raises ValueError as ``bins.midtread_bins`` does.
    """
    levels, edges = midtread_bins(dist, scale)
    p, m1, m2 = bin_moments(dist, edges)
    if centroid:
        levels = np.divide(m1, p, out=levels.copy(), where=p > 0)
    return entropy(p), float(squared_error((p, m1, m2), levels).sum())


def entropy(p):
    """Probabilities p [...] -> -sum p log2 p in bits, with 0 log 0 = 0."""
    p = np.asarray(p, np.float64)
    return float(0.0 - np.sum(p * np.log2(p, out=np.zeros_like(p), where=p > 0)))
