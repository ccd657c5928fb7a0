"""Accumulators: what becomes of a long sum whose register is short.

    int32            exact, while the sum fits
    float16          rounded at every addition; beyond 65504 it is infinite
    fixed point      a step's products and the sum so far are shifted to the largest exponent, cut
                     off below so many bits, and added: a model of the FP8 products of Hopper

DeepSeek-AI 2024, arXiv:2412.19437, sections 3.3.2 and 3.5.2 (14 bits, 32 products, sums taken out
every 128).  A model: neither the order nor the rounding of the hardware is documented.  Book: 6.1.1
"""

import numpy as np

HOPPER_BITS, HOPPER_STEP = 14, 32


def fixed_point(products, *, bits=HOPPER_BITS, step=HOPPER_STEP, promote=None):
    """products float64 [..., n] -> sums float64 [...]

    bits:     that are kept of each addend, counted from the leading bit of the largest one
    step:     products that are aligned and added at once
    promote:  products after which the sum moves to a float32 register and begins anew; None: never
    Raises ValueError unless bits and step are positive and step divides promote.
    """
    if bits < 1 or step < 1 or (promote is not None and (promote < 1 or promote % step)):
        raise ValueError(
            f"bits={bits}, step={step}, promote={promote}; choose bits and step above 0, and "
            "promote a multiple of step, or None"
        )
    products = np.asarray(products, np.float64)
    total = np.zeros(products.shape[:-1], np.float32)
    sums = np.zeros(products.shape[:-1])
    for start in range(0, products.shape[-1], step):
        if promote is not None and start % promote == 0:
            total, sums = total + sums.astype(np.float32), np.zeros_like(sums)
        addends = np.concatenate([products[..., start : start + step], sums[..., None]], axis=-1)
        sums = _cut(addends, bits).sum(axis=-1)
    return (total + sums.astype(np.float32)).astype(np.float64)


def _cut(addends, bits):
    """What of addends [..., n] is above the bits below the largest, towards zero"""
    exponent = np.frexp(np.abs(addends).max(axis=-1, keepdims=True))[1]
    unit = np.ldexp(1.0, exponent - bits)
    return np.trunc(addends / unit) * unit


def float16(products):
    """products [..., n] -> sums float16 [...], rounded at every addition; infinite beyond 65504"""
    products = np.asarray(products, np.float16)
    sums = np.zeros(products.shape[:-1], np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(products.shape[-1]):
            sums = sums + products[..., k]
    return sums


def fixed_point_bound(largest, *, bits=HOPPER_BITS, step=HOPPER_STEP):
    """Error of one step of ``fixed_point`` whose largest addend is this, at most: (step + 1) units

    A unit is 2^(1 - bits) of the power of two at or below ``largest``.
    """
    return (step + 1) * np.ldexp(1.0, np.frexp(largest)[1] - bits)
