"""NF4: sixteen levels at quantiles of the normal distribution.

Dettmers et al. 2023, arXiv:2305.14314, section 3 (QLoRA), as its released code has it: eight
levels above zero, seven below, and zero; evenly spaced in *probability* between 1/2 and ``offset``
on either side, then divided by the largest.  Book: 2.5
"""

from statistics import NormalDist

import numpy as np

from qbook.formats.table import Format


def normal_float_levels(offset=0.9677083):
    """-> [16] float32, ascending, from -1 to 1 with an exact 0.

    offset: probability of the outermost quantile; the default is the mean of 1 - 1/30 and 1 - 1/32,
    to seven digits, as published.  Rounded to float32 after each step, as the released code rounds:
    the table then equals bitsandbytes's bit for bit.
    """
    above = _quantiles(offset, 8)
    below = -_quantiles(offset, 7)
    levels = np.concatenate([below, np.zeros(1, np.float32), above[::-1]])
    return levels / levels[-1]


def _quantiles(offset, count):
    """[count] float32: normal quantiles at probabilities from ``offset`` down to, not with, 1/2."""
    probabilities = np.linspace(float(np.float32(offset)), 0.5, count + 1).astype(np.float32)
    quantile = NormalDist().inv_cdf
    return np.array([quantile(float(p)) for p in probabilities[:-1]], np.float32)


# Meant for blocks divided by their largest magnitude; beyond [-1, 1] a number overflows.
NF4 = Format("NF4", 4, normal_float_levels())
