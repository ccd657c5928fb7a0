"""Dynamic 8-bit codes: decades of even steps, finer the larger the decade.

A unary exponent moves a decimal point; the bits that it does not need are a fraction.  The highest
decade, from 0.1 to 1, has the most steps, each lower one half as many, down to one in the lowest.
Dettmers 2016, arXiv:1511.04561, section 2.1; unsigned, and for states of optimizers: Dettmers et
al. 2022, arXiv:2110.02861, section 1.2.  As the released code has it: levels lie in the middle of
their steps, 1 and 0 are added, -1 is not.  Book: 5.2
"""

import numpy as np

from qbook.formats.table import Format

DECADES = 7


def dynamic_levels(*, signed=True):
    """[256] float32, ascending, up to 1 with an exact 0; signed: from -0.993, else from 0.

    signed=False gives the sign's bit to the fraction: twice as many steps in every decade.
    Equals ``bitsandbytes.functional.create_dynamic_map(signed)`` bit for bit.
    """
    parts = [np.array([0, 1], np.float32)]
    for decade in range(DECADES):
        steps = 2**decade if signed else 2 ** (decade + 1)
        edges = _evenly(steps + 1)
        middles = (edges[:-1] + edges[1:]) / np.float32(2)
        middles = np.float32(10.0 ** (decade - DECADES + 1)) * middles
        parts += [middles, -middles] if signed else [middles]
    return np.sort(np.concatenate(parts))


def _evenly(count):
    """[count] float32 from 0.1 to 1, each counted from the nearer end and rounded once.

    PyTorch's linspace with a fused multiply-add; float64 holds the product exactly.
    """
    low, high = np.float32(0.1), np.float32(1)
    step = np.float64((high - low) / np.float32(count - 1))
    places = np.arange(count)
    from_low, from_high = low + step * places, high - step * places[::-1]
    return np.where(places < count // 2, from_low, from_high).astype(np.float32)


# Meant for blocks divided by their largest magnitude; the unsigned one for numbers from 0.
DYNAMIC = Format("dynamic", 8, dynamic_levels())
DYNAMIC_UNSIGNED = Format("unsigned dynamic", 8, dynamic_levels(signed=False))
