"""Every rounding of a small layer: the optimum that AdaRound and GPTQ approximate.

Rounding down or up is a quadratic unconstrained binary optimisation (QUBO), which is NP-hard:
Nagel et al. 2020, arXiv:2004.10568, section 3.  2^in candidates a row, so up to 16 inputs.
Book: 4.1
"""

from dataclasses import replace

import numpy as np

from qbook import affine

LARGEST = 16


def roundings(w, qparams):
    """w [in] floats -> every choice of floor or floor + 1, codes [2^in, in], clipped to the range.

    Row k rounds input j up where bit j of k is set.  qparams: one scale.
    Raises ValueError for more than 16 inputs and for more than one scale.
    """
    if w.ndim != 1 or w.shape[0] > LARGEST:
        raise ValueError(f"w has shape {w.shape}; 2^in roundings are listed for [in], in <= 16")
    if np.size(qparams.scale) != 1:
        raise ValueError(f"scale has shape {np.shape(qparams.scale)}; one row has one scale")
    qparams = _flat(qparams)
    nearest = affine.quantize(w, qparams)
    floor = np.floor(w.astype(qparams.scale.dtype) * (1 / qparams.scale)) + qparams.zero_point
    up = (np.arange(2 ** w.shape[0])[:, None] >> np.arange(w.shape[0])) & 1
    return np.clip(floor + up, qparams.qmin, qparams.qmax).astype(nearest.dtype)


def search(w, x, qparams):
    """w [in], x [samples, in] -> codes [in] of least error, and the error of every rounding [2^in].

    The error is the mean over samples of (x w - x w_hat)^2.  Raises ValueError as ``roundings``.
    """
    codes = roundings(w, qparams)
    delta = affine.dequantize(codes, _flat(qparams)) - w
    errors = np.mean((x @ delta.T) ** 2, axis=0)
    return codes[np.argmin(errors)], errors


def _flat(qparams):
    """The one scale in the shape [1], whatever shape it had."""
    scale, zero_point = np.ravel(qparams.scale), np.ravel(qparams.zero_point)
    return replace(qparams, scale=scale, zero_point=zero_point, group_axis=None)
