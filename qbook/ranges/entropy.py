"""Entropy: clip where the histogram of the codes still looks like that of the values.

Migacz 2017, "8-bit Inference with TensorRT", GTC talk S7310 (NVIDIA), pseudocode of the entropy
calibration.  For every candidate the first i bins of the histogram of |x| are kept:

    P = the kept bins, the tail added to the last of them        what clipping makes of x
    Q = the kept bins without the tail, merged into ``levels``   what the codes remember of it
        levels, each spread evenly over its bins that are not empty in P

and the i with the least divergence KL(P || Q) gives the threshold (i + 1/2) bin widths.  Book: 2.7

The talk leaves three choices open.  Here bin k belongs to level floor(k levels / i), as in NVIDIA's
pytorch-quantization; a bin that only P occupies makes the divergence infinite, so that candidate
loses (implementations that smooth Q give it a small share); and no clipping at all, i = num_bins,
is a candidate too, which the talk's loop stops short of.  ONNX Runtime computes something else
under the same name, see ``entropy_two_sided``.
"""

import math

import numpy as np

from qbook import affine, metrics
from qbook.ranges import samples

# The talk's histogram has 2048 bins for the 128 levels of |int8|.
BINS_PER_LEVEL = 16


def search(x, bits=8, *, num_bins=2048):
    """The symmetric range of least divergence -> (-high, high), of x's library and device.

    x:         floats, any shape; one range for all of them.  The histogram is made on the host
    bits:      width of a signed code; |x| has 2^(bits-1) levels
    num_bins:  bins of the histogram of |x|, at least 16 a level as in the talk: 2048 for 8 bits

    Contains 0.  high lies between max |x| times levels / num_bins, the narrowest candidate, and
    max |x|.  Exact zeros cost no quantizer anything, but all lie in bin 0 and distort P: of data
    after a ReLU pass ``x[x != 0]``.  With fewer values than bins the histogram is mostly gaps and
    the threshold means little.  float64 for float64 x, else float32.  Raises ValueError for bits
    outside 1..16, too few bins, empty x, NaN, infinity.
    """
    affine.code_range(bits)
    levels = 2 ** (bits - 1)
    if num_bins < BINS_PER_LEVEL * levels:
        raise ValueError(
            f"num_bins={num_bins} is too coarse for {bits} bits; "
            f"use at least {BINS_PER_LEVEL * levels}, {BINS_PER_LEVEL} bins a level"
        )
    xp, x = samples.checked(x)
    # float64: between subnormal float32 there is no room for the edges of 2048 bins.
    magnitudes = np.abs(samples.on_host(x)).ravel().astype(np.float64)
    top = magnitudes.max()
    counts, _ = np.histogram(magnitudes, bins=num_bins, range=(0, top))
    kept = levels + int(np.argmin(divergences(counts, levels)))
    high = xp.max(xp.abs(x)) * min((kept + 0.5) / num_bins, 1.0)
    return -high, high


def divergences(counts, levels):
    """KL(P || Q) of every candidate: counts [num_bins] -> [num_bins - levels + 1], in nats.

    Entry j keeps the first ``levels + j`` bins.  Raises ValueError for fewer bins than levels.
    """
    counts = np.asarray(counts, np.float64)
    if len(counts) < levels:
        raise ValueError(f"{len(counts)} bins cannot be merged into {levels} levels; use more bins")
    return np.array([_divergence(counts, i, levels) for i in range(levels, len(counts) + 1)])


def _divergence(counts, kept, levels):
    inside = counts[:kept]
    if not inside.any():
        return math.inf
    p = inside.copy()
    p[-1] += counts[kept:].sum()
    return metrics.kl_divergence(p, merge_and_spread(inside, p > 0, levels))


def merge_and_spread(counts, occupied, levels):
    """counts [bins] merged into levels, each shared out evenly among its occupied bins -> [bins].

    The talk's example: [1, 0, 2, 3, 5, 3, 1, 7] in 2 levels -> [2, 0, 2, 2, 4, 4, 4, 4].
    """
    bins = len(counts)
    # Level l starts at the first bin k with floor(k levels / bins) = l.
    starts = -(-np.arange(levels) * bins // levels)
    merged = np.add.reduceat(counts, starts)
    shares = merged / np.maximum(np.add.reduceat(occupied.astype(np.int64), starts), 1)
    return np.repeat(shares, np.diff(starts, append=bins)) * occupied
