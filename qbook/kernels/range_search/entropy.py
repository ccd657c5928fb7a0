"""Entropy calibration, fast: the search of ``ranges.entropy`` on a histogram made here.

Migacz 2017, "8-bit Inference with TensorRT", GTC talk S7310.  Book: 2.7, 6.2
"""

import numpy as np
from array_api_compat import array_namespace, device

from qbook import affine
from qbook.kernels import isa
from qbook.kernels.range_search import divergence, values
from qbook.kernels.range_search.histogram import absolute_histogram
from qbook.ranges import entropy as reference

# Divergences closer than this may be in another order in exact arithmetic.
CLOSE = 1e-13


def search(x, bits=8, *, num_bins=2048, use=None, num_threads=None):
    """The symmetric range of least divergence -> (-high, high), of x's library and device.

    Arguments, result and errors as of ``ranges.entropy.search``.  float64 x is left to it.
    use:  an instruction set, see ``isa``;  num_threads: see ``threads``
    """
    chosen = isa.choose(use)
    affine.code_range(bits)
    levels = 2 ** (bits - 1)
    too_coarse = num_bins < reference.BINS_PER_LEVEL * levels
    if chosen == isa.REFERENCE or values.is_wide(x) or too_coarse:
        return reference.search(x, bits, num_bins=num_bins)
    rows, _ = values.rows_of(x)
    low, high = values.extrema(rows, num_threads)
    top = np.maximum(-low, high)[0]
    # As there: edges of float64, because between subnormal float32 there is no room for them.
    counts = absolute_histogram(
        rows, num_bins, np.float64(top), use=chosen, num_threads=num_threads
    )
    found = divergences(counts, levels, use=chosen)
    kept = levels + int(np.argmin(found))
    if np.count_nonzero(found <= found.min() + CLOSE) > 1:
        kept = levels + int(np.argmin(reference.divergences(counts, levels)))
    xp = array_namespace(x)
    high = xp.asarray(top * np.float32(min((kept + 0.5) / num_bins, 1.0)), device=device(x))
    return -high, high


def divergences(counts, levels, *, use=None):
    """KL(P || Q) of every candidate: counts [num_bins] -> float64 [num_bins - levels + 1], in nats.

    Those of ``ranges.entropy.divergences`` but for rounding, a few 1e-16 in either: the terms have
    both signs, so that a divergence of 1e-4 is known to 1e-12 of its size.
    Raises ValueError for fewer bins than levels, and for a histogram that holds nothing or negative
    counts.
    """
    counts = np.ascontiguousarray(counts, np.float64)
    if isa.choose(use) == isa.REFERENCE or counts.ndim != 1 or len(counts) < levels:
        return reference.divergences(counts, levels)
    if not (counts >= 0).all() or not np.isfinite(counts).all():
        raise ValueError("counts hold a negative or non-finite number; counts are >= 0")
    result = np.empty(len(counts) - levels + 1)
    divergence.of_thresholds(counts, levels, result)
    return result
