"""Two-sided entropy: the variant that ONNX Runtime calls entropy calibration.

``onnxruntime.quantization.calibrate.HistogramCollector`` (method "entropy"), reproduced bit for bit
so that a range computed here is the one found in an exported model.  Book: 2.7

It descends from the talk behind ``entropy`` by way of MXNet, and differs in what it measures:

- The histogram is of x in [-max |x|, max |x|], not of |x|.  A candidate is a window around the
  middle bin, both tails go to the window's end bins, and ``levels`` covers both signs, so that 128
  levels are 7-bit codes.
- Every level takes floor(window / levels) bins.  The bins left over on the right are merged into
  the last level but get no share of it.
- A level is shared out among all of its bins, empty ones too, though the share is its count divided
  by the bins that are *not* empty, rounded down: integer arithmetic.
- 0.0001 of a count is put into each empty bin of P and of Q and taken from the others.
- Divergences are computed in float32; equal ones go to the narrowest window.
- The window's edges are cut to the smallest and largest value of x: data after a ReLU get low = 0.
"""

import math

import numpy as np

from qbook.ranges import samples

SMOOTHING = 0.0001


def search(x, *, num_bins=2048, levels=128):
    """The window of least divergence -> (low, high), of x's library and device.

    x:         floats, any shape; one range for all of them.  The histogram is made on the host
    num_bins:  bins of the histogram over both signs, 2048 to 8192; ONNX Runtime's default of 128
               leaves a single candidate and thus min-max
    levels:    what a window is merged into

    Lies within [min x, max x], so contains 0 only where x has both signs or zeros.  float64 for
    float64 x, else float32.  Raises ValueError for num_bins outside 2048..8192, for levels outside
    2..num_bins / 16, empty x, NaN, infinity.
    """
    if not 2048 <= num_bins <= 8192:
        raise ValueError(f"num_bins={num_bins} is outside 2048..8192; 2048 is usual")
    if not 2 <= levels <= num_bins // 16:
        raise ValueError(f"levels={levels} is outside 2..{num_bins // 16}; 128 is usual")
    xp, x = samples.checked(x)
    values = samples.on_host(x).ravel()
    smallest, largest = values.min(), values.max()
    top = np.maximum(np.abs(smallest), np.abs(largest))
    counts, edges = np.histogram(values, num_bins, range=(-top, top))
    start, end = _windows(num_bins, levels)[int(np.argmin(divergences(counts, levels)))]
    low, high = max(edges[start], smallest), min(edges[end], largest)
    return xp.asarray(low, dtype=x.dtype), xp.asarray(high, dtype=x.dtype)


def divergences(counts, levels=128):
    """float32 divergence of every window, narrowest first: counts [num_bins] -> [windows]."""
    windows = _windows(len(counts), levels)
    return np.array([_divergence(counts, start, end, levels) for start, end in windows])


def _windows(num_bins, levels):
    """(start, end) of every candidate; an even num_bins has no middle bin and one ends early."""
    middle = num_bins // 2
    return [(middle - i, min(middle + i + 1, num_bins)) for i in range(levels // 2, middle + 1)]


def _divergence(counts, start, end, levels):
    inside = counts[start:end]
    p = inside.copy()
    p[0] += counts[:start].sum()
    p[-1] += counts[end:].sum()
    p, q = _smooth(p), _smooth(_merge_and_spread(inside, p != 0, levels))
    if p is None or q is None:
        return np.float32(math.inf)
    p, q = p / p.sum(), q / q.sum()
    return (p * np.log(p / q)).sum()


def _merge_and_spread(counts, occupied, levels):
    width = len(counts) // levels
    body = levels * width
    merged = counts[:body].reshape(levels, width).sum(axis=1)
    merged[-1] += counts[body:].sum()
    neighbours = occupied[:body].reshape(levels, width).sum(axis=1)
    spread = np.zeros_like(counts)
    spread[:body] = np.repeat((neighbours > 0) * merged // np.maximum(neighbours, 1), width)
    return spread


def _smooth(counts):
    """float32 counts with none at zero and the same sum; None where all are zero."""
    empty = counts == 0
    empties = int(empty.sum())
    if empties == len(counts):
        return None
    taken = SMOOTHING * empties / (len(counts) - empties)
    return counts.astype(np.float32) + np.where(empty, np.float32(SMOOTHING), np.float32(-taken))
