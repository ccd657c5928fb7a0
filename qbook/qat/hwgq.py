"""HWGQ: the evenly spaced levels that lose least of normal activations behind a ReLU.

Cai et al. 2017, arXiv:1702.00953.  Its steps are the table in the code of EdMIPS (Cai & Vasconcelos
2020, arXiv:2004.05795), with those for normal weights beside them.  Book: 3.3
"""

import numpy as np
from scipy import optimize, stats

from qbook.theory.bins import bin_moments, squared_error


def mse(step, bits, *, round_to_zero):
    """Mean squared error of x = max(g, 0), g standard normal, on 0, step, ... (2^bits - 1) step.

    round_to_zero: True, every x goes to the nearest level; False, as in the paper: x > 0 goes to
                   the nearest level above 0, so that the sign of g is kept
    """
    levels = np.arange(0 if round_to_zero else 1, 2**bits) * step
    return _error(levels, 0.0)


def half_wave_step(bits, *, round_to_zero=False):
    """The step of least ``mse`` -> float.  Raises ValueError for bits outside 1..8."""
    return _best(lambda step: mse(step, bits, round_to_zero=round_to_zero), bits)


def weight_step(bits):
    """The step of least squared error for standard normal weights on 2^bits levels without a zero,
    step / 2, 3 step / 2, ... and their negatives -> float.  Raises ValueError as above.
    """
    return _best(
        lambda step: _error((np.arange(2**bits) - (2**bits - 1) / 2) * step, -np.inf), bits
    )


def _error(levels, low):
    edges = np.concatenate([[low], (levels[1:] + levels[:-1]) / 2, [np.inf]])
    return float(squared_error(bin_moments(stats.norm(), edges), levels).sum())


def _best(error, bits):
    if bits not in range(1, 9):
        raise ValueError(f"bits={bits} is not supported; choose an integer from 1 to 8")
    # One level carries at most a few standard deviations; 256 of them are 0.03 apart.
    return float(optimize.minimize_scalar(error, bounds=(1e-3, 4), method="bounded").x)
