"""The divergence of every threshold, one logarithm a level where the definition has one a bin.

    sum_k p_k ln(p_k / q_k)  =  sum_k p_k (ln c_k - ln share)  +  ln(kept / total)

p_k = c_k / total, and q_k = share / kept with one share for all bins of a level: the logarithms of
the counts are computed once for all thresholds.  Their differences are small; so that they stay
exact, a number is taken apart into 2^e m, and e subtracted from e, ln m from ln m.  Book: 2.7, 6.2
"""

import math

import numpy as np

from qbook.kernels.compiled import kernel

LN2 = math.log(2)
ROOT_HALF = math.sqrt(0.5)


@kernel
def of_thresholds(counts, levels, result):
    """counts float64 [bins] -> fills result [bins - levels + 1], as in ``ranges.entropy``"""
    bins = counts.shape[0]
    exponents, mantissas = np.zeros(bins), np.zeros(bins)
    total = 0.0
    for k in range(bins):
        total += counts[k]
        if counts[k] > 0:
            exponents[k], mantissas[k] = logarithm(counts[k])
    kept = 0.0
    for k in range(levels - 1):
        kept += counts[k]
    for i in range(levels, bins + 1):
        kept += counts[i - 1]
        if kept > 0:
            result[i - levels] = _of_threshold(
                counts, exponents, mantissas, levels, i, kept, total - kept
            )
        else:
            result[i - levels] = math.inf


@kernel
def _of_threshold(counts, exponents, mantissas, levels, i, kept, tail):
    divergence, first = 0.0, 0
    for level in range(levels):
        # Bin k belongs to level floor(k levels / i).
        end = ((level + 1) * i + levels - 1) // levels
        merged, occupied = 0.0, 0
        for k in range(first, end):
            merged += counts[k]
            occupied += counts[k] > 0
        last = end == i and tail > 0
        if last and counts[i - 1] == 0:
            # The bin of the tail, empty before: it takes a share too.
            occupied += 1
        if merged > 0:
            exponent, mantissa = logarithm(merged / occupied)
            for k in range(first, end - last):
                log_ratio = (exponents[k] - exponent) * LN2 + (mantissas[k] - mantissa)
                divergence += counts[k] * log_ratio
            if last:
                count = counts[i - 1] + tail
                own_exponent, own_mantissa = logarithm(count)
                log_ratio = (own_exponent - exponent) * LN2 + (own_mantissa - mantissa)
                divergence += count * log_ratio
        elif last:
            return math.inf
        first = end
    return divergence / (kept + tail) + math.log(kept / (kept + tail))


@kernel
def logarithm(value):
    """value > 0 -> (e, ln m) with value = 2^e m and m between the roots of 1/2 and of 2"""
    mantissa, exponent = math.frexp(value)
    if mantissa < ROOT_HALF:
        mantissa, exponent = 2 * mantissa, exponent - 1
    return float(exponent), math.log(mantissa)
