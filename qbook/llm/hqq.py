"""HQQ: the zero-point of each group is moved until few weights are far off; no data are needed.

    minimise  sum |e|^p + beta / 2 (e - (w - w_hat))^2        w_hat = scale (codes - zero_point)

Alternately e = shrink(w - w_hat) and zero_point = mean(codes - (w - e) / scale), while beta grows.
The scale stays that of the group's range; the zero_point becomes a real number, stored as one.
Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models", and the
released ``hqq.core.optimize``.  Book: 5, HQQ

Inside, as in the release, the scale is an inverse one, ``steps``: codes = round(w steps + zero).
"""

from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

from qbook import granularity

STEPS = 20


class Quantized(NamedTuple):
    """codes [out, in] uint8; scale and zero_point [out, groups, 1], both real numbers"""

    codes: Any
    scale: Any
    zero_point: Any


def quantize(w, bits, *, group_size=64, solve=None, **options):
    """w [out, in] -> ``Quantized``

    solve:   ``alternate`` (None), ``alternate_released`` or ``start``, which only covers the range
    options: its p, beta, kappa, steps
    Raises ValueError for bits outside 1..8, NaN or infinity, and a group_size that does not divide.
    """
    if bits not in range(1, 9):
        raise ValueError(f"bits={bits!r} is not supported; choose an integer from 1 to 8")
    xp = array_namespace(w)
    w = w.detach() if hasattr(w, "detach") else w
    if not bool(xp.all(xp.isfinite(w))):
        raise ValueError("w holds NaN or infinity; quantize finite values only")
    groups = granularity.split_groups(w, group_size, 1)
    steps, zero = (solve or alternate)(groups, 2**bits - 1, **options)
    codes = xp.astype(_codes(groups, steps, zero, 2**bits - 1), xp.uint8)
    return Quantized(xp.reshape(codes, w.shape), 1 / steps, zero)


def dequantize(quantized):
    """``Quantized`` -> w_hat [out, in], in the float type of scale"""
    codes, scale, zero_point = quantized
    xp = array_namespace(codes)
    out, groups, _ = scale.shape
    codes = xp.astype(xp.reshape(codes, (out, groups, -1)), scale.dtype)
    return xp.reshape((codes - zero_point) * scale, quantized.codes.shape)


def shrink(x, beta, p):
    """x [...] -> sign(x) max(|x| - |x|^(p-1) / beta, 0), near argmin |e|^p + beta / 2 (e - x)^2

    Zero up to beta^(-1 / (2 - p)), in the unit of x.  p=1 is the soft threshold, and exact.
    """
    xp = array_namespace(x)
    size = xp.abs(x)
    with np.errstate(divide="ignore"):
        shrunk = size - (1.0 / beta) * size ** (p - 1)
    return xp.where(shrunk > 0, shrunk, xp.zeros_like(x)) * xp.sign(x)


def start(w, qmax):
    """w [..., n] -> steps, zero [..., 1]: the range of each row, covered exactly

    A row of (nearly) one value takes 1 step a unit; steps stay below 2e4, whose reciprocal is a
    normal number of float16.
    """
    xp = array_namespace(w)
    low, high = xp.min(w, axis=-1, keepdims=True), xp.max(w, axis=-1, keepdims=True)
    narrow = high - low <= 1e-4
    steps = qmax / xp.where(narrow, xp.ones_like(low), high - low)
    steps = xp.where(narrow, xp.ones_like(low), steps)
    steps = xp.minimum(steps, xp.full_like(steps, 2e4))
    return steps, -low * steps


def alternate(w, qmax, *, p=0.7, beta=10.0, kappa=1.01, steps=STEPS):
    """w [..., n] -> steps, zero [..., 1]: the blog's algorithm

    Ends when the mean of |w - w_hat| over all rows does not fall, with the best zero so far; after
    the last step there is no such look.  Raises ValueError for p outside (0, 1], beta <= 0,
    kappa < 1 or steps < 1.
    """
    _check(p, beta, kappa, steps)
    xp = array_namespace(w)
    inverse_scale, zero = start(w, qmax)
    least, best = float("inf"), zero
    for _ in range(steps):
        codes = _codes(w, inverse_scale, zero, qmax)
        error = w - (codes - zero) / inverse_scale
        size = float(xp.mean(xp.abs(error)))
        if not size < least:
            return inverse_scale, best
        least, best = size, zero
        zero = _fit_zero(w, codes, shrink(error, beta, p), inverse_scale)
        beta *= kappa
    return inverse_scale, zero


def alternate_released(w, qmax, *, p=0.7, beta=10.0, kappa=1.01, steps=STEPS):
    """As the ``hqq`` package does it by default (0.2.8, "legacy"): beta never grows, and the zero
    it ends with is the one *after* the step that made things worse.  kappa is not used.
    """
    _check(p, beta, kappa, steps)
    xp = array_namespace(w)
    inverse_scale, zero = start(w, qmax)
    least = float("inf")
    for _ in range(steps):
        codes = _codes(w, inverse_scale, zero, qmax)
        error = w - (codes - zero) / inverse_scale
        zero = _fit_zero(w, codes, shrink(error, beta, p), inverse_scale)
        size = float(xp.mean(xp.abs(error)))
        if not size < least:
            break
        least = size
    return inverse_scale, zero


def alternate_both(w, qmax, *, steps=STEPS):
    """w [..., n] -> steps, zero [..., 1]: the line of least squares through (codes, w), repeated

    What HQQ becomes with e = 0 and a scale that moves too.  The sum of squares of no row rises; a
    row whose codes are all one keeps its line.  Not part of HQQ.
    """
    xp = array_namespace(w)
    inverse_scale, zero = start(w, qmax)
    for _ in range(steps):
        codes = _codes(w, inverse_scale, zero, qmax)
        middle = xp.mean(codes, axis=-1, keepdims=True)
        centre = xp.mean(w, axis=-1, keepdims=True)
        spread = xp.sum((codes - middle) ** 2, axis=-1, keepdims=True)
        common = xp.sum((codes - middle) * (w - centre), axis=-1, keepdims=True)
        flat = common <= 0
        ones = xp.ones_like(common)
        inverse_scale = xp.where(flat, inverse_scale, spread / xp.where(flat, ones, common))
        zero = xp.where(flat, zero, middle - centre * inverse_scale)
    return inverse_scale, zero


def _codes(w, inverse_scale, zero, qmax):
    xp = array_namespace(w)
    return xp.clip(xp.round(w * inverse_scale + zero), 0, qmax)


def _fit_zero(w, codes, e, inverse_scale):
    """The zero of least sum of (w - e - w_hat)^2, each row for itself"""
    return array_namespace(w).mean(codes - (w - e) * inverse_scale, axis=-1, keepdims=True)


def _check(p, beta, kappa, steps):
    if not (0 < p <= 1 and beta > 0 and kappa >= 1 and steps >= 1):
        raise ValueError(
            f"p={p}, beta={beta}, kappa={kappa}, steps={steps} do not fit; choose 0 < p <= 1, "
            "beta > 0, kappa >= 1 and steps >= 1 (HQQ: 0.7, 10, 1.01, 20)"
        )
